package bpf

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

// TestWireServices lets real sockets reach services over the whole cluster as packets: no socket program is attached.
func TestWireServices(t *testing.T) {
	for mode, tunnel := range map[string]bool{"vxlan": true, "native": false} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, tunnel, NetworkIsland)
			for _, v6 := range []bool{false, true} {
				c := *c
				a, b := c.nodes[0], c.nodes[1]
				vip := worldIP(v6).Next()
				within(t, c.world, func() { c.route(host(vip), "br0", nodeIP(0, v6)) })
				for i, tc := range []struct {
					name    string
					from    netns.NsHandle
					at      netip.Addr // of the frontend; invalid: node A
					flags   ServiceFlags
					to      netns.NsHandle
					backend netip.Addr
					seen    netip.Addr
				}{
					{"outside to a pod here", c.world, netip.Addr{}, ServiceNodePort, a.pods[0], podIP(0, 0, v6), routerIP(v6)},
					{"outside to a pod there", c.world, netip.Addr{}, ServiceNodePort, b.pods[0], podIP(1, 0, v6), nodeIP(0, v6)},
					{"outside to a pod there, answered directly", c.world, netip.Addr{}, ServiceNodePort | ServiceDSR, b.pods[0], podIP(1, 0, v6), routerIP(v6)},
					{"outside to this node", c.world, vip, ServiceLoadBalancer, a.ns, nodeIP(0, v6), routerIP(v6)},
					{"outside to the other node", c.world, vip, ServiceLoadBalancer, b.ns, nodeIP(1, v6), nodeIP(0, v6)},
					{"outside to the other node, answered directly", c.world, vip, ServiceLoadBalancer | ServiceDSR, b.ns, nodeIP(1, v6), routerIP(v6)},
					{"other node to its own pod by this one", b.ns, netip.Addr{}, ServiceNodePort, b.pods[0], podIP(1, 0, v6), nodeIP(0, v6)},
					{"other node to a pod here", b.ns, netip.Addr{}, ServiceNodePort, a.pods[0], podIP(0, 0, v6), nodeIP(1, v6)},
					{"pod to a pod here", a.pods[0], vip, ServiceClusterIP, a.pods[1], podIP(0, 1, v6), podIP(0, 0, v6)},
					{"pod to itself", a.pods[0], vip, ServiceClusterIP, a.pods[0], podIP(0, 0, v6), podGateway(v6)},
					{"pod to a pod there", a.pods[0], vip, ServiceClusterIP, b.pods[0], podIP(1, 0, v6), podIP(0, 0, v6)},
					{"pod to its node", a.pods[0], vip, ServiceClusterIP, a.ns, nodeIP(0, v6), podIP(0, 0, v6)},
					{"pod to the other node", a.pods[0], vip, ServiceClusterIP, b.ns, nodeIP(1, v6), podIP(0, 0, v6)},
					{"pod to the outside", a.pods[0], vip, ServiceClusterIP, c.world, worldIP(v6), nodeIP(0, v6)},
					{"pod by its node's port", a.pods[0], netip.Addr{}, ServiceNodePort, b.pods[0], podIP(1, 0, v6), podIP(0, 0, v6)},
					{"pod there by a host port here", b.pods[0], netip.Addr{}, ServiceHostPort, a.pods[0], podIP(0, 0, v6), podIP(1, 0, v6)},
				} {
					t.Run(host(vip).String()+" "+tc.name, func(t *testing.T) {
						c.t = t
						front := netip.AddrPortFrom(tc.at, uint16(nodePort+i))
						row := front
						if !tc.at.IsValid() {
							front = netip.AddrPortFrom(nodeIP(0, v6), front.Port())
							row = netip.AddrPortFrom(map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[v6], front.Port())
						}
						backend := netip.AddrPortFrom(tc.backend, uint16(8000+i))
						for n := range c.nodes {
							r := *c.nodes[n].rig
							r.t = t
							if n == 1 && (tc.flags&ServiceHostPort != 0 || tc.from == b.ns) {
								continue // else the other node serves it by itself
							}
							for j, proto := range []layers.IPProtocol{protoTCP, protoUDP} {
								r.serve(uint32(setID+100*i+10*j+map[bool]int{true: 5}[v6]), front1(row, proto, tc.flags, backend))
							}
						}
						serveStream(t, tc.from, front, tc.to, backend, tc.seen)
						serveDatagram(t, tc.from, front, tc.to, backend, tc.seen)
					})
				}
				for name, from := range map[string]netns.NsHandle{"outside": c.world, "pod": a.pods[0]} {
					t.Run(host(vip).String()+" "+name+" is refused", func(t *testing.T) {
						r := *a.rig
						r.t = t
						for _, proto := range []layers.IPProtocol{protoTCP, protoUDP} {
							r.serve(9000+uint32(proto), front1(netip.AddrPortFrom(vip, 9), proto, ServiceLoadBalancer))
						}
						refused(t, from, from, vip)
					})
				}
			}
			c.noDropsBut(verdict.TooBig, verdict.FragmentUnknown) // fragments of what was too big, whose first was answered
		})
	}
}

func front1(at netip.AddrPort, proto layers.IPProtocol, flags ServiceFlags, backends ...netip.AddrPort) front {
	return front{at: at, proto: proto, flags: flags, backends: backends}
}

// serveStream sends a megabyte there and back by a service; the server must see the client as seen, the client the frontend.
func serveStream(t *testing.T, from netns.NsHandle, front netip.AddrPort, to netns.NsHandle, backend netip.AddrPort, seen netip.Addr) {
	t.Helper()
	var l net.Listener
	within(t, to, func() {
		var err error
		if l, err = net.Listen("tcp", backend.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	peer := make(chan netip.Addr, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		peer <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
		_, _ = io.Copy(c, c)
	}()
	var c net.Conn
	within(t, from, func() {
		var err error
		if c, err = net.DialTimeout("tcp", front.String(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	sent := bytes.Repeat([]byte("strait"), 1<<20/6)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(back, sent) {
		t.Fatalf("stream: %d of %d bytes came back: %v", len(back), len(sent), err)
	}
	if got := <-peer; got != seen {
		t.Errorf("stream: the server saw %s, want %s", got, seen)
	}
}

// serveDatagram sends datagrams by a service on a connected socket, which takes answers from the frontend only.
func serveDatagram(t *testing.T, from netns.NsHandle, front netip.AddrPort, to netns.NsHandle, backend netip.AddrPort, seen netip.Addr) {
	t.Helper()
	var s net.PacketConn
	within(t, to, func() {
		var err error
		if s, err = net.ListenPacket("udp", backend.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer s.Close()
	peer := make(chan netip.Addr, 10)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, who, err := s.ReadFrom(buf)
			if err != nil {
				return
			}
			peer <- who.(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
			_, _ = s.WriteTo(buf[:n], who)
		}
	}()
	var c net.Conn
	within(t, from, func() {
		var err error
		if c, err = net.Dial("udp", front.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	for _, size := range []int{1, 1000, 5000} {
		sent, back := bytes.Repeat([]byte{byte(size)}, size), make([]byte, 1<<16)
		// A datagram that is too big for the way is lost, and its sender told; the next one is cut to fit.
		for try := 0; ; try++ {
			if try > 0 {
				t.Logf("datagram of %d bytes again", size)
			}
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if _, err := c.Write(sent); err != nil && !errors.Is(err, unix.EMSGSIZE) {
				t.Fatalf("datagram of %d bytes: %v", size, err)
			}
			n, err := c.Read(back)
			if err == nil && bytes.Equal(back[:n], sent) {
				break
			}
			if try == 3 {
				t.Fatalf("datagram of %d bytes: %d came back: %v", size, n, err)
			}
		}
		if got := <-peer; got != seen {
			t.Errorf("datagram: the server saw %s, want %s", got, seen)
		}
	}
}
