package result

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/strait-net/strait/bench/internal/stat"
)

func (row Row) value() string {
	if row.Unit != "" {
		return fmt.Sprintf("%.4g %s", row.Value.Mid, row.Unit)
	}
	return fmt.Sprintf("%.3f", row.Value.Mid)
}

func (row Row) interval() string {
	if row.Value.N < 2 {
		return ""
	}
	return fmt.Sprintf("%.3f-%.3f", row.Value.Lo, row.Value.Hi)
}

// noise prints the band's half width, and says when the value is inside it.
func (row Row) noise() string {
	if row.Band.N == 0 {
		return ""
	}
	text := fmt.Sprintf("±%.3f", row.Band.Hi-1)
	if row.Value.Overlaps(row.Band) {
		text += " (within)"
	}
	return text
}

func (row Row) cpu() string {
	if row.CPU.N == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", row.CPU.Mid)
}

func (row Row) cells() []string {
	return []string{row.Row, row.Metric, row.Subject, row.Against, row.value(), row.interval(), row.noise(), row.cpu(), row.Target, string(row.Verdict)}
}

func header() []string {
	return []string{"row", "metric", "subject", "against", "value", "95 % interval", "noise", "CPU/op", "target", "verdict"}
}

// split separates the rows with a target from those that are there for comparison.
func (r *Run) split() (targets, others []Row) {
	for _, row := range r.Rows {
		if row.Target != "" {
			targets = append(targets, row)
		} else {
			others = append(others, row)
		}
	}
	return targets, others
}

// Print writes the table for people: targets first.
func (r *Run) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(cells []string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) }
	targets, others := r.split()
	line(header())
	for _, row := range append(targets, others...) {
		line(row.cells())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, r.costs()+r.summary())
	return err
}

// costs lists what the programs cost.
func (r *Run) costs() string {
	var b strings.Builder
	for _, p := range r.Programs {
		fmt.Fprintf(&b, "%s %s:", p.Path, p.Test)
		for _, c := range p.Costs {
			fmt.Fprintf(&b, " %s %.0f ns x %.2f;", c.Name, c.NsPerRun, c.RunsPerOp)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Tally counts the verdicts.
func (r *Run) Tally() map[Verdict]int {
	tally := map[Verdict]int{}
	for _, row := range r.Rows {
		tally[row.Verdict]++
	}
	return tally
}

func (r *Run) summary() string {
	t := r.Tally()
	return fmt.Sprintf("targets: %d met, %d missed, %d undecided\n", t[Met], t[Missed], t[Undecided])
}

// Markdown renders the run as the page that lies beside the results files; file is the results file's name.
func (r *Run) Markdown(file string) string {
	var b strings.Builder
	f := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	f("# Benchmark results\n\nGenerated from [%s](%s), the newest run; `bench compare OLD NEW` shows the drift between two files.\n\n", file, file)
	f("Commit %s, %s. Kernel %s, %d x %s, CPU time from %s, peers' rules by %s, load average before the run %s.\n", r.Commit,
		r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Machine.Kernel, r.Machine.CPUs, r.Machine.CPU, r.Machine.Accounts, r.Machine.Iptables, r.Machine.Load)
	f("%d interleaved rounds of %s after %s of warm-up, client on CPU %d, server on CPU %d.\n\n", r.Settings.Rounds, r.Settings.Sample, r.Settings.WarmUp,
		r.Settings.ClientCPU, r.Settings.ServerCPU)
	f("A value without a unit is the median over the rounds of subject / against within a round, with its bootstrap 95 %% interval. *Noise* is the\n")
	f("same for the direct veth measured twice per round: a ratio inside it says nothing. *CPU/op* is the ratio of CPU time of both ends per operation\n")
	f("(below 1: cheaper). A verdict needs the interval, widened by the noise, on one side of the target, else it is *undecided*.\n\n")
	f("%s\n\n", strings.TrimSpace(r.summary()))
	row := func(cells []string) { f("| %s |\n", strings.Join(cells, " | ")) }
	targets, others := r.split()
	for _, part := range []struct {
		title string
		rows  []Row
	}{{"Targets", targets}, {"For comparison", others}} {
		f("## %s\n\n", part.title)
		row(header())
		f("|%s\n", strings.Repeat("---|", len(header())))
		for _, x := range part.rows {
			row(x.cells())
		}
		f("\n")
	}
	f("## Paths\n\n| path | made of | proof that it carried the traffic |\n|---|---|---|\n")
	for _, p := range r.Paths {
		row([]string{p.Name, p.About, p.Proven})
	}
	f("%s", r.absolutes())
	if len(r.Programs) > 0 {
		f("\n## Cost of the programs\n\nNanoseconds per run and runs per operation of both directions, from the kernel's statistics in a pass of its own.\n\n")
		f("| path | test | programs |\n|---|---|---|\n")
		for _, p := range r.Programs {
			var costs []string
			for _, c := range p.Costs {
				costs = append(costs, fmt.Sprintf("`%s` %.0f ns x %.2f", c.Name, c.NsPerRun, c.RunsPerOp))
			}
			row([]string{p.Path, p.Test, strings.Join(costs, ", ")})
		}
	}
	if len(r.Notes) > 0 {
		f("\n## Notes\n\n")
		for _, n := range r.Notes {
			f("- %s\n", n)
		}
	}
	return b.String()
}

// absolutes is a table of median rates: they do not travel between machines, but they show what the ratios are made of.
func (r *Run) absolutes() string {
	if len(r.Series) == 0 {
		return ""
	}
	var tests, paths []string
	rates := map[string]string{}
	for _, s := range r.Series {
		if !slices.Contains(tests, s.Test) {
			tests = append(tests, s.Test)
		}
		if !slices.Contains(paths, s.Path) {
			paths = append(paths, s.Path)
		}
		rates[s.Path+" "+s.Test] = rate(s.Test, stat.Median(s.Rate))
	}
	var b strings.Builder
	b.WriteString("\n## Median rates on this machine\n\nStream in Gbit/s, all others in thousands per second.\n\n")
	fmt.Fprintf(&b, "| path | %s |\n|---|%s\n", strings.Join(tests, " | "), strings.Repeat("---|", len(tests)))
	for _, p := range paths {
		cells := []string{p}
		for _, t := range tests {
			cells = append(cells, rates[p+" "+t])
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	return b.String()
}

func rate(test string, perSecond float64) string {
	if strings.HasPrefix(test, "stream/") {
		return fmt.Sprintf("%.1f", perSecond*8/1e9)
	}
	return fmt.Sprintf("%.1f", perSecond/1e3)
}

// Drift is a row of two runs side by side.
type Drift struct {
	Row
	Old, New Row
	Moved    bool // the intervals do not overlap
}

// Compare pairs the rows of two runs.
func Compare(old, current *Run) []Drift {
	before := map[string]Row{}
	key := func(x Row) string { return strings.Join([]string{x.Row, x.Metric, x.Subject, x.Against}, "\x00") }
	for _, x := range old.Rows {
		before[key(x)] = x
	}
	var out []Drift
	for _, x := range current.Rows {
		if o, ok := before[key(x)]; ok {
			out = append(out, Drift{Row: x, Old: o, New: x, Moved: !o.Value.Overlaps(x.Value)})
		}
	}
	return out
}

// PrintDrift writes the comparison for people; rows that moved are marked.
func PrintDrift(w io.Writer, drifts []Drift) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "row\tmetric\tsubject\tagainst\told\tnew\tchange\t")
	for _, d := range drifts {
		mark := ""
		if d.Moved {
			mark = "moved"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%+.1f %%\t%s\n", d.Row.Row, d.Metric, d.Subject, d.Against, d.Old.value(), d.New.value(),
			100*(d.New.Value.Mid/d.Old.Value.Mid-1), mark)
	}
	return t.Flush()
}
