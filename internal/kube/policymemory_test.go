package kube

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// agentOf is what a newly started agent knows: the memory's file, and the objects it reads at once.
func agentOf(t *testing.T, file string, objects ...any) (*state.State, *store[*networkingv1.NetworkPolicy, state.Policy]) {
	t.Helper()
	st := state.New()
	tables := TablesOf(st)
	var err error
	if tables.Memory, err = OpenPolicyMemory(file); err != nil {
		t.Fatal(err)
	}
	s := newStore(st, policies(tables, policy.NetworkPolicy, ToNetworkPolicy))
	if err := s.Replace(objects, ""); err != nil {
		t.Fatal(err)
	}
	return st, s
}

// np is a policy for pods with a label, refused if that has a space in it.
func np(uid types.UID, generation int64, app string) *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: uid, Generation: generation}}
	o.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
	return o
}

// What an object said before it was refused is enforced by agents that have never read it, until it is put right, or is another one.
func TestMemoryOfRefusedPolicies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "refused.json")
	expect := func(when string, st *state.State, want string) {
		t.Helper()
		row, _, _ := st.Policies.Snapshot().Get("NetworkPolicy/a/p")
		got, _, _ := strings.Cut(showRow(row), " refused: ")
		if got != want {
			t.Errorf("%s: %s\nwant %s", when, got, want)
		}
	}
	const before = "[0 pods app=web in namespace a audit=false]"
	st, s := agentOf(t, file, np("u", 1, "web"))
	if err := s.Add(np("u", 2, "no good")); err != nil {
		t.Fatal(err)
	}
	expect("refused", st, "NetworkPolicy/a/p generation 2 enforced 1 "+before)
	st, _ = agentOf(t, file, np("u", 2, "no good"))
	expect("after a restart", st, "NetworkPolicy/a/p generation 2 enforced 1 "+before)
	st, _ = agentOf(t, file, np("u", 3, "not better"))
	expect("after another restart, refused anew", st, "NetworkPolicy/a/p generation 3 enforced 1 "+before)
	st, _ = agentOf(t, file, np("v", 1, "no good"))
	expect("another object of the name", st, "NetworkPolicy/a/p generation 1 enforced 0")
	st, s = agentOf(t, file, np("u", 1, "web"))
	if err := s.Add(np("u", 2, "no good")); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(np("u", 3, "db")); err != nil {
		t.Fatal(err)
	}
	expect("put right", st, "NetworkPolicy/a/p generation 3 enforced 3 [0 pods app=db in namespace a audit=false]")
	st, s = agentOf(t, file, np("u", 4, "no good"))
	expect("refused while no agent ran: nobody knows what it said", st, "NetworkPolicy/a/p generation 4 enforced 0")

	for what, remove := range map[string]func() error{
		"deleted":               func() error { return s.Delete(np("u", 6, "no good")) },
		"gone from a list":      func() error { return s.Replace(nil, "") },
		"gone without an agent": func() error { agentOf(t, file); return nil },
	} {
		_, s = agentOf(t, file, np("u", 5, "web"))
		if err := s.Add(np("u", 6, "no good")); err != nil {
			t.Fatal(err)
		}
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		st, _ = agentOf(t, file, np("u", 6, "no good"))
		expect(what, st, "NetworkPolicy/a/p generation 6 enforced 0")
	}
}

// Files are read by later versions: what is written keeps its meaning.
func TestMemoryOfPoliciesKeepsItsMeaning(t *testing.T) {
	const text = `[{"Kind":"CiliumNetworkPolicy","Namespace":"a","Name":"p","UID":"u","Generation":7,"Enforced":6,"Refused":"spec.x: unknown","Specs":[
		{"Ref":{"Kind":"CiliumNetworkPolicy","Namespace":"a","Name":"p"},"Spec":1,"Tier":2,"Priority":5,"Node":true,"Audit":true,
		"Subject":{"Kind":1,"Requirements":[{"Source":4,"Key":"k","Op":1,"Values":["v"]}],"CIDR":""},
		"Ingress":{"Isolates":true,"Rules":[{"Path":"specs[1].ingress[0]","Action":1,"Peers":[],"Ports":[{"Protocol":17,"First":53,"Last":54}]},{"Action":2,"Peers":null,"Ports":null}]},
		"Egress":{"Rules":[{"Peers":[{"Kind":2,"CIDR":"10.0.0.0/8","Except":["10.1.0.0/16"],"Everyone":true},{"Kind":3,"CIDR":"","Entity":"world"},{"Kind":4,"CIDR":"","Service":"a/s"},
			{"Kind":0,"CIDR":"","Requirements":[{"Source":0,"Op":2},{"Source":1,"Op":3},{"Source":2,"Op":0,"Values":["n"]},{"Source":3},{"Source":5}]}]}]}}]}]`
	selector := func(kind policy.SelectorKind, requirements ...policy.Requirement) policy.Selector {
		return policy.Selector{Kind: kind, Requirements: requirements}
	}
	cidr, entity, service := selector(policy.SelectCIDR), selector(policy.SelectEntity), selector(policy.SelectService)
	cidr.CIDR, cidr.Except, cidr.Everyone = netip.MustParsePrefix("10.0.0.0/8"), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, true
	entity.Entity, service.Service = policy.EntityWorld, "a/s"
	want := state.Policy{
		Ref: policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "a", Name: "p"}, UID: "u", Generation: 7, Enforced: 6, Refused: "spec.x: unknown",
		Specs: []policy.Policy{{
			Ref: policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "a", Name: "p"}, Spec: 1, Tier: policy.Baseline, Priority: 5, Node: true, Audit: true,
			Subject: selector(policy.SelectNodes, policy.Requirement{Source: policy.NodeLabel, Key: "k", Op: policy.NotIn, Values: []string{"v"}}),
			Ingress: policy.Direction{Isolates: true, Rules: []policy.Rule{
				{Path: "specs[1].ingress[0]", Action: policy.Deny, Peers: []policy.Selector{}, Ports: []policy.Port{{Protocol: policy.UDP, First: 53, Last: 54}}},
				{Action: policy.Pass},
			}},
			Egress: policy.Direction{Rules: []policy.Rule{{Action: policy.Allow, Peers: []policy.Selector{cidr, entity, service, selector(policy.SelectPods,
				policy.Requirement{Source: policy.PodLabel, Op: policy.Exists}, policy.Requirement{Source: policy.NamespaceLabel, Op: policy.DoesNotExist},
				policy.Requirement{Source: policy.NamespaceName, Op: policy.In, Values: []string{"n"}},
				policy.Requirement{Source: policy.ServiceAccount}, policy.Requirement{Source: policy.ClusterName})}}}},
		}},
	}
	file := filepath.Join(t.TempDir(), "refused.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as it is here, and as it is written
		m, err := OpenPolicyMemory(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, m.rows[want.Key()], cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Fatal(diff)
		}
		m.failed = true
		if err := m.note(want); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMemoryOfPoliciesSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "refused.json")
	if err := os.WriteFile(file, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := OpenPolicyMemory(file)
	if err == nil || !strings.Contains(err.Error(), "read what refused policies said before: ") {
		t.Errorf("a broken file: %v", err)
	}
	m.path = filepath.Join(file, "below-a-file")
	row := state.Policy{Refused: "x", Specs: []policy.Policy{{}}}
	if err := m.note(row); err == nil || !strings.Contains(err.Error(), "keep what refused policies said before: ") {
		t.Errorf("a file that cannot be written: %v", err)
	}
	m.path = file
	if err := m.note(row); err != nil {
		t.Errorf("the same row when it can be written: %v", err)
	}
	if again, err := OpenPolicyMemory(file); err != nil || len(again.rows) != 1 {
		t.Errorf("kept: %v, %v", again.rows, err)
	}
}
