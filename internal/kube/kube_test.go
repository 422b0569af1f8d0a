package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fcache "k8s.io/client-go/tools/cache/testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

var comparable = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func parse[O any](t *testing.T, text string) O {
	t.Helper()
	objects, err := ParseObjects([]byte(text))
	if err != nil || len(objects) != 1 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	return objects[0].(O)
}

func TestToNode(t *testing.T) {
	n, err := ToNode(parse[*corev1.Node](t, `
apiVersion: v1
kind: Node
metadata:
  name: worker-1
  uid: u1
  creationTimestamp: "2026-01-02T03:04:05Z"
  labels: {topology.kubernetes.io/zone: z1, node.kubernetes.io/exclude-from-external-load-balancers: ""}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
  taints: [{key: strait.dev/not-ready, effect: NoSchedule}]
status:
  addresses:
  - {type: Hostname, address: worker-1}
  - {type: InternalIP, address: 192.168.9.2}
  - {type: InternalIP, address: "fd00:9::2"}
  - {type: ExternalIP, address: 203.0.113.9}
`))
	want := state.Node{
		Name: "worker-1", UID: "u1", Tainted: true, Zone: "z1", NoLoadBalancer: true, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.9.2"), netip.MustParseAddr("fd00:9::2")},
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Labels:    policy.Labels{{Key: "node.kubernetes.io/exclude-from-external-load-balancers"}, {Key: "topology.kubernetes.io/zone", Value: "z1"}},
	}
	if err != nil || !n.Equal(want) {
		t.Errorf("got %+v, %v\nwant %+v", n, err, want)
	}
	_, err = ToNode(&corev1.Node{
		Spec:   corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "ten"}}},
	})
	for _, part := range []string{`status.addresses[0]: "ten"`, `spec.podCIDRs[0]: "10.0.0.0"`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v lacks %s", err, part)
		}
	}
}

func TestToService(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		want       state.Service
		wantErr    string
	}{
		{name: "dual-stack", spec: `{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:96::a"], ports: [{name: dns, port: 53, protocol: UDP}, {port: 80, nodePort: 30080}]}`,
			want: state.Service{Type: state.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")},
				Ports: []state.ServicePort{{Name: "dns", Port: 53, Protocol: state.UDP}, {Port: 80, Protocol: state.TCP, NodePort: 30080}}}},
		{name: "old form", spec: `{clusterIP: 10.96.0.10, type: NodePort, publishNotReadyAddresses: true}`,
			want: state.Service{Type: state.NodePort, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, PublishNotReady: true}},
		{name: "headless", spec: `{clusterIP: None, clusterIPs: [None]}`, want: state.Service{Type: state.ClusterIP, Headless: true}},
		{name: "external name", spec: `{type: ExternalName, externalName: example.org}`, want: state.Service{Type: state.ExternalName, Target: "example.org"}},
		{name: "bad address", spec: `{clusterIP: 10.96.0}`, wantErr: `spec.clusterIPs[0]: "10.96.0"`},
		{name: "bad protocol", spec: `{ports: [{port: 1, protocol: DCCP}]}`, wantErr: `spec.ports[0].protocol: "DCCP": unknown; accepted: TCP, UDP, SCTP`},
		{name: "bad port", spec: `{ports: [{port: 70000}]}`, wantErr: "spec.ports[0]: port 70000"},
		{name: "bad type", spec: `{type: Magic}`, wantErr: `spec.type: "Magic"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ToService(parse[*corev1.Service](t, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: "+c.spec))
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("error %v, want %s", err, c.wantErr)
				}
				return
			}
			c.want.ServiceName = state.ServiceName{Namespace: "default", Name: "s"}
			if err != nil || !got.Equal(c.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

func sliceYAML(name string, endpoints string) string {
	return `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ` + name + `, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: all}]
endpoints: ` + endpoints
}

func TestToEndpointSlice(t *testing.T) {
	row, ok, err := ToEndpointSlice(parse[*discoveryv1.EndpointSlice](t, sliceYAML("web-1",
		`[{addresses: [10.0.0.1, 10.9.9.9], nodeName: a, zone: z, targetRef: {kind: Pod, name: web-0}, hints: {forZones: [{name: z}, {name: x}], forNodes: [{name: a}]}},
		  {addresses: [10.0.0.4], targetRef: {kind: VirtualMachine, name: vm}, hints: {forZones: [{name: z}, {name: x}]}}, {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: []}]`)))
	want := state.EndpointSlice{
		Namespace: "shop", Name: "web-1", Service: state.ServiceName{Namespace: "shop", Name: "web"},
		Ports: []state.EndpointPort{{Name: "http", Port: 8080, Protocol: state.TCP}},
		Endpoints: []state.SliceEndpoint{
			{Address: netip.MustParseAddr("10.0.0.1"), Ready: true, Serving: true, Node: "a", Zone: "z", Pod: "shop/web-0",
				ForZones: []string{"z", "x"}, ForNodes: []string{"a"}},
			{Address: netip.MustParseAddr("10.0.0.4"), Ready: true, Serving: true, ForZones: []string{"z", "x"}},
			{Address: netip.MustParseAddr("10.0.0.2"), Serving: true, Terminating: true},
			{Address: netip.MustParseAddr("10.0.0.3")},
		},
	}
	if !ok || err != nil {
		t.Errorf("ok %t, %v", ok, err)
	}
	if diff := cmp.Diff(want, row, comparable); diff != "" {
		t.Error(diff)
	}
	noted := parse[*discoveryv1.EndpointSlice](t, sliceYAML("web-1", `[{addresses: [10.0.0.1]}]`))
	noted.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-11-21T12:00:00.25Z"}
	if row, _, err := ToEndpointSlice(noted); err != nil || !row.Trigger.Equal(time.Date(2026, 11, 21, 12, 0, 0, 250e6, time.UTC)) {
		t.Errorf("trigger = %v, %v", row.Trigger, err)
	}
	if &row.Endpoints[0].ForZones[0] != &row.Endpoints[1].ForZones[0] {
		t.Error("equal hints do not share memory")
	}
	for _, edit := range []func(*discoveryv1.EndpointSlice){
		func(o *discoveryv1.EndpointSlice) { delete(o.Labels, discoveryv1.LabelServiceName) },
		func(o *discoveryv1.EndpointSlice) { o.AddressType = discoveryv1.AddressTypeFQDN },
	} {
		o := parse[*discoveryv1.EndpointSlice](t, sliceYAML("web-1", "[{addresses: [10.0.0.1]}]"))
		edit(o)
		if _, ok, err := ToEndpointSlice(o); ok || err != nil {
			t.Errorf("%v is reflected (%v)", o, err)
		}
	}
	if _, _, err := ToEndpointSlice(parse[*discoveryv1.EndpointSlice](t, sliceYAML("x", "[{addresses: [web.example]}]"))); err == nil ||
		!strings.Contains(err.Error(), `endpoints[0].addresses[0]: "web.example"`) {
		t.Error(err)
	}
}

func names[T any](t *table.Table[T]) string {
	var out []string
	for row := range t.Snapshot().All() {
		out = append(out, t.Key(row))
	}
	return strings.Join(out, " ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func initialised[T any](t *table.Table[T]) bool {
	select {
	case <-t.Initialized():
		return true
	default:
		return false
	}
}

func node(name, cidr string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}}}
}

// The plumbing between a Reflector and a table, with a fake of the server's watch; the lab proves the real one.
func TestReflect(t *testing.T) {
	st := state.New()
	server := fcache.NewFakeControllerSource()
	server.Add(node("a", "10.0.1.0/24"))
	server.Add(node("b", "10.0.2.0/24"))
	a := &APIServer{tables: TablesOf(st), log: quiet(), host: "https://fake"}
	s := &store[*corev1.Node, state.Node]{kind: nodes(TablesOf(st)), problems: st.Problems, done: st.Nodes.Register(owner), now: time.Now}
	if initialised(st.Nodes) {
		t.Fatal("initialised before the first list")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		a.reflect(ctx, "node", server, &corev1.Node{}, s)
		close(ended)
	}()
	defer func() { cancel(); <-ended }()
	<-st.Nodes.Initialized()
	if got := names(st.Nodes); got != "a b" {
		t.Fatalf("initialised with %q", got)
	}
	_, rev, _ := st.Nodes.Snapshot().Get("a")
	server.Modify(node("a", "10.0.1.0/24")) // a heartbeat: nothing we keep changes
	server.Add(node("c", "10.0.3.0/24"))
	server.Delete(node("b", ""))
	eventually(t, "b gone, c there", func() bool { return names(st.Nodes) == "a c" })
	if _, now, _ := st.Nodes.Snapshot().Get("a"); now != rev {
		t.Error("a heartbeat wrote the row again")
	}
	server.Modify(node("c", "nonsense"))
	eventually(t, "problem raised", func() bool { return names(st.Problems) == "kube/node c" })
	if n, _, _ := st.Nodes.Snapshot().Get("c"); n.PodCIDR(false).String() != "10.0.3.0/24" {
		t.Errorf("bad object replaced the previous row: %+v", n)
	}
	server.Modify(node("c", "10.0.4.0/24"))
	eventually(t, "problem cleared", func() bool { return names(st.Problems) == "" })
}

// A list after an outage removes what is gone and keeps what cannot be read.
func TestReplace(t *testing.T) {
	st := state.New()
	s := &store[*corev1.Node, state.Node]{kind: nodes(TablesOf(st)), problems: st.Problems, done: func() {}, now: time.Now}
	transform := s.Transformer()
	var initial []any
	for _, n := range []*corev1.Node{node("a", "10.0.1.0/24"), node("b", "10.0.2.0/24"), node("c", "10.0.3.0/24")} {
		o, err := transform(n)
		if err != nil {
			t.Fatal(err)
		}
		initial = append(initial, o)
	}
	if err := s.Replace(initial, "1"); err != nil {
		t.Fatal(err)
	}
	rev := st.Nodes.Snapshot().Revision()
	if err := s.Replace(slices.Clone(initial), "2"); err != nil {
		t.Fatal(err)
	}
	if now := st.Nodes.Snapshot().Revision(); now != rev {
		t.Errorf("the same list wrote rows: revision %d, was %d", now, rev)
	}
	if err := s.Replace([]any{node("a", "10.0.9.0/24"), node("b", "broken")}, "3"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for n := range st.Nodes.Snapshot().All() {
		got = append(got, n.Name+"="+n.PodCIDR(false).String())
	}
	if want := []string{"a=10.0.9.0/24", "b=10.0.2.0/24"}; !slices.Equal(got, want) {
		t.Errorf("rows %v, want %v", got, want)
	}
	if got := names(st.Problems); got != "kube/node b" {
		t.Errorf("problems %q", got)
	}
	if err := s.Replace(nil, "4"); err != nil || st.Nodes.Snapshot().Len() != 0 || st.Problems.Snapshot().Len() != 0 {
		t.Errorf("empty list left %q, problems %q, %v", names(st.Nodes), names(st.Problems), err)
	}
}

func nodeYAML(name, cidr string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [%s]}\n", name, cidr)
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		aside := filepath.Join(dir, "."+name)
		if err := os.WriteFile(aside, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("nodes.yaml", nodeYAML("a", "10.0.1.0/24")+"---\n# nothing here\n---\n"+nodeYAML("b", "10.0.2.0/24"))
	write("bad.yaml", "kind: Nonsense")
	st := state.New()
	d := NewDirectory(dir, TablesOf(st), quiet())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	bad := "kube/file " + filepath.Join(dir, "bad.yaml")
	eventually(t, "rows of the good file", func() bool { return names(st.Nodes) == "a b" && names(st.Problems) == bad })
	if initialised(st.Nodes) || initialised(st.Services) {
		t.Fatal("initialised although a file has never been read")
	}
	write("bad.yaml", sliceYAML("web-1", "[{addresses: [10.0.0.1]}]"))
	eventually(t, "initialised once every file is read", func() bool {
		return initialised(st.Nodes) && initialised(st.Services) && initialised(st.EndpointSlices) && names(st.Problems) == ""
	})
	if got := names(st.EndpointSlices); got != "shop/web-1" {
		t.Errorf("slices %q", got)
	}
	write("nodes.yaml", nodeYAML("a", "10.0.1.0/24")+"  taints: broken\n")
	eventually(t, "problem of the broken file", func() bool { return strings.HasSuffix(names(st.Problems), "nodes.yaml") })
	if got := names(st.Nodes); got != "a b" {
		t.Errorf("nodes %q after a bad write, want the previous", got)
	}
	write("nodes.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: c}}\n")
	eventually(t, "rows of the new content", func() bool { return names(st.Nodes) == "c" && names(st.Problems) == "" })
	write("twice.yaml", nodeYAML("c", "10.0.7.0/24"))
	eventually(t, "an object in two files", func() bool { return names(st.Problems) == "static/Node c" })
	if err := os.Remove(filepath.Join(dir, "nodes.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other file counts", func() bool {
		n, _, ok := st.Nodes.Snapshot().Get("c")
		return ok && n.PodCIDR(false).String() == "10.0.7.0/24" && names(st.Problems) == ""
	})
}

func TestParseObjectsRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"a: [":                                    "document 1",
		"foo: bar":                                "has no apiVersion and kind",
		"apiVersion: v1\nkind: Secret":            `kind "Secret": accepted: v1 Node`,
		"apiVersion: v1\nkind: Node":              "metadata.name is empty",
		nodeYAML("a", "x") + "state: {}":          `unknown field "state"`,
		nodeYAML("a", "x") + "---\n- 1":           "document 2",
		"apiVersion: v1\nkind: List\nitems: [{}]": "items[0]: has no apiVersion",
	} {
		if _, err := ParseObjects([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

func FuzzParseObjects(f *testing.F) {
	f.Add([]byte(nodeYAML("a", "10.0.0.0/24") + "---\n" + sliceYAML("b", "[{addresses: [10.0.0.1]}]")))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: b}, annotations: {strait.dev/addresses: 10.0.0.1}}\nspec: {containers: [{ports: [{name: x, containerPort: 7}]}]}\n" +
		"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n, annotations: {policy.strait.dev/enforcement: always}}"))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 1}]}}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := ParseObjects(b)
		if err != nil {
			return
		}
		for _, o := range objects {
			switch o := o.(type) {
			case *corev1.Node:
				_, _ = ToNode(o)
			case *corev1.Service:
				_, _ = ToService(o)
			case *discoveryv1.EndpointSlice:
				_, _, _ = ToEndpointSlice(o)
			case *corev1.Pod:
				_, _, _ = ToPod(o)
			case *corev1.Namespace:
				_, _ = ToNamespace(o)
			}
		}
	})
}
