package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// showPolicy prints a policy, a line for the subject and one for each way and rule.
func showPolicy(p policy.Policy) string {
	lines := []string{[]string{"admin", "normal", "baseline"}[p.Tier] + fmt.Sprint(" ", p.Priority, " for ") + p.Subject.Key()}
	if p.Audit {
		lines[0] = "audit " + lines[0]
	}
	for _, way := range []struct {
		name string
		policy.Direction
	}{{"ingress", p.Ingress}, {"egress", p.Egress}} {
		if way.Isolates {
			lines = append(lines, way.name+" isolates")
		}
		for _, r := range way.Rules {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s: %s; %s",
				r.Path, r.Name, []string{"allow", "deny", "pass"}[r.Action], showPeers(r.Peers), showPorts(r.Ports))))
		}
	}
	return strings.Join(lines, "\n")
}

func showPeers(peers []policy.Selector) string {
	if peers == nil {
		return "everybody"
	}
	var texts []string
	for _, s := range peers {
		texts = append(texts, s.Key())
	}
	return strings.Join(texts, " | ")
}

func showPorts(ports []policy.Port) string {
	if ports == nil {
		return "all ports"
	}
	var texts []string
	for _, p := range ports {
		text := fmt.Sprintf("%d/%s", p.Protocol, p.Name)
		if p.Name == "" {
			text = fmt.Sprintf("%d/%d-%d", p.Protocol, p.First, p.Last)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}

// POL-1
func TestToNetworkPolicy(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"everything is left out", `{}`, `
normal 0 for pods in namespace a
ingress isolates`},
		{"a rule without peers and ports", `{podSelector: {}, ingress: [{}], egress: [{to: [], ports: []}]}`, `
normal 0 for pods in namespace a
ingress isolates
spec.ingress[0]  allow: everybody; all ports
egress isolates
spec.egress[0]  allow: everybody; all ports`},
		{"egress only", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], ingress: [{}]}`, `
normal 0 for pods app=web in namespace a
egress isolates`},
		{"ingress only, egress rules are ignored", `{policyTypes: [Ingress], egress: [{}]}`, `
normal 0 for pods in namespace a
ingress isolates`},
		{"peers", `
ingress:
- from:
  - podSelector: {matchLabels: {app: web}}
  - namespaceSelector: {}
  - namespaceSelector: {matchLabels: {team: red}}
    podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b, a, b]}, {key: app, operator: Exists}, {key: old, operator: DoesNotExist}]}
  - podSelector: {}
  - ipBlock: {cidr: 192.0.2.9/24, except: [192.0.2.128/25, 192.0.2.0/32]}
  - ipBlock: {cidr: "2001:db8::/32"}`, `
normal 0 for pods in namespace a
ingress isolates
spec.ingress[0]  allow: pods app=web in namespace a | pods | pods !old, app, app not in (a, b) in namespaces with team=red | pods in namespace a | ` +
			`CIDR 192.0.2.0/24 except 192.0.2.0/32, 192.0.2.128/25 | CIDR 2001:db8::/32; all ports`},
		{"ports", `{policyTypes: [Egress], egress: [{ports: [{}, {port: 80}, {port: dns, protocol: UDP}, {protocol: SCTP}, {port: 1, endPort: 65535}, {port: 7, endPort: 7}]}]}`, `
normal 0 for pods in namespace a
egress isolates
spec.egress[0]  allow: everybody; 6/0-0 6/80-80 17/dns 132/0-0 6/1-65535 6/7-7`},

		{"no CIDR", `{ingress: [{from: [{ipBlock: {cidr: 192.0.2.0}}]}]}`, `spec.ingress[0].from[0].ipBlock.cidr: "192.0.2.0": want a CIDR such as 192.0.2.0/24`},
		{"mapped CIDR", `{ingress: [{from: [{ipBlock: {cidr: "::ffff:192.0.2.0/120"}}]}]}`, `spec.ingress[0].from[0].ipBlock.cidr: "::ffff:192.0.2.0/120": want a CIDR`},
		{"except outside", `{egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.3.0/25]}}]}]}`,
			`spec.egress[0].to[0].ipBlock.except[0]: "192.0.3.0/25": want a CIDR that is a part of 192.0.2.0/24`},
		{"except is all", `{egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/24]}}]}]}`, `spec.egress[0].to[0].ipBlock.except[0]: "192.0.2.0/24": want`},
		{"except of the other family", `{egress: [{to: [{ipBlock: {cidr: "::/0", except: [192.0.2.0/24]}}]}]}`, `spec.egress[0].to[0].ipBlock.except[0]: "192.0.2.0/24": want`},
		{"endPort before port", `{ingress: [{ports: [{port: 80, endPort: 79}]}]}`, `spec.ingress[0].ports[0].endPort: 79: want port, 80, to 65535`},
		{"endPort too high", `{ingress: [{ports: [{port: 80, endPort: 65536}]}]}`, `spec.ingress[0].ports[0].endPort: 65536: want port, 80, to 65535`},
		{"endPort with a name", `{ingress: [{ports: [{port: http, endPort: 80}]}]}`, `spec.ingress[0].ports[0].endPort: 80: with the name of a port`},
		{"endPort alone", `{ingress: [{ports: [{endPort: 80}]}]}`, `spec.ingress[0].ports[0].endPort: 80: without port`},
		{"port 0", `{ingress: [{ports: [{port: 0}]}]}`, `spec.ingress[0].ports[0].port: 0: want 1 to 65535`},
		{"port too high", `{ingress: [{ports: [{port: 65536}]}]}`, `spec.ingress[0].ports[0].port: 65536: want 1 to 65535`},
		{"no name of a port", `{ingress: [{ports: [{port: "80"}]}]}`, `spec.ingress[0].ports[0].port: "80": must contain at least one letter`},
		{"protocol", `{ingress: [{ports: [{protocol: ICMP}]}]}`, `spec.ingress[0].ports[0].protocol: "ICMP": unknown; accepted: TCP, UDP, SCTP`},
		{"type", `{policyTypes: [Ingress, Both]}`, `spec.policyTypes[1]: "Both": unknown; accepted: Ingress, Egress`},
		{"operator", `{podSelector: {matchExpressions: [{key: app, operator: Like, values: [a]}]}}`, `spec.podSelector.matchExpressions[0].operator: Invalid value: "Like": not a valid selector operator`},
		{"values of Exists", `{podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}`, `spec.podSelector.matchExpressions[0].values: Forbidden`},
		{"no values of In", `{podSelector: {matchExpressions: [{key: app, operator: In}]}}`, `spec.podSelector.matchExpressions[0].values: Required value`},
		{"key of a label", `{ingress: [{from: [{namespaceSelector: {matchLabels: {"a b": c}}}]}]}`, `spec.ingress[0].from[0].namespaceSelector.matchLabels: Invalid value: "a b": name part must`},
		{"value of a label", `{podSelector: {matchLabels: {app: "a b"}}}`, `spec.podSelector.matchLabels: Invalid value: "a b": a valid label must`},
		{"no peer", `{ingress: [{from: [{}]}]}`, `spec.ingress[0].from[0]: "": no peer: want podSelector, namespaceSelector or ipBlock`},
		{"two peers in one", `{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 192.0.2.0/24}}]}]}`, `spec.ingress[0].from[0]: "192.0.2.0/24": ipBlock beside a selector`},
		{"two reasons", `{ingress: [{ports: [{port: 0}, {port: -1}]}]}`, `spec.ingress[0].ports[0].port: 0: want 1 to 65535; spec.ingress[0].ports[1].port: -1: want 1 to 65535`},
		{"many reasons", `{policyTypes: [A, B, C, D, E, F, G]}`, `spec.policyTypes[0]: "A"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := parse[*networkingv1.NetworkPolicy](t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec:\n  "+
				strings.ReplaceAll(strings.TrimPrefix(c.spec, "\n"), "\n", "\n  "))
			checkPolicy(t, c.want)(ToNetworkPolicy(o))
		})
	}
}

// checkPolicy compares with a policy as showPolicy prints it after a line break, or with the beginning of an error.
func checkPolicy(t *testing.T, want string) func(state.Policy, bool, error) {
	return func(p state.Policy, ok bool, err error) {
		t.Helper()
		text, isPolicy := strings.CutPrefix(want, "\n")
		switch {
		case !ok:
			t.Error("no row")
		case !isPolicy:
			if err == nil || !strings.HasPrefix(err.Error(), want) || len(p.Specs) != 0 {
				t.Errorf("got %v, %v\nwant %s", p.Specs, err, want)
			}
		case err != nil || len(p.Specs) != 1 || showPolicy(p.Specs[0]) != text:
			t.Errorf("got %v\n", err)
			for _, s := range p.Specs {
				t.Errorf("got\n%s\nwant\n%s", showPolicy(s), text)
			}
		}
	}
}

// POL-2
func TestToClusterNetworkPolicy(t *testing.T) {
	const subject = "tier: Admin\npriority: 7\nsubject: {namespaces: {}}\n"
	peers := func(n int, peer string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(peer+", ", n), ", ") + "]"
	}
	for _, c := range []struct{ name, spec, want string }{
		{"subject", "tier: Baseline\npriority: 0\nsubject: {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}", `
baseline 0 for pods app=web in namespaces with team=red`},
		{"actions and peers", subject + `
ingress:
- {name: first, action: Pass, from: [{namespaces: {matchLabels: {team: red}}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]}
- {action: Deny, from: [{namespaces: {}}]}
egress:
- {name: out, action: Accept, to: [{nodes: {matchExpressions: [{key: control, operator: Exists}]}}, {nodes: {}}, {networks: [192.0.2.9/24, "::/0"]}, {namespaces: {}}]}
`, `
admin 7 for pods
spec.ingress[0] first pass: pods in namespaces with team=red | pods app=web; all ports
spec.ingress[1]  deny: pods; all ports
spec.egress[0] out allow: nodes control | nodes | CIDR 192.0.2.0/24 | CIDR ::/0 | pods; all ports`},
		{"protocols", subject + `
egress:
- action: Accept
  to: [{namespaces: {}}]
  protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 9}}}, {destinationNamedPort: http}]
`, `
admin 7 for pods
spec.egress[0]  allow: pods; 6/80-80 17/1-65535 132/9-9 0/http`},
		{"the most of everything", subject + "ingress: " + peers(25, "{action: Deny, from: [{namespaces: {}}]}"), `
admin 7 for pods
` + strings.TrimSuffix(func() (s string) {
			for i := range 25 {
				s += fmt.Sprintf("spec.ingress[%d]  deny: pods; all ports\n", i)
			}
			return s
		}(), "\n")},

		{"tier", "tier: Normal\npriority: 1\nsubject: {namespaces: {}}", `spec.tier: "Normal": unknown; accepted: Admin, Baseline`},
		{"priority", "tier: Admin\npriority: 1001\nsubject: {namespaces: {}}", `spec.priority: 1001: want 0 to 1000`},
		{"negative priority", "tier: Admin\npriority: -1\nsubject: {namespaces: {}}", `spec.priority: -1: want 0 to 1000`},
		{"no subject", "tier: Admin\npriority: 1\nsubject: {}", `spec.subject: "": want one of namespaces, pods`},
		{"two subjects", "tier: Admin\npriority: 1\nsubject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}", `spec.subject: "": want one of namespaces, pods`},
		{"too many rules", subject + "egress: " + peers(26, "{action: Deny, to: [{namespaces: {}}]}"), `spec.egress: 26: items: want 0 to 25`},
		{"too many peers", subject + "ingress: [{action: Deny, from: " + peers(26, "{namespaces: {}}") + "}]", `spec.ingress[0].from: 26: items: want 1 to 25`},
		{"no peers", subject + "ingress: [{action: Deny, from: []}]", `spec.ingress[0].from: 0: items: want 1 to 25`},
		{"a peer of a kind of the future", subject + "ingress: [{action: Deny, from: [{}]}]", `spec.ingress[0].from[0]: "": want one of namespaces, pods`},
		{"two kinds in one", subject + "egress: [{action: Deny, to: [{namespaces: {}, nodes: {}}]}]", `spec.egress[0].to[0]: "": 2 kinds of peers: want one of`},
		{"domain names", subject + `egress: [{action: Accept, to: [{domainNames: ["*.example.org", example.org]}]}]`,
			`spec.egress[0].to[0].domainNames: "*.example.org, example.org": not supported: want namespaces, pods, nodes or networks`},
		{"network", subject + "egress: [{action: Accept, to: [{networks: [192.0.2.1]}]}]", `spec.egress[0].to[0].networks[0]: "192.0.2.1": want a CIDR`},
		{"no networks", subject + "egress: [{action: Accept, to: [{networks: []}]}]", `spec.egress[0].to[0].networks: 0: items: want 1 to 25`},
		{"action", subject + "ingress: [{action: Allow, from: [{namespaces: {}}]}]", `spec.ingress[0].action: "Allow": unknown; accepted: Accept, Deny, Pass`},
		{"name", subject + "ingress: [{name: " + strings.Repeat("n", 101) + ", action: Deny, from: [{namespaces: {}}]}]", `spec.ingress[0].name: "nnn`},
		{"selector", subject + `egress: [{action: Deny, to: [{nodes: {matchLabels: {"a b": c}}}]}]`, `spec.egress[0].to[0].nodes.matchLabels: Invalid value: "a b"`},
		{"named port of nodes", subject + "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}]",
			`spec.egress[0].protocols[0].destinationNamedPort: "http": nodes and networks have no named ports`},
		{"name of a port", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: no_port}]}]", `spec.ingress[0].protocols[0].destinationNamedPort: "no_port": must`},
		{"no protocols", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: []}]", `spec.ingress[0].protocols: 0: items: want 1 to 25`},
		{"no protocol", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{}]}]", `spec.ingress[0].protocols[0]: "": 0 of the fields are set`},
		{"two protocols", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]}]", `spec.ingress[0].protocols[0]: "": 2 of the fields`},
		{"no port", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}}]}]", `spec.ingress[0].protocols[0].tcp.destinationPort: "": want number or range`},
		{"port", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 65536}}}]}]", `spec.ingress[0].protocols[0].tcp.destinationPort.number: 65536: want 1 to 65535`},
		{"range", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 7, end: 7}}}}]}]",
			`spec.ingress[0].protocols[0].udp.destinationPort.range.end: 7: want a port behind start, 7, up to 65535`},
		{"range from 0", subject + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 0, end: 7}}}}]}]",
			`spec.ingress[0].protocols[0].udp.destinationPort.range.start: 0: want 1 to 65535`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := parse[*policyv1alpha2.ClusterNetworkPolicy](t, "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec:\n  "+
				strings.ReplaceAll(c.spec, "\n", "\n  "))
			checkPolicy(t, c.want)(ToClusterNetworkPolicy(o))
		})
	}
}

// showRow prints what is enforced of an object and why not more.
func showRow(p state.Policy) string {
	text := fmt.Sprintf("%s generation %d enforced %d", p.Key(), p.Generation, p.Enforced)
	for _, s := range p.Specs {
		text += fmt.Sprintf(" [%d %s audit=%t]", s.Spec, s.Subject.Key(), s.Audit)
	}
	if p.Refused != "" {
		text += " refused: " + p.Refused
	}
	return text
}

// Several kinds in one table: none touches the rows of another, and what is wrong keeps what it said before.
func TestPolicyRows(t *testing.T) {
	st := state.New()
	stores := map[policy.Kind]interface {
		Add(any) error
		Delete(any) error
		Replace([]any, string) error
	}{
		policy.NetworkPolicy: newStore(st, policies(TablesOf(st), policy.NetworkPolicy, ToNetworkPolicy)),
		policy.ClusterNetworkPolicy: newStore(st,
			policies(TablesOf(st), policy.ClusterNetworkPolicy, ToClusterNetworkPolicy)),
	}
	expect := func(when string, problems string, want ...string) {
		t.Helper()
		var got []string
		for p := range st.Policies.Snapshot().All() {
			got = append(got, showRow(p))
		}
		slices.Sort(got)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got := names(st.Problems); got != problems {
			t.Errorf("%s: problems %q, want %q", when, got, problems)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	np := func(generation int64, app, audit string) *networkingv1.NetworkPolicy {
		o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
			Namespace: "a", Name: "p", UID: "u", Generation: generation, Annotations: map[string]string{auditAnnotation: audit},
		}}
		o.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
		return o
	}
	cnp := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "c", Generation: 3}}
	cnp.Spec.Tier, cnp.Spec.Subject.Namespaces = policyv1alpha2.AdminTier, &metav1.LabelSelector{}
	const cluster = "ClusterNetworkPolicy//p generation 3 enforced 3 [0 pods audit=false]"

	must(stores[policy.ClusterNetworkPolicy].Replace([]any{cnp}, ""))
	if initialised(st.Policies) {
		t.Error("initialised by one kind of two")
	}
	must(stores[policy.NetworkPolicy].Replace([]any{np(1, "no good", "")}, ""))
	if !initialised(st.Policies) {
		t.Error("not initialised by both kinds")
	}
	const reason = `refused: spec.podSelector.matchLabels: Invalid value: "no good": a valid label must be an empty string or consist of alphanumeric characters, ` +
		`'-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`
	expect("wrong from the beginning", "kube/policy NetworkPolicy a/p", cluster, "NetworkPolicy/a/p generation 1 enforced 0 "+reason)
	must(stores[policy.NetworkPolicy].Add(np(2, "web", "true")))
	expect("put right", "", cluster, "NetworkPolicy/a/p generation 2 enforced 2 [0 pods app=web in namespace a audit=true]")
	must(stores[policy.NetworkPolicy].Add(np(3, "no good", "")))
	expect("made wrong", "kube/policy NetworkPolicy a/p", cluster, "NetworkPolicy/a/p generation 3 enforced 2 [0 pods app=web in namespace a audit=true] "+reason)
	rev := st.Policies.Snapshot().Revision()
	must(stores[policy.NetworkPolicy].Replace([]any{np(3, "no good", "")}, ""))
	if now := st.Policies.Snapshot().Revision(); now != rev {
		t.Error("the same wrong object wrote its row again")
	}
	must(stores[policy.NetworkPolicy].Add(np(4, "web", "perhaps")))
	expect("only the annotation is wrong", "kube/policy NetworkPolicy a/p", cluster, "NetworkPolicy/a/p generation 4 enforced 4 [0 pods app=web in namespace a audit=false]")
	anew := np(1, "no good", "")
	anew.UID = "another"
	must(stores[policy.NetworkPolicy].Add(anew))
	expect("made anew under the same name", "kube/policy NetworkPolicy a/p", cluster, "NetworkPolicy/a/p generation 1 enforced 0 "+reason)
	must(stores[policy.NetworkPolicy].Delete(anew))
	expect("deleted", "", cluster)
	must(stores[policy.ClusterNetworkPolicy].Replace(nil, ""))
	expect("all gone", "")
}

func newStore[O metav1.Object, R any](st *state.State, k kind[O, R]) *store[O, R] {
	return &store[O, R]{kind: k, problems: st.Problems, done: k.register(), now: time.Now}
}
