package bpf

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// front is a service of the little cluster with one backend set.
type front struct {
	at       netip.AddrPort
	proto    layers.IPProtocol
	flags    ServiceFlags
	backends []netip.AddrPort
	outer    []netip.AddrPort // with SERVICE_OUTER_LOCAL
}

const (
	nodePort = 30080
	setID    = 500
)

func (f family) any() netip.Addr {
	if f.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func newServiceRig(t testing.TB, network Network) *rig {
	t.Helper()
	return newRigWith(t, network, func(s *ebpf.CollectionSpec, r *rig) { r.set(s, DatapathVarCfgServices, ServicesOn) })
}

// forget empties what connections and services have left, for the next test on the same programs.
func (r *rig) forget() {
	r.t.Helper()
	for _, m := range []*ebpf.Map{r.objs.StraitCt, r.objs.StraitNat, r.objs.StraitFrag, r.objs.StraitService, r.objs.StraitSlot, r.objs.StraitBackend,
		r.objs.StraitLoad, r.objs.StraitSource, r.objs.StraitAffinity} {
		for {
			first, err := m.NextKeyBytes(nil)
			r.check(err)
			if first == nil {
				break
			}
			r.check(m.Delete(first))
		}
	}
}

// each runs a test for a family on programs it shares with the family's other tests.
func (r *rig) each(name string, run func(r *rig)) {
	r.t.(*testing.T).Run(name, func(t *testing.T) {
		one := *r
		one.t = t
		one.forget()
		run(&one)
	})
}

// serve writes a service; id names its set, and its backends have the ids id*10, id*10+1 and so on.
func (r *rig) serve(id uint32, s front) {
	r.t.Helper()
	row := Service{Id: id, Set: id, OuterSet: id, Flags: s.flags, Count: uint32(len(s.backends)), OuterCount: uint32(len(s.backends))}
	next := id * 10
	fill := func(set uint32, backends []netip.AddrPort) {
		for i, b := range backends {
			r.backend(next, b, s.proto, 1, 0)
			r.check(r.objs.StraitSlot.Put(SlotKey{Set: set, Slot: uint32(i)}, Slot{Backend: next}))
			next++
		}
	}
	fill(id, s.backends)
	if s.flags&ServiceOuterLocal != 0 {
		row.OuterSet, row.OuterCount = id+1, uint32(len(s.outer))
		fill(id+1, s.outer)
	}
	r.check(r.objs.StraitService.Put(SockaddrKeyFrom(s.at, uint8(s.proto)), row))
}

func (r *rig) backend(id uint32, at netip.AddrPort, proto layers.IPProtocol, generation uint32, flags BackendFlags) {
	r.t.Helper()
	r.check(r.objs.StraitBackend.Put(id, Backend{Addr: AddrFrom(at.Addr()), Port: NetPort(at.Port()), Proto: uint8(proto), Generation: generation, Flags: flags}))
	if err := r.objs.StraitLoad.Update(id, Load{}, ebpf.UpdateNoExist); err != nil && !isExist(err) {
		r.t.Fatal(err)
	}
}

func (r *rig) load(id uint32) Load {
	r.t.Helper()
	var l Load
	r.check(r.objs.StraitLoad.Lookup(id, &l))
	return l
}

// from and to put other ends into a packet.
func (s skb) from(ap netip.AddrPort) skb { s.src, s.sport = ap.Addr(), ap.Port(); return s }
func (s skb) to(ap netip.AddrPort) skb   { s.dst, s.dport = ap.Addr(), ap.Port(); return s }
func (s skb) flag(tcp string) skb        { s.tcp = tcp; return s }

func at(ip netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(ip, port) }

// reverse is a packet the other way.
func (s skb) reverse() skb {
	s.src, s.dst, s.sport, s.dport = s.dst, s.src, s.dport, s.sport
	return s
}

// transports are the protocols whose ports can be masqueraded, protocols all that services have.
func transports() []layers.IPProtocol { return []layers.IPProtocol{protoTCP, protoUDP} }
func protocols() []layers.IPProtocol  { return append(transports(), protoSCTP) }

// TestServiceToPod: a client outside reaches a pod of this node under its own address, and gets the answer from the frontend.
func TestServiceToPod(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		vip := f.world.Next()
		for name, s := range map[string]front{
			"node port":     {at: at(f.any(), nodePort), flags: ServiceNodePort},
			"load balancer": {at: at(vip, 80), flags: ServiceLoadBalancer},
			"host port":     {at: at(f.any(), nodePort), flags: ServiceHostPort},
			"local policy":  {at: at(f.any(), nodePort), flags: ServiceNodePort | ServiceOuterLocal},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+name+" "+proto.String(), func(r *rig) {
					t := r.t
					pod := at(f.podA, 8080)
					s.proto, s.backends, s.outer = proto, []netip.AddrPort{pod}, []netip.AddrPort{pod}
					r.serve(setID, s)
					client, frontend := at(f.world, 40000), s.at
					if s.at.Addr() == f.any() {
						frontend = at(f.node, s.at.Port())
					}
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
					answer := ask.reverse().flag("SA")
					in := func(what string, s skb) step {
						return step{what: what, prog: r.objs.StraitFromNet, in: r.fromNet(s), act: actRedirect, reason: verdict.ToBackend,
							out: withMACs(s.to(pod), macPod, macHost).hop().bytes(t)}
					}
					out := func(what string, s skb) step {
						return step{what: what, prog: r.objs.StraitFromPod, in: s.from(pod).bytes(t), act: actRedirect, reason: verdict.ToClient, out: s.hop().bytes(t)}
					}
					r.do(in("first packet", ask), out("answer", answer), in("next", ask.flag("A")), out("next answer", answer.flag("PA")))
					ct := r.connection(client, frontend, proto)
					if ct == nil || ct.Flags&(CtService|CtReplied) != CtService|CtReplied || ct.Flags&CtNat != 0 {
						t.Fatalf("client's entry %+v", ct)
					}
					if ct := r.connection(client, pod, proto); ct == nil || ct.Flags&(CtFront|CtReplied) != CtFront|CtReplied || ct.Packets != [2]uint64{2, 2} {
						t.Fatalf("backend's entry %+v", ct)
					}
					if l := r.load(ct.Backend); l.Tracked != 1 || l.Connections != 1 {
						t.Errorf("load %+v, want one connection", l)
					}
					if n := r.entries(r.objs.StraitCt); n != 2 {
						t.Errorf("%d entries, want 2", n)
					}
				})
			}
		}
	}
}

// TestServiceElsewhere: a backend that is not here sees this node, its answer comes back to the client.
func TestServiceElsewhere(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		for name, tc := range map[string]struct {
			backend netip.Addr
			in      func(*rig) *ebpf.Program
		}{
			"next hop": {backend: f.nativePod, in: func(r *rig) *ebpf.Program { return r.objs.StraitFromNet }},
			"tunnel":   {backend: f.tunnelPod, in: func(r *rig) *ebpf.Program { return r.objs.StraitFromNet }},
			"outside":  {backend: f.world.Next(), in: func(r *rig) *ebpf.Program { return r.objs.StraitFromNet }},
			"node":     {backend: f.nativeNode, in: func(r *rig) *ebpf.Program { return r.objs.StraitFromNet }},
		} {
			for _, proto := range protocols() {
				r.each(f.name+" "+name+" "+proto.String(), func(r *rig) {
					t := r.t
					backend := at(tc.backend, 8080)
					r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort, backends: []netip.AddrPort{backend}})
					client, frontend := at(f.world, 40000), at(f.node, nodePort)
					ask := skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(client).to(frontend)
					_, raw := r.run(step{what: "first packet", prog: r.objs.StraitFromNet, in: r.fromNet(ask)})
					if got := r.reason(); got != verdict.ToBackend {
						t.Fatalf("first packet: %s", got)
					}
					ct := r.connection(client, frontend, proto)
					if ct == nil || ct.Flags&(CtService|CtNat) != CtService|CtNat || ct.NatAddr != AddrFrom(f.node) {
						t.Fatalf("client's entry %+v", ct)
					}
					us := at(f.node, NetPort(ct.NatPort))
					if proto != protoSCTP && (us.Port() < portMin || us.Port() > portMax) {
						t.Errorf("port %d, want one of %d-%d", us.Port(), portMin, portMax)
					}
					wire := func(s skb) []byte {
						s = s.from(us).to(backend).hop()
						if name == "tunnel" {
							return withMACs(s, macTunnel, macSender).bytes(t)
						}
						return withMACs(s, r.mac, macPod).bytes(t)
					}
					if string(raw) != string(wire(ask)) {
						t.Fatalf("first packet:\nwant %v\ngot  %v", layersOf(wire(ask)), layersOf(raw))
					}
					answer := skb{proto: proto, tcp: "SA", payload: []byte("hi")}.from(backend).to(us)
					back := answer.from(frontend).to(client).hop()
					r.do(
						step{what: "answer", prog: tc.in(r), in: r.fromNet(answer), act: actRedirect, reason: verdict.ToClient, out: withMACs(back, r.mac, macPod).bytes(t)},
						step{what: "next", prog: r.objs.StraitFromNet, in: r.fromNet(ask.flag("A")), act: actRedirect, reason: verdict.ToBackend, out: wire(ask.flag("A"))},
					)
					if proto == protoTCP {
						for i, s := range []string{"FA", "FA", "A"} {
							if i == 1 {
								r.run(step{what: "fin back", prog: tc.in(r), in: r.fromNet(answer.flag(s))})
							} else {
								r.run(step{what: "fin", prog: r.objs.StraitFromNet, in: r.fromNet(ask.flag(s))})
							}
							r.reason()
							if l := r.load(ct.Backend); l.Tracked != []uint32{1, 0, 0}[i] || l.Connections != 1 {
								t.Errorf("load %+v after packet %d of the end", l, i)
							}
						}
						r.do(step{what: "begins anew", prog: r.objs.StraitFromNet, in: r.fromNet(ask), act: actRedirect, reason: verdict.ToBackend, out: wire(ask)})
						if l := r.load(ct.Backend); l.Tracked != 1 || l.Connections != 2 {
							t.Errorf("load %+v after the second connection began", l)
						}
					}
					if n := r.entries(r.objs.StraitNat); n != 1 {
						t.Errorf("%d mappings, want 1", n)
					}
				})
			}
		}
	}
}

func isExist(err error) bool { return errors.Is(err, ebpf.ErrKeyExist) }

func ctKeyOf(a, b netip.AddrPort, proto layers.IPProtocol) CtKey {
	if b.Addr().Compare(a.Addr()) < 0 {
		a, b = b, a
	}
	return CtKey{Lo: AddrFrom(a.Addr()), Hi: AddrFrom(b.Addr()), LoPort: NetPort(a.Port()), HiPort: NetPort(b.Port()), Proto: uint8(proto)}
}

// highBegan is the flag of an entry that client has begun.
func highBegan(client, other netip.AddrPort) CtFlags {
	if other.Addr().Compare(client.Addr()) < 0 {
		return CtHiBegan
	}
	return 0
}
