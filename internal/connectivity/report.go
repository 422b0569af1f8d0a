package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Outcome is what became of a scenario.
type Outcome string

// The outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Report is what a test has found.
type Report struct {
	Namespace string        `json:"namespace"`
	Image     string        `json:"image"`
	Nodes     []string      `json:"nodes"` // that took part
	Began     time.Time     `json:"began"`
	Took      time.Duration `json:"tookNanoseconds"`
	Results   []Result      `json:"scenarios"`
}

// Result is what became of one scenario.
type Result struct {
	Scenario string  `json:"scenario"`
	Outcome  Outcome `json:"outcome"`
	// Why it failed or was skipped; of one that passed what is worth knowing.
	Why string `json:"why,omitempty"`
	// Took is from the first question to the outcome.
	Took time.Duration `json:"tookNanoseconds,omitempty"`
	// Attempts until the answers were as they have to be: more than one while names and services spread in the cluster.
	Attempts int      `json:"attempts,omitempty"`
	Client   string   `json:"client,omitempty"` // namespace/name of the pod that asked
	Node     string   `json:"node,omitempty"`   // that it is on
	Targets  []string `json:"targets,omitempty"`
	// Findings are what the parts of the system say of a path that failed.
	Findings []string `json:"findings,omitempty"`
}

// Count returns how many scenarios have an outcome.
func (r Report) Count(o Outcome) int {
	n := 0
	for _, s := range r.Results {
		if s.Outcome == o {
			n++
		}
	}
	return n
}

type junitSuites struct {
	XMLName xml.Name   `xml:"testsuites"`
	Suite   junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	At       string      `xml:"timestamp,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string      `xml:"name,attr"`
	Class   string      `xml:"classname,attr"`
	Time    string      `xml:"time,attr"`
	Failure *junitWords `xml:"failure"`
	Skipped *junitWords `xml:"skipped"`
}

type junitWords struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes the report as programs of continuous integration read it.
func (r Report) WriteJUnit(w io.Writer) error {
	suite := junitSuite{
		Name: "strait connectivity test", Tests: len(r.Results), Failures: r.Count(Failed), Skipped: r.Count(Skipped),
		Time: seconds(r.Took), At: r.Began.UTC().Format("2006-01-02T15:04:05"),
	}
	for _, s := range r.Results {
		c := junitCase{Name: s.Scenario, Class: "connectivity", Time: seconds(s.Took)}
		switch s.Outcome {
		case Failed:
			c.Failure = &junitWords{s.Why, strings.Join(s.Findings, "\n")}
		case Skipped:
			c.Skipped = &junitWords{Message: s.Why}
		}
		suite.Cases = append(suite.Cases, c)
	}
	text, err := xml.MarshalIndent(junitSuites{Suite: suite}, "", "  ")
	if err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	if _, err := fmt.Fprintf(w, "%s%s\n", xml.Header, text); err != nil {
		return fmt.Errorf("write JUnit report: %w", err)
	}
	return nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
