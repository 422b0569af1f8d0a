package result

import (
	"fmt"
	"strconv"

	"github.com/strait-net/strait/bench/internal/stat"
)

// The other systems that serve Services.
const (
	KubeProxyIptables = "kp-iptables"
	KubeProxyNftables = "kp-nftables"
)

// FloorPorts is the floor of the rounds in which node ports are measured.
const FloorPorts = "veth-ports"

// Levels are the numbers of other services that the rows about services are measured with.
func Levels() []int { return []int{10, 1000, 10000} }

// Proxies are the peers of the rows about services.
func Proxies() []string { return []string{KubeProxyIptables, KubeProxyNftables} }

func count(n int) string {
	if n >= 1000 {
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n)
}

// AtLevel names the path between two pods of a system's node that knows n services.
func AtLevel(system string, n int) string { return system + "@" + count(n) }

// ByService names the same path by way of a ClusterIP.
func ByService(system string, n int) string { return system + "-svc@" + count(n) }

// ByPort names the path from outside by a node port; at says where the backend is, "here" on the node asked or "there" on another.
func ByPort(system, at string, n int) string { return system + "-port-" + at + "@" + count(n) }

// Places are where a node port's backend can be.
func Places() []string { return []string{"here", "there"} }

// PortSystems are Strait's ways to forward node ports.
func PortSystems() []string {
	return []string{"strait-tc-snat", "strait-tc-dsr", "strait-xdp-snat", "strait-xdp-dsr"}
}

// serviceComparisons are those of rows 3 and 4.
func serviceComparisons() []comparison {
	var list []comparison
	for _, n := range Levels() {
		list = append(list, comparison{row: "3", subject: ByService(Strait, n), against: AtLevel(Strait, n), bounds: map[string]float64{"crr": 0.95}})
		for _, p := range Proxies() {
			list = append(list,
				comparison{row: "3", subject: ByService(Strait, n), against: ByService(p, n), bounds: map[string]float64{"crr": 1}},
				comparison{row: "3", subject: ByService(p, n), against: AtLevel(p, n)},
				comparison{row: "3", subject: AtLevel(Strait, n), against: AtLevel(p, n)})
		}
		list = append(list, portComparisons(n)...)
	}
	few, many := Levels()[0], Levels()[2]
	list = append(list, comparison{row: "3", subject: ByService(Strait, many), against: ByService(Strait, few), bounds: map[string]float64{"crr": 0.97}})
	for _, p := range Proxies() {
		list = append(list, comparison{row: "3", subject: ByService(p, many), against: ByService(p, few)})
	}
	return list
}

func portComparisons(n int) []comparison {
	var list []comparison
	for _, place := range Places() {
		for _, s := range PortSystems() {
			for _, p := range Proxies() {
				list = append(list, comparison{row: "4", subject: ByPort(s, place, n), against: ByPort(p, place, n), floor: FloorPorts,
					bounds: map[string]float64{"crr": 1.5, "udppps": 1.5}})
			}
		}
		for _, way := range []string{"snat", "dsr"} {
			list = append(list, comparison{row: "4", subject: ByPort("strait-xdp-"+way, place, n), against: ByPort("strait-tc-"+way, place, n), floor: FloorPorts})
		}
		for _, p := range Proxies() {
			list = append(list, comparison{row: "4", subject: ByPort(p, place, n), against: FloorPorts, floor: FloorPorts})
		}
	}
	return list
}

// judgeChanges makes the rows of row 7: how long a change of endpoints takes to work, and how much of it is the API server's own write.
func (r *Run) judgeChanges() []Row {
	var rows []Row
	for _, c := range r.Changes {
		var p50, p99 Bound
		if c.System == Strait {
			p50, p99 = Bound{Value: 20, AtMost: true}, Bound{Value: 100, AtMost: true}
		}
		what := fmt.Sprintf("EndpointSlice written until a connect reaches it, %s services", count(c.Services))
		rows = append(rows,
			Row{Row: "7", Metric: what + ": p50", Subject: c.System, Value: stat.MedianInterval(c.Ms), Unit: "ms", Target: p50.String(),
				Verdict: p50.Judge(stat.MedianInterval(c.Ms), stat.Interval{})},
			absolute("7", fmt.Sprintf("%s: p99 of %d", what, len(c.Ms)), c.System, stat.Quantile(c.Ms, 0.99), "ms", p99),
			absolute("7", what+": p50 of the write alone", c.System, stat.Median(c.WriteMs), "ms", Bound{}))
	}
	return rows
}

// judgeStarts makes the rows of row 8; targets are for 10,000 services.
func (r *Run) judgeStarts() []Row {
	var rows []Row
	for _, s := range r.Starts {
		var took, memory Bound
		if s.System == Strait && s.Services >= 10_000 {
			took, memory = Bound{Value: 3, AtMost: true}, Bound{Value: 100, AtMost: true}
		}
		what := fmt.Sprintf("cold start with %s services", count(s.Services))
		rows = append(rows, absolute("8", what+": until all work", s.System, s.Seconds, "s", took),
			absolute("8", what+": CPU time", s.System, s.CPU, "s", Bound{}),
			absolute("8", what+": RSS", s.System, float64(s.RSSKiB)/1024, "MiB", memory),
			absolute("8", what+": peak RSS", s.System, float64(s.PeakKiB)/1024, "MiB", Bound{}))
	}
	return rows
}
