package path

import "testing"

func TestCounters(t *testing.T) {
	got, err := counters([]byte("# HELP strait_flows_total What happened\n# TYPE strait_flows_total counter\n" +
		"strait_flows_total{kind=\"new\"} 1.25e+06\nstrait_flows_kept 12\ngo_goroutines 40\nstrait_build_info{version=\"a b\"} 1\n"))
	if err != nil || len(got) != 3 || got[`strait_flows_total{kind="new"}`] != 1_250_000 || got["strait_flows_kept"] != 12 || got[`strait_build_info{version="a b"}`] != 1 {
		t.Errorf("read %v, %v", got, err)
	}
	if _, err := counters([]byte("strait_flows_kept many\n")); err == nil {
		t.Error("a counter that is no number")
	}
}

func TestConclusion(t *testing.T) {
	for answer, want := range map[string]struct {
		verdict string
		hops    int
		fails   bool
	}{
		`{"there":[{"node":"a","error":"elsewhere"},{"node":"b","part":{"hops":[{},{}]}}],"back":[{"node":"b","part":{"hops":[{}]}}],"conclusion":{"verdict":"unknown"}}`: {verdict: "unknown", hops: 3},
		`{"there":[{"node":"a","part":{"hops":[{}]}}],"conclusion":{"verdict":"delivered"}}`:                                                                              {verdict: "delivered", hops: 1},
		"strait: no agent runs on this node\n": {fails: true},
	} {
		verdict, hops, err := conclusion([]byte(answer))
		if verdict != want.verdict || hops != want.hops || (err != nil) != want.fails {
			t.Errorf("%s: %q by %d hops, %v", answer, verdict, hops, err)
		}
	}
}
