package result

import (
	"fmt"

	"github.com/strait-net/strait/bench/internal/stat"
)

// Explained is how long strait explain took, from its start until its end.
type Explained struct {
	Question string    `json:"question"`
	Services int       `json:"services"`
	Pods     int       `json:"pods"` // of other nodes
	Policies int       `json:"policies"`
	FirstMs  []float64 `json:"first_ms"` // the first question to an agent that has just started
	Ms       []float64 `json:"ms"`       // the following
}

// judgeExplained makes the rows of the latency of explain.
func (r *Run) judgeExplained() []Row {
	var rows []Row
	second := Bound{Value: 1000, AtMost: true}
	for _, x := range r.Explained {
		what := fmt.Sprintf("strait explain, %s, %s services, %s remote pods, %s policies", x.Question, count(x.Services), count(x.Pods), count(x.Policies))
		first, next := stat.MedianInterval(x.FirstMs), stat.MedianInterval(x.Ms)
		rows = append(rows, Row{Row: "explain", Metric: what + ": first question to an agent, p50", Subject: Strait, Value: first, Unit: "ms", Target: second.String(),
			Verdict: second.Judge(first, stat.Interval{})},
			absolute("explain", fmt.Sprintf("%s: slowest of %d first ones", what, len(x.FirstMs)), Strait, stat.Quantile(x.FirstMs, 1), "ms", second),
			Row{Row: "explain", Metric: what + ": following, p50", Subject: Strait, Value: next, Unit: "ms", Target: second.String(), Verdict: second.Judge(next, stat.Interval{})},
			absolute("explain", fmt.Sprintf("%s: following, p99 of %d", what, len(x.Ms)), Strait, stat.Quantile(x.Ms, 0.99), "ms", second))
	}
	return rows
}

func (r *Run) roundFlow() {
	for i := range r.Floods {
		r.Floods[i].PerSecond, r.Floods[i].AgentCPU = significant(r.Floods[i].PerSecond), significant(r.Floods[i].AgentCPU)
	}
	for i := range r.Explained {
		roundAll(r.Explained[i].FirstMs)
		roundAll(r.Explained[i].Ms)
	}
}
