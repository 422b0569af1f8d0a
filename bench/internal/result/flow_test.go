package result

import (
	"strings"
	"testing"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/stat"
)

func TestExactBounds(t *testing.T) {
	b := Bound{Exactly: true}
	for value, want := range map[float64]Verdict{0: Met, 1: Missed} {
		if got := b.Judge(exact(value), stat.Interval{}); got != want || b.String() != "= 0" {
			t.Errorf("%s judges %v as %q, want %q", b, value, got, want)
		}
	}
}

func TestEveryRecordIsCounted(t *testing.T) {
	whole := Flood{Load: LoadEverything, PerSecond: 1000, Counts: []FloodCount{{Kind: New, Caused: 100, Told: 10, Records: 10, Lost: 90}, {Kind: Denied, Caused: 50, Told: 50, Records: 2}}}
	client := func(c Client) Flood {
		return Flood{Load: LoadConnections, Followed: true, Remembered: 100, PerSecond: 500, Counts: []FloodCount{{Kind: New, Caused: 100, Told: 100, Records: 100}}, Client: &c}
	}
	for name, c := range map[string]struct {
		f           Flood
		unaccounted uint64
		complete    bool
	}{
		"lost and counted":         {whole, 0, false},
		"one too few":              {Flood{Counts: []FloodCount{{Caused: 100, Told: 99}}}, 1, true},
		"one twice":                {Flood{Counts: []FloodCount{{Caused: 100, Told: 101}}}, 1, true},
		"two wrongs":               {Flood{Counts: []FloodCount{{Caused: 100, Told: 101}, {Caused: 100, Told: 99}}}, 2, true},
		"the client has all":       {client(Client{Received: 100, Comparable: true}), 0, true},
		"the client misses some":   {client(Client{Received: 60, Missed: 40, Comparable: true}), 0, false},
		"the client is not told":   {client(Client{Received: 60, Missed: 39, Comparable: true}), 1, false},
		"nobody can tell how many": {client(Client{Received: 60, Missed: 43}), 0, false},
	} {
		if got, complete := c.f.Unaccounted(), c.f.Complete(); got != c.unaccounted || complete != c.complete {
			t.Errorf("%s: %d unaccounted for, complete: %t", name, got, complete)
		}
	}
	wrong := whole
	wrong.Counts = []FloodCount{{Kind: New, Caused: 100, Told: 100}, {Kind: Denied, Caused: 50, Lost: 49}}
	r := Run{Floods: []Flood{
		{Load: LoadConnections, PerSecond: 1000, RingBytes: 2 << 20, AgentCPU: 3, Counts: []FloodCount{{Kind: New, Caused: 10, Told: 10}}},
		{Load: LoadConnections, PerSecond: 4000, RingBytes: 2 << 20, AgentCPU: 1, Counts: []FloodCount{{Kind: New, Caused: 40, Told: 39, Lost: 1}}},
		{Load: LoadConnections, PerSecond: 2000, RingBytes: 2 << 20, AgentCPU: 2, Counts: []FloodCount{{Kind: New, Caused: 20, Told: 20}}},
		wrong, client(Client{Received: 100, Comparable: true}),
	}}
	r.Judge()
	if x := find(t, &r, "UDP connections: records per second of which none is lost, ring of 2048 KiB", FlowsOn); x.Value.Mid != 2000 || x.Verdict != NoTarget {
		t.Errorf("fastest: %+v", x)
	}
	if x := find(t, &r, "UDP connections: CPU time of the agent", FlowsOn); x.Value.Mid != 2 {
		t.Errorf("CPU time: %+v", x)
	}
	for metric, want := range map[string]Verdict{
		"UDP connections, 70 records: neither told":                                   Met,
		"connections and denials from all CPUs, 150 records: neither told":            Missed,
		"connections and denials from all CPUs: denied, records that are told":        Missed,
		"connections and denials from all CPUs: new, share that is told of":           NoTarget,
		"connections and denials from all CPUs: denied, share that is told of":        NoTarget,
		"connections and denials from all CPUs: new, records that are told":           NoTarget,
		"connections and denials from all CPUs: per second":                           NoTarget,
		"UDP connections: records per second of which none is lost, ring of 2048 KiB": NoTarget,
	} {
		if x := find(t, &r, metric, FlowsOn); x.Verdict != want {
			t.Errorf("%s: %+v, want %q", metric, x, want)
		}
	}
	find(t, &r, "UDP connections: records per second of which none is lost", FlowsRead)
}

// What telling costs is more than what both ends pay: agents and readers work because of them.
func TestFlowCostsHoldAllWhoWork(t *testing.T) {
	flat := func(x float64) []float64 { return []float64{x, x, x, x, x} }
	series := func(path string, rate, cpu, agent float64) measure.Series {
		return measure.Series{Path: path, Test: "crr/4", Rate: flat(rate), CPU: flat(cpu), Beside: map[string][]float64{"agent": flat(agent)}}
	}
	r := Run{Series: []measure.Series{series(FlowsOff, 100, 100_000, 0), series(measure.Again(FlowsOff), 100, 100_000, 0), series(FlowsOn, 99, 101_000, 3_000), series(FlowsRead, 50, 101_000, 50_000)}}
	r.Judge()
	value := func(metric, subject string) Row {
		return find(t, &r, "TCP connect/request/response, IPv4"+metric, subject)
	}
	if x := value("", FlowsOn); x.Verdict != Met || x.Band.N == 0 || x.Against != FlowsOff {
		t.Errorf("rate: %+v", x)
	}
	if x := value("", FlowsRead); x.Verdict != Missed {
		t.Errorf("rate with a reader: %+v", x)
	}
	if x := value(": CPU time of all", FlowsOn); x.Verdict != Missed || x.Value.Mid != 1.04 {
		t.Errorf("CPU time: %+v", x)
	}
	if x := value(": CPU time of all", FlowsRead); x.Verdict != NoTarget || x.Value.Mid != 1.51 {
		t.Errorf("CPU time with a reader: %+v", x)
	}
	if x := value(": CPU time of the agent", FlowsOn); x.Value.Mid != 3 || x.Unit != "us" {
		t.Errorf("the agent: %+v", x)
	}
	if page := r.Markdown("x.json"); !strings.Contains(page, "| 13 | TCP connect/request/response, IPv4: CPU time of all |") {
		t.Errorf("page lacks the CPU time:\n%s", page)
	}
}

func TestExplainIsJudged(t *testing.T) {
	r := Run{Explained: []Explained{{Question: "near", Services: 10, FirstMs: []float64{900, 1200, 950}, Ms: []float64{100, 110, 120, 130}}, {Question: "far", Services: 10_000, FirstMs: []float64{2000}, Ms: []float64{1500}}}}
	r.Judge()
	var verdicts []string
	for _, row := range r.Rows {
		verdicts = append(verdicts, string(row.Verdict))
	}
	if got := strings.Join(verdicts, " "); got != "undecided missed met met missed missed missed missed" {
		t.Errorf("verdicts: %s", got)
	}
}
