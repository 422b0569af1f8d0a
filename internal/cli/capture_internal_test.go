package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/strait-net/strait/internal/capture"
)

// TestCaptureAsks: which nodes are asked what they say of packets that are captured elsewhere, and what is said of those that are not.
func TestCaptureAsks(t *testing.T) {
	agents := func(n int, failing ...int) (out []target) {
		for i := range n {
			a := target{node: fmt.Sprint("n", i)}
			if slices.Contains(failing, i) {
				a.err = errors.New("not running")
			}
			out = append(out, a)
		}
		return out
	}
	for _, c := range []struct {
		name   string
		agents []target
		asked  string
		note   string
		err    string
	}{
		{"all", agents(3), "n1 n0 n2", "", ""},
		{"one of them cannot be asked", agents(3, 2), "n1 n0", "they cannot be asked: n2 (not running)", ""},
		{"many cannot", agents(9, 2, 3, 4, 5, 6, 7, 8), "n1 n0", "n6 (not running), and 2 more", ""},
		{"too many", agents(40), "n1", "39 other nodes are too many to ask", ""},
		{"that of the capture", agents(3, 1), "", "", "node n1: not running"},
		{"none there", nil, "", "", "no strait-agent pod on node n1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := plan{nodes: []string{"n1"}, questions: []capture.Question{{}}}
			err := p.others(c.agents)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				return
			}
			if notes := strings.Join(p.notes, "\n"); err != nil || strings.Join(p.nodes, " ") != c.asked || !strings.Contains(notes, c.note) || (c.note == "") != (notes == "") {
				t.Errorf("asks %v with notes %q, %v; want %s with %q", p.nodes, notes, err, c.asked, c.note)
			}
			if len(p.questions) != len(p.nodes) || len(p.agents) != len(p.nodes) {
				t.Errorf("%d questions and %d agents for %d nodes", len(p.questions), len(p.agents), len(p.nodes))
			}
		})
	}
}
