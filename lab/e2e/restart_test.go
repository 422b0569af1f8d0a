package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// counts is what probe load prints for one URL.
type counts struct {
	URL      string
	Requests int
	Lost     int
	Slowest  time.Duration
	Errors   []string
	Servers  map[string]int
}

// underLoad sends requests from a pod to pods on all nodes and to the service, over new and over kept connections, while
// disturb runs, and fails the test for each lost one.
func underLoad(t *testing.T, duration time.Duration, disturb func(ctx context.Context) error) {
	t.Helper()
	from := shared.nodes[0]
	var urls []string
	for _, ip := range clusterIPs(t) {
		urls = append(urls, "http://"+netip.AddrPortFrom(ip, 80).String()+"/hostname")
	}
	for _, n := range shared.nodes {
		for _, a := range n.pods {
			urls = append(urls, "http://"+netip.AddrPortFrom(a, serverPort).String()+"/hostname")
		}
	}
	type answer struct {
		out string
		err error
	}
	done := make(chan answer, 1)
	go func() {
		out, err := shared.inPod(t.Context(), shared.namespace, from.server, fmt.Sprintf("probe load %s %s", duration, strings.Join(urls, " ")))
		done <- answer{out, err}
	}()
	time.Sleep(time.Second) // let the load begin
	if err := disturb(t.Context()); err != nil {
		t.Error(err)
	}
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	total := 0
	for line := range strings.Lines(a.out) {
		var c counts
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		total += c.Requests
		if c.Lost > 0 {
			t.Errorf("%s: %d of %d requests lost: %s", c.URL, c.Lost, c.Requests, strings.Join(c.Errors, "; "))
		}
		if c.Requests < 100 {
			t.Errorf("%s: only %d requests in %s", c.URL, c.Requests, duration)
		}
		if c.Slowest > time.Second {
			t.Errorf("%s: the slowest of %d took %s: packets were lost and sent again", c.URL, c.Requests, c.Slowest)
		}
	}
	t.Logf("%d requests", total)
}

func needStrait(t *testing.T) {
	t.Helper()
	if shared.spec().CNI != "strait" {
		t.Skip("this lab runs without Strait")
	}
}

// OPS-2: kill -9 of every agent, several times, loses no request.
func TestOPS2_AgentKilledUnderLoad(t *testing.T) {
	needStrait(t)
	underLoad(t, 10*time.Second, func(ctx context.Context) error {
		for round := range 2 {
			for _, n := range shared.nodes {
				err := shared.killAgent(ctx, n.name)
				if err != nil && round == 0 { // the kubelet may wait before it starts what died lately
					return err
				}
			}
			time.Sleep(3 * time.Second)
		}
		return nil
	})
	settle(t)
}

// OPS-2: while the agents are away, pods go on, and those that start afterwards work.
func TestOPS2_PodsStartAfterAnAgentDied(t *testing.T) {
	needStrait(t)
	last := shared.nodes[len(shared.nodes)-1]
	if err := shared.killAgent(t.Context(), last.name); err != nil {
		t.Fatal(err)
	}
	if err := shared.create(t.Context(), pod("late", last.name, "netexec", "--http-port=8080")); err != nil {
		t.Fatal(err)
	}
	defer shared.remove(t, "late")
	settle(t)
	p := shared.wait(t, "late")
	for _, ip := range p.Status.PodIPs {
		var out string
		eventually(t, 20*time.Second, func(ctx context.Context) (err error) { // the pod is ready when its program runs, which may not listen yet
			out, err = shared.inPod(ctx, shared.namespace, shared.nodes[0].server, ask(netip.MustParseAddr(ip.IP), serverPort))
			return err
		})
		if got, want := seen(t, out, nil), same(shared.nodes[0].pods, netip.MustParseAddr(ip.IP)); got != want {
			t.Errorf("the late pod sees %s, want %s", got, want)
		}
	}
}

// OPS-2: an upgrade, which replaces every agent's pod, loses no request.
func TestOPS2_RolloutUnderLoad(t *testing.T) {
	needStrait(t)
	underLoad(t, 20*time.Second, func(ctx context.Context) error {
		if err := shared.waiter.Restart(ctx, "kube-system", "app.kubernetes.io/name=strait-agent"); err != nil {
			return err
		}
		return shared.waiter.WaitPods(ctx, "kube-system")
	})
}

// settle waits until all agents are ready again.
func settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, namespace := range []string{"kube-system", "demo"} { // after a node's reboot, what runs there comes back one by one
		if err := shared.waiter.WaitPods(ctx, namespace); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 2*time.Minute, func(ctx context.Context) error { // and what the test before had is gone
		namespaces, err := shared.kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range namespaces.Items {
			if n.DeletionTimestamp != nil {
				return fmt.Errorf("namespace %s is still there", n.Name)
			}
		}
		return nil
	})
}

// killAgent meets only processes of the node's own PID namespace; it is an error when no agent runs there.
func (r *rig) killAgent(ctx context.Context, node string) error {
	_, err := r.onMachine(ctx, node, "pkill -9 -x strait-agent")
	return err
}
