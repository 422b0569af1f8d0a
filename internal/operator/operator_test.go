package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/state"
)

type rig struct {
	t     *testing.T
	admin *kubernetes.Clientset
	kube  *kube.Client
}

func (r rig) addNode(name string, cidrs ...string) {
	r.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	if _, err := r.admin.CoreV1().Nodes().Create(context.Background(), n, metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r rig) cidrs() map[string][]string {
	r.t.Helper()
	list, err := r.admin.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string][]string{}
	for _, n := range list.Items {
		out[n.Name] = n.Spec.PodCIDRs
	}
	return out
}

func (r rig) hasEvent(node, reason string) bool {
	r.t.Helper()
	list, err := r.admin.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.InvolvedObject.Name == node && e.Reason == reason })
}

func (r rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not within 20 s: %s; nodes %v", what, r.cidrs())
		}
	}
}

// run starts a replica; the returned function ends it and returns what Run returned.
func (r rig) run(yaml, identity string) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	cfg := settings(yaml)
	cfg.Operator.MetricsAddress = ""
	go func() {
		ended <- Run(ctx, Config{Config: cfg, Namespace: "kube-system", Identity: identity, Client: r.kube, Log: slog.New(slog.DiscardHandler)})
	}()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	r.t.Cleanup(func() { _ = stop() })
	return stop
}

const dualSmall = "ipv6: true\nipam: {podCIDRv4: 10.244.0.0/21, podCIDRv6: \"fd00::/56\"}\n"

// IPAM-1 on a real API server: pairs, restart, exhaustion, other writers.
func TestOperatorOnRealAPIServer(t *testing.T) {
	server := kubetest.Start(t, nil)
	cfg := server.Config(kubetest.AdminToken)
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClientFor(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	r := rig{t, admin, client}
	r.addNode("a")
	r.addNode("foreign", "10.9.0.0/24", "fd09::/64")
	stop := r.run(dualSmall, "one")
	r.run(dualSmall, "two") // waits for its turn
	r.eventually("first node", func() bool { return len(r.cidrs()["a"]) == 2 })
	for _, name := range []string{"b", "c", "d"} {
		r.addNode(name)
	}
	r.eventually("three more", func() bool { c := r.cidrs(); return len(c["b"]) == 2 && len(c["c"]) == 2 && len(c["d"]) == 2 })
	r.eventually("event of the foreign CIDR", func() bool { return r.hasEvent("foreign", reasonOutside) })
	if got := r.cidrs()["foreign"]; !slices.Equal(got, []string{"10.9.0.0/24", "fd09::/64"}) {
		t.Errorf("foreign CIDRs were changed to %v", got)
	}
	before := r.cidrs()

	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("replica one ended with %v", err)
	}
	for i := range 4 {
		r.addNode(fmt.Sprintf("late-%d", i))
	}
	r.eventually("the other replica takes over", func() bool { return len(r.cidrs()["late-3"]) == 2 })
	for name, cidrs := range before {
		if now := r.cidrs()[name]; !slices.Equal(now, cidrs) {
			t.Errorf("node %s had %v, has %v", name, cidrs, now)
		}
	}
	var all []netip.Prefix
	for name, cidrs := range r.cidrs() {
		for _, text := range cidrs {
			p := netip.MustParsePrefix(text)
			if slices.ContainsFunc(all, p.Overlaps) {
				t.Errorf("%s of node %s is another's as well", p, name)
			}
			all = append(all, p)
		}
	}
	// All 8 blocks are out: the next node gets nothing, and says so; then one is given back.
	r.addNode("too-many")
	r.eventually("exhaustion event", func() bool { return r.hasEvent("too-many", reasonExhausted) })
	if got := r.cidrs()["too-many"]; len(got) != 0 {
		t.Errorf("got %v from an exhausted pool", got)
	}
	if err := admin.CoreV1().Nodes().Delete(context.Background(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the block of the deleted node", func() bool {
		got := r.cidrs()["too-many"]
		return len(got) == 2 && got[0] == before["b"][0]
	})
}

// kube-controller-manager is faster: what it wrote stays, and the node says who was second.
func TestRace(t *testing.T) {
	server := kubetest.Start(t, nil)
	cfg := server.Config(kubetest.AdminToken)
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClientFor(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	r := rig{t, admin, client}
	ctx := t.Context()
	log := slog.New(slog.DiscardHandler)
	o := &operator{
		Config:  Config{Config: settings(dualSmall), Client: client, Log: log, Identity: "x"},
		metrics: newMetrics(prometheus.NewRegistry()), pending: map[string][]netip.Prefix{}, accepted: map[string]bool{},
		events: kube.NewEvents(ctx, client, component, "x", log),
	}
	r.addNode("a", "10.244.7.0/24")
	object, err := client.Node(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	stale := node("a")
	stale.UID = string(object.UID)
	if !o.round(ctx, []state.Node{stale}) {
		t.Error("a refusal is to be tried again")
	}
	r.eventually("race event", func() bool { return r.hasEvent("a", reasonRace) })
	if got := strings.Join(r.cidrs()["a"], " "); got != "10.244.7.0/24" {
		t.Errorf("node has %s", got)
	}
	if len(o.pending) != 0 {
		t.Errorf("pending %v after a refusal", o.pending)
	}
	gone := node("gone")
	if !o.round(ctx, []state.Node{gone}) {
		t.Error("a deleted node is to be tried again")
	}
	server.Stop()
	if o.round(ctx, []state.Node{gone}) {
		t.Error("an outage is not to be tried again")
	}
	if got := o.pending[gone.UID]; len(got) != 2 {
		t.Errorf("CIDRs whose fate is unknown are not reserved: %v", got)
	}
}
