package agent_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// balanced is a service with addresses on the nodes' own network.
func balanced(i int, pods ...*testkit.Pod) testkit.Service {
	s := testkit.Service{
		Name: fmt.Sprintf("balanced-%d", i), Type: "LoadBalancer", Port: servicePort, TargetPort: port,
		ClusterIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.96.1.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd96::1:%x", i))},
		Ingress:    []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.18.0.%d", 200+i)), netip.MustParseAddr(fmt.Sprintf("fd18::2:%x", i))},
		Spec:       map[string]any{"loadBalancerClass": "strait.dev/lb"},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, p.Endpoints()...)
	}
	return s
}

// neighbours reads and forgets: each question is asked anew.
type neighbours struct {
	t     *testing.T
	c     *testkit.Cluster
	nodes map[string]*testkit.Node // by MAC of eth0
}

func newNeighbours(t *testing.T, c *testkit.Cluster) neighbours {
	n := neighbours{t, c, map[string]*testkit.Node{}}
	for _, node := range c.Nodes {
		node.Do(func() {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			n.nodes[eth0.HardwareAddr.String()] = node
		})
	}
	return n
}

// ask forgets what outside knows of an address, asks, and returns who answered first; nil: nobody did.
func (n neighbours) ask(a netip.Addr) *testkit.Node {
	n.t.Helper()
	_, _ = n.c.Outside.TryRun("ip", "neigh", "del", a.String(), "dev", "eth0")
	return n.look(a)
}

// look returns who outside thinks has an address, and asks if it does not know.
func (n neighbours) look(a netip.Addr) *testkit.Node {
	n.t.Helper()
	for end := time.Now().Add(900 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		out := n.c.Outside.Run("ip", "neigh", "show", a.String(), "dev", "eth0")
		if words := strings.Fields(out); len(words) > 2 && words[1] == "lladdr" {
			return n.nodes[words[2]]
		}
		if !strings.Contains(out, a.String()) {
			n.c.Outside.Probe(testkit.Probe{Network: "udp", Address: testkit.HostPort(a, 9), Timeout: time.Millisecond})
		}
	}
	return nil
}

// settled waits until a node, other than not, answers for the address, and returns it.
func (n neighbours) settled(a netip.Addr, not *testkit.Node, limit time.Duration) *testkit.Node {
	n.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if node := n.ask(a); node != nil && node != not {
			return node
		}
	}
	n.t.Fatalf("nobody (other than %v) answers for %s within %s", not, a, limit)
	return nil
}

// SVC-8: outside finds each address at exactly one node, and the service at the address.
func TestAddressesAreAnnounced(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 3})
	var pods []*testkit.Pod
	for i, n := range c.Nodes {
		p := n.AddPod(fmt.Sprintf("pod-%d", i))
		p.Echo(port)
		pods = append(pods, p)
	}
	n := newNeighbours(t, c)
	const services = 6
	shares := map[string]int{}
	for i := range services {
		c.Serve(balanced(i, pods...))
	}
	for i := range services {
		for _, a := range balanced(i).Ingress {
			holder := n.settled(a, nil, 10*time.Second)
			shares[holder.Name]++
			for range 3 {
				if again := n.ask(a); again != holder {
					t.Errorf("%s is at %v, then at %v", a, holder.Name, again)
				}
			}
			got := c.Outside.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(a, servicePort), Timeout: 2 * time.Second})
			if got.OK != 1 {
				t.Errorf("%s at %s: %v", a, holder.Name, got.Errors)
			}
		}
	}
	if len(shares) < 2 {
		t.Errorf("%d addresses are all at %v", 2*services, shares)
	}
	t.Logf("shares: %v", shares)

	// With externalTrafficPolicy Local the node with the endpoint answers; when the endpoint moves, so does the address.
	for _, p := range []int{0, 1, 2, 0} {
		s := balanced(9, pods[p])
		s.Spec["externalTrafficPolicy"] = "Local"
		c.Serve(s)
		for _, a := range s.Ingress {
			for end := time.Now().Add(5 * time.Second); ; {
				if at := n.ask(a); at == c.Nodes[p] {
					break
				} else if time.Now().After(end) {
					t.Fatalf("%s is at %v, its endpoint on %s", a, at, c.Nodes[p].Name)
				}
			}
			visit(t, c.Outside, a, servicePort, "", testkit.OutsideAddr(a.Is6()), 1)
		}
	}
	// No address of a service that is gone is answered for.
	c.Remove("service-balanced-9")
	for _, a := range balanced(9).Ingress {
		for end := time.Now().Add(5 * time.Second); ; {
			if at := n.ask(a); at == nil {
				break
			} else if time.Now().After(end) {
				t.Fatalf("%s is still at %s", a, at.Name)
			}
		}
	}
}

// When the node dies, another has the address within seconds, and outside is told; when it returns, it has it again. While its agent
// restarts, the address stays and is answered for all the time.
func TestAddressesFailOver(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 3})
	pods := map[string]*testkit.Pod{}
	for _, n := range c.Nodes {
		pods[n.Name] = n.AddPod("pod-" + n.Name)
		pods[n.Name].Echo(port)
	}
	n := newNeighbours(t, c)
	s := balanced(1)
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, p.Endpoints()...)
	}
	c.Serve(s)
	for _, a := range s.Ingress {
		t.Run(a.String(), func(t *testing.T) {
			n := n
			n.t = t
			holder := n.settled(a, nil, 10*time.Second)

			holder.KillAgent()
			asked := 0
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); asked++ {
				if at := n.ask(a); at != holder {
					t.Fatalf("while the agent of %s restarts, %s is at %v", holder.Name, a, at)
				}
				if asked == 20 {
					holder.StartAgent()
				}
			}
			holder.WaitReady(30 * time.Second)
			if at := n.ask(a); at != holder {
				t.Fatalf("after the restart, %s is at %v", a, at)
			}

			// Only backends that survive. Outside is not made to ask again: it has to be told.
			alive := balanced(1)
			for name, p := range pods {
				if name != holder.Name {
					alive.Endpoints = append(alive.Endpoints, p.Endpoints()...)
				}
			}
			c.Serve(alive)
			programmed(t, c, testkit.HostPort(a, servicePort)+"/TCP", 2)
			wait := c.Outside.StartProbe(testkit.Probe{
				Network: "tcp", Address: testkit.HostPort(a, servicePort), Timeout: 200 * time.Millisecond, For: 8 * time.Second, Interval: 20 * time.Millisecond,
			})
			time.Sleep(time.Second)
			holder.Run("ip", "link", "set", "eth0", "down")
			died := time.Now()
			heir := n.look(a)
			for ; heir == holder || heir == nil; heir = n.look(a) {
				if time.Since(died) > 8*time.Second {
					t.Fatalf("%s is still at the dead %s", a, holder.Name)
				}
			}
			t.Logf("%s moved from %s to %s after %s", a, holder.Name, heir.Name, time.Since(died).Round(10*time.Millisecond))
			if took := time.Since(died); took > 5*time.Second {
				t.Errorf("outside learnt of the new place after %s", took)
			}
			if got := wait(); got.OK < 20 {
				t.Errorf("exchanges: %d, %d failed: %v", got.OK, got.Failed, got.Errors)
			}
			if got := c.Outside.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(a, servicePort), Timeout: time.Second}); got.OK != 1 {
				t.Errorf("at %s: %v", heir.Name, got.Errors)
			}

			revive(holder)
			for end := time.Now().Add(20 * time.Second); n.look(a) != holder; time.Sleep(100 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s did not return to %s", a, holder.Name)
				}
			}
			// The others have withdrawn.
			for end := time.Now().Add(5 * time.Second); ; {
				alone := true
				for range 3 {
					alone = n.ask(a) == holder && alone
				}
				if alone {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("two nodes answer for %s", a)
				}
			}
		})
	}
}

// revive gives a node its link back, and what the kernel took away with it.
func revive(n *testkit.Node) {
	n.Run("ip", "link", "set", "eth0", "up")
	n.Run("ip", "-6", "addr", "replace", n.IPv6.String()+"/64", "dev", "eth0", "nodad")
	n.Run("ip", "route", "replace", "default", "via", testkit.OutsideAddr(false).String())
	n.Run("ip", "-6", "route", "replace", "default", "via", testkit.OutsideAddr(true).String())
}
