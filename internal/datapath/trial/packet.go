package trial

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packet is a packet to be tried, or what has become of one: the first of an end's packets of a connection.
type Packet struct {
	Source   netip.AddrPort // an ICMP echo has its identifier as both ports
	Target   netip.AddrPort
	Protocol uint8 // IPPROTO_*; that of ICMP follows from the addresses
	Answer   bool  // of the end that did not begin: SYN and ACK, INIT ACK, an echo reply
	Size     int   // bytes from L3 on; less than the headers need: as small as it can be
	TTL      uint8 // 0: 64
	To       net.HardwareAddr
	From     net.HardwareAddr
	// Front is the service address that the packet carries for the backend's node, with direct server return (bpf/lib/dsr.h).
	Front netip.AddrPort
}

const (
	etherLen = 14
	ipv4Len  = 20
	ipv6Len  = 40

	tcpSYN = 0x02
	tcpACK = 0x10

	frontType4, frontLen4 = 158, 8
	frontType6, frontLen6 = 0x1e, 24
	frontData6            = 18 // behind type and length

	defaultTTL = 64
	dontSplit  = 0x4000 // IPv4's "don't fragment", as hosts send with path MTU discovery
)

// MaxSize is the largest packet that can be tried: a test run has one page for it.
const MaxSize = 3200

// IPv6 reports the family.
func (p Packet) IPv6() bool { return p.Target.Addr().Is6() }

func (p Packet) icmp() bool {
	return p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6
}

// header is the length of everything before L4.
func (p Packet) header() int {
	switch {
	case p.IPv6() && p.Front.IsValid():
		return ipv6Len + frontLen6
	case p.IPv6():
		return ipv6Len
	case p.Front.IsValid():
		return ipv4Len + frontLen4
	}
	return ipv4Len
}

// Length is the size that the packet will have, from L3 on.
func (p Packet) Length() int { return max(p.header()+len(p.transport()), p.Size) }

// Frame builds the Ethernet frame, with right lengths and checksums.
func (p Packet) Frame() ([]byte, error) {
	src, dst := p.Source.Addr(), p.Target.Addr()
	if !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return nil, fmt.Errorf("packet from %v to %v: want two addresses of one family", src, dst)
	}
	if p.Size > MaxSize {
		return nil, fmt.Errorf("packet of %d bytes: at most %d can be tried", p.Size, MaxSize)
	}
	l4 := p.transport()
	if l4 == nil {
		return nil, fmt.Errorf("packet of protocol %d: want TCP, UDP, SCTP or ICMP", p.Protocol)
	}
	header := p.header()
	kind := uint16(unix.ETH_P_IP)
	if p.IPv6() {
		kind = unix.ETH_P_IPV6
	}
	l4 = append(l4, make([]byte, max(0, p.Size-header-len(l4)))...)
	if p.Protocol == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	p.seal(l4)
	frame := make([]byte, etherLen, etherLen+header+len(l4))
	copy(frame, p.To)
	copy(frame[6:], p.From)
	binary.BigEndian.PutUint16(frame[12:], kind)
	frame = append(frame, p.network(len(l4))...)
	return append(frame, l4...), nil
}

func (p Packet) ttl() uint8 {
	if p.TTL == 0 {
		return defaultTTL
	}
	return p.TTL
}

// number is the protocol as the family calls it.
func (p Packet) number() uint8 {
	switch {
	case !p.icmp():
		return p.Protocol
	case p.IPv6():
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

func (p Packet) network(payload int) []byte {
	h := make([]byte, p.header())
	if p.IPv6() {
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-ipv6Len+payload))
		h[6], h[7] = p.number(), p.ttl()
		if p.Front.IsValid() {
			h[6] = unix.IPPROTO_DSTOPTS
			option := h[ipv6Len:]
			option[0], option[1], option[2], option[3] = p.number(), frontLen6/8-1, frontType6, frontData6
			binary.BigEndian.PutUint16(option[4:], p.Front.Port())
			copy(option[6:], p.Front.Addr().AsSlice())
		}
		copy(h[8:], p.Source.Addr().AsSlice())
		copy(h[24:], p.Target.Addr().AsSlice())
		return h
	}
	h[0] = 4<<4 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+payload))
	binary.BigEndian.PutUint16(h[6:], dontSplit)
	h[8], h[9] = p.ttl(), p.number()
	copy(h[12:], p.Source.Addr().AsSlice())
	copy(h[16:], p.Target.Addr().AsSlice())
	if p.Front.IsValid() {
		h[ipv4Len], h[ipv4Len+1] = frontType4, frontLen4
		binary.BigEndian.PutUint16(h[ipv4Len+2:], p.Front.Port())
		copy(h[ipv4Len+4:], p.Front.Addr().AsSlice())
	}
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
	return h
}

// transport is the L4 header, without checksum; nil for a protocol that is not known here.
func (p Packet) transport() []byte {
	ports := func(size int) []byte {
		b := make([]byte, size)
		binary.BigEndian.PutUint16(b, p.Source.Port())
		binary.BigEndian.PutUint16(b[2:], p.Target.Port())
		return b
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		b := ports(20)
		b[12], b[13] = 5<<4, tcpSYN
		if p.Answer {
			b[13] |= tcpACK
		}
		binary.BigEndian.PutUint16(b[14:], 65535)
		return b
	case unix.IPPROTO_UDP:
		b := ports(8)
		binary.BigEndian.PutUint16(b[4:], 8)
		return b
	case unix.IPPROTO_SCTP:
		b := ports(32)
		b[12], b[15] = 1, 20 // INIT
		if p.Answer {
			b[12] = 2
		}
		return b
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b := make([]byte, 8)
		b[0] = p.echo()
		binary.BigEndian.PutUint16(b[4:], p.Source.Port())
		return b
	}
	return nil
}

func (p Packet) echo() byte {
	switch {
	case p.IPv6() && p.Answer:
		return 129
	case p.IPv6():
		return 128
	case p.Answer:
		return 0
	}
	return 8
}

// seal writes the checksum. SCTP's CRC stays 0, which says that a device will compute it.
func (p Packet) seal(l4 []byte) {
	at, pseudo := 0, uint32(0)
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		at = 16
	case unix.IPPROTO_UDP:
		at = 6
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		at = 2
	default:
		return
	}
	if !p.icmp() || p.IPv6() {
		pseudo = uint32(sum(0, p.Source.Addr().AsSlice())) + uint32(sum(0, p.Target.Addr().AsSlice())) + uint32(p.number()) + uint32(len(l4))
	}
	binary.BigEndian.PutUint16(l4[at:], ^sum(pseudo, l4))
}

// sum is the ones' complement sum of RFC 1071.
func sum(start uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		start += uint32(b[len(b)-1]) << 8
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

var errShort = errors.New("frame is too short, or no IP")

// Read is the reverse of Frame.
func Read(frame []byte) (p Packet, err error) {
	if len(frame) < etherLen+ipv4Len {
		return p, errShort
	}
	p.To, p.From = net.HardwareAddr(frame[:6]), net.HardwareAddr(frame[6:12])
	ip := frame[etherLen:]
	var src, dst netip.Addr
	var l4 []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		header := int(ip[0]&0xf) * 4
		p.Protocol, p.TTL = ip[9], ip[8]
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		p.Size = int(binary.BigEndian.Uint16(ip[2:]))
		l4 = ip[min(header, len(ip)):]
		if header >= ipv4Len+frontLen4 && len(ip) >= header && ip[ipv4Len] == frontType4 {
			p.Front = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[ipv4Len+4:])), binary.BigEndian.Uint16(ip[ipv4Len+2:]))
		}
	case unix.ETH_P_IPV6:
		if len(ip) < ipv6Len {
			return p, errShort
		}
		p.Protocol, p.TTL = ip[6], ip[7]
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		p.Size = ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
		l4 = ip[ipv6Len:]
		if p.Protocol == unix.IPPROTO_DSTOPTS && len(l4) >= frontLen6 && l4[2] == frontType6 {
			p.Protocol = l4[0]
			p.Front = netip.AddrPortFrom(netip.AddrFrom16([16]byte(l4[6:])), binary.BigEndian.Uint16(l4[4:]))
			l4 = l4[frontLen6:]
		}
	default:
		return p, errShort
	}
	if len(l4) < 8 {
		return p, errShort
	}
	sport, dport := binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		p.Answer = len(l4) > 13 && l4[13]&tcpACK != 0
	case unix.IPPROTO_SCTP:
		p.Answer = len(l4) > 12 && l4[12] == 2
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		p.Answer = l4[0] == 0 || l4[0] == 129
		sport = binary.BigEndian.Uint16(l4[4:])
		dport = sport
	}
	p.Source, p.Target = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, nil
}
