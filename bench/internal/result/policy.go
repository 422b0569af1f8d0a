package result

import (
	"fmt"

	"github.com/strait-net/strait/bench/internal/stat"
)

// NftSets names the peer of row 5: a rule and a set of addresses for each rule of a policy.
const NftSets = "nft-sets"

// Rules are the numbers of rules on a pod that row 5 is measured with.
func Rules() []int { return []int{0, 100, 1000, 10000} }

// WithRules names the path to a pod with n rules.
func WithRules(system string, n int) string { return system + "-rules@" + count(n) }

// ruleComparisons are those of row 5.
func ruleComparisons() []comparison {
	var list []comparison
	for _, n := range Rules()[1:] {
		own := comparison{row: "5", subject: WithRules(Strait, n), against: WithRules(Strait, 0)}
		if n == 10_000 {
			own.bounds = map[string]float64{"rr": 0.99, "crr": 0.97}
		}
		list = append(list, own,
			comparison{row: "5", subject: WithRules(NftSets, n), against: WithRules(NftSets, 0)},
			comparison{row: "5", subject: WithRules(Strait, n), against: WithRules(NftSets, n)})
	}
	return append(list, comparison{row: "5", subject: WithRules(Strait, 0), against: WithRules(NftSets, 0)})
}

// Ruling is how an agent came to enforce rules on one pod, from its start.
type Ruling struct {
	Rules   int     `json:"rules"`
	Seconds float64 `json:"s"`     // until the pod with the rules was added
	CPU     float64 `json:"cpu_s"` // of the agent until then
	RSSKiB  int     `json:"rss_kib"`
	PeakKiB int     `json:"peak_rss_kib"`
}

// Crowd is what an agent uses in a cluster of other nodes' pods.
type Crowd struct {
	Pods      int     `json:"pods"`
	Policies  int     `json:"policies"`
	Seconds   float64 `json:"s"`     // from its start until its own pods were added
	CPU       float64 `json:"cpu_s"` // until then
	RSSKiB    int     `json:"rss_kib"`
	PeakKiB   int     `json:"peak_rss_kib"`
	IdleMilli float64 `json:"idle_milli"` // thousandths of a core
	Changed   int     `json:"changed"`    // pods that changed labels
	ChangeCPU float64 `json:"change_cpu_s"`
}

// Turn is a series of changes of one kind at the API server.
type Turn struct {
	Kind     string    `json:"kind"`
	Pods     int       `json:"pods"` // of the crowd
	Policies int       `json:"policies"`
	Ms       []float64 `json:"ms"`         // from sending the write until the first packet that was judged otherwise
	WriteMs  []float64 `json:"written_ms"` // of that, until the API server answered
}

func (r *Run) judgeRulings() []Row {
	var rows []Row
	for _, x := range r.Rulings {
		what := fmt.Sprintf("start with %s rules on one pod", count(x.Rules))
		rows = append(rows, absolute("5", what+": until it is added", Strait, x.Seconds, "s", Bound{}), absolute("5", what+": CPU time", Strait, x.CPU, "s", Bound{}),
			absolute("5", what+": peak RSS", Strait, float64(x.PeakKiB)/1024, "MiB", Bound{}))
	}
	return rows
}

// judgeCrowds makes the rows of row 9. What a pod costs is the difference to the same policies without pods.
func (r *Run) judgeCrowds() []Row {
	var rows []Row
	for _, c := range r.Crowds {
		what := fmt.Sprintf("%s remote pods, %s policies", count(c.Pods), count(c.Policies))
		var idle Bound
		if c.Pods == 0 && c.Policies == 0 {
			idle = Bound{Value: 60, AtMost: true}
		}
		rows = append(rows, absolute("9", what+": RSS", Strait, float64(c.RSSKiB)/1024, "MiB", idle),
			absolute("9", what+": peak RSS", Strait, float64(c.PeakKiB)/1024, "MiB", Bound{}),
			absolute("9", what+": start until pods are added", Strait, c.Seconds, "s", Bound{}),
			absolute("9", what+": CPU time of the start", Strait, c.CPU, "s", Bound{}),
			absolute("9", what+": idle", Strait, c.IdleMilli, "milli", Bound{}))
		if c.Changed > 0 {
			rows = append(rows, absolute("9", what+": CPU time of one pod's change", Strait, c.ChangeCPU/float64(c.Changed)*1e6, "us", Bound{}))
		}
		for _, base := range r.Crowds {
			if c.Pods > 0 && base.Pods == 0 && base.Policies == c.Policies {
				each := float64(c.RSSKiB-base.RSSKiB) / float64(c.Pods)
				rows = append(rows, absolute("9", what+": RSS per remote pod", Strait, each, "KiB", Bound{Value: 1, AtMost: true}))
			}
		}
	}
	return rows
}

// judgeTurns makes the rows of row 10.
func (r *Run) judgeTurns() []Row {
	var rows []Row
	for _, t := range r.Turns {
		p50, p99 := Bound{Value: 10, AtMost: true}, Bound{Value: 100, AtMost: true}
		what := fmt.Sprintf("%s until the verdict changes, %s pods, %s policies", t.Kind, count(t.Pods), count(t.Policies))
		mid := stat.MedianInterval(t.Ms)
		rows = append(rows, Row{Row: "10", Metric: what + ": p50", Subject: Strait, Value: mid, Unit: "ms", Target: p50.String(), Verdict: p50.Judge(mid, stat.Interval{})},
			absolute("10", fmt.Sprintf("%s: p99 of %d", what, len(t.Ms)), Strait, stat.Quantile(t.Ms, 0.99), "ms", p99),
			absolute("10", what+": p50 of the write alone", Strait, stat.Median(t.WriteMs), "ms", Bound{}))
	}
	return rows
}

func (r *Run) roundPolicy() {
	for i := range r.Turns {
		roundAll(r.Turns[i].Ms)
		roundAll(r.Turns[i].WriteMs)
	}
	for i := range r.Rulings {
		r.Rulings[i].Seconds = significant(r.Rulings[i].Seconds)
	}
	for i := range r.Crowds {
		c := &r.Crowds[i]
		c.Seconds, c.IdleMilli, c.ChangeCPU = significant(c.Seconds), significant(c.IdleMilli), significant(c.ChangeCPU)
	}
}
