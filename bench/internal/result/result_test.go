package result

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/stat"
)

func TestBoundJudges(t *testing.T) {
	at := func(lo, hi float64) stat.Interval { return stat.Interval{Mid: (lo + hi) / 2, Lo: lo, Hi: hi, N: 5} }
	for _, c := range []struct {
		b    Bound
		i    stat.Interval
		want Verdict
	}{
		{Bound{Value: 0.9}, at(0.91, 0.95), Met},
		{Bound{Value: 0.9}, at(0.85, 0.89), Missed},
		{Bound{Value: 0.9}, at(0.85, 0.95), Undecided},
		{Bound{Value: 1.2, AtMost: true}, at(0.8, 1.1), Met},
		{Bound{Value: 1.2, AtMost: true}, at(1.3, 1.4), Missed},
		{Bound{Value: 1.2, AtMost: true}, at(1.1, 1.3), Undecided},
		{Bound{}, at(0, 9), NoTarget},
		{Bound{Value: 1}, stat.Interval{}, NoTarget},
	} {
		if got := c.b.Judge(c.i, stat.Interval{}); got != c.want {
			t.Errorf("%s judges %v as %q, want %q", c.b, c.i, got, c.want)
		}
	}
}

// On a noisy machine a narrow interval is luck: the floor itself moved by as much.
func TestNoiseWidensTheInterval(t *testing.T) {
	b, i := Bound{Value: 0.9}, stat.Interval{Mid: 0.94, Lo: 0.93, Hi: 0.95, N: 15}
	for half, want := range map[float64]Verdict{0.01: Met, 0.1: Undecided, 2: Undecided} {
		if got := b.Judge(i, stat.Interval{Mid: 1, Lo: 1 - half, Hi: 1 + half, N: 15}); got != want {
			t.Errorf("noise of %v: %q, want %q", half, got, want)
		}
	}
}

// sample is a run in which Strait reaches rr times and crr times the floor.
func sample(rr, crr float64) *Run {
	constant := func(x float64) []float64 { return []float64{x, x, x} }
	return &Run{Date: time.Unix(1e9, 0), Commit: "abc", Series: []measure.Series{
		{Path: Floor, Test: "rr/4", Rate: []float64{100, 200, 50}, CPU: constant(1)},
		{Path: Strait, Test: "rr/4", Rate: []float64{100 * rr, 200 * rr, 50 * rr}, CPU: constant(2)},
		{Path: measure.Again(Floor), Test: "rr/4", Rate: []float64{101, 199, 50}, CPU: constant(1)},
		{Path: Floor, Test: "crr/4", Rate: constant(10), CPU: constant(1)},
		{Path: Strait, Test: "crr/4", Rate: constant(10 * crr), CPU: constant(1)},
	}, CNI: []CNI{
		{Plugin: PTP, Verb: "ADD", Parallel: 1, Ms: constant(40)},
		{Plugin: Strait, Verb: "ADD", Parallel: 1, Ms: constant(20)},
	}, Agents: []Agent{{Name: "strait-agent", RSSKiB: 61 * 1024}}}
}

func find(t *testing.T, r *Run, metric, subject string) Row {
	t.Helper()
	for _, x := range r.Rows {
		if strings.HasPrefix(x.Metric, metric) && x.Subject == subject {
			return x
		}
	}
	t.Fatalf("no row %q of %s in %v", metric, subject, r.Rows)
	return Row{}
}

// Rates differ fourfold between rounds here, as they do on a loaded machine: only the ratio inside a round may count.
func TestJudgePairsWithinRounds(t *testing.T) {
	r := sample(0.95, 0.5)
	r.Judge()
	if x := find(t, r, "TCP request/response, IPv4", Strait); x.Verdict != Met || x.Value.Hi-x.Value.Lo > 1e-9 || x.CPU.Mid != 2 {
		t.Errorf("request/response: %+v", x)
	}
	if x := find(t, r, "TCP connect", Strait); x.Verdict != Missed || x.Band.N != 0 {
		t.Errorf("connect/request/response: %+v", x)
	}
	if x := find(t, r, "CNI ADD: time", Strait); x.Verdict != Met || x.Value.Mid != 0.5 {
		t.Errorf("ADD: %+v", x)
	}
	if x := find(t, r, "CNI ADD: p50", PTP); x.Verdict != NoTarget {
		t.Errorf("a peer has no target: %+v", x)
	}
	if x := find(t, r, "idle agent", "strait-agent"); x.Verdict != Missed {
		t.Errorf("agent: %+v", x)
	}
	if got := r.Tally(); got[Met] != 3 || got[Missed] != 2 {
		t.Errorf("tally %v", got)
	}
}

func TestSaveLoadAndPage(t *testing.T) {
	dir := t.TempDir()
	r := sample(0.91234567, 0.9)
	r.Judge()
	file, err := r.Save(dir)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(file) != "20010909T0146-abc.json" {
		t.Errorf("file is called %s", file)
	}
	newest, err := Newest(dir)
	if err != nil || newest != file {
		t.Errorf("newest %s, %v", newest, err)
	}
	back, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if x := find(t, back, "TCP request/response", Strait); x.Value.Mid != 0.9123 {
		t.Errorf("value came back as %v", x.Value)
	}
	if len(back.Series) != 5 || len(back.Series[1].Rate) != 3 {
		t.Errorf("series came back as %+v", back.Series)
	}
	page := r.Markdown("x.json")
	for _, want := range []string{"| 1 | TCP request/response, IPv4 | strait | veth |", "| >= 0.9 | met |", "[x.json](x.json)", "| path | rr/4 | crr/4 |", "| strait | 0.1 | 0.0 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %q:\n%s", want, page)
		}
	}
	var table bytes.Buffer
	if err := r.Print(&table); err != nil || !strings.Contains(table.String(), "targets: ") {
		t.Errorf("table %s, %v", table.String(), err)
	}
}

func TestLoadRefusesOtherLayouts(t *testing.T) {
	r := sample(1, 1)
	dir := t.TempDir()
	file, err := r.Save(dir)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Load(file)
	if err != nil || back.Layout != layout {
		t.Fatalf("load: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "README.md")); err == nil {
		t.Error("a page is no results file")
	}
}

func TestCompareMarksWhatMoved(t *testing.T) {
	old, current := sample(0.95, 0.9), sample(0.95, 0.7)
	old.Judge()
	current.Judge()
	moved := map[string]bool{}
	for _, d := range Compare(old, current) {
		moved[d.Metric+" "+d.Subject] = d.Moved
	}
	if moved["TCP request/response, IPv4 strait"] || !moved["TCP connect/request/response, IPv4 strait"] {
		t.Errorf("moved: %v", moved)
	}
}
