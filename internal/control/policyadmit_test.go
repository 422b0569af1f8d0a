package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/state"
)

// shop is a cluster of two nodes: a database and an application here, an application there.
func shop() *eval.Cluster {
	at := netip.MustParseAddr
	pod := func(name, node, app, addr string) eval.Pod {
		return eval.Pod{Namespace: "shop", Name: name, Node: node, Addresses: []netip.Addr{at(addr)}, Labels: policy.NewLabels(map[string]string{"app": app})}
	}
	return &eval.Cluster{
		CIDRs:      []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Namespaces: []eval.Namespace{{Name: "shop"}},
		Nodes:      []eval.Node{{Name: self, Addresses: []netip.Addr{at("172.18.0.1")}}, {Name: "n2", Addresses: []netip.Addr{at("172.18.0.2")}}},
		Pods:       []eval.Pod{pod("db", self, "postgres", "10.244.1.1"), pod("near", self, "app", "10.244.1.2"), pod("far", "n2", "app", "10.244.2.1")},
		Policies:   []policy.Policy{onlyFrom("db", "postgres", "app")},
	}
}

func labelled(app string) policy.Selector {
	return policy.Selector{Requirements: []policy.Requirement{
		{Source: policy.NamespaceName, Op: policy.In, Values: []string{"shop"}}, {Source: policy.PodLabel, Key: "app", Op: policy.In, Values: []string{app}},
	}}
}

func onlyFrom(name, subject string, peers ...string) policy.Policy {
	p := policy.Policy{
		Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: name}, Tier: policy.Normal, Subject: labelled(subject),
		Ingress: policy.Direction{Isolates: true},
	}
	for i, peer := range peers {
		p.Ingress.Rules = append(p.Ingress.Rules, policy.Rule{Path: fmt.Sprintf("spec.ingress[%d]", i), Peers: []policy.Selector{labelled(peer)}})
	}
	return p
}

// allows looks a connection up in the tables.
func (r *kernelRig) allows(from, to string) bool {
	r.t.Helper()
	v, err := r.kernel.Judge(netip.MustParseAddr(to), policy.Ingress, netip.MustParseAddr(from), policy.TCP, 5432)
	if err != nil {
		r.t.Fatal(err)
	}
	return v == nil || v.Allow
}

// run runs the loop until the test ends.
func (r *kernelRig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	for _, table := range []interface{ Register(string) func() }{
		r.st.Pods, r.st.Namespaces, r.st.Policies, r.st.Nodes, r.st.Remotes, r.st.EndpointSlices,
	} {
		table.Register("test")()
	}
	go func() {
		defer close(done)
		_ = r.loop.Run(ctx)
	}()
	r.t.Cleanup(func() { cancel(); <-done })
	select {
	case <-r.loop.Ready():
	case <-time.After(10 * time.Second):
		r.t.Fatal("the loop does not get ready")
	}
}

// attach does what the keeper does for a new pod.
func (r *kernelRig) attach(name, addr string) error {
	row := state.Endpoint{
		ContainerID: "new." + name, IfName: "eth0", Namespace: "shop", Pod: name, PodUID: "uid-" + name, NetNS: "/x",
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Phase: state.EndpointAdding,
	}
	r.st.Endpoints.Insert(row)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.loop.Admit(ctx, row); err != nil {
		r.st.Endpoints.Delete(row.Key())
		return err
	}
	return nil
}

// CNI-3: when Admit returns the pod's program is in the kernel, and so is who it is: its first packet is judged as all others.
func TestAdmittedPodIsJudgedFromItsFirstPacket(t *testing.T) {
	r := newKernelRig(t, shop(), roomy)
	asked := 0
	r.loop.Fetch = func(_ context.Context, namespace, name string) (state.Pod, error) {
		asked++
		if name != "late" {
			return state.Pod{}, errors.New("not found")
		}
		return state.Pod{Namespace: namespace, Name: name, UID: "uid-late", Labels: policy.NewLabels(map[string]string{"app": "app"})}, nil
	}
	r.run()
	if !r.allows("10.244.2.1", "10.244.1.1") || !r.allows("10.244.1.2", "10.244.1.1") || r.allows("10.244.9.9", "10.244.1.1") || r.allows("8.8.8.8", "10.244.1.1") {
		t.Error("the database is open, or closed to its application")
	}
	// The table of pods knows it, without addresses.
	r.st.Pods.Insert(state.Pod{Namespace: "shop", Name: "second", UID: "uid-second", Labels: policy.NewLabels(map[string]string{"app": "postgres"})})
	r.kernel.addrs["new.second/eth0"] = nil // its rows come after
	if err := r.attach("second", "10.244.1.7"); err != nil {
		t.Fatal(err)
	}
	r.kernel.Endpoints[netip.MustParseAddr("10.244.1.7")] = r.kernel.Endpoints[netip.MustParseAddr("10.244.1.1")]
	if r.allows("8.8.8.8", "10.244.1.7") || !r.allows("10.244.2.1", "10.244.1.7") || asked != 0 {
		t.Error("the second database is not judged, or the API server was asked for nothing:", asked)
	}
	// Only the API server knows it: it is somebody to others at once.
	if err := r.attach("late", "10.244.1.8"); err != nil {
		t.Fatal(err)
	}
	if !r.allows("10.244.1.8", "10.244.1.1") || asked != 1 {
		t.Error("an admitted pod is not known as a peer")
	}
	// Nobody knows it, or it is another one.
	for _, name := range []string{"nobody", "far"} {
		if err := r.attach(name, "10.244.1.9"); !errors.Is(err, ErrUnknownPod) && name == "nobody" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Detached, its address is nobody's.
	r.st.Endpoints.Delete("new.late/eth0")
	for end := time.Now().Add(5 * time.Second); r.known("10.244.1.8/32"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an address is somebody's after its pod has gone")
		}
	}
}

func (r *kernelRig) known(prefix string) bool {
	_, _, ok := r.st.Identities.Snapshot().Get(prefix)
	return ok
}

// Without objects of pods, as with a static source, a pod has no labels and the namespace of its attachment.
func TestPodWithoutObject(t *testing.T) {
	c := shop()
	everything := policy.Policy{
		Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "all"}, Tier: policy.Normal, Ingress: policy.Direction{Isolates: true},
		Subject: policy.Selector{Requirements: labelled("x").Requirements[:1]},
	}
	c.Policies = append(c.Policies, everything)
	r := newKernelRig(t, c, roomy)
	r.run()
	if err := r.attach("plain", "10.244.1.7"); err != nil {
		t.Fatal(err)
	}
	row := state.Program{}
	for p := range r.st.Programs.Snapshot().All() {
		if slices.Contains(p.Pods, "shop/plain") {
			row = p
		}
	}
	if len(row.Policies) != 1 || row.Policies[0].Name != "all" || row.Entries == 0 {
		t.Errorf("program %+v", row)
	}
}

// What is being attached when the agent ends is told so.
func TestAdmitEndsWithItsContext(t *testing.T) {
	r := newKernelRig(t, shop(), roomy)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := r.loop.Admit(ctx, state.Endpoint{Namespace: "shop", Pod: "db"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Limits are said aloud, with the name of the policy; the pods concerned keep what they had, and all others get what they want.
func TestPolicyThatDoesNotFit(t *testing.T) {
	c := shop()
	sizes := roomy
	sizes.Policies = 40
	r := newKernelRig(t, c, sizes)
	r.settle()
	before := r.kernel.Endpoints[c.Pods[0].Addresses[0]]
	// One more peer in each of many groups: each is an identity that the new policy answers differently.
	next := shop()
	var groups []string
	for i := range 50 {
		group := fmt.Sprintf("group%d", i)
		groups = append(groups, group)
		next.Pods = append(next.Pods, eval.Pod{
			Namespace: "shop", Name: group, Node: "n2", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 3, byte(i)})},
			Labels: policy.NewLabels(map[string]string{"app": group}),
		})
	}
	next.Policies = append(next.Policies, onlyFrom("large", "postgres", groups...), onlyFrom("near", "app", "postgres"))
	r.bring(next)
	r.settle()
	if now := r.kernel.Endpoints[c.Pods[0].Addresses[0]]; now != before {
		t.Errorf("the database has program %x, had %x", now, before)
	}
	if !r.allows("10.244.2.1", "10.244.1.1") || r.allows("10.244.3.4", "10.244.1.1") {
		t.Error("what was enforced before is not any more")
	}
	if r.allows("10.244.2.1", "10.244.1.2") || !r.allows("10.244.1.1", "10.244.1.2") {
		t.Error("a policy that fits is not enforced")
	}
	problem, _, ok := r.st.Problems.Snapshot().Get("policy/policy NetworkPolicy shop/large")
	if !ok || !strings.Contains(problem.Text, "rows of strait_policy") || !strings.Contains(problem.Text, "(maps.policies)") || !strings.Contains(problem.Text, "shop/db") {
		t.Errorf("problem %+v of %v", problem, slices.Collect(r.st.Problems.Snapshot().All()))
	}
	failed := 0
	for p := range r.st.Programs.Snapshot().All() {
		if p.Error != "" {
			failed++
			if !slices.Equal(p.Pods, []string{"shop/db"}) {
				t.Errorf("failed program %+v", p)
			}
		}
	}
	if failed != 1 {
		t.Errorf("%d programs have failed", failed)
	}
	r.tidy()
	r.nothingMore()
	// A pod that is new has nothing to keep: it is not attached.
	r.st.Pods.Insert(state.Pod{Namespace: "shop", Name: "third", Labels: policy.NewLabels(map[string]string{"app": "postgres"})})
	r.feeds.close()
	r.run()
	if err := r.attach("third", "10.244.1.7"); err == nil || !strings.Contains(err.Error(), "maps.policies") {
		t.Errorf("admitted: %v", err)
	}
}

// When it fits again it is enforced, and nothing is wrong any more.
func TestPolicyThatFitsAgain(t *testing.T) {
	c := shop()
	sizes := roomy
	sizes.Policies = 12
	r := newKernelRig(t, c, sizes)
	r.settle()
	next := shop()
	for i := range 20 {
		group := fmt.Sprintf("group%d", i)
		next.Pods = append(next.Pods, eval.Pod{
			Namespace: "shop", Name: group, Node: "n2", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 3, byte(i)})},
			Labels: policy.NewLabels(map[string]string{"app": group}),
		})
		next.Policies[0].Ingress.Rules = append(next.Policies[0].Ingress.Rules, policy.Rule{Path: "spec.ingress[9]", Peers: []policy.Selector{labelled(group)}})
	}
	r.bring(next)
	r.settle()
	if len(slices.Collect(r.st.Problems.Snapshot().All())) != 1 {
		t.Fatal("no problem is reported")
	}
	r.tidy()
	r.bring(c)
	r.settle()
	r.tidy()
	if problems := slices.Collect(r.st.Problems.Snapshot().All()); len(problems) != 0 {
		t.Errorf("problems %+v", problems)
	}
	for p := range r.st.Programs.Snapshot().All() {
		if p.Error != "" {
			t.Errorf("program %+v", p)
		}
	}
	if !r.allows("10.244.2.1", "10.244.1.1") {
		t.Error("the application is shut out")
	}
}
