package result

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/stat"
)

// The names of the paths, as results and targets use them.
const (
	Floor         = "veth"
	Hosts         = "nodes"
	Bridge        = "bridge"
	PTP           = "ptp"
	FlannelVXLAN  = "flannel-vxlan"
	FlannelHostGW = "flannel-host-gw"
	Strait        = "strait"
	StraitVXLAN   = "strait-vxlan"
	StraitNative  = "strait-native"
)

// comparison is a pair of paths that a row of the table compares, with the bound per mode. Modes without a bound are reported.
type comparison struct {
	row, subject, against string
	bounds                map[string]float64
	floor                 string // path whose two samples per round are the noise band; empty: Floor
}

func comparisons() []comparison {
	list := []comparison{
		{row: "1", subject: Strait, against: Floor, bounds: map[string]float64{"rr": 0.90, "crr": 0.90, "stream": 0.95}},
		{row: "1", subject: Strait, against: Bridge},
		{row: "1", subject: Strait, against: PTP},
		{row: "1", subject: Bridge, against: Floor},
		{row: "1", subject: PTP, against: Floor},
		{row: "2", subject: StraitVXLAN, against: FlannelVXLAN, bounds: map[string]float64{"rr": 1.4, "crr": 1.4, "stream": 1.3}},
		{row: "2", subject: StraitNative, against: FlannelHostGW, bounds: map[string]float64{"rr": 1.2, "crr": 1.3, "stream": 1.2}},
		{row: "2", subject: StraitVXLAN, against: Hosts},
		{row: "2", subject: StraitNative, against: Hosts},
		{row: "2", subject: StraitVXLAN, against: Floor},
		{row: "2", subject: StraitNative, against: Floor},
		{row: "2", subject: FlannelVXLAN, against: Floor},
		{row: "2", subject: FlannelHostGW, against: Floor},
		{row: "2", subject: Hosts, against: Floor},
	}
	return slices.Concat(list, serviceComparisons(), ruleComparisons(), flowComparisons())
}

// Judge computes the rows of a run from its samples.
func (r *Run) Judge() {
	r.Rows = nil
	for _, c := range comparisons() {
		r.Rows = append(r.Rows, r.compare(c)...)
	}
	r.Rows = append(r.Rows, r.judgeCNI()...)
	r.Rows = append(r.Rows, r.judgeChanges()...)
	r.Rows = append(r.Rows, r.judgeStarts()...)
	r.Rows = append(r.Rows, r.judgeRulings()...)
	r.Rows = append(r.Rows, r.judgeCrowds()...)
	r.Rows = append(r.Rows, r.judgeTurns()...)
	r.Rows = append(r.Rows, r.judgeFlowCosts()...)
	r.Rows = append(r.Rows, r.judgeFloods()...)
	r.Rows = append(r.Rows, r.judgeExplained()...)
	for _, a := range r.Agents {
		bound := Bound{Value: 60, AtMost: true}
		value := exact(float64(a.RSSKiB) / 1024)
		r.Rows = append(r.Rows, Row{Row: "9", Metric: fmt.Sprintf("idle agent RSS, %d services", a.Services), Subject: a.Name, Value: value, Unit: "MiB",
			Target: bound.String(), Verdict: bound.Judge(value, stat.Interval{})})
	}
}

func exact(x float64) stat.Interval { return stat.Interval{Mid: x, Lo: x, Hi: x, N: 1} }

func (r *Run) series(path, test string) (measure.Series, bool) {
	i := slices.IndexFunc(r.Series, func(s measure.Series) bool { return s.Path == path && s.Test == test })
	if i < 0 {
		return measure.Series{}, false
	}
	return r.Series[i], true
}

// compare makes one row per test that both paths of a comparison have.
func (r *Run) compare(c comparison) []Row {
	var rows []Row
	for _, s := range r.Series {
		if s.Path != c.subject {
			continue
		}
		against, ok := r.series(c.against, s.Test)
		value := stat.MedianInterval(stat.Ratios(s.Rate, against.Rate))
		if !ok || value.N == 0 {
			continue
		}
		floor := cmp.Or(c.floor, Floor)
		first, _ := r.series(floor, s.Test)
		second, _ := r.series(measure.Again(floor), s.Test)
		mode, family, _ := strings.Cut(s.Test, "/")
		bound, band := Bound{Value: c.bounds[mode]}, stat.Band(first.Rate, second.Rate)
		rows = append(rows, Row{Row: c.row, Metric: metric(mode, family), Subject: c.subject, Against: c.against, Value: value, Band: band,
			CPU: stat.MedianInterval(stat.Ratios(s.CPU, against.CPU)), Target: bound.String(), Verdict: bound.Judge(value, band)})
	}
	return rows
}

func metric(mode, family string) string {
	name := map[string]string{"stream": "TCP stream", "rr": "TCP request/response", "crr": "TCP connect/request/response", "udprr": "UDP request/response",
		"udppps": "UDP packets/s"}[mode]
	return name + ", IPv" + family
}

// judgeCNI makes the rows of CNI calls: each plugin against ptp call by call, its own quantiles, and the time of whole nodes.
func (r *Run) judgeCNI() []Row {
	var rows []Row
	for _, c := range r.CNI {
		var ratio, p99, whole Bound // only Strait's ADD has targets
		if c.Plugin == Strait && c.Verb == "ADD" {
			ratio, whole = Bound{Value: 1.2, AtMost: true}, Bound{Value: 15, AtMost: true}
			if c.ElapsedMs == 0 {
				p99 = Bound{Value: 50, AtMost: true}
			}
		}
		i := slices.IndexFunc(r.CNI, func(o CNI) bool { return o.Plugin == PTP && o.Kind() == c.Kind() })
		if i >= 0 && c.Plugin != PTP {
			value := stat.MedianInterval(stat.Ratios(c.Ms, r.CNI[i].Ms))
			rows = append(rows, Row{Row: "6", Metric: c.Kind() + ": time", Subject: c.Plugin, Against: PTP, Value: value, Target: ratio.String(),
				Verdict: ratio.Judge(value, stat.Interval{})})
		}
		rows = append(rows, absolute("6", c.Kind()+": p50", c.Plugin, stat.Median(c.Ms), "ms", Bound{}),
			absolute("6", c.Kind()+": p99", c.Plugin, stat.Quantile(c.Ms, 0.99), "ms", p99))
		if len(c.ReachedMs) > 0 {
			rows = append(rows, absolute("6", c.Kind()+": p50 until the first ping", c.Plugin, stat.Median(c.ReachedMs), "ms", Bound{}))
		}
		if c.ElapsedMs > 0 {
			rows = append(rows, absolute("6", c.Kind()+": all", c.Plugin, c.ElapsedMs/1000, "s", whole))
		}
	}
	return rows
}

func absolute(row, metric, subject string, x float64, unit string, b Bound) Row {
	return Row{Row: row, Metric: metric, Subject: subject, Value: exact(x), Unit: unit, Target: b.String(), Verdict: b.Judge(exact(x), stat.Interval{})}
}
