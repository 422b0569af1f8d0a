package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

func FuzzNetworkPolicy(f *testing.F) {
	const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: "
	f.Add([]byte(head + `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, ` +
		`{namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b, c]}]}, podSelector: {}}], ports: [{port: http}, {port: 1, endPort: 9, protocol: SCTP}, {}]}], egress: [{}]}`))
	f.Add([]byte(head + `{ingress: [{from: [{}], ports: [{endPort: 7}, {port: -1}]}]}`))
	f.Add([]byte(head + `{egress: [{to: [{ipBlock: {cidr: "::/0", except: ["2001:db8::/32", "::/1"]}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := ParseObjects(b)
		if err != nil {
			return
		}
		for _, o := range objects {
			if o, is := o.(*networkingv1.NetworkPolicy); is {
				row, ok, err := toPolicy(o, policy.NetworkPolicy, ToNetworkPolicy)
				checkRow(t, o, row, ok, err)
				for _, p := range row.Specs {
					if p.Tier != policy.Normal || !p.Ingress.Isolates && p.Ingress.Rules != nil || !p.Egress.Isolates && p.Egress.Rules != nil {
						t.Errorf("%+v", p)
					}
				}
			}
		}
	})
}

func FuzzClusterNetworkPolicy(f *testing.F) {
	const head = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: "
	f.Add([]byte(head + `{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{name: x, action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}], ` +
		`protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {range: {start: 1, end: 2}}}}]}], egress: [{action: Deny, to: [{networks: [10.0.0.0/8, "::/0"]}, {nodes: {}}]}]}`))
	f.Add([]byte(head + `{tier: Baseline, priority: -1, subject: {}, egress: [{action: Allow, to: [{domainNames: ["*.a"]}, {}], protocols: []}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := ParseObjects(b)
		if err != nil {
			return
		}
		for _, o := range objects {
			if o, is := o.(*policyv1alpha2.ClusterNetworkPolicy); is {
				row, ok, err := toPolicy(o, policy.ClusterNetworkPolicy, ToClusterNetworkPolicy)
				checkRow(t, o, row, ok, err)
				for _, p := range row.Specs {
					if p.Tier == policy.Normal || p.Priority < 0 || p.Priority > maxPriority || p.Ingress.Isolates || p.Egress.Isolates {
						t.Errorf("%+v", p)
					}
				}
			}
		}
	})
}

// checkRow holds a row against what everybody behind it relies on.
func checkRow(t *testing.T, o metav1.Object, row state.Policy, ok bool, err error) {
	t.Helper()
	if !ok || row.Name != o.GetName() || row.Namespace != o.GetNamespace() {
		t.Fatalf("row %+v of %s", row, objectName(o))
	}
	if row.Refused != "" {
		if err == nil || len(row.Specs) != 0 || row.Enforced != 0 || !strings.Contains(row.Refused, ": ") {
			t.Errorf("refused with %v, %+v", err, row)
		}
		return
	}
	if row.Enforced != row.Generation {
		t.Errorf("generation %d, enforced %d", row.Generation, row.Enforced)
	}
	for i, p := range row.Specs {
		if p.Ref != row.Ref || p.Spec != i {
			t.Errorf("%v, spec %d, of %v", p.Ref, p.Spec, row.Ref)
		}
		checkSelector(t, p.Subject)
		paths := map[string]bool{}
		for _, r := range slices.Concat(p.Ingress.Rules, p.Egress.Rules) {
			if r.Path == "" || paths[r.Path] || r.Peers != nil && len(r.Peers) == 0 || r.Ports != nil && len(r.Ports) == 0 || p.Tier == policy.Normal && r.Action == policy.Pass {
				t.Errorf("rule %+v", r)
			}
			paths[r.Path] = true
			for _, s := range r.Peers {
				checkSelector(t, s)
			}
			for _, port := range r.Ports {
				if port.First > port.Last || port.First == 0 && port.Last != 0 || port.Name != "" && port.Last != 0 {
					t.Errorf("port %+v", port)
				}
			}
		}
	}
}

func checkSelector(t *testing.T, s policy.Selector) {
	t.Helper()
	for _, r := range s.Requirements {
		values := slices.Clone(r.Values)
		slices.Sort(values)
		if want := r.Op == policy.In || r.Op == policy.NotIn; want != (len(values) > 0) || !slices.Equal(slices.Compact(values), r.Values) {
			t.Errorf("requirement %+v", r)
		}
		if named := r.Source == policy.NamespaceName; named != (r.Key == "") {
			t.Errorf("requirement %+v", r)
		}
	}
	if isCIDR := s.Kind == policy.SelectCIDR; isCIDR != s.CIDR.IsValid() {
		t.Errorf("selector %+v", s)
	}
	for _, p := range append([]netip.Prefix{s.CIDR}, s.Except...) {
		if p.IsValid() && (p != p.Masked() || p.Addr().Is4In6()) || !p.IsValid() && p != s.CIDR {
			t.Errorf("prefix %v of %+v", p, s)
		}
	}
	for _, e := range s.Except {
		if !s.CIDR.Contains(e.Addr()) || e.Bits() <= s.CIDR.Bits() {
			t.Errorf("%v is no part of %v", e, s.CIDR)
		}
	}
}
