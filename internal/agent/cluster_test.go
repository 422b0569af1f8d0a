package agent_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const port = 8080

var families = map[string]bool{"IPv4": false, "IPv6": true}

func host(addrPort string) string {
	a, err := netip.ParseAddrPort(addrPort)
	if err != nil {
		return addrPort
	}
	return a.Addr().Unmap().String()
}

// reach asserts one exchange each over TCP and UDP, and that the server sees the client as seen.
func reach(t *testing.T, from *testkit.Namespace, to, seen netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := from.Probe(testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: 2 * time.Second, Size: 1})
		if got.OK != 1 {
			t.Errorf("%s to %s %s: %v", from.Name, network, to, got.Errors)
		} else if host(got.Seen) != seen.String() {
			t.Errorf("%s to %s %s: server sees %s, want %s", from.Name, network, to, got.Seen, seen)
		}
	}
}

func mustNotReach(t *testing.T, from *testkit.Namespace, to netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := from.Probe(testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: 300 * time.Millisecond})
		if got.OK != 0 {
			t.Errorf("%s reaches %s %s as %s, which nobody should", from.Name, network, to, got.Seen)
		}
	}
}

// NET-1, NET-2, NET-5: everybody reaches everybody without address translation, in both modes and families.
func TestEverybodyReachesEverybody(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{"routingMode": mode}})
			a, b := c.Nodes[0].AddPod("a"), c.Nodes[0].AddPod("b")
			far := c.Nodes[1].AddPod("far")
			for _, n := range []*testkit.Namespace{a.Namespace, b.Namespace, far.Namespace, c.Nodes[0].Namespace, c.Nodes[1].Namespace} {
				n.Echo(port)
			}
			for family, v6 := range families {
				t.Run(family, func(t *testing.T) {
					node := func(i int) netip.Addr {
						if v6 {
							return c.Nodes[i].IPv6
						}
						return c.Nodes[i].IPv4
					}
					reach(t, a.Namespace, a.Address(v6), a.Address(v6))
					reach(t, a.Namespace, b.Address(v6), a.Address(v6))
					reach(t, a.Namespace, far.Address(v6), a.Address(v6))
					reach(t, far.Namespace, a.Address(v6), far.Address(v6))
					reach(t, a.Namespace, node(0), a.Address(v6))
					reach(t, a.Namespace, node(1), a.Address(v6))
					reach(t, c.Nodes[0].Namespace, a.Address(v6), node(0))
					reach(t, c.Nodes[0].Namespace, far.Address(v6), node(0))
				})
			}
			for _, p := range []*testkit.Pod{a, b, far} {
				if err := p.Check(); err != nil {
					t.Errorf("CHECK of %s: %v", p.Name, err)
				}
			}
		})
	}
}

// NET-4: while a cluster moves from one mode to the other, nodes of both reach each other.
func TestModesMix(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{NoAgents: true})
	for i, mode := range []string{"vxlan", "native"} {
		c.Nodes[i].SetConfigKey("routingMode", mode)
		c.Nodes[i].StartAgent()
	}
	for _, n := range c.Nodes {
		n.WaitReady(30 * time.Second)
	}
	a, b := c.Nodes[0].AddPod("a"), c.Nodes[1].AddPod("b")
	a.Echo(port)
	b.Echo(port)
	for _, v6 := range families {
		reach(t, a.Namespace, b.Address(v6), a.Address(v6))
		reach(t, b.Namespace, a.Address(v6), b.Address(v6))
	}
}

// NET-3: what the outside sees of a pod, by design of the cluster.
func TestOutside(t *testing.T) {
	testkit.RequireRoot(t)
	for _, design := range []string{"island", "flat", "isolated"} {
		t.Run(design, func(t *testing.T) {
			c := testkit.NewCluster(t, testkit.Options{Nodes: 1, Config: map[string]any{"network": design, "routingMode": "native"}})
			n := c.Nodes[0]
			pod := n.AddPod("pod")
			pod.Echo(port)
			c.Outside.Echo(port)
			// Outside knows the way to the pods in every design; in isolated it may not be used.
			c.Outside.Run("ip", "route", "add", n.CIDRs[0].String(), "via", n.IPv4.String())
			c.Outside.Run("ip", "-6", "route", "add", n.CIDRs[1].String(), "via", n.IPv6.String())
			for family, v6 := range families {
				t.Run(family, func(t *testing.T) {
					outside := testkit.OutsideAddr(v6)
					node := n.IPv4
					if v6 {
						node = n.IPv6
					}
					switch design {
					case "island":
						reach(t, pod.Namespace, outside, node)
						reach(t, c.Outside, pod.Address(v6), outside) // such as an API server that is no node, for webhooks
					case "flat":
						reach(t, pod.Namespace, outside, pod.Address(v6))
						reach(t, c.Outside, pod.Address(v6), outside)
					case "isolated":
						mustNotReach(t, pod.Namespace, outside)
						mustNotReach(t, c.Outside, pod.Address(v6))
					}
				})
			}
		})
	}
}

// NET-7: ping crosses nodes and the masquerade, and a closed port or unknown pod is refused at once.
func TestErrorsArriveAtOnce(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	a, far := c.Nodes[0].AddPod("a"), c.Nodes[1].AddPod("far")
	for _, v6 := range families {
		for _, to := range []netip.Addr{far.Address(v6), testkit.OutsideAddr(v6)} {
			a.Run("ping", "-n", "-c", "1", "-W", "2", to.String())
			// Larger than the tunnel: fragments.
			a.Run("ping", "-n", "-c", "1", "-W", "2", "-M", "dont", "-s", "4000", to.String())
		}
		got := a.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(far.Address(v6), 9), Timeout: 2 * time.Second})
		if got.Longest > time.Second || got.OK != 0 {
			t.Errorf("closed port: %+v", got)
		}
		// UDP to a closed port of the outside: the ICMP error has to find its way back through the masquerade.
		got = a.Probe(testkit.Probe{Network: "udp", Address: testkit.HostPort(testkit.OutsideAddr(v6), 9), Timeout: 2 * time.Second})
		if got.Longest > time.Second || got.OK != 0 {
			t.Errorf("closed port outside: %+v", got)
		}
		nobody := a.Address(v6)
		for range 20 {
			nobody = nobody.Next()
		}
		got = a.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(nobody, port), Timeout: 2 * time.Second})
		// The first error may come while connect() still holds the socket; the kernel then reports the one of its retry, after a second.
		if got.OK != 0 || len(got.Errors) != 1 || !strings.Contains(got.Errors[0], "unreachable") && !strings.Contains(got.Errors[0], "no route") {
			t.Errorf("unknown pod: %+v", got)
		}
	}
}

// A pod cannot send from an address that is not its own.
func TestPodCannotSpoof(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	good, bad, server := n.AddPod("good"), n.AddPod("bad"), n.AddPod("server")
	server.Echo(port)
	bad.Run("ip", "addr", "replace", good.IPv4.String()+"/32", "dev", "eth0")
	bad.Run("ip", "-6", "addr", "replace", good.IPv6.String()+"/128", "dev", "eth0", "nodad")
	bad.Run("ip", "addr", "del", bad.IPv4.String()+"/32", "dev", "eth0")
	bad.Run("ip", "-6", "addr", "del", bad.IPv6.String()+"/128", "dev", "eth0")
	for _, v6 := range families {
		mustNotReach(t, bad.Namespace, server.Address(v6))
		reach(t, good.Namespace, server.Address(v6), good.Address(v6))
	}
	if dump := n.CLI("status", "--verbose"); !strings.Contains(dump, "source address is not the pod's own") {
		t.Errorf("status does not tell of the spoofed packets:\n%s", dump)
	}
}

// NET-6: the pods' MTU leaves room for the tunnel and follows the device.
func TestMTUFollows(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	a, b := c.Nodes[0].AddPod("a"), c.Nodes[1].AddPod("b")
	b.Echo(port)
	mtu := func(want string) bool {
		return strings.Contains(a.Run("ip", "link", "show", "eth0"), "mtu "+want+" ")
	}
	if !mtu("1450") {
		t.Errorf("pod MTU is not 1450: %s", a.Run("ip", "link", "show", "eth0"))
	}
	for _, n := range c.Nodes {
		n.Run("ip", "link", "set", "eth0", "mtu", "1400")
	}
	if !within(5*time.Second, func() bool { return mtu("1350") }) {
		t.Errorf("pod MTU does not follow: %s", a.Run("ip", "link", "show", "eth0"))
	}
	got := a.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(b.IPv4, port), Size: 60000, For: 300 * time.Millisecond, Keep: true})
	if got.Failed != 0 || got.OK == 0 {
		t.Errorf("bulk after MTU change: %+v", got)
	}
}

// SVC-1, SVC-2: a ClusterIP is translated in connect() and sendmsg(); the client still sees the service's address.
func TestClusterIP(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client := c.Nodes[0].AddPod("client")
	near, far := c.Nodes[0].AddPod("near"), c.Nodes[1].AddPod("far")
	near.Echo(port)
	far.Echo(port)
	ips := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::10")}
	c.ApplyService("web", 80, ips, port, near.IPv4, near.IPv6, far.IPv4, far.IPv6)
	c.ApplyService("empty", 81, ips, port)
	for _, from := range []*testkit.Namespace{client.Namespace, c.Nodes[0].Namespace} {
		for _, ip := range ips {
			for _, p := range []testkit.Probe{{Network: "tcp"}, {Network: "udp"}, {Network: "udp", Unconnected: true}} {
				p.Address = testkit.HostPort(ip, 80)
				ok := within(5*time.Second, func() bool { return from.Probe(p).OK == 1 })
				got := from.Probe(p)
				if !ok || got.OK != 1 || got.Peer != p.Address {
					t.Errorf("%s to service %+v: %+v", from.Name, p, got)
				}
			}
			refused := from.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(ip, 81)})
			if refused.OK != 0 || len(refused.Errors) == 0 || !strings.Contains(refused.Errors[0], "refused") || refused.Longest > 100*time.Millisecond {
				t.Errorf("service without endpoints: %+v", refused)
			}
		}
	}
	c.ApplyService("web", 80, ips, port, far.IPv4, far.IPv6)
	if !within(3*time.Second, func() bool {
		got := client.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(ips[0], 80), For: 100 * time.Millisecond, Interval: time.Millisecond})
		return got.Failed == 0 && strings.Contains(c.Nodes[0].CLI("service", "list"), far.IPv4.String()) &&
			!strings.Contains(c.Nodes[0].CLI("service", "list"), near.IPv4.String())
	}) {
		t.Errorf("the removed backend is still there:\n%s", c.Nodes[0].CLI("service", "list"))
	}
}

func within(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func sprintEach[T any](items []T) string {
	var b strings.Builder
	for _, i := range items {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}
