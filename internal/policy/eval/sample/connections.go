package sample

import (
	"math/rand/v2"
	"net/netip"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Connections makes connections of which at least one end is a pod, or a node that policy may select: to ports and between addresses at the
// edges of what policies name, and to any others now and then.
func Connections(r *rand.Rand, c *eval.Cluster, n int) []eval.Connection {
	addresses, edges := places(c)
	targets := edgePorts(c)
	out := make([]eval.Connection, 0, n)
	for tries := 0; len(out) < n && tries < 50*n; tries++ {
		own := addresses[r.IntN(len(addresses))]
		peer := addresses[r.IntN(len(addresses))]
		if len(edges) > 0 && r.IntN(3) == 0 {
			peer = edges[r.IntN(len(edges))]
		}
		if own.Is4() != peer.Is4() {
			continue
		}
		target := targets[r.IntN(len(targets))]
		conn := eval.Connection{From: own, To: peer, Protocol: target.protocol, Port: target.port}
		if r.IntN(2) == 0 {
			conn.From, conn.To = peer, own
		}
		switch r.IntN(16) {
		case 0:
			conn.Protocol, conn.Port = policy.ICMP, 8<<8
			if own.Is6() {
				conn.Protocol, conn.Port = policy.ICMPv6, 128<<8
			}
			if r.IntN(4) == 0 {
				conn.Port = uint16([]int{0, 8, 128, 129, 255}[r.IntN(5)])<<8 | uint16(r.IntN(2)*255)
			}
		case 1:
			conn.Port = uint16(r.IntN(1 << 16))
		case 2, 3:
			conn.Protocol = protocols[r.IntN(len(protocols))]
		}
		switch {
		case own.Is4() && conn.Protocol == policy.ICMPv6:
			conn.Protocol = policy.ICMP
		case own.Is6() && conn.Protocol == policy.ICMP:
			conn.Protocol = policy.ICMPv6
		}
		out = append(out, conn)
	}
	return out
}

// places returns where everything is, and the edges of every block that policies name.
func places(c *eval.Cluster) (addresses, edges []netip.Addr) {
	for i := range c.Pods {
		// Pods more than once: they are what policy is about.
		addresses = append(append(addresses, c.Pods[i].Addresses...), c.Pods[i].Addresses...)
	}
	for i := range c.Nodes {
		addresses = append(addresses, c.Nodes[i].Addresses...)
	}
	addresses = append(addresses, c.APIServers...)
	six := false
	for _, p := range c.CIDRs {
		six = six || p.Addr().Is6()
	}
	for _, list := range [][]string{outside, nobodys} {
		for _, text := range list {
			if a := netip.MustParseAddr(text); a.Is4() || six {
				addresses = append(addresses, a)
			}
		}
	}
	for i := range c.Policies {
		for _, d := range []policy.Direction{c.Policies[i].Ingress, c.Policies[i].Egress} {
			for _, rule := range d.Rules {
				for _, s := range rule.Peers {
					if s.Kind == policy.SelectCIDR {
						edges = append(edges, edgesOf(s.CIDR)...)
						for _, e := range s.Except {
							edges = append(edges, edgesOf(e)...)
						}
					}
				}
			}
		}
	}
	return addresses, edges
}

// edgesOf returns the first and the last address of a prefix and their neighbours outside.
func edgesOf(p netip.Prefix) []netip.Addr {
	first := p.Masked().Addr()
	b := first.AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	var out []netip.Addr
	for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
		// Neither outside of the family nor an IPv4 address in disguise.
		if a.IsValid() && a.Is4() == p.Addr().Is4() && !a.Is4In6() {
			out = append(out, a)
		}
	}
	return out
}

// target is a protocol and a port.
type target struct {
	protocol policy.Protocol
	port     uint16
}

// edgePorts returns the first and the last port of every range, their neighbours, and what names stand for anywhere.
func edgePorts(c *eval.Cluster) []target {
	out := []target{{policy.TCP, 80}, {policy.UDP, 8080}, {policy.SCTP, 1}, {policy.TCP, 65535}}
	for i := range c.Policies {
		for _, d := range []policy.Direction{c.Policies[i].Ingress, c.Policies[i].Egress} {
			for _, rule := range d.Rules {
				for _, p := range rule.Ports {
					out = append(out, targetsOf(c, p)...)
				}
			}
		}
	}
	return out
}

func targetsOf(c *eval.Cluster, p policy.Port) []target {
	var out []target
	if p.Name != "" {
		for i := range c.Pods {
			for _, named := range c.Pods[i].Ports {
				if named.Name == p.Name {
					out = append(out, target{named.Protocol, named.Port})
				}
			}
		}
		return out
	}
	which := []policy.Protocol{p.Protocol}
	if p.Protocol == policy.AnyProtocol {
		which = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}
	}
	for _, protocol := range which {
		for _, port := range []uint16{p.First, p.Last, p.First - 1, p.Last + 1} {
			out = append(out, target{protocol, port})
		}
	}
	return out
}
