package main

import (
	"slices"
	"testing"
	"time"

	"github.com/strait-net/strait/bench/internal/rig"
)

func TestParse(t *testing.T) {
	c, err := parse([]string{"--quick", "--rounds", "9", "--rows", "2,6", "--tests", "crr/6"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Rounds != 9 || c.Sample != 300*time.Millisecond || !slices.Equal(c.Rows, []string{"2", "6"}) || len(c.Tests) != 1 || c.Tests[0].String() != "crr/6" {
		t.Errorf("parsed %+v: a flag that was given must win over --quick", c)
	}
	if c, err := parse([]string{"--all"}); err != nil || !slices.Equal(c.Rows, rig.Known()) || len(c.Levels) != 3 || c.Rounds != 15 || c.Sample != 2*time.Second {
		t.Errorf("--all parsed as %+v, %v", c, err)
	}
	for _, bad := range [][]string{{"--rows", "11"}, {"--pods", "10,1"}, {"--policies", "-1"}, {"--services", "1000,10"}, {"--services", "7"}, {"--rows", "1,,2"}, {"--all", "--rows", "1"}, {"--tests", "rr"}, {"--sample", "two"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

func TestCompareWantsTwoFiles(t *testing.T) {
	if err := compare([]string{"one"}); err == nil {
		t.Error("one file was accepted")
	}
}
