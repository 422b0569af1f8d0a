// Package live holds the strait command against real agents on nodes made of namespaces.
package live

import (
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// strait runs the built command on a node, as a person there would.
func strait(t *testing.T, n *testkit.Node, args ...string) (out string, code int) {
	t.Helper()
	out, err := n.TryCLI(args...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		t.Fatalf("strait %v: %v\n%s", args, err, out)
	}
	return out, code
}

func TestLifeOfANode(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	n := c.Nodes[0]
	for _, node := range c.Nodes {
		node.WaitReady(time.Minute)
	}
	pod := n.AddPod("web")

	if out, code := strait(t, n, "status", "--wait", "--wait-timeout", "60s"); code != 0 {
		t.Fatalf("status --wait = %d\n%s\nagent's log:\n%s", code, out, n.AgentLog())
	}
	out, code := strait(t, n, "status", "-o", "json")
	var s localapi.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 {
		t.Fatalf("status = %d, %v\n%s", code, err, out)
	}
	if s.State != localapi.OK || s.Endpoints.Ready != 1 || s.Health.Reachable != 2 || len(s.Programs) == 0 || len(s.Maps) == 0 || len(s.Counters) == 0 || !s.CNI.Ready {
		t.Errorf("status of a node that is well:\n%s", out)
	}
	for _, want := range []struct {
		args []string
		text string
	}{
		{[]string{"get", "endpoints"}, pod.IPv4.String()},
		{[]string{"get", "nodes"}, c.Nodes[1].IPv4.String()},
		{[]string{"get", "remotes"}, c.Nodes[1].CIDRs[0].String()},
		{[]string{"get", "devices"}, "strait_vxlan"},
		{[]string{"bpf", "list"}, "strait_from_pod"},
		{[]string{"ipam", "check"}, "ok: 2 address records"},
		{[]string{"bpf", "dump", "strait_endpoint"}, pod.IPv6.String()},
	} {
		if out, code := strait(t, n, want.args...); code != 0 || !strings.Contains(out, want.text) {
			t.Errorf("strait %v = %d, want %s in\n%s", want.args, code, want.text, out)
		}
	}

	if out, code := strait(t, n, "enter", "web", "--", "cat", "/proc/net/fib_trie"); code != 0 || !strings.Contains(out, pod.IPv4.String()) {
		t.Errorf("the pod's addresses seen by entering it = %d\n%s", code, out)
	}
	if out, code := strait(t, n, "enter", "web", "--", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("code of a program that ends with 7 = %d\n%s", code, out)
	}
	if out, code := strait(t, n, "enter", "wep", "--", "true"); code != 2 || !strings.Contains(out, `did you mean "default/web"`) {
		t.Errorf("entering a pod there is not = %d\n%s", code, out)
	}

	metrics := n.Get("/metrics")
	for _, want := range []string{"strait_agent_status_up 1\n", `strait_endpoint_pods{phase="ready"} 1`, `strait_cni_request_duration_seconds_count{code="0",verb="ADD"}`,
		`strait_reconcile_duration_seconds_count{operation="update",table="remotes"}`, `strait_cluster_nodes{state="reachable"} 2`, `strait_map_entries{map="strait_endpoint"} 2`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("%s is not in the metrics:\n%s", want, metrics)
		}
	}

	n.KillAgent()
	if out, code := strait(t, n, "status"); code != 3 || !strings.Contains(out, "no agent runs on this node") {
		t.Errorf("status without an agent = %d\n%s", code, out)
	}
	if out, code := strait(t, n, "bpf", "dump", "strait_endpoint"); code != 0 || !strings.Contains(out, pod.IPv4.String()) || !strings.Contains(out, "read from the kernel") {
		t.Errorf("dump without an agent = %d\n%s", code, out)
	}
	if out, code := strait(t, n, "bpf", "list"); code != 0 || !strings.Contains(out, "strait_from_pod") {
		t.Errorf("bpf list without an agent = %d\n%s", code, out)
	}
}

func TestUninstallLeavesACleanNode(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	n.WaitReady(time.Minute)
	before := devices(n)
	n.AddPod("web")
	if out, code := strait(t, n, "uninstall"); code != 1 || !strings.Contains(out, "an agent runs on this node") {
		t.Errorf("uninstall under a running agent = %d\n%s", code, out)
	}
	n.StopAgent()
	if out, code := strait(t, n, "uninstall", "--verify"); code != 0 || !strings.Contains(out, "clean: looked for") {
		t.Errorf("uninstall = %d\n%s", code, out)
	}
	for _, d := range devices(n) {
		if strings.HasPrefix(d, "st") {
			t.Errorf("device %s is left; before the pod there were %v", d, before)
		}
	}
	// The node can be used again.
	n.StartAgent()
	n.WaitReady(time.Minute)
	if pod := n.AddPod("again"); pod.Check() != nil {
		t.Error("a pod after reinstalling is not right")
	}
}

func devices(n *testkit.Node) (names []string) {
	n.Do(func() {
		all, _ := net.Interfaces()
		for _, i := range all {
			names = append(names, i.Name)
		}
	})
	return names
}
