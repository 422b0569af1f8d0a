package suite

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Conformance is a run of the conformance tests of ClusterNetworkPolicy.
type Conformance struct {
	Tests      string // program
	Kubeconfig string
	Focus      string // of tests and, after a slash, of their parts; as go test -run takes it
	Features   string // beyond the standard ones, separated by commas
	Report     string // file
	Version    string // of Strait
	Timeout    time.Duration
}

// Command returns the run; its exit status is not zero if a test failed.
func (c Conformance) Command() *exec.Cmd {
	run := "^TestConformanceProfiles$"
	if c.Focus != "" {
		run += "/" + c.Focus
	}
	cmd := exec.Command(c.Tests, "-test.v", "-test.run="+run, "-test.timeout="+c.Timeout.String(), "-conformance-profiles=ClusterNetworkPolicy",
		"-supported-features="+c.Features, "-report-output="+c.Report, "-organization=strait-net", "-project=strait",
		"-url=https://github.com/strait-net/strait", "-contact=https://github.com/strait-net/strait/issues", "-version="+c.Version,
		"-additional-info=docs/upstream-tests.md")
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return cmd
}

// ReadGo reads what Go's tests print with -test.v. Of a test that has parts only the parts are in the result.
func ReadGo(r io.Reader) ([]Spec, error) {
	verdict := regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)`)
	begin := regexp.MustCompile(`^=== (?:RUN|NAME|CONT)\s+(\S+)`)
	remark := regexp.MustCompile(`^\s+\S+\.go:\d+: (.*(?:Expected|Error|error).*)`)
	outcomes := map[string]Outcome{"PASS": Passed, "FAIL": Failed, "SKIP": Skipped}
	var out []Spec
	current, remarks := "", map[string]string{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := begin.FindStringSubmatch(line); m != nil {
			current = m[1]
		}
		if m := remark.FindStringSubmatch(line); m != nil {
			remarks[current] = m[1] // the last one: earlier ones may have been tries
		}
		m := verdict.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		seconds, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", line, err)
		}
		out = append(out, Spec{Name: m[2], Outcome: outcomes[m[1]], Took: time.Duration(seconds * float64(time.Second))})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read tests' output: %w", err)
	}
	return leaves(out, remarks), nil
}

func leaves(all []Spec, remarks map[string]string) []Spec {
	out := slices.DeleteFunc(slices.Clone(all), func(s Spec) bool {
		return slices.ContainsFunc(all, func(other Spec) bool { return strings.HasPrefix(other.Name, s.Name+"/") })
	})
	for i := range out {
		if out[i].Outcome == Failed {
			out[i].Reason = line(remarks[out[i].Name])
		}
		_, name, _ := strings.Cut(out[i].Name, "/")
		out[i].Name = strings.ReplaceAll(name, "_", " ")
	}
	slices.SortFunc(out, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Cyclonus is a run of cyclonus' generated cases of NetworkPolicy.
type Cyclonus struct {
	Program    string
	Kubeconfig string
	Focus      string // of descriptions, a regular expression
	Mode       string // service-name, service-ip, pod-ip; empty: as the case says
	All        bool   // also cases that cyclonus leaves out by default
	Every      int    // each n-th case
	Wait       int    // s, after a change
	Retries    int
	Report     string // file
}

// Command returns the run; its exit status is not zero if a case failed.
func (c Cyclonus) Command() *exec.Cmd {
	return exec.Command(c.Program, "-kubeconfig="+c.Kubeconfig, "-focus="+c.Focus, "-mode="+c.Mode, "-all="+strconv.FormatBool(c.All),
		"-every="+strconv.Itoa(c.Every), "-wait="+strconv.Itoa(c.Wait), "-retries="+strconv.Itoa(c.Retries), "-report="+c.Report)
}

// ReadCyclonus reads the report of a run.
func ReadCyclonus(r io.Reader) ([]Spec, error) {
	var cases []struct {
		Name         string
		Passed       bool
		Wrong, Asked int
		First        string
		Took         time.Duration
	}
	if err := json.NewDecoder(r).Decode(&cases); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var out []Spec
	for _, c := range cases {
		s := Spec{Name: c.Name, Outcome: Passed, Took: c.Took, Reason: fmt.Sprintf("%d answers", c.Asked)}
		if !c.Passed {
			s.Outcome, s.Reason = Failed, line(fmt.Sprintf("%d of %d answers wrong: %s", c.Wrong, c.Asked, c.First))
		}
		out = append(out, s)
	}
	return out, nil
}
