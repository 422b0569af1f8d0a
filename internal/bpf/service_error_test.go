package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// TestServiceErrors: ICMP errors about packets of a service reach the end that sent them, speaking of what that end has sent.
func TestServiceErrors(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		type hook struct {
			prog  *ebpf.Program
			frame func(skb) []byte
		}
		net0 := hook{r.objs.StraitFromNet, r.fromNet}
		pod0 := hook{r.objs.StraitFromPod, func(s skb) []byte { return s.bytes(t) }}
		out0 := hook{r.objs.StraitToNet, func(s skb) []byte { return s.bytes(t) }}
		toPod := func(s skb) []byte { return withMACs(s, macPod, macHost).hop().bytes(t) }
		away := func(s skb) []byte { return withMACs(s, r.mac, macPod).hop().bytes(t) }
		plain := func(s skb) []byte { return s.hop().bytes(t) }
		same := func(s skb) []byte { return s.bytes(t) }
		router := f.gateway
		for _, tc := range []struct {
			name     string
			client   netip.Addr
			front    netip.AddrPort
			backend  netip.Addr
			ask      hook // where the client's packets come by
			masked   bool // the backend sees this node
			gateway  bool // the backend sees the pods' gateway
			server   hook // where the backend's errors come by
			toClient func(skb) []byte
			toServer func(skb) []byte
			acts     [2]uint32 // verdict for the error to the client, to the backend
			told     verdict.Reason
		}{
			{"outside to pod here", f.world, at(f.node, nodePort), f.podA, net0, false, false, pod0, plain, toPod, [2]uint32{actRedirect, actRedirect}, verdict.ToClient},
			{"outside to pod elsewhere", f.world, at(f.node, nodePort), f.nativePod, net0, true, false, net0, away, away, [2]uint32{actRedirect, actRedirect}, verdict.ToClient},
			{"outside to this node", f.world, at(f.world.Next(), nodePort), f.node, net0, false, false, out0, same, r.fromNet, [2]uint32{actStack, actStack}, verdict.ToClient},
			{"pod to pod elsewhere", f.podA, at(f.world.Next(), nodePort), f.nativePod, pod0, false, false, net0, toPod, plain, [2]uint32{actRedirect, actRedirect}, verdict.ToLocalPod},
			{"pod to itself", f.podA, at(f.world.Next(), nodePort), f.podA, pod0, false, true, pod0, toPod, toPod, [2]uint32{actRedirect, actRedirect}, verdict.ToClient},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+tc.name+" "+proto.String(), func(r *rig) {
					t := r.t
					client, backend := at(tc.client, 40000), at(tc.backend, 8080)
					r.serve(setID, front{at: tc.front, proto: proto, flags: ServiceLoadBalancer, backends: []netip.AddrPort{backend}})
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello there, backend")}.from(client).to(tc.front)
					r.run(step{what: "ask", prog: tc.ask.prog, in: tc.ask.frame(ask)})
					r.reason()
					us := client
					if tc.masked {
						us = at(f.node, NetPort(r.connection(client, tc.front, proto).NatPort))
					}
					if tc.gateway {
						us = at(f.podGateway, 40000)
					}
					seen := ask.from(us).to(backend)
					icmp := layers.IPProtocol(f.icmpProto())
					about := func(from, to netip.Addr, s skb) skb {
						quote := s.l3(t)
						if proto == protoSCTP { // its checksum cannot be corrected: most quotes end before the end of the packet
							quote = quote[:ipHeader(f)+8]
						}
						return skb{src: from, dst: to, proto: icmp, l4: f.unreachable(t, from, to, quote)}
					}
					in, out := tc.server.frame(about(tc.backend, us.Addr(), seen)), tc.toClient(about(tc.front.Addr(), tc.client, ask))
					r.do(step{what: "from the backend", prog: tc.server.prog, in: in, act: tc.acts[0], reason: tc.told, out: out})
					if tc.server.prog == r.objs.StraitFromNet {
						r.do(step{what: "from a router towards the backend", prog: tc.server.prog, in: tc.server.frame(about(router, us.Addr(), seen)), act: tc.acts[0], reason: tc.told,
							out: tc.toClient(about(router, tc.client, ask))})
					}
					answer := seen.reverse().flag("SA")
					back := ask.reverse().flag("SA")
					from := tc.client
					if tc.masked || tc.gateway {
						from = us.Addr()
					}
					r.do(step{what: "from the client", prog: tc.ask.prog, in: tc.ask.frame(about(tc.client, tc.front.Addr(), back)), act: tc.acts[1], reason: verdict.ToBackend,
						out: tc.toServer(about(from, tc.backend, answer))})
					if n := r.entries(r.objs.StraitCt); n > 2 {
						t.Errorf("%d entries: errors have none", n)
					}
				})
			}
		}
	}
}

// TestServiceFragments: ports of a service are found for fragments that have none, both ways.
func TestServiceFragments(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		client, frontend := at(f.world, 40000), at(f.node, nodePort)
		payload := []byte("the quick brown fox jumps over the lazy dog!")
		cut := func(s skb, id uint16, from, to int) skb {
			l4 := s.l3(t)[ipHeader(f):]
			s.frag = frag{id: id, offset: uint16(from / 8), more: to < len(l4)}
			s.l4 = l4[from:to]
			return s
		}
		ask := skb{proto: protoUDP, payload: payload}.from(client).to(frontend)
		whole := len(ask.l3(t)) - ipHeader(f)
		pieces := [][2]int{{0, 24}, {24, whole}}
		for name, backend := range map[string]netip.AddrPort{"here": at(f.podA, 8080), "elsewhere": at(f.nativePod, 8080)} {
			r.each(f.name+" "+name, func(r *rig) {
				t := r.t
				r.serve(setID, front{at: at(f.any(), nodePort), proto: protoUDP, flags: ServiceNodePort, backends: []netip.AddrPort{backend}})
				us, macs, prog := client, [2]net.HardwareAddr{macPod, macHost}, r.objs.StraitFromPod
				if name == "elsewhere" {
					r.run(step{what: "a first packet", prog: r.objs.StraitFromNet, in: r.fromNet(ask)})
					r.reason()
					us, macs, prog = at(f.node, NetPort(r.connection(client, frontend, protoUDP).NatPort)), [2]net.HardwareAddr{r.mac, macPod}, r.objs.StraitFromNet
				}
				seen := ask.from(us).to(backend)
				answer := seen.reverse()
				for _, p := range pieces {
					r.do(step{what: "in", prog: r.objs.StraitFromNet, in: r.fromNet(cut(ask, 7, p[0], p[1])), act: actRedirect, reason: verdict.ToBackend,
						out: withMACs(cut(seen, 7, p[0], p[1]), macs[0], macs[1]).hop().bytes(t)})
				}
				for _, p := range pieces {
					raw, out := cut(answer, 9, p[0], p[1]), cut(ask.reverse(), 9, p[0], p[1])
					if name == "elsewhere" {
						raw, out = withMACs(raw, r.mac, macPod), withMACs(out, r.mac, macPod)
					}
					r.do(step{what: "back", prog: prog, in: raw.bytes(t), act: actRedirect, reason: verdict.ToClient, out: out.hop().bytes(t)})
				}
			})
		}
	}
}
