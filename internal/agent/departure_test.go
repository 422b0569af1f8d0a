package agent_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// talk keeps one connection to the address and exchanges something every 20 ms. Each exchange waits so long that a connection nobody
// has closed shows as slow.
func talk(from *testkit.Namespace, network string, to netip.Addr, length time.Duration) func() testkit.Answer {
	return from.StartProbe(testkit.Probe{
		Network: network, Address: testkit.HostPort(to, servicePort), Timeout: 4 * time.Second, For: length, Interval: 20 * time.Millisecond, Keep: true,
	})
}

// SVC-5: what happens to connections when their backend terminates, loses its label, and goes.
func TestConnectionsToDepartingBackends(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client := c.Nodes[0].AddPod("client")
	for family, v6 := range families {
		for _, from := range []*testkit.Namespace{client.Namespace, c.Nodes[0].Namespace} {
			t.Run(family+"/from "+from.Name, func(t *testing.T) {
				name := "gone-" + strings.ToLower(family) + "-" + from.Name
				near, far := c.Nodes[0].AddPod("near-"+name), c.Nodes[1].AddPod("far-"+name)
				near.Echo(port)
				far.Echo(port)
				at := map[bool]netip.Addr{false: netip.MustParseAddr("10.96.0.90"), true: netip.MustParseAddr("fd96::90")}
				service := func(wait int, endpoints ...testkit.ServiceEndpoint) {
					t.Helper()
					c.Serve(testkit.Service{Name: "gone", Port: servicePort, TargetPort: port, ClusterIPs: []netip.Addr{at[false], at[true]}, Endpoints: endpoints})
					programmed(t, c, testkit.HostPort(at[v6], servicePort)+"/TCP", wait)
				}
				leaving := near.Endpoints()
				for i := range leaving {
					leaving[i].State = testkit.Serving
				}
				service(1, near.Endpoints()...)
				waitServer(t, from, at[v6], near.Name)
				tcp, udp := talk(from, "tcp", at[v6], 4*time.Second), talk(from, "udp", at[v6], 2*time.Second)
				time.Sleep(400 * time.Millisecond)

				service(1, append(leaving, far.Endpoints()...)...) // terminating
				waitServer(t, from, at[v6], far.Name)
				if a := udp(); a.Failed != 1 || a.Longest > time.Second || a.Servers[near.Name] == 0 || a.Server != far.Name {
					t.Errorf("UDP: %+v, want one error at once, then %s instead of %s", a, far.Name, near.Name)
				}
				service(1, far.Endpoints()...) // another label
				time.Sleep(700 * time.Millisecond)
				before := time.Now()
				if err := near.Detach(); err != nil { // gone
					t.Fatal(err)
				}
				took := time.Since(before)
				a := tcp()
				if a.Failed != 1 || a.Longest > took+time.Second || a.Server != far.Name {
					t.Errorf("TCP: %+v, want one error within a second of the end of the pod (%v), then %s", a, took, far.Name)
				}
				if n := a.Servers[near.Name]; n < 40 {
					t.Errorf("TCP: %d exchanges with %s, want it to serve until it is gone: %+v", n, near.Name, a)
				}
				if len(a.Errors) == 1 && !strings.Contains(a.Errors[0], "abort") && !strings.Contains(a.Errors[0], "reset") {
					t.Errorf("TCP: %s, want the connection closed", a.Errors[0])
				}
			})
		}
	}
}

func waitServer(t *testing.T, from *testkit.Namespace, at netip.Addr, server string) {
	t.Helper()
	var got testkit.Answer
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = from.Probe(testkit.Probe{Network: "tcp", Address: testkit.HostPort(at, servicePort)}); got.Server == server {
			return
		}
	}
	t.Fatalf("%s is not served by %s: %+v", at, server, got)
}

// SVC-3: a load balancer outside asks each node on the port that no other program can have.
func TestHealthCheckNodePort(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	near := c.Nodes[0].AddPod("near")
	s := shop(c, near)
	s.Spec = map[string]any{"externalTrafficPolicy": "Local", "healthCheckNodePort": 32123}
	c.Serve(s)
	asked := func(n *testkit.Node, v6 bool, want string) {
		t.Helper()
		var out string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			out, _ = c.Outside.TryRun("curl", "--silent", "--globoff", "--max-time", "2", "--write-out", " %{http_code}",
				"http://"+testkit.HostPort(nodeAddr(n, v6), 32123)+"/")
			if strings.Join(strings.Fields(out), "") == want {
				return
			}
		}
		t.Errorf("%s answers %s, want %s", n.Name, out, want)
	}
	answer := func(local, status int) string {
		return fmt.Sprintf(`{"service":{"namespace":"default","name":"shop"},"localEndpoints":%d,"serviceProxyHealthy":true}%d`, local, status)
	}
	for _, v6 := range families {
		asked(c.Nodes[0], v6, answer(1, 200))
		asked(c.Nodes[1], v6, answer(0, 503))
	}
	s.Endpoints = nil
	c.Serve(s)
	asked(c.Nodes[0], false, answer(0, 503))
	s.Spec = map[string]any{"externalTrafficPolicy": "Cluster"}
	c.Serve(s)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := c.Outside.TryRun("curl", "--silent", "--show-error", "--max-time", "2", "http://"+testkit.HostPort(c.Nodes[0].IPv4, 32123)+"/")
		if err != nil && strings.Contains(out+err.Error(), "onnect") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("port stays open: %s, %v", out, err)
		}
	}
}
