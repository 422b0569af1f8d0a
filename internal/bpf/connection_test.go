package bpf

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

// TestConnection follows a TCP connection between two pods of the node through its states.
func TestConnection(t *testing.T) {
	for _, f := range families() {
		// Once the low end begins, once the high end.
		for _, swap := range []bool{false, true} {
			name := f.name + " low end begins"
			if swap {
				f.podA, f.podB = f.podB, f.podA
				name = f.name + " high end begins"
			}
			t.Run(name, func(t *testing.T) { testConnection(t, f, swap) })
		}
	}
}

func testConnection(t *testing.T, f family, swap bool) {
	r := newRig(t, NetworkIsland)
	// Both pods send through the same device here.
	for _, ip := range []netip.Addr{f.podA, f.podB} {
		r.check(r.objs.StraitEndpoint.Put(AddrFrom(ip), Endpoint{Ifindex: uint32(r.st)}))
	}
	client, server := netip.AddrPortFrom(f.podA, 40000), netip.AddrPortFrom(f.podB, 80)
	began, finClient, finServer, me := CtFlags(0), CtFinLo, CtFinHi, 0
	if swap {
		began, finClient, finServer, me = CtHiBegan, CtFinHi, CtFinLo, 1
	}
	var packets, bytes [2]uint64
	send := func(from, to netip.AddrPort, flags string, payload int) {
		t.Helper()
		s := skb{src: from.Addr(), dst: to.Addr(), proto: protoTCP, sport: from.Port(), dport: to.Port(), tcp: flags, payload: make([]byte, payload)}
		if act, _ := r.run(step{what: flags, prog: r.objs.StraitFromPod, in: s.bytes(t)}); act != actRedirect || r.reason() != verdict.ToLocalPod {
			t.Fatalf("%s: verdict %d", flags, act)
		}
		dir := me
		if from == server {
			dir = 1 - me
		}
		packets[dir]++
		bytes[dir] += uint64(len(s.l3(t)))
	}
	want := func(flags CtFlags) *CtEntry {
		t.Helper()
		e := r.connection(client, server, protoTCP)
		if e == nil {
			t.Fatal("no connection")
		}
		if e.Flags != flags || e.Packets != packets || e.Bytes != bytes {
			t.Errorf("flags %#x packets %v bytes %v, want %#x %v %v", e.Flags, e.Packets, e.Bytes, flags, packets, bytes)
		}
		return e
	}
	send(client, server, "S", 0)
	first := want(began)
	if now := monotonic(t); first.LastSeen > now || first.LastSeen+2 < now || first.Began/1e9 != uint64(first.LastSeen) {
		t.Errorf("began %d ns, last seen %d s, now %d s", first.Began, first.LastSeen, now)
	}
	send(client, server, "S", 0)
	want(began)
	send(server, client, "SA", 0)
	want(began | CtReplied)
	send(client, server, "A", 0)
	send(client, server, "PA", 1000)
	send(server, client, "PA", 50)
	want(began | CtReplied)
	send(client, server, "FA", 0)
	want(began | CtReplied | finClient)
	send(server, client, "FA", 0)
	send(client, server, "A", 0)
	old := want(began | CtReplied | finClient | finServer)

	time.Sleep(20 * time.Millisecond) // the coarse clock ticks
	packets, bytes = [2]uint64{}, [2]uint64{}
	send(client, server, "S", 0)
	if again := want(began); again.Began <= old.Began {
		t.Errorf("the new connection began at %d, the old one at %d", again.Began, old.Began)
	}
	send(server, client, "RA", 0)
	want(began | CtReplied | CtRst)

	packets, bytes = [2]uint64{}, [2]uint64{}
	send(server, client, "S", 0) // now the other end begins
	want(began ^ CtHiBegan)
	if n := r.entries(r.objs.StraitCt); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestConnectionIdle: a SYN on an entry that has been idle for too long begins a new connection, on a fresh one it does not.
func TestConnectionIdle(t *testing.T) {
	f := families()[0]
	r := newRig(t, NetworkIsland)
	s := skb{src: f.podA, dst: f.podB, proto: protoTCP, sport: 40000, dport: 80, tcp: "S"}
	send := func() *CtEntry {
		r.run(step{what: "syn", prog: r.objs.StraitFromPod, in: s.bytes(t)})
		return r.connection(netip.AddrPortFrom(f.podA, 40000), netip.AddrPortFrom(f.podB, 80), protoTCP)
	}
	send()
	if e := send(); e.Packets[0] != 2 {
		t.Errorf("%d packets after a repeated SYN, want 2", e.Packets[0])
	}
	key := r.onlyConnection(protoTCP)
	e := send()
	e.LastSeen = monotonic(t) - 130
	r.check(r.objs.StraitCt.Put(key, e))
	if e := send(); e.Packets[0] != 1 || e.LastSeen+2 < monotonic(t) {
		t.Errorf("%d packets, seen at %d, after a SYN on an idle entry: want 1 just now", e.Packets[0], e.LastSeen)
	}
}

func monotonic(t testing.TB) uint32 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return uint32(ts.Sec)
}

func TestFragments(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			whole := skb{src: f.podA, dst: f.podB, proto: protoUDP, sport: 4000, dport: 53, payload: make([]byte, 40)}
			l4 := whole.l3(t)[ipHeader(f):]
			piece := func(s skb, id uint16, from, to int) skb {
				s.frag = frag{id: id, offset: uint16(from / 8), more: to < len(l4)}
				s.l4 = l4[from:to]
				return s
			}
			local := func(what string, s skb) step {
				return step{what: what, prog: r.objs.StraitFromPod, in: s.bytes(t), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(s, macPodB, macHostB).hop().bytes(t)}
			}
			r.do(
				step{what: "a later one first", prog: r.objs.StraitFromPod, in: piece(whole, 7, 24, 48).bytes(t), act: actShot, reason: verdict.FragmentUnknown},
				local("first", piece(whole, 7, 0, 24)),
				local("last", piece(whole, 7, 24, 48)),
				step{what: "of another packet", prog: r.objs.StraitFromPod, in: piece(whole, 8, 24, 48).bytes(t), act: actShot, reason: verdict.FragmentUnknown},
				step{what: "too short for its ports", prog: r.objs.StraitFromPod, in: piece(whole, 9, 0, 4).bytes(t), act: actShot, reason: verdict.Malformed},
			)
			ct := r.connection(netip.AddrPortFrom(f.podA, 4000), netip.AddrPortFrom(f.podB, 53), protoUDP)
			if ct == nil || ct.Packets[0]+ct.Packets[1] != 2 || r.entries(r.objs.StraitCt) != 1 {
				t.Errorf("connection %+v of %d, want one with both fragments", ct, r.entries(r.objs.StraitCt))
			}
			strange := piece(whole, 10, 0, 24)
			strange.src = f.podB
			before := r.entries(r.objs.StraitFrag)
			r.do(step{what: "spoofed", prog: r.objs.StraitFromPod, in: strange.bytes(t), act: actShot, reason: verdict.SpoofedSource})
			if n := r.entries(r.objs.StraitFrag); n != before {
				t.Errorf("a dropped fragment was remembered")
			}
		})
	}
}

// TestFragmentsMasqueraded: only the first fragment has ports to rewrite; the checksum in it covers all of them.
func TestFragmentsMasqueraded(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			payload := []byte("the quick brown fox jumps over the lazy dog!")
			cut := func(s skb, l4 []byte, id uint16, from, to int) skb {
				s.frag = frag{id: id, offset: uint16(from / 8), more: to < len(l4)}
				s.l4 = l4[from:to]
				return s
			}
			s := skb{src: f.podA, dst: f.world, proto: protoUDP, sport: 4000, dport: 53, payload: payload}
			port := r.leave(f, s)
			sent, seen := s, f.outside(t, s, port)
			sentL4, seenL4 := sent.l3(t)[ipHeader(f):], seen.l3(t)[ipHeader(f):]
			back := skb{src: f.world, dst: f.podA, proto: protoUDP, sport: 53, dport: 4000, payload: payload}
			wire := f.outside(t, back, port)
			backL4, wireL4 := back.l3(t)[ipHeader(f):], wire.l3(t)[ipHeader(f):]
			for _, at := range [][2]int{{0, 24}, {24, len(sentL4)}} {
				r.do(
					step{what: "out", prog: r.objs.StraitFromPod, in: cut(sent, sentL4, 7, at[0], at[1]).bytes(t), act: actRedirect,
						reason: verdict.ToWorldMasqueraded, out: cut(seen, seenL4, 7, at[0], at[1]).hop().bytes(t)},
					step{what: "in", prog: r.objs.StraitFromNet, in: r.fromNet(cut(wire, wireL4, 9, at[0], at[1])), act: actRedirect,
						reason: verdict.ToLocalPod, out: withMACs(cut(back, backL4, 9, at[0], at[1]), macPod, macHost).hop().bytes(t)},
				)
			}
			r.do(step{what: "the node's own", prog: r.objs.StraitFromNet, in: r.fromNet(cut(wire, wireL4, 11, 24, len(wireL4))), act: actStack, reason: verdict.ToStack})
		})
	}
}

func TestFromNet(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkFlat)
			udp := func(src, dst netip.Addr) skb { return skb{src: src, dst: dst, proto: protoUDP, sport: 4000, dport: 53} }
			last := udp(f.nativePod, f.podA)
			last.ttl = 1
			to := func(s skb) []byte { return withMACs(s, macPod, macHost).hop().bytes(t) }
			r.do(
				step{what: "from a pod elsewhere", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.nativePod, f.podA)), act: actRedirect,
					reason: verdict.ToLocalPod, out: to(udp(f.nativePod, f.podA))},
				step{what: "again", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.nativePod, f.podA)), act: actRedirect,
					reason: verdict.ToLocalPod, out: to(udp(f.nativePod, f.podA))},
				step{what: "from outside", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.world, f.podA)), act: actRedirect,
					reason: verdict.ToLocalPod, out: to(udp(f.world, f.podA))},
				step{what: "no hop left", prog: r.objs.StraitFromNet, in: r.fromNet(last), act: actStack, reason: verdict.ToStack},
				step{what: "under the address of a pod here", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.podB, f.podA)), act: actShot, reason: verdict.SpoofedSource},
				step{what: "to the node", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.world, f.node)), act: actStack, reason: verdict.ToStack},
				step{what: "to a pod that is gone", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.nativePod, f.gone)), act: actStack, reason: verdict.ToStack},
				step{what: "multicast", prog: r.objs.StraitFromNet, in: r.fromNet(udp(f.world, f.multicast)), act: actStack, reason: verdict.ToStack},
				step{what: "for another machine", prog: r.objs.StraitFromNet, in: udp(f.nativePod, f.podA).bytes(t), act: actStack, reason: verdict.ToStack},
			)
		})
	}
}

// TestFromTunnel: what a test run can show, which has no tunnel metadata. Senders are checked over a real tunnel in TestWire.
func TestFromTunnel(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			s := skb{src: f.tunnelPod, dst: f.podA, proto: protoUDP, sport: 4000, dport: 53}
			r.do(step{what: "without metadata", prog: r.objs.StraitFromVx, in: s.bytes(t), act: actShot, reason: verdict.TunnelKey})
			back := skb{src: f.podA, dst: f.tunnelPod, proto: protoUDP, sport: 53, dport: 4000}
			r.do(
				step{what: "the pod begins", prog: r.objs.StraitFromPod, in: back.bytes(t), act: actRedirect, reason: verdict.ToTunnel,
					out: withMACs(back, macTunnel, macSender).hop().bytes(t)},
				step{what: "established", prog: r.objs.StraitFromVx, in: s.bytes(t), act: actRedirect, reason: verdict.ToLocalPod,
					out: withMACs(s, macPod, macHost).hop().bytes(t)},
			)
			s.ttl = 1
			r.do(step{what: "no hop left", prog: r.objs.StraitFromVx, in: s.bytes(t), act: actStack, reason: verdict.ToStack})
			s.ttl = 0
			for name, dst := range map[string]netip.Addr{"outside": f.world, "another node's pod": f.nativePod, "back into the tunnel": f.tunnelPod} {
				s.dst = dst
				r.do(step{what: name, prog: r.objs.StraitFromVx, in: s.bytes(t), act: actShot, reason: verdict.NoEndpoint})
			}
		})
	}
}

func TestToTunnel(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, NetworkIsland)
			s := skb{src: f.node, dst: f.tunnelPod, proto: protoUDP, sport: 4000, dport: 53}
			r.do(step{what: "to a pod", prog: r.objs.StraitToVx, in: s.bytes(t), act: actStack, reason: verdict.ToTunnel,
				out: withMACs(s, macTunnel, macSender).bytes(t)})
			for name, dst := range map[string]netip.Addr{"outside": f.world, "a pod by another way": f.nativePod} {
				s.dst = dst
				r.do(step{what: name, prog: r.objs.StraitToVx, in: s.bytes(t), act: actShot, reason: verdict.NoTunnelEndpoint})
			}
			s.dst = f.multicast
			r.do(step{what: "multicast", prog: r.objs.StraitToVx, in: s.bytes(t), act: actShot, reason: verdict.Multicast})
			row := Remote{Flags: RemotePod | RemoteTunnel}
			r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(f.tunnelCIDR), row))
			s.dst = f.tunnelPod
			r.do(step{what: "no node", prog: r.objs.StraitToVx, in: s.bytes(t), act: actShot, reason: verdict.NoTunnelEndpoint})
		})
	}
}
