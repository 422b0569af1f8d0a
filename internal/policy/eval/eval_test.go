package eval

import (
	"net/netip"
	"testing"

	"github.com/strait-net/strait/internal/policy"
)

// The cluster of the examples: two nodes, a database and its clients, a namespace of somebody else.
func example() *Cluster {
	return &Cluster{
		Namespaces: []Namespace{
			{Name: "default", Labels: labels("kubernetes.io/metadata.name", "default")},
			{Name: "mine", Labels: labels("kubernetes.io/metadata.name", "mine", "project", "myproject")},
		},
		Nodes: []Node{
			{Name: "n1", Addresses: addresses("172.18.0.1"), Labels: labels("zone", "a")},
			{Name: "n2", Addresses: addresses("172.18.0.2"), Labels: labels("zone", "b")},
		},
		Pods: []Pod{
			{Namespace: "default", Name: "db", Node: "n1", Addresses: addresses("10.244.1.1"), Labels: labels("role", "db"),
				Ports: []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Port: 6379}}},
			{Namespace: "default", Name: "front", Node: "n2", Addresses: addresses("10.244.2.1"), Labels: labels("role", "frontend"),
				Ports: []policy.NamedPort{{Name: "sql", Protocol: policy.TCP, Port: 7000}}},
			{Namespace: "mine", Name: "job", Node: "n1", Addresses: addresses("10.244.1.2")},
			{Namespace: "default", Name: "other", Node: "n1", Addresses: addresses("10.244.1.3")},
		},
		APIServers: addresses("172.18.0.1", "198.51.100.1"),
		CIDRs:      []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}
}

const (
	db      = "10.244.1.1"
	front   = "10.244.2.1"
	job     = "10.244.1.2"
	other   = "10.244.1.3"
	node1   = "172.18.0.1"
	node2   = "172.18.0.2"
	nobody  = "10.244.9.9"
	outside = "203.0.113.5"
	server  = "198.51.100.1"
)

// documented is the example of Kubernetes' Network Policies page, text and all.
func documented() policy.Policy {
	return policy.Policy{
		Ref:     policy.Ref{Kind: policy.NetworkPolicy, Namespace: "default", Name: "test-network-policy"},
		Tier:    policy.Normal,
		Subject: pods("default", "role", "db"),
		Ingress: policy.Direction{Isolates: true, Rules: []policy.Rule{{
			Path: "spec.ingress[0]",
			Peers: []policy.Selector{
				block("172.17.0.0/16", "172.17.1.0/24"),
				{Requirements: []policy.Requirement{{Source: policy.NamespaceLabel, Key: "project", Op: policy.In, Values: []string{"myproject"}}}},
				pods("default", "role", "frontend"),
			},
			Ports: []policy.Port{{Protocol: policy.TCP, First: 6379, Last: 6379}},
		}}},
		Egress: policy.Direction{Isolates: true, Rules: []policy.Rule{{
			Path:  "spec.egress[0]",
			Peers: []policy.Selector{block("10.0.0.0/24")},
			Ports: []policy.Port{{Protocol: policy.TCP, First: 5978, Last: 5978}},
		}}},
	}
}

func TestExampleOfNetworkPolicies(t *testing.T) {
	c := example()
	c.Policies = []policy.Policy{documented()}
	for _, k := range []struct {
		from, to string
		port     uint16
		allow    bool
		why      string
	}{
		{front, db, 6379, true, `any pod in the "default" namespace with the label "role=frontend"`},
		{job, db, 6379, true, `any pod in a namespace with the label "project=myproject"`},
		{other, db, 6379, false, "neither"},
		{front, db, 6380, false, "on TCP port 6379"},
		{"172.17.0.0", db, 6379, true, "172.17.0.0–172.17.0.255"},
		{"172.17.0.255", db, 6379, true, "172.17.0.0–172.17.0.255"},
		{"172.17.1.0", db, 6379, false, "except"},
		{"172.17.1.255", db, 6379, false, "except"},
		{"172.17.2.0", db, 6379, true, "172.17.2.0–172.17.255.255"},
		{"172.17.255.255", db, 6379, true, "172.17.2.0–172.17.255.255"},
		{"172.18.0.0", db, 6379, false, "after the block"},
		{db, "10.0.0.255", 5978, true, `to CIDR 10.0.0.0/24 on TCP port 5978`},
		{db, "10.0.1.0", 5978, false, "after the block"},
		{db, outside, 443, false, "isolated for egress"},
		{other, front, 1, true, "neither is selected"},
		{node1, db, 1, true, "the pod's own node"},
		{node2, db, 1, false, "another node"},
		{db, db, 1, true, "itself"},
	} {
		got := c.Decide(Connection{netip.MustParseAddr(k.from), netip.MustParseAddr(k.to), policy.TCP, k.port})
		if got.Allow() != k.allow {
			t.Errorf("%s -> %s:%d (%s): %+v", k.from, k.to, k.port, k.why, got)
		}
	}
	if c.Decide(Connection{netip.MustParseAddr(front), netip.MustParseAddr(db), policy.UDP, 6379}).Allow() {
		t.Error("UDP passes a rule for TCP")
	}
}

func TestWhatDecides(t *testing.T) {
	admin := func(name string, priority int32, action policy.Action, peers ...policy.Selector) policy.Policy {
		return policy.Policy{Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: name}, Tier: policy.Admin, Priority: priority,
			Ingress: policy.Direction{Rules: []policy.Rule{{Path: "spec.ingress[0]", Action: action, Peers: peers}}}}
	}
	baseline := func(p policy.Policy) policy.Policy { p.Tier = policy.Baseline; return p }
	audited := func(p policy.Policy) policy.Policy { p.Audit = true; return p }
	denying := documented()
	denying.Ref.Name = "zzz"
	denying.Ingress.Rules = []policy.Rule{{Path: "spec.ingressDeny[0]", Action: policy.Deny, Peers: []policy.Selector{entity(policy.EntityCluster)}}}
	open := denying
	open.Ingress = policy.Direction{Rules: []policy.Rule{{Path: "spec.ingress[0]", Peers: []policy.Selector{entity(policy.EntityAPIServer)}}}}
	always, never := policy.ModeAlways, policy.ModeNever

	for _, k := range []struct {
		name     string
		policies []policy.Policy
		mode     *policy.Mode
		from     string
		allow    bool
		rule     string
		audit    string // rule that would have decided otherwise
	}{
		{name: "nothing", from: front, allow: true, rule: "Builtin default allow"},
		{name: "lower priority first", policies: []policy.Policy{admin("a", 20, policy.Allow), admin("b", 10, policy.Deny)}, from: front,
			rule: "ClusterNetworkPolicy b ingress spec.ingress[0]"},
		{name: "equal priority by name", policies: []policy.Policy{admin("b", 10, policy.Deny), admin("a", 10, policy.Allow)}, from: front, allow: true,
			rule: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "pass skips what is left of the tier", policies: []policy.Policy{admin("a", 1, policy.Pass), admin("b", 2, policy.Allow), documented()}, from: other,
			rule: "NetworkPolicy default/test-network-policy ingress (no rule matches)"},
		{name: "pass to nothing", policies: []policy.Policy{admin("a", 1, policy.Pass), admin("b", 2, policy.Deny)}, from: other, allow: true, rule: "Builtin default allow"},
		{name: "accept before NetworkPolicy", policies: []policy.Policy{admin("a", 1, policy.Allow), documented()}, from: other, allow: true,
			rule: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "NetworkPolicy before baseline", policies: []policy.Policy{baseline(admin("a", 1, policy.Deny)), documented()}, from: front, allow: true,
			rule: "NetworkPolicy default/test-network-policy ingress spec.ingress[0]"},
		{name: "baseline", policies: []policy.Policy{baseline(admin("a", 1, policy.Deny))}, from: front, rule: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "baseline passes", policies: []policy.Policy{baseline(admin("a", 1, policy.Pass)), baseline(admin("b", 2, policy.Deny))}, from: front, allow: true,
			rule: "Builtin default allow"},
		{name: "deny wins", policies: []policy.Policy{documented(), denying}, from: front, rule: "NetworkPolicy default/zzz ingress spec.ingressDeny[0]"},
		{name: "own node before all", policies: []policy.Policy{admin("a", 1, policy.Deny), denying}, from: node1, allow: true, rule: "Builtin own node"},
		{name: "unknown is cluster, not world", policies: []policy.Policy{admin("a", 1, policy.Deny, entity(policy.EntityWorld)), denying}, from: nobody,
			rule: "NetworkPolicy default/zzz ingress spec.ingressDeny[0]"},
		{name: "API server outside is world", policies: []policy.Policy{admin("a", 1, policy.Deny, entity(policy.EntityWorld))}, from: server,
			rule: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "no match and no isolation goes on to baseline", policies: []policy.Policy{open, baseline(admin("a", 1, policy.Deny))}, from: front,
			rule: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "match without isolation decides", policies: []policy.Policy{open, baseline(admin("a", 1, policy.Deny))}, from: server, allow: true,
			rule: "NetworkPolicy default/zzz ingress spec.ingress[0]"},
		{name: "mode always", mode: &always, from: front, rule: "Builtin mode always"},
		{name: "mode always, own node", mode: &always, from: node1, allow: true, rule: "Builtin own node"},
		{name: "mode always, allowed", policies: []policy.Policy{documented()}, mode: &always, from: front, allow: true,
			rule: "NetworkPolicy default/test-network-policy ingress spec.ingress[0]"},
		{name: "mode never", policies: []policy.Policy{admin("a", 1, policy.Deny), denying}, mode: &never, from: front, allow: true, rule: "Builtin mode never"},
		{name: "audit", policies: []policy.Policy{audited(admin("a", 1, policy.Deny))}, from: front, allow: true, rule: "Builtin default allow",
			audit: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
		{name: "audit that agrees", policies: []policy.Policy{audited(admin("a", 1, policy.Allow))}, from: front, allow: true, rule: "Builtin default allow"},
		{name: "audit that would open", policies: []policy.Policy{audited(admin("a", 1, policy.Allow)), documented()}, from: other,
			rule: "NetworkPolicy default/test-network-policy ingress (no rule matches)", audit: "ClusterNetworkPolicy a ingress spec.ingress[0]"},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := example()
			c.Policies = k.policies
			c.Namespaces[0].Mode = k.mode
			conn := Connection{netip.MustParseAddr(k.from), netip.MustParseAddr(db), policy.TCP, 6379}
			// Only ingress of the database is asked here; the other end of the same namespace may say no.
			got := c.Decide(conn).Ingress
			if got == nil {
				t.Fatal("nobody was asked")
			}
			audit := ""
			if got.Audit {
				audit = got.AuditRule.String()
			}
			if got.Allow != k.allow || got.Rule.String() != k.rule || audit != k.audit {
				t.Errorf("allow %v by %q, audit %q; want %v by %q, audit %q", got.Allow, got.Rule, audit, k.allow, k.rule, k.audit)
			}
		})
	}
}

func TestNamedPortsAreThoseOfThePodConnectedTo(t *testing.T) {
	c := example()
	sql := []policy.Port{{Protocol: policy.TCP, Name: "sql"}}
	c.Policies = []policy.Policy{{
		Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "default", Name: "named"}, Tier: policy.Normal,
		Subject: pods("default"),
		Ingress: policy.Direction{Isolates: true, Rules: []policy.Rule{{Path: "spec.ingress[0]", Ports: sql}}},
		Egress:  policy.Direction{Isolates: true, Rules: []policy.Rule{{Path: "spec.egress[0]", Ports: sql}}},
	}}
	for _, k := range []struct {
		from, to string
		port     uint16
		allow    bool
	}{
		{front, db, 6379, true},
		{front, db, 7000, false}, // the number it has at the client
		{db, front, 7000, true},
		{db, front, 6379, false},
		{db, outside, 6379, false}, // nobody there to name a port
	} {
		if got := c.Decide(Connection{netip.MustParseAddr(k.from), netip.MustParseAddr(k.to), policy.TCP, k.port}); got.Allow() != k.allow {
			t.Errorf("%s -> %s:%d: %+v", k.from, k.to, k.port, got)
		}
	}
}

func pods(namespace string, label ...string) policy.Selector {
	s := policy.Selector{Requirements: []policy.Requirement{{Source: policy.NamespaceName, Op: policy.In, Values: []string{namespace}}}}
	for _, l := range labels(label...) {
		s.Requirements = append(s.Requirements, policy.Requirement{Key: l.Key, Op: policy.In, Values: []string{l.Value}})
	}
	return s
}

func block(cidr string, except ...string) policy.Selector {
	s := policy.Selector{Kind: policy.SelectCIDR, CIDR: netip.MustParsePrefix(cidr), Everyone: true}
	for _, e := range except {
		s.Except = append(s.Except, netip.MustParsePrefix(e))
	}
	return s
}

func entity(e policy.Entity) policy.Selector {
	return policy.Selector{Kind: policy.SelectEntity, Entity: e}
}

func labels(pairs ...string) policy.Labels {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return policy.NewLabels(m)
}

func addresses(text ...string) []netip.Addr {
	out := make([]netip.Addr, len(text))
	for i, a := range text {
		out[i] = netip.MustParseAddr(a)
	}
	return out
}
