package capture

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// Protocols, by IANA's numbers.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	SCTP   = 132
)

// Headers of IPv6 that stand before the real one.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destination = 60
	mobility    = 135
	hostID      = 139
	shim6       = 140
)

// extension reports whether another header follows one of IPv6.
func extension(next uint8) bool {
	switch next {
	case hopByHop, routing, fragment, authHeader, destination, mobility, hostID, shim6:
		return true
	}
	return false
}

const (
	etherLen  = 14
	vlanLen   = 4
	ipv4Len   = 20
	ipv6Len   = 40
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherIPv6 = 0x86dd
)

// The flags of TCP.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Header is what a packet says of itself, as far as it was captured.
type Header struct {
	IP        bool   // Source and Target are addresses
	EtherType uint16 // 0: there is no Ethernet header
	// Source and Target have ports where Ports is true.
	Source, Target netip.AddrPort
	Protocol       uint8
	Ports          bool
	Fragment       bool   // of a larger packet
	Later          bool   // and not its first one: there are no ports in it
	ID             uint32 // of the fragments of a packet; of IPv4 always
	TCPFlags       uint8
	ICMPType       uint8
	ICMPCode       uint8
	Length         int // from the IP header on, as it says; 0 of packets for segmentation offload larger than it can say
	Payload        int // behind the header of L4, of what Length says
	transport      int // offset of L4 in the data, 0: none
}

// Decode reads a packet. What cannot be read is left out.
func Decode(link uint16, data []byte) (h Header) {
	at := 0
	if link == LinkEthernet {
		if len(data) < etherLen {
			return h
		}
		at = etherLen
		h.EtherType = binary.BigEndian.Uint16(data[12:])
		for (h.EtherType == etherVLAN || h.EtherType == etherQinQ) && len(data) >= at+vlanLen {
			h.EtherType = binary.BigEndian.Uint16(data[at+2:])
			at += vlanLen
		}
		if h.EtherType != etherIPv4 && h.EtherType != etherIPv6 {
			return h
		}
	}
	h.network(data, at)
	return h
}

// network reads IP at an offset.
func (h *Header) network(data []byte, at int) {
	if len(data) <= at {
		return
	}
	switch data[at] >> 4 {
	case 4:
		if h.EtherType != etherIPv6 {
			h.ipv4(data, at)
		}
	case 6:
		if h.EtherType != etherIPv4 {
			h.ipv6(data, at)
		}
	}
}

func (h *Header) ipv4(data []byte, at int) {
	if len(data) < at+ipv4Len {
		return
	}
	ip := data[at:]
	size := int(ip[0]&0xf) * 4
	if size < ipv4Len {
		return
	}
	h.IP = true
	h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), 0)
	h.Target = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), 0)
	h.Protocol, h.Length = ip[9], int(binary.BigEndian.Uint16(ip[2:]))
	h.ID = uint32(binary.BigEndian.Uint16(ip[4:]))
	const more, offset = 0x2000, 0x1fff
	place := binary.BigEndian.Uint16(ip[6:])
	h.Fragment, h.Later = place&(more|offset) != 0, place&offset != 0
	h.layer4(data, at, at+size)
}

func (h *Header) ipv6(data []byte, at int) {
	if len(data) < at+ipv6Len {
		return
	}
	ip := data[at:]
	h.IP = true
	h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:24])), 0)
	h.Target = netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[24:40])), 0)
	if n := int(binary.BigEndian.Uint16(ip[4:])); n > 0 {
		h.Length = ipv6Len + n
	}
	next, end := ip[6], at+ipv6Len
	for extension(next) && !h.Later {
		if len(data) < end+8 {
			h.Protocol = next
			return
		}
		x := data[end:]
		size := (int(x[1]) + 1) * 8
		switch next {
		case fragment:
			size = 8
			h.ID = binary.BigEndian.Uint32(x[4:])
			place := binary.BigEndian.Uint16(x[2:])
			h.Fragment, h.Later = h.Fragment || place&0xfff9 != 0, place>>3 != 0
		case authHeader:
			size = (int(x[1]) + 2) * 4
		}
		next, end = x[0], end+size
	}
	h.Protocol = next
	h.layer4(data, at, end)
}

// layer4 reads ports, flags and types; network is the offset of the IP header.
func (h *Header) layer4(data []byte, network, at int) {
	if h.Length > 0 {
		h.Payload = max(h.Length-(at-network), 0)
	}
	if h.Later {
		h.transport = min(at, len(data))
		return
	}
	if at >= len(data) {
		return
	}
	l4 := data[at:]
	h.transport = at
	switch h.Protocol {
	case TCP, UDP, SCTP:
		if len(l4) < 4 {
			return
		}
		h.Ports = true
		h.Source = netip.AddrPortFrom(h.Source.Addr(), binary.BigEndian.Uint16(l4))
		h.Target = netip.AddrPortFrom(h.Target.Addr(), binary.BigEndian.Uint16(l4[2:]))
		size := 8
		switch {
		case h.Protocol == SCTP:
			size = 12
		case h.Protocol == TCP && len(l4) >= 14:
			h.TCPFlags, size = l4[13], int(l4[12]>>4)*4
		}
		h.Payload = max(h.Payload-size, 0)
	case ICMP, ICMPv6:
		if len(l4) < 2 {
			return
		}
		h.ICMPType, h.ICMPCode = l4[0], l4[1]
		h.Payload = max(h.Payload-8, 0)
	}
}

// icmpError reports whether it speaks about another packet.
func (h *Header) icmpError() bool {
	switch {
	case h.Later:
		return false
	case h.Protocol == ICMP && h.Source.Addr().Is4():
		return h.ICMPType == 3 || h.ICMPType == 4 || h.ICMPType == 5 || h.ICMPType == 11 || h.ICMPType == 12
	case h.Protocol == ICMPv6:
		return h.ICMPType < 128
	}
	return false
}

// quoted is the packet that an ICMP error speaks about.
func (h *Header) quoted(data []byte) (q Header, ok bool) {
	const quote = 8 // bytes of the error before it
	if h.transport == 0 || !h.icmpError() || len(data) < h.transport+quote {
		return q, false
	}
	q.network(data, h.transport+quote)
	return q, q.IP
}

// tuple names a connection, whoever of the two sends.
type tuple struct {
	a, b     netip.AddrPort // a is not larger
	protocol uint8
}

// tupleOf has no ports for ICMP: flows do not tell identifiers.
func tupleOf(protocol uint8, from, to netip.AddrPort) tuple {
	if protocol != TCP && protocol != UDP && protocol != SCTP {
		from, to = netip.AddrPortFrom(from.Addr(), 0), netip.AddrPortFrom(to.Addr(), 0)
	}
	if to.Compare(from) < 0 {
		from, to = to, from
	}
	return tuple{from, to, protocol}
}

func (h *Header) tuple() tuple { return tupleOf(h.Protocol, h.Source, h.Target) }

// fingerprint is equal for the same packet at two places of a node: behind the IP header nothing changes on the way.
func (h *Header) fingerprint(seed maphash.Seed, p *Packet) uint64 {
	var m maphash.Hash
	m.SetSeed(seed)
	var fixed [4 + 4 + 1]byte
	binary.BigEndian.PutUint32(fixed[0:], h.ID)
	binary.BigEndian.PutUint32(fixed[4:], uint32(h.Length))
	fixed[8] = h.Protocol
	source, target := h.Source.Addr().As16(), h.Target.Addr().As16()
	_, _ = m.Write(fixed[:]) // never fails, nor do those below
	_, _ = m.Write(source[:])
	_, _ = m.Write(target[:])
	if h.transport > 0 {
		_, _ = m.Write(p.Data[h.transport:])
	}
	return m.Sum64()
}
