package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// OPS-3: a configuration that cannot be used is refused whole, by name and value; traffic goes on; status says so while no agent runs.
func TestBadConfigIsRefusedAndShown(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	n := c.Nodes[0]
	a, far := n.AddPod("a"), c.Nodes[1].AddPod("far")
	far.Echo(port)
	n.StopAgent()
	for _, tc := range []struct {
		key   string
		value any
		want  []string
	}{
		{"routingMode", "carrier-pigeon", []string{"routingMode", "carrier-pigeon", "vxlan", "native"}},
		{"masqueradePorts", "40000-41000", []string{"masqueradePorts", "40000-41000", "ip_local_port_range"}},
		{"masqueradePorts", "29000-31000", []string{"29000-31000", "services.nodePorts", "30000-32767"}},
		{"colour", "blue", []string{"colour"}},
		{"maps", map[string]any{"conntrack": 100}, []string{"maps.conntrack", "100", "256"}},
		{"devices", []string{"[eth"}, []string{"devices", "[eth"}},
		{"cgroupRoot", "/nowhere", []string{"/nowhere"}},
	} {
		good := n.Config()
		n.SetConfigKey(tc.key, tc.value)
		out, err := n.RunAgent()
		if err == nil {
			t.Fatalf("%s %v: the agent ends without an error", tc.key, tc.value)
		}
		status, _ := n.TryCLI("status")
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s %v: the agent does not name %q:\n%s", tc.key, tc.value, want, out)
			}
			if !strings.Contains(strings.Join(strings.Fields(status), " "), want) {
				t.Errorf("%s %v: status does not name %q:\n%s", tc.key, tc.value, want, status)
			}
		}
		n.SetConfig(good)
	}
	reach(t, a.Namespace, far.IPv4, a.IPv4)
	n.StartAgent()
	n.WaitReady(20 * time.Second)
	if err := a.Check(); err != nil {
		t.Error(err)
	}
	reach(t, a.Namespace, far.IPv6, a.IPv6)
}

// Objects that contradict each other are reported with both names; what worked before goes on.
func TestContradictingNodesAreReported(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	n := c.Nodes[0]
	a, far := n.AddPod("a"), c.Nodes[1].AddPod("far")
	far.Echo(port)
	c.Apply("node-late", map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": "late", "uid": "late", "creationTimestamp": "2026-01-01T00:00:00Z"},
		"spec":     map[string]any{"podCIDRs": []string{c.Nodes[1].CIDRs[0].String()}},
		"status":   map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": "172.18.0.77"}}},
	})
	c.Apply("node-homeless", map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": "homeless", "uid": "homeless"},
		"spec":     map[string]any{"podCIDRs": []string{"10.244.200.0/24"}},
	})
	for _, want := range []string{"late", c.Nodes[1].CIDRs[0].String(), "homeless"} {
		if !within(5*time.Second, func() bool { out, _ := n.TryCLI("status"); return strings.Contains(out, want) }) {
			out, _ := n.TryCLI("status")
			t.Errorf("status does not name %q:\n%s", want, out)
		}
	}
	reach(t, a.Namespace, far.IPv4, a.IPv4)
}

// A record nobody can read is set aside and told; its address is not given to another pod.
func TestCorruptRecordIsToldAndItsAddressKept(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	a := n.AddPod("a")
	n.KillAgent()
	records, err := filepath.Glob(filepath.Join(n.StateDir(), "endpoints", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("records %v, %v", records, err)
	}
	if err := os.WriteFile(records[0], []byte(`{"addresses": [`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.StartAgent()
	n.WaitReady(20 * time.Second)
	if out, _ := n.TryCLI("status"); !strings.Contains(out, "cannot be read") || !strings.Contains(out, a.IPv4.String()) {
		t.Errorf("status does not tell of the corrupt record:\n%s", out)
	}
	for range 3 {
		if b := n.AddPod("b" + time.Now().Format("150405.000000")); b.IPv4 == a.IPv4 || b.IPv6 == a.IPv6 {
			t.Errorf("%s has the address of a pod that lives", b.Name)
		}
	}
}

// Traces of another network that would disturb are shown.
func TestForeignLeftoversAreShown(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	n.Run("ip", "link", "add", "cni0", "type", "bridge")
	if out, _ := n.TryCLI("status"); !strings.Contains(out, "cni0") {
		t.Errorf("status does not show cni0:\n%s", out)
	}
}
