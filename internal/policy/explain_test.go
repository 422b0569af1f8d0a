package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func text(e Explanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, allow %t\n", e.Stage, e.Rule, e.Allow)
	for _, m := range e.Matching {
		fmt.Fprintf(&b, "matches %s: %s %s, decides %t\n", m.RuleRef, m.Tier, m.Action, m.Decides)
	}
	for _, m := range e.Misses {
		fmt.Fprintf(&b, "near %s: %s\n", m.RuleRef, strings.Join(m.Why, "; "))
	}
	return strings.TrimSpace(b.String())
}

func TestExplain(t *testing.T) {
	rule := func(n int, ports []Port, peers ...Selector) Rule {
		return Rule{Path: fmt.Sprintf("spec.ingress[%d]", n), Peers: peers, Ports: ports}
	}
	web := &Policy{Ref: Ref{NetworkPolicy, "a", "web"}, Tier: Normal, Ingress: Direction{Isolates: true, Rules: []Rule{
		rule(0, tcp(80), pods("a", "app", "client")),
		rule(1, []Port{{Protocol: TCP, Name: "http"}, {Protocol: UDP, Name: "dns"}}, pods("b", "", "")),
		rule(2, nil, Selector{Kind: SelectCIDR, Everyone: true, CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}),
		rule(3, nil, Selector{Kind: SelectPods, Requirements: []Requirement{{NamespaceLabel, "env", In, []string{"prod", "test"}}, {PodLabel, "old", DoesNotExist, nil}}}),
	}}}
	deny := &Policy{Ref: Ref{CiliumNetworkPolicy, "a", "deny"}, Tier: Normal, Ingress: Direction{Rules: []Rule{
		{Path: "spec.ingressDeny[0]", Action: Deny, Peers: []Selector{{Kind: SelectEntity, Entity: EntityRemoteNode}}}}}}
	far := &Policy{Ref: Ref{NetworkPolicy, "a", "far"}, Tier: Normal, Ingress: Direction{Isolates: true, Rules: []Rule{rule(0, tcp(443), pods("b", "", ""))}}}
	open := &Policy{Ref: Ref{ClusterNetworkPolicy, "", "open"}, Tier: Admin, Priority: 5, Ingress: Direction{Rules: []Rule{
		{Path: "spec.ingress[0]", Peers: []Selector{pods("ops", "", "")}}}}}
	set := Set{Policies: []*Policy{web, deny, open}, Ports: []NamedPort{{"http", TCP, 8080}}}
	pod := func(namespace string, labels ...Label) *Peer {
		return &Peer{Kind: PodPeer, Prefix: netip.MustParsePrefix("10.1.2.3/32"), Namespace: namespace, Labels: labels, NamespaceLabels: Labels{{"env", "dev"}}}
	}
	for _, k := range []struct {
		name string
		set  Set
		peer *Peer
		port uint16
		want string
	}{
		{"port differs", set, pod("a", Label{"app", "client"}), 81, `normal: NetworkPolicy a/web ingress (no rule matches), allow false
near NetworkPolicy a/web ingress spec.ingress[0]: port 81/TCP, want 80/TCP
near NetworkPolicy a/web ingress spec.ingress[2]: peer address 10.1.2.3 is excepted by 10.1.0.0/16
near NetworkPolicy a/web ingress spec.ingress[3]: namespace label env=dev, want env in (prod, test)`},
		{"namespace, label and port differ", set, pod("c", Label{"app", "web"}, Label{"old", "1"}), 80, `normal: NetworkPolicy a/web ingress (no rule matches), allow false
near NetworkPolicy a/web ingress spec.ingress[2]: peer address 10.1.2.3 is excepted by 10.1.0.0/16
near NetworkPolicy a/web ingress spec.ingress[0]: peer label app=web, want app=client; namespace c, want a
near NetworkPolicy a/web ingress spec.ingress[1]: namespace c, want b; port 80/TCP, want http/TCP which is 8080 or dns/UDP which the pod has not`},
		{"allowed", set, pod("a", Label{"app", "client"}), 80, `normal: NetworkPolicy a/web ingress spec.ingress[0], allow true
matches NetworkPolicy a/web ingress spec.ingress[0]: normal allow, decides true`},
		{"admin", set, pod("ops"), 80, `admin: ClusterNetworkPolicy open ingress spec.ingress[0], allow true
matches ClusterNetworkPolicy open ingress spec.ingress[0]: admin allow, decides true`},
		{"deny beats allow", set, &Peer{Kind: NodePeer, Prefix: netip.MustParsePrefix("10.2.0.1/32")}, 80, `normal: CiliumNetworkPolicy a/deny ingress spec.ingressDeny[0], allow false
matches CiliumNetworkPolicy a/deny ingress spec.ingressDeny[0]: normal deny, decides true
matches NetworkPolicy a/web ingress spec.ingress[2]: normal allow, decides false`},
		{"own node", set, &Peer{Kind: HostPeer, Prefix: netip.MustParsePrefix("192.0.2.1/32")}, 80, `own node: Builtin own node, allow true`},
		{"mode always", Set{Mode: ModeAlways}, pod("a"), 80, `mode always: Builtin mode always, allow false`},
		{"mode never", Set{Mode: ModeNever, Policies: set.Policies}, pod("c"), 80, `mode never: Builtin mode never, allow true`},
		{"nothing", Set{}, pod("c"), 80, `default allow: Builtin default allow, allow true`},
		{"world", Set{Policies: []*Policy{web}}, &Peer{Kind: WorldPeer, Prefix: netip.MustParsePrefix("203.0.113.1/32")}, 443, `normal: NetworkPolicy a/web ingress (no rule matches), allow false
near NetworkPolicy a/web ingress spec.ingress[2]: peer address 203.0.113.1, want one in 10.0.0.0/8
near NetworkPolicy a/web ingress spec.ingress[3]: peer is outside the cluster, want pods !old in namespaces with env in (prod, test)
near NetworkPolicy a/web ingress spec.ingress[0]: peer is outside the cluster, want pods app=client in namespace a; port 443/TCP, want 80/TCP`},
		{"the nearest of all policies first", Set{Policies: []*Policy{far, web}}, pod("a", Label{"app", "client"}), 81, `normal: NetworkPolicy a/far ingress (no rule matches), allow false
near NetworkPolicy a/web ingress spec.ingress[0]: port 81/TCP, want 80/TCP
near NetworkPolicy a/web ingress spec.ingress[2]: peer address 10.1.2.3 is excepted by 10.1.0.0/16
near NetworkPolicy a/web ingress spec.ingress[3]: namespace label env=dev, want env in (prod, test)
near NetworkPolicy a/far ingress spec.ingress[0]: namespace a, want b; port 81/TCP, want 443/TCP`},
	} {
		if got := text(Explain(k.set, Ingress, k.peer, TCP, k.port)); got != k.want {
			t.Errorf("%s:\n%s\nwant\n%s", k.name, got, k.want)
		}
	}
	e := Explain(Set{Policies: set.Policies, Audit: true}, Ingress, pod("c"), TCP, 80)
	if !e.Allow || !e.Audit || e.AuditAllow || e.AuditRule.Name != "web" || !e.Policies[0].Audit || e.Stage != DefaultAllow {
		t.Errorf("audit: %+v", e)
	}
}

// For every denial that no rule made, misses are true: rules that do not match, each with a reason.
func TestMissesDoNotMatch(t *testing.T) {
	seen := 0
	for seed := range uint64(3000) {
		g := newGenerator(seed)
		set, way, peer := g.set(), pick(g, Egress, Ingress), g.peer()
		protocol, port := g.packet()
		e := Explain(set, way, peer, protocol, port)
		decides := 0
		for _, m := range e.Matching {
			if m.Decides {
				decides++
				if m.RuleRef != e.Rule {
					t.Fatalf("seed %d: %s decides, but the verdict says %s", seed, m.RuleRef, e.Rule)
				}
			}
		}
		if (decides == 1) != (e.Rule.Path != "") {
			t.Fatalf("seed %d: %d rules decide: %+v", seed, decides, e)
		}
		for _, m := range e.Misses {
			seen++
			if len(m.Why) == 0 {
				t.Fatalf("seed %d: no reason: %+v", seed, m)
			}
			for _, r := range e.Matching {
				if r.RuleRef == m.RuleRef {
					t.Fatalf("seed %d: %s matches, and does not because %v", seed, m.RuleRef, m.Why)
				}
			}
		}
	}
	if seen < 300 {
		t.Errorf("only %d misses", seen)
	}
}
