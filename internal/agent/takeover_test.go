package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

// likeKubeProxy are rules of the shape that kube-proxy's nftables mode gives them: each service leads to its one backend, node ports
// are masqueraded, cluster addresses for clients that are no pods and for the backend itself.
func likeKubeProxy(services []testkit.Service) string {
	var out strings.Builder
	for _, v6 := range []bool{false, true} {
		family, pods := "ip", "10.244.0.0/16"
		if v6 {
			family, pods = "ip6", "fd44::/48"
		}
		fmt.Fprintf(&out, "table %s kube-proxy {\n", family)
		out.WriteString("  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }\n  chain services {\n")
		for _, s := range services {
			backend := ""
			for _, e := range s.Endpoints {
				if e.Address.Is6() == v6 {
					backend = e.Address.String()
				}
			}
			to := fmt.Sprintf("dnat %s to %s", family, testkit.HostPort(netip.MustParseAddr(backend), s.TargetPort))
			for _, l4 := range []string{"tcp", "udp"} {
				front := fmt.Sprintf("%s daddr %s %s dport %d", family, pick(s.ClusterIPs, v6), l4, s.Port)
				fmt.Fprintf(&out, "    %s %s saddr != %s jump mark-for-masquerade\n", front, family, pods)
				fmt.Fprintf(&out, "    %s %s saddr %s jump mark-for-masquerade\n", front, family, backend)
				fmt.Fprintf(&out, "    %s %s\n", front, to)
				fmt.Fprintf(&out, "    fib daddr type local %s dport %d jump mark-for-masquerade\n    fib daddr type local %s dport %d %s\n", l4, s.NodePort, l4, s.NodePort, to)
			}
		}
		out.WriteString("  }\n")
		out.WriteString("  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }\n")
		out.WriteString("  chain nat-output { type nat hook output priority -100; jump services; }\n")
		out.WriteString("  chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade; }\n}\n")
	}
	return out.String()
}

// long is a connection that lasts over what the test does.
type long struct {
	name string
	wait func() testkit.Answer
}

// takeoverRig is a cluster whose services are served by rules like kube-proxy's.
type takeoverRig struct {
	t         *testing.T
	cluster   *testkit.Cluster
	near, far *testkit.Pod
	client    *testkit.Pod
	services  []testkit.Service
	rules     string // file
}

func newTakeoverRig(t *testing.T, mode string) *takeoverRig {
	c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{
		"routingMode": mode, "services": map[string]any{"mode": "off"}, "socketLB": map[string]any{"enabled": false},
	}})
	r := &takeoverRig{t: t, cluster: c, client: c.Nodes[0].AddPod("client"), near: c.Nodes[0].AddPod("near"), far: c.Nodes[1].AddPod("far")}
	for i, p := range []*testkit.Pod{r.near, r.far} {
		p.Echo(port)
		r.services = append(r.services, testkit.Service{
			Name: p.Name, Type: "NodePort", Port: servicePort, TargetPort: port, NodePort: nodePort + i, Endpoints: p.Endpoints(),
			ClusterIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", 80+i)), netip.MustParseAddr(fmt.Sprintf("fd96::%d", 80+i))},
		})
		c.Serve(r.services[i])
		waitBackend(t, c, p)
	}
	// What the API server is to its service: no part of the cluster.
	world := testkit.Service{
		Name: "world", Type: "NodePort", Port: servicePort, TargetPort: port, NodePort: nodePort + 2,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.82"), netip.MustParseAddr("fd96::82")},
	}
	for _, v6 := range families {
		world.Endpoints = append(world.Endpoints, testkit.ServiceEndpoint{Address: testkit.OutsideAddr(v6)})
	}
	c.Outside.Echo(port)
	c.Serve(world)
	r.services = append(r.services, world)
	for _, n := range c.Nodes {
		for _, e := range world.Endpoints {
			for deadline := time.Now().Add(10 * time.Second); !strings.Contains(n.CLI("service", "list"), testkit.HostPort(e.Address, port)); {
				if time.Now().After(deadline) {
					t.Fatal(n.CLI("service", "list"))
				}
			}
		}
	}
	r.rules = filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(r.rules, []byte(likeKubeProxy(r.services)), 0o644); err != nil {
		t.Fatal(err)
	}
	r.proxy()
	return r
}

// proxy gives every node the rules. The stack forgets connections of UDP soon, that nobody waits for them.
func (r *takeoverRig) proxy() {
	for _, n := range r.cluster.Nodes {
		n.Run("nft", "-f", r.rules)
		for _, name := range []string{"udp_timeout", "udp_timeout_stream"} {
			n.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_"+name+"=5")
		}
	}
}

// begin starts every kind of connection.
func (r *takeoverRig) begin(lasting time.Duration, networks ...string) (all []long) {
	node := r.cluster.Nodes[0]
	start := func(from *testkit.Namespace, network, what string, to netip.Addr, port int) {
		all = append(all, long{
			fmt.Sprintf("%s by %s to %s %s", from.Name, network, what, testkit.HostPort(to, port)),
			from.StartProbe(testkit.Probe{
				Network: network, Address: testkit.HostPort(to, port), Timeout: 5 * time.Second, For: lasting, Interval: 20 * time.Millisecond, Keep: true,
			}),
		})
	}
	for _, v6 := range families {
		for _, network := range networks {
			for _, s := range r.services {
				for _, from := range []*testkit.Namespace{r.client.Namespace, r.near.Namespace, node.Namespace} {
					start(from, network, s.Name, pick(s.ClusterIPs, v6), servicePort)
				}
				for _, from := range []*testkit.Namespace{r.client.Namespace, r.cluster.Outside} {
					if s.Name == "world" && from == r.cluster.Outside {
						continue // to itself
					}
					start(from, network, s.Name, nodeAddr(node, v6), s.NodePort)
				}
			}
		}
	}
	return all
}

// end waits for the connections and tells which have lost anything.
func (r *takeoverRig) end(all []long) {
	r.t.Helper()
	for _, l := range all {
		a := l.wait()
		if a.Failed != 0 || a.OK == 0 || len(a.Servers) != 1 {
			r.t.Errorf("%s: %d exchanges, %d failed, servers %v, longest %s: %v", l.name, a.OK, a.Failed, a.Servers, a.Longest, a.Errors)
		}
	}
}

func (r *takeoverRig) state(n *testkit.Node) (t localapi.Takeover) {
	r.t.Helper()
	out, err := n.TryCLI("takeover", "status", "-o", "json")
	if json.Unmarshal([]byte(out), &t) != nil {
		r.t.Fatalf("takeover status: %v: %s", err, out)
	}
	return t
}

// Services off: every kind of client reaches services by rules of the stack.
func TestServicesOff(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			r := newTakeoverRig(t, mode)
			r.end(r.begin(300*time.Millisecond, "tcp", "udp"))
		})
	}
}

// SVC-7: no connection breaks when Strait takes over, and none when services are left to kube-proxy again.
func TestTakeover(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			r := newTakeoverRig(t, mode)
			all := r.begin(15*time.Second, "tcp", "udp")
			time.Sleep(time.Second)
			for _, n := range r.cluster.Nodes {
				if out, err := n.TryCLI("takeover", "kube-proxy", "--dry-run"); err != nil || !strings.Contains(out, "ip kube-proxy") {
					t.Errorf("dry run: %v\n%s", err, out)
				}
				out, err := n.TryCLI("takeover", "kube-proxy", "--yes")
				t.Log("\n" + out)
				if err != nil {
					t.Errorf("%s: %v", n.Name, err)
				}
				if out := n.Run("nft", "list", "tables"); strings.Contains(out, "kube-proxy") {
					t.Errorf("%s has %s", n.Name, out)
				}
			}
			first := r.cluster.Nodes[0]
			s := r.state(first)
			if s.Mode != "on" || s.Config != "off" || !s.SocketLB || s.Decided == nil || len(s.Left) != 0 || !s.Holding || s.Held == 0 {
				t.Errorf("after takeover: %+v", s)
			}
			// The decision holds over a restart; the kernel serves meanwhile.
			first.KillAgent()
			first.StartAgent()
			first.WaitReady(20 * time.Second)
			if s := r.state(first); s.Mode != "on" || !s.SocketLB {
				t.Errorf("after restart: %+v", s)
			}
			visit(t, r.client.Namespace, pick(r.services[1].ClusterIPs, false), servicePort, "far", netip.Addr{}, 1)
			visit(t, r.cluster.Outside, first.IPv4, nodePort+1, "far", netip.Addr{}, 1)
			r.end(all)
			// Nobody is left for whom the stack would have to translate.
			for deadline := time.Now().Add(30 * time.Second); r.state(first).Holding; time.Sleep(200 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the stack is still held: %+v", r.state(first))
				}
			}
		})
	}
}

// The way back: what is Strait's goes on, what is new is kube-proxy's; when nothing is left, services are off.
func TestUndoTakeover(t *testing.T) {
	testkit.RequireRoot(t)
	r := newTakeoverRig(t, "vxlan")
	node := r.cluster.Nodes[0]
	for _, n := range r.cluster.Nodes {
		n.CLI("takeover", "kube-proxy", "--yes")
	}
	all := r.begin(15*time.Second, "tcp") // datagrams are waited for some minutes
	time.Sleep(500 * time.Millisecond)
	if out, err := node.TryCLI("takeover", "undo"); err == nil {
		t.Errorf("undone without kube-proxy:\n%s", out)
	}
	r.proxy()
	for _, n := range r.cluster.Nodes {
		t.Log("\n" + n.CLI("takeover", "undo"))
	}
	if s := r.state(node); s.Mode != "drain" || s.Served == 0 {
		t.Errorf("while it drains: %+v", s)
	}
	after := r.begin(2*time.Second, "tcp", "udp")
	r.end(after)
	r.end(all)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		s := r.state(node)
		if s.Mode == "off" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not off: %+v", s)
		}
	}
}
