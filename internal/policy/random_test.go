package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
)

// generator makes small things of few words, so that they often meet.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 1))} }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func (g generator) labels() Labels {
	m := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if g.IntN(3) > 0 {
			m[k] = pick(g, "x", "y")
		}
	}
	return NewLabels(m)
}

func (g generator) requirement(sources ...Source) Requirement {
	r := Requirement{Source: pick(g, sources...), Op: pick(g, In, In, In, NotIn, Exists, DoesNotExist)}
	switch r.Source {
	case PodLabel, NamespaceLabel, NodeLabel:
		r.Key = pick(g, "app", "tier")
	}
	if r.Op == In || r.Op == NotIn {
		r.Values = pick(g, []string{"x"}, []string{"y"}, []string{"x", "y"}, []string{})
	}
	return r
}

func (g generator) pods() Selector {
	s := Selector{Kind: SelectPods}
	for range g.IntN(3) {
		s.Requirements = append(s.Requirements, g.requirement(PodLabel, PodLabel, NamespaceName, NamespaceLabel, ServiceAccount))
	}
	return s
}

func (g generator) selector() Selector {
	switch g.IntN(9) {
	case 0, 1, 2, 3:
		return g.pods()
	case 4:
		return Selector{Kind: SelectNodes, Requirements: []Requirement{g.requirement(NodeLabel)}}
	case 5, 6:
		s := Selector{Kind: SelectCIDR, CIDR: g.prefix(), Everyone: g.IntN(2) > 0}
		for range g.IntN(3) {
			s.Except = append(s.Except, g.prefix())
		}
		return s
	case 7:
		return Selector{Kind: SelectService, Service: pick(g, "x/s", "y/s")}
	}
	return Selector{Kind: SelectEntity, Entity: pick(g, EntityAll, EntityWorld, EntityWorldIPv4, EntityWorldIPv6, EntityCluster, EntityHost,
		EntityRemoteNode, EntityAPIServer, EntityUnmanaged, EntityNone)}
}

func (g generator) prefix() netip.Prefix {
	if g.IntN(4) == 0 {
		return netip.MustParsePrefix(pick(g, "::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128"))
	}
	return netip.MustParsePrefix(pick(g, "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.4/32", "192.168.0.0/16"))
}

func (g generator) peer() *Peer {
	p := &Peer{Kind: pick(g, UnknownPeer, HostPeer, NodePeer, PodPeer, PodPeer, PodPeer, APIServerPeer, WorldPeer), Prefix: g.prefix(), APIServer: g.IntN(5) == 0}
	switch p.Kind {
	case PodPeer:
		p.Namespace, p.ServiceAccount = pick(g, "x", "y"), pick(g, "x", "y")
		p.Labels, p.NamespaceLabels = g.labels(), g.labels()
		p.Ports = g.namedPorts()
	case NodePeer, HostPeer:
		p.NodeLabels = g.labels()
	}
	if g.IntN(3) == 0 {
		p.Services = []string{pick(g, "x/s", "y/s")}
	}
	return p
}

func (g generator) namedPorts() []NamedPort {
	var out []NamedPort
	for range g.IntN(3) {
		out = append(out, NamedPort{pick(g, "web", "dns"), pick(g, TCP, UDP), pick[uint16](g, 80, 53, 8080)})
	}
	return out
}

func (g generator) port() Port {
	p := Port{Protocol: pick(g, AnyProtocol, TCP, TCP, UDP, SCTP, ICMP, ICMPv6, 47)}
	switch g.IntN(5) {
	case 0:
		if p.Protocol == AnyProtocol || p.Protocol.HasPorts() {
			p.Name = pick(g, "web", "dns", "none")
		}
	case 1, 2:
		p.First = pick[uint16](g, 1, 53, 80, 8080, 65535)
		p.Last = p.First
	case 3:
		p.First = pick[uint16](g, 0, 50, 79, 1024)
		p.Last = pick[uint16](g, 53, 80, 8080, 65535)
	}
	return p
}

func (g generator) rule(tier Tier) Rule {
	r := Rule{Action: pick(g, Allow, Allow, Deny)}
	if tier != Normal {
		r.Action = pick(g, Allow, Deny, Pass)
	}
	if g.IntN(6) > 0 {
		r.Peers = []Selector{}
		for range g.IntN(4) {
			r.Peers = append(r.Peers, g.selector())
		}
	}
	if g.IntN(3) > 0 {
		r.Ports = []Port{}
		for range g.IntN(4) {
			r.Ports = append(r.Ports, g.port())
		}
	}
	return r
}

func (g generator) direction(tier Tier, way string) Direction {
	d := Direction{Isolates: g.IntN(3) == 0}
	for i := range g.IntN(4) {
		r := g.rule(tier)
		r.Path = fmt.Sprintf("spec.%s[%d]", way, i)
		d.Rules = append(d.Rules, r)
	}
	return d
}

func (g generator) policy(name string) *Policy {
	p := &Policy{Ref: Ref{pick(g, NetworkPolicy, CiliumNetworkPolicy), pick(g, "x", "y"), name}, Tier: pick(g, Admin, Normal, Normal, Baseline), Subject: g.pods()}
	p.Priority = int32(g.IntN(3)) // of the normal tier: means nothing
	if p.Tier != Normal {
		p.Ref.Kind, p.Ref.Namespace = ClusterNetworkPolicy, ""
	}
	p.Audit = g.IntN(5) == 0
	p.Ingress, p.Egress = g.direction(p.Tier, "ingress"), g.direction(p.Tier, "egress")
	return p
}

func (g generator) set() Set {
	s := Set{Mode: pick(g, ModeDefault, ModeDefault, ModeDefault, ModeAlways, ModeNever), Audit: g.IntN(6) == 0, Ports: g.namedPorts()}
	for i := range g.IntN(5) {
		s.Policies = append(s.Policies, g.policy(fmt.Sprintf("p%d", i)))
	}
	return s
}

// protocols and numbers that are near what rules are about.
func (g generator) packet() (Protocol, uint16) {
	return pick(g, TCP, TCP, UDP, SCTP, ICMP, ICMPv6, Protocol(47), Protocol(99)), pick[uint16](g, 0, 1, 49, 50, 52, 53, 54, 79, 80, 81, 1023, 1024, 8080, 8081, 65534, 65535)
}
