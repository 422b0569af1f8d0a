// Package announce decides which node answers ARP and neighbour discovery for a service address, and tells the neighbours.
package announce

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// successors is how many nodes watch those before them: they take over within seconds. Others wait for the slow round of probes.
const successors = 2

// View is the cluster as one node sees it.
type View struct {
	Self     string
	Nodes    []state.Node
	Devices  []state.Device
	Services []state.Service
	// Serving returns the nodes with an endpoint of the service and family that connections may go to. It is asked about services with
	// externalTrafficPolicy Local.
	Serving func(name state.ServiceName, v6 bool) map[string]bool
	// Alive reports whether a node answers for its addresses. Without known that is what it is taken for until it has been asked: nothing
	// is taken over from such a node.
	Alive func(node string) (alive, known bool)
}

// Decision is what follows from a View.
type Decision struct {
	Announcements []state.Announcement // of this node, by address
	Watch         []string             // nodes whose death or return changes something here, by name
}

// Plan is pure. For each address the nodes that may announce it are ranked by a hash of node and address (highest random weight), and the
// first that is alive does: all nodes that see the same agree without talking to each other, and when a node goes only its own
// addresses move.
func Plan(v View) Decision {
	p := planner{View: v, taken: map[netip.Addr]bool{}, near: map[netip.Prefix][]candidate{}}
	for _, n := range v.Nodes {
		for _, a := range n.Addresses {
			p.taken[a] = true
		}
		if n.Name == v.Self {
			p.self = n
		}
	}
	for _, d := range v.Devices {
		for _, a := range d.Addresses {
			p.taken[a.Addr()] = true
		}
	}
	var out Decision
	watch := map[string]bool{}
	wanted := p.addresses()
	for addr, services := range wanted {
		device, prefix, ok := p.device(addr)
		if !ok {
			continue
		}
		first, above := p.rank(addr, p.restrict(p.candidates(prefix), addr, services))
		if first {
			out.Announcements = append(out.Announcements, state.Announcement{Address: addr, Device: device})
		}
		for _, n := range above {
			watch[n] = true
		}
	}
	slices.SortFunc(out.Announcements, func(a, b state.Announcement) int { return a.Address.Compare(b.Address) })
	for n := range watch {
		out.Watch = append(out.Watch, n)
	}
	slices.Sort(out.Watch)
	return out
}

type planner struct {
	View
	self  state.Node
	taken map[netip.Addr]bool // addresses of nodes: their own stacks answer for them
	near  map[netip.Prefix][]candidate
}

type candidate struct {
	name string
	hash uint64
}

// addresses returns what is to be announced by anybody, with the services at each address.
func (p *planner) addresses() map[netip.Addr][]state.Service {
	out := map[netip.Addr][]state.Service{}
	for _, s := range p.Services {
		for _, a := range Addresses(s) {
			if !p.taken[a] {
				out[a] = append(out[a], s)
			}
		}
	}
	return out
}

// Addresses returns the addresses of a service that are for Strait to announce: external IPs, and LoadBalancer addresses that Strait has
// given or whose class is Strait's. Others have somebody who announces them.
func Addresses(s state.Service) []netip.Addr {
	if s.Proxy != "" || s.Headless || s.Type == state.ExternalName {
		return nil
	}
	out := slices.Clone(s.ExternalIPs)
	if s.Type == state.LoadBalancer && (s.Class == v1alpha1.LoadBalancerClass || s.Class == "" && s.Allocation.Reason != "") {
		out = append(out, s.Ingress...)
	}
	return out
}

// device finds the device on whose network an address lies: the most exact one, then the first by name.
func (p *planner) device(addr netip.Addr) (name string, network netip.Prefix, ok bool) {
	for _, d := range p.Devices {
		if !d.Native || !d.Up {
			continue
		}
		for _, a := range d.Addresses {
			m := a.Masked()
			if !m.Contains(addr) {
				continue
			}
			if !ok || cmp.Or(cmp.Compare(m.Bits(), network.Bits()), cmp.Compare(name, d.Name)) > 0 {
				name, network, ok = d.Name, m, true
			}
		}
	}
	return name, network, ok
}

// candidates returns the nodes that may announce addresses of a network. Nodes are known to be on it by their node addresses; a network
// this node is on without a node address of its own is another than the nodes', and all are taken to be on it.
func (p *planner) candidates(network netip.Prefix) []candidate {
	if list, known := p.near[network]; known {
		return list
	}
	on := func(n state.Node) bool { return slices.ContainsFunc(n.Addresses, network.Contains) }
	list := []candidate{}
	for _, n := range p.Nodes {
		if !n.NoLoadBalancer && !n.Tainted && (on(n) || !on(p.self)) {
			list = append(list, candidate{n.Name, hash([]byte(n.Name))})
		}
	}
	p.near[network] = list
	return list
}

// restrict keeps the nodes that have endpoints of every service at an address whose traffic has to stay on the node. If no node has, those
// that have endpoints of one must do.
func (p *planner) restrict(list []candidate, addr netip.Addr, services []state.Service) []candidate {
	count, locals := map[string]int{}, 0
	for _, s := range services {
		if s.ExternalPolicy != state.PolicyLocal {
			continue
		}
		locals++
		for n := range p.Serving(s.ServiceName, addr.Is6()) {
			count[n]++
		}
	}
	if locals == 0 {
		return list
	}
	keep := func(least int) []candidate {
		var out []candidate
		for _, c := range list {
			if count[c.name] >= least {
				out = append(out, c)
			}
		}
		return out
	}
	if all := keep(locals); len(all) > 0 {
		return all
	}
	return keep(1)
}

// rank reports whether this node is the first of those alive, and the nodes before it, if it has to know what becomes of them.
func (p *planner) rank(addr netip.Addr, list []candidate) (first bool, above []string) {
	bytes := addr.As16()
	at := hash(bytes[:])
	own := slices.IndexFunc(list, func(c candidate) bool { return c.name == p.Self })
	if own < 0 {
		return false, nil
	}
	mine := weight(at, list[own].hash)
	alive, certain := 0, true
	for _, c := range list {
		w := weight(at, c.hash)
		if w < mine || w == mine && c.name >= p.Self {
			continue
		}
		is, known := p.Alive(c.name)
		if is {
			alive++
		}
		if alive > successors {
			return false, nil
		}
		certain = certain && known
		above = append(above, c.name)
	}
	return alive == 0 && certain, above
}

func hash(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b) // never fails
	return h.Sum64()
}

// weight mixes the hashes of an address and a node so that every bit of either counts in the order (the finaliser of splitmix64).
func weight(address, node uint64) uint64 {
	x := address ^ (node*0x9e3779b97f4a7c15 + 0x632be59bd9b4e019)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
