package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// TestServiceFromPod: a pod whose packets bypass the socket programs. The backend sees the pod, the pod sees the service.
func TestServiceFromPod(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		toPod := func(s skb) skb { return withMACs(s, macPod, macHost) }
		for _, tc := range []struct {
			name    string
			backend netip.Addr
			seen    netip.Addr // as whom the backend sees the pod
			act     uint32
			out     func(skb) skb
			answer  *ebpf.Program
			back    func(skb) skb
			backAct uint32
			reason  verdict.Reason
		}{
			{"pod here", f.podB, f.podA, actRedirect, func(s skb) skb { return withMACs(s, macPodB, macHostB).hop() },
				r.objs.StraitFromPod, func(s skb) skb { return toPod(s).hop() }, actRedirect, verdict.ToClient},
			{"itself", f.podA, f.podGateway, actRedirect, func(s skb) skb { return toPod(s).hop() },
				r.objs.StraitFromPod, func(s skb) skb { return toPod(s).hop() }, actRedirect, verdict.ToClient},
			{"pod by next hop", f.nativePod, f.podA, actRedirect, skb.hop,
				r.objs.StraitFromNet, func(s skb) skb { return toPod(s).hop() }, actRedirect, verdict.ToLocalPod},
			{"pod through the tunnel", f.tunnelPod, f.podA, actRedirect, func(s skb) skb { return withMACs(s, macTunnel, macSender).hop() },
				r.objs.StraitFromVx, func(s skb) skb { return toPod(s).hop() }, actRedirect, verdict.ToLocalPod},
			{"node through the tunnel", f.tunnelNode, f.podA, actRedirect, func(s skb) skb { return withMACs(s, macTunnel, macSender).hop() },
				r.objs.StraitFromVx, func(s skb) skb { return toPod(s).hop() }, actRedirect, verdict.ToLocalPod},
			{"this node", f.node, f.podA, actStack, func(s skb) skb { return s },
				r.objs.StraitToPod, func(s skb) skb { return s }, actStack, verdict.ToLocalPod},
		} {
			for _, frontend := range []netip.AddrPort{at(f.world.Next(), 80), at(f.node, nodePort), at(f.nativeNode, nodePort)} {
				for _, proto := range protocols() {
					r.each(f.name+" "+tc.name+" by "+frontend.String()+" "+proto.String(), func(r *rig) {
						t := r.t
						s := front{at: frontend, proto: proto, flags: ServiceClusterIP, backends: []netip.AddrPort{at(tc.backend, 8080)}}
						if frontend.Port() == nodePort {
							s.at, s.flags = at(f.any(), nodePort), ServiceNodePort
						}
						r.serve(setID, s)
						// Both pods send through the same device here.
						b := Endpoint{Ifindex: uint32(r.st)}
						copy(b.PodMac[:], macPodB)
						copy(b.HostMac[:], macHostB)
						r.check(r.objs.StraitEndpoint.Put(AddrFrom(f.podB), b))
						client, backend := at(f.podA, 40000), at(tc.backend, 8080)
						ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
						answer := skb{proto: proto, tcp: "SA", payload: []byte("hi")}.from(backend).to(at(tc.seen, 40000))
						raw := answer.bytes(t)
						if tc.answer == r.objs.StraitFromNet {
							raw = r.fromNet(answer)
						}
						seen := answer.from(frontend).to(client)
						if tc.answer == r.objs.StraitToPod {
							raw = withMACs(answer, macPod, macHost).bytes(t)
							seen = withMACs(seen, macPod, macHost)
						}
						ways := []step{
							{what: "out", prog: r.objs.StraitFromPod, in: ask.bytes(t), act: tc.act, reason: verdict.ToBackend,
								out: tc.out(ask.from(at(tc.seen, 40000)).to(backend)).bytes(t)},
							{what: "back", prog: tc.answer, in: raw, act: tc.backAct, reason: tc.reason, out: tc.back(seen).bytes(t)},
						}
						r.do(append(ways, ways...)...)
						if ct := r.connection(client, frontend, proto); ct == nil || ct.Flags&(CtService|CtReplied|CtNat) != CtService|CtReplied {
							t.Errorf("client's entry %+v", ct)
						}
						if n := r.entries(r.objs.StraitCt); n != 2 {
							t.Errorf("%d entries, want 2", n)
						}
					})
				}
			}
		}
	}
}

// TestServiceFromPodOutside: a backend outside the cluster sees the node, like anybody there.
func TestServiceFromPodOutside(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, proto := range protocols() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				t := r.t
				frontend, backend, client := at(f.world.Next(), 80), at(f.world, 8080), at(f.podA, 40000)
				r.serve(setID, front{at: frontend, proto: proto, flags: ServiceClusterIP, backends: []netip.AddrPort{backend}})
				ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
				_, raw := r.run(step{what: "out", prog: r.objs.StraitFromPod, in: ask.bytes(t)})
				if got := r.reason(); got != verdict.ToWorldMasqueraded {
					t.Fatalf("out: %s", got)
				}
				ct := r.connection(client, backend, proto)
				if ct == nil || ct.Flags&(CtFront|CtNat) != CtFront|CtNat {
					t.Fatalf("backend's entry %+v", ct)
				}
				us := at(f.node, NetPort(ct.NatPort))
				if want := ask.from(us).to(backend).hop().bytes(t); string(want) != string(raw) {
					t.Fatalf("out:\nwant %v\ngot  %v", layersOf(want), layersOf(raw))
				}
				answer := skb{proto: proto, tcp: "SA", payload: []byte("hi")}.from(backend).to(us)
				r.do(step{what: "back", prog: r.objs.StraitFromNet, in: r.fromNet(answer), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(answer.from(frontend).to(client), macPod, macHost).hop().bytes(t)})
				if ct := r.connection(client, frontend, proto); ct == nil || ct.Flags&CtReplied == 0 {
					t.Errorf("client's entry %+v", ct)
				}
			})
		}
	}
}

// TestServiceOnNode: a backend that is this node itself answers by its own stack.
func TestServiceOnNode(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for _, proto := range protocols() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				t := r.t
				frontend, backend, client := at(f.world.Next(), 80), at(f.node, 8080), at(f.world, 40000)
				r.serve(setID, front{at: frontend, proto: proto, flags: ServiceLoadBalancer, backends: []netip.AddrPort{backend}})
				ask := skb{proto: proto, tcp: "S"}.from(client).to(frontend)
				answer := ask.reverse().flag("SA")
				own := skb{proto: proto, tcp: "SA"}.from(at(f.node, 22)).to(client)
				r.do(
					step{what: "in", prog: r.objs.StraitFromNet, in: r.fromNet(ask), act: actStack, reason: verdict.ToBackend, out: r.fromNet(ask.to(backend))},
					step{what: "out", prog: r.objs.StraitToNet, in: answer.from(backend).bytes(t), act: actStack, reason: verdict.ToClient, out: answer.bytes(t)},
					step{what: "the node's own", prog: r.objs.StraitToNet, in: own.bytes(t), act: actStack, reason: verdict.Unknown},
				)
			})
		}
	}
}

// TestServiceRefused: who may not come, and who finds nobody.
func TestServiceRefused(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		vip, other := at(f.world.Next(), 80), at(f.world, 40000)
		node := at(f.node, nodePort)
		wild := at(f.any(), nodePort)
		pod := []netip.AddrPort{at(f.podA, 8080)}
		for _, tc := range []struct {
			name   string
			s      front
			source netip.Prefix
			to     netip.AddrPort
			act    uint32
			reason verdict.Reason
		}{
			{"cluster address from outside", front{at: vip, flags: ServiceClusterIP, backends: pod}, netip.Prefix{}, vip, actShot, verdict.ServiceInternal},
			{"not in the ranges", front{at: vip, flags: ServiceLoadBalancer | ServiceSources, backends: pod}, host(f.apiserver), vip, actShot, verdict.SourceRange},
			{"in the ranges", front{at: vip, flags: ServiceLoadBalancer | ServiceSources, backends: pod}, netip.PrefixFrom(f.any(), 0), vip, actRedirect, verdict.ToBackend},
			{"no backend here", front{at: wild, flags: ServiceNodePort | ServiceOuterLocal, backends: pod}, netip.Prefix{}, node, actShot, verdict.NoLocalBackend},
			{"no backend at all", front{at: wild, flags: ServiceNodePort}, netip.Prefix{}, node, actRedirect, verdict.Refused},
			{"host port of another node", front{at: wild, flags: ServiceHostPort, backends: pod}, netip.Prefix{}, at(f.nativeNode, nodePort), actStack, verdict.ToStack},
			{"another port", front{at: wild, flags: ServiceNodePort, backends: pod}, netip.Prefix{}, at(f.node, nodePort+1), actStack, verdict.ToStack},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+tc.name+" "+proto.String(), func(r *rig) {
					tc.s.proto = proto
					r.serve(setID, tc.s)
					if tc.source.IsValid() {
						r.check(r.objs.StraitSource.Put(SourceKeyFrom(setID, tc.source), uint32(1)))
					}
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(other).to(tc.to)
					act, _ := r.run(step{what: tc.name, prog: r.objs.StraitFromNet, in: r.fromNet(ask)})
					if got := r.reason(); act != tc.act || got != tc.reason {
						r.t.Errorf("verdict %d (%s), want %d (%s)", int32(act), got, int32(tc.act), tc.reason)
					}
					if tc.reason == verdict.ToBackend {
						r.do(step{what: "under the address of a pod here", prog: r.objs.StraitFromNet, in: r.fromNet(ask.from(at(f.podB, 4000))), act: actShot, reason: verdict.SpoofedSource})
					}
				})
			}
		}
	}
}

// TestServiceAnswersNo reads what a client of a service without backends is told.
func TestServiceAnswersNo(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		wild, node, outside := at(f.any(), nodePort), at(f.node, nodePort), at(f.world, 40000)
		pod := at(f.podA, 40000)
		for _, from := range []struct {
			name   string
			prog   *ebpf.Program
			client netip.AddrPort
			frame  func(skb) []byte
			macs   [2]string
		}{
			{"outside", r.objs.StraitFromNet, outside, r.fromNet, [2]string{macPod.String(), r.mac.String()}},
			{"pod", r.objs.StraitFromPod, pod, func(s skb) []byte { return s.bytes(t) }, [2]string{macPod.String(), macHost.String()}},
		} {
			ask := func(proto layers.IPProtocol, tcp string) skb {
				return skb{proto: proto, tcp: tcp, payload: []byte("hello there")}.from(from.client).to(node)
			}
			refuse := func(r *rig, s skb) gopacket.Packet {
				r.t.Helper()
				r.serve(setID, front{at: wild, proto: s.proto, flags: ServiceNodePort})
				act, out := r.run(step{what: "refused", prog: from.prog, in: from.frame(s)})
				if got := r.reason(); act != actRedirect || got != verdict.Refused {
					r.t.Fatalf("verdict %d (%s)", int32(act), got)
				}
				p := gopacket.NewPacket(out, layers.LayerTypeEthernet, gopacket.Default)
				eth := p.LinkLayer().(*layers.Ethernet)
				if eth.DstMAC.String() != from.macs[0] || eth.SrcMAC.String() != from.macs[1] {
					r.t.Errorf("sent to %s from %s, want %s from %s", eth.DstMAC, eth.SrcMAC, from.macs[0], from.macs[1])
				}
				src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
				if src.String() != node.Addr().String() || dst.String() != from.client.Addr().String() {
					r.t.Errorf("from %s to %s", src, dst)
				}
				return p
			}
			r.each(f.name+" "+from.name+" SYN", func(r *rig) {
				s := ask(protoTCP, "S")
				want := skb{proto: protoTCP, tcp: "RA"}.from(node).to(from.client)
				checkReset(r.t, refuse(r, s), want, 0, 1000+1+uint32(len(s.payload)))
			})
			r.each(f.name+" "+from.name+" ACK", func(r *rig) {
				want := skb{proto: protoTCP, tcp: "R"}.from(node).to(from.client)
				checkReset(r.t, refuse(r, ask(protoTCP, "A")), want, 0, 0)
			})
			r.each(f.name+" "+from.name+" datagram", func(r *rig) {
				s := ask(protoUDP, "")
				quote := s.l3(r.t)[:ipHeader(f)+8]
				p := refuse(r, s)
				icmp := layers.IPProtocol(f.icmpProto())
				want := skb{src: node.Addr(), dst: from.client.Addr(), proto: icmp, l4: f.unreachable(r.t, node.Addr(), from.client.Addr(), quote)}
				if string(p.NetworkLayer().LayerPayload()) != string(want.l3(r.t)[ipHeader(f):]) {
					r.t.Errorf("got %v\nwant %v", layersOf(p.Data()), layersOf(want.bytes(r.t)))
				}
				checkSums(r.t, p)
			})
			for name, s := range map[string]skb{
				"reset":          ask(protoTCP, "R"),
				"with options":   {proto: protoUDP, src: from.client.Addr(), sport: 40000, dst: node.Addr(), dport: nodePort, options: true},
				"later fragment": {proto: protoUDP, src: from.client.Addr(), dst: node.Addr(), frag: frag{id: 7, offset: 3}, l4: make([]byte, 24)},
			} {
				r.each(f.name+" "+from.name+" "+name, func(r *rig) {
					r.serve(setID, front{at: wild, proto: s.proto, flags: ServiceNodePort})
					if s.frag.any() {
						r.check(r.objs.StraitFrag.Put(FragKey{Src: AddrFrom(s.src), Dst: AddrFrom(s.dst), Id: fragID(f, 7), Proto: uint8(s.proto)},
							FragEntry{Sport: NetPort(40000), Dport: NetPort(nodePort)}))
					}
					act, _ := r.run(step{what: name, prog: from.prog, in: from.frame(s)})
					if got := r.reason(); act != actShot || got != verdict.Refused {
						r.t.Errorf("verdict %d (%s), want silence", int32(act), got)
					}
				})
			}
		}
	}
}

// fragID is how a key has the identification of a fragment.
func fragID(f family, id uint16) uint32 {
	if !f.v6 {
		return uint32(NetPort(id))
	}
	return uint32(NetPort(id)) << 16
}

func checkReset(t testing.TB, p gopacket.Packet, want skb, seq, ack uint32) {
	t.Helper()
	tcp, ok := p.TransportLayer().(*layers.TCP)
	if !ok {
		t.Fatalf("no TCP: %v", layersOf(p.Data()))
	}
	if uint16(tcp.SrcPort) != want.sport || uint16(tcp.DstPort) != want.dport || !tcp.RST || tcp.SYN || tcp.FIN || tcp.Seq != seq || tcp.Ack != ack ||
		tcp.ACK != (want.tcp == "RA") || len(tcp.Payload) != 0 {
		t.Errorf("reset %s, want seq %d ack %d", gopacket.LayerString(tcp), seq, ack)
	}
	checkSums(t, p)
}

// checkSums computes the checksums of a packet again.
func checkSums(t testing.TB, p gopacket.Packet) {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	all := []gopacket.SerializableLayer{}
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.UDP:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.ICMPv6:
			_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
			all = append(all, l, gopacket.Payload(l.LayerPayload()))
			goto done
		case *layers.ICMPv4:
			all = append(all, l, gopacket.Payload(l.LayerPayload()))
			goto done
		}
		all = append(all, l.(gopacket.SerializableLayer))
	}
done:
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(buf.Bytes(), p.Data()) { // gopacket pads short frames
		t.Errorf("lengths or checksums are wrong:\ngot  %v\nwant %v", layersOf(p.Data()), layersOf(buf.Bytes()))
	}
}

// TestServiceGenerations: what becomes of a connection whose backend leaves, goes, or gives its id to another.
func TestServiceGenerations(t *testing.T) {
	const first, second = setID * 10, setID*10 + 1
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		frontend, client := at(f.node, nodePort), at(f.world, 40000)
		old, young := at(f.podA, 8080), at(f.podB, 9090)
		for _, tc := range []struct {
			name      string
			proto     layers.IPProtocol
			tcp       string
			change    func(*rig)
			to        netip.AddrPort // invalid: refused
			reason    verdict.Reason
			connected [2]uint32
		}{
			{"TCP stays with one that leaves", protoTCP, "A", func(r *rig) { r.backend(first, old, protoTCP, 1, BackendLeaving) }, old, verdict.ToBackend, [2]uint32{1, 0}},
			{"UDP does not", protoUDP, "", func(r *rig) { r.backend(first, old, protoUDP, 1, BackendLeaving) }, young, verdict.ToBackend, [2]uint32{0, 1}},
			{"TCP is reset when it is gone", protoTCP, "A", func(r *rig) { r.check(r.objs.StraitBackend.Delete(uint32(first))) }, netip.AddrPort{}, verdict.BackendGone, [2]uint32{1, 0}},
			{"TCP is reset when it is another", protoTCP, "PA", func(r *rig) { r.backend(first, young, protoTCP, 2, 0) }, netip.AddrPort{}, verdict.BackendGone, [2]uint32{1, 0}},
			{"TCP begins with another", protoTCP, "S", func(r *rig) { r.check(r.objs.StraitBackend.Delete(uint32(first))) }, young, verdict.ToBackend, [2]uint32{0, 1}},
			{"UDP chooses again", protoUDP, "", func(r *rig) { r.check(r.objs.StraitBackend.Delete(uint32(first))) }, young, verdict.ToBackend, [2]uint32{0, 1}},
			{"nothing changed", protoUDP, "", func(*rig) {}, old, verdict.ToBackend, [2]uint32{1, 0}},
		} {
			r.each(f.name+" "+tc.name, func(r *rig) {
				t := r.t
				r.serve(setID, front{at: at(f.any(), nodePort), proto: tc.proto, flags: ServiceNodePort, backends: []netip.AddrPort{old}})
				ask := skb{proto: tc.proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
				r.do(step{what: "first", prog: r.objs.StraitFromNet, in: r.fromNet(ask), act: actRedirect, reason: verdict.ToBackend,
					out: withMACs(ask.to(old), macPod, macHost).hop().bytes(t)})
				r.backend(second, young, tc.proto, 1, 0)
				r.check(r.objs.StraitSlot.Put(SlotKey{Set: setID}, Slot{Backend: second}))
				tc.change(r)
				next := ask.flag(tc.tcp)
				if !tc.to.IsValid() {
					act, out := r.run(step{what: "next", prog: r.objs.StraitFromNet, in: r.fromNet(next)})
					if got := r.reason(); act != actRedirect || got != tc.reason {
						t.Fatalf("verdict %d (%s)", int32(act), got)
					}
					checkReset(t, gopacket.NewPacket(out, layers.LayerTypeEthernet, gopacket.Default), next.reverse().flag("R"), 0, 0)
				} else {
					out := withMACs(next.to(tc.to), macPod, macHost)
					if tc.to == young {
						out = withMACs(next.to(tc.to), macPodB, macHostB)
					}
					r.do(step{what: "next", prog: r.objs.StraitFromNet, in: r.fromNet(next), act: actRedirect, reason: tc.reason, out: out.hop().bytes(t)})
				}
				if got := [2]uint32{r.load(first).Tracked, r.load(second).Tracked}; got != tc.connected {
					t.Errorf("tracked %v, want %v", got, tc.connected)
				}
			})
		}
	}
}
