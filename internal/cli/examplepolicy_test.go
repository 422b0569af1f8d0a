package cli_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/localapi"
)

func nameOf(kind, namespace, name string) localapi.PolicyName {
	return localapi.PolicyName{Kind: kind, Namespace: namespace, Name: name}
}

func count(packets uint64) localapi.Count {
	return localapi.Count{Packets: packets, Bytes: 100 * packets}
}

// examplePolicies are in every state there is. Node n<i> has i pods of the database.
func examplePolicies(i int, trouble bool) []localapi.Policy {
	first, last := int32(10), int32(1000)
	n := uint64(i)
	rows := []localapi.Policy{
		{PolicyName: nameOf("CiliumNetworkPolicy", "shop", "legacy"), Generation: 4, Enforced: 3, State: "refused", Tier: "normal", Rules: 1,
			Error: "spec.ingress[0].toPorts[0].rules.http: rules of layer 7 are not supported yet"},
		{PolicyName: nameOf("ClusterNetworkPolicy", "", "tenants"), Tier: "admin", Priority: &first, Generation: 1, Enforced: 1, State: "enforced", Pods: 4, Rules: 3, Denied: count(211 * n)},
		{PolicyName: nameOf("NetworkPolicy", "default", "db"), Tier: "normal", Generation: 2, Enforced: 2, State: "enforced", Rules: 2},
		{PolicyName: nameOf("CiliumNetworkPolicy", "shop", "db"), Tier: "normal", Generation: 1, Enforced: 1, State: "audited", Pods: i, Rules: 1, Denied: count(3)},
		{PolicyName: nameOf("NetworkPolicy", "shop", "db"), Tier: "normal", Generation: 7, Enforced: 7, State: "enforced", Pods: i, Rules: 3, Allowed: count(123456 * n), Denied: count(17 * n)},
		{PolicyName: nameOf("CiliumClusterwideNetworkPolicy", "", "host-firewall"), Host: true, Tier: "normal", Generation: 1, Enforced: 1, State: "enforced", Rules: 1},
		{PolicyName: nameOf("ClusterNetworkPolicy", "", "fallback"), Tier: "baseline", Priority: &last, Generation: 1, Enforced: 1, State: "enforced", Pods: 2, Rules: 1, Allowed: count(99)},
	}
	if trouble {
		rows[0].Enforced = 2 // it was away meanwhile
		rows[6].State, rows[6].Error = "failed", "needs 70000 rows of strait_policy, 65536 fit (maps.policies)"
		rows = append(rows[6:], rows[:6]...)
	}
	return rows
}

// exampleRules are those of the database's policy, of which later ones are in use on n1 only, and one of the admin tier.
func exampleRules(i int) []localapi.Rule {
	at := func(name localapi.PolicyName, way, path string) localapi.RuleName {
		return localapi.RuleName{PolicyName: name, Direction: way, Path: path}
	}
	db, tenants := nameOf("NetworkPolicy", "shop", "db"), nameOf("ClusterNetworkPolicy", "", "tenants")
	since := ago(26 * time.Hour)
	n := uint64(i)
	all := at(db, "ingress", "spec.ingress[0]")
	return []localapi.Rule{
		{RuleName: at(db, "ingress", "spec.ingress[0]"), Action: "allow", Peers: []string{"pods app=web in namespace shop"}, Ports: []string{"5432/TCP"}, InUse: true, Count: count(123456 * n), Since: since},
		{RuleName: at(db, "ingress", "spec.ingress[1]"), Action: "allow", Peers: []string{"CIDR 10.20.0.0/16 except 10.20.9.0/24"}, Ports: []string{"5432/TCP", "metrics/TCP"}, InUse: true, Since: since.Add(time.Hour * time.Duration(i))},
		{RuleName: at(db, "ingress", "spec.ingress[2]"), Action: "allow", Peers: []string{"pods app=web, tier=front in namespace shop"}, Ports: []string{"5432/TCP"}, InUse: i == 1, Since: since, Shadowed: &all},
		{RuleName: at(db, "ingress", ""), Action: "deny", Peers: []string{"everybody"}, Ports: []string{"every port"}, InUse: true, Count: count(17 * n), Since: since},
		{RuleName: at(tenants, "ingress", "spec.ingress[0]"), Title: "no-other-tenants", Action: "deny", Peers: []string{"pods in namespaces with tenant=b"}, Ports: []string{"every port"}, InUse: true, Count: count(211 * n), Since: since},
		{RuleName: at(tenants, "ingress", "spec.ingress[1]"), Action: "pass", Peers: []string{"pods"}, Ports: []string{"every port"}, InUse: true},
		{RuleName: at(nameOf("CiliumNetworkPolicy", "shop", "db"), "ingress", "spec.ingressDeny[0]"), Action: "deny", Audit: true, Peers: []string{"entity world"}, Ports: []string{"every port"}, InUse: true, Count: count(3), Since: since},
	}
}

func examplePolicyDetail(i int, name localapi.PolicyName, trouble bool) (localapi.PolicyDetail, error) {
	d := localapi.PolicyDetail{Node: fmt.Sprintf("n%d", i), Subjects: []string{}, Isolates: []string{}, Selected: []localapi.SelectedPod{}, RuleRows: []localapi.Rule{}}
	policies := examplePolicies(i, trouble)
	at := slices.IndexFunc(policies, func(p localapi.Policy) bool { return p.PolicyName == name })
	if at < 0 {
		return d, fmt.Errorf("%s: %w", name, localapi.ErrNotFound)
	}
	d.Policy = policies[at]
	d.Subjects, d.Isolates = []string{"pods app=db in namespace shop"}, []string{"ingress"}
	for _, r := range exampleRules(i) {
		if r.PolicyName == name {
			r.Shadowed = nil
			d.RuleRows = append(d.RuleRows, r)
		}
	}
	for j := range d.Pods {
		d.Selected = append(d.Selected, localapi.SelectedPod{Pod: fmt.Sprintf("shop/db-%d", j), Program: "00c0ffee00c0ffee", Entries: 12, Audit: j == 1})
	}
	if d.Tier == "admin" || d.Tier == "baseline" {
		d.Isolates = []string{}
	}
	return d, nil
}

// exampleVerdict knows shop/web-1 on n1 and shop/db-0 on n2; port 5432 is allowed.
func exampleVerdict(i int, q localapi.VerdictQuestion) (localapi.PolicyVerdict, error) {
	self := fmt.Sprintf("n%d", i)
	v := localapi.PolicyVerdict{Node: self, Protocol: map[uint8]string{6: "TCP", 17: "UDP", 1: "ICMP"}[q.Protocol], Port: q.Port, Sides: []localapi.VerdictSide{}}
	ends := map[string]localapi.VerdictEnd{
		"shop/web-1": {Text: "shop/web-1", Kind: "pod", Pod: "shop/web-1", Node: "n1", Addresses: addrs("10.244.1.5", "fd00:10:244:1::5")},
		"shop/db-0":  {Text: "shop/db-0", Kind: "pod", Pod: "shop/db-0", Node: "n2", Addresses: addrs("10.244.2.7", "fd00:10:244:2::7")},
		"world":      {Text: "world", Kind: "world", Addresses: addrs("192.0.2.1", "2001:db8::1")},
	}
	var known bool
	if v.Source, known = ends[q.Source]; !known {
		return v, fmt.Errorf("source %q: %w: pods of namespace shop are db-0, web-1", q.Source, localapi.ErrNotFound)
	}
	if v.Destination, known = ends[q.Destination]; !known {
		return v, fmt.Errorf("destination %q: %w: pods of namespace shop are db-0, web-1", q.Destination, localapi.ErrNotFound)
	}
	if q.PortName != "" {
		return v, localapi.BadQuestion("port %q: pod shop/db-0 has no such port of protocol TCP; it has sql/TCP", q.PortName)
	}
	for _, way := range []string{"egress", "ingress"} {
		end := v.Source
		side := localapi.VerdictSide{Direction: way, Node: self, Verdict: "allowed", Text: "no policy isolates it", Program: "00000000deadbeef", Identity: "5e1f00ba5e1f00ba",
			Rule: &localapi.RuleName{PolicyName: nameOf("Builtin", "", "default allow"), Direction: way}}
		if way == "ingress" {
			end = v.Destination
			side.Matches = []string{"pods app=web in namespace shop"}
			side.Rule = &localapi.RuleName{PolicyName: nameOf("NetworkPolicy", "shop", "db"), Direction: way, Path: "spec.ingress[0]"}
			side.Text = "NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP"
			if q.Port != 5432 {
				side.Verdict, side.Rule.Path, side.Text = "denied", "", "NetworkPolicy shop/db isolates it and no rule allows this"
				side.Misses = []string{fmt.Sprintf("NetworkPolicy shop/db spec.ingress[0]: port %d/TCP, want 5432/TCP", q.Port)}
			}
			if strings.HasPrefix(q.Source, "world") {
				side.Would, side.WouldRule = "denied", &localapi.RuleName{PolicyName: nameOf("CiliumNetworkPolicy", "shop", "db"), Direction: way, Path: "spec.ingressDeny[0]"}
			}
		}
		side.Subject = end.Pod
		switch end.Node {
		case "":
		case self:
			v.Sides = append(v.Sides, side)
		default:
			v.Elsewhere = append(v.Elsewhere, localapi.VerdictElsewhere{Direction: way, Subject: end.Pod, Node: end.Node})
		}
	}
	v.Verdict = v.Sum()
	return v, nil
}

func exampleCheck(i int, repair, trouble bool) localapi.Check {
	c := localapi.Check{Node: fmt.Sprintf("n%d", i), Took: 12 * time.Millisecond, Pods: 4, Policies: 7, Rows: 812, Differences: []localapi.Difference{}, Tables: []localapi.CheckTable{
		{Name: "strait_policy", Rows: 700}, {Name: "strait_identity", Rows: 112}, {Name: "routes", Rows: 5, Compared: ago(20 * time.Second)}}}
	if trouble {
		c.Tables[0].Differences = 1
		c.Differences = []localapi.Difference{
			{Table: "strait_policy", Key: "shop/db-0 ingress other", Text: "is allow by NetworkPolicy shop/db spec.ingress[0], should be deny", Repaired: repair},
		}
	}
	return c
}

func examplePods(i int) []localapi.PodRow {
	return []localapi.PodRow{
		{Namespace: "kube-system", Name: "proxy-n1", Node: "n1", Addresses: addrs("10.0.0.1"), HostNetwork: true, ServiceAccount: "default"},
		{Namespace: "shop", Name: "db-0", Node: "n2", Addresses: addrs("10.244.2.7", "fd00:10:244:2::7"), ServiceAccount: "db", Labels: map[string]string{"app": "db", "tier": "back"},
			Ports: []string{"sql 5432/TCP"}, Audit: true},
		{Namespace: "shop", Name: "web-1", Node: "n1", Addresses: addrs("10.244.1.5", "fd00:10:244:1::5"), ServiceAccount: "default", Labels: map[string]string{"app": "web"}},
	}
}

func exampleIdentities() []localapi.IdentityRow {
	return []localapi.IdentityRow{
		{Prefix: prefix("10.0.0.1/32"), Identity: "host", Kind: "own node", Matches: []string{}},
		{Prefix: prefix("10.20.0.0/16"), Identity: "9a3b00000000c0de", Kind: "world", Matches: []string{"CIDR 10.20.0.0/16 except 10.20.9.0/24"}},
		{Prefix: netip.MustParsePrefix("10.244.1.5/32"), Identity: "5e1f00ba5e1f00ba", Kind: "pod", Pod: "shop/web-1", Matches: []string{"pods app=web in namespace shop", "pods in namespaces with tenant=a"}},
	}
}

func examplePrograms(trouble bool) []localapi.ProgramRow {
	rows := []localapi.ProgramRow{
		{ID: "00c0ffee00c0ffee", Policies: []localapi.PolicyName{nameOf("NetworkPolicy", "shop", "db"), nameOf("ClusterNetworkPolicy", "", "tenants")},
			Pods: []string{"shop/db-0", "shop/db-1", "shop/db-2", "shop/db-3", "shop/db-4", "shop/db-5"}, Entries: 12},
		{ID: "00000000deadbeef", Policies: []localapi.PolicyName{}, Pods: []string{"shop/web-1"}, Entries: 2},
	}
	if trouble {
		rows[1].Error = "needs 70000 rows of strait_policy, 65536 fit (maps.policies)"
	}
	return rows
}

// exampleNamespaces are a few.
func exampleNamespaces() []localapi.NamespaceRow {
	return []localapi.NamespaceRow{
		{Name: "default", Labels: map[string]string{"kubernetes.io/metadata.name": "default"}},
		{Name: "shop", Mode: "always", Audit: true, Labels: map[string]string{"kubernetes.io/metadata.name": "shop", "tenant": "a"}},
	}
}

func examplePolicyStatus() localapi.PolicyStatus {
	return localapi.PolicyStatus{
		Enforcement: "default", Objects: []localapi.PolicyCount{{Kind: "NetworkPolicy", State: "enforced", Count: 2}, {Kind: "ClusterNetworkPolicy", State: "enforced", Count: 2},
			{Kind: "CiliumNetworkPolicy", State: "audited", Count: 1}, {Kind: "CiliumClusterwideNetworkPolicy", State: "enforced", Count: 1}},
		Pods: 2, Selected: 1, Programs: 2, Identities: 112, Rules: 7, Revision: 88, Changed: ago(4 * time.Minute), Took: 3100 * time.Microsecond,
		Packets: []localapi.VerdictCount{{Direction: "egress", Verdict: "allowed", Packets: 12, Bytes: 1200}, {Direction: "ingress", Verdict: "denied", Packets: 17, Bytes: 1700}},
	}
}
