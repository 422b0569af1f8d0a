package result

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/stat"
)

// The paths of row 13: nothing is told of connections; all is, and nobody asks; one client reads all of it. The first is the floor of their rounds.
const (
	FlowsOff  = "strait-flows-off"
	FlowsOn   = "strait-flows"
	FlowsRead = "strait-flows-read"
)

// The loads that are counted.
const (
	LoadConnections = "UDP connections"
	LoadTCP         = "TCP connections"
	LoadEverything  = "connections and denials from all CPUs"
)

// Kinds of records.
const (
	New    = "new"
	Ended  = "ended"
	Denied = "denied"
)

// Flood is what became of what a load caused.
type Flood struct {
	Load       string       `json:"load"`
	Followed   bool         `json:"followed"` // by one client that reads all flows
	RingBytes  int          `json:"ring_bytes"`
	PerSecond  float64      `json:"per_s"`      // caused
	Remembered uint64       `json:"remembered"` // flows that came to the agent's store
	AgentCPU   float64      `json:"agent_us_per_flow"`
	Counts     []FloodCount `json:"counts"`
	Client     *Client      `json:"client,omitempty"`
}

// FloodCount is what became of one kind. All but Records are packets where the kind is denied, else they are records.
type FloodCount struct {
	Kind    string `json:"kind"`
	Caused  uint64 `json:"caused"`  // by who sent it
	Told    uint64 `json:"told"`    // with what was held back because it repeats
	Records uint64 `json:"records"` // that told of it
	Lost    uint64 `json:"lost"`    // counted as such
}

// Client is what a client that follows has got.
type Client struct {
	Received uint64 `json:"received"`
	Missed   uint64 `json:"missed"` // told as such
	// Comparable: both together are what the store has got. Otherwise they count the gaps in it, too, of which nobody else knows the number.
	Comparable bool `json:"comparable"`
}

func gap(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// Unaccounted is how much is neither told nor counted as lost, or told twice; of what the client should have as well.
func (f Flood) Unaccounted() (n uint64) {
	for _, c := range f.Counts {
		n += gap(c.Caused, c.Told+c.Lost)
	}
	if f.Client != nil && f.Client.Comparable {
		n += gap(f.Remembered, f.Client.Received+f.Client.Missed)
	}
	return n
}

// Complete reports whether nothing was lost.
func (f Flood) Complete() bool {
	return !slices.ContainsFunc(f.Counts, func(c FloodCount) bool { return c.Lost > 0 }) && (f.Client == nil || f.Client.Missed == 0)
}

// Subject is whose the figures are.
func (f Flood) Subject() string {
	if f.Followed {
		return FlowsRead
	}
	return FlowsOn
}

// String says what became of it.
func (f Flood) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s: %.0f per second, agent %.2f us each;", f.Load, f.Subject(), f.PerSecond, f.AgentCPU)
	for _, c := range f.Counts {
		fmt.Fprintf(&b, " %s %d, told %d by %d records, lost %d;", c.Kind, c.Caused, c.Told, c.Records, c.Lost)
	}
	if f.Client != nil {
		fmt.Fprintf(&b, " client received %d of %d, missed %d;", f.Client.Received, f.Remembered, f.Client.Missed)
	}
	fmt.Fprintf(&b, " %d unaccounted for", f.Unaccounted())
	return b.String()
}

// flowComparisons are those of row 13.
func flowComparisons() []comparison {
	var list []comparison
	for _, subject := range []string{FlowsOn, FlowsRead} {
		list = append(list, comparison{row: "13", subject: subject, against: FlowsOff, floor: FlowsOff,
			bounds: map[string]float64{"rr": 0.97, "crr": 0.97, "stream": 0.97, "udprr": 0.97, "udppps": 0.97}})
	}
	return list
}

// total is CPU time per operation of both ends and of those beside them.
func total(s measure.Series) []float64 {
	out := slices.Clone(s.CPU)
	for _, ns := range s.Beside {
		for i := range min(len(out), len(ns)) {
			out[i] += ns[i]
		}
	}
	return out
}

// judgeFlowCosts makes the rows of what telling of connections costs in CPU time, agents and readers included.
func (r *Run) judgeFlowCosts() []Row {
	var rows []Row
	for _, s := range r.Series {
		if !slices.Contains([]string{FlowsOff, FlowsOn, FlowsRead}, s.Path) {
			continue
		}
		mode, family, _ := strings.Cut(s.Test, "/")
		if mode == "crr" {
			rows = append(rows, besides(s, metric(mode, family))...)
		}
		if s.Path == FlowsOff {
			continue
		}
		off, _ := r.series(FlowsOff, s.Test)
		again, _ := r.series(measure.Again(FlowsOff), s.Test)
		var bound Bound
		if s.Path == FlowsOn {
			bound = Bound{Value: 1.03, AtMost: true}
		}
		value, band := stat.MedianInterval(stat.Ratios(total(s), total(off))), stat.Band(total(off), total(again))
		if value.N == 0 {
			continue
		}
		rows = append(rows, Row{Row: "13", Metric: metric(mode, family) + ": CPU time of all", Subject: s.Path, Against: FlowsOff, Value: value, Band: band,
			Target: bound.String(), Verdict: bound.Judge(value, band)})
	}
	return rows
}

// besides makes the rows of the CPU time of those who are no end of a path.
func besides(s measure.Series, metric string) []Row {
	var rows []Row
	for _, who := range sortedKeys(s.Beside) {
		mid := stat.MedianInterval(s.Beside[who])
		rows = append(rows, Row{Row: "13", Metric: metric + ": CPU time of the " + who, Subject: s.Path, Unit: "us",
			Value: stat.Interval{Mid: mid.Mid / 1e3, Lo: mid.Lo / 1e3, Hi: mid.Hi / 1e3, N: mid.N}})
	}
	return rows
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// judgeFloods makes the rows of what is told and counted of many connections.
func (r *Run) judgeFloods() []Row {
	var rows []Row
	for _, subject := range []string{FlowsOn, FlowsRead} {
		for _, load := range []string{LoadTCP, LoadConnections, LoadEverything} {
			floods := slices.DeleteFunc(slices.Clone(r.Floods), func(f Flood) bool { return f.Subject() != subject || f.Load != load })
			if len(floods) > 0 {
				rows = append(rows, judgeLoad(subject, load, floods)...)
			}
		}
	}
	return rows
}

// judgeLoad makes the rows of the floods of one load.
func judgeLoad(subject, load string, floods []Flood) []Row {
	var unaccounted, happened uint64
	var most Flood // of those of which nothing was lost
	for _, f := range floods {
		unaccounted += f.Unaccounted()
		for _, c := range f.Counts {
			happened += c.Caused
		}
		if f.Complete() && f.PerSecond > most.PerSecond {
			most = f
		}
	}
	rows := []Row{absolute("13", fmt.Sprintf("%s, %d records: neither told nor counted as lost, or told twice", load, happened), subject, float64(unaccounted), "records",
		Bound{Exactly: true})}
	if most.PerSecond > 0 {
		rows = append(rows, absolute("13", fmt.Sprintf("%s: records per second of which none is lost, ring of %d KiB", load, most.RingBytes>>10), subject, most.PerSecond, "/s", Bound{}),
			absolute("13", load+": CPU time of the agent for a record, then", subject, most.AgentCPU, "us", Bound{}))
	}
	if load != LoadEverything {
		return rows
	}
	for _, f := range floods {
		rows = append(rows, absolute("13", load+": per second", subject, f.PerSecond, "/s", Bound{}))
		for _, c := range f.Counts {
			bound := Bound{}
			if c.Kind == Denied {
				bound = Bound{Value: 1}
			}
			rows = append(rows, absolute("13", fmt.Sprintf("%s: %s, records that are told", load, c.Kind), subject, float64(c.Records), "records", bound),
				absolute("13", fmt.Sprintf("%s: %s, share that is told of", load, c.Kind), subject, float64(c.Told)/float64(max(c.Caused, 1)), "", Bound{}))
		}
	}
	return rows
}
