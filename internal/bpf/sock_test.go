package bpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kinds of clients: IPv4, IPv6, and an IPv6 socket that speaks IPv4.
type client struct {
	name    string
	domain  int
	front   netip.AddrPort
	empty   netip.AddrPort
	backend string
}

func clients() []client {
	ap := netip.MustParseAddrPort
	return []client{
		{name: "v4", domain: unix.AF_INET, front: ap("10.96.0.1:80"), empty: ap("10.96.0.2:80"), backend: "127.0.0.1"},
		{name: "v6", domain: unix.AF_INET6, front: ap("[fd00:96::1]:80"), empty: ap("[fd00:96::2]:80"), backend: "::1"},
		{name: "v4 by v6 socket", domain: unix.AF_INET6, front: ap("10.96.0.1:80"), empty: ap("10.96.0.2:80"), backend: "127.0.0.1"},
	}
}

func TestSocketStream(t *testing.T) {
	for _, c := range clients() {
		for name, proto := range map[string]int{"TCP": unix.IPPROTO_TCP, "MPTCP": unix.IPPROTO_MPTCP} {
			t.Run(c.name+" "+name, func(t *testing.T) {
				b := newBalancer(t)
				at := b.backend("tcp", c.backend)
				b.service(1, c.front, unix.IPPROTO_TCP, at)
				b.service(2, c.empty, unix.IPPROTO_TCP)
				fd := socket(t, c.domain, unix.SOCK_STREAM, proto)
				if err := unix.Connect(fd, sockaddr(c.domain, c.front)); err != nil {
					t.Fatalf("connect to the service: %v", err)
				}
				peer, err := unix.Getpeername(fd)
				if err != nil || addrPort(t, peer) != c.front && proto == unix.IPPROTO_TCP {
					t.Errorf("getpeername: %v %v, want the service %s", peer, err, c.front)
				}
				said := make([]byte, 100)
				n, err := unix.Read(fd, said)
				if err != nil || string(said[:n]) != at.String() {
					t.Errorf("reached %q %v, want the backend %s", said[:n], err, at)
				}
				fd = socket(t, c.domain, unix.SOCK_STREAM, proto)
				if err := unix.Connect(fd, sockaddr(c.domain, c.empty)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("connect to a service without backends: %v, want %v", err, unix.ECONNREFUSED)
				}
				fd = socket(t, c.domain, unix.SOCK_STREAM, proto)
				if err := unix.Connect(fd, sockaddr(c.domain, at)); err != nil {
					t.Fatalf("connect to no service: %v", err)
				}
				if peer, err := unix.Getpeername(fd); err != nil || addrPort(t, peer) != at {
					t.Errorf("getpeername of a direct connection: %v %v, want %s", peer, err, at)
				}
			})
		}
	}
}

func TestSocketDatagram(t *testing.T) {
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			b := newBalancer(t)
			at := b.backend("udp", c.backend)
			b.service(1, c.front, unix.IPPROTO_UDP, at)
			b.service(2, c.empty, unix.IPPROTO_UDP)
			answer := func(fd int, want netip.AddrPort) {
				t.Helper()
				said := make([]byte, 100)
				n, from, err := unix.Recvfrom(fd, said, 0)
				if err != nil || string(said[:n]) != at.String() {
					t.Fatalf("answer %q %v, want from the backend %s", said[:n], err, at)
				}
				if got := addrPort(t, from); got != want {
					t.Errorf("answer came from %s, want %s", got, want)
				}
			}
			t.Run("unconnected", func(t *testing.T) {
				fd := socket(t, c.domain, unix.SOCK_DGRAM, 0)
				b.check(unix.Sendto(fd, []byte("hi"), 0, sockaddr(c.domain, c.front)))
				answer(fd, c.front)
				if err := unix.Sendto(fd, []byte("hi"), 0, sockaddr(c.domain, c.empty)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("send to a service without backends: %v, want %v", err, unix.ECONNREFUSED)
				}
			})
			t.Run("connected", func(t *testing.T) {
				fd := socket(t, c.domain, unix.SOCK_DGRAM, 0)
				b.check(unix.Connect(fd, sockaddr(c.domain, c.front)))
				if peer, err := unix.Getpeername(fd); err != nil || addrPort(t, peer) != c.front {
					t.Errorf("getpeername: %v %v, want %s", peer, err, c.front)
				}
				_, err := unix.Write(fd, []byte("hi"))
				b.check(err)
				answer(fd, c.front)
				// Connected again, to no service: the old name is forgotten.
				b.check(unix.Connect(fd, sockaddr(c.domain, at)))
				if peer, err := unix.Getpeername(fd); err != nil || addrPort(t, peer) != at {
					t.Errorf("getpeername after the second connect: %v %v, want %s", peer, err, at)
				}
				_, err = unix.Write(fd, []byte("hi"))
				b.check(err)
				answer(fd, at)
				if err := unix.Connect(fd, sockaddr(c.domain, c.empty)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("connect to a service without backends: %v, want %v", err, unix.ECONNREFUSED)
				}
			})
			t.Run("direct", func(t *testing.T) {
				fd := socket(t, c.domain, unix.SOCK_DGRAM, 0)
				b.check(unix.Sendto(fd, []byte("hi"), 0, sockaddr(c.domain, at)))
				answer(fd, at)
			})
		})
	}
}

// TestSocketSpread: connections spread over all backends; an unconnected socket stays with one, until that is gone.
func TestSocketSpread(t *testing.T) {
	for _, c := range clients()[:2] {
		t.Run(c.name, func(t *testing.T) {
			b := newBalancer(t)
			const count, rounds = 4, 400
			var tcp, udp []netip.AddrPort
			for range count {
				tcp, udp = append(tcp, b.backend("tcp", c.backend)), append(udp, b.backend("udp", c.backend))
			}
			b.service(1, c.front, unix.IPPROTO_TCP, tcp...)
			b.service(2, c.front, unix.IPPROTO_UDP, udp...)
			hits := map[string]int{}
			for range rounds {
				conn, err := net.Dial("tcp", c.front.String())
				b.check(err)
				said, err := io.ReadAll(conn)
				b.check(err)
				conn.Close()
				hits[string(said)]++
			}
			chi := 0.0
			for _, at := range tcp {
				d := float64(hits[at.String()]) - rounds/count
				chi += d * d / (rounds / count)
			}
			if chi > 25 { // 3 degrees of freedom: one run in 60,000
				t.Errorf("spread %v, chi-square %.1f", hits, chi)
			}
			network := "udp4"
			if c.domain == unix.AF_INET6 {
				network = "udp6"
			}
			conn, err := net.ListenPacket(network, "")
			b.check(err)
			defer conn.Close()
			ask := func() string {
				t.Helper()
				b.check(conn.SetDeadline(time.Now().Add(5 * time.Second)))
				_, err := conn.WriteTo([]byte("hi"), net.UDPAddrFromAddrPort(c.front))
				b.check(err)
				buf := make([]byte, 100)
				n, from, err := conn.ReadFrom(buf)
				b.check(err)
				if got := from.(*net.UDPAddr).AddrPort(); netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) != c.front {
					t.Errorf("answered by %s, want %s", got, c.front)
				}
				return string(buf[:n])
			}
			first := ask()
			for range 20 {
				if now := ask(); now != first {
					t.Fatalf("the socket moved from %s to %s", first, now)
				}
			}
			var left []netip.AddrPort
			for _, at := range udp {
				if at.String() != first {
					left = append(left, at)
				}
			}
			b.service(2, c.front, unix.IPPROTO_UDP, left...)
			if now := ask(); now == first {
				t.Errorf("the socket is still sent to %s, which is gone", now)
			}
		})
	}
}

// TestSocketHole: a slot whose backend is just being removed does not refuse anybody.
func TestSocketHole(t *testing.T) {
	c := clients()[0]
	b := newBalancer(t)
	at := b.backend("tcp", c.backend)
	b.service(1, c.front, unix.IPPROTO_TCP, at, at)
	b.check(b.objs.StraitSlot.Delete(SlotKey{Set: 1, Slot: 0}))
	for range 20 {
		conn, err := net.Dial("tcp", c.front.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	b.check(b.objs.StraitSlot.Delete(SlotKey{Set: 1, Slot: 1}))
	if _, err := net.Dial("tcp", c.front.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect with no slot left: %v, want %v", err, syscall.ECONNREFUSED)
	}
}
