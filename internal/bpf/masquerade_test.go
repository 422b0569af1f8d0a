package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// mappings is the content of strait_nat.
func (r *rig) mappings() map[NatKey]NatEntry {
	r.t.Helper()
	all := map[NatKey]NatEntry{}
	var k NatKey
	var v NatEntry
	it := r.objs.StraitNat.Iterate()
	for it.Next(&k, &v) {
		all[k] = v
	}
	r.check(it.Err())
	return all
}

// flow is a pod's packet to the outside and the reply, as the pod sees them; masqueraded gives the outside's view.
type flow struct {
	name       string
	out, reply skb
}

func (f family) flows(t testing.TB) []flow {
	tcp := skb{src: f.podA, dst: f.world, proto: protoTCP, sport: 40000, dport: 443, tcp: "S"}
	back := skb{src: f.world, dst: f.podA, proto: protoTCP, sport: 443, dport: 40000, tcp: "SA"}
	udp, udpBack := tcp, back
	udp.proto, udpBack.proto = protoUDP, protoUDP
	udp.payload, udpBack.payload = []byte("query"), []byte("answer!")
	icmp := layers.IPProtocol(f.icmpProto())
	return []flow{
		{"TCP", tcp, back}, {"UDP", udp, udpBack},
		{"echo", skb{src: f.podA, dst: f.world, proto: icmp, sport: 77, l4: f.echo(t, f.podA, f.world, 77, false)},
			skb{src: f.world, dst: f.podA, proto: icmp, dport: 77, l4: f.echo(t, f.world, f.podA, 77, true)}},
		{"SCTP", skb{src: f.podA, dst: f.world, proto: protoSCTP, sport: 5000, dport: 36412},
			skb{src: f.world, dst: f.podA, proto: protoSCTP, sport: 36412, dport: 5000}},
		{"GRE", skb{src: f.podA, dst: f.world, proto: layers.IPProtocolGRE, payload: []byte{0, 0, 8, 0}},
			skb{src: f.world, dst: f.podA, proto: layers.IPProtocolGRE, payload: []byte{0, 0, 8, 0}}},
	}
}

// outside replaces the pod's address and port by the node's in a packet of a flow.
func (f family) outside(t testing.TB, s skb, port uint16) skb {
	fromPod := s.src == f.podA
	if fromPod {
		s.src = f.node
	} else {
		s.dst = f.node
	}
	switch {
	case s.proto == protoTCP || s.proto == protoUDP:
		if fromPod {
			s.sport = port
		} else {
			s.dport = port
		}
	case uint8(s.proto) == f.icmpProto():
		s.l4 = f.echo(t, s.src, s.dst, port, !fromPod)
	}
	return s
}

// fromNet puts the MACs of the node's device in front.
func (r *rig) fromNet(s skb) []byte { return withMACs(s, r.mac, macPod).bytes(r.t) }

// leave sends a pod's first packet outside, checks it byte by byte and gives the node's port it got.
func (r *rig) leave(f family, s skb) uint16 {
	r.t.Helper()
	before := r.mappings()
	act, out := r.run(step{what: "leave", prog: r.objs.StraitFromPod, in: s.bytes(r.t)})
	if got := r.reason(); act != actRedirect || got != verdict.ToWorldMasqueraded {
		r.t.Fatalf("first packet: verdict %d (%s)", int32(act), got)
	}
	var port uint16
	for k, v := range r.mappings() {
		if _, old := before[k]; !old && v.Client == AddrFrom(s.src) {
			port = NetPort(k.NodePort)
		}
	}
	if want := f.outside(r.t, s, port).hop().bytes(r.t); string(want) != string(out) {
		r.t.Fatalf("first packet under port %d:\nwant %v\ngot  %v", port, layersOf(want), layersOf(out))
	}
	return port
}

func TestMasquerade(t *testing.T) {
	for _, f := range families() {
		for _, fl := range f.flows(t) {
			t.Run(f.name+" "+fl.name, func(t *testing.T) {
				r := newRig(t, NetworkIsland)
				port := r.leave(f, fl.out)
				if rewritten := fl.name != "SCTP" && fl.name != "GRE"; rewritten && (port < portMin || port > portMax) {
					t.Errorf("port %d, want one of %d-%d", port, portMin, portMax)
				}
				again := fl.out
				if again.tcp != "" {
					again.tcp = "A"
				}
				r.do(
					step{what: "reply", prog: r.objs.StraitFromNet, in: r.fromNet(f.outside(t, fl.reply, port)), act: actRedirect,
						reason: verdict.ToLocalPod, out: withMACs(fl.reply, macPod, macHost).hop().bytes(t)},
					step{what: "next packet keeps its port", prog: r.objs.StraitFromPod, in: again.bytes(t), act: actRedirect,
						reason: verdict.ToWorldMasqueraded, out: f.outside(t, again, port).hop().bytes(t)},
				)
				if n := r.entries(r.objs.StraitNat); n != 1 {
					t.Errorf("%d mappings, want 1", n)
				}
				if n := r.entries(r.objs.StraitCt); n != 1 {
					t.Errorf("%d connections, want 1", n)
				}
			})
		}
	}
}

func TestMasqueradeReturn(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			flows := f.flows(t)
			tcp := flows[0]
			port := r.leave(f, tcp.out)
			reply := f.outside(t, tcp.reply, port)
			change := func(c func(*skb)) []byte { s := reply; c(&s); return r.fromNet(s) }
			icmp := layers.IPProtocol(f.icmpProto())
			stack := func(what string, in []byte) step {
				return step{what: what, prog: r.objs.StraitFromNet, in: in, act: actStack, reason: verdict.ToStack}
			}
			r.do(
				stack("a SYN is no reply", change(func(s *skb) { s.tcp = "S" })),
				stack("from another port", change(func(s *skb) { s.sport++ })),
				stack("to another port", change(func(s *skb) { s.dport++ })),
				stack("to a port outside the range", change(func(s *skb) { s.dport = 22 })),
				stack("from another address", change(func(s *skb) { s.src = f.apiserver })),
				stack("by another protocol", change(func(s *skb) { s.proto = protoUDP })),
				stack("for another machine", withMACs(reply, macPod, r.mac).bytes(t)),
				step{what: "no hop left", prog: r.objs.StraitFromNet, in: change(func(s *skb) { s.ttl = 1 }), act: actShot, reason: verdict.TtlExceeded},
				step{what: "the reply itself", prog: r.objs.StraitFromNet, in: r.fromNet(reply), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(tcp.reply, macPod, macHost).hop().bytes(t)},
			)
			id := r.leave(f, flows[2].out)
			ask := skb{src: f.world, dst: f.node, proto: icmp, l4: f.echo(t, f.world, f.node, id, false)}
			r.do(stack("an echo request is no reply", r.fromNet(ask)))
			// The connection was forgotten, the mapping was not: it is remembered again as the pod's.
			r.check(r.objs.StraitCt.Delete(r.onlyConnection(protoTCP)))
			r.do(step{what: "reply without connection", prog: r.objs.StraitFromNet, in: r.fromNet(reply), act: actRedirect, reason: verdict.ToLocalPod,
				out: withMACs(tcp.reply, macPod, macHost).hop().bytes(t)})
			tcp.out.tcp = "A"
			r.do(step{what: "and keeps its port", prog: r.objs.StraitFromPod, in: tcp.out.bytes(t), act: actRedirect,
				reason: verdict.ToWorldMasqueraded, out: f.outside(t, tcp.out, port).hop().bytes(t)})
			// The pod is gone.
			r.check(r.objs.StraitEndpoint.Delete(AddrFrom(f.podA)))
			r.do(stack("reply to a pod that is gone", r.fromNet(reply)))
		})
	}
}

func (r *rig) onlyConnection(proto layers.IPProtocol) CtKey {
	r.t.Helper()
	var k CtKey
	var v CtEntry
	it := r.objs.StraitCt.Iterate()
	for it.Next(&k, &v) {
		if k.Proto == uint8(proto) {
			return k
		}
	}
	r.t.Fatalf("no connection of %s: %v", proto, it.Err())
	return k
}

func TestMasqueradeErrors(t *testing.T) {
	for _, f := range families() {
		icmp := layers.IPProtocol(f.icmpProto())
		for _, fl := range f.flows(t) {
			t.Run(f.name+" "+fl.name, func(t *testing.T) {
				r := newRig(t, NetworkIsland)
				port := r.leave(f, fl.out)
				// A router on the way complains about what it saw; the pod gets a complaint about what it sent.
				seen, sent := f.outside(t, fl.out, port).hop().l3(t), fl.out.hop().l3(t)
				for _, cut := range []int{len(seen), len(seen) - len(fl.out.payload), ipHeader(f) + 8} {
					in := skb{src: f.gateway, dst: f.node, proto: icmp, l4: f.unreachable(t, f.gateway, f.node, seen[:min(cut, len(seen))])}
					out := skb{src: f.gateway, dst: f.podA, proto: icmp, l4: f.unreachable(t, f.gateway, f.podA, sent[:min(cut, len(sent))])}
					r.do(step{what: fmt.Sprintf("error about %d bytes", cut), prog: r.objs.StraitFromNet, in: r.fromNet(in), act: actRedirect,
						reason: verdict.ToLocalPod, out: withMACs(out, macPod, macHost).hop().bytes(t)})
				}
				// The pod complains about the reply; the other end gets a complaint about what it sent.
				wire := f.outside(t, fl.reply, port)
				r.do(step{what: "reply", prog: r.objs.StraitFromNet, in: r.fromNet(wire), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(fl.reply, macPod, macHost).hop().bytes(t)})
				in := skb{src: f.podA, dst: f.world, proto: icmp, l4: f.unreachable(t, f.podA, f.world, fl.reply.l3(t))}
				out := skb{src: f.node, dst: f.world, proto: icmp, l4: f.unreachable(t, f.node, f.world, wire.l3(t))}
				r.do(step{what: "error from the pod", prog: r.objs.StraitFromPod, in: in.bytes(t), act: actRedirect,
					reason: verdict.ToWorldMasqueraded, out: out.hop().bytes(t)})
				if n := r.entries(r.objs.StraitCt); n != 1 {
					t.Errorf("%d connections, want 1: errors have none", n)
				}
			})
		}
	}
}

func ipHeader(f family) int {
	if f.v6 {
		return 40
	}
	return 20
}

func TestErrorsOfStrangers(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			icmp := layers.IPProtocol(f.icmpProto())
			about := func(src, dst netip.Addr) []byte {
				return skb{src: src, dst: dst, proto: protoUDP, sport: 53, dport: 4000}.l3(t)
			}
			send := func(src, dst netip.Addr, inner []byte) skb {
				return skb{src: src, dst: dst, proto: icmp, l4: f.unreachable(t, src, dst, inner)}
			}
			r.do(
				step{what: "a pod about another pod's packet", prog: r.objs.StraitFromPod, in: send(f.podA, f.podB, about(f.podB, f.world)).bytes(t),
					act: actShot, reason: verdict.UnrelatedIcmp},
				step{what: "a pod about a packet it was sent", prog: r.objs.StraitFromPod, in: send(f.podA, f.podB, about(f.podB, f.podA)).bytes(t),
					act: actRedirect, reason: verdict.ToLocalPod, out: withMACs(send(f.podA, f.podB, about(f.podB, f.podA)), macPodB, macHostB).hop().bytes(t)},
				step{what: "a pod about a connection that never was", prog: r.objs.StraitFromPod, in: send(f.podA, f.world, about(f.world, f.podA)).bytes(t),
					act: actShot, reason: verdict.UnrelatedIcmp},
				step{what: "too little inside", prog: r.objs.StraitFromPod, in: send(f.podA, f.podB, about(f.podB, f.podA)[:ipHeader(f)+4]).bytes(t),
					act: actShot, reason: verdict.UnrelatedIcmp},
				step{what: "to a pod about another's packet", prog: r.objs.StraitFromNet, in: r.fromNet(send(f.nativePod, f.podA, about(f.podB, f.nativePod))),
					act: actShot, reason: verdict.UnrelatedIcmp},
				step{what: "to the node about its own packet", prog: r.objs.StraitFromNet, in: r.fromNet(send(f.world, f.node, about(f.node, f.world))),
					act: actStack, reason: verdict.ToStack},
			)
		})
	}
}

// TestMasqueradePorts fills the range and looks at who gives way: nobody who lives.
func TestMasqueradePorts(t *testing.T) {
	const width = 8 // below the number of tries, so each allocation sees the whole range
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newNarrowRig(t, width)
			syn := func(sport uint16) skb {
				return skb{src: f.podA, dst: f.world, proto: protoTCP, sport: sport, dport: 443, tcp: "S"}
			}
			used := map[uint16]uint16{}
			for i := range uint16(width) {
				port := r.leave(f, syn(40000+i))
				if other, twice := used[port]; twice {
					t.Fatalf("port %d given to %d and %d", port, other, 40000+i)
				}
				used[port] = 40000 + i
			}
			r.do(step{what: "one too many", prog: r.objs.StraitFromPod, in: syn(41000).bytes(t), act: actShot, reason: verdict.NoMasqueradePort,
				out: syn(41000).bytes(t)})
			other := syn(41000)
			other.dst = f.apiserver
			if r.leave(f, other) == 0 {
				t.Error("another destination has the whole range")
			}
			// A connection that ended gives its port to the one that had none.
			var victim, freed uint16
			for freed, victim = range used {
				break
			}
			fin := syn(victim)
			fin.tcp = "FA"
			back := skb{src: f.world, dst: f.node, proto: protoTCP, sport: 443, dport: freed, tcp: "FA"}
			r.run(step{what: "fin", prog: r.objs.StraitFromPod, in: fin.bytes(t)})
			r.reason()
			r.run(step{what: "fin back", prog: r.objs.StraitFromNet, in: r.fromNet(back)})
			r.reason()
			r.do(step{what: "takes over the port", prog: r.objs.StraitFromPod, in: syn(41000).bytes(t), act: actRedirect, reason: verdict.ToWorldMasqueraded,
				out: f.outside(t, syn(41000), freed).hop().bytes(t)})
			if k, v := r.taken(freed); v.ClientPort != NetPort(41000) {
				t.Errorf("mapping %+v of port %d still belongs to %d", k, freed, NetPort(v.ClientPort))
			}
			r.do(step{what: "the old one gets none", prog: r.objs.StraitFromPod, in: syn(victim).bytes(t), act: actShot, reason: verdict.NoMasqueradePort,
				out: syn(victim).bytes(t)})
		})
	}
}

func (r *rig) taken(port uint16) (NatKey, NatEntry) {
	for k, v := range r.mappings() {
		if k.NodePort == NetPort(port) {
			return k, v
		}
	}
	return NatKey{}, NatEntry{}
}

func newNarrowRig(t testing.TB, width int) *rig {
	t.Helper()
	return newRigWith(t, NetworkIsland, func(s *ebpf.CollectionSpec, r *rig) {
		r.set(s, DatapathVarCfgMasqPortMin, uint16(portMin))
		r.set(s, DatapathVarCfgMasqPortMax, uint16(portMin+width-1))
	})
}

// TestMasqueradeSockets: a port the node itself listens on, or has a connection from, is never given away.
func TestMasqueradeSockets(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newNarrowRig(t, 2)
			at := net.JoinHostPort(f.node.String(), fmt.Sprint(portMin))
			l, err := net.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			u, err := net.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			for _, proto := range []layers.IPProtocol{protoTCP, protoUDP} {
				s := skb{src: f.podA, dst: f.world, proto: proto, sport: 40000, dport: 443, tcp: "S"}
				if port := r.leave(f, s); port != portMin+1 {
					t.Errorf("%s got port %d, want %d", proto, port, portMin+1)
				}
				s.sport++
				r.do(step{what: "none left", prog: r.objs.StraitFromPod, in: s.bytes(t), act: actShot, reason: verdict.NoMasqueradePort})
			}
		})
	}
}

func TestMasqueradeNoAddress(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			r.check(r.objs.StraitDevice.Put(uint32(r.net), Device{Mtu: 1500}))
			s := skb{src: f.podA, dst: f.world, proto: protoUDP, sport: 40000, dport: 443}
			big := s
			big.payload = make([]byte, 1600)
			r.do(step{what: "no address", prog: r.objs.StraitFromPod, in: s.bytes(t), act: actShot, reason: verdict.NoMasqueradeAddress})
			if f.v6 {
				r.do(step{what: "too big", prog: r.objs.StraitFromPod, in: big.bytes(t), act: actStack, reason: verdict.ToStack})
			} else {
				r.do(step{what: "too big to be fragmented unmasqueraded", prog: r.objs.StraitFromPod, in: big.bytes(t), act: actShot, reason: verdict.TooBig})
				big.df = true
				r.do(step{what: "too big, the pod is told", prog: r.objs.StraitFromPod, in: big.bytes(t), act: actStack, reason: verdict.ToStack})
			}
			r.check(r.objs.StraitDevice.Delete(uint32(r.net)))
			r.do(step{what: "a device that is not ours", prog: r.objs.StraitFromPod, in: s.bytes(t), act: actStack, reason: verdict.ToStack})
		})
	}
}

// TestMasqueradeAddressChange: when the way out has another address, the connection begins again under it.
func TestMasqueradeAddressChange(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			s := skb{src: f.podA, dst: f.world, proto: protoUDP, sport: 40000, dport: 443}
			r.leave(f, s)
			f.node = f.node.Next()
			r.check(r.objs.StraitDevice.Put(uint32(r.net), Device{Mtu: 1500, Addr4: AddrFrom(f.node), Addr6: AddrFrom(f.node)}))
			r.leave(f, s)
		})
	}
}
