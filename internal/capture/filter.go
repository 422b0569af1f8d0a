package capture

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Filter chooses packets of some ends. The zero value chooses all.
type Filter struct {
	// Ends are the addresses of who is captured at; of none everything is chosen and nothing else in here counts.
	Ends []netip.Addr `json:"ends,omitempty"`
	// Peers are those they talk to; none: anybody.
	Peers []Peer `json:"peers,omitempty"`
	// EndPort is a port of Ends, 0: any.
	EndPort uint16 `json:"endPort,omitempty"`
	// Port is one of either end, 0: any.
	Port uint16 `json:"port,omitempty"`
	// Protocol is one of IPPROTO_*, 0: any. ICMP stands for that of either family.
	Protocol uint8 `json:"protocol,omitempty"`
	// ToEnds leaves out what the ends send.
	ToEnds bool `json:"toEnds,omitempty"`
}

// Peer is an address, and a port of it unless that is 0.
type Peer struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
}

// All reports whether nothing is left out but what is for others: at a pod's own interface everything is the pod's.
func (f Filter) All() bool {
	return len(f.Peers) == 0 && f.EndPort == 0 && f.Port == 0 && f.Protocol == 0 && !f.ToEnds
}

// protocol reports whether the protocol is wanted.
func (f Filter) protocol(p uint8) bool {
	return f.Protocol == 0 || p == f.Protocol || f.Protocol == ICMP && p == ICMPv6
}

// Match reports whether a packet is wanted, and whether it is only because of the packet that it quotes. Later fragments are judged without ports.
func (f Filter) Match(h *Header, data []byte) bool {
	if len(f.Ends) == 0 {
		return true
	}
	if !h.IP {
		return f.All()
	}
	if f.ours(h) {
		return true
	}
	// An error comes from anywhere on the way, and is about what an end has sent.
	if q, ok := h.quoted(data); ok && (f.end(h.Target) || !f.ToEnds && f.end(h.Source)) {
		f.ToEnds = false
		return f.ours(&q)
	}
	return false
}

func (f Filter) ours(h *Header) bool {
	if !f.protocol(h.Protocol) {
		return false
	}
	ported := h.Ports || !h.Later // of something that has no ports none is right
	if f.Port != 0 && ported && (!h.Ports || h.Source.Port() != f.Port && h.Target.Port() != f.Port) {
		return false
	}
	between := func(end, peer netip.AddrPort) bool {
		return f.end(end) && (f.EndPort == 0 || !ported || h.Ports && end.Port() == f.EndPort) &&
			(len(f.Peers) == 0 || slices.ContainsFunc(f.Peers, func(p Peer) bool {
				return p.Address == peer.Addr() && (p.Port == 0 || !ported || h.Ports && p.Port == peer.Port())
			}))
	}
	return between(h.Target, h.Source) || !f.ToEnds && between(h.Source, h.Target)
}

func (f Filter) end(a netip.AddrPort) bool { return slices.Contains(f.Ends, a.Addr()) }

// String writes the filter as tcpdump would take it.
func (f Filter) String() string {
	var parts []string
	if len(f.Ends) > 0 {
		var hosts []string
		for _, a := range f.Ends {
			switch {
			case f.ToEnds:
				hosts = append(hosts, "dst host "+a.String())
			default:
				hosts = append(hosts, "host "+a.String())
			}
		}
		parts = append(parts, anyOf(hosts))
	}
	var peers []string
	for _, p := range f.Peers {
		text := "host " + p.Address.String()
		if p.Port != 0 {
			text = fmt.Sprintf("(%s and port %d)", text, p.Port)
		}
		peers = append(peers, text)
	}
	if len(peers) > 0 {
		parts = append(parts, anyOf(peers))
	}
	for _, port := range []uint16{f.EndPort, f.Port} {
		if port != 0 {
			parts = append(parts, fmt.Sprintf("port %d", port))
		}
	}
	switch f.Protocol {
	case 0:
	case ICMP:
		parts = append(parts, "(icmp or icmp6)")
	default:
		parts = append(parts, ProtocolName(f.Protocol))
	}
	return strings.Join(parts, " and ")
}

func anyOf(texts []string) string {
	if len(texts) == 1 {
		return texts[0]
	}
	return "(" + strings.Join(texts, " or ") + ")"
}

// ProtocolName is the name of a protocol in small letters.
func ProtocolName(p uint8) string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	case ICMP:
		return "icmp"
	case ICMPv6:
		return "icmp6"
	}
	return fmt.Sprintf("proto %d", p)
}
