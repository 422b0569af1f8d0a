package agent_test

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// OPS-2: established and new connections, to pods and to a service, go on while the agent is killed and started again.
func TestKilledAgentBreaksNoConnection(t *testing.T) {
	testkit.RequireRoot(t)
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{"routingMode": mode}})
			client, near, far := c.Nodes[0].AddPod("client"), c.Nodes[0].AddPod("near"), c.Nodes[1].AddPod("far")
			near.Echo(port)
			far.Echo(port)
			c.Outside.Echo(port)
			service := netip.MustParseAddr("10.96.0.10")
			c.ApplyService("web", 80, []netip.Addr{service}, port, near.IPv4, far.IPv4)
			toService := testkit.HostPort(service, 80)
			if !within(5*time.Second, func() bool {
				return client.Probe(testkit.Probe{Network: "tcp", Address: toService}).OK == 1
			}) {
				t.Fatal("service does not answer")
			}
			before := tcpTimeouts(t, client) // of waiting for the service
			const length = 4 * time.Second
			var waits []func() testkit.Answer
			for _, address := range []string{
				testkit.HostPort(near.IPv4, port), testkit.HostPort(far.IPv4, port), testkit.HostPort(far.IPv6, port),
				testkit.HostPort(testkit.OutsideAddr(false), port), toService,
			} {
				for _, keep := range []bool{true, false} {
					waits = append(waits, client.StartProbe(testkit.Probe{
						Network: "tcp", Address: address, Keep: keep, For: length, Interval: 5 * time.Millisecond, Timeout: 10 * time.Second,
					}))
				}
			}
			for range 3 {
				time.Sleep(300 * time.Millisecond)
				restart(c.Nodes, func() { time.Sleep(200 * time.Millisecond) })
			}
			for _, wait := range waits {
				if got := wait(); got.Failed != 0 || got.OK < 100 {
					t.Errorf("%d exchanges, %d failed, longest %s: %v", got.OK, got.Failed, got.Longest, got.Errors)
				}
			}
			// What was lost for longer than a moment, a SYN or a segment, shows as a retransmission timeout, however busy the machine is.
			if n := tcpTimeouts(t, client) - before; n != 0 {
				t.Errorf("%d retransmission timeouts", n)
			}
			if err := client.Check(); err != nil {
				t.Errorf("CHECK after restarts: %v", err)
			}
		})
	}
}

// tcpTimeouts returns how often the pod's TCP waited in vain: TCPTimeouts of /proc/net/netstat, a line of names and one of values.
func tcpTimeouts(t *testing.T, p *testkit.Pod) int {
	t.Helper()
	var names []string
	for line := range strings.Lines(p.Run("cat", "/proc/self/net/netstat")) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		n, err := strconv.Atoi(fields[slices.Index(names, "TCPTimeouts")])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatal("no TcpExt values in /proc/net/netstat")
	return 0
}

// OPS-2, IPAM-2: the agent is killed at random moments while pods come and go; in the end nothing is left over.
func TestKilledDuringAddLeaksNothing(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	before := leftovers(t, n)
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	var pods []*testkit.Pod
	for i := range 24 {
		pods = append(pods, n.NewSandbox("churn-"+string(rune('a'+i))))
	}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() { _ = p.Attach() }) // some fail: the agent is being killed
	}
	for range 4 {
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		n.KillAgent()
		n.StartAgent()
	}
	wg.Wait()
	n.WaitReady(20 * time.Second)
	seen := map[netip.Addr]string{}
	for _, p := range pods {
		if p.Result == nil {
			continue
		}
		if other, taken := seen[p.IPv4]; taken {
			t.Errorf("%s and %s both have %s", p.Name, other, p.IPv4)
		}
		seen[p.IPv4] = p.Name
		if err := p.Check(); err != nil {
			t.Errorf("CHECK of %s, whose ADD had succeeded: %v", p.Name, err)
		}
	}
	// Half are deleted while the agent is down: the DELs wait in the queue.
	n.KillAgent()
	for _, p := range pods[:len(pods)/2] {
		if err := p.Detach(); err != nil {
			t.Errorf("DEL with the agent down: %v", err)
		}
	}
	n.StartAgent()
	n.WaitReady(20 * time.Second)
	for _, p := range pods[len(pods)/2:] {
		if err := p.Detach(); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if !within(5*time.Second, func() bool { return leftovers(t, n) == before }) {
		t.Errorf("left over:\n%s\nbefore:\n%s", leftovers(t, n), before)
	}
}

// leftovers lists everything an endpoint has on its node: devices, routes, neighbours, pins, map rows, records.
func leftovers(t *testing.T, n *testkit.Node) string {
	t.Helper()
	records, err := os.ReadDir(n.StateDir() + "/endpoints")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join([]string{
		n.Run("ip", "-o", "link", "show", "type", "veth"),
		n.Run("ip", "route"), n.Run("ip", "-6", "route", "show", "proto", "83"), n.Run("ip", "neigh", "show", "nud", "permanent"),
		n.Run("ls", "/sys/fs/bpf/strait/v1/links"),
		n.CLI("bpf", "dump", "strait_endpoint"),
		sprintEach(records),
	}, "\n--\n")
}

// One agent per node: the second says who is there and changes nothing.
func TestSecondAgentIsRefused(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{Nodes: 1})
	n := c.Nodes[0]
	out, err := n.RunAgent()
	if err == nil || !strings.Contains(out, "another strait-agent") {
		t.Errorf("second agent: %v\n%s", err, out)
	}
	n.WaitReady(time.Second)
}
