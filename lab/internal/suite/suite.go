// Package suite runs Kubernetes' own end-to-end tests against a lab and sums up what they said.
package suite

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is one run.
type Config struct {
	Ginkgo, Tests, Kubectl string // programs
	Kubeconfig             string
	Focus, Skip            string // regular expressions over the names of specs
	Procs                  int    // specs at the same time
	Nodes                  int    // of the lab; only the first of the processes would count them itself
	Timeout                time.Duration
	Dir                    string // for the report and the logs of what failed
}

// ReportFile is the report's name in Config.Dir.
const ReportFile = "junit.xml"

// Command returns the run; its exit status is not zero if a spec failed.
func Command(c Config) *exec.Cmd {
	args := []string{
		"--procs=" + strconv.Itoa(c.Procs), "--no-color", "--timeout=" + c.Timeout.String(), "--focus=" + c.Focus, "--junit-report=" + ReportFile,
		"--output-dir=" + c.Dir,
	}
	if c.Skip != "" {
		args = append(args, "--skip="+c.Skip)
	}
	// The lab has no cloud; and its nodes are one machine, slower than a cluster's.
	args = append(args, c.Tests, "--", "--provider=skeleton", "--kubeconfig="+c.Kubeconfig, "--kubectl-path="+c.Kubectl,
		"--report-dir="+c.Dir, "--disable-log-dump", "--allowed-not-ready-nodes=0", "--num-nodes="+strconv.Itoa(c.Nodes))
	cmd := exec.Command(c.Ginkgo, args...)
	cmd.Env = append(os.Environ(), "KUBE_TEST_REPO_LIST="+filepath.Join(c.Dir, registriesFile))
	return cmd
}

const registriesFile = "registries.yaml"

// Prepare writes into Config.Dir where the tests are to look for their images: all that nodes have are the lab's own.
func Prepare(c Config) error {
	return os.WriteFile(filepath.Join(c.Dir, registriesFile), []byte("promoterE2eRegistry: localhost\ngcRegistry: localhost\n"), 0o644)
}

// Outcome is what became of a spec.
type Outcome string

// The outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Spec is one spec that ran, or began to run and found that it cannot here.
type Spec struct {
	Name    string // without the report's decoration and labels
	Outcome Outcome
	Reason  string // why it was skipped or failed, one line
	Took    time.Duration
}

type junit struct {
	Cases []struct {
		Name    string  `xml:"name,attr"`
		Status  string  `xml:"status,attr"`
		Time    float64 `xml:"time,attr"`
		Skipped *struct {
			Message string `xml:"message,attr"`
		} `xml:"skipped"`
		Failure *failure `xml:"failure"`
		Error   *failure `xml:"error"`
	} `xml:"testsuite>testcase"`
}

type failure struct {
	Message string `xml:"message,attr"`
}

// Read reads a JUnit report. What the focus left out is not in the result.
func Read(r io.Reader) ([]Spec, error) {
	var report junit
	if err := xml.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var out []Spec
	for _, c := range report.Cases {
		s := Spec{Name: clean(c.Name), Outcome: Passed, Took: time.Duration(c.Time * float64(time.Second))}
		if !strings.HasPrefix(c.Name, "[It]") {
			continue // set-up of the suite
		}
		switch {
		case c.Skipped != nil:
			reason, said := strings.CutPrefix(c.Skipped.Message, "skipped - ")
			if !said {
				continue
			}
			s.Outcome, s.Reason = Skipped, line(reason)
		case c.Failure != nil:
			s.Outcome, s.Reason = Failed, line(c.Failure.Message)
		case c.Error != nil:
			s.Outcome, s.Reason = Failed, line(c.Error.Message)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// clean takes off the report's "[It] " and the machine-readable labels behind the name.
func clean(name string) string {
	name = strings.TrimPrefix(name, "[It] ")
	return strings.TrimSpace(regexp.MustCompile(` \[[a-z0-9-]+(, [A-Za-z0-9:/.-]+)+\]$`).ReplaceAllString(name, ""))
}

func line(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 160 {
		text = text[:160] + "..."
	}
	return text
}

// Summary writes a Markdown table of the specs, failures first, and a line that counts them.
func Summary(w io.Writer, specs []Spec) error {
	count := map[Outcome]int{}
	for _, s := range specs {
		count[s.Outcome]++
	}
	_, err := fmt.Fprintf(w, "%d passed, %d failed, %d skipped.\n\n| | spec | took | remark |\n|---|---|---|---|\n",
		count[Passed], count[Failed], count[Skipped])
	for _, outcome := range []Outcome{Failed, Passed, Skipped} {
		for _, s := range specs {
			if s.Outcome == outcome && err == nil {
				_, err = fmt.Fprintf(w, "| %s | %s | %s | %s |\n", s.Outcome, s.Name, s.Took.Round(time.Second), strings.ReplaceAll(s.Reason, "|", `\|`))
			}
		}
	}
	return err
}
