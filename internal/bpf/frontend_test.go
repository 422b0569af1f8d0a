package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serviceFamily is one kind of client with the addresses of a little cluster around it.
type serviceFamily struct {
	client
	any, loopback, unspecified netip.Addr
	here, there, elsewhere     netip.Addr // of this node, of another, of nobody
	pod                        netip.Addr // that of clients in this network namespace
	cluster                    netip.Addr // a service address
	backends                   []netip.AddrPort
}

func serviceFamilies() []serviceFamily {
	ip, ap := netip.MustParseAddr, netip.MustParseAddrPort
	v4 := serviceFamily{
		any: ip("0.0.0.0"), loopback: ip("127.0.0.1"), unspecified: ip("0.0.0.0"),
		here: ip("192.0.2.1"), there: ip("192.0.2.2"), elsewhere: ip("192.0.2.3"), pod: ip("10.244.1.7"), cluster: ip("10.96.0.1"),
		backends: []netip.AddrPort{ap("127.0.0.1:1001"), ap("127.0.0.1:1002"), ap("127.0.0.1:1003"), ap("127.0.0.1:1004")},
	}
	v6 := serviceFamily{
		any: ip("::"), loopback: ip("::1"), unspecified: ip("::"),
		here: ip("2001:db8::1"), there: ip("2001:db8::2"), elsewhere: ip("2001:db8::3"), pod: ip("fd44::7"), cluster: ip("fd00:96::1"),
		backends: []netip.AddrPort{ap("[::1]:1001"), ap("[::1]:1002"), ap("[::1]:1003"), ap("[::1]:1004")},
	}
	mapped := v4
	all := []serviceFamily{v4, v6, mapped}
	for i, c := range clients() {
		all[i].client = c
	}
	return all
}

// eachFamily runs fn with fresh programs for each kind of client.
func eachFamily(t *testing.T, fn func(t *testing.T, b *balancer, f serviceFamily), constants ...constant) {
	t.Helper()
	for _, f := range serviceFamilies() {
		t.Run(f.name, func(t *testing.T) {
			b := newBalancer(t, constants...)
			host := func(a netip.Addr) IpcacheKey { return IpcacheKeyFrom(netip.PrefixFrom(a, a.BitLen())) }
			b.check(b.objs.StraitIpcache.Put(host(f.here), Remote{Flags: RemoteHost}))
			b.check(b.objs.StraitIpcache.Put(host(f.there), Remote{Flags: RemoteNode}))
			fn(t, b, f)
		})
	}
}

// goes connects a new datagram socket, which sends nothing, and gives the backend, the zero AddrPort if the address was left alone.
func (b *balancer) goes(domain int, to netip.AddrPort) netip.AddrPort {
	b.t.Helper()
	fd := socket(b.t, domain, unix.SOCK_DGRAM, 0)
	defer unix.Close(fd)
	err := unix.Connect(fd, sockaddr(domain, to))
	at := b.chosen(fd)
	if at.IsValid() && err != nil {
		b.t.Fatalf("connect to %s by %s: %v", to, at, err)
	}
	return at
}

func TestWildcardFrontends(t *testing.T) {
	const port = 30080
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, port) }
		b.set(1, unix.IPPROTO_UDP, f.backends[0])
		b.set(2, unix.IPPROTO_UDP, f.backends[1])
		for _, tc := range []struct {
			name    string
			row     netip.Addr
			flags   ServiceFlags
			cookie  uint64 // of the node's namespace; 0: this one
			want    []netip.Addr
			wantNot []netip.Addr
		}{
			{"node port", f.any, ServiceNodePort, 0, []netip.Addr{f.here, f.there, f.loopback, f.unspecified}, []netip.Addr{f.elsewhere}},
			{"node port from a pod", f.any, ServiceNodePort, 1, []netip.Addr{f.here, f.there}, []netip.Addr{f.elsewhere, f.loopback, f.unspecified}},
			{"host port", f.any, ServiceHostPort, 0, []netip.Addr{f.here, f.loopback, f.unspecified}, []netip.Addr{f.elsewhere, f.there}},
			{"host port from a pod", f.any, ServiceHostPort, 1, []netip.Addr{f.here}, []netip.Addr{f.elsewhere, f.there, f.loopback, f.unspecified}},
			{"host port of one address", f.here, ServiceHostPort, 0, []netip.Addr{f.here}, []netip.Addr{f.there, f.loopback, f.unspecified}},
			{"host port of loopback", f.loopback, ServiceHostPort, 0, []netip.Addr{f.loopback}, []netip.Addr{f.here, f.unspecified}},
			{"host port of loopback from a pod", f.loopback, ServiceHostPort, 1, nil, []netip.Addr{f.here, f.loopback, f.unspecified}},
			{"cluster address", f.cluster, ServiceClusterIP, 1, []netip.Addr{f.cluster}, []netip.Addr{f.here, f.there, f.elsewhere}},
			{"a cluster address is not loopback's", f.loopback, ServiceClusterIP, 0, nil, []netip.Addr{f.loopback}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				cookie := b.cookie()
				if tc.cookie != 0 {
					cookie = tc.cookie
				}
				b.reload(constant{DatapathVarCfgNetnsCookie, cookie})
				b.front(at(tc.row), unix.IPPROTO_UDP, Service{Id: 1, Set: 1, Count: 1, Flags: tc.flags})
				defer b.objs.StraitService.Delete(SockaddrKeyFrom(at(tc.row), unix.IPPROTO_UDP))
				for _, a := range tc.want {
					if got := b.goes(f.domain, at(a)); got != f.backends[0] {
						t.Errorf("%s goes to %s, want the backend", at(a), got)
					}
				}
				for _, a := range tc.wantNot {
					if got := b.goes(f.domain, at(a)); got.IsValid() {
						t.Errorf("%s goes to %s, want no translation", at(a), got)
					}
				}
				if got := b.goes(f.domain, netip.AddrPortFrom(f.here, port+1)); got.IsValid() {
					t.Errorf("another port goes to %s", got)
				}
			})
		}
		t.Run("exact row first", func(t *testing.T) {
			b.front(at(f.any), unix.IPPROTO_UDP, Service{Id: 1, Set: 1, Count: 1, Flags: ServiceNodePort})
			b.front(at(f.here), unix.IPPROTO_UDP, Service{Id: 2, Set: 2, Count: 1, Flags: ServiceExternalIP})
			if got := b.goes(f.domain, at(f.here)); got != f.backends[1] {
				t.Errorf("goes to %s, want the backend of the exact row", got)
			}
		})
	})
}

// TestInnerSet: a socket is inside the cluster, so externalTrafficPolicy Local does not concern it.
func TestInnerSet(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		b.set(1, unix.IPPROTO_UDP, f.backends[0])
		b.front(f.front, unix.IPPROTO_UDP, Service{Id: 1, Set: 1, Count: 1, OuterSet: 2, Flags: ServiceLoadBalancer | ServiceOuterLocal})
		if got := b.goes(f.domain, f.front); got != f.backends[0] {
			t.Errorf("goes to %q, want the backend of the inner set", got)
		}
	})
}

func TestServicesOffAndDraining(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		server := b.backend("udp", f.backend)
		b.service(1, f.front, unix.IPPROTO_UDP, server)
		old, unused := socket(t, f.domain, unix.SOCK_DGRAM, 0), socket(t, f.domain, unix.SOCK_DGRAM, 0)
		connected := socket(t, f.domain, unix.SOCK_DGRAM, 0)
		b.check(unix.Connect(connected, sockaddr(f.domain, f.front)))
		serves := func(what string, fd int, to unix.Sockaddr, want bool) {
			t.Helper()
			timeout := unix.NsecToTimeval(int64(100 * time.Millisecond))
			if want {
				timeout = unix.NsecToTimeval(int64(5 * time.Second))
			}
			b.check(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
			said := make([]byte, 100)
			n := 0
			var from unix.Sockaddr
			err := unix.Sendto(fd, []byte("hi"), 0, to) // the service address itself may have a route, or none
			if err == nil {
				n, from, err = unix.Recvfrom(fd, said, 0)
			}
			if got := err == nil; got != want {
				t.Errorf("%s is served %v, want %v: %v", what, got, want, err)
			} else if got && (string(said[:n]) != server.String() || addrPort(t, from) != f.front) {
				t.Errorf("%s: %q from %v, want the backend in the service's name", what, said[:n], from)
			}
		}
		front := sockaddr(f.domain, f.front)
		for _, tc := range []struct {
			mode         ServiceMode
			fresh, known bool
		}{{ServicesOn, true, true}, {ServicesDrain, false, true}, {ServicesOff, false, false}} {
			b.reload(constant{DatapathVarCfgServices, tc.mode})
			if got := b.goes(f.domain, f.front).IsValid(); got != tc.fresh {
				t.Errorf("mode %d: new connection translated %v, want %v", tc.mode, got, tc.fresh)
			}
			serves(fmt.Sprintf("mode %d: a socket that is known", tc.mode), old, front, tc.known)
			serves(fmt.Sprintf("mode %d: a connected socket", tc.mode), connected, nil, true)
			if tc.mode != ServicesOn {
				serves(fmt.Sprintf("mode %d: an unconnected socket that never sent", tc.mode), unused, front, false)
			}
		}
	})
}

func TestSourceRanges(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		b.set(1, unix.IPPROTO_UDP, f.backends[0])
		b.front(f.front, unix.IPPROTO_UDP, Service{Id: 7, Set: 1, Count: 1, Flags: ServiceLoadBalancer | ServiceSources})
		try := func(want error) {
			t.Helper()
			fd := socket(t, f.domain, unix.SOCK_DGRAM, 0)
			defer unix.Close(fd)
			if err := unix.Connect(fd, sockaddr(f.domain, f.front)); !errors.Is(err, want) {
				t.Errorf("connect: %v, want %v", err, want)
			}
			fd = socket(t, f.domain, unix.SOCK_DGRAM, 0)
			defer unix.Close(fd)
			if err := unix.Sendto(fd, []byte("hi"), 0, sockaddr(f.domain, f.front)); !errors.Is(err, want) {
				t.Errorf("sendto: %v, want %v", err, want)
			}
		}
		try(unix.EPERM) // a client that nobody knows
		b.check(b.objs.StraitNetns.Put(b.cookie(), Netns{Addr4: AddrFrom(serviceFamilies()[0].pod), Addr6: AddrFrom(serviceFamilies()[1].pod)}))
		try(unix.EPERM) // no range
		around := func(bits int) netip.Prefix { return netip.PrefixFrom(f.pod, bits).Masked() }
		b.check(b.objs.StraitSource.Put(SourceKeyFrom(8, around(f.pod.BitLen())), uint32(1)))
		try(unix.EPERM) // another service's range
		b.check(b.objs.StraitSource.Put(SourceKeyFrom(7, around(16)), uint32(1)))
		try(nil)
		b.check(b.objs.StraitSource.Delete(SourceKeyFrom(7, around(16))))
		b.check(b.objs.StraitSource.Put(SourceKeyFrom(7, netip.PrefixFrom(f.elsewhere, f.pod.BitLen())), uint32(1)))
		try(unix.EPERM)
		b.check(b.objs.StraitSource.Put(SourceKeyFrom(7, netip.PrefixFrom(f.any, 0)), uint32(1)))
		try(nil)
	})
}

// monotonicSeconds is the clock of struct affinity.
func monotonicSeconds(t testing.TB) uint32 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return uint32(ts.Sec)
}

func TestAffinity(t *testing.T) {
	const timeout = 100 // s
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		ids := b.set(1, unix.IPPROTO_UDP, f.backends...)
		row := Service{Id: 1, Set: 1, Count: 4, Flags: ServiceAffinity, Affinity: timeout}
		b.front(f.front, unix.IPPROTO_UDP, row)
		ask := b.asker()
		spread := func() int {
			t.Helper()
			seen := map[netip.AddrPort]bool{}
			for range 60 {
				seen[b.goes(f.domain, f.front)] = true
			}
			return len(seen)
		}
		if n := spread(); n != 4 {
			t.Errorf("a client nobody knows reaches %d backends, want no affinity", n)
		}
		pod := func(a netip.Addr) {
			t.Helper()
			ns := Netns{Addr4: AddrFrom(a)}
			if a.Is6() {
				ns = Netns{Addr6: AddrFrom(a)}
			}
			b.check(b.objs.StraitNetns.Put(b.cookie(), ns))
		}
		pod(f.pod)
		first := b.goes(f.domain, f.front)
		key := AffinityKey{Client: AddrFrom(f.pod), Set: 1}
		again := func(what string, want bool) {
			t.Helper()
			for range 20 {
				if got := b.goes(f.domain, f.front); got != first {
					if want {
						t.Fatalf("%s: the client went from %s to %s", what, first, got)
					}
					first = got
					return
				}
			}
			if !want {
				t.Errorf("%s: the client stays with %s", what, first)
			}
		}
		again("nothing changed", true)
		change(t, b.objs.StraitAffinity, key, func(a *Affinity) { a.Last -= timeout - 1 })
		again("used in time", true)
		var a Affinity
		b.check(b.objs.StraitAffinity.Lookup(key, &a))
		if now := monotonicSeconds(t); now-a.Last > 1 {
			t.Errorf("last use was %d s ago, want now", now-a.Last)
		}
		backend := ids[a.Backend-ids[0]]
		packet := func(c asking) uint32 { return ask.ask(f.front, unix.IPPROTO_UDP, c) }
		for hash := range uint32(8) {
			if got := packet(asking{addr: f.pod, hash: hash}); got != backend {
				t.Fatalf("a packet of the client goes to backend %d, its sockets to %d", got, backend)
			}
		}
		others := map[uint32]bool{}
		for hash := range uint32(8) {
			others[packet(asking{addr: f.pod.Next(), hash: hash})] = true
		}
		if len(others) != 1 {
			t.Errorf("another client goes to %v, want one backend", others)
		}
		// What ends it: time, a backend that leaves, a backend whose id is another's by now.
		stale := func(what string, spoil func()) {
			t.Helper()
			for range 20 { // the new choice may be the old one by chance
				was := first
				spoil()
				first = b.goes(f.domain, f.front)
				if first != was {
					again(what, true)
					return
				}
			}
			t.Errorf("%s: the client stays with %s", what, first)
		}
		stale("time is over", func() {
			change(t, b.objs.StraitAffinity, key, func(a *Affinity) { a.Last -= timeout + 1 })
		})
		stale("new generation", func() {
			b.check(b.objs.StraitAffinity.Lookup(key, &a))
			change(t, b.objs.StraitBackend, a.Backend, func(b *Backend) { b.Generation++ })
		})
		b.check(b.objs.StraitAffinity.Lookup(key, &a))
		change(t, b.objs.StraitBackend, a.Backend, func(b *Backend) { b.Flags = BackendLeaving })
		again("backend leaves", false)
		// Unconnected datagrams follow the client, not the socket.
		fd := socket(t, f.domain, unix.SOCK_DGRAM, 0)
		for _, to := range append(f.backends, f.backends...) {
			i := uint32(0)
			for f.backends[i] != to {
				i++
			}
			var l Backend
			b.check(b.objs.StraitBackend.Lookup(ids[i], &l))
			if l.Flags != 0 {
				continue
			}
			b.check(b.objs.StraitAffinity.Put(key, Affinity{Backend: ids[i], Generation: l.Generation, Last: monotonicSeconds(t)}))
			if got := b.sends(fd, f.domain, f.front); got != to {
				t.Errorf("a datagram of the client goes to %s, the client is %s's", got, to)
			}
		}
		pod(f.pod.Next().Next())
		if n := spread(); n != 1 {
			t.Errorf("a third client reaches %d backends, want 1", n)
		}
	})
}

// sends sends a datagram by an unconnected socket and gives the backend it went to.
func (b *balancer) sends(fd, domain int, to netip.AddrPort) netip.AddrPort {
	b.t.Helper()
	b.check(unix.Sendto(fd, []byte("hi"), 0, sockaddr(domain, to)))
	var use DatapathSkUse
	b.check(b.objs.StraitSkUse.Lookup(int32(fd), &use))
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	b.check(err)
	var at Backend
	b.check(b.objs.StraitBackend.Lookup(use.SentBackend, &at))
	got := netip.AddrPortFrom(at.Addr.Netip(), NetPort(at.Port))
	var front SockaddrKey
	b.check(b.objs.StraitDgram.Lookup(DgramKey{Cookie: cookie, Backend: SockaddrKeyFrom(got, unix.IPPROTO_UDP)}, &front))
	if front.AddrPort() != to {
		b.t.Errorf("answers of %s will come from %s, want %s", got, front.AddrPort(), to)
	}
	return got
}

// TestDatagramStays: an unconnected socket stays with its backend exactly as long as the set has it.
func TestDatagramStays(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		ids := b.set(1, unix.IPPROTO_UDP, f.backends...)
		row := Service{Id: 1, Set: 1, Count: 3, Algorithm: AlgorithmRR}
		b.front(f.front, unix.IPPROTO_UDP, row)
		fd := socket(t, f.domain, unix.SOCK_DGRAM, 0)
		first := b.sends(fd, f.domain, f.front)
		stays := func(what string) {
			t.Helper()
			for range 8 {
				if got := b.sends(fd, f.domain, f.front); got != first {
					t.Fatalf("%s: the socket went from %s to %s", what, first, got)
				}
			}
		}
		moves := func(what string) {
			t.Helper()
			got := b.sends(fd, f.domain, f.front)
			if got == first {
				t.Fatalf("%s: the socket stays with %s", what, first)
			}
			first = got
			stays(what)
		}
		id := func() (i uint32) {
			for f.backends[i] != first {
				i++
			}
			return ids[i]
		}
		slot := func(i, backend uint32) {
			b.check(b.objs.StraitSlot.Put(SlotKey{Set: 1, Slot: i}, Slot{Backend: backend}))
		}
		stays("nothing changed")
		row.Count = 4
		b.front(f.front, unix.IPPROTO_UDP, row)
		stays("a backend came")
		for i, backend := range []uint32{ids[3], ids[2], ids[1], ids[0]} {
			slot(uint32(i), backend)
		}
		stays("slots were swapped")
		// The backend leaves this set, but not all: another service still has it.
		for i := range uint32(4) {
			var s Slot
			b.check(b.objs.StraitSlot.Lookup(SlotKey{Set: 1, Slot: i}, &s))
			if s.Backend == id() {
				slot(i, ids[(id()-ids[0]+1)%4])
			}
		}
		moves("left the set")
		for i, backend := range ids {
			slot(uint32(i), backend)
		}
		change(t, b.objs.StraitBackend, id(), func(b *Backend) { b.Flags = BackendLeaving })
		moves("leaving")
		change(t, b.objs.StraitBackend, id(), func(b *Backend) { b.Proto = unix.IPPROTO_TCP })
		moves("another's id")
		// A socket that talks to two services keeps its answers apart.
		other := netip.AddrPortFrom(f.front.Addr(), f.front.Port()+1)
		b.set(2, unix.IPPROTO_UDP, f.backends[1])
		b.front(other, unix.IPPROTO_UDP, Service{Id: 2, Set: 2, Count: 1})
		if got := b.sends(fd, f.domain, other); got != f.backends[1] {
			t.Errorf("the other service goes to %s, want its only backend", got)
		}
	})
}

func TestNodePortGuard(t *testing.T) {
	const lo, hi, mark = 30000, 30009, 0x5712
	guard := []constant{{DatapathVarCfgNodePortMin, uint16(lo)}, {DatapathVarCfgNodePortMax, uint16(hi)}, {DatapathVarCfgGuardMark, uint32(mark)}}
	b := newBalancer(t, guard...)
	bind := func(t *testing.T, domain, kind, proto int, at string, marked bool) error {
		t.Helper()
		fd := socket(t, domain, kind, proto)
		defer unix.Close(fd)
		if marked {
			b.check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
		}
		return unix.Bind(fd, sockaddr(domain, netip.MustParseAddrPort(at)))
	}
	kinds := []struct {
		name         string
		domain       int
		kind, proto  int
		any, address string
	}{
		{"tcp4", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, "0.0.0.0", "127.0.0.1"},
		{"tcp6", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, "[::]", "[::1]"},
		{"tcp6 mapped", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, "[::ffff:0.0.0.0]", "[::ffff:127.0.0.1]"},
		{"udp4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, "0.0.0.0", "127.0.0.1"},
		{"udp6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, "[::]", "[::1]"},
		{"mptcp4", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, "0.0.0.0", "127.0.0.1"},
		{"mptcp6", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, "[::]", "[::1]"},
	}
	for _, mode := range []struct {
		name      string
		constants []constant
		guarded   bool
	}{
		{"on", nil, true},
		{"draining", []constant{{DatapathVarCfgServices, ServicesDrain}}, true},
		{"off", []constant{{DatapathVarCfgServices, ServicesOff}}, false},
		{"in a pod", []constant{{DatapathVarCfgNetnsCookie, uint64(1)}}, false},
		{"no range", []constant{{DatapathVarCfgNodePortMin, uint16(0)}, {DatapathVarCfgNodePortMax, uint16(0)}}, false},
	} {
		b.reload(append(guard, mode.constants...)...)
		for _, k := range kinds {
			t.Run(mode.name+" "+k.name, func(t *testing.T) {
				for _, tc := range []struct {
					at      string
					guarded bool
				}{
					{k.any + ":29999", false}, {k.any + ":30000", true}, {k.address + ":30005", true}, {k.any + ":30009", true},
					{k.any + ":30010", false}, {k.any + ":0", false},
				} {
					var want error
					if tc.guarded && mode.guarded {
						want = unix.EADDRINUSE
					}
					if err := bind(t, k.domain, k.kind, k.proto, tc.at, false); !errors.Is(err, want) {
						t.Errorf("bind to %s: %v, want %v", tc.at, err, want)
					}
					if err := bind(t, k.domain, k.kind, k.proto, tc.at, true); err != nil {
						t.Errorf("bind to %s with the guard's mark: %v", tc.at, err)
					}
				}
			})
		}
	}
	t.Run("no mark", func(t *testing.T) {
		b.reload(append(guard, constant{DatapathVarCfgGuardMark, uint32(0)})...)
		if err := bind(t, unix.AF_INET, unix.SOCK_STREAM, 0, "127.0.0.1:30001", false); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a socket without a mark passes when no mark is configured: %v", err)
		}
	})
	t.Run("ports the kernel chooses", func(t *testing.T) {
		b.reload(guard...)
		setSysctl(t, "/proc/sys/net/ipv4/ip_local_port_range", "30000 30011")
		for _, k := range kinds {
			if err := bind(t, k.domain, k.kind, k.proto, k.any+":0", false); err != nil {
				t.Errorf("%s: bind to port 0 with every free port guarded: %v", k.name, err)
			}
		}
		// Reserved ports are how the agent keeps the kernel from choosing node ports.
		setSysctl(t, "/proc/sys/net/ipv4/ip_local_reserved_ports", "30000-30009")
		for range 20 {
			fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
			b.check(unix.Bind(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:0"))))
			name, err := unix.Getsockname(fd)
			b.check(err)
			if port := addrPort(t, name).Port(); port < 30010 {
				t.Errorf("the kernel chose port %d although it is reserved", port)
			}
			unix.Close(fd)
		}
	})
}
