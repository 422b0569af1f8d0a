package rig

import (
	"testing"
	"time"

	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/result"
)

func TestSearchFindsTheLargestRate(t *testing.T) {
	for _, c := range []struct{ bearable, possible, atLeast, tries int }{
		{200_000, 1_000_000, 175_000, 10},
		{12_000, 1_000_000, 10_000, 4},   // not even the first
		{1_000_000, 130_000, 130_000, 5}, // the generator is the limit
		{5_000, 1_000_000, 0, 4},
	} {
		s, best, tries := search{}, 0, 0
		for rate, found := slowest, false; !found; tries++ {
			reached := min(rate, c.possible)
			good := reached <= c.bearable
			if good {
				best = max(best, reached)
			}
			rate, found = s.next(rate, float64(reached), good)
		}
		if best < c.atLeast || best > c.bearable || tries > c.tries {
			t.Errorf("%d bearable, %d possible: found %d in %d tries, want at least %d in %d", c.bearable, c.possible, best, tries, c.atLeast, c.tries)
		}
	}
}

func TestReadingsAreCounted(t *testing.T) {
	const (
		stopped    = `strait_flow_stopped_packets_total{direction="ingress",reason="policy-ingress"}`
		lostDenied = `strait_flow_packets_lost_total{kind="denied"}`
		lostNew    = `strait_flow_records_lost_total{kind="new"}`
	)
	told := func(kind string) string { return `strait_flows_total{kind="` + kind + `"}` }
	before := reading{metrics: map[string]uint64{told("new"): 10, stopped: 5}, client: node.Followed{Flows: 3}, agent: time.Second}
	after := reading{metrics: map[string]uint64{told("new"): 110, told("denied"): 4, told("ended"): 6, stopped: 65, lostDenied: 40, lostNew: 900,
		`strait_flow_records_lost_total{kind="denied"}`: 2}, client: node.Followed{Flows: 93, Missed: 20}, agent: 1100 * time.Millisecond}
	f := result.Flood{Followed: true}
	after.minus(before).fill(&f, map[string]uint64{result.New: 1000, result.Denied: 100})
	if len(f.Counts) != 2 || f.Counts[0] != (result.FloodCount{Kind: "new", Caused: 1000, Told: 100, Records: 100, Lost: 900}) ||
		f.Counts[1] != (result.FloodCount{Kind: "denied", Caused: 100, Told: 60, Records: 4, Lost: 40}) {
		t.Errorf("counts %+v", f.Counts)
	}
	if f.Unaccounted() != 0 || f.Complete() || f.Remembered != 110 || *f.Client != (result.Client{Received: 90, Missed: 20}) {
		t.Errorf("flood %+v, client %+v", f, f.Client)
	}
	if us := 100_000.0 / 110; f.AgentCPU != us {
		t.Errorf("agent %v us for a flow, want %v", f.AgentCPU, us)
	}
}
