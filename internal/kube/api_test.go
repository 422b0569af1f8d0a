package kube

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

func create(t *testing.T, client rest.Interface, resource, namespace string, o runtime.Object) {
	t.Helper()
	if err := client.Post().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Body(o).Do(context.Background()).Error(); err != nil {
		t.Fatal(err)
	}
}

// One server for all: it takes seconds to start.
func TestRealAPIServer(t *testing.T) {
	server := kubetest.Start(t, nil)
	client, err := NewClientFor(server.Config(kubetest.AdminToken), "strait-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("election", func(t *testing.T) { testElection(t, client) })
	t.Run("pod CIDRs are set once", func(t *testing.T) { testSetPodCIDRs(t, client) })
	t.Run("node writer", func(t *testing.T) { testNodeWriter(t, client) })
	t.Run("pod lives", func(t *testing.T) { testPodLives(t, client) })
	t.Run("pod at ADD", func(t *testing.T) { testPodAtAdd(t, client) })
	t.Run("reflect policies", func(t *testing.T) { testReflectPolicies(t, client) })
	t.Run("reflect policies of cilium.io", func(t *testing.T) { testReflectCilium(t, client) })
	t.Run("reflect", func(t *testing.T) { testReflectServer(t, server, client) })
}

func testReflectServer(t *testing.T, server *kubetest.Server, client *Client) {
	st := state.New()
	source := NewAPIServer(client, TablesOf(st), quiet())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-st.Nodes.Initialized()
	<-st.Services.Initialized()
	<-st.EndpointSlices.Initialized()
	if svc, _, ok := st.Services.Snapshot().Get("default/kubernetes"); !ok || len(svc.ClusterIPs) != 1 {
		t.Errorf("service of the API server: %+v", svc)
	}
	create(t, client.core, "nodes", "", &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24", "fd00:1::/64"}},
	})
	create(t, client.core, "services", "default", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	for name, labels := range map[string]map[string]string{
		"web-1": {discoveryv1.LabelServiceName: "web"},
		"db-1":  {discoveryv1.LabelServiceName: "db", corev1.IsHeadlessService: ""},
	} {
		create(t, client.discovery, "endpointslices", "default", &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.7"}}},
		})
	}
	eventually(t, "node, service and slice", func() bool {
		n, _, _ := st.Nodes.Snapshot().Get("worker")
		svc, _, _ := st.Services.Snapshot().Get("default/web")
		slice, _, _ := st.EndpointSlices.Snapshot().Get("default/web-1")
		return len(n.PodCIDRs) == 2 && !n.Created.IsZero() && len(svc.ClusterIPs) == 1 && len(slice.Endpoints) == 1
	})
	if _, _, ok := st.EndpointSlices.Snapshot().Get("default/db-1"); ok {
		t.Error("slice of a headless service is reflected")
	}
	<-st.Policies.Initialized()
	st.Policies.Insert(state.Policy{Ref: policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "a", Name: "p"}, Specs: []policy.Policy{{
		Egress: policy.Direction{Rules: []policy.Rule{{Peers: []policy.Selector{{Kind: policy.SelectService, Service: "default/web"}, {Kind: policy.SelectService, Service: "default/db"}}}}},
	}}})
	create(t, client.core, "services", "default", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone},
	})
	eventually(t, "slice of a headless service that a policy asks for, beside the others", func() bool {
		_, _, others := st.EndpointSlices.Snapshot().Get("default/web-1")
		slice, _, _ := st.EndpointSlices.Snapshot().Get("default/db-1")
		return slice.Headless && len(slice.Endpoints) == 1 && others
	})
	before := st.Services.Snapshot().Revision()
	server.Stop()
	eventually(t, "outage reported", func() bool { return strings.Contains(names(st.Problems), "kube/api server, services") })
	server.Resume()
	create(t, client.core, "services", "default", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "later"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	})
	eventually(t, "outage over", func() bool {
		_, _, ok := st.Services.Snapshot().Get("default/later")
		return ok && names(st.Problems) == ""
	})
	if after := st.Services.Snapshot().Revision(); after != before+1 {
		t.Errorf("the outage wrote %d rows, want only the new one", after-before)
	}
}

func testSetPodCIDRs(t *testing.T, client *Client) {
	ctx := context.Background()
	create(t, client.core, "nodes", "", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fresh"}})
	node, err := client.Node(ctx, "fresh")
	if err != nil {
		t.Fatal(err)
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00:2::/64")}
	if err := client.SetPodCIDRs(ctx, "fresh", "another-uid", cidrs); !errors.Is(err, ErrRefused) {
		t.Errorf("node made anew under the same name: %v, want invalid", err)
	}
	if err := client.SetPodCIDRs(ctx, "fresh", string(node.UID), cidrs); err != nil {
		t.Fatal(err)
	}
	if err := client.SetPodCIDRs(ctx, "fresh", string(node.UID), cidrs); err != nil {
		t.Errorf("the same again: %v", err)
	}
	other := []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}
	if err := client.SetPodCIDRs(ctx, "fresh", string(node.UID), other); !errors.Is(err, ErrRefused) {
		t.Errorf("second writer: %v, want invalid", err)
	}
	if node, err = client.Node(ctx, "fresh"); err != nil || !slices.Equal(node.Spec.PodCIDRs, []string{"10.2.0.0/24", "fd00:2::/64"}) {
		t.Errorf("%v, %v", node.Spec.PodCIDRs, err)
	}
	if err := client.SetPodCIDRs(ctx, "nobody", "x", cidrs); !apierrors.IsNotFound(err) {
		t.Errorf("no node: %v", err)
	}
}

func testNodeWriter(t *testing.T, client *Client) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	foreign := corev1.Taint{Key: "example.org/other", Effect: corev1.TaintEffectNoExecute}
	create(t, client.core, "nodes", "", &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{foreign}},
	})
	get := func() *corev1.Node {
		t.Helper()
		n, err := client.Node(ctx, "mine")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	w := NewNodeWriter(ctx, client, "mine", "strait-agent", quiet())
	for _, on := range []bool{true, true, false, false} {
		if err := w.Taint(ctx, on); err != nil {
			t.Fatal(err)
		}
		row, err := ToNode(get())
		if err != nil || row.Tainted != on {
			t.Errorf("tainted %t, want %t (%v)", row.Tainted, on, err)
		}
		if !slices.ContainsFunc(get().Spec.Taints, func(t corev1.Taint) bool { return t.Key == foreign.Key }) {
			t.Error("taint of another is gone")
		}
	}
	for _, available := range []bool{false, true, true} {
		if err := w.SetNetworkAvailable(ctx, available, "Probe", "plugin tried"); err != nil {
			t.Fatal(err)
		}
		want := corev1.ConditionTrue
		if available {
			want = corev1.ConditionFalse
		}
		c := get().Status.Conditions
		if len(c) != 1 || c[0].Type != corev1.NodeNetworkUnavailable || c[0].Status != want {
			t.Errorf("conditions %+v, want NetworkUnavailable %s", c, want)
		}
	}
	if err := w.Annotate(ctx, map[string]string{"strait.dev/a": "1", "strait.dev/b": "2"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Annotate(ctx, map[string]string{"strait.dev/a": "", "strait.dev/b": "3"}); err != nil {
		t.Fatal(err)
	}
	a := get().Annotations
	if _, there := a["strait.dev/a"]; there || a["strait.dev/b"] != "3" {
		t.Errorf("annotations %v", a)
	}
	w.Event(Warning, "ProbeFailed", "the plugin said no")
	eventually(t, "event", func() bool {
		var list corev1.EventList
		if err := client.core.Get().Namespace("default").Resource("events").Do(ctx).Into(&list); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == "mine" && e.Reason == "ProbeFailed" && e.Type == "Warning" && e.Source.Component == "strait-agent"
		})
	})
	if err := NewNodeWriter(ctx, client, "nobody", "strait-agent", quiet()).Taint(ctx, true); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("taint of no node: %v", err)
	}
}

func testElection(t *testing.T, client *Client) {
	contender := func(id string) *Election {
		return &Election{
			Client: client, Namespace: "kube-system", Name: "test", Identity: id, Log: quiet(),
			Duration: 2 * time.Second, RenewWithin: 1500 * time.Millisecond, Every: 100 * time.Millisecond,
		}
	}
	type run struct {
		leads  chan struct{}
		stop   context.CancelFunc
		result chan error
	}
	begin := func(e *Election) run {
		ctx, cancel := context.WithCancel(context.Background())
		r := run{make(chan struct{}), cancel, make(chan error, 1)}
		go func() {
			r.result <- e.Run(ctx, func(ctx context.Context) error {
				close(r.leads)
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		return r
	}
	a := begin(contender("a"))
	<-a.leads
	b := begin(contender("b"))
	select {
	case <-b.leads:
		t.Fatal("two lead")
	case <-time.After(2500 * time.Millisecond):
	}
	start := time.Now()
	a.stop()
	<-a.result
	<-b.leads
	if took := time.Since(start); took > time.Second {
		t.Errorf("hand-over of a released lease took %s", took)
	}
	// Another process writes itself in: b must stop.
	thief := contender("thief")
	if err := thief.try(context.Background()); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("took a lease that is held: %v", err)
	}
	thief.seenAt = time.Now().Add(-time.Hour) // as if b had been silent
	for err := thief.try(context.Background()); err != nil; err = thief.try(context.Background()) {
		thief.seenAt = time.Now().Add(-time.Hour)
	}
	if err := <-b.result; !errors.Is(err, ErrLeaseLost) {
		t.Errorf("b ended with %v", err)
	}
	// The thief never renews: its lease expires.
	c := begin(contender("c"))
	select {
	case <-c.leads:
	case <-time.After(10 * time.Second):
		t.Error("expired lease was not taken")
	}
	c.stop()
	<-c.result
}
