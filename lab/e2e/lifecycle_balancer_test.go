package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// offer makes a pool of addresses on the nodes' network; the end of the test removes it.
func offer(t *testing.T, name string, blocks ...any) {
	t.Helper()
	all, err := dynamic.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	pools := all.Resource(schema.GroupVersionResource{Group: "strait.dev", Version: "v1alpha1", Resource: "loadbalancerpools"})
	pool := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "strait.dev/v1alpha1", "kind": "LoadBalancerPool",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"blocks": blocks},
	}}
	if _, err := pools.Create(t.Context(), pool, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pools.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// announcer is the index of the node whose link the router has for an address.
func announcer(ctx context.Context, a netip.Addr) (int, error) {
	out, err := shared.onMachine(ctx, "router", "ip neigh show "+a.String())
	if err != nil {
		return 0, err
	}
	for i := range shared.nodes {
		if strings.Contains(out, shared.spec().Node(i+1).MAC.String()) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the router's neighbour is %q", out)
}

// SVC-8: a service gets its addresses from a pool, one node answers for each on the network, and another one when that loses its power.
func TestSVC8_LoadBalancerMovesFromDeadNode(t *testing.T) {
	needServices(t)
	if len(shared.nodes) < 2 {
		t.Skip("needs a node to move to")
	}
	offer(t, shared.namespace, map[string]any{"start": "172.18.0.200", "stop": "172.18.0.203"}, map[string]any{"start": "fd18::200", "stop": "fd18::203"})
	s := create(t, "balanced", func(s *corev1.ServiceSpec) {
		s.Type, s.Selector = corev1.ServiceTypeLoadBalancer, map[string]string{"only": "balanced"}
	})
	var addrs []netip.Addr
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		now, err := shared.kube.CoreV1().Services(shared.namespace).Get(ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		addrs = nil
		for _, in := range now.Status.LoadBalancer.Ingress {
			addrs = append(addrs, netip.MustParseAddr(in.IP))
		}
		if len(addrs) != len(now.Spec.ClusterIPs) {
			return fmt.Errorf("has addresses %v: %+v", addrs, now.Status.Conditions)
		}
		return nil
	})
	reach := func(ctx context.Context, a netip.Addr) error {
		out, err := shared.onMachine(ctx, outside, names(3, netip.AddrPortFrom(a, 80).String()))
		if err == nil && !strings.HasPrefix(strings.TrimSpace(out), "3 server-") {
			err = fmt.Errorf("%s answers %q", a, out)
		}
		return err
	}
	// Asked before there is a backend, so that the backend can be put where the address is not.
	dead := -1
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		_, _ = shared.onMachine(ctx, outside, "curl -sS --max-time 1 http://"+netip.AddrPortFrom(addrs[0], 80).String())
		var err error
		dead, err = announcer(ctx, addrs[0])
		return err
	})
	backend := shared.nodes[slices.IndexFunc(shared.nodes, func(n nodeRig) bool { return n.name != shared.nodes[dead].name })]
	label(t, backend.server, "only", "balanced")
	t.Cleanup(func() { label(t, backend.server, "only", "") })
	for _, a := range addrs {
		eventually(t, 20*time.Second, func(ctx context.Context) error { return reach(ctx, a) })
	}
	if _, err := shared.run(t.Context(), "node", "kill", shared.nodes[dead].name); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	defer reboot(t, &shared.nodes[dead])
	for _, a := range addrs {
		eventually(t, 15*time.Second, func(ctx context.Context) error { return reach(ctx, a) })
	}
	t.Logf("%v after %s lost its power", time.Since(begin).Round(100*time.Millisecond), shared.nodes[dead].name)
	if now, err := announcer(t.Context(), addrs[0]); err != nil || now == dead {
		t.Errorf("the router's neighbour is node %d, %v", now+1, err)
	}
}
