package state

import (
	"slices"
	"testing"
	"time"
)

func TestProblemsOfOneSource(t *testing.T) {
	problems := NewProblems()
	first, later := time.Unix(100, 0), time.Unix(200, 0)
	Raise(problems, Problem{Source: "other", Subject: "x", Text: "stays"}, first)
	Report(problems, "nodes", first, []Problem{{Subject: "node a", Text: "one"}, {Subject: "node b", Text: "two"}})
	rev := problems.Snapshot().Revision()
	Report(problems, "nodes", later, []Problem{{Subject: "node b", Text: "two"}, {Subject: "node a", Text: "one"}})
	if now := problems.Snapshot().Revision(); now != rev {
		t.Errorf("unchanged report wrote rows: revision %d, was %d", now, rev)
	}
	Report(problems, "nodes", later, []Problem{{Subject: "node b", Text: "worse"}, {Subject: "node b", Text: "also"}, {Subject: "node c", Text: "new"}})
	got := slices.Collect(problems.Snapshot().By(ProblemsBySource, "nodes"))
	want := []Problem{
		{Source: "nodes", Subject: "node b", Text: "worse", Since: first},
		{Source: "nodes", Subject: "node c", Text: "new", Since: later},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	Clear(problems, "nodes", "node b")
	Clear(problems, "nodes", "never was")
	if n := problems.Snapshot().Len(); n != 2 {
		t.Errorf("%d problems, want those of node c and the other source", n)
	}
}
