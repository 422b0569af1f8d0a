package announce

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// The messages are what another implementation takes them for, checksum included.
func TestMessages(t *testing.T) {
	mac := [6]byte{2, 0, 0, 0, 0, 0x99}
	for op, frame := range frames(mac, addr("192.0.2.200")) {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		arp, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if eth == nil || arp == nil || eth.DstMAC.String() != "ff:ff:ff:ff:ff:ff" || !bytes.Equal(eth.SrcMAC, mac[:]) {
			t.Fatalf("%v", p)
		}
		if int(arp.Operation) != op+1 || !bytes.Equal(arp.SourceHwAddress, mac[:]) || !net.IP(arp.SourceProtAddress).Equal(net.IP(arp.DstProtAddress)) ||
			!net.IP(arp.SourceProtAddress).Equal(net.IPv4(192, 0, 2, 200)) {
			t.Errorf("%v", arp)
		}
	}
	list := frames(mac, addr("2001:db8::200"))
	if len(list) != 1 {
		t.Fatalf("%d messages", len(list))
	}
	p := gopacket.NewPacket(list[0], layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	na, _ := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if ip == nil || icmp == nil || na == nil {
		t.Fatalf("%v", p)
	}
	if ip.HopLimit != 255 || ip.DstIP.String() != "ff02::1" || ip.SrcIP.String() != "2001:db8::200" || na.TargetAddress.String() != "2001:db8::200" ||
		!na.Override() || na.Solicited() || na.Router() {
		t.Errorf("%v", p)
	}
	if len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, mac[:]) {
		t.Errorf("options %v", na.Options)
	}
	again := gopacket.NewSerializeBuffer()
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	sum := icmp.Checksum
	if err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, na); err != nil {
		t.Fatal(err)
	}
	if icmp.Checksum != sum {
		t.Errorf("checksum %#x, want %#x", sum, icmp.Checksum)
	}
}

func TestGroups(t *testing.T) {
	g := solicitedNode(addr("2001:db8::12:3456"))
	if g != addr("ff02::1:ff12:3456") || multicastMAC(g) != [6]byte{0x33, 0x33, 0xff, 0x12, 0x34, 0x56} {
		t.Errorf("%s %x", g, multicastMAC(g))
	}
}
