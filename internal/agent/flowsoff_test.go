package agent_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// flows.enabled false: traffic, policy and services are as with it, nobody reads or fills the ring, and who asks for flows is told what to do.
// Switching on and off is a restart, which breaks no connection.
func TestFlowsOff(t *testing.T) {
	off, on := map[string]any{"enabled": false}, map[string]any{"enabled": true}
	d := newDatabase(t, testkit.Options{Config: map[string]any{"flows": off}})
	d.c.ApplyText("policy", onlyApp)
	service := shop(d.c, d.store)
	service.TargetPort = storePort
	d.c.Serve(service)
	d.c.Outside.Echo(storePort)
	works := func(t *testing.T) {
		t.Helper()
		holds(t, "with policy",
			path{d.app.Namespace, d.store, storePort, true}, path{d.near.Namespace, d.store, storePort, true},
			path{d.other.Namespace, d.store, storePort, false}, path{d.app.Namespace, d.store, otherPort, false})
		programmed(t, d.c, testkit.HostPort(clusterIPs[0], servicePort)+"/TCP", 1)
		for i, v6 := range []bool{false, true} {
			visit(t, d.app.Namespace, clusterIPs[i], servicePort, "store", d.app.Address(v6), 1)
			if !passes(d.app.Namespace, "tcp", testkit.OutsideAddr(v6), storePort) {
				t.Errorf("app does not reach the outside, IPv6 %t", v6)
			}
		}
		if out := d.c.Nodes[0].CLI("policy", "show", "default/store"); !strings.Contains(out, "spec.ingress[0]") {
			t.Errorf("the policy's counters:\n%s", out)
		}
	}
	works(t)
	for _, n := range d.c.Nodes {
		isOff(t, n)
	}

	var waits []func() testkit.Answer
	for _, address := range []string{
		testkit.HostPort(d.store.IPv4, storePort), testkit.HostPort(d.store.IPv6, storePort), testkit.HostPort(clusterIPs[0], servicePort),
		testkit.HostPort(testkit.OutsideAddr(false), storePort),
	} {
		for _, keep := range []bool{true, false} {
			waits = append(waits, d.app.StartProbe(testkit.Probe{Network: "tcp", Address: address, Keep: keep, For: 6 * time.Second, Interval: 10 * time.Millisecond, Timeout: 10 * time.Second}))
		}
	}
	set := func(flows map[string]any) {
		for _, n := range d.c.Nodes {
			n.KillAgent() // it cannot take its socket away
			n.SetConfigKey("flows", flows)
			n.StartAgent()
		}
		for _, n := range d.c.Nodes {
			n.WaitReady(30 * time.Second)
		}
	}
	set(on)
	if !passes(d.near.Namespace, "tcp", d.store.IPv4, storePort) {
		t.Error("near does not reach the store")
	}
	awaited(t, d.c.Nodes[0], "a connection after flows were switched on", between(d.near, d.store, "tcp", storePort), event("new"))
	if !readsRing(t, d.c.Nodes[0]) {
		t.Error("switched on: the ring is not in the agent's memory, this test does not know how to see it")
	}
	set(off)
	for _, wait := range waits {
		if got := wait(); got.Failed != 0 || got.OK < 50 {
			t.Errorf("%d exchanges, %d failed, longest %s: %v", got.OK, got.Failed, got.Longest, got.Errors)
		}
	}
	works(t)
	for _, n := range d.c.Nodes {
		isOff(t, n)
	}
}

// isOff wants a node that tells of no flows, and says so.
func isOff(t *testing.T, n *testkit.Node) {
	t.Helper()
	if readsRing(t, n) {
		t.Errorf("%s: the agent reads the ring", n.Name)
	}
	for _, args := range [][]string{{"observe"}, {"observe", "-f"}, {"observe", "-o", "jsonpb", "--verdict", "dropped"}} {
		out, err := n.TryCLI(args...)
		if code := exitCode(err); code != 3 || !strings.Contains(out, "tells of no flows") || !strings.Contains(out, "flows.enabled") {
			t.Errorf("%s: strait %s ends with %d, want 3:\n%s", n.Name, strings.Join(args, " "), code, out)
		}
	}
	// Its exit code is 1 as long as the other node counts as away because of its restart.
	if status, _ := n.TryCLI("status"); !strings.Contains(strings.Join(strings.Fields(status), " "), "Flows off: flows.enabled is false") {
		t.Errorf("%s: strait status:\n%s", n.Name, status)
	}
	for name := range metrics(t, n) {
		if strings.HasPrefix(name, "strait_flow") {
			t.Errorf("%s has the metric %s", n.Name, name)
		}
	}
}

// readsRing reports whether the agent has the memory of a ring of the kernel mapped: of maps, only that of records is read in this way.
func readsRing(t *testing.T, n *testkit.Node) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", n.AgentPID()))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), "bpf-map") || strings.Contains(string(text), "bpf_map")
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
