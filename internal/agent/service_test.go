package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

const (
	servicePort = 80
	nodePort    = 30080
)

var (
	clusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd96::80")}
	vips       = []netip.Addr{netip.MustParseAddr("192.0.2.80"), netip.MustParseAddr("2001:db8::80")}
)

func pick(list []netip.Addr, v6 bool) netip.Addr {
	for _, a := range list {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func nodeAddr(n *testkit.Node, v6 bool) netip.Addr { return pick([]netip.Addr{n.IPv4, n.IPv6}, v6) }

// shop is a service with a node port and an address of a load balancer, which outside routes to the first node.
func shop(c *testkit.Cluster, pods ...*testkit.Pod) testkit.Service {
	s := testkit.Service{
		Name: "shop", Type: "LoadBalancer", Port: servicePort, TargetPort: port, NodePort: nodePort, ClusterIPs: clusterIPs, Ingress: vips,
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, p.Endpoints()...)
	}
	c.Outside.Run("ip", "route", "replace", vips[0].String(), "via", c.Nodes[0].IPv4.String())
	c.Outside.Run("ip", "-6", "route", "replace", vips[1].String(), "via", c.Nodes[0].IPv6.String())
	return s
}

// programmed waits until each agent's kernel holds the service with so many backends on a frontend.
func programmed(t *testing.T, c *testkit.Cluster, frontend string, backends int) {
	t.Helper()
	for _, n := range c.Nodes {
		deadline := time.Now().Add(10 * time.Second)
		for {
			if out, err := n.TryCLI("service", "list", "-o", "json"); err == nil && backendsOf(t, out, frontend) == backends {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s does not get %d backends:\n%s", n.Name, frontend, backends, n.CLI("service", "list"))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// visit makes one exchange over TCP and UDP and checks who answered whom. An empty server means anybody; seen not valid: any.
func visit(t *testing.T, from *testkit.Namespace, to netip.Addr, port int, server string, seen netip.Addr, size int) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		probe := testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: time.Second, Size: size}
		got := from.Probe(probe)
		if got.OK == 0 && network == "udp" && size > 1400 {
			got = from.Probe(probe) // the first datagram was for learning the path's MTU
		}
		what := fmt.Sprintf("%s to %s %s", from.Name, network, testkit.HostPort(to, port))
		switch {
		case got.OK != 1:
			t.Errorf("%s: %v", what, got.Errors)
		case server != "" && got.Server != server:
			t.Errorf("%s: %s answered, want %s", what, got.Server, server)
		case seen.IsValid() && host(got.Seen) != seen.String():
			t.Errorf("%s: server sees %s, want %s", what, got.Seen, seen)
		}
	}
}

// refused wants a refusal at once, not a timeout.
func refused(t *testing.T, from *testkit.Namespace, to netip.Addr, port int) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := from.Probe(testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: 2 * time.Second, Size: 1})
		if got.OK != 0 || len(got.Errors) != 1 || !strings.Contains(got.Errors[0], "connection refused") {
			t.Errorf("%s to %s %s: %+v, want a refusal", from.Name, network, testkit.HostPort(to, port), got)
		}
	}
}

func silent(t *testing.T, from *testkit.Namespace, to netip.Addr, port int) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := from.Probe(testkit.Probe{Network: network, Address: testkit.HostPort(to, port), Timeout: 400 * time.Millisecond, Size: 1})
		if got.OK != 0 || len(got.Errors) != 1 || !strings.Contains(got.Errors[0], "timeout") {
			t.Errorf("%s to %s %s: %+v, want silence", from.Name, network, testkit.HostPort(to, port), got)
		}
	}
}

// SVC-1, SVC-3: a client outside, by node port and load balancer address, to a backend on the node it asks and on the other.
func TestServiceFromOutside(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		for _, forwarding := range []string{"snat", "dsr"} {
			t.Run(mode+"/"+forwarding, func(t *testing.T) {
				c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{
					"routingMode": mode, "services": map[string]any{"forwarding": forwarding},
				}})
				near, far := c.Nodes[0].AddPod("near"), c.Nodes[1].AddPod("far")
				near.Echo(port)
				far.Echo(port)
				for _, at := range []*testkit.Pod{near, far} {
					c.Serve(shop(c, at))
					programmed(t, c, "192.0.2.80:80/TCP", 1)
					waitBackend(t, c, at)
					for family, v6 := range families {
						t.Run(at.Name+"/"+family, func(t *testing.T) {
							seen := testkit.OutsideAddr(v6)
							if at == far && forwarding == "snat" {
								seen = nodeAddr(c.Nodes[0], v6)
							}
							for _, size := range []int{1, 1000, 4000} {
								visit(t, c.Outside, nodeAddr(c.Nodes[0], v6), nodePort, at.Name, seen, size)
								visit(t, c.Outside, pick(vips, v6), servicePort, at.Name, seen, size)
							}
						})
					}
				}
			})
		}
	}
}

// waitBackend waits until the node port of both families leads to the pod on every node.
func waitBackend(t *testing.T, c *testkit.Cluster, p *testkit.Pod) {
	t.Helper()
	for _, n := range c.Nodes {
		for _, v6 := range families {
			want := testkit.HostPort(p.Address(v6), port)
			for deadline := time.Now().Add(10 * time.Second); !strings.Contains(n.CLI("service", "list"), want); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s never gets %s:\n%s", n.Name, want, n.CLI("service", "list"))
				}
			}
		}
	}
}

// SVC-2: pods and nodes reach every kind of frontend, at any node's address.
func TestServiceFromInside(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client, server := c.Nodes[0].AddPod("client"), c.Nodes[1].AddPod("server")
	server.Echo(port)
	c.Serve(shop(c, server))
	waitBackend(t, c, server)
	for family, v6 := range families {
		t.Run(family, func(t *testing.T) {
			for _, from := range []struct {
				*testkit.Namespace
				seen netip.Addr
			}{{client.Namespace, client.Address(v6)}, {c.Nodes[0].Namespace, nodeAddr(c.Nodes[0], v6)}} {
				visit(t, from.Namespace, pick(clusterIPs, v6), servicePort, "server", from.seen, 1)
				visit(t, from.Namespace, pick(vips, v6), servicePort, "server", from.seen, 1)
				for _, n := range c.Nodes {
					visit(t, from.Namespace, nodeAddr(n, v6), nodePort, "server", from.seen, 1)
				}
			}
			loopback := pick([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, v6)
			visit(t, c.Nodes[0].Namespace, loopback, nodePort, "server", netip.Addr{}, 1)
			refused(t, client.Namespace, loopback, nodePort) // a pod's loopback is its own
		})
	}
}

// SVC-3: the same without the socket programs, packet by packet: pods on both nodes, the service's own pod, and the node as backend.
func TestServiceByPackets(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{"routingMode": mode, "socketLB": map[string]any{"enabled": false}}})
			client, near, far := c.Nodes[0].AddPod("client"), c.Nodes[0].AddPod("near"), c.Nodes[1].AddPod("far")
			near.Echo(port)
			far.Echo(port)
			for _, at := range []*testkit.Pod{near, far} {
				c.Serve(shop(c, at))
				waitBackend(t, c, at)
				for family, v6 := range families {
					t.Run(at.Name+"/"+family, func(t *testing.T) {
						for _, size := range []int{1, 4000} {
							visit(t, client.Namespace, pick(clusterIPs, v6), servicePort, at.Name, client.Address(v6), size)
							visit(t, client.Namespace, pick(vips, v6), servicePort, at.Name, client.Address(v6), size)
							visit(t, client.Namespace, nodeAddr(c.Nodes[0], v6), nodePort, at.Name, client.Address(v6), size)
							visit(t, client.Namespace, nodeAddr(c.Nodes[1], v6), nodePort, at.Name, client.Address(v6), size)
						}
						gateway := pick([]netip.Addr{netip.MustParseAddr("169.254.1.1")}, v6)
						visit(t, at.Namespace, pick(clusterIPs, v6), servicePort, at.Name, gateway, 1) // hairpin
					})
				}
			}
			t.Run("node", func(t *testing.T) {
				n := c.Nodes[0]
				n.Echo(port)
				s := shop(c)
				s.Endpoints = []testkit.ServiceEndpoint{{Address: n.IPv4, Node: n.Name}, {Address: n.IPv6, Node: n.Name}}
				c.Serve(s)
				programmed(t, c, "192.0.2.80:80/TCP", 1)
				time.Sleep(300 * time.Millisecond)
				for _, v6 := range families {
					visit(t, client.Namespace, pick(clusterIPs, v6), servicePort, n.Name, client.Address(v6), 1)
					visit(t, c.Outside, nodeAddr(n, v6), nodePort, n.Name, testkit.OutsideAddr(v6), 1)
					visit(t, c.Outside, pick(vips, v6), servicePort, n.Name, testkit.OutsideAddr(v6), 4000)
				}
			})
			c.Serve(shop(c))
			programmed(t, c, "192.0.2.80:80/TCP", 0)
			time.Sleep(300 * time.Millisecond)
			for _, v6 := range families {
				refused(t, client.Namespace, pick(clusterIPs, v6), servicePort)
				refused(t, client.Namespace, pick(vips, v6), servicePort)
			}
		})
	}
}

// A service without endpoints refuses at once, wherever the client is.
func TestServiceWithoutEndpoints(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	client := c.Nodes[0].AddPod("client")
	c.Serve(shop(c))
	programmed(t, c, "192.0.2.80:80/TCP", 0)
	time.Sleep(300 * time.Millisecond)
	c.Outside.Run("ip", "route", "add", clusterIPs[0].String(), "via", c.Nodes[0].IPv4.String())
	c.Outside.Run("ip", "-6", "route", "add", clusterIPs[1].String(), "via", c.Nodes[0].IPv6.String())
	for family, v6 := range families {
		t.Run(family, func(t *testing.T) {
			refused(t, client.Namespace, pick(clusterIPs, v6), servicePort)
			refused(t, c.Outside, nodeAddr(c.Nodes[0], v6), nodePort)
			refused(t, c.Outside, pick(vips, v6), servicePort)
			silent(t, c.Outside, pick(clusterIPs, v6), servicePort) // a cluster address is none of outside's business
		})
	}
}

// externalTrafficPolicy Local: outside gets backends of the node it asks, or silence; inside gets all.
func TestServiceLocalPolicy(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client, far := c.Nodes[0].AddPod("client"), c.Nodes[1].AddPod("far")
	far.Echo(port)
	s := shop(c, far)
	s.Spec = map[string]any{"externalTrafficPolicy": "Local", "healthCheckNodePort": 30099}
	c.Serve(s)
	waitBackend(t, c, far)
	for family, v6 := range families {
		t.Run(family, func(t *testing.T) {
			silent(t, c.Outside, nodeAddr(c.Nodes[0], v6), nodePort)
			visit(t, c.Outside, nodeAddr(c.Nodes[1], v6), nodePort, "far", testkit.OutsideAddr(v6), 1)
			visit(t, client.Namespace, nodeAddr(c.Nodes[0], v6), nodePort, "far", client.Address(v6), 1)
			visit(t, client.Namespace, nodeAddr(c.Nodes[1], v6), nodePort, "far", client.Address(v6), 1)
			visit(t, client.Namespace, pick(vips, v6), servicePort, "far", client.Address(v6), 1)
			// Another node is asked for what it has itself, which is how upstream tests it.
			silent(t, far.Namespace, nodeAddr(c.Nodes[0], v6), nodePort)
			silent(t, c.Nodes[1].Namespace, nodeAddr(c.Nodes[0], v6), nodePort)
		})
	}
	s.Spec = map[string]any{"internalTrafficPolicy": "Local"}
	c.Serve(s)
	programmed(t, &testkit.Cluster{Nodes: c.Nodes[:1]}, "10.96.0.80:80/TCP", 0)
	refused(t, client.Namespace, clusterIPs[0], servicePort)
	visit(t, far.Namespace, clusterIPs[0], servicePort, "far", netip.Addr{}, 1)
}

// loadBalancerSourceRanges hold for the load balancer's address and for nothing else.
func TestServiceSourceRanges(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	client, server := c.Nodes[0].AddPod("client"), c.Nodes[0].AddPod("server")
	server.Echo(port)
	s := shop(c, server)
	s.Spec = map[string]any{"loadBalancerSourceRanges": []string{"10.244.0.0/16", "fd44::/48"}}
	c.Serve(s)
	waitBackend(t, c, server)
	for _, v6 := range families {
		silent(t, c.Outside, pick(vips, v6), servicePort)
		visit(t, c.Outside, nodeAddr(c.Nodes[0], v6), nodePort, "server", testkit.OutsideAddr(v6), 1)
		visit(t, client.Namespace, pick(vips, v6), servicePort, "server", client.Address(v6), 1)
	}
	s.Spec = map[string]any{"loadBalancerSourceRanges": []string{testkit.OutsideAddr(false).String() + "/32", testkit.OutsideAddr(true).String() + "/128"}}
	c.Serve(s)
	time.Sleep(time.Second)
	for _, v6 := range families {
		visit(t, c.Outside, pick(vips, v6), servicePort, "server", testkit.OutsideAddr(v6), 1)
		got := client.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(pick(vips, v6), servicePort), Timeout: time.Second, Size: 1})
		if got.OK != 0 || !strings.Contains(strings.Join(got.Errors, ""), "not permitted") {
			t.Errorf("client outside the ranges: %+v", got)
		}
	}
}

// Session affinity: one rule for sockets and packets, so that a pod finds its backend again whichever way its connections take.
func TestServiceAffinity(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client := c.Nodes[0].AddPod("client")
	var servers []*testkit.Pod
	for i := range 4 {
		p := c.Nodes[i%2].AddPod(fmt.Sprintf("server-%d", i))
		p.Echo(port)
		servers = append(servers, p)
	}
	s := shop(c, servers...)
	s.Spec = map[string]any{"sessionAffinity": "ClientIP", "sessionAffinityConfig": map[string]any{"clientIP": map[string]any{"timeoutSeconds": 100}}}
	c.Serve(s)
	programmed(t, c, "192.0.2.80:80/TCP", 4)
	same := func(from *testkit.Namespace, want string, to ...netip.AddrPort) string {
		t.Helper()
		for _, at := range to {
			got := from.Probe(testkit.Probe{Network: "tcp", Address: at.String(), Timeout: time.Second, Size: 1, For: 300 * time.Millisecond, Interval: 10 * time.Millisecond})
			if got.Failed > 0 || len(got.Servers) != 1 || want != "" && got.Servers[want] == 0 {
				t.Errorf("%s to %s: %+v, want only %q", from.Name, at, got, want)
			}
			want = got.Server
		}
		return want
	}
	for _, v6 := range families {
		before := same(client.Namespace, "", netip.AddrPortFrom(pick(clusterIPs, v6), servicePort), netip.AddrPortFrom(nodeAddr(c.Nodes[0], v6), nodePort),
			netip.AddrPortFrom(pick(vips, v6), servicePort))
		same(c.Outside, "", netip.AddrPortFrom(nodeAddr(c.Nodes[0], v6), nodePort), netip.AddrPortFrom(pick(vips, v6), servicePort))
		c.Nodes[0].StopAgent()
		c.Nodes[0].SetConfigKey("socketLB", map[string]any{"enabled": false})
		c.Nodes[0].StartAgent()
		c.Nodes[0].WaitReady(30 * time.Second)
		same(client.Namespace, before, netip.AddrPortFrom(pick(clusterIPs, v6), servicePort))
		c.Nodes[0].StopAgent()
		c.Nodes[0].SetConfigKey("socketLB", map[string]any{"enabled": true})
		c.Nodes[0].StartAgent()
		c.Nodes[0].WaitReady(30 * time.Second)
	}
}

// NET-7: a container's host port, from outside, from pods and from the node.
func TestHostPort(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client, far := c.Nodes[0].AddPod("client"), c.Nodes[1].AddPod("far")
	server := c.Nodes[0].NewSandbox("server")
	for _, proto := range []string{"tcp", "udp"} {
		server.HostPorts = append(server.HostPorts, testkit.HostPortMapping{HostPort: 8888, ContainerPort: port, Protocol: proto})
	}
	if err := server.Attach(); err != nil {
		t.Fatal(err)
	}
	server.Echo(port)
	programmed(t, &testkit.Cluster{Nodes: c.Nodes[:1]}, "0.0.0.0:8888/TCP", 1)
	programmed(t, &testkit.Cluster{Nodes: c.Nodes[:1]}, "[::]:8888/UDP", 1)
	for family, v6 := range families {
		t.Run(family, func(t *testing.T) {
			n := nodeAddr(c.Nodes[0], v6)
			visit(t, c.Outside, n, 8888, "server", testkit.OutsideAddr(v6), 1)
			visit(t, client.Namespace, n, 8888, "server", client.Address(v6), 1)
			visit(t, far.Namespace, n, 8888, "server", far.Address(v6), 1)
			visit(t, c.Nodes[0].Namespace, n, 8888, "server", netip.Addr{}, 1)
		})
	}
	if err := server.Detach(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	refused(t, client.Namespace, c.Nodes[0].IPv4, 8888)
}

func backendsOf(t *testing.T, list, frontend string) int {
	t.Helper()
	var rows []struct {
		Frontend netip.AddrPort `json:"frontend"`
		Protocol string         `json:"protocol"`
		Status   string         `json:"status"`
		Backends []any          `json:"backends"`
	}
	if err := json.Unmarshal([]byte(list), &rows); err != nil {
		t.Fatalf("%v in %s", err, list)
	}
	for _, r := range rows {
		if r.Frontend.String()+"/"+r.Protocol == frontend && r.Status == "done" {
			return len(r.Backends)
		}
	}
	return -1
}
