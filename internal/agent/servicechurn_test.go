package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// OPS-2, SVC-5: endpoints change 20 times a second, agents are killed again and again, and nobody notices: no established connection
// breaks, no new one fails; and what an agent has missed while it was dead is true as soon as it lives again.
func TestServiceChurnWithKilledAgents(t *testing.T) {
	testkit.RequireRoot(t)
	c := testkit.NewCluster(t, testkit.Options{})
	client, outside := c.Nodes[0].AddPod("client"), &testkit.Pod{Namespace: c.Outside}
	var stay, move []*testkit.Pod
	for i := range 2 {
		stay = append(stay, c.Nodes[i].AddPod(fmt.Sprintf("stay-%d", i)))
		move = append(move, c.Nodes[i].AddPod(fmt.Sprintf("move-%d", i)), c.Nodes[i].AddPod(fmt.Sprintf("move-%d", i+2)))
	}
	all := slices.Concat(stay, move)
	for _, p := range all {
		p.Echo(port)
	}
	// Without an API server a pod lives as long as some slice lists its address; what leaves the shop is to live on.
	alive := shop(c, all...)
	alive.Name, alive.Type, alive.ClusterIPs, alive.Ingress, alive.NodePort = "alive", "", nil, nil, 0
	alive.TargetPort, alive.Spec = port+1, map[string]any{"clusterIP": "None"}
	c.Serve(alive)
	service := shop(c, stay...)
	c.Serve(service)
	for _, p := range stay {
		waitBackend(t, c, p)
	}
	clients := append([]*testkit.Pod{client, outside}, stay...)
	before := map[*testkit.Pod]int{}
	for _, p := range clients {
		before[p] = tcpTimeouts(t, p)
	}

	const length = 20 * time.Second
	kept := visitors(c, client, length, true)
	time.Sleep(time.Second) // their backends stay
	fresh := visitors(c, client, length-time.Second, false)
	begin, stop, changes := time.Now(), make(chan struct{}), make(chan int, 1)
	go func() { changes <- churn(c, service, move, stop) }()
	for round := range 4 {
		time.Sleep(600 * time.Millisecond)
		dead := c.Nodes // both at once, then one or the other
		if round%2 == 1 {
			dead = c.Nodes[round/2 : round/2+1]
		}
		restart(dead, func() { time.Sleep(300 * time.Millisecond) })
	}
	restart(c.Nodes, func() { // the last change happens while nobody looks
		took := time.Since(begin)
		close(stop)
		n := <-changes
		t.Logf("%d changes in %v", n, took)
		if float64(n) < 10*took.Seconds() { // 20 a second were asked for
			t.Errorf("%d changes in %v are too few", n, took)
		}
		c.Serve(service)
	})
	programmed(t, c, "192.0.2.80:80/TCP", len(stay))

	for what, got := range answers(visitors(c, client, time.Second, false)) {
		if got.Failed != 0 || met(got, "move-") != 0 {
			t.Errorf("after the last change: %s: %+v, want only backends that stay", what, got)
		}
	}
	for what, got := range answers(kept) {
		if got.Failed != 0 || len(got.Servers) != 1 || met(got, "stay-") < 100 {
			t.Errorf("kept connection: %s: %+v, want it unbroken", what, got)
		}
	}
	for what, got := range answers(fresh) {
		if got.Failed != 0 || met(got, "stay-") < 20 || met(got, "move-") < 20 {
			t.Errorf("new connections: %s: %+v, want no failure, and backends of both kinds", what, got)
		}
	}
	// What was lost for longer than a moment shows as a retransmission timeout, however busy the machine is.
	for _, p := range clients {
		if n := tcpTimeouts(t, p) - before[p]; n != 0 {
			t.Errorf("%d retransmission timeouts in %s", n, p.Name)
		}
	}
}

// visitors are a pod at the cluster addresses and outside at the node ports, both families, on one connection each or on ever new ones.
func visitors(c *testkit.Cluster, client *testkit.Pod, length time.Duration, keep bool) map[string]func() testkit.Answer {
	out := map[string]func() testkit.Answer{}
	for family, v6 := range families {
		probe := testkit.Probe{Network: "tcp", For: length, Interval: 20 * time.Millisecond, Timeout: 10 * time.Second, Keep: keep}
		probe.Address = testkit.HostPort(pick(clusterIPs, v6), servicePort)
		out["pod to ClusterIP, "+family] = client.StartProbe(probe)
		probe.Address = testkit.HostPort(nodeAddr(c.Nodes[0], v6), nodePort)
		out["outside to NodePort, "+family] = c.Outside.StartProbe(probe)
	}
	return out
}

func answers(waits map[string]func() testkit.Answer) map[string]testkit.Answer {
	out := map[string]testkit.Answer{}
	for what, wait := range waits {
		out[what] = wait()
	}
	return out
}

// met counts the exchanges with servers of a kind.
func met(a testkit.Answer, kind string) (n int) {
	for name, count := range a.Servers {
		if strings.HasPrefix(name, kind) {
			n += count
		}
	}
	return n
}

// churn adds pods to a service and removes them, one after the other, 20 a second, until stop; it returns how many changes there were.
func churn(c *testkit.Cluster, s testkit.Service, move []*testkit.Pod, stop <-chan struct{}) (n int) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	in := map[*testkit.Pod]bool{}
	for {
		select {
		case <-stop:
			return n
		case <-tick.C:
		}
		p := move[n%len(move)]
		in[p] = !in[p]
		now := s
		now.Endpoints = slices.Clone(s.Endpoints)
		for _, m := range move {
			if in[m] {
				now.Endpoints = append(now.Endpoints, m.Endpoints()...)
			}
		}
		c.Serve(now)
		n++
	}
}

// restart kills agents as kill -9 does, does something, and starts them again.
func restart(nodes []*testkit.Node, meanwhile func()) {
	for _, n := range nodes {
		n.KillAgent()
	}
	meanwhile()
	for _, n := range nodes {
		n.StartAgent()
	}
	for _, n := range nodes {
		n.WaitReady(30 * time.Second)
	}
}
