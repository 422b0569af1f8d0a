package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// rig is a network namespace with servers on its loopback device, and the sockets' storage, which a test writes as the socket programs would.
type rig struct {
	t       testing.TB
	ns      string
	cookie  uint64
	storage *ebpf.Map
	table   *Table
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, ns: nstest.NetNS(t)}
	spec, err := bpf.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	shape := spec.Maps[bpf.DatapathMapStraitSk].Copy()
	shape.Pinning = ebpf.PinNone
	storage, err := ebpf.NewMap(shape)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = storage.Close() })
	r.storage = storage
	if r.table, err = newTable(storage); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.table.Release)
	r.in(func() error {
		diag, err := open(netns.None())
		if err != nil {
			return err
		}
		defer diag.Close()
		if r.cookie, err = unix.GetsockoptUint64(diag.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return r
}

func (r *rig) in(fn func() error) {
	r.t.Helper()
	var err error
	nstest.In(r.t, r.ns, func() { err = fn() })
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close(targets ...Target) (int, error) {
	return r.table.Close(map[uint64]string{r.cookie: r.ns, 1 << 63: "/nowhere/netns"}, targets)
}

// serve makes a server that keeps what connects to it.
func (r *rig) serve(network, address string) netip.AddrPort {
	r.t.Helper()
	var at net.Addr
	r.in(func() error {
		if network == "udp" {
			p, err := net.ListenPacket(network, net.JoinHostPort(address, "0"))
			if err != nil {
				return err
			}
			r.t.Cleanup(func() { _ = p.Close() })
			at = p.LocalAddr()
			return nil
		}
		l, err := net.Listen(network, net.JoinHostPort(address, "0"))
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { _ = l.Close() })
		at = l.Addr()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				r.t.Cleanup(func() { _ = c.Close() })
			}
		}()
		return nil
	})
	return netip.MustParseAddrPort(at.String())
}

// client is a connected socket.
type client struct {
	net.Conn
	kind string
}

// dial connects a socket of the family. A backend that is valid goes into the socket's storage.
func (r *rig) dial(family, kind int, to, backend netip.AddrPort) client {
	r.t.Helper()
	c := client{kind: fmt.Sprintf("family %d type %d to %s, given %s", family, kind, to, backend)}
	r.in(func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "client")
		defer func() { _ = f.Close() }()
		var at unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
		if family == unix.AF_INET {
			at = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		}
		if err := unix.Connect(fd, at); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if backend.IsValid() {
			peer := bpf.SkPeer{Backend: bpf.SockaddrKeyFrom(backend, protocol(kind))}
			if err := r.storage.Put(uint32(fd), peer); err != nil {
				return err
			}
		}
		c.Conn, err = net.FileConn(f)
		return err
	})
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

func protocol(kind int) uint8 {
	if kind == unix.SOCK_STREAM {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// state returns nil for a socket that waits for data, and else what its user is told.
func (c client) state() error {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// SVC-5: exactly the sockets that were given the backend are closed, of each family and protocol.
func TestCloseExactly(t *testing.T) {
	r := newRig(t)
	families := []struct {
		name    string
		family  int
		address string
	}{
		{"IPv4", unix.AF_INET, "127.0.0.1"},
		{"IPv6", unix.AF_INET6, "::1"},
		{"v4-mapped", unix.AF_INET6, "127.0.0.1"},
	}
	for network, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		for _, f := range families {
			t.Run(network+" "+f.name, func(t *testing.T) {
				r := &rig{t: t, ns: r.ns, cookie: r.cookie, storage: r.storage, table: r.table}
				gone, stays := r.serve(network, f.address), r.serve(network, f.address)
				closed := []client{r.dial(f.family, kind, gone, gone), r.dial(f.family, kind, gone, gone)}
				kept := []client{
					r.dial(f.family, kind, gone, netip.AddrPort{}), // its own choice
					r.dial(f.family, kind, stays, stays),
					r.dial(f.family, kind, gone, stays), // connected anew, by itself
				}
				n, err := r.close(Target{gone, protocol(kind)})
				if n != len(closed) || err != nil {
					t.Errorf("closed %d, %v, want %d", n, err, len(closed))
				}
				for _, c := range closed {
					if err := c.state(); !errors.Is(err, syscall.ECONNABORTED) {
						t.Errorf("%s: %v, want ECONNABORTED", c.kind, err)
					}
				}
				for _, c := range kept {
					if err := c.state(); err != nil {
						t.Errorf("%s: %v, want it open", c.kind, err)
					}
				}
				if n, err := r.close(Target{gone, protocol(kind)}); n != 0 || err != nil {
					t.Errorf("closed %d again, %v", n, err)
				}
			})
		}
	}
}

// Several backends of several ports go in one search.
func TestCloseSeveral(t *testing.T) {
	r := newRig(t)
	var targets []Target
	var clients []client
	for _, address := range []string{"127.0.0.1", "::1"} {
		for network, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
			for range 2 {
				at := r.serve(network, address)
				family := unix.AF_INET6
				if at.Addr().Is4() {
					family = unix.AF_INET
				}
				clients = append(clients, r.dial(family, kind, at, at))
				targets = append(targets, Target{at, protocol(kind)})
			}
		}
	}
	other := r.dial(unix.AF_INET6, unix.SOCK_STREAM, r.serve("tcp", "::1"), netip.AddrPort{})
	if n, err := r.close(targets...); n != len(clients) || err != nil {
		t.Errorf("closed %d, %v, want %d", n, err, len(clients))
	}
	for _, c := range clients {
		if err := c.state(); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("%s: %v, want ECONNABORTED", c.kind, err)
		}
	}
	if err := other.state(); err != nil {
		t.Errorf("%s: %v, want it open", other.kind, err)
	}
}

// A UDP socket can be connected again after its error.
func TestClosedDatagramSocketConnectsAgain(t *testing.T) {
	r := newRig(t)
	gone, next := r.serve("udp", "127.0.0.1"), r.serve("udp", "127.0.0.1")
	c := r.dial(unix.AF_INET, unix.SOCK_DGRAM, gone, gone)
	if n, err := r.close(Target{gone, unix.IPPROTO_UDP}); n != 1 || err != nil {
		t.Fatalf("closed %d, %v", n, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EDESTADDRREQ) { // it is not connected any more
		t.Errorf("send: %v, want EDESTADDRREQ", err)
	}
	if err := c.state(); !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("receive: %v, want ECONNABORTED", err)
	}
	raw, err := c.Conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var again error
	if err := raw.Control(func(fd uintptr) {
		again = unix.Connect(int(fd), &unix.SockaddrInet4{Port: int(next.Port()), Addr: next.Addr().As4()})
	}); err != nil || again != nil {
		t.Fatalf("connect again: %v, %v", err, again)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("send after connecting again: %v", err)
	}
}

// What happens in a namespace that nobody knows the way into stays there; the node's own is always known.
func TestNamespaces(t *testing.T) {
	r := newRig(t)
	at := r.serve("tcp", "127.0.0.1")
	c := r.dial(unix.AF_INET, unix.SOCK_STREAM, at, at)
	if n, err := r.table.Close(nil, []Target{{at, unix.IPPROTO_TCP}}); n != 0 || err != nil {
		t.Errorf("closed %d, %v, in an unknown namespace", n, err)
	}
	if n, err := r.table.Close(map[uint64]string{r.cookie: "/nowhere/netns"}, []Target{{at, unix.IPPROTO_TCP}}); n != 0 || err != nil {
		t.Errorf("closed %d, %v, in a namespace that is gone", n, err)
	}
	if err := c.state(); err != nil {
		t.Errorf("%s: %v, want it open", c.kind, err)
	}
	nstest.In(t, r.ns, func() {
		own, err := newTable(r.storage)
		if err != nil {
			t.Fatal(err)
		}
		defer own.Release()
		if own.own != r.cookie {
			t.Errorf("own namespace is %d, want %d", own.own, r.cookie)
		}
		if n, err := own.Close(nil, []Target{{at, unix.IPPROTO_TCP}}); n != 1 || err != nil {
			t.Errorf("closed %d, %v, in the own namespace", n, err)
		}
	})
}

// BenchmarkClose measures a search among sockets of other backends, and the closing of 1000.
func BenchmarkClose(b *testing.B) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	for _, open := range []int{0, 1000} {
		b.Run(fmt.Sprintf("none of %d", open), func(b *testing.B) {
			r := newRig(b)
			at := r.serve("tcp", "127.0.0.1")
			for range open {
				r.dial(unix.AF_INET, unix.SOCK_STREAM, at, at)
			}
			other := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 80)
			for b.Loop() {
				if _, err := r.close(Target{other, unix.IPPROTO_TCP}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("1000 of 1000", func(b *testing.B) {
		r := newRig(b)
		at := r.serve("tcp", "127.0.0.1")
		for range b.N {
			b.StopTimer()
			clients := make([]client, 1000)
			for i := range clients {
				clients[i] = r.dial(unix.AF_INET, unix.SOCK_STREAM, at, at)
			}
			b.StartTimer()
			if n, err := r.close(Target{at, unix.IPPROTO_TCP}); n != 1000 || err != nil {
				b.Fatalf("closed %d, %v", n, err)
			}
			b.StopTimer()
			for _, c := range clients {
				_ = c.Close()
			}
		}
	})
}
