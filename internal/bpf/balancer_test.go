package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// balancer is the socket programs attached to the test's own cgroup, and services behind loopback backends that say their name.
type balancer struct {
	t     testing.TB
	objs  DatapathMaps
	links map[string]link.Link
	next  uint32 // id of the next backend
}

// constant is a value of a variable in bpf/lib/config.h.
type constant struct {
	name  string
	value any
}

// newBalancer attaches programs with the given constants; else services are on and this is the node's own network namespace.
func newBalancer(t testing.TB, constants ...constant) *balancer {
	t.Helper()
	needRoot(t)
	if os.Getenv(cgroupEnv) == "" {
		t.Skip("socket programs need a cgroup v2 tree, none is mounted")
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{t: t, links: map[string]link.Link{}}
	b.check(b.spec(nil).LoadAndAssign(&b.objs, nil))
	t.Cleanup(func() { b.objs.Close() })
	b.reload(constants...)
	return b
}

func (b *balancer) spec(constants []constant) *ebpf.CollectionSpec {
	b.t.Helper()
	spec := privateSpec(b.t)
	spec.Maps[DatapathMapStraitMaglev].InnerMap.Flags |= unix.BPF_F_INNER_MAP
	for _, c := range append([]constant{{DatapathVarCfgServices, ServicesOn}, {DatapathVarCfgNetnsCookie, b.cookie()}}, constants...) {
		b.check(spec.Variables[c.name].Set(c.value))
	}
	return spec
}

// cookie is that of this network namespace.
func (b *balancer) cookie() uint64 {
	b.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	b.check(err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	b.check(err)
	return cookie
}

// reload puts programs with other constants in place of those that are attached, on the same maps, as the agent does.
func (b *balancer) reload(constants ...constant) {
	b.t.Helper()
	spec := b.spec(constants)
	maps.DeleteFunc(spec.Programs, func(_ string, p *ebpf.ProgramSpec) bool {
		return p.Type != ebpf.CGroupSockAddr && p.Type != ebpf.CGroupSock
	})
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: b.maps()})
	b.check(err)
	defer coll.Close()
	for name, p := range coll.Programs {
		if l := b.links[name]; l != nil {
			b.check(l.Update(p))
			continue
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: os.Getenv(cgroupEnv), Attach: spec.Programs[name].AttachType, Program: p})
		if err != nil {
			b.t.Fatalf("attach %s: %v", name, err)
		}
		b.links[name] = l
		b.t.Cleanup(func() { l.Close() })
	}
}

// maps gives all maps by name.
func (b *balancer) maps() map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{}
	v := reflect.ValueOf(b.objs)
	for i := range v.NumField() {
		all[v.Type().Field(i).Tag.Get("ebpf")] = v.Field(i).Interface().(*ebpf.Map)
	}
	return all
}

// backend starts a server that answers each connection or datagram with its own address.
func (b *balancer) backend(network, host string) netip.AddrPort {
	b.t.Helper()
	if network == "tcp" {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(b.t.Context(), network, net.JoinHostPort(host, "0"))
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.LocalAddr())
				c.Close()
			}
		}()
		return netip.MustParseAddrPort(l.Addr().String())
	}
	p, err := net.ListenPacket(network, net.JoinHostPort(host, "0"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { p.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(p.LocalAddr().String()), from)
		}
	}()
	return netip.MustParseAddrPort(p.LocalAddr().String())
}

// service writes what the reconciler would: slots and backends, then the frontend.
func (b *balancer) service(id uint32, front netip.AddrPort, proto uint8, backends ...netip.AddrPort) {
	b.t.Helper()
	b.set(id, proto, backends...)
	b.front(front, proto, Service{Id: id, Set: id, Count: uint32(len(backends)), Flags: ServiceClusterIP})
}

// set writes a backend set of new backends, with their loads, and gives their ids.
func (b *balancer) set(set uint32, proto uint8, backends ...netip.AddrPort) []uint32 {
	b.t.Helper()
	var ids []uint32
	for i, at := range backends {
		b.next++
		b.check(b.objs.StraitLoad.Put(b.next, Load{}))
		b.check(b.objs.StraitBackend.Put(b.next, Backend{Addr: AddrFrom(at.Addr()), Port: NetPort(at.Port()), Proto: proto, Generation: 1}))
		b.check(b.objs.StraitSlot.Put(SlotKey{Set: set, Slot: uint32(i)}, Slot{Backend: b.next}))
		ids = append(ids, b.next)
	}
	return ids
}

// front writes a frontend; clients outside get what the others get, unless it says otherwise.
func (b *balancer) front(at netip.AddrPort, proto uint8, s Service) {
	b.t.Helper()
	if s.OuterSet == 0 {
		s.OuterSet, s.OuterCount = s.Set, s.Count
	}
	b.check(b.objs.StraitService.Put(SockaddrKeyFrom(at, proto), s))
}

// change reads a row, lets fn change it and writes it back.
func change[K, V any](t testing.TB, m *ebpf.Map, key K, fn func(*V)) {
	t.Helper()
	var v V
	if err := m.Lookup(key, &v); err != nil {
		t.Fatal(err)
	}
	fn(&v)
	if err := m.Put(key, v); err != nil {
		t.Fatal(err)
	}
}

func (b *balancer) load(backend uint32) Load {
	b.t.Helper()
	var l Load
	b.check(b.objs.StraitLoad.Lookup(backend, &l))
	return l
}

// chosen is the backend a socket was connected to, the zero AddrPort if its address was not translated.
func (b *balancer) chosen(fd int) netip.AddrPort {
	b.t.Helper()
	var names SkPeer
	err := b.objs.StraitSk.Lookup(int32(fd), &names)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return netip.AddrPort{}
	}
	b.check(err)
	return names.Backend.AddrPort()
}

func (b *balancer) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// sockaddr gives an address for a socket of the kind; an IPv4 address for an IPv6 socket is mapped.
func sockaddr(domain int, at netip.AddrPort) unix.Sockaddr {
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

func addrPort(t testing.TB, sa unix.Sockaddr) netip.AddrPort {
	t.Helper()
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	t.Fatalf("address %#v", sa)
	return netip.AddrPort{}
}

func socket(t testing.TB, domain, kind, proto int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skipf("no sockets of protocol %d here", proto)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	timeout := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return fd
}

// setSysctl changes a setting of this network namespace until the test ends.
func setSysctl(t testing.TB, path, value string) {
	t.Helper()
	was, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, was, 0o644); err != nil {
			t.Error(err)
		}
	})
}
