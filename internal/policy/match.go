package policy

import (
	"net/netip"
	"slices"
)

// Matches reports whether the selector means the peer.
func (s Selector) Matches(p *Peer) bool {
	switch s.Kind {
	case SelectPods:
		return p.Kind == PodPeer && s.hold(p)
	case SelectNodes:
		return (p.Kind == HostPeer || p.Kind == NodePeer) && s.hold(p)
	case SelectCIDR:
		return s.covers(p)
	case SelectEntity:
		return s.Entity.has(p)
	case SelectService:
		return slices.Contains(p.Services, s.Service)
	}
	return false
}

func (s Selector) hold(p *Peer) bool {
	for i := range s.Requirements {
		if !s.Requirements[i].Holds(p) {
			return false
		}
	}
	return true
}

func (s Selector) covers(p *Peer) bool {
	if !s.Everyone && p.Kind != WorldPeer && p.Kind != APIServerPeer {
		return false
	}
	if !within(s.CIDR, p.Prefix) {
		return false
	}
	for _, e := range s.Except {
		if within(e, p.Prefix) {
			return false
		}
	}
	return true
}

// within reports whether all of inner lies in outer. Addresses of both are IPv4 or IPv6 proper, not v4-mapped.
func within(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// has reports whether the peer belongs to the entity. An API server that is neither node nor pod is outside the cluster.
func (e Entity) has(p *Peer) bool {
	world := p.Kind == WorldPeer || p.Kind == APIServerPeer
	switch e {
	case EntityAll:
		return true
	case EntityWorld:
		return world
	case EntityWorldIPv4:
		return world && p.Prefix.Addr().Is4()
	case EntityWorldIPv6:
		return world && p.Prefix.Addr().Is6()
	case EntityCluster:
		return !world
	case EntityHost:
		return p.Kind == HostPeer
	case EntityRemoteNode:
		return p.Kind == NodePeer
	case EntityAPIServer:
		return p.APIServer || p.Kind == APIServerPeer
	case EntityUnmanaged:
		return p.Kind == UnknownPeer
	}
	return false
}

// Holds reports whether the requirement is met by the peer.
func (r *Requirement) Holds(p *Peer) bool {
	value, found := p.value(r.Source, r.Key)
	switch r.Op {
	case In:
		return found && r.has(value)
	case NotIn:
		return !found || !r.has(value)
	case Exists:
		return found
	case DoesNotExist:
		return !found
	}
	return false
}

func (r *Requirement) has(value string) bool {
	if len(r.Values) == 1 {
		return r.Values[0] == value
	}
	return slices.Contains(r.Values, value)
}

// value returns what a source says of the peer. A cluster's name is not known here: requirements on it are settled when policies are read.
func (p *Peer) value(source Source, key string) (string, bool) {
	switch source {
	case PodLabel:
		return p.Labels.Get(key)
	case NamespaceLabel:
		return p.NamespaceLabels.Get(key)
	case NamespaceName:
		return p.Namespace, p.Namespace != ""
	case ServiceAccount:
		return p.ServiceAccount, p.ServiceAccount != ""
	case NodeLabel:
		return p.NodeLabels.Get(key)
	}
	return "", false
}

// Prefixes returns where the selector's answer changes with the address: rows of the identity table need to begin there.
func (s Selector) Prefixes() []netip.Prefix {
	v4 := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	v6 := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	switch s.Kind {
	case SelectCIDR:
		return append([]netip.Prefix{s.CIDR}, s.Except...)
	case SelectEntity:
		switch s.Entity {
		case EntityAll, EntityWorld:
			return []netip.Prefix{v4, v6}
		case EntityWorldIPv4:
			return []netip.Prefix{v4}
		case EntityWorldIPv6:
			return []netip.Prefix{v6}
		}
	}
	return nil
}

// namedPorts returns the port numbers that a peer gives to a name; of AnyProtocol: those of every protocol that has ports.
func namedPorts(ports []NamedPort, name string, protocol Protocol) []NamedPort {
	var out []NamedPort
	for _, p := range ports {
		if p.Name == name && (p.Protocol == protocol || protocol == AnyProtocol && p.Protocol.HasPorts()) {
			out = append(out, p)
		}
	}
	return out
}
