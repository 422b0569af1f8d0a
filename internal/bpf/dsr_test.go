package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// withFrontend puts the option of direct server return into a frame, in bytes written by hand.
func withFrontend(t testing.TB, frame []byte, front netip.AddrPort) []byte {
	t.Helper()
	frame = append([]byte(nil), frame...)
	if front.Addr().Is4() {
		option := append(binary.BigEndian.AppendUint16([]byte{158, 8}, front.Port()), front.Addr().AsSlice()...)
		frame = append(frame[:34:34], append(option, frame[34:]...)...)
		frame[14] += 2
		binary.BigEndian.PutUint16(frame[16:], binary.BigEndian.Uint16(frame[16:])+8)
		frame[24], frame[25] = 0, 0
		var sum uint32
		for i := 14; i < 42; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(frame[i:]))
		}
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(frame[24:], ^uint16(sum+sum>>16))
		return frame
	}
	header := append(binary.BigEndian.AppendUint16([]byte{frame[20], 2, 0x1e, 18}, front.Port()), front.Addr().AsSlice()...)
	header = append(header, 1, 0)
	frame = append(frame[:54:54], append(header, frame[54:]...)...)
	frame[20] = byte(layers.IPProtocolIPv6Destination)
	binary.BigEndian.PutUint16(frame[18:], binary.BigEndian.Uint16(frame[18:])+24)
	return frame
}

// TestDSRSend: the client's address stays, the frontend travels where the backend's node cannot know it yet.
func TestDSRSend(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		client, frontend := at(f.world, 40000), at(f.node, nodePort)
		for name, backend := range map[string]netip.AddrPort{"next hop": at(f.nativePod, 8080), "tunnel": at(f.tunnelPod, 8080), "node": at(f.nativeNode, 8080)} {
			wire := func(s skb) []byte {
				s = s.to(backend).hop()
				if name == "tunnel" {
					return withMACs(s, macTunnel, macSender).bytes(t)
				}
				return withMACs(s, r.mac, macPod).bytes(t)
			}
			for _, proto := range protocols() {
				r.each(f.name+" "+name+" "+proto.String(), func(r *rig) {
					t := r.t
					r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{backend}})
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
					go1 := func(what string, s skb, out []byte) step {
						return step{what: what, prog: r.objs.StraitFromNet, in: r.fromNet(s), act: actRedirect, reason: verdict.ToBackend, out: out}
					}
					next := wire(ask.flag("A"))
					if proto != protoTCP {
						next = withFrontend(t, next, frontend)
					}
					r.do(
						go1("first packet", ask, withFrontend(t, wire(ask), frontend)),
						go1("first packet again", ask, withFrontend(t, wire(ask), frontend)),
						go1("next", ask.flag("A"), next),
					)
					ct := r.connection(client, frontend, proto)
					if ct == nil || ct.Flags&(CtService|CtDSR|CtNat|CtReplied) != CtService|CtDSR|CtReplied {
						t.Fatalf("client's entry %+v", ct)
					}
					if n := r.entries(r.objs.StraitNat); n != 0 {
						t.Errorf("%d mappings, want none", n)
					}
					if proto == protoTCP {
						r.do(go1("end", ask.flag("FA"), wire(ask.flag("FA"))), go1("last", ask.flag("A"), wire(ask.flag("A"))))
						if l := r.load(ct.Backend); l.Tracked != 0 || l.Connections != 1 {
							t.Errorf("load %+v after the client's end", l)
						}
					}
				})
			}
		}
		big := skb{proto: protoUDP, payload: make([]byte, 1500-ipHeader(f)-8), df: true}.from(client).to(frontend)
		r.each(f.name+" too big", func(r *rig) {
			r.serve(setID, front{at: at(f.any(), nodePort), proto: protoUDP, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{at(f.nativePod, 8080)}})
			mtu, icmp := uint16(podMTU-8), append([]byte{3, 4, 0, 0, 0, 0}, 0, 0)
			if f.v6 {
				mtu, icmp = podMTU-24, []byte{2, 0, 0, 0, 0, 0, 0, 0}
			}
			binary.BigEndian.PutUint16(icmp[6:], mtu)
			_, out := r.run(step{what: "too big", prog: r.objs.StraitFromNet, in: r.fromNet(big)})
			if got := r.reason(); got != verdict.SenderTold {
				r.t.Fatal(got)
			}
			body := out[14+ipHeader(f):]
			body[2], body[3] = 0, 0
			if want := string(icmp) + string(big.l3(r.t)[:ipHeader(f)+8]); string(body) != want {
				r.t.Errorf("told %x, want %x", body, want)
			}
		})
	}
}

// TestDSRReceive: the backend's node takes the frontend out and answers in its place.
func TestDSRReceive(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsolated) // services are the way in of an isolated network
		client, frontend, pod, own := at(f.world, 40000), at(f.nativeNode, nodePort), at(f.podA, 8080), at(f.node, 8080)
		for _, proto := range protocols() {
			ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client)
			r.each(f.name+" pod "+proto.String(), func(r *rig) {
				t := r.t
				r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{pod}})
				ask := ask.to(pod)
				answer := ask.reverse().flag("SA")
				for range 2 {
					r.do(
						step{what: "in", prog: r.objs.StraitFromNet, in: withFrontend(t, r.fromNet(ask), frontend), act: actRedirect, reason: verdict.ToLocalPod,
							out: withMACs(ask, macPod, macHost).hop().bytes(t)},
						step{what: "out", prog: r.objs.StraitFromPod, in: answer.bytes(t), act: actRedirect, reason: verdict.ToClient, out: answer.from(frontend).hop().bytes(t)},
						step{what: "in without option", prog: r.objs.StraitFromNet, in: r.fromNet(ask.flag("A")), act: actRedirect, reason: verdict.ToLocalPod,
							out: withMACs(ask.flag("A"), macPod, macHost).hop().bytes(t)},
					)
				}
				if ct := r.connection(client, pod, proto); ct == nil || ct.Flags&CtFront == 0 || ct.Packets[0]+ct.Packets[1] != 6 || r.entries(r.objs.StraitCt) != 1 {
					t.Errorf("backend's entry %+v of %d", ct, r.entries(r.objs.StraitCt))
				}
			})
			r.each(f.name+" this node "+proto.String(), func(r *rig) {
				t := r.t
				r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{own}})
				ask := ask.to(own)
				answer := ask.reverse().flag("SA")
				r.do(
					step{what: "in", prog: r.objs.StraitFromNet, in: withFrontend(t, r.fromNet(ask), frontend), act: actStack, reason: verdict.ToBackend, out: r.fromNet(ask)},
					step{what: "out", prog: r.objs.StraitToNet, in: answer.bytes(t), act: actStack, reason: verdict.ToClient, out: answer.from(frontend).bytes(t)},
				)
			})
			r.each(f.name+" forged "+proto.String(), func(r *rig) {
				t := r.t
				r.do(step{what: "no such service", prog: r.objs.StraitFromNet, in: withFrontend(t, r.fromNet(ask.to(pod)), frontend), act: actShot, reason: verdict.DsrOption})
				r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{pod}})
				r.do(step{what: "under the address of a pod here", prog: r.objs.StraitFromNet, in: withFrontend(t, r.fromNet(ask.from(at(f.podB, 4000)).to(pod)), frontend), act: actShot,
					reason: verdict.SpoofedSource})
				mine := skb{proto: proto, tcp: "S"}.from(at(f.podA, 4000)).to(at(f.podB, 80))
				r.do(step{what: "from a pod", prog: r.objs.StraitFromPod, in: withFrontend(t, mine.bytes(t), frontend), act: actShot, reason: verdict.DsrOption},
					step{what: "without metadata", prog: r.objs.StraitFromVx, in: withFrontend(t, ask.to(pod).bytes(t), frontend), act: actShot, reason: verdict.TunnelSpoofed})
			})
		}
		r.each(f.name+" fragments", func(r *rig) {
			t := r.t
			r.serve(setID, front{at: at(f.any(), nodePort), proto: protoUDP, flags: ServiceNodePort | ServiceDSR, backends: []netip.AddrPort{pod}})
			whole := skb{proto: protoUDP, payload: make([]byte, 40)}.from(client).to(pod)
			l4 := whole.l3(t)[ipHeader(f):]
			for _, cut := range [][2]int{{0, 24}, {24, 48}} {
				s := whole
				s.frag, s.l4 = frag{id: 7, offset: uint16(cut[0] / 8), more: cut[1] < 48}, l4[cut[0]:cut[1]]
				r.do(step{what: "fragment", prog: r.objs.StraitFromNet, in: withFrontend(t, r.fromNet(s), frontend), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(s, macPod, macHost).hop().bytes(t)})
			}
		})
	}
}
