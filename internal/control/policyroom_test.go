package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/policy/eval/model"
	"github.com/strait-net/strait/internal/policy/eval/sample"
	"github.com/strait-net/strait/internal/state"
)

// portPerRule is a policy of n rules for everybody and n for one CIDR each, all with a port of their own: each CIDR needs a table of about n rows.
func portPerRule(subject string, n int) policy.Policy {
	p := onlyFrom("ports", subject)
	rule := func(i int, peers []policy.Selector) {
		p.Ingress.Rules = append(p.Ingress.Rules, policy.Rule{
			Path: fmt.Sprintf("spec.ingress[%d]", i), Peers: peers, Ports: []policy.Port{{Protocol: policy.TCP, First: uint16(2*i + 1), Last: uint16(2*i + 1)}},
		})
	}
	for i := range n {
		rule(i, nil)
	}
	for i := range n {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(i >> 8), byte(i), 0}), 24)
		rule(n+i, []policy.Selector{{Kind: policy.SelectCIDR, CIDR: cidr, Everyone: true}})
	}
	return p
}

func (r *kernelRig) problem(subject string) string {
	r.t.Helper()
	p, _, ok := r.st.Problems.Snapshot().Get("policy/" + subject)
	if !ok {
		r.t.Errorf("no problem with %s: %+v", subject, slices.Collect(r.st.Problems.Snapshot().All()))
	}
	return p.Text
}

// A policy that would need millions of rows is refused before they are made; what else has changed is enforced, and new pods are told why at once.
func TestPolicyWithATablePerPeer(t *testing.T) {
	r := newKernelRig(t, shop(), roomy)
	r.settle()
	before := r.kernel.Endpoints[netip.MustParseAddr("10.244.1.1")]
	next := shop()
	next.Policies = append(next.Policies, portPerRule("postgres", 2500), onlyFrom("near", "app", "postgres"))
	r.bring(next)
	begin := time.Now()
	r.settle()
	took := time.Since(begin)
	t.Logf("refused after %v", took)
	if took > 10*time.Second {
		t.Errorf("refused after %v", took)
	}
	const want = "needs more than the 131072 rows of strait_port that fit (maps.ports); what was enforced before stays for shop/db"
	if text := r.problem("policy NetworkPolicy shop/ports"); text != want {
		t.Errorf("problem: %s", text)
	}
	if now := r.kernel.Endpoints[netip.MustParseAddr("10.244.1.1")]; now != before || !r.allows("10.244.2.1", "10.244.1.1") || r.allows("8.8.8.8", "10.244.1.1") {
		t.Errorf("the database has program %x, had %x", now, before)
	}
	if r.allows("10.244.2.1", "10.244.1.2") {
		t.Error("a policy that fits is not enforced")
	}
	r.st.Pods.Insert(state.Pod{Namespace: "shop", Name: "second", UID: "uid-second", Labels: policy.NewLabels(map[string]string{"app": "postgres"})})
	r.feeds.close()
	r.run()
	begin = time.Now()
	err := r.attach("second", "10.244.1.7")
	var room *policy.NoRoom
	if !errors.As(err, &room) || err.Error() != "policy of pod shop/second: policy NetworkPolicy shop/ports: needs more than the 131072 rows of strait_port that fit (maps.ports)" {
		t.Errorf("admitted: %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("told so after %v", took)
	}
	if err := r.attach("third", "10.244.1.8"); err != nil {
		t.Errorf("another pod: %v", err)
	}
}

// groups adds pods to a cluster, each in a group of its own.
func groups(c *eval.Cluster, n int, names ...string) []string {
	for i := range n {
		names = append(names, fmt.Sprintf("group%d", i))
	}
	for i, name := range names {
		c.Pods = append(c.Pods, eval.Pod{
			Namespace: "shop", Name: name, Node: "n2", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 3, byte(i)})},
			Labels: policy.NewLabels(map[string]string{"app": name}),
		})
	}
	return names
}

// allowGroups is a cluster whose database lets in many groups, of which nobody is there yet; denied names one that an administrator keeps out.
func allowGroups(n int) *eval.Cluster {
	c := shop()
	names := groups(&eval.Cluster{}, n)
	c.Policies[0] = onlyFrom("db", "postgres", append(names, "app")...)
	open := policy.Policy{Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "evil"}, Tier: policy.Admin, Subject: labelled("app")}
	open.Ingress.Rules = []policy.Rule{{Path: "spec.ingress[0]", Action: policy.Deny, Peers: []policy.Selector{labelled("evil")}}}
	c.Policies = append(c.Policies, open)
	return c
}

// resize makes the tables larger or smaller.
func (r *kernelRig) resize(sizes config.Maps) {
	r.writer.Sizes, r.loop.Config.Maps, r.loop.peers.cfg.Maps = sizes, sizes, sizes
}

// retryNow makes what did not fit be tried again.
func (r *kernelRig) retryNow() {
	r.t.Helper()
	past := time.Unix(1, 0)
	for id, refused := range r.loop.refusals {
		refused.until = past
		r.loop.refusals[id] = refused
	}
	if !r.loop.peers.short.until.IsZero() {
		r.loop.peers.short.until = past
	}
	r.patient()
}

// When peers come for whom programs in use need more rows than there are, those who do not fit may do what everybody may, and nothing where somebody
// is denied; all else goes on, and they get their own when there is room.
func TestPeersThatDoNotFit(t *testing.T) {
	r := newKernelRig(t, allowGroups(200), roomy)
	r.settle()
	sizes := roomy
	sizes.Policies = 160 // of which peers may not have the last 10
	r.resize(sizes)
	next := allowGroups(200)
	groups(next, 200, "evil")
	next.Policies = append(next.Policies, onlyFrom("other", "other", "app"))
	next.Pods = append(next.Pods, eval.Pod{
		Namespace: "shop", Name: "other", Node: self, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.3")}, Labels: policy.NewLabels(map[string]string{"app": "other"}),
	})
	r.bring(next)
	r.settle()
	fit := 0
	for i := range 200 {
		if r.allows(fmt.Sprintf("10.244.3.%d", 1+i), "10.244.1.1") {
			fit++
		}
	}
	if fit < 130 || fit > 150 {
		t.Errorf("%d of 200 groups reach the database, of 150 rows", fit)
	}
	if r.allows("10.244.3.0", "10.244.1.2") || r.allows("10.244.3.0", "10.244.1.1") {
		t.Error("who is denied is let in for want of room")
	}
	if !r.allows("10.244.2.1", "10.244.1.1") || !r.allows("10.244.2.1", "10.244.1.2") || !r.allows("10.244.2.1", "10.244.1.3") || r.allows("8.8.8.8", "10.244.1.3") {
		t.Error("what fits is not in force")
	}
	text := r.problem("policy NetworkPolicy shop/db")
	if !strings.Contains(text, "rows of strait_policy that fit (maps.policies) to know shop/group") || !strings.Contains(text, " more;") {
		t.Errorf("problem: %s", text)
	}
	failed := 0
	for p := range r.st.Programs.Snapshot().All() {
		if strings.Contains(p.Error, "maps.policies") && slices.Contains(p.Pods, "shop/db") {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d programs say so", failed)
	}
	// Later changes go on as well.
	next = sample.Clone(next)
	next.Policies[len(next.Policies)-1] = onlyFrom("other", "other", "postgres")
	r.bring(next)
	r.patient()
	if r.allows("10.244.2.1", "10.244.1.3") || !r.allows("10.244.1.1", "10.244.1.3") {
		t.Error("a change after that is not in force")
	}
	// Half of the groups go: there is room, and nothing wrong any more.
	last := allowGroups(200)
	groups(last, 10, "evil")
	r.bring(last)
	r.settle()
	r.tidy()
	r.retryNow()
	r.tidy()
	for i := range 10 {
		if !r.allows(fmt.Sprintf("10.244.3.%d", 1+i), "10.244.1.1") {
			t.Errorf("group %d is not let in", i)
		}
	}
	if problems := slices.Collect(r.st.Problems.Snapshot().All()); len(problems) != 0 {
		t.Errorf("problems %+v", problems)
	}
	r.nothingMore()
}

// When the table of identities is full, pods without a row count as what is around them, unless that may do more than they.
func TestAddressesThatDoNotFit(t *testing.T) {
	r := newKernelRig(t, allowGroups(60), roomy)
	r.settle()
	sizes := roomy
	sizes.Identities = uint32(len(r.kernel.identities) + 20)
	r.resize(sizes)
	next := allowGroups(60)
	groups(next, 60, "evil")
	next.Policies = append(next.Policies, onlyFrom("near", "app", "postgres", "evil"))
	r.bring(next)
	r.settle()
	reach := func() (n int) {
		for i := range 60 {
			if r.allows(fmt.Sprintf("10.244.3.%d", 1+i), "10.244.1.1") {
				n++
			}
		}
		return n
	}
	if n := reach(); n < 15 || n > 20 {
		t.Errorf("%d of 60 groups reach the database, 20 rows were free", n)
	}
	if r.allows("10.244.3.0", "10.244.1.2") {
		t.Error("who is denied is let in for want of room")
	}
	if r.allows("10.244.2.1", "10.244.1.2") || !r.allows("10.244.1.1", "10.244.1.2") {
		t.Error("a policy that fits is not enforced")
	}
	if text := r.problem("strait_identity"); !strings.Contains(text, "(maps.identities)") || !strings.Contains(text, "shop/group") {
		t.Errorf("problem: %s", text)
	}
	r.problem("policy NetworkPolicy shop/db")
	// Only denied pods are left to be held back: nobody of the pods without a row may do what they may not.
	evil := allowGroups(60)
	groups(evil, 10)
	for i := range 40 {
		evil.Pods = append(evil.Pods, eval.Pod{
			Namespace: "shop", Name: fmt.Sprint("evil", i), Node: "n2", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 4, byte(i)})},
			Labels: policy.NewLabels(map[string]string{"app": "evil"}),
		})
	}
	r.bring(evil)
	r.settle()
	r.retryNow()
	for i := range 40 {
		if r.allows(fmt.Sprintf("10.244.4.%d", i), "10.244.1.2") {
			t.Errorf("evil%d is let in for want of room", i)
		}
	}
	if !r.allows("8.8.8.8", "10.244.1.2") || !r.allows("10.244.1.1", "10.244.1.2") {
		t.Error("who has a row, or is elsewhere, is stopped")
	}
	r.bring(allowGroups(60))
	r.settle()
	r.retryNow()
	r.tidy()
	if problems := slices.Collect(r.st.Problems.Snapshot().All()); len(problems) != 0 {
		t.Errorf("problems %+v", problems)
	}
	r.nothingMore()
}

// POL: whatever does not fit, nobody is let through whom policies stop, except by a pod that keeps what it had; nothing waits; and when there is
// room again everything is as if nothing had been.
func TestNobodyDeniedIsAllowedForWantOfRoom(t *testing.T) {
	seed, want := seedOf(t), casesOf(400)
	o := sample.Options{HostPolicy: true, Policies: 5, Pods: 6}
	short, judged := 0, 0
	for i := uint64(0); int(i) < want && !t.Failed(); i++ {
		r := rand.New(rand.NewPCG(seed, i))
		c := sample.Cluster(r, o)
		rig := newKernelRig(t, c, roomy)
		rig.settle()
		rig.tidy()
		full := roomy
		full.Policies = uint32(len(rig.kernel.policies) + r.IntN(8))
		full.Identities = uint32(len(rig.kernel.identities) + r.IntN(4))
		full.Ports = uint32(len(rig.kernel.ports) + r.IntN(8))
		rig.resize(full)
		for range 6 {
			next := sample.Relabel(r, o, c)
			if r.IntN(4) == 0 {
				next = sample.Repolicy(r, o, c)
			}
			rig.bring(next)
			rig.patient()
			if r.IntN(2) == 0 {
				rig.retryNow()
			}
			if !rig.loop.peers.short.until.IsZero() {
				short++
			}
			for _, e := range model.Expect(next, next, self, sample.Connections(r, next, 16)) {
				own, peer := e.Ends()
				if rig.keepsOld(own) {
					continue
				}
				got, err := rig.kernel.Judge(own, e.Way, peer, e.Conn.Protocol, e.Conn.Port)
				if judged++; err != nil || (got == nil || got.Allow) && e.After != nil && !e.After.Allow {
					t.Fatalf("STRAIT_SEED=%d, cluster %d: %s of %v: %s, %v, want %s\n%s", seed, i, e.Way, e.Conn, model.Show(got), err, model.Show(e.After), sample.Describe(next))
				}
			}
			c = next
		}
		rig.resize(roomy)
		rig.retryNow()
		rig.tidy()
		for _, e := range model.Expect(c, c, self, sample.Connections(r, c, 16)) {
			if err := e.Check(rig.kernel.Tables); err != nil {
				t.Fatalf("STRAIT_SEED=%d, cluster %d: with room again: %v\n%s", seed, i, err, sample.Describe(c))
			}
		}
		if n := rig.st.Problems.Snapshot().Len(); n != 0 {
			t.Fatalf("STRAIT_SEED=%d, cluster %d: %d problems with room again", seed, i, n)
		}
		rig.nothingMore()
	}
	t.Logf("%d connections judged, peers held back after %d changes", judged, short)
	if short == 0 {
		t.Error("peers always fit")
	}
}

// patient lets the loop work, and time pass for what is about to be removed.
func (r *kernelRig) patient() {
	r.t.Helper()
	for range 50 {
		r.loop.step(context.Background(), r.feeds)
		r.loop.retryAt = time.Time{}
		if !r.loop.unsettled {
			return
		}
		r.now = r.now.Add(2 * time.Second)
	}
	r.t.Fatalf("never settles: %+v", slices.Collect(r.st.Problems.Snapshot().All()))
}

// keepsOld reports whether the pod with an address, or the node, has not the program that it is to have.
func (r *kernelRig) keepsOld(own netip.Addr) bool {
	for l := range r.loop.subjects.everyone() {
		if l.refused != nil && (l.key == "" && r.kernel.Endpoints[own] == 0 || slices.Contains(l.addrs, own)) {
			return true
		}
	}
	return false
}

// A pod whose first program did not fit is judged as soon as it is to have none.
func TestPodWithoutAProgramThatFits(t *testing.T) {
	c := shop()
	sizes := roomy
	sizes.Policies = 1
	r := newKernelRig(t, c, sizes)
	r.settle()
	const db = "shop.db/eth0"
	if err := r.loop.subjects.admitted(db); err == nil || !strings.Contains(err.Error(), "maps.policies") {
		t.Errorf("admitted: %v", err)
	}
	c = sample.Clone(c)
	c.Policies = nil
	r.bring(c)
	r.settle()
	if err := r.loop.subjects.admitted(db); err != nil {
		t.Error(err)
	}
}
