package policy

import (
	"slices"
	"strings"
)

// question is a connection about which a rule is asked why it does not match.
type question struct {
	set      Set
	way      Way
	peer     *Peer
	protocol Protocol
	port     uint16
}

// far is the distance of a peer of another kind: more than a label or a port that differs.
const far = 4

// missing returns every condition of the rule that does not hold, for the selector that comes nearest, and how far that is; 0: it matches.
func (q *question) missing(r *Rule) ([]string, int) {
	why, distance := q.missingPeer(r)
	if r.Ports == nil {
		return why, distance
	}
	if reason, d := q.missingPort(r); d > 0 {
		return append(why, reason), distance + d
	}
	return why, distance
}

func (q *question) missingPeer(r *Rule) ([]string, int) {
	if r.Peers == nil {
		return nil, 0
	}
	best, least := []string{"the rule names no peers"}, 2*far
	for i := range r.Peers {
		if why, distance := q.peer.differs(&r.Peers[i]); distance < least {
			best, least = why, distance
		}
	}
	return best, least
}

// differs returns why the selector does not mean the peer.
func (p *Peer) differs(s *Selector) ([]string, int) {
	if s.Matches(p) {
		return nil, 0
	}
	switch {
	case s.Kind == SelectPods && p.Kind == PodPeer, s.Kind == SelectNodes && (p.Kind == NodePeer || p.Kind == HostPeer):
		var why []string
		for i := range s.Requirements {
			if r := &s.Requirements[i]; !r.Holds(p) {
				why = append(why, p.differsIn(r))
			}
		}
		return why, len(why)
	case s.Kind == SelectCIDR && !s.Everyone && p.Kind != WorldPeer && p.Kind != APIServerPeer:
		return []string{"peer is " + p.Kind.article() + ", want addresses outside the cluster"}, far
	case s.Kind == SelectCIDR:
		for _, e := range s.Except {
			if within(e, p.Prefix) {
				return []string{"peer address " + p.address() + " is excepted by " + e.String()}, 1
			}
		}
		return []string{"peer address " + p.address() + ", want one in " + s.CIDR.String()}, far - 1
	case s.Kind == SelectService:
		return []string{"peer address " + p.address() + " is no endpoint of service " + s.Service}, far - 1
	}
	return []string{"peer is " + p.Kind.article() + ", want " + s.Key()}, far
}

func (p *Peer) address() string {
	if p.Prefix.IsSingleIP() {
		return p.Prefix.Addr().String()
	}
	return p.Prefix.String()
}

func (k PeerKind) article() string {
	switch k {
	case PodPeer, NodePeer:
		return "a " + k.String()
	case HostPeer:
		return "the pod's own node"
	case APIServerPeer:
		return "an API server outside the cluster"
	case WorldPeer:
		return "outside the cluster"
	}
	return "an address of the cluster that no known pod or node has"
}

// differsIn returns what the peer has in place of what a requirement wants.
func (p *Peer) differsIn(r *Requirement) string {
	subject := [...]string{
		PodLabel: "peer label", NamespaceLabel: "namespace label", NamespaceName: "namespace", ServiceAccount: "service account",
		NodeLabel: "node label", ClusterName: "cluster name",
	}[r.Source]
	value, found := p.value(r.Source, r.Key)
	switch r.Source {
	case NamespaceName, ServiceAccount, ClusterName:
		want := "want "
		if r.Op == NotIn {
			want = "want none of "
		}
		return subject + " " + value + ", " + want + strings.Join(r.Values, " or ")
	}
	if !found {
		return "no " + subject + " " + r.Key + ", want " + r.term()
	}
	return subject + " " + r.Key + "=" + value + ", want " + r.term()
}

// missingPort returns what the rule wants in place of the connection's port.
func (q *question) missingPort(r *Rule) (string, int) {
	distance := 2
	wants := make([]string, 0, len(r.Ports))
	for _, p := range r.Ports {
		text := p.String()
		if p.Protocol == q.protocol {
			distance = 1
		}
		if p.Name == "" {
			c := rule{ports: []Port{p}}
			if slices.ContainsFunc(c.spans(nil), func(p Port) bool { return p.has(q.protocol, q.port) }) {
				return "", 0
			}
			wants = append(wants, text)
			continue
		}
		owner, known := "peer", q.peer.Ports
		if q.way == Ingress {
			owner, known = "pod", q.set.Ports
		}
		numbers := namedPorts(known, p.Name, p.Protocol)
		for _, n := range numbers {
			if n.Protocol == q.protocol && n.Port == q.port {
				return "", 0
			}
			text += " which is " + decimal(uint64(n.Port))
		}
		if numbers == nil {
			text += " which the " + owner + " has not"
		}
		wants = append(wants, text)
	}
	have := Port{Protocol: q.protocol, First: q.port, Last: q.port}
	if len(wants) == 0 {
		return "the rule names no ports", 2
	}
	return "port " + have.String() + ", want " + strings.Join(wants, " or "), distance
}
