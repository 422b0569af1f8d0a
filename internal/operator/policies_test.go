package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/enforcement"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// testAgent serves the report of a node from tables that the test writes.
type testAgent struct {
	*state.State
	server *httptest.Server
	bodies atomic.Int64 // reports sent whole
}

func newTestAgent(t *testing.T, node string, at netip.AddrPort) *testAgent {
	t.Helper()
	a := &testAgent{State: state.New()}
	a.Policies.Register("test")()
	a.Programs.Register("test")()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	handler := enforcement.Handler(enforcement.Tables{Node: node, State: a.State})
	a.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		if answer.Code == http.StatusOK {
			a.bodies.Add(1)
		}
		w.Header().Set("ETag", answer.Header().Get("ETag"))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})}}
	a.server.Start()
	t.Cleanup(a.server.Close)
	return a
}

// enforce makes the node say that it enforces a generation of an object.
func (a *testAgent) enforce(ref policy.Ref, uid string, generation int64) {
	a.Policies.Insert(state.Policy{Ref: ref, UID: uid, Generation: generation, Enforced: generation})
}

// policyRig is an API server with three nodes whose agents answer on loopback addresses.
type policyRig struct {
	rig
	port   uint16
	agents []*testAgent
}

const (
	clusterPolicies = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
	ciliumPolicies  = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"
)

func newPolicyRig(t *testing.T) *policyRig {
	t.Helper()
	cfg := kubetest.Start(t, nil).Config(kubetest.AdminToken)
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClientFor(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	r := &policyRig{rig: rig{t, admin, client}}
	for _, file := range []string{"policy.networking.k8s.io_clusternetworkpolicies.yaml", "cilium.io_ciliumnetworkpolicies.yaml"} {
		crd, err := os.ReadFile("../../deploy/helm/strait/files/crds/" + file)
		if err != nil {
			t.Fatal(err)
		}
		r.must(admin.RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
			SetHeader("Content-Type", "application/yaml").Body(crd).Do(t.Context()).Error())
	}
	for _, path := range []string{clusterPolicies, ciliumPolicies} {
		r.eventually("CRD served", func() bool { return admin.RESTClient().Get().AbsPath(path).Do(context.Background()).Error() == nil })
	}
	for i := range 3 {
		addr := netip.AddrFrom4([4]byte{127, 0, 7, byte(i + 1)})
		a := newTestAgent(t, fmt.Sprintf("node-%d", i), netip.AddrPortFrom(addr, r.port))
		r.port = uint16(a.server.Listener.Addr().(*net.TCPAddr).Port)
		r.agents = append(r.agents, a)
		r.node(fmt.Sprintf("node-%d", i), addr, nil)
	}
	r.node("new", netip.MustParseAddr("127.0.7.9"), []corev1.Taint{{Key: kube.NotReadyTaint, Effect: corev1.TaintEffectNoSchedule}})
	return r
}

func (r *policyRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *policyRig) node(name string, addr netip.Addr, taints []corev1.Taint) {
	r.t.Helper()
	_, err := r.admin.CoreV1().Nodes().Create(r.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}}},
	}, metav1.CreateOptions{})
	r.must(err)
}

// shownPolicy is what the tests look at of an object.
type shownPolicy struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Status   struct {
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

func (r *policyRig) get(path string) (o shownPolicy) {
	r.t.Helper()
	raw, err := r.admin.RESTClient().Get().AbsPath(path).DoRaw(r.t.Context())
	r.must(err)
	r.must(json.Unmarshal(raw, &o))
	return o
}

// says returns a condition as "True Reason generation: message".
func (r *policyRig) says(path, condition string) string {
	for _, c := range r.get(path).Status.Conditions {
		if c.Type == condition {
			return fmt.Sprintf("%s %s %d: %s", c.Status, c.Reason, c.ObservedGeneration, c.Message)
		}
	}
	return ""
}

func (r *policyRig) eventuallySays(path, condition, want string) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); r.says(path, condition) != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s of %s\n%s\nwant\n%s", condition, path, r.says(path, condition), want)
		}
	}
}

func (r *policyRig) post(path, body string) shownPolicy {
	r.t.Helper()
	r.must(r.admin.RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/yaml").Body([]byte(body)).Do(r.t.Context()).Error())
	return r.get(path + "/p")
}

func (r *policyRig) patch(path, body string) {
	r.t.Helper()
	r.must(r.admin.RESTClient().Patch(types.MergePatchType).AbsPath(path).Body([]byte(body)).Do(r.t.Context()).Error())
}

func (r *policyRig) enforce(ref policy.Ref, o shownPolicy, generation int64) {
	for _, a := range r.agents {
		a.enforce(ref, string(o.Metadata.UID), generation)
	}
}

// POL-8 on a real API server.
func TestPolicyConditions(t *testing.T) {
	r := newPolicyRig(t)
	stop := r.run(fmt.Sprintf("metricsAddress: \":%d\"\n", r.port), "one")
	ref := policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "p"}
	const path = clusterPolicies + "/p"
	o := r.post(clusterPolicies, "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}")
	r.agents[0].enforce(ref, string(o.Metadata.UID), 1)
	r.eventuallySays(path, "Enforced", "False Pending 1: enforced on 1/3 nodes at generation 1; node-1 does not know it yet; node-2 does not know it yet")
	if got := r.says(path, "Valid"); got != "True Accepted 1: all of generation 1 can be enforced" {
		t.Errorf("Valid %s", got)
	}
	r.patch(path+"/status", `{"status": {"conditions": [{"type": "Foreign", "status": "True", "reason": "Kept", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}]}}`)
	r.enforce(ref, o, 1)
	r.eventuallySays(path, "Enforced", "True Enforced 1: enforced on 3/3 nodes at generation 1")
	if got := r.says(path, "Foreign"); got != "True Kept 0: " {
		t.Errorf("condition of another: %s", got)
	}

	// While nothing changes nothing is written or sent.
	version, bodies := r.get(path).Metadata.ResourceVersion, r.agents[0].bodies.Load()
	time.Sleep(2*askEvery + askPause)
	if now := r.get(path).Metadata.ResourceVersion; now != version || r.agents[0].bodies.Load() != bodies {
		t.Errorf("written or sent while nothing changed: version %s, was %s; %d reports, were %d", now, version, r.agents[0].bodies.Load(), bodies)
	}

	r.patch(path, `{"spec": {"egress": [{"action": "Accept", "to": [{"domainNames": ["example.org"]}]}]}}`)
	r.eventuallySays(path, "Valid", `False Refused 2: spec.egress[0].to[0].domainNames: "example.org": not supported: want namespaces, pods, nodes or networks`)
	r.eventuallySays(path, "Enforced", "False Failed 2: generation 2 is refused; from before: enforced on 3/3 nodes at generation 1")
	r.eventually("event about the refusal", func() bool { return r.hasEvent("p", "PolicyRefused") })

	// Another operator takes over.
	_ = stop()
	r.run(fmt.Sprintf("metricsAddress: \":%d\"\n", r.port), "two")
	r.patch(path, `{"spec": {"egress": null}}`)
	r.enforce(ref, o, 3)
	r.eventuallySays(path, "Enforced", "True Enforced 3: enforced on 3/3 nodes at generation 3")
	if r.agents[0].bodies.Load() == bodies {
		t.Error("the other operator was sent nothing")
	}

	// An object made anew under the same name is another one.
	r.must(r.admin.RESTClient().Delete().AbsPath(path).Do(t.Context()).Error())
	o = r.post(clusterPolicies, "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}")
	r.eventuallySays(path, "Enforced", "False Pending 1: enforced on 0/3 nodes at generation 1; node-0 does not know it yet; node-1 does not know it yet; node-2 does not know it yet")
	r.agents[1].Programs.Insert(state.Program{ID: 1, Policies: []policy.Ref{ref}, Pods: []string{"default/web"}, Error: "strait_policy is full"})
	r.enforce(ref, o, 1)
	r.eventuallySays(path, "Enforced", "False Failed 1: enforced on 2/3 nodes at generation 1; node-1: strait_policy is full")

	t.Run("cilium.io", func(t *testing.T) { testCiliumConditions(r) })
	t.Run("object that is not the one", func(t *testing.T) {
		gone := state.PolicyObject{Policy: state.Policy{Ref: ref, UID: "from-before"}}
		if err := r.kube.SetPolicyConditions(t.Context(), gone, state.PolicyConditions{}); !strings.Contains(fmt.Sprint(err), kube.ErrRefused.Error()) {
			t.Errorf("another uid: %v", err)
		}
		gone.Name = "nobody"
		if err := r.kube.SetPolicyConditions(t.Context(), gone, state.PolicyConditions{}); !strings.Contains(fmt.Sprint(err), kube.ErrRefused.Error()) {
			t.Errorf("nobody: %v", err)
		}
	})
}

func testCiliumConditions(r *policyRig) {
	ref := policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "default", Name: "p"}
	const path = ciliumPolicies + "/p"
	o := r.post(ciliumPolicies, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {}, ingress: [{}]}")
	r.enforce(ref, o, 1)
	r.eventuallySays(path, "Enforced", "True Enforced 0: enforced on 3/3 nodes at generation 1")
	version := r.get(path).Metadata.ResourceVersion
	time.Sleep(askEvery + 2*askPause)
	if now := r.get(path).Metadata.ResourceVersion; now != version {
		r.t.Errorf("written while nothing changed: version %s, was %s", now, version)
	}
}

// Agents that are not asked, and those that stop answering.
func TestAgents(t *testing.T) {
	one := newTestAgent(t, "one", netip.MustParseAddrPort("127.0.8.1:0"))
	port := uint16(one.server.Listener.Addr().(*net.TCPAddr).Port)
	a, err := newAgents(fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	node := func(name, addr string, tainted bool) state.Node {
		return state.Node{Name: name, UID: "u-" + name, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Tainted: tainted}
	}
	nodes := []state.Node{node("one", "127.0.8.1", false), node("two", "127.0.8.2", false), node("new", "127.0.8.3", true)}
	object := state.Policy{Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "p"}, UID: "u", Generation: 1}
	one.enforce(object.Ref, "u", 1)
	expect := func(when string, now time.Time, nodes []state.Node, want string) {
		t.Helper()
		if got := a.ask(t.Context(), nodes, now).Conditions(object).Enforced.Message; got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	now := time.Now()
	expect("one answers", now, nodes, "enforced on 1/1 nodes at generation 1; 1 more nodes do not answer: two")
	one.server.Close()
	expect("it restarts", now.Add(silentAfter-time.Second), nodes, "enforced on 1/1 nodes at generation 1; 1 more nodes do not answer: two")
	expect("it is gone", now.Add(silentAfter+2*time.Second), nodes, "no agent says what it enforces; 2 more nodes do not answer: one, two")
	expect("its node is gone", now.Add(time.Minute), nodes[1:], "no agent says what it enforces; 1 more nodes do not answer: two")
	if asked := a.known["u-two"]; asked.failures == 0 || asked.failures > 4 || asked.next.Before(now) {
		t.Errorf("no back-off: %+v", asked)
	}
	for _, address := range []string{"", "127.0.0.1:9964", "10.0.0.1:9964", ":http"} {
		if _, err := newAgents(address); err == nil {
			t.Errorf("metricsAddress %q is accepted", address)
		}
	}
	for _, address := range []string{":9964", "0.0.0.0:9964", "[::]:9964"} {
		if _, err := newAgents(address); err != nil {
			t.Errorf("metricsAddress %q: %v", address, err)
		}
	}
}

// At most one write of a policy in a second, none of what has just been written, and none of what will be old in a moment.
func TestWhenConditionsAreWritten(t *testing.T) {
	now := time.Now()
	enforced := state.PolicyConditions{Enforced: state.PolicyCondition{True: true, Reason: enforcement.ReasonEnforced}}
	pending := state.PolicyConditions{Enforced: state.PolicyCondition{Reason: enforcement.ReasonPending}}
	at := func(ago time.Duration) time.Time { return now.Add(-ago) }
	for i, c := range []struct {
		memory memory
		want   state.PolicyConditions
		wait   bool
	}{
		{memory{since: now}, enforced, false},
		{memory{since: now}, pending, true},
		{memory{since: at(pendingAfter)}, pending, false},
		{memory{since: at(time.Hour), written: pending, writtenAt: at(conditionPause / 2)}, enforced, true},
		{memory{since: at(time.Hour), written: pending, writtenAt: at(conditionPause)}, enforced, false},
		{memory{since: at(time.Hour), written: enforced, writtenAt: at(2 * conditionPause)}, enforced, true},
		{memory{since: at(time.Hour), written: enforced, writtenAt: at(shownWithin)}, enforced, false},
	} {
		if got := c.memory.wait(c.want, now); got != c.wait {
			t.Errorf("case %d: %t, want %t", i, got, c.wait)
		}
	}
	if !slices.IsSorted([]time.Duration{askPause, conditionPause, askEvery, pendingAfter, silentAfter, shownWithin}) {
		t.Error("these times depend on each other")
	}
}
