package bpf

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/strait-net/strait/internal/verdict"
)

var (
	service4  = netip.MustParseAddr("192.0.2.200")
	service6  = netip.MustParseAddr("2001:db8:1::200")
	asker4    = netip.MustParseAddr("192.0.2.77")
	asker6    = netip.MustParseAddr("2001:db8:1::77")
	macAsker  = net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	zeroMAC   = make(net.HardwareAddr, 6)
)

func frame(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(b.Bytes())
}

// arp is an ARP frame; tha is what it says about the target's MAC.
func arp(t testing.TB, op uint16, src, dst net.HardwareAddr, spa, tpa netip.Addr, tha net.HardwareAddr) []byte {
	t.Helper()
	return frame(t, &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: layers.EthernetTypeARP}, &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: src, SourceProtAddress: spa.AsSlice(), DstHwAddress: tha, DstProtAddress: tpa.AsSlice(),
	})
}

// nd is a neighbour discovery frame around body.
func nd(t testing.TB, srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, hops, kind uint8, body gopacket.SerializableLayer) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return frame(t, &layers.Ethernet{SrcMAC: srcMAC, DstMAC: dstMAC, EthernetType: layers.EthernetTypeIPv6}, ip, icmp, body)
}

func option(kind layers.ICMPv6Opt, mac net.HardwareAddr) layers.ICMPv6Options {
	return layers.ICMPv6Options{{Type: kind, Data: mac}}
}

func solicitedNode(a netip.Addr) (netip.Addr, net.HardwareAddr) {
	b := a.As16()
	g := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(g[13:], b[13:])
	return netip.AddrFrom16(g), net.HardwareAddr{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

func (r *rig) announce(ifindex int, mac net.HardwareAddr, addrs ...netip.Addr) {
	r.t.Helper()
	for _, a := range addrs {
		r.check(r.objs.StraitAnnounce.Put(AnnounceKey{Addr: AddrFrom(a), Ifindex: uint32(ifindex)}, Announce{Mac: [6]byte(mac)}))
	}
}

func TestAnswersARP(t *testing.T) {
	r := newRig(t, NetworkIsland)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x99} // a bond's, say: not the device's own
	r.announce(r.net, mac, service4)
	r.announce(r.net+1, mac, netip.MustParseAddr("192.0.2.201"))
	ask := func(what string, in, out []byte) {
		t.Helper()
		s := step{what: what, prog: r.objs.StraitFromNet, in: in, act: actStack, reason: verdict.ToStack}
		if out != nil {
			s.out, s.act, s.reason = out, actRedirect, verdict.Answered
		}
		r.do(s)
	}
	ask("broadcast request", arp(t, 1, macAsker, broadcast, asker4, service4, zeroMAC), arp(t, 2, mac, macAsker, service4, asker4, macAsker))
	ask("unicast request", arp(t, 1, macAsker, r.mac, asker4, service4, zeroMAC), arp(t, 2, mac, macAsker, service4, asker4, macAsker))
	nobody := netip.IPv4Unspecified()
	ask("probe", arp(t, 1, macAsker, broadcast, nobody, service4, zeroMAC), arp(t, 2, mac, macAsker, service4, nobody, macAsker))

	ask("another address", arp(t, 1, macAsker, broadcast, asker4, netip.MustParseAddr("192.0.2.202"), zeroMAC), nil)
	ask("an address of another device", arp(t, 1, macAsker, broadcast, asker4, netip.MustParseAddr("192.0.2.201"), zeroMAC), nil)
	ask("another node takes over", arp(t, 1, macAsker, broadcast, service4, service4, zeroMAC), nil)
	ask("a reply", arp(t, 2, macAsker, broadcast, asker4, service4, zeroMAC), nil)
	ask("for another machine", arp(t, 1, macAsker, net.HardwareAddr{2, 0, 0, 0, 0, 0x55}, asker4, service4, zeroMAC), nil)
	ask("from a multicast MAC", arp(t, 1, net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, broadcast, asker4, service4, zeroMAC), nil)
	ask("short", arp(t, 1, macAsker, broadcast, asker4, service4, zeroMAC)[:30], nil)
}

func TestAnswersNeighbourDiscovery(t *testing.T) {
	r := newRig(t, NetworkIsland)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	r.announce(r.net, mac, service6)
	group, groupMAC := solicitedNode(service6)
	none := netip.IPv6Unspecified()
	allNodes, allNodesMAC := netip.MustParseAddr("ff02::1"), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	solicitation := func(a netip.Addr, o layers.ICMPv6Options) gopacket.SerializableLayer {
		return &layers.ICMPv6NeighborSolicitation{TargetAddress: a.AsSlice(), Options: o}
	}
	answer := nd(t, mac, macAsker, service6, asker6, 255, 136, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0x60, TargetAddress: service6.AsSlice(), Options: option(layers.ICMPv6OptTargetAddress, mac),
	})
	taken := nd(t, mac, allNodesMAC, service6, allNodes, 255, 136, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0x20, TargetAddress: service6.AsSlice(), Options: option(layers.ICMPv6OptTargetAddress, mac),
	})
	withNonce := append(option(layers.ICMPv6OptSourceAddress, macAsker), layers.ICMPv6Option{Type: 14, Data: []byte{1, 2, 3, 4, 5, 6}})
	for _, c := range []struct {
		what string
		in   []byte
		out  []byte
	}{
		{"multicast", nd(t, macAsker, groupMAC, asker6, group, 255, 135, solicitation(service6, option(layers.ICMPv6OptSourceAddress, macAsker))), answer},
		{"without a MAC", nd(t, macAsker, groupMAC, asker6, group, 255, 135, solicitation(service6, nil)), answer},
		{"with more options", nd(t, macAsker, groupMAC, asker6, group, 255, 135, solicitation(service6, withNonce)), answer},
		{"unicast, is it still there", nd(t, macAsker, r.mac, asker6, service6, 255, 135, solicitation(service6, nil)), answer},
		{"is it free", nd(t, macAsker, groupMAC, none, group, 255, 135, solicitation(service6, nil)), taken},
		{"forwarded", nd(t, macAsker, groupMAC, asker6, group, 254, 135, solicitation(service6, nil)), nil},
		{"another address", nd(t, macAsker, groupMAC, asker6, group, 255, 135, solicitation(asker6, nil)), nil},
		{"an advertisement", nd(t, macAsker, allNodesMAC, service6, allNodes, 255, 136,
			&layers.ICMPv6NeighborAdvertisement{TargetAddress: service6.AsSlice()}), nil},
		{"short", nd(t, macAsker, groupMAC, asker6, group, 255, 135, solicitation(service6, nil))[:70], nil},
	} {
		s := step{what: c.what, prog: r.objs.StraitFromNet, in: c.in, act: actStack, reason: verdict.ToStack}
		if c.out != nil {
			s.out, s.act, s.reason = c.out, actRedirect, verdict.Answered
		}
		r.do(s)
	}
}

// A kernel that asks learns the MAC of the node that announces, and that of the next one from its unsolicited message or its answer.
func TestNeighbourTableFollowsTheAnnouncer(t *testing.T) {
	c := newCluster(t, false, NetworkIsland)
	learn := func(a netip.Addr, want net.HardwareAddr) {
		t.Helper()
		within(t, c.world, func() {
			var last net.HardwareAddr
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
				c.check(err)
				_, _ = conn.Write([]byte{0}) // refused: only the question matters
				c.check(conn.Close())
				list, err := netlink.NeighList(c.index("br0"), 0)
				c.check(err)
				for _, n := range list {
					if n.IP.Equal(a.AsSlice()) {
						last = n.HardwareAddr
					}
				}
				if bytes.Equal(last, want) {
					return
				}
			}
			t.Errorf("%s is at %v, want %v", a, last, want)
		})
	}
	for _, a := range []netip.Addr{service4, service6} {
		for n := range c.nodes {
			var mac net.HardwareAddr
			within(t, c.nodes[n].ns, func() { mac = c.mac("eth0") })
			c.nodes[n].rig.announce(c.nodes[n].rig.net, mac, a)
			learn(a, mac)
			c.check(c.nodes[n].rig.objs.StraitAnnounce.Delete(AnnounceKey{Addr: AddrFrom(a), Ifindex: uint32(c.nodes[n].rig.net)}))
			within(t, c.world, func() {
				_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: c.index("br0"), IP: a.AsSlice()})
			})
		}
	}
}
