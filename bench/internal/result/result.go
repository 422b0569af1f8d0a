// Package result judges what a run measured against the project's targets and prints it.
package result

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/progcost"
	"github.com/strait-net/strait/bench/internal/stat"
)

// layout is the version of the file format; a reader refuses others.
const layout = 1

// Run is a results file.
type Run struct {
	Layout    int              `json:"layout"`
	Date      time.Time        `json:"date"`
	Commit    string           `json:"commit"`
	Machine   Machine          `json:"machine"`
	Settings  Settings         `json:"settings"`
	Paths     []PathNote       `json:"paths"`
	Rows      []Row            `json:"rows"` // judged from what follows
	Programs  []ProgramCost    `json:"programs,omitempty"`
	Agents    []Agent          `json:"agents,omitempty"`
	CNI       []CNI            `json:"cni,omitempty"`
	Starts    []Start          `json:"starts,omitempty"`
	Changes   []Change         `json:"changes,omitempty"`
	Rulings   []Ruling         `json:"rulings,omitempty"`
	Crowds    []Crowd          `json:"crowds,omitempty"`
	Turns     []Turn           `json:"turns,omitempty"`
	Floods    []Flood          `json:"floods,omitempty"`
	Explained []Explained      `json:"explained,omitempty"`
	Series    []measure.Series `json:"series,omitempty"`
	Notes     []string         `json:"notes,omitempty"`
}

// Machine is where a run was made.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	Accounts string `json:"cpu_accounting"`
	Iptables string `json:"iptables"`
	Load     string `json:"load_before"` // one-minute load average when the run began: foreign load shows here
}

// Settings are how a run was made.
type Settings struct {
	Rounds    int    `json:"rounds"`
	Sample    string `json:"sample"`
	WarmUp    string `json:"warm_up"`
	ClientCPU int    `json:"client_cpu"`
	ServerCPU int    `json:"server_cpu"`
}

// PathNote says what a path is made of and that it was seen to carry the traffic.
type PathNote struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	Proven string `json:"proven"`
}

// ProgramCost is what BPF programs cost on a path, per operation of a test.
type ProgramCost struct {
	Path  string          `json:"path"`
	Test  string          `json:"test"`
	Costs []progcost.Cost `json:"costs"`
}

// Agent is the memory of an idle agent.
type Agent struct {
	Name     string `json:"name"`
	Services int    `json:"services"`
	RSSKiB   int    `json:"rss_kib"`
	PSSKiB   int    `json:"pss_kib"`
	CPUMilli int    `json:"cpu_milli"` // thousandths of a core while idle
}

// CNI is one kind of call to one plugin.
type CNI struct {
	Plugin    string    `json:"plugin"`
	Verb      string    `json:"verb"` // ADD or DEL
	Parallel  int       `json:"parallel"`
	Pods      int       `json:"pods"` // on the node at once
	Ms        []float64 `json:"ms"`
	ReachedMs []float64 `json:"reached_ms,omitempty"` // until the first answered ping, from the start of the call
	ElapsedMs float64   `json:"elapsed_ms,omitempty"` // of a batch
}

// Start is a cold start of what serves Services on a node.
type Start struct {
	System   string  `json:"system"`
	Services int     `json:"services"`
	Seconds  float64 `json:"s"`     // until connections through services all over the list succeeded
	CPU      float64 `json:"cpu_s"` // of the daemon and what it ran, until then
	RSSKiB   int     `json:"rss_kib"`
	PeakKiB  int     `json:"peak_rss_kib"`
}

// Change is a series of changes of an EndpointSlice at the API server.
type Change struct {
	System   string    `json:"system"`
	Services int       `json:"services"`
	Ms       []float64 `json:"ms"`         // from sending the write until a connection through the service reached the new endpoint
	WriteMs  []float64 `json:"written_ms"` // of that, until the API server answered
}

// Kind names the kind of call.
func (c CNI) Kind() string {
	switch {
	case c.Parallel <= 1:
		return "CNI " + c.Verb
	case c.Pods > c.Parallel:
		return fmt.Sprintf("CNI %s, %d pods, %d at once", c.Verb, c.Pods, c.Parallel)
	}
	return fmt.Sprintf("CNI %s, %d at once", c.Verb, c.Parallel)
}

// Verdict is what a figure says about its target.
type Verdict string

// The verdicts. Undecided: the target is within interval and noise; more or longer rounds or a quieter machine are needed.
const (
	Met       Verdict = "met"
	Missed    Verdict = "missed"
	Undecided Verdict = "undecided"
	NoTarget  Verdict = ""
)

// Row is one judged figure: a ratio of Subject to Against, or, with Against empty, an absolute figure with its Unit.
type Row struct {
	Row     string        `json:"row"` // number in the table of targets
	Metric  string        `json:"metric"`
	Subject string        `json:"subject"`
	Against string        `json:"against,omitempty"`
	Value   stat.Interval `json:"value"`
	Unit    string        `json:"unit,omitempty"`
	Band    stat.Interval `json:"band"`      // noise: the floor against itself in the same rounds
	CPU     stat.Interval `json:"cpu_ratio"` // CPU time per operation, subject to against
	Target  string        `json:"target,omitempty"`
	Verdict Verdict       `json:"verdict,omitempty"`
}

// Bound is a target: at least, at most or exactly a value.
type Bound struct {
	Value   float64
	AtMost  bool
	Exactly bool
}

// String prints the bound as in the table of targets.
func (b Bound) String() string {
	switch {
	case b.Exactly:
		return fmt.Sprintf("= %g", b.Value)
	case b.Value == 0:
		return ""
	case b.AtMost:
		return fmt.Sprintf("<= %g", b.Value)
	}
	return fmt.Sprintf(">= %g", b.Value)
}

// Judge compares an interval with the bound: the whole interval, widened by the noise of the run, has to be on one side for a
// decision. The band is empty for figures that are not ratios of rates.
func (b Bound) Judge(i, band stat.Interval) Verdict {
	lo, hi := i.Lo, i.Hi
	if band.N > 0 {
		lo, hi = lo*max(0, band.Lo), hi*band.Hi
	}
	if b.AtMost {
		lo, hi = -hi, -lo
	}
	bound := b.Value
	if b.AtMost {
		bound = -bound
	}
	switch {
	case b.Exactly && i.Lo == b.Value && i.Hi == b.Value:
		return Met
	case b.Exactly:
		return Missed
	case b.Value == 0 || i.N == 0:
		return NoTarget
	case lo >= bound:
		return Met
	case hi < bound:
		return Missed
	}
	return Undecided
}

// Load reads a results file.
func Load(file string) (*Run, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var r Run
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("parse results %s: %w", file, err)
	}
	if r.Layout != layout {
		return nil, fmt.Errorf("results %s have layout %d, this program reads %d", file, r.Layout, layout)
	}
	return &r, nil
}

// Save judges the run and writes <date>-<commit>.json and README.md into dir. It returns the file's name.
func (r *Run) Save(dir string) (string, error) {
	r.Layout = layout
	r.round()
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return "", fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	file := filepath.Join(dir, fmt.Sprintf("%s-%s.json", r.Date.UTC().Format("20060102T1504"), r.Commit))
	if err := os.WriteFile(file, append(compact(text), '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write results: %w", err)
	}
	return file, r.SavePage(dir, filepath.Base(file))
}

// SavePage writes the page about the results file into dir, with the targets of rows that only earlier files have.
func (r *Run) SavePage(dir, file string) error {
	earlier, err := r.earlier(dir, file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(r.Markdown(file)+earlier), 0o644); err != nil {
		return fmt.Errorf("write results page: %w", err)
	}
	return nil
}

// compact puts every list of numbers on one line.
func compact(text []byte) []byte {
	var out []byte
	depth := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '[' && numeric(text[i+1:]) {
			depth++
		}
		if depth > 0 && (c == '\n' || c == ' ') {
			continue
		}
		if c == ']' && depth > 0 {
			depth--
		}
		out = append(out, c)
	}
	return out
}

// numeric reports whether a JSON list starts with a number.
func numeric(text []byte) bool {
	rest := strings.TrimLeft(string(text[:min(len(text), 64)]), " \n")
	return rest != "" && (rest[0] == '-' || rest[0] >= '0' && rest[0] <= '9')
}

// round keeps four significant digits: more is noise, and files stay reviewable.
func (r *Run) round() {
	for i := range r.Series {
		s := &r.Series[i]
		for _, xs := range [][]float64{s.Rate, s.CPU, s.P50, s.P99} {
			roundAll(xs)
		}
		for _, xs := range s.Beside {
			roundAll(xs)
		}
	}
	for i := range r.CNI {
		roundAll(r.CNI[i].Ms)
		roundAll(r.CNI[i].ReachedMs)
		r.CNI[i].ElapsedMs = significant(r.CNI[i].ElapsedMs)
	}
	for i := range r.Changes {
		roundAll(r.Changes[i].Ms)
		roundAll(r.Changes[i].WriteMs)
	}
	r.roundPolicy()
	r.roundFlow()
	for i := range r.Starts {
		r.Starts[i].Seconds = significant(r.Starts[i].Seconds)
	}
	for _, p := range r.Programs {
		for i := range p.Costs {
			p.Costs[i].NsPerRun, p.Costs[i].RunsPerOp = significant(p.Costs[i].NsPerRun), significant(p.Costs[i].RunsPerOp)
		}
	}
	for i := range r.Rows {
		for _, v := range []*stat.Interval{&r.Rows[i].Value, &r.Rows[i].Band, &r.Rows[i].CPU} {
			v.Mid, v.Lo, v.Hi = significant(v.Mid), significant(v.Lo), significant(v.Hi)
		}
	}
}

func roundAll(xs []float64) {
	for i := range xs {
		xs[i] = significant(xs[i])
	}
}

func significant(x float64) float64 {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}

// Newest returns the last results file of dir by its name.
func Newest(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", fmt.Errorf("no results in %s", dir)
	}
	slices.Sort(files)
	return files[len(files)-1], nil
}
