package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/localapi"
)

// takeoverNode is an agent whose node kube-proxy has served; what is done to it is noted.
type takeoverNode struct {
	state localapi.Takeover
	done  []string
}

func (n *takeoverNode) provider() localapi.Provider {
	return localapi.Provider{
		Takeover: func(context.Context) (localapi.Takeover, error) { return n.state, nil },
		TakeOver: func(context.Context) (localapi.Takeover, error) {
			n.done = append(n.done, "take over")
			decided := time.Now()
			n.state.Mode, n.state.Decided, n.state.Holding = "on", &decided, true
			n.state.Removed, n.state.Left = n.state.Left, []localapi.ProxyTrace{}
			return n.state, nil
		},
		UndoTakeover: func(_ context.Context, force bool) (localapi.Takeover, error) {
			if !force {
				return localapi.Takeover{}, errors.New("kube-proxy has no rules on this node")
			}
			n.done = append(n.done, "undo")
			n.state.Mode, n.state.Served = "drain", 2
			return n.state, nil
		},
	}
}

func newTakeoverNode() *takeoverNode {
	return &takeoverNode{state: localapi.Takeover{
		Mode: "off", Config: "off", Import: 12, Held: 3, Running: []localapi.ProxyTrace{}, Checked: []string{"nftables table", "device"},
		Left: []localapi.ProxyTrace{{Kind: "nftables table", Name: "ip kube-proxy", Detail: "24 chains, 14 sets and maps"}},
	}}
}

func TestTakeover(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   string
		change func(*localapi.Takeover)
		code   int
		want   []string
		done   string
	}{
		{name: "neither looks nor does", args: "kube-proxy", code: cli.ExitUsage, want: []string{"--yes", "--dry-run"}},
		{name: "looks", args: "kube-proxy --dry-run", want: []string{"served by kube-proxy", "12 can be taken over", "there", "ip kube-proxy", "24 chains"}},
		{name: "does", args: "kube-proxy --yes", done: "take over", want: []string{
			"served by Strait, decided", "the configuration says off", "12 taken over, 3 of the node's own", "inet strait_takeover", "removed", "clean: looked for",
		}},
		{
			name: "kube-proxy runs", args: "kube-proxy --yes", code: cli.ExitProblems, want: []string{"runs", "pid 7", "nothing has been changed", "delete daemonset kube-proxy"},
			change: func(t *localapi.Takeover) { t.Running = []localapi.ProxyTrace{{Kind: "process", Name: "pid 7"}} },
		},
		{name: "status before", args: "status", want: []string{"served by kube-proxy"}},
		{
			name: "status after, with something left", args: "status", code: cli.ExitProblems, want: []string{"served by Strait", "there"},
			change: func(t *localapi.Takeover) { t.Mode = "on" },
		},
		{name: "undo without kube-proxy", args: "undo", code: cli.ExitProblems, want: []string{"no rules on this node"}},
		{name: "undo", args: "undo --force", done: "undo", want: []string{"kube-proxy for new connections; Strait goes on with 2 connections"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTakeoverNode()
			if c.change != nil {
				c.change(&n.state)
			}
			args := append(append([]string{"takeover"}, strings.Fields(c.args)...), "--socket", agent(t, n.provider()))
			stdout, stderr, code := terminal{width: 120}.run(args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stdout+stderr, want) {
					t.Errorf("lacks %q:\n%s%s", want, stdout, stderr)
				}
			}
			if done := strings.Join(n.done, ", "); done != c.done {
				t.Errorf("did %q, want %q", done, c.done)
			}
		})
	}
}

func TestTakeoverForPrograms(t *testing.T) {
	n := newTakeoverNode()
	stdout, stderr, code := terminal{}.run("takeover", "kube-proxy", "--yes", "-o", "json", "--socket", agent(t, n.provider()))
	var got localapi.Takeover
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || got.Mode != "on" || len(got.Removed) != 1 {
		t.Errorf("code %d, %v: %s%s", code, err, stdout, stderr)
	}
}

// Nobody moves a whole cluster with one word.
func TestTakeoverWantsOneNode(t *testing.T) {
	_, stderr, code := terminal{}.run("takeover", "status", "--kubeconfig", threeNodes(t).kubeconfig(t))
	if code != cli.ExitUsage || !strings.Contains(stderr, "--node") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
