package netdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/state"
)

func TestPodDeviceNames(t *testing.T) {
	name := PodDevice("0123456789abcdef", "eth0")
	if len(name) > 15 || !IsPodDevice(name) {
		t.Errorf("PodDevice = %q", name)
	}
	if PodDevice("0123456789abcdef", "eth1") == name {
		t.Error("two interfaces of a sandbox have the same device name")
	}
	for _, no := range []string{"strait_vxlan", "strait_host", "st", "st0123456789ag", "eth0", "st0123456789ab0"} {
		if IsPodDevice(no) {
			t.Errorf("IsPodDevice(%q)", no)
		}
	}
	if mac := MAC("x"); mac[0]&3 != 2 {
		t.Errorf("MAC %s is not a locally administered unicast address", mac)
	}
}

func TestChoose(t *testing.T) {
	pfx := netip.MustParsePrefix
	seen := []observed{
		{Device: state.Device{Name: "lo", Index: 1}, loopback: true},
		{Device: state.Device{Name: "eth0", Index: 2, Addresses: []netip.Prefix{pfx("10.0.0.9/24"), pfx("10.0.0.1/24")}}},
		{Device: state.Device{Name: "eth1", Index: 3}, defaultRoute: true},
		{Device: state.Device{Name: "docker0", Index: 4, Addresses: []netip.Prefix{pfx("172.17.0.1/16")}}},
		{Device: state.Device{Name: VXLANDevice, Index: 5}, defaultRoute: true},
	}
	native := func(patterns ...string) (names, problems []string) {
		rows, problems := choose(seen, patterns, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
		for _, r := range rows {
			if r.Native {
				names = append(names, r.Name)
			}
		}
		return names, problems
	}
	for _, c := range []struct {
		patterns, want []string
		problem        string
	}{
		{nil, []string{"eth0", "eth1"}, ""},
		{[]string{"eth1"}, []string{"eth1"}, ""},
		{[]string{"eth*", "ens*"}, []string{"eth0", "eth1"}, `"ens*"`},
		{[]string{"*"}, []string{"eth0", "eth1", "docker0"}, ""},
	} {
		got, problems := native(c.patterns...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: native %q, want %q", c.patterns, got, c.want)
		}
		if all := strings.Join(problems, "; "); (c.problem == "") != (all == "") || !strings.Contains(all, c.problem) {
			t.Errorf("%q: problems %q, want %q", c.patterns, all, c.problem)
		}
	}
	router := append(slices.Clone(seen), observed{Device: state.Device{Name: "lo", Index: 1, Addresses: []netip.Prefix{pfx("10.0.0.1/32")}}, loopback: true})
	if rows, _ := choose(router, []string{"*"}, []netip.Addr{netip.MustParseAddr("10.0.0.1")}); len(rows) != 5 || rows[4].Name != "lo" || rows[4].Native {
		t.Errorf("a node whose address is on loopback: %+v", rows)
	}
	rows, _ := choose(seen, nil, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
	if got := rows[0].Addresses[0].Addr().String(); got != "10.0.0.1" {
		t.Errorf("first address %s, want the node's", got)
	}
	if _, problems := choose(seen[3:4], nil, nil); len(problems) != 1 {
		t.Errorf("no native device: problems %q", problems)
	}
}

func TestPodMTU(t *testing.T) {
	devices := []state.Device{
		{Name: "a", MTU: 9000, Native: true, Up: true}, {Name: "b", MTU: 1500, Native: true, Up: true},
		{Name: "down", MTU: 1000, Native: true}, {Name: "other", MTU: 1280, Up: true},
	}
	for _, c := range []struct {
		configured int
		tunnel, v6 bool
		want       int
	}{{0, false, false, 1500}, {0, true, false, 1450}, {0, true, true, 1430}, {1400, true, false, 1350}, {1400, false, true, 1400}} {
		if got := PodMTU(devices, c.configured, c.tunnel, c.v6); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	if got := PodMTU(nil, 0, true, false); got != 0 {
		t.Errorf("no devices: %d, want 0", got)
	}
}

func TestForeignAmong(t *testing.T) {
	got := foreignAmong([]string{"calib0", "cilium_vxlan", "cni0", "docker0", "eth0", "flannel.1", "st0123456789ab"})
	var names []string
	for _, f := range got {
		names = append(names, f.Device)
	}
	if want := []string{"calib0", "cilium_vxlan", "cni0", "flannel.1"}; !slices.Equal(names, want) {
		t.Errorf("found %q, want %q", names, want)
	}
}

func testPod(netns string, i int) Pod {
	id := fmt.Sprintf("container-%d", i)
	return Pod{
		NetNS: netns, IfName: "eth0", Device: PodDevice(id, "eth0"), PodMAC: MAC(id + "pod"), HostMAC: MAC(id + "host"), MTU: 1450,
		Addresses: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}),
		},
	}
}

// node runs fn in a namespace of its own with its Net.
func node(t testing.TB, fn func(*Net)) {
	t.Helper()
	nstest.In(t, "", func() {
		n, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		fn(n)
	})
}

func addUplink(t testing.TB, n *Net, name, address string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}
	if err := n.h.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{name, name + "-peer"} {
		l, err := n.link(end)
		if err == nil {
			err = n.h.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	addAddress(t, n, name, address, nil)
}

// addAddress gives a device an address; the kernel may have IPv6 off.
func addAddress(t testing.TB, n *Net, device, address string, edit func(*netlink.Addr)) {
	t.Helper()
	link, err := n.link(device)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if edit != nil {
		edit(a)
	}
	if err := n.h.AddrAdd(link, a); err != nil && !strings.Contains(address, ":") {
		t.Fatal(err)
	}
}

func check(t testing.TB, n *Net, p Pod, want ...string) {
	t.Helper()
	found, err := n.CheckPod(p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range found {
		got = append(got, d.String())
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
}

func TestPodLifeAndChecks(t *testing.T) {
	netns := nstest.NetNS(t)
	node(t, func(n *Net) {
		addUplink(t, n, "up0", "192.168.7.1/24")
		p := testPod(netns, 5)
		p.Sources = []netip.Addr{netip.MustParseAddr("192.168.7.1")}
		index, err := n.AddPod(p)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := n.Index(p.Device); err != nil || got != index {
			t.Errorf("index %d, want %d (%v)", index, got, err)
		}
		check(t, n, p)
		if got, err := n.PodDevices(); err != nil || !slices.Equal(got, []string{p.Device}) {
			t.Errorf("PodDevices = %q, %v", got, err)
		}
		links, _ := n.h.LinkByName(p.Device)
		if addrs, err := n.h.AddrList(links, unix.AF_INET6); err != nil || len(addrs) != 0 {
			t.Errorf("the node's end has IPv6 addresses %v (%v)", addrs, err)
		}

		other := p
		other.MTU, other.PodMAC = 1400, MAC("other")
		other.Addresses = append(slices.Clone(p.Addresses), netip.MustParseAddr("10.244.0.99"))
		check(t, n, other,
			"MTU of "+p.Device+" is 1450, want 1400",
			"MAC of eth0 is "+p.PodMAC.String()+", want "+other.PodMAC.String(),
			"MTU of eth0 is 1450, want 1400",
			fmt.Sprintf("neighbour 10.244.0.5 on %s is %s state 0x80, want %s permanent", p.Device, p.PodMAC, other.PodMAC),
			fmt.Sprintf("neighbour fd00::5 on %s is %s state 0x80, want %s permanent", p.Device, p.PodMAC, other.PodMAC),
			fmt.Sprintf("neighbour 10.244.0.99 on %s is missing, want %s permanent", p.Device, other.PodMAC),
			"node's route to 10.244.0.99 is missing, want dev "+p.Device,
			"address of eth0 is missing, want 10.244.0.99/32",
		)

		for _, mtu := range []int{9000, 1300} {
			p.MTU = mtu
			if err := n.SetPodMTU(p); err != nil {
				t.Fatal(err)
			}
			check(t, n, p)
		}

		// The same attachment again, as after a crash in the middle of ADD.
		if _, err := n.AddPod(p); err != nil {
			t.Fatalf("add over a leftover: %v", err)
		}
		check(t, n, p)
		for range 2 {
			if err := n.DeleteDevice(p.Device); err != nil {
				t.Fatal(err)
			}
		}
		check(t, n, p, "interface "+p.Device+" is missing, want veth", "interface eth0 is missing, want veth")
	})
}

func TestPodReachesNodeAtOnce(t *testing.T) {
	netns := nstest.NetNS(t)
	node(t, func(n *Net) {
		addUplink(t, n, "up0", "192.168.7.1/24")
		p := testPod(netns, 6)
		if _, err := n.AddPod(p); err != nil {
			t.Fatal(err)
		}
		// UDP from the node to each address of the pod arrives although nothing answers ARP or NDP.
		for _, a := range p.Addresses {
			var listener int
			nstest.In(t, netns, func() { listener = udp(t, a) })
			defer unix.Close(listener)
			s, err := unix.Socket(family(a), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(s)
			if a.Is6() { // the node has no IPv6 address here: the kernel has nothing to send from
				continue
			}
			if err := unix.Sendto(s, []byte("hi"), 0, sockaddr(a, 7777)); err != nil {
				t.Fatalf("send to %s: %v", a, err)
			}
			buf := make([]byte, 10)
			if nr, _, err := unix.Recvfrom(listener, buf, 0); err != nil || nr != 2 {
				t.Errorf("receive in the pod on %s: %d, %v", a, nr, err)
			}
		}
	})
}

func udp(t *testing.T, a netip.Addr) int {
	fd, err := unix.Socket(family(a), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tv := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, sockaddr(a, 7777)); err != nil {
		t.Fatalf("bind to %s right after ADD: %v", a, err)
	}
	return fd
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
	}
	return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
}

func TestAddPodRollsBack(t *testing.T) {
	netns := nstest.NetNS(t)
	node(t, func(n *Net) {
		p := testPod(netns, 1)
		p.Sources = []netip.Addr{netip.MustParseAddr("192.168.99.1")} // not an address of the node: the last step fails
		if _, err := n.AddPod(p); err == nil {
			t.Fatal("no error")
		}
		if got, err := n.PodDevices(); err != nil || len(got) != 0 {
			t.Errorf("left behind %q, %v", got, err)
		}
		p.Sources = nil
		p.NetNS = "/run/netns/absent-for-sure"
		if _, err := n.AddPod(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("absent namespace: %v", err)
		}
		if _, err := n.CheckPod(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("absent namespace: %v", err)
		}
	})
}

func TestAddPodWithInterfaceTaken(t *testing.T) {
	netns := nstest.NetNS(t)
	node(t, func(n *Net) {
		if _, err := n.AddPod(testPod(netns, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := n.AddPod(testPod(netns, 2)); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "eth0") {
			t.Errorf("second eth0: %v", err)
		}
		check(t, n, testPod(netns, 1))
	})
}

func TestPodWithIPv6Disabled(t *testing.T) {
	netns := nstest.NetNS(t)
	nstest.In(t, netns, func() {
		if err := writeSysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
	})
	node(t, func(n *Net) {
		p := testPod(netns, 1)
		if _, err := n.AddPod(p); err != nil {
			t.Fatal(err)
		}
		check(t, n, p)
	})
}

func TestPodsInParallel(t *testing.T) {
	const pods = 20
	var netns [pods]string
	for i := range netns {
		netns[i] = nstest.NetNS(t)
	}
	node(t, func(n *Net) {
		var group errgroup.Group
		for i, path := range netns {
			group.Go(func() error {
				p := testPod(path, i)
				for range 3 {
					if _, err := n.AddPod(p); err != nil {
						return err
					}
					if found, err := n.CheckPod(p); err != nil || len(found) != 0 {
						return fmt.Errorf("%s: %v, %w", p.Device, found, err)
					}
					if err := n.DeleteDevice(p.Device); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if left, err := n.PodDevices(); err != nil || len(left) != 0 {
			t.Errorf("left %q, %v", left, err)
		}
	})
}

func TestVXLAN(t *testing.T) {
	node(t, func(n *Net) {
		want := VXLAN{Port: 8472, MTU: 1450}
		index, changed, err := n.EnsureVXLAN(want)
		if err != nil {
			t.Fatal(err)
		}
		if len(changed) == 0 || changed[0] != "created" {
			t.Errorf("changed %q", changed)
		}
		again, changed, err := n.EnsureVXLAN(want)
		if err != nil || len(changed) != 0 || again != index {
			t.Errorf("second time: index %d (was %d), changed %q, %v", again, index, changed, err)
		}
		link, err := n.link(VXLANDevice)
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); a.RawFlags&unix.IFF_NOARP == 0 || a.RawFlags&unix.IFF_UP == 0 || a.HardwareAddr.String() != VXLANMAC().String() {
			t.Errorf("flags %x, address %s", a.RawFlags, a.HardwareAddr)
		}
		if have, err := n.addresses(index); err != nil || len(have) != 0 {
			t.Errorf("the tunnel device has addresses %v (%v)", have, err)
		}
		if got, err := readSysctl("net/ipv4/conf/" + VXLANDevice + "/rp_filter"); err != nil || got != "2" {
			t.Errorf("rp_filter %s, %v", got, err)
		}

		if err := errors.Join(n.h.LinkSetMTU(link, 1300), n.h.LinkSetDown(link), n.h.LinkSetHardwareAddr(link, MAC("x"))); err != nil {
			t.Fatal(err)
		}
		again, changed, err = n.EnsureVXLAN(VXLAN{Port: 8472, MTU: 1400})
		if err != nil || again != index || len(changed) != 3 {
			t.Errorf("repair: index %d (was %d), changed %q, %v", again, index, changed, err)
		}
		again, changed, err = n.EnsureVXLAN(VXLAN{Port: 4789, MTU: 1400})
		if err != nil || again == index || !slices.Contains(changed, "made anew") {
			t.Errorf("other port: index %d (was %d), changed %q, %v", again, index, changed, err)
		}
	})
}

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	node(t, func(n *Net) {
		addUplink(t, n, "up0", "192.168.7.1/24")
		addUplink(t, n, "up1", "192.168.8.1/24")
		if err := writeSysctl("net/ipv6/conf/up1/accept_ra", "0"); err != nil {
			t.Fatal(err)
		}
		if _, err := EnableForwarding(true, true); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			"net/ipv6/conf/up0/accept_ra": "2", "net/ipv6/conf/up1/accept_ra": "0",
		} {
			if got, err := readSysctl(name); err != nil || got != want {
				t.Errorf("%s = %s, want %s (%v)", name, got, want, err)
			}
		}
		if changed, err := EnableForwarding(true, true); err != nil || len(changed) != 0 {
			t.Errorf("second time changed %q, %v", changed, err)
		}
	})
}

func TestReservePorts(t *testing.T) {
	node(t, func(*Net) {
		for _, c := range []struct {
			local, before string
			low, high     uint16
			want          string
		}{
			{"32768\t60999", "", 30000, 32767, ""},
			{"1024\t65000", "", 0, 0, ""},
			{"31000\t60999", "", 30000, 32767, "31000-32767"},
			{"1024\t65000", "8080,32768-33000", 30000, 32767, "8080,30000-33000"},
			{"1024\t65000", "29000-40000", 30000, 32767, "29000-40000"},
		} {
			if err := errors.Join(writeSysctl("net/ipv4/ip_local_port_range", c.local),
				writeSysctl("net/ipv4/ip_local_reserved_ports", c.before+"\n")); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := ReservePorts(c.low, c.high); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := readSysctl("net/ipv4/ip_local_reserved_ports"); err != nil || got != c.want {
				t.Errorf("%d-%d of %q with %q reserved: %q, want %q (%v)", c.low, c.high, c.local, c.before, got, c.want, err)
			}
			if changed, err := ReservePorts(c.low, c.high); err != nil || len(changed) > 0 {
				t.Errorf("third time changed %q, %v", changed, err)
			}
		}
	})
}

func TestRoutes(t *testing.T) {
	node(t, func(n *Net) {
		addUplink(t, n, "up0", "192.168.7.1/24")
		addUplink(t, n, "up1", "192.168.8.1/24")
		ctx, ops := context.Background(), NewRoutes(n)
		pfx := netip.MustParsePrefix
		own := []state.Route{
			{Prefix: pfx("10.244.0.0/24"), Kind: state.RouteUnreachable},
			{Prefix: pfx("fd00:0:0:1::/64"), Kind: state.RouteUnreachable},
			{Prefix: pfx("10.244.1.0/24"), Kind: state.RouteUnicast, Device: "up0", Via: netip.MustParseAddr("192.168.7.2")},
			{Prefix: pfx("10.244.2.0/24"), Kind: state.RouteUnicast, Device: "up1", Source: netip.MustParseAddr("192.168.7.1"), MTU: 1400},
			{Prefix: pfx("fd00:0:0:2::/64"), Kind: state.RouteUnicast, Device: "up0"},
		}
		for _, r := range own {
			for range 2 {
				if err := ops.Update(ctx, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		prune := func(want int) {
			t.Helper()
			found, err := ops.Prune(ctx, slices.Values(own))
			if err != nil || len(found) != want {
				t.Errorf("prune found %q, want %d (%v)", found, want, err)
			}
		}
		prune(0)

		// Drift: one removed, one redirected, one stale of ours, one of somebody else.
		foreign, err := ops.build(state.Route{Prefix: pfx("10.9.0.0/16"), Kind: state.RouteUnicast, Device: "up0"})
		if err != nil {
			t.Fatal(err)
		}
		foreign.Protocol = unix.RTPROT_STATIC
		if err := n.h.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		wrong := own[3]
		wrong.Device = "up0"
		if err := errors.Join(
			ops.Delete(ctx, own[2]), ops.Delete(ctx, own[2]), ops.Update(ctx, wrong),
			ops.Update(ctx, state.Route{Prefix: pfx("10.244.9.0/24"), Kind: state.RouteUnreachable}),
			ops.Update(ctx, state.Route{Prefix: pfx("fd00:0:0:9::/64"), Kind: state.RouteUnreachable}),
		); err != nil {
			t.Fatal(err)
		}
		prune(4)
		prune(0)
		left, err := n.h.RouteListFiltered(unix.AF_INET, foreign, netlink.RT_FILTER_DST)
		if err != nil || len(left) != 1 {
			t.Errorf("somebody else's route: %v, %v", left, err)
		}

		// The kind of a prefix changes in both families: nothing of the old one stays.
		for _, p := range []netip.Prefix{own[1].Prefix, own[0].Prefix} {
			if err := ops.Update(ctx, state.Route{Prefix: p, Kind: state.RouteUnicast, Device: "up1"}); err != nil {
				t.Fatal(err)
			}
			if list, err := ops.list(p); err != nil || len(list) != 1 {
				t.Errorf("routes of %s: %v, %v", p, list, err)
			}
		}
		err = ops.Update(ctx, state.Route{Prefix: pfx("10.1.0.0/16"), Kind: state.RouteUnicast, Device: "absent0"})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "absent0") {
			t.Errorf("absent device: %v", err)
		}
	})
}

func TestWatcherFollowsDevices(t *testing.T) {
	node(t, func(n *Net) {
		devices := state.NewDevices()
		addUplink(t, n, "up0", "192.168.7.1/24")
		w, err := NewWatcher(n, WatchConfig{
			Table: devices, Log: slog.New(slog.DiscardHandler), Settle: time.Millisecond, Every: time.Hour,
			NodeAddresses: func() []netip.Addr {
				return []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("192.168.8.1")}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		}()
		await := func(what string, ok func(state.Device, bool) bool, name string) {
			t.Helper()
			deadline := time.After(5 * time.Second)
			for {
				s := devices.Snapshot()
				d, _, found := s.Get(name)
				if ok(d, found) {
					return
				}
				select {
				case <-s.Changed():
				case <-deadline:
					t.Fatalf("%s: %+v", what, d)
				}
			}
		}
		await("at start", func(d state.Device, _ bool) bool { return d.Native && d.Up && d.MTU == 1500 }, "up0")
		// Whatever the node is reached by counts, what lasts before what does not.
		addAddress(t, n, "up0", "192.168.7.9/24", func(a *netlink.Addr) { a.ValidLft = 3600 }) // preferred for 0 s: deprecated
		addAddress(t, n, "up0", "192.168.7.8/24", nil)
		await("addresses", func(d state.Device, _ bool) bool {
			return slices.Equal(d.Addresses, []netip.Prefix{netip.MustParsePrefix("192.168.7.1/24"), netip.MustParsePrefix("192.168.7.8/24"), netip.MustParsePrefix("192.168.7.9/24")})
		}, "up0")
		addAddress(t, n, "lo", "192.168.9.1/32", nil)
		await("address of loopback", func(d state.Device, found bool) bool { return found && !d.Native && len(d.Addresses) == 1 }, "lo")
		addUplink(t, n, "up1", "192.168.8.1/24")
		await("new device", func(d state.Device, _ bool) bool { return d.Native && d.Up }, "up1")
		link, err := n.link("up1")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.h.LinkSetMTU(link, 1300); err != nil {
			t.Fatal(err)
		}
		await("MTU", func(d state.Device, _ bool) bool { return d.MTU == 1300 }, "up1")
		if err := n.DeleteDevice("up1"); err != nil {
			t.Fatal(err)
		}
		await("gone", func(_ state.Device, found bool) bool { return !found }, "up1")
	})
}

func BenchmarkAddPod(b *testing.B) {
	for _, ends := range []string{"add", "add+delete"} {
		b.Run(ends, func(b *testing.B) {
			netns := nstest.NetNS(b)
			node(b, func(n *Net) {
				addUplink(b, n, "up0", "192.168.7.1/24")
				p := testPod(netns, 1)
				for b.Loop() {
					if _, err := n.AddPod(p); err != nil {
						b.Fatal(err)
					}
					if ends == "add" {
						b.StopTimer()
					}
					if err := n.DeleteDevice(p.Device); err != nil {
						b.Fatal(err)
					}
					if ends == "add" {
						b.StartTimer()
					}
				}
			})
		})
	}
}
