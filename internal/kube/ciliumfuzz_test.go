package kube

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// FuzzCiliumRule reads any bytes as a spec, as an API server may have stored them whose CRD is not ours.
func FuzzCiliumRule(f *testing.F) {
	files, err := filepath.Glob("testdata/cilium/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, document := range strings.Split(string(raw), "\n---\n") {
			var o struct{ Spec map[string]any }
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				f.Fatal(err)
			}
			spec, err := json.Marshal(o.Spec)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(spec)
		}
	}
	f.Add([]byte(`{"endpointSelector":{"matchLabels":{"k8s:a":1}},"ingress":[null,{"toPorts":[{"ports":[{"port":80}]}]}]}`))
	f.Add([]byte(`{"endpointSelector":{},"endpointSelector":{},"egress":{}}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		meta := metav1.ObjectMeta{Namespace: "a", Name: "p", Generation: 3}
		for _, o := range []metav1.Object{
			&ciliumv2.CiliumNetworkPolicy{ObjectMeta: meta, Spec: &ciliumv2.RawRule{JSON: spec}},
			&ciliumv2.CiliumClusterwideNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 3}, Specs: []ciliumv2.RawRule{{JSON: spec}}},
		} {
			row, err := readCilium(t, o)
			if row.Name != "p" || row.Generation != 3 {
				t.Fatalf("row %+v", row)
			}
			if (row.Refused != "") != (err != nil) {
				t.Fatalf("refused %q, %v", row.Refused, err)
			}
			if row.Refused != "" {
				if !strings.HasPrefix(row.Refused, "spec") || row.Specs != nil || row.Enforced != 0 {
					t.Errorf("refused: %+v", row)
				}
				continue
			}
			checkCiliumRow(t, row)
		}
	})
}

// checkCiliumRow holds what is accepted against what everybody behind it relies on.
func checkCiliumRow(t *testing.T, row state.Policy) {
	t.Helper()
	if row.Enforced != 3 || len(row.Specs) != 1 {
		t.Fatalf("row %+v", row)
	}
	p := row.Specs[0]
	if p.Tier != policy.Normal || p.Ref != row.Ref || p.Node && (row.Kind != policy.CiliumClusterwideNetworkPolicy || p.Subject.Kind != policy.SelectNodes) {
		t.Errorf("policy %+v", p)
	}
	own := policy.Requirement{Source: policy.NamespaceName, Op: policy.In, Values: []string{"a"}}
	inOwn := slices.ContainsFunc(p.Subject.Requirements, func(r policy.Requirement) bool {
		return r.Source == own.Source && slices.Equal(r.Values, own.Values) && r.Op == own.Op
	})
	if row.Kind == policy.CiliumNetworkPolicy && !inOwn && p.Subject.Key() != nobody().Key() {
		t.Errorf("subject %s is not bound to the policy's namespace", p.Subject.Key())
	}
	checkCiliumSelector(t, p.Subject)
	paths := map[string]bool{}
	for _, r := range slices.Concat(p.Ingress.Rules, p.Egress.Rules) {
		if r.Path == "" || paths[r.Path] || r.Action == policy.Pass || (r.Action == policy.Deny) != strings.Contains(r.Path, "Deny[") {
			t.Errorf("rule %+v", r)
		}
		paths[r.Path] = true
		if r.Peers == nil && r.Ports == nil {
			t.Errorf("rule without anything means everything: %+v", r)
		}
		for _, s := range r.Peers {
			checkCiliumSelector(t, s)
		}
		for _, port := range r.Ports {
			isICMP := port.Protocol == policy.ICMP || port.Protocol == policy.ICMPv6
			if port.First > port.Last || port.First == 0 && port.Last != 0 && !isICMP || port.Name != "" && port.Last != 0 {
				t.Errorf("port %+v", port)
			}
			if port.Protocol == policy.AnyProtocol && port.Name == "" && port.Last == 0 {
				t.Errorf("a port that is every protocol: %+v", port)
			}
		}
	}
}

func checkCiliumSelector(t *testing.T, s policy.Selector) {
	t.Helper()
	for _, r := range s.Requirements {
		values := slices.Clone(r.Values)
		slices.Sort(values)
		named := r.Source == policy.NamespaceName || r.Source == policy.ServiceAccount
		if want := r.Op == policy.In || r.Op == policy.NotIn; want != (len(values) > 0) || !slices.Equal(slices.Compact(values), r.Values) || named != (r.Key == "") {
			t.Errorf("requirement %+v", r)
		}
	}
	if (s.Kind == policy.SelectCIDR) != s.CIDR.IsValid() || s.Everyone || (s.Kind == policy.SelectEntity) != (s.Entity != "") || (s.Kind == policy.SelectService) != (s.Service != "") {
		t.Errorf("selector %+v", s)
	}
	if s.CIDR.IsValid() {
		for _, p := range append([]netip.Prefix{s.CIDR}, s.Except...) {
			if p != p.Masked() || p.Addr().Is4In6() || !s.CIDR.Overlaps(p) || p.Bits() < s.CIDR.Bits() {
				t.Errorf("prefix %v of %+v", p, s)
			}
		}
	}
}
