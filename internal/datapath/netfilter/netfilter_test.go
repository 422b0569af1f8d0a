package netfilter

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/takeover"
)

// rig is a client, a node that translates and a server: 10.1.0.2 - 10.1.0.1|10.2.0.1 - 10.2.0.2, and fd01::, fd02:: alike.
type rig struct {
	t                    *testing.T
	client, node, server string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, client: nstest.NetNS(t), node: nstest.NetNS(t), server: nstest.NetNS(t)}
	r.connect(1, r.client)
	r.connect(2, r.server)
	nstest.In(t, r.node, func() {
		r.check(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.1.0.2")}))
		for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
			if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	return r
}

func (r *rig) connect(n int, host string) {
	r.t.Helper()
	end := func(path, device string, last int) {
		nstest.In(r.t, path, func() {
			link, err := netlink.LinkByName(device)
			r.check(err)
			for _, text := range []string{fmt.Sprintf("10.%d.0.%d/24", n, last), fmt.Sprintf("fd0%d::%d/64", n, last)} {
				a, err := netlink.ParseAddr(text)
				r.check(err)
				a.Flags = 0x02 // IFA_F_NODAD
				r.check(netlink.AddrAdd(link, a))
			}
			r.check(netlink.LinkSetUp(link))
			lo, err := netlink.LinkByName("lo")
			r.check(err)
			r.check(netlink.LinkSetUp(lo))
			if last == 1 {
				return
			}
			for _, gw := range []string{fmt.Sprintf("10.%d.0.1", n), fmt.Sprintf("fd0%d::1", n)} {
				r.check(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}))
			}
		})
	}
	device := fmt.Sprintf("to%d", n)
	nstest.In(r.t, host, func() {
		ns, err := os.Open(r.node)
		r.check(err)
		defer func() { _ = ns.Close() }()
		r.check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: device, PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	})
	end(host, "eth0", 2)
	end(r.node, device, 1)
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// rules loads nft's text on the node.
func (r *rig) rules(text string) {
	r.t.Helper()
	nstest.In(r.t, r.node, func() {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			r.t.Fatalf("nft: %v: %s", err, out)
		}
	})
}

// serve echoes on port 8080 of the server, TCP and UDP.
func (r *rig) serve() {
	r.t.Helper()
	nstest.In(r.t, r.server, func() {
		l, err := net.Listen("tcp", ":8080")
		r.check(err)
		p, err := net.ListenPacket("udp", ":8080")
		r.check(err)
		var ends sync.WaitGroup
		stop := make(chan struct{})
		r.t.Cleanup(func() {
			close(stop)
			_ = l.Close()
			_ = p.Close()
			ends.Wait()
		})
		ends.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				ends.Go(func() { echo(c) })
				ends.Go(func() { <-stop; _ = c.Close() })
			}
		})
		ends.Go(func() {
			b := make([]byte, 100)
			for {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(b[:n], from)
			}
		})
	})
}

func echo(c net.Conn) {
	defer func() { _ = c.Close() }()
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

func (r *rig) dial(from, network, address string) net.Conn {
	r.t.Helper()
	var c net.Conn
	nstest.In(r.t, from, func() {
		var err error
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, address)
		r.check(err)
	})
	r.t.Cleanup(func() { _ = c.Close() })
	if err := ping(c); err != nil {
		r.t.Fatalf("%s to %s: %v", network, address, err)
	}
	return c
}

// ping proves that a connection works.
func ping(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

func (r *rig) redirected() (flows []takeover.Flow) {
	r.t.Helper()
	nstest.In(r.t, r.node, func() {
		var err error
		flows, err = Redirected()
		r.check(err)
	})
	return flows
}

const likeKubeProxy = `
table inet foreign {
	chain prerouting { type nat hook prerouting priority dstnat;
		ip daddr 10.96.0.1 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.2.0.2:8080
		ip daddr 10.96.0.2 tcp dport 80 meta mark set 1 dnat ip to 10.2.0.2:8080
		ip6 daddr fd96::1 tcp dport 80 dnat ip6 to [fd02::2]:8080
	}
	chain output { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.2.0.2:8080; }
	chain postrouting { type nat hook postrouting priority srcnat; meta mark 1 masquerade; }
}`

func TestRedirected(t *testing.T) {
	r := newRig(t)
	r.serve()
	r.rules(likeKubeProxy)
	want := map[string]takeover.Flow{}
	for _, c := range []struct{ from, network, front, back, masquerade string }{
		{r.client, "tcp", "10.96.0.1:80", "10.2.0.2:8080", ""},
		{r.client, "udp", "10.96.0.1:80", "10.2.0.2:8080", ""},
		{r.client, "tcp", "10.96.0.2:80", "10.2.0.2:8080", "10.2.0.1"},
		{r.client, "tcp", "[fd96::1]:80", "[fd02::2]:8080", ""},
	} {
		conn := r.dial(c.from, c.network, c.front)
		local := netip.MustParseAddrPort(conn.LocalAddr().String())
		f := takeover.Flow{
			Protocol: 6, Source: local, Destination: netip.MustParseAddrPort(c.front), ReplySource: netip.MustParseAddrPort(c.back),
			ReplyDestination: local, Replied: true,
		}
		if c.network == "udp" {
			f.Protocol = 17
		}
		if c.masquerade != "" {
			f.ReplyDestination = netip.AddrPortFrom(netip.MustParseAddr(c.masquerade), local.Port())
		}
		want[local.String()] = f
	}
	r.dial(r.client, "tcp", "10.2.0.2:8080") // not translated
	flows := r.redirected()
	for _, f := range flows {
		if w, ok := want[f.Source.String()]; !ok || f != w {
			t.Errorf("have %+v\nwant %+v", f, w)
		}
	}
	if len(flows) != len(want) {
		t.Errorf("%d connections, want %d: %+v", len(flows), len(want), flows)
	}

	nstest.In(t, r.node, func() { r.check(Forget(flows[:1])) })
	nstest.In(t, r.node, func() { r.check(Forget(flows[:1])) }) // gone already
	if left := r.redirected(); len(left) != len(want)-1 {
		t.Errorf("%d connections after one was forgotten, want %d", len(left), len(want)-1)
	}
}

// Connection tracking knows a connection of which it has seen packets while there were rules that need it, and an answer.
func TestAnswered(t *testing.T) {
	r := newRig(t)
	r.serve()
	answered := func(c net.Conn, want bool) {
		t.Helper()
		protocol := map[string]uint8{"tcp": 6, "udp": 17}[c.LocalAddr().Network()]
		from, to := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
		nstest.In(t, r.node, func() {
			if got, err := Answered(protocol, from, to); err != nil || got != want {
				t.Errorf("%s from %s to %s answered %v, %v; want %v", c.LocalAddr().Network(), from, to, got, err, want)
			}
		})
	}
	var old []net.Conn
	for _, target := range []string{"10.2.0.2:8080", "[fd02::2]:8080"} {
		for _, network := range []string{"tcp", "udp"} {
			old = append(old, r.dial(r.client, network, target))
		}
	}
	r.rules("add table inet needs\nadd chain inet needs c { type filter hook forward priority 0; }\nadd rule inet needs c ct state new counter\n")
	for _, c := range old {
		answered(c, false)
		answered(r.dial(r.client, c.LocalAddr().Network(), c.RemoteAddr().String()), true)
	}
	for _, c := range old {
		r.check(ping(c))
		answered(c, true) // it has come to know it
	}
	var silent net.Conn
	nstest.In(t, r.client, func() {
		var err error
		silent, err = net.Dial("udp", "10.2.0.77:9")
		r.check(err)
	})
	defer func() { _ = silent.Close() }()
	_, err := silent.Write([]byte("x"))
	r.check(err)
	// Nobody has answered; an answer would be one. The node forwards beside the test.
	from, to := netip.MustParseAddrPort(silent.LocalAddr().String()), netip.MustParseAddrPort(silent.RemoteAddr().String())
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		answer := false
		nstest.In(t, r.node, func() {
			var err error
			answer, err = Answered(17, to, from)
			r.check(err)
		})
		if answer {
			break
		}
		if time.Now().After(end) {
			t.Fatal("an answer would not be taken for one")
		}
	}
	answered(silent, false)
}

// A closed connection is kept by the kernel for a while: it is none to go on with.
func TestClosedIsToldAsClosed(t *testing.T) {
	r := newRig(t)
	r.serve()
	r.rules(likeKubeProxy)
	c := r.dial(r.client, "tcp", "10.96.0.1:80")
	r.check(c.Close())
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		flows := r.redirected()
		if len(flows) == 1 && flows[0].Closed {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", flows)
		}
	}
}

func TestNoConnectionTracking(t *testing.T) {
	nstest.In(t, nstest.NetNS(t), func() {
		if known, err := Answered(6, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")); known || err != nil {
			t.Errorf("%v %v", known, err)
		}
		if flows, err := Redirected(); err != nil || len(flows) != 0 {
			t.Errorf("%v %v", flows, err)
		}
		if held, err := Held(); held || err != nil {
			t.Errorf("%v %v", held, err)
		}
		if err := Release(); err != nil {
			t.Error(err)
		}
	})
}

// The rules go; connections of the node's own sockets, and any other, are translated as long as Hold lasts.
func TestHold(t *testing.T) {
	for _, hold := range []bool{true, false} {
		t.Run(fmt.Sprintf("hold %v", hold), func(t *testing.T) {
			r := newRig(t)
			r.serve()
			r.rules(likeKubeProxy)
			conns := map[string]net.Conn{
				"own socket": r.dial(r.node, "tcp", "10.96.0.1:80"), "forwarded": r.dial(r.client, "tcp", "10.96.0.1:80"),
				"masqueraded": r.dial(r.client, "tcp", "10.96.0.2:80"), "IPv6": r.dial(r.client, "tcp", "[fd96::1]:80"),
			}
			if hold {
				for range 2 {
					nstest.In(t, r.node, func() { r.check(Hold()) })
				}
			}
			r.rules("delete table inet foreign")
			for name, c := range conns {
				if err := ping(c); (err == nil) != hold {
					t.Errorf("%s: with hold %v: %v", name, hold, err)
				}
			}
			nstest.In(t, r.node, func() {
				if held, err := Held(); held != hold || err != nil {
					t.Errorf("held %v, %v", held, err)
				}
				r.check(Release())
				if held, err := Held(); held || err != nil {
					t.Errorf("held %v, %v after release", held, err)
				}
			})
		})
	}
}
