package bpf

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netns"
)

// TestWireEvents: what sockets are told of a service is told of their connections, though no packet shows it.
func TestWireEvents(t *testing.T) {
	c := newCluster(t, true, NetworkIsland)
	a, b := c.nodes[0], c.nodes[1]
	a.rig.socketPrograms()
	for _, v6 := range []bool{false, true} {
		vip := at(worldIP(v6).Next(), 80)
		for i, tc := range []struct {
			name    string
			proto   layers.IPProtocol
			backend netip.AddrPort
			pod     netns.NsHandle
			serve   func(t *testing.T, at netip.AddrPort) func()
			talk    func(t *testing.T, from netip.Addr, to netip.AddrPort) netip.AddrPort
			there   Hook // the backend's node
		}{
			{"tcp to a pod here", protoTCP, at(podIP(0, 1, v6), 8080), a.pods[1], serveOnce, talkOnce, 0},
			{"tcp to a pod there", protoTCP, at(podIP(1, 0, v6), 8080), b.pods[0], serveOnce, talkOnce, HookFromVX},
			{"udp, connected", protoUDP, at(podIP(1, 0, v6), 8080), b.pods[0], serveNothing, sendConnected, HookFromVX},
			{"udp, not connected", protoUDP, at(podIP(1, 0, v6), 8080), b.pods[0], serveNothing, sendUnconnected, HookFromVX},
		} {
			t.Run(host(vip.Addr()).String()+" "+tc.name, func(t *testing.T) {
				front := netip.AddrPortFrom(vip.Addr(), vip.Port()+uint16(i))
				one, other := *a.rig, *b.rig
				one.t, other.t = t, t
				one.serve(uint32(setID+10*i), front1(front, tc.proto, ServiceClusterIP, tc.backend))
				var served func()
				within(t, tc.pod, func() { served = tc.serve(t, tc.backend) })
				one.events()
				other.events()
				var client netip.AddrPort
				within(t, a.pods[0], func() { client = tc.talk(t, podIP(0, 0, v6), front) })
				served()
				kinds := []EventKind{EventNew}
				if tc.proto == protoTCP {
					kinds = append(kinds, EventEnd)
				}
				one.hears(client, tc.backend, front, HookFromPod, kinds...)
				if tc.there != 0 {
					other.hears(client, tc.backend, netip.AddrPort{}, tc.there, kinds...)
				}
			})
		}
	}
}

// socketPrograms attaches those of a node to the cgroup of the test, which is that of all its sockets.
func (r *rig) socketPrograms() {
	r.t.Helper()
	if os.Getenv(cgroupEnv) == "" {
		r.t.Skip("socket programs need a cgroup v2 tree, none is mounted")
	}
	for p, at := range map[*ebpf.Program]ebpf.AttachType{
		r.objs.StraitConnect4: ebpf.AttachCGroupInet4Connect, r.objs.StraitConnect6: ebpf.AttachCGroupInet6Connect,
		r.objs.StraitSendmsg4: ebpf.AttachCGroupUDP4Sendmsg, r.objs.StraitSendmsg6: ebpf.AttachCGroupUDP6Sendmsg,
	} {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: os.Getenv(cgroupEnv), Attach: at, Program: p})
		r.check(err)
		r.t.Cleanup(func() { l.Close() })
	}
}

// hears waits for the records of a connection: the first one by a program, the others with what was counted.
func (r *rig) hears(src, dst, front netip.AddrPort, hook Hook, kinds ...EventKind) {
	r.t.Helper()
	var heard []record
	for end := time.Now().Add(10 * time.Second); len(heard) < len(kinds) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, e := range r.events() {
			if e.Src == src || e.Dst == src {
				heard = append(heard, e)
			}
		}
	}
	if len(heard) != len(kinds) {
		r.t.Fatalf("told %+v, want kinds %v", heard, kinds)
	}
	for i, e := range heard {
		if e.Kind != kinds[i] || e.Src != src || e.Dst != dst {
			r.t.Errorf("record %d: %+v, want kind %d from %s to %s", i, e, kinds[i], src, dst)
		}
		if e.Front != front || (e.Kind == EventNew && e.Hook != hook) {
			r.t.Errorf("record %d: %+v, want front %s by program %d", i, e, front, hook)
		}
		if e.Kind == EventEnd && (e.Packets[0] == 0 || e.Packets[1] == 0 || e.Bytes[0] <= e.Packets[0] || e.Bytes[1] <= e.Packets[1]) {
			r.t.Errorf("record %d: %+v, want what was counted", i, e)
		}
	}
}

// serveOnce closes the connection when its client has.
func serveOnce(t *testing.T, at netip.AddrPort) func() {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}()
	return func() { _ = l.Close(); <-done }
}

func talkOnce(t *testing.T, _ netip.Addr, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	c, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Read(make([]byte, 1))
	_ = c.Close()
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

func serveNothing(*testing.T, netip.AddrPort) func() { return func() {} }

func sendConnected(t *testing.T, _ netip.Addr, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err == nil {
		_, err = c.Write([]byte("hello"))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func sendUnconnected(t *testing.T, from netip.Addr, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err == nil {
		_, err = c.WriteToUDPAddrPort([]byte("hello"), to)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}
