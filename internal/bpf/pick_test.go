package bpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMaglevTable: the entry at the hash decides; whatever is wrong with it, there is a backend as long as the set has one.
func TestMaglevTable(t *testing.T) {
	const size = 7
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		ids := b.set(1, unix.IPPROTO_TCP, f.backends...)
		b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Count: 4, Algorithm: AlgorithmMaglev})
		a := b.asker(constant{DatapathVarCfgMaglevSize, uint32(size)})
		ask := func(hash uint32) uint32 { return a.ask(f.front, unix.IPPROTO_TCP, asking{hash: hash}) }
		spread := func(what string) {
			t.Helper()
			var seen []uint32
			for hash := range uint32(4 * size) {
				id := ask(hash)
				if id == 0 {
					t.Errorf("%s: hash %d gets no backend", what, hash)
				}
				seen = append(seen, id)
			}
			slices.Sort(seen)
			if n := len(slices.Compact(seen)); n < 3 {
				t.Errorf("%s: %d backends are used, want slots by chance", what, n)
			}
		}
		spread("no table")
		table := []uint32{ids[3], ids[3], ids[0], ids[1], ids[0], ids[2], ids[3]}
		b.table(1, table)
		for hash := range uint32(4 * size) {
			if got, want := ask(hash), table[hash%size]; got != want {
				t.Errorf("hash %d: backend %d, want %d of the table", hash, got, want)
			}
		}
		change(t, b.objs.StraitBackend, ids[3], func(b *Backend) { b.Flags = BackendLeaving })
		for hash := range uint32(4 * size) {
			got := ask(hash)
			if want := table[hash%size]; want != ids[3] && got != want || got == ids[3] || got == 0 {
				t.Errorf("hash %d with one backend leaving: backend %d, table has %d", hash, got, want)
			}
		}
		change(t, b.objs.StraitBackend, ids[3], func(b *Backend) { b.Flags = 0 })
		b.table(1, []uint32{999, 999, 999, 999, 999, 999, 999})
		spread("backends nobody knows")
		b.table(1, ids[:1])
		if got := ask(0); got != ids[0] {
			t.Errorf("hash 0 of a shorter table: backend %d, want its first", got)
		}
		b.check(b.objs.StraitMaglev.Delete(uint32(1)))
		spread("table gone")
		b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Algorithm: AlgorithmMaglev})
		b.table(1, table)
		if got := ask(0); got != 0 {
			t.Errorf("a set without backends gives backend %d", got)
		}
	})
}

// TestPickHoles: a slot, a backend or a load that is just being removed refuses nobody, and nobody gets a backend of another protocol.
func TestPickHoles(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		a := b.asker(constant{DatapathVarCfgMaglevSize, uint32(7)})
		set := uint32(0)
		for _, alg := range algorithms {
			set++
			ids := b.set(set, unix.IPPROTO_TCP, append(f.backends, f.backends...)...)
			b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: set, Count: uint32(len(ids)), Algorithm: alg.id})
			b.table(set, []uint32{ids[0], ids[1], ids[2], ids[0], ids[1], ids[2], ids[7]})
			b.check(b.objs.StraitSlot.Delete(SlotKey{Set: set, Slot: 0}))
			b.check(b.objs.StraitBackend.Delete(ids[1]))
			change(t, b.objs.StraitBackend, ids[2], func(b *Backend) { b.Proto = unix.IPPROTO_UDP })
			b.check(b.objs.StraitLoad.Delete(ids[3]))
			allowed := ids[3:]
			if alg.id == AlgorithmMaglev {
				allowed = append([]uint32{ids[0]}, allowed...)
			}
			for i := range uint32(100) {
				got := a.ask(f.front, unix.IPPROTO_TCP, asking{addr: offset(f.pod, i), hash: i})
				if !slices.Contains(allowed, got) {
					t.Errorf("%s: client %d gets backend %d, want one of %v", alg.name, i, got, allowed)
				}
			}
		}
	})
}

// TestPickOuter: a client outside gets the outer set and nothing else.
func TestPickOuter(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		a := b.asker()
		inner, outer := b.set(1, unix.IPPROTO_TCP, f.backends[:2]...), b.set(2, unix.IPPROTO_TCP, f.backends[2:]...)
		row := Service{Id: 1, Set: 1, Count: 2, OuterSet: 2, OuterCount: 2, Flags: ServiceLoadBalancer | ServiceOuterLocal}
		for _, alg := range algorithms {
			row.Algorithm = alg.id
			b.front(f.front, unix.IPPROTO_TCP, row)
			for i := range uint32(20) {
				c := asking{addr: offset(f.pod, i), hash: i}
				if got := a.ask(f.front, unix.IPPROTO_TCP, c); !slices.Contains(inner, got) {
					t.Errorf("%s: a client inside gets backend %d, want one of %v", alg.name, got, inner)
				}
				c.outer = true
				if got := a.ask(f.front, unix.IPPROTO_TCP, c); !slices.Contains(outer, got) {
					t.Errorf("%s: a client outside gets backend %d, want one of %v", alg.name, got, outer)
				}
			}
		}
		row.OuterCount = 0
		b.front(f.front, unix.IPPROTO_TCP, row)
		if got := a.ask(f.front, unix.IPPROTO_TCP, asking{outer: true}); got != 0 {
			t.Errorf("a client outside gets backend %d of the inner set", got)
		}
	})
}

// TestPickUnspecified: the address of a wildcard row is nobody's, so a packet to it is to no service.
func TestPickUnspecified(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		a := b.asker()
		ids := b.set(1, unix.IPPROTO_TCP, f.backends[0])
		b.front(netip.AddrPortFrom(f.any, poolPort), unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Count: 1, Flags: ServiceNodePort})
		for at, want := range map[netip.Addr]uint32{f.here: ids[0], f.there: ids[0], f.elsewhere: 0, f.any: 0, f.loopback: 0} {
			if got := a.ask(netip.AddrPortFrom(at, poolPort), unix.IPPROTO_TCP, asking{}); got != want {
				t.Errorf("a packet to %s gets backend %d, want %d", at, got, want)
			}
		}
	})
}

// TestPickLargeSet: the search for the least loaded ends, and looks at enough.
func TestPickLargeSet(t *testing.T) {
	const size = 1500
	b := newBalancer(t)
	f := serviceFamilies()[0]
	a := b.asker()
	at := make([]netip.AddrPort, size)
	for i := range at {
		at[i] = netip.AddrPortFrom(offset(f.pod, uint32(i)), 80)
	}
	ids := b.set(1, unix.IPPROTO_TCP, at...)
	for _, id := range ids[size/2:] {
		change(t, b.objs.StraitLoad, id, func(l *Load) { l.Sockets = 7 })
	}
	for _, alg := range algorithms[3:6] {
		b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Count: size, Algorithm: alg.id})
		for range 100 {
			if got := a.ask(f.front, unix.IPPROTO_TCP, asking{}); !slices.Contains(ids[:size/2], got) {
				t.Fatalf("%s: backend %d is chosen, which is loaded", alg.name, got)
			}
		}
	}
}

// TestSocketLeastLoaded: the load that the algorithms see is what sockets make of it.
func TestSocketLeastLoaded(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		b.set(1, unix.IPPROTO_UDP, f.backends...)
		b.front(f.front, unix.IPPROTO_UDP, Service{Id: 1, Set: 1, Count: 4, Algorithm: AlgorithmLC})
		open := func(n int) map[netip.AddrPort][]int {
			by := map[netip.AddrPort][]int{}
			for range n {
				fd := socket(t, f.domain, unix.SOCK_DGRAM, 0)
				b.check(unix.Connect(fd, sockaddr(f.domain, f.front)))
				by[b.chosen(fd)] = append(by[b.chosen(fd)], fd)
			}
			return by
		}
		by := open(40)
		for at, fds := range by {
			if len(fds) != 10 {
				t.Errorf("%s has %d of 40 connections, want 10", at, len(fds))
			}
		}
		gone := f.backends[2]
		for _, fd := range by[gone] {
			b.check(unix.Close(fd))
		}
		if now := open(10); len(now[gone]) != 10 {
			t.Errorf("of 10 connections %d go to the backend that has become free", len(now[gone]))
		}
	})
}

// BenchmarkPick gives the time in the kernel to find a service and choose a backend, by algorithm and number of backends.
func BenchmarkPick(bench *testing.B) {
	const batch = 2000
	f := serviceFamilies()[0]
	for _, alg := range algorithms {
		for _, size := range []int{10, 100, 1000} {
			bench.Run(fmt.Sprintf("%s/%d", alg.name, size), func(bench *testing.B) {
				b := newBalancer(bench)
				a := b.asker(constant{DatapathVarCfgMaglevSize, uint32(tableSize)})
				at := make([]netip.AddrPort, size)
				for i := range at {
					at[i] = netip.AddrPortFrom(offset(f.pod, uint32(i)), 80)
				}
				ids := b.set(1, unix.IPPROTO_TCP, at...)
				table := make([]uint32, tableSize)
				for i := range table {
					table[i] = ids[i%size]
				}
				b.table(1, table)
				b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Count: uint32(size), Algorithm: alg.id})
				question := a.question(f.front, unix.IPPROTO_TCP, asking{addr: f.pod, hash: 7})
				best := time.Hour
				for bench.Loop() {
					_, d, err := a.prog.Benchmark(question, batch, nil)
					b.check(err)
					best = min(best, d)
				}
				bench.ReportMetric(float64(best.Nanoseconds()), "ns/choice") // the best batch: others were interrupted
				bench.ReportMetric(0, "ns/op")
			})
		}
	}
}
