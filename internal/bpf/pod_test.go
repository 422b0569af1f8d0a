package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// TestFromPod is the table of where a pod's packets go, for the first packet of a connection and for established ones alike.
func TestFromPod(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkFlat)
			udp := func(src, dst netip.Addr) skb {
				return skb{src: src, dst: dst, proto: protoUDP, sport: 4000, dport: 53, payload: []byte("query")}
			}
			with := func(s skb, change func(*skb)) skb { change(&s); return s }
			one := func(s *skb) { s.ttl = 1 }
			two := func(s *skb) { s.ttl = 2 }
			for _, tc := range []struct {
				name   string
				in     skb
				act    uint32
				reason verdict.Reason
				out    skb
			}{
				{"to a pod here", udp(f.podA, f.podB), actRedirect, verdict.ToLocalPod, withMACs(udp(f.podA, f.podB), macPodB, macHostB).hop()},
				{"to a pod here, last hop", with(udp(f.podA, f.podB), two), actRedirect, verdict.ToLocalPod, with(withMACs(udp(f.podA, f.podB), macPodB, macHostB), one)},
				{"to a pod here, no hop left", with(udp(f.podA, f.podB), one), actStack, verdict.ToStack, skb{}},
				{"through the tunnel", udp(f.podA, f.tunnelPod), actRedirect, verdict.ToTunnel, withMACs(udp(f.podA, f.tunnelPod), macTunnel, macSender).hop()},
				{"through the tunnel, no hop left", with(udp(f.podA, f.tunnelPod), one), actStack, verdict.ToStack, skb{}},
				{"to a node behind the tunnel", udp(f.podA, f.tunnelNode), actRedirect, verdict.ToTunnel, withMACs(udp(f.podA, f.tunnelNode), macTunnel, macSender).hop()},
				{"to the next hop", udp(f.podA, f.nativePod), actRedirect, verdict.ToNeighbour, udp(f.podA, f.nativePod).hop()},
				{"to a node on the link", udp(f.podA, f.nativeNode), actRedirect, verdict.ToNeighbour, udp(f.podA, f.nativeNode).hop()},
				{"to the next hop, no hop left", with(udp(f.podA, f.nativePod), one), actStack, verdict.ToStack, skb{}},
				{"to this node", udp(f.podA, f.node), actStack, verdict.ToStack, skb{}},
				{"to this node, no hop left", with(udp(f.podA, f.node), one), actStack, verdict.ToStack, skb{}},
				{"to a pod that is gone", udp(f.podA, f.gone), actStack, verdict.ToStack, skb{}},
				{"outside", udp(f.podA, f.world), actRedirect, verdict.ToWorld, udp(f.podA, f.world).hop()},
				{"outside, no hop left", with(udp(f.podA, f.world), one), actStack, verdict.ToStack, skb{}},
				{"another pod's address", udp(f.podB, f.podA), actShot, verdict.SpoofedSource, skb{}},
				{"an outside address", udp(f.world, f.podB), actShot, verdict.SpoofedSource, skb{}},
				{"the node's address", udp(f.node, f.podB), actShot, verdict.SpoofedSource, skb{}},
				{"multicast", udp(f.podA, f.multicast), actShot, verdict.Multicast, skb{}},
				{"to the pods' gateway", udp(f.podA, f.podGateway), actShot, verdict.Gateway, skb{}},
				{"multicast of the link", udp(f.podA, f.housekeeping), actShot, verdict.Housekeeping, skb{}},
				{"with options", with(udp(f.podA, f.podB), func(s *skb) { s.options = true }), actRedirect, verdict.ToLocalPod,
					with(withMACs(udp(f.podA, f.podB), macPodB, macHostB).hop(), func(s *skb) { s.options = true })},
			} {
				out := tc.out
				if !out.src.IsValid() {
					out = tc.in
				}
				s := step{what: tc.name, prog: r.objs.StraitFromPod, in: tc.in.bytes(t), act: tc.act, reason: tc.reason, out: out.bytes(t)}
				first := s
				first.what += ", again"
				r.do(s, first)
			}
		})
	}
}

func TestFromPodOtherProtocols(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkFlat)
			for _, in := range []skb{
				{src: f.podA, dst: f.podB, proto: protoTCP, sport: 4000, dport: 80, tcp: "S"},
				{src: f.podA, dst: f.podB, proto: protoSCTP, sport: 4000, dport: 80},
				{src: f.podA, dst: f.podB, proto: layers.IPProtocolGRE, payload: []byte{0, 0, 8, 0}},
				{src: f.podA, dst: f.podB, proto: layers.IPProtocol(f.icmpProto()), l4: f.echo(t, f.podA, f.podB, 77, false)},
			} {
				r.do(step{what: in.proto.String(), prog: r.objs.StraitFromPod, in: in.bytes(t), act: actRedirect,
					reason: verdict.ToLocalPod, out: withMACs(in, macPodB, macHostB).hop().bytes(t)})
			}
			if n := r.entries(r.objs.StraitCt); n != 4 {
				t.Errorf("%d connections, want one per packet: 4", n)
			}
		})
	}
}

func TestFromPodNotIP(t *testing.T) {
	r := newRig(t, NetworkFlat)
	arp := make([]byte, 42)
	copy(arp, macHost)
	copy(arp[6:], macPod)
	copy(arp[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})
	tagged := skb{src: families()[0].podA, dst: families()[0].podB, proto: protoUDP, sport: 1, dport: 2}.bytes(t)
	tagged = append(tagged[:12:12], append([]byte{0x81, 0, 0, 5}, tagged[12:]...)...)
	for _, prog := range []step{{what: "from pod", prog: r.objs.StraitFromPod}, {what: "to pod", prog: r.objs.StraitToPod}} {
		for name, frame := range map[string][]byte{"ARP": arp, "VLAN": tagged} {
			r.do(step{what: prog.what + " " + name, prog: prog.prog, in: frame, act: actShot, reason: verdict.UnsupportedL2})
		}
	}
	r.do(step{what: "from net ARP", prog: r.objs.StraitFromNet, in: arp, act: actStack, reason: verdict.ToStack})
}

func TestNeighbourDiscovery(t *testing.T) {
	f := families()[1]
	r := newRig(t, NetworkFlat)
	ask := skb{src: f.podA, dst: f.node, ttl: 255, proto: layers.IPProtocolICMPv6, l4: icmp6(t, f.podA, f.node, 135, 0, make([]byte, 20))}
	r.do(step{what: "from pod", prog: r.objs.StraitFromPod, in: ask.bytes(t), act: actShot, reason: verdict.UnsupportedL2})
	ask.src, ask.dst = f.gateway, f.node
	r.do(step{what: "from net", prog: r.objs.StraitFromNet, in: withMACs(ask, r.mac, macPod).bytes(t), act: actStack, reason: verdict.ToStack})
}

func TestMTU(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkFlat)
			header := 20
			if f.v6 {
				header = 40
			}
			big := func(dst netip.Addr, l3 int) skb {
				return skb{src: f.podA, dst: dst, proto: protoTCP, sport: 4000, dport: 80, tcp: "A", payload: make([]byte, l3-header-20)}
			}
			for _, tc := range []struct {
				what string
				dst  netip.Addr
				l3   int
				gso  int
				fits verdict.Reason
			}{
				{"tunnel, fits", f.tunnelPod, podMTU, 0, verdict.ToTunnel},
				{"tunnel, one too many", f.tunnelPod, podMTU + 1, 0, verdict.ToStack},
				{"tunnel, segments fit", f.tunnelPod, 3000, podMTU - header - 20, verdict.ToTunnel},
				{"tunnel, segments do not", f.tunnelPod, 3000, podMTU - header - 19, verdict.ToStack},
				{"next hop, fits", f.nativePod, podMTU, 0, verdict.ToNeighbour},
				{"next hop, one too many", f.nativePod, podMTU + 1, 0, verdict.ToStack},
				{"here: pods have one MTU", f.podB, podMTU + 1, 0, verdict.ToLocalPod},
				{"outside, fits", f.world, 1500, 0, verdict.ToWorld},
				{"outside, one too many", f.world, 1501, 0, verdict.ToStack},
			} {
				in := big(tc.dst, tc.l3)
				out, act := in, uint32(actStack)
				if tc.fits != verdict.ToStack {
					act, out = actRedirect, in.hop()
				}
				switch tc.fits {
				case verdict.ToTunnel:
					out = withMACs(out, macTunnel, macSender)
				case verdict.ToLocalPod:
					out = withMACs(out, macPodB, macHostB)
				}
				r.do(step{what: tc.what, prog: r.objs.StraitFromPod, in: in.bytes(t), gso: uint32(tc.gso), act: act, reason: tc.fits, out: out.bytes(t)})
			}
		})
	}
}

func TestToPod(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkFlat)
			udp := func(src, dst netip.Addr) []byte {
				return skb{src: src, dst: dst, proto: protoUDP, sport: 4000, dport: 53, ttl: 1}.bytes(t)
			}
			r.do(
				step{what: "from the node", prog: r.objs.StraitToPod, in: udp(f.node, f.podA), act: actStack, reason: verdict.ToLocalPod},
				step{what: "to a pod behind another device", prog: r.objs.StraitToPod, in: udp(f.node, f.podB), act: actShot, reason: verdict.NoEndpoint},
				step{what: "to nobody", prog: r.objs.StraitToPod, in: udp(f.node, f.gone), act: actShot, reason: verdict.NoEndpoint},
				step{what: "multicast", prog: r.objs.StraitToPod, in: udp(f.node, f.multicast), act: actShot, reason: verdict.Multicast},
			)
			ct := r.connection(netip.AddrPortFrom(f.node, 4000), netip.AddrPortFrom(f.podA, 53), protoUDP)
			if ct == nil || ct.Packets[0]+ct.Packets[1] != 1 || ct.Flags&CtReplied != 0 {
				t.Fatalf("connection of the node with the pod: %+v", ct)
			}
			answer := skb{src: f.podA, dst: f.node, proto: protoUDP, sport: 53, dport: 4000}.bytes(t)
			r.do(step{what: "the pod's answer", prog: r.objs.StraitFromPod, in: answer, act: actStack, reason: verdict.ToStack})
			ct = r.connection(netip.AddrPortFrom(f.node, 4000), netip.AddrPortFrom(f.podA, 53), protoUDP)
			if ct.Flags&CtReplied == 0 || ct.Packets != [2]uint64{1, 1} {
				t.Errorf("connection after the answer: %+v", ct)
			}
		})
	}
}

func TestIsolated(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsolated)
			udp := func(src, dst netip.Addr) skb { return skb{src: src, dst: dst, proto: protoUDP, sport: 4000, dport: 53} }
			in := func(src, dst netip.Addr) []byte { return withMACs(udp(src, dst), r.mac, macPod).bytes(t) }
			r.do(
				step{what: "outside", prog: r.objs.StraitFromPod, in: udp(f.podA, f.world).bytes(t), act: actShot, reason: verdict.Isolated},
				step{what: "in from outside", prog: r.objs.StraitFromNet, in: in(f.world, f.podA), act: actShot, reason: verdict.Isolated},
				step{what: "in from outside by the stack", prog: r.objs.StraitToPod, in: udp(f.world, f.podA).bytes(t), act: actShot, reason: verdict.Isolated},
				step{what: "the node", prog: r.objs.StraitToPod, in: udp(f.node, f.podA).bytes(t), act: actStack, reason: verdict.ToLocalPod},
				step{what: "a pod here", prog: r.objs.StraitFromPod, in: udp(f.podA, f.podB).bytes(t), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(udp(f.podA, f.podB), macPodB, macHostB).hop().bytes(t)},
				step{what: "a pod elsewhere", prog: r.objs.StraitFromPod, in: udp(f.podA, f.nativePod).bytes(t), act: actRedirect, reason: verdict.ToNeighbour,
					out: udp(f.podA, f.nativePod).hop().bytes(t)},
				step{what: "in from a pod elsewhere", prog: r.objs.StraitFromNet, in: in(f.nativePod, f.podA), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(udp(f.nativePod, f.podA), macPod, macHost).hop().bytes(t)},
			)
			// The API server is reached, under the node's address: the pod's leads nowhere.
			if act, _ := r.run(step{what: "API server", prog: r.objs.StraitFromPod, in: udp(f.podA, f.apiserver).bytes(t)}); act != actRedirect {
				t.Errorf("API server: verdict %d", act)
			}
			if got := r.reason(); got != verdict.ToWorldMasqueraded {
				t.Errorf("API server: %s", got)
			}
		})
	}
}
