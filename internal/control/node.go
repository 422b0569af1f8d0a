package control

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/state"
)

// Cluster is what the ways between nodes are computed from.
type Cluster struct {
	Self         string
	Mode         config.RoutingMode
	IPv4, IPv6   bool
	TunnelDevice string
	Nodes        []state.Node
	Devices      []state.Device
	APIServers   []netip.Addr // endpoints of the API server, nodes among them or not
	// Held returns the row that is programmed for a prefix: its holder keeps it.
	Held func(netip.Prefix) (state.Remote, bool)
}

// Ways is what follows from a Cluster.
type Ways struct {
	Remotes  []state.Remote
	Routes   []state.Route
	Problems []state.Problem
}

// Compile computes the rows of the ipcache and of the node's routes. It is pure: the order of nodes and devices does not matter.
func Compile(c Cluster) Ways {
	k := compiler{Cluster: c, nodes: make(map[string]state.Node, len(c.Nodes))}
	for _, n := range c.Nodes {
		k.nodes[n.Name] = n
	}
	k.self = k.nodes[c.Self]
	k.checkNodes()
	settled, problems := settle(k.claims())
	k.out.Problems = append(k.out.Problems, problems...)
	k.out.Remotes = make([]state.Remote, 0, len(settled.held))
	for _, h := range settled.held {
		if h.node == c.Self {
			k.own(h)
		} else {
			k.remote(h)
		}
	}
	k.apiServers(settled)
	k.sumUnreachable()
	return k.out
}

type compiler struct {
	Cluster
	nodes       map[string]state.Node
	self        state.Node
	unreachable map[string][]string // node -> prefixes without a way
	out         Ways
}

func (k *compiler) enabled(a netip.Addr) bool { return a.Is4() && k.IPv4 || a.Is6() && k.IPv6 }

func (k *compiler) problem(node, format string, args ...any) {
	k.out.Problems = append(k.out.Problems, state.Problem{Subject: subject(node), Text: fmt.Sprintf(format, args...)})
}

// checkNodes reports what makes nodes unusable for reasons of their own.
func (k *compiler) checkNodes() {
	for _, n := range k.Nodes {
		if len(n.Addresses) == 0 {
			k.problem(n.Name, "has no InternalIP in status.addresses; there is no way to its pods")
		}
	}
	for _, v6 := range []bool{false, true} {
		enabled, family := k.IPv4, "IPv4"
		if v6 {
			enabled, family = k.IPv6, "IPv6"
		}
		if enabled && !k.self.PodCIDR(v6).IsValid() {
			k.problem(k.Self, "has no %s pod CIDR in spec.podCIDRs; pods get no %s address before strait-operator (ipam.mode cluster-pool) or "+
				"kube-controller-manager (ipam.mode kubernetes) has set it", family, family)
		}
	}
}

// claims lists every prefix of an enabled family that a node or a device of this node says it has.
func (k *compiler) claims() []claim {
	out := make([]claim, 0, 4*len(k.nodes)+8)
	add := func(n state.Node, kind state.RemoteKind, p netip.Prefix, rank int) {
		if !k.enabled(p.Addr()) {
			return
		}
		if row, ok := k.Held(p); ok && rank == rankNew && row.Node == n.Name && order(row.Kind) == order(kind) {
			rank = rankHeld
		}
		out = append(out, claim{prefix: p, kind: kind, node: n.Name, created: n.Created, rank: rank})
	}
	own := state.Node{Name: k.Self, Created: k.self.Created}
	for _, d := range k.Devices {
		for _, p := range d.Addresses {
			add(own, state.RemoteHost, host(p.Addr()), rankFact)
		}
	}
	for _, n := range k.nodes {
		kind := state.RemoteNode
		if n.Name == k.Self {
			kind = state.RemoteHost
		}
		for _, a := range n.Addresses {
			add(n, kind, host(a), rankNew)
		}
		for _, p := range n.PodCIDRs {
			add(n, state.RemotePods, p, rankNew)
		}
	}
	return out
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()) }

// own makes the rows of this node. The stack answers for pods that are not there: unreachable instead of the default route.
func (k *compiler) own(c claim) {
	k.out.Remotes = append(k.out.Remotes, state.Remote{Prefix: c.prefix, Kind: c.kind, Node: c.node})
	if c.kind == state.RemotePods {
		k.out.Routes = append(k.out.Routes, state.Route{Prefix: c.prefix, Kind: state.RouteUnreachable})
	}
}

// remote makes the rows of another node, unless there is no way to it.
func (k *compiler) remote(c claim) {
	row := state.Remote{Prefix: c.prefix, Kind: c.kind, Node: c.node}
	route := state.Route{Prefix: c.prefix, Kind: state.RouteUnicast}
	switch k.Mode {
	case config.NativeMode:
		via := k.nodes[c.node].Address(c.prefix.Addr().Is6())
		device, ok := k.onLink(via)
		if !ok {
			k.noWay(c)
			return
		}
		row.NextHop, row.Device = via, device
		route.Via, route.Device = via, device
	default:
		endpoint := k.tunnelEndpoint(k.nodes[c.node])
		if !endpoint.IsValid() {
			k.noWay(c)
			return
		}
		row.Tunnel, row.NextHop = true, endpoint
		route.Device, route.Source = k.TunnelDevice, k.source(c.prefix.Addr().Is6())
	}
	k.out.Remotes = append(k.out.Remotes, row)
	if c.kind == state.RemotePods {
		k.out.Routes = append(k.out.Routes, route)
	}
}

// tunnelEndpoint returns the address of n in a family both nodes have, IPv4 first. Both ends must come to the same family:
// a packet is refused when its outer source is not the endpoint of the row its sender is in.
func (k *compiler) tunnelEndpoint(n state.Node) netip.Addr {
	for _, v6 := range []bool{false, true} {
		if a := n.Address(v6); a.IsValid() && (k.self.Address(v6).IsValid() || len(k.self.Addresses) == 0) {
			return a
		}
	}
	return netip.Addr{}
}

// source returns this node's address of the family if a device has it; the kernel refuses a route from any other.
func (k *compiler) source(v6 bool) netip.Addr {
	a := k.self.Address(v6)
	for _, d := range k.Devices {
		for _, p := range d.Addresses {
			if p.Addr() == a {
				return a
			}
		}
	}
	return netip.Addr{}
}

// onLink returns the device in whose subnet an address is; the longest subnet, then the first name.
func (k *compiler) onLink(a netip.Addr) (device string, ok bool) {
	best := -1
	for _, d := range k.Devices {
		if !d.Native || !d.Up {
			continue
		}
		for _, p := range d.Addresses {
			if !p.Contains(a) || p.Addr() == a {
				continue
			}
			if p.Bits() > best || p.Bits() == best && d.Name < device {
				best, device, ok = p.Bits(), d.Name, true
			}
		}
	}
	return device, ok
}

// noWay notes a prefix for the one problem its node gets.
func (k *compiler) noWay(c claim) {
	if len(k.nodes[c.node].Addresses) == 0 {
		return // reported by checkNodes
	}
	if k.unreachable == nil {
		k.unreachable = map[string][]string{}
	}
	k.unreachable[c.node] = append(k.unreachable[c.node], c.prefix.String())
}

func (k *compiler) sumUnreachable() {
	for _, n := range k.Nodes {
		list := strings.Join(k.unreachable[n.Name], ", ")
		switch {
		case list == "":
		case k.Mode == config.NativeMode:
			k.problem(n.Name, "no native route to %s: its addresses %v are not in a subnet of this node (%s); use routingMode vxlan, "+
				"or connect the nodes to one L2 network", list, n.Addresses, k.subnets())
		default:
			k.problem(n.Name, "no tunnel to %s: its addresses %v and this node's %v have no family in common", list, n.Addresses, k.self.Addresses)
		}
	}
}

func (k *compiler) subnets() string {
	var out []string
	for _, d := range k.Devices {
		for _, p := range d.Addresses {
			if d.Native && d.Up {
				out = append(out, p.Masked().String()+" on "+d.Name)
			}
		}
	}
	if len(out) == 0 {
		return "none is up"
	}
	return strings.Join(out, ", ")
}

// apiServers adds the API server endpoints that no node and no pod CIDR covers.
func (k *compiler) apiServers(settled *territory) {
	done := map[netip.Addr]bool{}
	for _, a := range k.APIServers {
		if _, covered := settled.overlapping(host(a)); covered || done[a] || !k.enabled(a) {
			continue
		}
		done[a] = true
		k.out.Remotes = append(k.out.Remotes, state.Remote{Prefix: host(a), Kind: state.RemoteAPIServer})
	}
}
