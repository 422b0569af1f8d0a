package bpf

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLoad: a backend's load is its connected sockets, whatever becomes of them.
func TestLoad(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		tcp, udp := b.backend("tcp", f.backend), b.backend("udp", f.backend)
		dead := netip.AddrPortFrom(tcp.Addr(), 1) // nobody listens
		at := func(i uint16) netip.AddrPort { return netip.AddrPortFrom(f.cluster, i) }
		add := func(id uint32, proto uint8, backend netip.AddrPort) uint32 {
			b.service(id, at(uint16(id)), proto, backend)
			return b.next
		}
		stream, refused := add(1, unix.IPPROTO_TCP, tcp), add(2, unix.IPPROTO_TCP, dead)
		dgram, dgram2 := add(3, unix.IPPROTO_UDP, udp), add(4, unix.IPPROTO_UDP, udp)
		ever := map[uint32]uint64{}
		want := func(what string, backend, sockets uint32, more uint64) {
			t.Helper()
			ever[backend] += more
			if l := b.load(backend); l.Sockets != sockets || l.Connections != ever[backend] || l.Tracked != 0 {
				t.Errorf("%s: %d sockets now, %d connections ever, %d tracked; want %d, %d, 0", what, l.Sockets, l.Connections, l.Tracked,
					sockets, ever[backend])
			}
		}
		open := func(kind, proto int, to netip.AddrPort) (int, error) {
			t.Helper()
			fd := socket(t, f.domain, kind, proto)
			return fd, unix.Connect(fd, sockaddr(f.domain, to))
		}

		fd, err := open(unix.SOCK_STREAM, 0, at(1))
		b.check(err)
		want("connected", stream, 1, 1)
		second, err := unix.Dup(fd)
		b.check(err)
		b.check(unix.Close(fd))
		want("one of two descriptors closed", stream, 1, 0)
		b.check(unix.Close(second))
		want("closed", stream, 0, 0)

		fd, err = open(unix.SOCK_STREAM, 0, at(2))
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connect to nobody: %v, want %v", err, unix.ECONNREFUSED)
		}
		want("refused", refused, 1, 1)
		b.check(unix.Connect(fd, sockaddr(f.domain, at(1))))
		want("refused, then connected elsewhere", refused, 0, 0)
		want("refused, then connected", stream, 1, 1)
		b.check(unix.Close(fd))
		want("closed after two connects", stream, 0, 0)
		want("closed after two connects", refused, 0, 0)

		fd, err = open(unix.SOCK_DGRAM, 0, at(3))
		b.check(err)
		want("datagrams, connected", dgram, 1, 1)
		b.check(unix.Connect(fd, sockaddr(f.domain, at(3))))
		want("the same again", dgram, 1, 1)
		b.check(unix.Connect(fd, sockaddr(f.domain, at(4))))
		want("moved away", dgram, 0, 0)
		want("moved here", dgram2, 1, 1)
		if err := unix.Connect(fd, sockaddr(f.domain, f.empty)); err == nil {
			b.service(9, f.empty, unix.IPPROTO_UDP)
		}
		b.check(unix.Connect(fd, sockaddr(f.domain, udp)))
		want("connected to no service", dgram2, 0, 0)
		b.check(unix.Close(fd))
		want("closed", dgram2, 0, 0)

		fd, err = open(unix.SOCK_DGRAM, 0, at(3))
		b.check(err)
		b.service(9, f.empty, unix.IPPROTO_UDP)
		if err := unix.Connect(fd, sockaddr(f.domain, f.empty)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to a service without backends: %v", err)
		}
		want("the next connect was refused, this one lives on", dgram, 1, 1)
		b.check(unix.Sendto(fd, []byte("hi"), 0, sockaddr(f.domain, at(4))))
		want("a datagram to another service", dgram2, 0, 0)
		want("a datagram to another service", dgram, 1, 0)
		change(t, b.objs.StraitBackend, dgram, func(b *Backend) { b.Generation++ })
		change(t, b.objs.StraitLoad, dgram, func(l *Load) { l.Sockets = 5 })
		b.check(unix.Close(fd))
		want("the id is another backend's by now", dgram, 5, 0)

		fd, err = open(unix.SOCK_DGRAM, 0, at(4))
		b.check(err)
		b.check(b.objs.StraitLoad.Delete(dgram2))
		b.check(unix.Close(fd)) // nothing to take it off

		fd = socket(t, f.domain, unix.SOCK_DGRAM, 0)
		b.check(unix.Sendto(fd, []byte("hi"), 0, sockaddr(f.domain, at(3))))
		want("an unconnected socket", dgram, 5, 0)
		b.check(unix.Close(fd))
		want("an unconnected socket closed", dgram, 5, 0)
		fd, err = open(unix.SOCK_STREAM, 0, tcp)
		b.check(err)
		want("past the service", stream, 0, 0)
		b.check(unix.Close(fd))
	})
}

// TestLoadOfKernelSockets: subflows of MPTCP are never released, so they must not be counted.
func TestLoadOfKernelSockets(t *testing.T) {
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		b.service(1, f.front, unix.IPPROTO_TCP, b.backend("tcp", f.backend))
		fd := socket(t, f.domain, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		b.check(unix.Connect(fd, sockaddr(f.domain, f.front)))
		if l := b.load(b.next); l.Sockets != 0 {
			t.Errorf("load %+v, want none", l)
		}
		b.check(unix.Close(fd))
		if l := b.load(b.next); l.Sockets != 0 {
			t.Errorf("load after close %+v, want none", l)
		}
	})
}

// TestLoadReturns: many sockets at once, connected, connected again, refused and closed, also while programs are replaced, leave no
// load behind.
func TestLoadReturns(t *testing.T) {
	const workers, rounds = 8, 300
	eachFamily(t, func(t *testing.T, b *balancer, f serviceFamily) {
		live := b.backend("tcp", f.backend)
		dead := netip.AddrPortFrom(live.Addr(), 1)
		ids := append(b.set(1, unix.IPPROTO_TCP, live, dead), b.set(2, unix.IPPROTO_UDP, f.backends...)...)
		b.front(f.front, unix.IPPROTO_TCP, Service{Id: 1, Set: 1, Count: 2, Algorithm: AlgorithmLC})
		b.front(f.front, unix.IPPROTO_UDP, Service{Id: 2, Set: 2, Count: 4, Algorithm: AlgorithmP2C})
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(w)))
				var open []int
				for range rounds {
					kind := unix.SOCK_STREAM
					if random.IntN(2) == 0 {
						kind = unix.SOCK_DGRAM
					}
					fd, err := unix.Socket(f.domain, kind|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						t.Error(err)
						return
					}
					for range 1 + random.IntN(3) {
						_ = unix.Connect(fd, sockaddr(f.domain, f.front)) // half of the streams are refused, connected ones will not connect again
					}
					open = append(open, fd)
					if random.IntN(3) > 0 {
						i := random.IntN(len(open))
						unix.Close(open[i])
						open[i] = open[len(open)-1]
						open = open[:len(open)-1]
					}
				}
				for _, fd := range open {
					unix.Close(fd)
				}
			})
		}
		for range 3 {
			b.reload()
		}
		wg.Wait()
		for _, id := range ids {
			if l := b.load(id); l.Sockets != 0 || l.Connections == 0 {
				t.Errorf("backend %d: %d sockets left of %d connections", id, l.Sockets, l.Connections)
			}
		}
	})
}
