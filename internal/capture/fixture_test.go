package capture_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/capture"
)

// wire is a packet to be made.
type wire struct {
	from, to  string // ADDRESS:PORT
	protocol  uint8
	flags     uint8
	id        uint16
	ttl       uint8
	offset    uint16 // of a fragment, in 8 bytes
	more      bool
	extension bool // IPv6: hop-by-hop options before L4
	payload   string
	icmp      uint16 // type << 8 | code
	quote     []byte // IP packet that an ICMP error quotes
	raw       bool   // no Ethernet header
}

// frame makes it, with lengths and checksums.
func (w wire) frame(t testing.TB) []byte {
	t.Helper()
	from, to := netip.MustParseAddrPort(w.from), netip.MustParseAddrPort(w.to)
	ttl := w.ttl
	if ttl == 0 {
		ttl = 64
	}
	var stack []gopacket.SerializableLayer
	ether := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.NetworkLayer
	protocol := layers.IPProtocol(w.protocol)
	if from.Addr().Is4() {
		four := &layers.IPv4{Version: 4, IHL: 5, TTL: ttl, Id: w.id, Protocol: protocol, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(), FragOffset: w.offset}
		if w.more {
			four.Flags = layers.IPv4MoreFragments
		}
		ip = four
		stack = append(stack, four)
	} else {
		ether.EthernetType = layers.EthernetTypeIPv6
		six := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: protocol, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		ip = six
		stack = append(stack, six)
		switch {
		case w.offset > 0 || w.more:
			six.NextHeader = layers.IPProtocolIPv6Fragment
			more := byte(0)
			if w.more {
				more = 1
			}
			stack = append(stack, gopacket.Payload{w.protocol, 0, byte(w.offset >> 5), byte(w.offset<<3) | more, 0, 0, byte(w.id >> 8), byte(w.id)})
		case w.extension:
			six.NextHeader = layers.IPProtocolIPv6HopByHop
			stack = append(stack, gopacket.Payload{w.protocol, 0, 1, 4, 0, 0, 0, 0})
		}
	}
	payload := gopacket.Payload(w.payload)
	switch {
	case w.offset > 0:
		stack = append(stack, payload)
	case w.protocol == capture.TCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: 7,
			SYN: w.flags&capture.SYN != 0, ACK: w.flags&capture.ACK != 0, FIN: w.flags&capture.FIN != 0, RST: w.flags&capture.RST != 0, PSH: w.flags&capture.PSH != 0}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		stack = append(stack, tcp, payload)
	case w.protocol == capture.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
		_ = udp.SetNetworkLayerForChecksum(ip)
		stack = append(stack, udp, payload)
	case w.protocol == capture.SCTP:
		stack = append(stack, gopacket.Payload{byte(from.Port() >> 8), byte(from.Port()), byte(to.Port() >> 8), byte(to.Port()), 0, 0, 0, 0, 0, 0, 0, 0}, payload)
	default:
		stack = append(stack, gopacket.Payload{byte(w.icmp >> 8), byte(w.icmp), 0, 0, 0, 0, 0, 0}, gopacket.Payload(w.quote), payload)
	}
	if !w.raw {
		stack = append([]gopacket.SerializableLayer{ether}, stack...)
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const (
	web4, db4, other4, node4 = "10.244.1.2", "10.244.2.3", "10.244.1.9", "172.18.0.1"
	web6, db6, other6        = "fd44::1:2", "fd44::2:3", "fd44::1:9"
)

func addresses(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

const (
	ethernetLen = 14
	someSnap    = 200
)
