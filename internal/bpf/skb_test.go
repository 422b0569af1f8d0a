package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// family is one set of addresses of the little cluster every test lives in; v4 and v6 have the same roles.
type family struct {
	name                         string
	v6                           bool
	podA, podB, gone             netip.Addr // here; gone: of this node's CIDR, no pod
	podCIDR                      netip.Prefix
	tunnelPod, nativePod         netip.Addr // on other nodes, by mode
	tunnelCIDR, nativeCIDR       netip.Prefix
	node, tunnelNode, nativeNode netip.Addr
	world, apiserver             netip.Addr
	link                         netip.Prefix // of the node's device
	gateway                      netip.Addr
	multicast, housekeeping      netip.Addr
	podGateway                   netip.Addr
}

func families() []family {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	return []family{{
		name: "v4",
		podA: a("10.1.0.2"), podB: a("10.1.0.3"), gone: a("10.1.0.99"), podCIDR: p("10.1.0.0/24"),
		tunnelPod: a("10.2.0.2"), nativePod: a("10.3.0.2"), tunnelCIDR: p("10.2.0.0/24"), nativeCIDR: p("10.3.0.0/24"),
		node: a("192.0.2.10"), tunnelNode: a("192.0.2.20"), nativeNode: a("192.0.2.30"),
		world: a("203.0.113.7"), apiserver: a("198.51.100.6"),
		link: p("192.0.2.10/24"), gateway: a("192.0.2.1"), multicast: a("239.1.2.3"), housekeeping: a("224.0.0.251"), podGateway: a("169.254.1.1"),
	}, {
		name: "v6", v6: true,
		podA: a("fd00:1::2"), podB: a("fd00:1::3"), gone: a("fd00:1::99"), podCIDR: p("fd00:1::/64"),
		tunnelPod: a("fd00:2::2"), nativePod: a("fd00:3::2"), tunnelCIDR: p("fd00:2::/64"), nativeCIDR: p("fd00:3::/64"),
		node: a("2001:db8:1::10"), tunnelNode: a("2001:db8:1::20"), nativeNode: a("2001:db8:1::30"),
		world: a("2001:db8:ffff::7"), apiserver: a("2001:db8:aaaa::6"),
		link: p("2001:db8:1::10/64"), gateway: a("2001:db8:1::1"), multicast: a("ff05::123"), housekeeping: a("ff02::fb"), podGateway: a("fe80::1"),
	}}
}

// echo types and the ICMP protocol of a family.
func (f family) icmpProto() uint8 {
	if f.v6 {
		return 58
	}
	return 1
}

// skb is a packet to be built: addresses, one L4 layer or raw bytes behind the IP header, and what else a test wants to say.
type skb struct {
	macs     [2]net.HardwareAddr // destination, source; zero: the pod's
	src, dst netip.Addr
	ttl      uint8 // 0: 64
	proto    layers.IPProtocol
	sport    uint16
	dport    uint16
	tcp      string // flags, of "SAFRP"
	l4       []byte // instead of a built L4 layer
	payload  []byte
	df       bool
	frag     frag
	options  bool // IPv4 options or IPv6 extension headers before L4
}

type frag struct {
	id     uint16
	offset uint16 // in 8 bytes
	more   bool
}

func (f frag) any() bool { return f.more || f.offset != 0 }

const (
	protoTCP  = layers.IPProtocolTCP
	protoUDP  = layers.IPProtocolUDP
	protoSCTP = layers.IPProtocolSCTP
)

func (s skb) l4Layers(t testing.TB, ip gopacket.NetworkLayer) []gopacket.SerializableLayer {
	t.Helper()
	switch {
	case s.l4 != nil:
		return []gopacket.SerializableLayer{gopacket.Payload(s.l4)}
	case s.proto == protoTCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(s.sport), DstPort: layers.TCPPort(s.dport), Seq: 1000, Window: 500}
		for _, c := range s.tcp {
			switch c {
			case 'S':
				tcp.SYN = true
			case 'A':
				tcp.ACK = true
			case 'F':
				tcp.FIN = true
			case 'R':
				tcp.RST = true
			case 'P':
				tcp.PSH = true
			}
		}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		return []gopacket.SerializableLayer{tcp, gopacket.Payload(s.payload)}
	case s.proto == protoUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.sport), DstPort: layers.UDPPort(s.dport)}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		return []gopacket.SerializableLayer{udp, gopacket.Payload(s.payload)}
	case s.proto == protoSCTP:
		return []gopacket.SerializableLayer{&layers.SCTP{SrcPort: layers.SCTPPort(s.sport), DstPort: layers.SCTPPort(s.dport)}, gopacket.Payload(s.payload)}
	}
	return []gopacket.SerializableLayer{gopacket.Payload(s.payload)}
}

// bytes builds the frame with right lengths and checksums.
func (s skb) bytes(t testing.TB) []byte {
	t.Helper()
	eth := &layers.Ethernet{DstMAC: s.macs[0], SrcMAC: s.macs[1], EthernetType: layers.EthernetTypeIPv4}
	if eth.DstMAC == nil {
		eth.DstMAC, eth.SrcMAC = macHost, macPod
	}
	if s.dst.Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	return serialize(t, append([]gopacket.SerializableLayer{eth}, s.l3Layers(t)...)...)
}

// l3 is bytes without the Ethernet header.
func (s skb) l3(t testing.TB) []byte {
	t.Helper()
	return serialize(t, s.l3Layers(t)...)
}

func (s skb) l3Layers(t testing.TB) []gopacket.SerializableLayer {
	t.Helper()
	ttl := s.ttl
	if ttl == 0 {
		ttl = 64
	}
	if s.dst.Is6() {
		return s.v6Layers(t, ttl)
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: ttl, Protocol: s.proto, Id: s.frag.id, FragOffset: s.frag.offset,
		SrcIP: s.src.AsSlice(), DstIP: s.dst.AsSlice()}
	if s.df {
		ip.Flags |= layers.IPv4DontFragment
	}
	if s.frag.more {
		ip.Flags |= layers.IPv4MoreFragments
	}
	if s.options { // record route, 3 addresses
		ip.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 15, OptionData: append([]byte{4}, make([]byte, 12)...)}}
	}
	return append([]gopacket.SerializableLayer{ip}, s.l4Layers(t, ip)...)
}

func (s skb) v6Layers(t testing.TB, ttl uint8) []gopacket.SerializableLayer {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: s.proto, SrcIP: s.src.AsSlice(), DstIP: s.dst.AsSlice()}
	all := []gopacket.SerializableLayer{ip}
	next := s.proto
	if s.frag.any() {
		h := []byte{byte(next), 0, byte(s.frag.offset >> 5), byte(s.frag.offset << 3), 0, 0, byte(s.frag.id >> 8), byte(s.frag.id)}
		if s.frag.more {
			h[3] |= 1
		}
		all, next = append(all, gopacket.Payload(h)), layers.IPProtocolIPv6Fragment
	}
	if s.options { // destination options with padding, then hop-by-hop: the outer one comes first
		dst := append([]byte{byte(next), 1, 1, 12}, make([]byte, 12)...)
		hop := []byte{60, 0, 1, 4, 0, 0, 0, 0}
		all = append([]gopacket.SerializableLayer{ip, gopacket.Payload(append(hop, dst...))}, all[1:]...)
		next = layers.IPProtocolIPv6HopByHop
	}
	ip.NextHeader = next
	// The checksum's pseudo header names the L4 protocol, not the first extension header.
	pseudo := &layers.IPv6{NextHeader: s.proto, SrcIP: ip.SrcIP, DstIP: ip.DstIP}
	return append(all, s.l4Layers(t, pseudo)...)
}

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// echo gives the ICMP message of an echo request or reply.
func (f family) echo(t testing.TB, src, dst netip.Addr, id uint16, reply bool) []byte {
	t.Helper()
	if !f.v6 {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		return serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: 7}, gopacket.Payload("hello there"))
	}
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	return icmp6(t, src, dst, kind, 0, append([]byte{byte(id >> 8), byte(id), 0, 7}, "hello there"...))
}

// unreachable gives the ICMP error "port unreachable" about the L3 packet inner.
func (f family) unreachable(t testing.TB, src, dst netip.Addr, inner []byte) []byte {
	t.Helper()
	if !f.v6 {
		return serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(inner))
	}
	return icmp6(t, src, dst, 1, 4, append(make([]byte, 4), inner...))
}

func icmp6(t testing.TB, src, dst netip.Addr, kind, code uint8, body []byte) []byte {
	t.Helper()
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
	pseudo := &layers.IPv6{NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if err := icmp.SetNetworkLayerForChecksum(pseudo); err != nil {
		t.Fatal(err)
	}
	return serialize(t, icmp, gopacket.Payload(body))
}
