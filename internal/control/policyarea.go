package control

import (
	"net/netip"
	"net/url"
	"slices"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// readServers finds out where the API servers are.
func (p *peers) readServers() {
	servers := map[netip.Addr]bool{}
	for _, a := range apiServers(p.state.EndpointSlices.Snapshot()) {
		servers[a] = true
	}
	if u, err := url.Parse(p.cfg.API.Server); err == nil {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && !a.IsLoopback() {
			servers[a.Unmap()] = true
		}
	}
	for a := range servers {
		p.readdress(a, !p.servers[a])
	}
	for a := range p.servers {
		p.readdress(a, !servers[a])
	}
	p.servers = servers
}

// readServices finds the endpoints of the services that selectors ask for.
func (p *peers) readServices() {
	services := map[netip.Addr][]string{}
	endpointSlices := p.state.EndpointSlices.Snapshot()
	for _, name := range p.index.Services() {
		for slice := range endpointSlices.By(state.SlicesByService, name) {
			for _, e := range slice.Endpoints {
				if !slices.Contains(services[e.Address], name) {
					services[e.Address] = append(services[e.Address], name)
				}
			}
		}
	}
	for a, names := range services {
		p.readdress(a, !slices.Equal(names, p.services[a]))
	}
	for a := range p.services {
		p.readdress(a, services[a] == nil)
	}
	p.services = services
}

// readdress marks who has an address that has changed what it stands for.
func (p *peers) readdress(a netip.Addr, changed bool) {
	if !changed {
		return
	}
	p.areasChanged = true
	if owner := p.owners[a]; owner != "" {
		p.stale[owner] = true
	}
	for pod := range p.state.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		p.stale[pod.Key()] = true
	}
	p.doubt(p.claimAt(a))
}

// placeAreas brings areas up to date: first which there are, then who they are.
func (p *peers) placeAreas() {
	want := p.solid()
	for _, boundary := range p.boundaries() {
		if want[boundary] == nil {
			want[boundary] = &area{peer: policy.Peer{Prefix: boundary}}
		}
	}
	changed := false
	var moved []netip.Prefix // where pods may be in another kind of area now
	for prefix, a := range p.areas {
		if want[prefix] == nil {
			delete(p.areas, prefix)
			p.lengths[familyOf(prefix)][prefix.Bits()]--
			p.let(a.ident)
			p.touched[prefix], changed = true, true
			if a.solid {
				moved = append(moved, prefix)
			}
		}
	}
	for prefix, a := range want {
		have := p.areas[prefix]
		if have == nil {
			p.areas[prefix], changed = a, true
			p.lengths[familyOf(prefix)][prefix.Bits()]++
		} else {
			a.ident = have.ident
			p.areas[prefix] = a
			changed = changed || have.solid != a.solid
		}
		if have == nil && a.solid || have != nil && (have.solid != a.solid || a.solid && have.peer.Kind != a.peer.Kind) {
			moved = append(moved, prefix)
		}
	}
	for prefix, a := range p.areas {
		if !a.solid {
			a.peer.Kind = p.kindAt(prefix)
		}
		a.peer.APIServer = prefix.IsSingleIP() && p.servers[prefix.Addr()]
		if prefix.IsSingleIP() {
			a.peer.Services = p.services[prefix.Addr()]
		}
		id := p.intern(&a.peer)
		if id == a.ident {
			continue
		}
		id.holders++
		if a.ident != nil {
			p.let(a.ident)
		}
		a.ident, changed = id, true
	}
	if changed {
		p.surroundingsChanged(moved)
	}
}

// surroundingsChanged marks rows that are there, or not, because of what is around them.
func (p *peers) surroundingsChanged(moved []netip.Prefix) {
	for prefix := range p.areas {
		p.touched[prefix] = true
	}
	for a := range p.owners {
		p.touched[host(a)] = true
	}
	moved = slices.DeleteFunc(moved, netip.Prefix.IsSingleIP)
	if len(moved) == 0 {
		return
	}
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(moved, func(m netip.Prefix) bool { return m.Contains(a) })
	}
	for pod := range p.state.Pods.Snapshot().All() {
		if !pod.HostNetwork && slices.ContainsFunc(pod.Addresses, inside) {
			p.stale[pod.Key()] = true
		}
	}
	for row := range p.state.Endpoints.Snapshot().All() {
		p.stale[attachmentMark+row.Key()] = true
	}
}

// kindAt returns what is at the boundary of a selector: what is there anyway.
func (p *peers) kindAt(prefix netip.Prefix) policy.PeerKind {
	if a := p.solidAt(prefix); a != nil {
		return a.peer.Kind
	}
	return policy.WorldPeer
}

// solidAt returns the smallest area around a prefix, or the prefix itself, that is there whatever selectors say.
func (p *peers) solidAt(prefix netip.Prefix) *area {
	for bits := prefix.Bits(); bits >= 0; bits-- {
		if p.lengths[familyOf(prefix)][bits] == 0 {
			continue
		}
		if outer, err := prefix.Addr().Prefix(bits); err == nil {
			if a := p.areas[outer]; a != nil && a.solid {
				return a
			}
		}
	}
	return nil
}

// boundaries are prefixes at which selectors change their answer.
func (p *peers) boundaries() []netip.Prefix {
	out := p.index.Prefixes()
	for a := range p.services {
		out = append(out, host(a))
	}
	return out
}

// solid returns the areas that are there whatever selectors say. Of two claims to one prefix the more exact kind counts.
func (p *peers) solid() map[netip.Prefix]*area {
	out := map[netip.Prefix]*area{}
	add := func(prefix netip.Prefix, peer policy.Peer) {
		peer.Prefix = prefix
		if have := out[prefix]; have == nil || exactness(peer.Kind) > exactness(have.peer.Kind) {
			out[prefix] = &area{peer: peer, solid: true}
		}
	}
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		add(netip.PrefixFrom(all, 0), policy.Peer{Kind: policy.WorldPeer})
	}
	for _, cidr := range []netip.Prefix{p.cfg.IPAM.PodCIDRv4.Prefix, p.cfg.IPAM.PodCIDRv6.Prefix} {
		if cidr.IsValid() && cidr.Bits() > 0 {
			add(cidr.Masked(), policy.Peer{Kind: policy.UnknownPeer})
		}
	}
	for a := range p.servers {
		add(host(a), policy.Peer{Kind: policy.APIServerPeer})
	}
	nodes := p.state.Nodes.Snapshot()
	for r := range p.state.Remotes.Snapshot().All() {
		peer := policy.Peer{Kind: policy.UnknownPeer}
		switch r.Kind {
		case state.RemoteHost:
			peer.Kind = policy.HostPeer
		case state.RemoteNode:
			peer.Kind = policy.NodePeer
		case state.RemoteAPIServer:
			peer.Kind = policy.APIServerPeer
		}
		if peer.Kind == policy.HostPeer || peer.Kind == policy.NodePeer {
			name := r.Node
			if name == "" && peer.Kind == policy.HostPeer {
				name = p.own
			}
			node, _, _ := nodes.Get(name)
			peer.NodeLabels = node.Labels
		}
		add(r.Prefix.Masked(), peer)
		if at := out[r.Prefix.Masked()]; r.Kind == state.RemotePods && at.peer.Kind == policy.UnknownPeer {
			at.node = r.Node
		}
	}
	return out
}

// exactness orders kinds by how much they say.
func exactness(k policy.PeerKind) int {
	switch k {
	case policy.HostPeer:
		return 4
	case policy.NodePeer:
		return 3
	case policy.APIServerPeer:
		return 2
	case policy.UnknownPeer:
		return 1
	}
	return 0
}
