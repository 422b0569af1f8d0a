package result

import (
	"testing"

	"github.com/strait-net/strait/bench/internal/measure"
)

func TestRowsOfServicesAreJudged(t *testing.T) {
	r := Run{
		Starts: []Start{{System: Strait, Services: 10, Seconds: 9}, {System: Strait, Services: 10000, Seconds: 2, RSSKiB: 120 << 10}, {System: KubeProxyIptables, Services: 10000}},
		Changes: []Change{{System: Strait, Services: 10000, Ms: []float64{5, 6, 7}, WriteMs: []float64{3, 3, 3}},
			{System: KubeProxyNftables, Services: 10000, Ms: []float64{5000}, WriteMs: []float64{3}}},
	}
	r.Judge()
	verdicts := map[string]Verdict{}
	for _, row := range r.Rows {
		verdicts[row.Subject+" "+row.Metric] = row.Verdict
	}
	for metric, want := range map[string]Verdict{
		"strait cold start with 10 services: until all work":                              NoTarget,
		"strait cold start with 10k services: until all work":                             Met,
		"strait cold start with 10k services: RSS":                                        Missed,
		"kp-iptables cold start with 10k services: until all work":                        NoTarget,
		"strait EndpointSlice written until a connect reaches it, 10k services: p50":      Met,
		"kp-nftables EndpointSlice written until a connect reaches it, 10k services: p50": NoTarget,
	} {
		if got, ok := verdicts[metric]; !ok || got != want {
			t.Errorf("%s: %q (found %v), want %q", metric, got, ok, want)
		}
	}
}

func TestPathsOfServicesAreCompared(t *testing.T) {
	flat := func(x float64) []float64 { return []float64{x, x, x, x, x} }
	r := Run{}
	for name, rate := range map[string]float64{
		Floor: 100, measure.Again(Floor): 100, FloorPorts: 100, measure.Again(FloorPorts): 100, AtLevel(Strait, 10): 90, ByService(Strait, 10): 89,
		ByService(Strait, 10000): 89, ByService(KubeProxyIptables, 10): 70, ByPort("strait-tc-dsr", "there", 10): 90, ByPort(KubeProxyIptables, "there", 10): 50,
	} {
		r.Series = append(r.Series, measure.Series{Path: name, Test: "crr/4", Rate: flat(rate), CPU: flat(1)})
	}
	r.Judge()
	met := 0
	for _, row := range r.Rows {
		if row.Verdict == Met {
			met++
		}
		if row.Row == "4" && row.Band.N == 0 {
			t.Errorf("%s against %s has no noise band", row.Subject, row.Against)
		}
	}
	if met != 4 { // ClusterIP against pod IP and iptables, 10k against 10, node port
		t.Errorf("%d targets met, want 4: %+v", met, r.Rows)
	}
}
