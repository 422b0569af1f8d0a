package status_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

var (
	dbRef      = policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "db"}
	tenantsRef = policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "tenants"}
	brokenRef  = policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "shop", Name: "broken"}
	twoRef     = policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "shop", Name: "two"}
	watchRef   = policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "watch"}
)

// labelled selects pods of the namespace shop by their label app.
func labelled(app string) policy.Selector {
	return policy.Selector{Kind: policy.SelectPods, Requirements: []policy.Requirement{
		{Source: policy.NamespaceName, Op: policy.In, Values: []string{"shop"}}, {Source: policy.PodLabel, Key: "app", Op: policy.In, Values: []string{app}}}}
}

func allow(path string, port uint16, peers ...policy.Selector) policy.Rule {
	return policy.Rule{Path: path, Action: policy.Allow, Peers: peers, Ports: []policy.Port{{Protocol: policy.TCP, First: port, Last: port}}}
}

// guardedShop is node n1 with the database db-0, and web-1 elsewhere.
func guardedShop() *state.State {
	st := state.New()
	labels := func(app string) policy.Labels { return policy.NewLabels(map[string]string{"app": app}) }
	st.Nodes.Insert(
		state.Node{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		state.Node{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	st.Namespaces.Insert(state.Namespace{Name: "shop"})
	st.Pods.Insert(
		state.Pod{Namespace: "shop", Name: "db-0", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")}, Labels: labels("db"),
			Ports: []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Port: 5432}}},
		state.Pod{Namespace: "shop", Name: "db-1", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.6")}, Labels: labels("db"), Audit: true},
		state.Pod{Namespace: "shop", Name: "web-1", Node: "n2", Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.5"), netip.MustParseAddr("fd00::2:5")}, Labels: labels("web")},
		state.Pod{Namespace: "shop", Name: "late", Node: "n2"},
		state.Pod{Namespace: "shop", Name: "logger", Node: "n2", HostNetwork: true, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	db := policy.Policy{Ref: dbRef, Tier: policy.Normal, Subject: labelled("db"), Ingress: policy.Direction{Isolates: true, Rules: []policy.Rule{
		allow("spec.ingress[0]", 5432, labelled("web")), allow("spec.ingress[1]", 9100, policy.Selector{Kind: policy.SelectCIDR, CIDR: netip.MustParsePrefix("10.20.0.0/16"), Everyone: true})}}}
	first := policy.Policy{Ref: twoRef, Tier: policy.Normal, Subject: labelled("db"), Egress: policy.Direction{Rules: []policy.Rule{allow("specs[0].egress[0]", 53, labelled("dns"))}}}
	second := policy.Policy{Ref: twoRef, Spec: 1, Tier: policy.Normal, Subject: labelled("web"), Egress: policy.Direction{Rules: []policy.Rule{allow("specs[1].egress[0]", 53, labelled("dns"))}}}
	tenants := policy.Policy{Ref: tenantsRef, Tier: policy.Admin, Priority: 10, Subject: policy.Selector{Kind: policy.SelectPods}, Ingress: policy.Direction{Rules: []policy.Rule{
		{Path: "spec.ingress[0]", Name: "no-b", Action: policy.Deny, Peers: []policy.Selector{{Kind: policy.SelectEntity, Entity: policy.EntityWorld}}}}}}
	watch := policy.Policy{Ref: watchRef, Tier: policy.Normal, Subject: labelled("web"), Audit: true, Ingress: policy.Direction{Isolates: true}}
	st.Policies.Insert(
		state.Policy{Ref: dbRef, Generation: 2, Enforced: 2, Specs: []policy.Policy{db}},
		state.Policy{Ref: twoRef, Generation: 1, Enforced: 1, Specs: []policy.Policy{first, second}},
		state.Policy{Ref: tenantsRef, Generation: 1, Enforced: 1, Specs: []policy.Policy{tenants}},
		state.Policy{Ref: brokenRef, Generation: 5, Enforced: 0, Refused: "spec.ingress[0].toPorts[0].rules: not supported"},
		state.Policy{Ref: watchRef, Generation: 1, Enforced: 1, Specs: []policy.Policy{watch}})
	st.Programs.Insert(state.Program{ID: 0x500, Policies: []policy.Ref{twoRef, tenantsRef, dbRef}, Pods: []string{"shop/db-0", "shop/db-1"}, Entries: 6})
	st.Identities.Insert(
		state.Identity{Prefix: netip.MustParsePrefix("10.2.0.5/32"), ID: 0x700, Kind: policy.PodPeer, Pod: "shop/web-1", Matches: policy.Matches{{Selector: labelled("web").Key()}}},
		state.Identity{Prefix: netip.MustParsePrefix("192.0.2.0/24"), ID: 0x701, Kind: policy.WorldPeer},
		state.Identity{Prefix: netip.MustParsePrefix("10.2.0.0/16"), ID: identity.Unknown, Kind: policy.UnknownPeer})
	return st
}

var began = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

func counted(ref policy.Ref, way policy.Way, path string, packets uint64) status.RuleCount {
	return status.RuleCount{Rule: policy.RuleRef{Ref: ref, Way: way, Path: path}, Count: localapi.Count{Packets: packets, Bytes: packets * 60}, Since: began}
}

func counters() ([]status.RuleCount, error) {
	return []status.RuleCount{
		counted(dbRef, policy.Ingress, "spec.ingress[0]", 100), counted(dbRef, policy.Ingress, "", 7), counted(tenantsRef, policy.Ingress, "spec.ingress[0]", 3),
		counted(policy.Ref{Kind: policy.Builtin, Name: policy.DefaultAllow}, policy.Egress, "", 1000), counted(watchRef, policy.Ingress, "", 2),
	}, nil
}

func provider(st *state.State, p status.PolicySources) localapi.Provider {
	if p.Rules == nil {
		p.Rules = counters
	}
	return status.Provider(status.Sources{State: st, Node: "n1", Policy: p})
}

func TestPolicies(t *testing.T) {
	for _, tc := range []struct {
		name    string
		sources status.PolicySources
		change  func(*state.State)
		want    []string
	}{
		{name: "refused first, then in the order of decision", want: []string{
			"CiliumNetworkPolicy shop/broken  refused (spec.ingress[0].toPorts[0].rules: not supported) pods 0 rules 0 allowed 0 denied 0",
			"ClusterNetworkPolicy tenants admin enforced pods 2 rules 1 allowed 0 denied 3",
			"NetworkPolicy shop/db normal enforced pods 2 rules 2 allowed 100 denied 7",
			"CiliumNetworkPolicy shop/two normal enforced pods 2 rules 2 allowed 0 denied 0",
			"NetworkPolicy shop/watch normal audited pods 0 rules 0 allowed 0 denied 2"}},
		{name: "a program that does not fit, whose pods keep another", change: func(st *state.State) {
			st.Programs.Insert(state.Program{ID: 0x501, Policies: []policy.Ref{dbRef}, Pods: []string{"shop/db-0"}, Error: "no room"})
			st.Policies.Delete(state.Policy{Ref: brokenRef}.Key(), state.Policy{Ref: tenantsRef}.Key(), state.Policy{Ref: watchRef}.Key())
		}, want: []string{
			"NetworkPolicy shop/db normal failed (no room) pods 2 rules 2 allowed 100 denied 7",
			"CiliumNetworkPolicy shop/two normal enforced pods 2 rules 2 allowed 0 denied 0"}},
		{name: "mode never", sources: status.PolicySources{Mode: policy.ModeNever}, change: func(st *state.State) {
			st.Policies.Delete(state.Policy{Ref: brokenRef}.Key(), state.Policy{Ref: tenantsRef}.Key(), state.Policy{Ref: watchRef}.Key(), state.Policy{Ref: twoRef}.Key())
		}, want: []string{"NetworkPolicy shop/db normal off pods 2 rules 2 allowed 100 denied 7"}},
		{name: "audit everywhere", sources: status.PolicySources{Audit: true}, change: func(st *state.State) {
			st.Policies.Delete(state.Policy{Ref: brokenRef}.Key(), state.Policy{Ref: tenantsRef}.Key(), state.Policy{Ref: watchRef}.Key(), state.Policy{Ref: twoRef}.Key())
		}, want: []string{"NetworkPolicy shop/db normal audited pods 2 rules 2 allowed 100 denied 7"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := guardedShop()
			if tc.change != nil {
				tc.change(st)
			}
			rows, err := provider(st, tc.sources).Policies(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range rows {
				why := ""
				if p.Error != "" {
					why = " (" + p.Error + ")"
				}
				got = append(got, fmt.Sprintf("%s %s %s%s pods %d rules %d allowed %d denied %d", p.PolicyName, p.Tier, p.State, why, p.Pods, p.Rules, p.Allowed.Packets, p.Denied.Packets))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func ruleLine(r localapi.Rule) string {
	used := ""
	if r.InUse {
		used = " used"
	}
	if r.Audit {
		used += " audited"
	}
	if r.Shadowed != nil {
		used += " shadowed by " + r.Shadowed.String()
	}
	return fmt.Sprintf("%s %s %q %s %s; %s %d%s", r.PolicyName, r.Direction, r.Path, r.Action, strings.Join(r.Peers, ", "), strings.Join(r.Ports, ", "), r.Count.Packets, used)
}

func TestPolicyDetail(t *testing.T) {
	st := guardedShop()
	st.Programs.Insert(state.Program{ID: 0x501, Policies: []policy.Ref{dbRef}, Pods: []string{"shop/db-0"}, Error: "no room"})
	p := provider(st, status.PolicySources{})
	d, err := p.Policy(context.Background(), localapi.PolicyName{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"})
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, r := range d.RuleRows {
		rules = append(rules, ruleLine(r))
	}
	if diff := cmp.Diff([]string{
		`NetworkPolicy shop/db ingress "spec.ingress[0]" allow pods app=web in namespace shop; 5432/TCP 100 used`,
		`NetworkPolicy shop/db ingress "spec.ingress[1]" allow CIDR 10.20.0.0/16; 9100/TCP 0 used`,
		`NetworkPolicy shop/db ingress "" deny everybody; every port 7 used`,
	}, rules); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]localapi.SelectedPod{
		{Pod: "shop/db-0", Program: "0000000000000500", Entries: 6, Error: "no room"}, {Pod: "shop/db-1", Program: "0000000000000500", Entries: 6, Audit: true}}, d.Selected); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(d.Subjects, []string{"pods app=db in namespace shop"}) || !slices.Equal(d.Isolates, []string{"ingress"}) || d.Node != "n1" {
		t.Errorf("detail = %+v", d)
	}
	if _, err := p.Policy(context.Background(), localapi.PolicyName{Kind: "NetworkPolicy", Name: "db"}); !errors.Is(err, localapi.ErrNotFound) {
		t.Errorf("a policy that is not there: %v", err)
	}
}

// Of an object with several specs only those are in use that select a pod of this node; a rule that another one hides is named with it.
func TestRules(t *testing.T) {
	st := guardedShop()
	row, _, _ := st.Policies.Snapshot().Get(state.Policy{Ref: dbRef}.Key())
	spec := row.Specs[0]
	spec.Ingress.Rules = append(slices.Clone(spec.Ingress.Rules), allow("spec.ingress[2]", 5432, labelled("web")))
	row.Specs = []policy.Policy{spec}
	st.Policies.Insert(row)
	answer, err := provider(st, status.PolicySources{}).Rules(context.Background(), true)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range answer.Rules {
		got = append(got, ruleLine(r))
	}
	if diff := cmp.Diff([]string{
		`CiliumNetworkPolicy shop/two egress "specs[0].egress[0]" allow pods app=dns in namespace shop; 53/TCP 0 used`,
		`CiliumNetworkPolicy shop/two egress "specs[1].egress[0]" allow pods app=dns in namespace shop; 53/TCP 0`,
		`ClusterNetworkPolicy tenants ingress "spec.ingress[0]" deny entity world; every port 3 used`,
		`NetworkPolicy shop/db ingress "spec.ingress[0]" allow pods app=web in namespace shop; 5432/TCP 100 used`,
		`NetworkPolicy shop/db ingress "spec.ingress[1]" allow CIDR 10.20.0.0/16; 9100/TCP 0 used`,
		`NetworkPolicy shop/db ingress "spec.ingress[2]" allow pods app=web in namespace shop; 5432/TCP 0 used shadowed by NetworkPolicy shop/db spec.ingress[0]`,
		`NetworkPolicy shop/db ingress "" deny everybody; every port 7 used`,
		`NetworkPolicy shop/watch ingress "" deny everybody; every port 2 audited`,
	}, got); diff != "" {
		t.Error(diff)
	}
	if answer, _ := provider(st, status.PolicySources{}).Rules(context.Background(), false); slices.ContainsFunc(answer.Rules, func(r localapi.Rule) bool { return r.Shadowed != nil }) {
		t.Error("shadows without having been asked for them")
	}
}

func TestPolicyStatus(t *testing.T) {
	st := guardedShop()
	for _, pod := range []string{"db-0", "db-1", "quiet"} {
		st.Endpoints.Insert(state.Endpoint{ContainerID: pod, IfName: "eth0", Namespace: "shop", Pod: pod})
	}
	got := status.PolicyOf(st, status.PolicySources{})
	want := localapi.PolicyStatus{
		Enforcement: "default", Pods: 3, Selected: 2, Programs: 1, Identities: 3, Rules: 5, Packets: []localapi.VerdictCount{}, Objects: []localapi.PolicyCount{
			{Kind: "CiliumNetworkPolicy", State: "enforced", Count: 1}, {Kind: "CiliumNetworkPolicy", State: "refused", Count: 1},
			{Kind: "ClusterNetworkPolicy", State: "enforced", Count: 1},
			{Kind: "NetworkPolicy", State: "audited", Count: 1}, {Kind: "NetworkPolicy", State: "enforced", Count: 1}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	verdict := status.VerdictsOf(guardedShop(), status.PolicySources{})
	all, _ := counters()
	var words []string
	for _, c := range all {
		words = append(words, verdict(c.Rule))
	}
	if diff := cmp.Diff([]string{"allowed", "denied", "denied", "allowed", "audited"}, words); diff != "" {
		t.Error(diff)
	}
	if gone := verdict(policy.RuleRef{Ref: dbRef, Way: policy.Egress, Path: "spec.egress[9]"}); gone != "" {
		t.Errorf("a rule that is gone said %q", gone)
	}
}

// What the API says is compared with what pods are judged by: a pod whose label has changed, one that is on its way, one that has no room.
func TestCheckModel(t *testing.T) {
	st := guardedShop()
	for _, pod := range []string{"db-0", "db-1"} {
		st.Endpoints.Insert(state.Endpoint{ContainerID: pod, IfName: "eth0", Namespace: "shop", Pod: pod})
	}
	check := func() localapi.Check {
		t.Helper()
		var out localapi.Check
		if err := status.CheckModel(context.Background(), &out, st, status.PolicySources{}); err != nil {
			t.Fatal(err)
		}
		status.FinishCheck(&out)
		return out
	}
	// shop/two and tenants select both, as the program says.
	program, _, _ := st.Programs.Snapshot().Get(identity.ID(0x500).String())
	program.Policies = []policy.Ref{twoRef, tenantsRef, dbRef}
	st.Programs.Insert(program)
	if out := check(); len(out.Differences) != 0 || out.Rows != 2 {
		t.Errorf("of what agrees: %+v", out)
	}
	program.Policies = []policy.Ref{tenantsRef, dbRef}
	st.Programs.Insert(program)
	want := "is judged by ClusterNetworkPolicy tenants, NetworkPolicy shop/db, selected by CiliumNetworkPolicy shop/two, ClusterNetworkPolicy tenants, NetworkPolicy shop/db"
	if out := check(); len(out.Differences) != 2 || out.Differences[0].Key != "shop/db-0" || out.Differences[0].Text != want || out.Tables[0].Differences != 2 {
		t.Errorf("of a policy that is left out: %+v", out)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		program.Policies = []policy.Ref{twoRef, tenantsRef, dbRef}
		st.Programs.Insert(program)
	}()
	if out := check(); len(out.Differences) != 0 {
		t.Errorf("of a change on its way: %+v", out)
	}
	st.Programs.Insert(state.Program{ID: 0x501, Pods: []string{"shop/db-1"}, Error: "no room"})
	if out := check(); len(out.Differences) != 1 || out.Differences[0].Text != "keeps what it had: no room" {
		t.Errorf("of a program without room: %+v", out)
	}
}
