package bpf

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

// TestWire lets real sockets talk over the whole cluster, both families, both modes.
func TestWire(t *testing.T) {
	for mode, tunnel := range map[string]bool{"vxlan": true, "native": false} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, tunnel, NetworkIsland)
			for _, f := range []string{"v4", "v6"} {
				t.Run(f, func(t *testing.T) {
					v6 := f == "v6"
					c := *c
					c.t = t
					a1, a2, b1 := c.nodes[0].pods[0], c.nodes[0].pods[1], c.nodes[1].pods[0]
					for _, tc := range []struct {
						name     string
						from, to netns.NsHandle
						at, seen netip.Addr
					}{
						{"pod to pod here", a1, a2, podIP(0, 1, v6), podIP(0, 0, v6)},
						{"pod to pod there", a1, b1, podIP(1, 0, v6), podIP(0, 0, v6)},
						{"pod to own node", a1, c.nodes[0].ns, nodeIP(0, v6), podIP(0, 0, v6)},
						{"pod to other node", a1, c.nodes[1].ns, nodeIP(1, v6), podIP(0, 0, v6)},
						{"own node to pod", c.nodes[0].ns, a1, podIP(0, 0, v6), nodeIP(0, v6)},
						{"other node to pod", c.nodes[1].ns, a1, podIP(0, 0, v6), nodeIP(1, v6)},
						{"pod to outside", a1, c.world, worldIP(v6), nodeIP(0, v6)},
					} {
						t.Run(tc.name, func(t *testing.T) {
							stream(t, tc.from, tc.to, tc.at, tc.seen)
							datagram(t, tc.from, tc.to, tc.at, tc.seen)
							refused(t, tc.from, tc.to, tc.at)
						})
					}
				})
			}
			c.noDrops()
			// It was the programs that carried all this, not the stack.
			way := verdict.ToNeighbour
			if tunnel {
				way = verdict.ToTunnel
			}
			counts := c.nodes[0].rig.counts()
			for _, reason := range []verdict.Reason{verdict.ToLocalPod, verdict.ToWorldMasqueraded, way} {
				if counts[reason] < 100 {
					t.Errorf("%s: %d packets", reason.Text(), counts[reason])
				}
			}
		})
	}
}

// noDrops fails if a node counted a drop other than the noise that kernels make by themselves.
func (c *cluster) noDrops() {
	c.t.Helper()
	c.noDropsBut()
}

func (c *cluster) noDropsBut(allowed ...verdict.Reason) {
	c.t.Helper()
	for _, n := range c.nodes {
		for reason, packets := range n.rig.counts() {
			if packets > 0 && reason.Dropped() && reason != verdict.UnsupportedL2 && !slices.Contains(allowed, reason) {
				c.t.Errorf("node %s dropped %d packets: %s", n.name, packets, reason.Text())
			}
		}
	}
}

func (r *rig) counts() map[verdict.Reason]uint64 {
	r.t.Helper()
	sums := map[verdict.Reason]uint64{}
	for _, reason := range verdict.All() {
		var perCPU []Counter
		r.check(r.objs.StraitCounter.Lookup(uint32(reason), &perCPU))
		for _, c := range perCPU {
			sums[reason] += c.Packets
		}
	}
	return sums
}

// stream sends two megabytes there and back over TCP; the server must see the client as seen.
func stream(t *testing.T, from, to netns.NsHandle, at, seen netip.Addr) {
	t.Helper()
	var l net.Listener
	within(t, to, func() {
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()); err != nil {
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
		peer <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		_, _ = io.Copy(c, c)
	}()
	var c net.Conn
	within(t, from, func() {
		var err error
		if c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := bytes.Repeat([]byte("strait"), 2<<20/6)
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

// datagram sends small and large (fragmented) UDP there and back.
func datagram(t *testing.T, from, to netns.NsHandle, at, seen netip.Addr) {
	t.Helper()
	var s net.PacketConn
	within(t, to, func() {
		var err error
		if s, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 0).String()); err != nil {
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
			peer <- who.(*net.UDPAddr).AddrPort().Addr().Unmap()
			_, _ = s.WriteTo(buf[:n], who)
		}
	}()
	var c net.Conn
	within(t, from, func() {
		var err error
		if c, err = net.Dial("udp", s.LocalAddr().String()); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	for _, size := range []int{1, 1000, 5000} {
		sent, back := bytes.Repeat([]byte{byte(size)}, size), make([]byte, 1<<16)
		if _, err := c.Write(sent); err != nil {
			t.Fatalf("datagram of %d bytes: %v", size, err)
		}
		n, err := c.Read(back)
		if err != nil || !bytes.Equal(back[:n], sent) {
			t.Fatalf("datagram of %d bytes: %d came back: %v", size, n, err)
		}
		if got := <-peer; got != seen {
			t.Errorf("datagram: the server saw %s, want %s", got, seen)
		}
	}
}

// refused talks to ports where nobody listens: TCP's reset and UDP's ICMP error must find their way back.
func refused(t *testing.T, from, _ netns.NsHandle, at netip.Addr) {
	t.Helper()
	closed := netip.AddrPortFrom(at, 9).String()
	within(t, from, func() {
		if _, err := net.DialTimeout("tcp", closed, 3*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to a closed port: %v, want %v", err, unix.ECONNREFUSED)
		}
		c, err := net.Dial("udp", closed)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Write([]byte("hi")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("answer from a closed UDP port: %v, want %v", err, unix.ECONNREFUSED)
		}
	})
}

// TestWireFlat: outside, pods are seen under their own addresses and can be reached.
func TestWireFlat(t *testing.T) {
	c := newCluster(t, true, NetworkFlat)
	within(t, c.world, func() {
		for _, v6 := range []bool{false, true} {
			c.route(podCIDR(0, v6), "br0", nodeIP(0, v6))
		}
	})
	for _, v6 := range []bool{false, true} {
		stream(t, c.nodes[0].pods[0], c.world, worldIP(v6), podIP(0, 0, v6))
		datagram(t, c.nodes[0].pods[0], c.world, worldIP(v6), podIP(0, 0, v6))
		refused(t, c.nodes[0].pods[0], c.world, worldIP(v6))
		stream(t, c.world, c.nodes[0].pods[0], podIP(0, 0, v6), routerIP(v6))
	}
	c.noDrops()
}

// TestWireTellsSender: what cannot be carried is answered by the node's stack, and the answer reaches the pod.
func TestWireTellsSender(t *testing.T) {
	for mode, tunnel := range map[string]bool{"vxlan": true, "native": false} {
		c := newCluster(t, tunnel, NetworkIsland)
		for _, v6 := range []bool{false, true} {
			for _, tc := range []struct {
				name string
				to   netip.Addr
				hops int // 0: as usual
				want error
			}{
				{"no such pod here", podIP(0, 77, v6), 0, unix.EHOSTUNREACH},
				{"no such pod there", podIP(1, 77, v6), 0, unix.EHOSTUNREACH},
				{"first hop", podIP(1, 0, v6), 1, unix.EHOSTUNREACH},
				{"second hop", podIP(1, 0, v6), 2, unix.EHOSTUNREACH},
				{"first hop to a pod here", podIP(0, 1, v6), 1, unix.EHOSTUNREACH},
				{"first hop outside", worldIP(v6), 1, unix.EHOSTUNREACH},
			} {
				t.Run(mode+" "+tc.to.String()+" "+tc.name, func(t *testing.T) {
					within(t, c.nodes[0].pods[0], func() { told(t, tc.to, tc.hops, tc.want) })
				})
			}
		}
	}
}

// told sends a datagram that cannot arrive and waits for the error.
func told(t *testing.T, to netip.Addr, hops int, want error) {
	t.Helper()
	domain, level, opt, errs := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
	if to.Is6() {
		domain, level, opt, errs = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
	}
	fd := socket(t, domain, unix.SOCK_DGRAM, 0)
	for _, set := range [][2]int{{errs, 1}, {opt, hops}} {
		if set[1] == 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, level, set[0], set[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Connect(fd, sockaddr(domain, netip.AddrPortFrom(to, 33434))); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	_, err := unix.Read(fd, make([]byte, 10))
	// An unreachable route says "host unreachable" on IPv4 and "no route" on IPv6.
	if !errors.Is(err, want) && (!to.Is6() || !errors.Is(err, unix.ENETUNREACH)) {
		t.Errorf("told %v, want %v", err, want)
	}
}

// TestWireTunnelSpoofed: a node may not send under the addresses of another node's pods, nor bring in what is not the cluster's.
func TestWireTunnelSpoofed(t *testing.T) {
	c := newCluster(t, true, NetworkIsland)
	for _, v6 := range []bool{false, true} {
		for name, src := range map[string]netip.Addr{"a pod of the receiver": podIP(0, 1, v6), "outside": worldIP(v6)} {
			before := c.nodes[0].rig.counts()[verdict.TunnelSpoofed]
			within(t, c.nodes[1].ns, func() {
				c.address("lo", host(src))
				l := net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
				conn, err := net.DialUDP("udp", l, net.UDPAddrFromAddrPort(netip.AddrPortFrom(podIP(0, 0, v6), 53)))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.Write([]byte("hi")); err != nil {
					t.Fatal(err)
				}
			})
			for i := 0; c.nodes[0].rig.counts()[verdict.TunnelSpoofed] == before; i++ {
				if i == 100 {
					t.Fatalf("a packet from %s (%s) was not refused: %v", src, name, c.nodes[0].rig.counts())
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}
