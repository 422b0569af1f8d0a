package bpf

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

const xdpTX = 3

// xdpContext is struct xdp_md as a test run takes it.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueue, EgressIfindex uint32
}

var macNext = net.HardwareAddr{2, 0, 0, 0, 0, 0xf1} // every neighbour on the node's link

// newXDPRig is a service rig whose device has XDP, as test runs on a device want it, and knows its neighbours.
func newXDPRig(t testing.TB, change func(*ebpf.CollectionSpec, *rig)) *rig {
	t.Helper()
	r := newRigWith(t, NetworkIsland, func(s *ebpf.CollectionSpec, r *rig) {
		r.set(s, DatapathVarCfgServices, ServicesOn)
		change(s, r)
	})
	l, err := link.AttachXDP(link.XDPOptions{Program: r.objs.StraitXdp, Interface: r.net, Flags: link.XDPDriverMode})
	if err == nil {
		t.Cleanup(func() { l.Close() })
	} else if !errors.Is(err, unix.EBUSY) { // another rig of this test has done it
		t.Fatal(err)
	}
	for _, f := range families() {
		for _, ip := range []netip.Addr{f.gateway, f.nativeNode} {
			n := &netlink.Neigh{LinkIndex: r.net, IP: ip.AsSlice(), HardwareAddr: macNext, State: netlink.NUD_PERMANENT}
			r.check(netlink.NeighSet(n))
			t.Cleanup(func() { _ = netlink.NeighDel(n) })
		}
	}
	return r
}

// xdpTransports are what XDP carries: the checksum of SCTP covers the whole packet.
func xdpTransports() []layers.IPProtocol { return []layers.IPProtocol{protoTCP, protoUDP} }

func onlyServices(*ebpf.CollectionSpec, *rig) {}

func (r *rig) xdp(in []byte) (uint32, []byte, verdict.Reason) {
	r.t.Helper()
	ctx := xdpContext{DataEnd: uint32(len(in)), IngressIfindex: uint32(r.net)}
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: ctx}
	act, err := r.objs.StraitXdp.Run(&opts)
	r.check(err)
	return act, opts.DataOut, r.reason()
}

// kernel is what maps hold, for comparing what one program does with what another does.
type kernel struct {
	Ct   []CtEntry
	Nat  []NatEntry
	Load []Load
}

func rows[K, V any](r *rig, m *ebpf.Map) (all []V) {
	r.t.Helper()
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		all = append(all, v)
	}
	r.check(it.Err())
	return all
}

// kernel leaves out what is time.
func (r *rig) kernel() kernel {
	r.t.Helper()
	k := kernel{Ct: rows[CtKey, CtEntry](r, r.objs.StraitCt), Nat: rows[NatKey, NatEntry](r, r.objs.StraitNat), Load: rows[uint32, Load](r, r.objs.StraitLoad)}
	for i := range k.Ct {
		k.Ct[i].Began, k.Ct[i].LastSeen, k.Ct[i].Tick = 0, 0, 0
	}
	return k
}

// xdpWay is a service with one backend and one client of it.
type xdpWay struct {
	r                         *rig
	client, frontend, backend netip.AddrPort
	ask                       skb
	us                        netip.AddrPort // towards the backend, once the first packet went by tc
}

func (r *rig) xdpWay(f family, proto layers.IPProtocol, backend netip.Addr, flags ServiceFlags) *xdpWay {
	r.t.Helper()
	w := &xdpWay{r: r, client: at(f.world, 40000), frontend: at(f.node, nodePort), backend: at(backend, 8080)}
	r.serve(setID, front{at: at(f.any(), nodePort), proto: proto, flags: ServiceNodePort | flags, backends: []netip.AddrPort{w.backend}})
	w.ask = skb{proto: proto, tcp: "S", payload: []byte("hello")}.from(w.client).to(w.frontend)
	return w
}

// first sends the first packet: XDP leaves it to tc, and leaves nothing behind.
func (w *xdpWay) first() {
	r := w.r
	r.t.Helper()
	in := r.fromNet(w.ask)
	if act, out, why := r.xdp(in); act != xdpPass || why != verdict.Unknown || string(out) != string(in) || r.entries(r.objs.StraitCt) != 0 {
		r.t.Fatalf("first packet in XDP: verdict %d (%s), %d entries; want it passed on as it came", act, why, r.entries(r.objs.StraitCt))
	}
	r.run(step{what: "first packet", prog: r.objs.StraitFromNet, in: in})
	if why := r.reason(); why != verdict.ToBackend {
		r.t.Fatalf("first packet in tc: %s", why)
	}
	if ct := r.connection(w.client, w.frontend, w.ask.proto); ct != nil && ct.Flags&CtNat != 0 {
		w.us = at(ct.NatAddr.Netip(), NetPort(ct.NatPort))
	}
}

func (w *xdpWay) answer() skb {
	return skb{proto: w.ask.proto, tcp: "SA", payload: []byte("hi")}.from(w.backend).to(w.us)
}

// sent wants the packet out of the device it came from, between neighbours that are known.
func (w *xdpWay) sent(what string, in, out skb, reason verdict.Reason) {
	r := w.r
	r.t.Helper()
	want := withMACs(out.hop(), macNext, r.mac).bytes(r.t)
	act, got, why := r.xdp(r.fromNet(in))
	if act != xdpTX || why != reason || string(got) != string(want) {
		r.t.Errorf("%s: verdict %d (%s), want %d (%s); packet (-want +got):\n%s", what, act, why, xdpTX, reason, cmp.Diff(layersOf(want), layersOf(got)))
	}
}

// passed wants the packet as it came, and nothing changed or counted anywhere.
func (w *xdpWay) passed(what string, in []byte) {
	r := w.r
	r.t.Helper()
	before := r.kernel()
	act, out, why := r.xdp(in)
	if act != xdpPass || why != verdict.Unknown || string(out) != string(in) {
		r.t.Errorf("%s: verdict %d (%s), want it passed on as it came", what, act, why)
	}
	if diff := cmp.Diff(before, r.kernel()); diff != "" {
		r.t.Errorf("%s: passed on, but maps changed (-before +after):\n%s", what, diff)
	}
}

// TestXDPEvents: a connection that ends in XDP is told of there, with what was counted there.
func TestXDPEvents(t *testing.T) {
	r := newXDPRig(t, func(s *ebpf.CollectionSpec, r *rig) { r.set(s, DatapathVarCfgEvents, true) })
	for _, f := range families() {
		r.each(f.name, func(r *rig) {
			w := r.xdpWay(f, protoTCP, f.nativePod, 0)
			w.ask.payload = []byte("hello there")
			w.first()
			size, reset := uint64(len(w.ask.bytes(t))-14), w.answer().flag("RA")
			new := begun(HookFromNet, w.client, w.backend).front(w.frontend).nat(w.us)
			r.tells("first packet, in tc", new)
			w.sent("next", w.ask.flag("A"), w.ask.flag("A").from(w.us).to(w.backend), verdict.ToBackend)
			w.sent("reset", reset, reset.from(w.frontend).to(w.client), verdict.ToClient)
			r.tells("reset, in XDP", new.ended(HookXDP, EventAnswer, 0x14, [2]uint64{2, 1}, [2]uint64{2 * size, size - 9}))
		})
	}
}

// TestXDPElsewhere: both ways of known connections, byte by byte, in XDP.
func TestXDPElsewhere(t *testing.T) {
	for _, f := range families() {
		r := newXDPRig(t, onlyServices)
		for name, backend := range map[string]netip.Addr{"pod": f.nativePod, "node": f.nativeNode, "outside": f.world.Next()} {
			for _, proto := range xdpTransports() {
				r.each(f.name+" "+name+" "+proto.String(), func(r *rig) {
					w := r.xdpWay(f, proto, backend, 0)
					w.first()
					w.sent("answer", w.answer(), w.answer().from(w.frontend).to(w.client), verdict.ToClient)
					next := w.ask.flag("A")
					w.sent("next", next, next.from(w.us).to(w.backend), verdict.ToBackend)
					ct := r.connection(w.client, w.frontend, proto)
					if ct == nil || ct.Packets[0]+ct.Packets[1] != 3 || ct.Flags&CtReplied == 0 {
						r.t.Fatalf("client's entry %+v, want three packets and an answer", ct)
					}
					if proto == protoTCP {
						w.sent("end", w.ask.flag("FA"), w.ask.flag("FA").from(w.us).to(w.backend), verdict.ToBackend)
						w.sent("end back", w.answer().flag("FA"), w.answer().flag("FA").from(w.frontend).to(w.client), verdict.ToClient)
						if l := r.load(ct.Backend); l.Tracked != 0 || l.Connections != 1 {
							r.t.Errorf("load %+v after the end", l)
						}
						w.passed("begins anew", r.fromNet(w.ask))
					}
				})
			}
		}
	}
}

// TestXDPAsTC: whatever packets of a connection go by XDP or by tc, the same is left in packets and maps.
func TestXDPAsTC(t *testing.T) {
	for _, f := range families() {
		r := newXDPRig(t, onlyServices)
		for _, proto := range xdpTransports() {
			for _, dsr := range []ServiceFlags{0, ServiceDSR} {
				for _, payload := range [][]byte{nil, []byte("odd"), make([]byte, 1000)} {
					// The connection twice on empty maps: by tc alone, then by XDP where that takes a packet.
					var packets [2][][]byte
					var maps [2]kernel
					var taken int
					for i := range 2 {
						r.each(f.name+" "+proto.String(), func(r *rig) {
							w := r.xdpWay(f, proto, f.nativePod, dsr)
							w.ask.payload = payload
							w.first()
							talk := []skb{w.ask.flag("A"), w.ask.flag("PA"), w.ask.flag("FA"), w.ask.flag("A")}
							if dsr == 0 {
								talk = []skb{w.answer(), w.ask.flag("A"), w.ask.flag("PA"), w.answer().flag("FA"), w.ask.flag("FA"), w.answer().flag("A")}
							}
							for _, s := range talk {
								in := r.fromNet(s)
								if i == 1 {
									if act, out, _ := r.xdp(in); act == xdpTX {
										taken++
										packets[i] = append(packets[i], out[12:])
										continue
									}
								}
								_, out := r.run(step{what: "tc", prog: r.objs.StraitFromNet, in: in})
								r.reason()
								packets[i] = append(packets[i], out[12:]) // the neighbour layer has not put in its MACs
							}
							maps[i] = r.kernel()
						})
					}
					if want := dsr == 0 || proto == protoTCP; want != (taken > 0) {
						t.Errorf("%s %s dsr %d: %d packets went by XDP", f.name, proto, dsr, taken)
					}
					if diff := cmp.Diff(packets[0], packets[1]); diff != "" {
						t.Errorf("%s %s dsr %d: packets (-tc +xdp):\n%s", f.name, proto, dsr, diff)
					}
					if diff := cmp.Diff(maps[0], maps[1]); diff != "" {
						t.Errorf("%s %s dsr %d: maps (-tc +xdp):\n%s", f.name, proto, dsr, diff)
					}
				}
			}
		}
	}
}

// TestXDPPasses: what is not for XDP goes on to tc untouched and uncounted.
func TestXDPPasses(t *testing.T) {
	for _, f := range families() {
		r := newXDPRig(t, onlyServices)
		for _, proto := range xdpTransports() {
			r.each(f.name+" "+proto.String(), func(r *rig) {
				w := r.xdpWay(f, proto, f.nativePod, 0)
				w.ask.payload = make([]byte, 100) // no frame is padded
				w.first()
				next, answer := w.ask.flag("A"), w.answer().flag("A")
				with := func(s skb, change func(*skb)) []byte { change(&s); return r.fromNet(s) }
				for what, change := range map[string]func(*skb){
					"last hop":       func(s *skb) { s.ttl = 1 },
					"first fragment": func(s *skb) { s.frag = frag{id: 7, more: true} },
					"later fragment": func(s *skb) { s.frag = frag{id: 7, offset: 100} },
					"options":        func(s *skb) { s.options = true },
					"too big":        func(s *skb) { s.payload = make([]byte, 1500) },
				} {
					w.passed(what+", asked", with(next, change))
					w.passed(what+", answered", with(answer, change))
				}
				elsewhere := withMACs(next, macPodB, macPod).bytes(r.t)
				w.passed("overheard: for another machine", elsewhere)
				w.passed("multicast", withMACs(next, net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, macPod).bytes(r.t))
				w.passed("another port of the client", with(next, func(s *skb) { s.sport++ }))
				w.passed("no service", with(next, func(s *skb) { s.dport++ }))
				w.passed("a pod here", with(next, func(s *skb) { s.dst = f.podA }))
				w.passed("sctp", with(next, func(s *skb) { s.proto = protoSCTP }))
				whole := r.fromNet(next)
				for n := 14; n < len(whole)-len(next.payload); n++ {
					w.passed("cut short", slices.Clone(whole[:n]))
				}
				w.passed("length beyond the frame", slices.Clone(whole[:len(whole)-1]))
				// What tc has to make anew: the mapping, the neighbour, the backend.
				dev := uint32(r.net)
				gw := &netlink.Neigh{LinkIndex: r.net, IP: f.nativeNode.AsSlice()}
				r.check(netlink.NeighDel(gw))
				w.passed("neighbour not known", whole)
				gw.HardwareAddr, gw.State = macNext, netlink.NUD_PERMANENT
				r.check(netlink.NeighSet(gw))
				w.sent("neighbour known", next, next.from(w.us).to(w.backend), verdict.ToBackend)
				row := Remote{Flags: RemotePod | RemoteTunnel, Node: AddrFrom(f.tunnelNode), NodeId: 2}
				r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(f.nativeCIDR), row))
				w.passed("backend behind a tunnel", whole)
				row = Remote{Flags: RemotePod, Node: AddrFrom(f.nativeNode), Ifindex: dev + 1, NodeId: 2}
				r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(f.nativeCIDR), row))
				w.passed("backend behind another device", whole)
				row.Ifindex = dev
				row.Node = AddrFrom(f.world) // is no neighbour
				r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(f.nativeCIDR), row))
				w.passed("next hop behind a router", whole)
				row.Node = AddrFrom(f.nativeNode)
				r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(f.nativeCIDR), row))
				r.backend(setID*10, w.backend, proto, 2, 0)
				w.passed("backend's id is another's", whole)
			})
		}
	}
}

// TestXDPLostMapping: the mapping is looked at now and then; a lost one is made anew by tc.
func TestXDPLostMapping(t *testing.T) {
	for _, f := range families() {
		r := newXDPRig(t, onlyServices)
		w := r.xdpWay(f, protoUDP, f.nativePod, 0)
		w.first()
		for _, k := range mapKeys[NatKey](r, r.objs.StraitNat) {
			r.check(r.objs.StraitNat.Delete(k))
		}
		for _, k := range mapKeys[CtKey](r, r.objs.StraitCt) {
			change(t, r.objs.StraitCt, k, func(e *CtEntry) { e.Tick-- })
		}
		in := r.fromNet(w.ask)
		w.passed("mapping lost", in)
		r.run(step{what: "tc", prog: r.objs.StraitFromNet, in: in})
		if why := r.reason(); why != verdict.ToBackend || r.entries(r.objs.StraitNat) != 1 {
			t.Errorf("%s: tc did not make the mapping anew: %s", f.name, why)
		}
		w.sent("mapping made anew", w.ask, w.ask.from(w.us).to(w.backend), verdict.ToBackend)
	}
}

func mapKeys[K any](r *rig, m *ebpf.Map) (keys []K) {
	r.t.Helper()
	var k K
	var v []byte
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys = append(keys, k)
	}
	r.check(it.Err())
	return keys
}

// TestXDPChecksums: none stays none; a zero that is computed is not none; an unfinished one is not for XDP.
func TestXDPChecksums(t *testing.T) {
	for _, f := range families() {
		r := newXDPRig(t, onlyServices)
		r.each(f.name+" udp", func(r *rig) {
			w := r.xdpWay(f, protoUDP, f.nativePod, 0)
			w.ask.payload = []byte{0, 0}
			w.first()
			l4 := 14 + 20
			if f.v6 {
				l4 = 14 + 40
			}
			sum := func(b []byte) *[2]byte { return (*[2]byte)(b[l4+6 : l4+8]) }
			if !f.v6 {
				none := r.fromNet(w.ask)
				*sum(none) = [2]byte{}
				act, out, why := r.xdp(none)
				if act != xdpTX || why != verdict.ToBackend || *sum(out) != [2]byte{} {
					t.Errorf("no checksum: verdict %d (%s), checksum %x", act, why, *sum(out))
				}
			}
			// The payload that makes the checksum behind us 0 must come out as ffff.
			probe := withMACs(w.ask.from(w.us).to(w.backend).hop(), macNext, r.mac).bytes(t)
			w.ask.payload = slices.Clone(sum(probe)[:])
			_, out, _ := r.xdp(r.fromNet(w.ask))
			if *sum(out) != [2]byte{0xff, 0xff} {
				t.Errorf("%s: computed zero became %x, want ffff", f.name, *sum(out))
			}
			w.ask.payload = []byte("local")
			partial := r.fromNet(w.ask)
			pseudo := pseudoSum(w.ask, 8+len(w.ask.payload))
			*sum(partial) = [2]byte{byte(pseudo >> 8), byte(pseudo)}
			w.passed("unfinished checksum", partial)
		})
	}
}

// pseudoSum is what a sender leaves for its device to finish.
func pseudoSum(s skb, l4 int) uint16 {
	sum := uint32(l4) + uint32(s.proto)
	for _, a := range []netip.Addr{s.src, s.dst} {
		b := a.AsSlice()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// TestXDPServiceModes: connections that are known go on while services drain; with services off all of it is the stack's.
func TestXDPServiceModes(t *testing.T) {
	for mode, want := range map[ServiceMode]uint32{ServicesDrain: xdpTX, ServicesOff: xdpPass} {
		r := newXDPRig(t, onlyServices)
		f := families()[0]
		w := r.xdpWay(f, protoTCP, f.nativePod, 0)
		w.first()
		other := newXDPProgram(t, r, mode)
		act, err := other.Run(&ebpf.RunOptions{Data: r.fromNet(w.ask.flag("A")), Context: xdpContext{DataEnd: uint32(len(r.fromNet(w.ask.flag("A")))), IngressIfindex: uint32(r.net)}})
		r.check(err)
		if act != want {
			t.Errorf("mode %d: verdict %d, want %d", mode, act, want)
		}
	}
}

// newXDPProgram is the program with other configuration on the rig's maps.
func newXDPProgram(t testing.TB, r *rig, mode ServiceMode) *ebpf.Program {
	t.Helper()
	spec := privateSpec(t)
	r.set(spec, DatapathVarCfgServices, mode)
	r.set(spec, DatapathVarCfgMasqPortMin, uint16(portMin))
	r.set(spec, DatapathVarCfgMasqPortMax, uint16(portMax))
	var one struct {
		XDP *ebpf.Program `ebpf:"strait_xdp"`
	}
	o := &r.objs
	r.check(spec.LoadAndAssign(&one, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		DatapathMapStraitCt: o.StraitCt, DatapathMapStraitNat: o.StraitNat, DatapathMapStraitBackend: o.StraitBackend,
		DatapathMapStraitIpcache: o.StraitIpcache, DatapathMapStraitEndpoint: o.StraitEndpoint, DatapathMapStraitDevice: o.StraitDevice,
		DatapathMapStraitService: o.StraitService, DatapathMapStraitLoad: o.StraitLoad,
	}}))
	t.Cleanup(func() { one.XDP.Close() })
	return one.XDP
}

// BenchmarkService gives the time in the kernel per packet of a known connection to a backend elsewhere, and of the answer, by tc and by XDP:
// the best tenth of single runs, as a packet cannot be sent twice. tc's time is without the socket buffer that it needs.
func BenchmarkService(b *testing.B) {
	const runs = 2000
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Skipf("needs BPF statistics: %v", err)
	}
	b.Cleanup(func() { stats.Close() })
	for _, f := range families() {
		r := newXDPRig(b, onlyServices)
		w := r.xdpWay(f, protoUDP, f.nativePod, 0)
		w.first()
		for _, tc := range []struct {
			name string
			prog *ebpf.Program
			ctx  any
			act  uint32
		}{
			{"tc", r.objs.StraitFromNet, context{Ifindex: uint32(r.net)}, actRedirect},
			{"xdp", r.objs.StraitXdp, nil, xdpTX},
		} {
			for way, s := range map[string]skb{"asked": w.ask, "answered": w.answer()} {
				b.Run(f.name+" "+way+" "+tc.name, func(b *testing.B) {
					in, ctx := r.fromNet(s), tc.ctx
					if ctx == nil {
						ctx = xdpContext{DataEnd: uint32(len(in)), IngressIfindex: uint32(r.net)}
					}
					spent := func() time.Duration {
						s, err := tc.prog.Stats()
						r.check(err)
						return s.Runtime
					}
					var times []time.Duration
					for b.Loop() {
						times = times[:0]
						for before := spent(); len(times) < runs; before = spent() {
							act, err := tc.prog.Run(&ebpf.RunOptions{Data: in, Context: ctx})
							if err != nil || act != tc.act {
								b.Fatalf("verdict %d, want %d: %v", int32(act), tc.act, err)
							}
							times = append(times, spent()-before)
						}
					}
					slices.Sort(times)
					b.ReportMetric(float64(times[runs/10].Nanoseconds()), "ns/packet")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}
