package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestOutermost(t *testing.T) {
	const v1 = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	mount := func(root, dir string) string {
		return fmt.Sprintf("42 24 0:27 %s %s rw,relatime shared:9 - cgroup2 cgroup2 rw\n", root, dir)
	}
	for _, c := range []struct{ name, mounts, want string }{
		{"none", v1, ""},
		{"pure v2", mount("/", "/sys/fs/cgroup"), "/sys/fs/cgroup"},
		{"hybrid", v1 + mount("/", "/sys/fs/cgroup/unified"), "/sys/fs/cgroup/unified"},
		{"elsewhere", mount("/", "/mnt/with\\040space"), "/mnt/with space"},
		{"known place first", mount("/", "/mnt/cg") + mount("/", "/sys/fs/cgroup"), "/sys/fs/cgroup"},
		{"container with the host's tree", mount("/", "/sys/fs/cgroup") + mount("/../../..", "/host/cgroup"), "/host/cgroup"},
		{"only a part", mount("/system.slice", "/mnt/part"), ""},
	} {
		if got := outermost(c.mounts); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestCgroupRoot(t *testing.T) {
	if _, err := CgroupRoot(t.TempDir()); !errors.Is(err, ErrNoCgroup) || !strings.Contains(err.Error(), "want 0x63677270 (cgroup2)") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := CgroupRoot("/absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	root, err := CgroupRoot("")
	if err != nil {
		t.Skipf("no cgroup v2 here: %v", err)
	}
	if again, err := CgroupRoot(root); err != nil || again != root {
		t.Errorf("found %s, configured gives %s, %v", root, again, err)
	}
}

func TestPinNames(t *testing.T) {
	a := New(pin.At("/x"), nil, nil, true)
	path := a.pin("strait_from_net", "eth0.100")
	if strings.Contains(filepath.Base(path), ".") {
		t.Errorf("%s has a dot, which bpffs refuses", path)
	}
	if program, device, ok := parsePin(filepath.Base(path)); !ok || program != "strait_from_net" || device != "eth0.100" {
		t.Errorf("%s is %s on %s, %v", path, program, device, ok)
	}
}

// rig is an agent's kernel side in the calling thread's namespace.
type rig struct {
	t    *testing.T
	tree pin.Tree
	net  *netdev.Net
	maps *maps.Maps
}

func newRig(t *testing.T) *rig {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	n, err := netdev.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return &rig{t: t, tree: tree, net: n}
}

const xdpPass = 2 // XDP_PASS

// start loads programs as an agent does when it starts.
func (r *rig) start(tcx bool) *Attacher {
	r.t.Helper()
	spec, err := maps.Spec(config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024})
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := maps.Open(r.tree, spec)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(m.Close)
	r.maps = m
	if _, there := spec.Programs[xdpProgram]; !there {
		spec.Programs[xdpProgram] = &ebpf.ProgramSpec{
			Name: xdpProgram, Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
		}
	}
	p, err := load.Load(spec, m, load.Config{Network: config.Flat, MasqueradeLo: 10000, MasqueradeHi: 19999, SocketLB: true, TCX: tcx, XDP: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(p.Close)
	return New(r.tree, r.net, p, tcx)
}

func (r *rig) uplink(name string) {
	r.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name}); err != nil {
		r.t.Fatal(err)
	}
}

// needTCX skips a test of tcx links on a kernel without.
func needTCX(t *testing.T) {
	t.Helper()
	if !load.HaveTCX() {
		t.Skip("needs tcx (Linux 6.6)")
	}
}

func list(t *testing.T, a *Attacher) []string {
	t.Helper()
	all, err := a.List()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, x := range all {
		out = append(out, fmt.Sprintf("%s %s %s %v", x.Kind, x.Program, x.Device, x.Current))
	}
	return out
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// nets lists the programs of native devices, each "device current".
func nets(devices ...string) (out []string) {
	for _, d := range devices {
		out = append(out, "tcx strait_from_net "+d, "tcx strait_to_net "+d)
	}
	return out
}

func TestEitherKindIsIdempotent(t *testing.T) {
	for _, tcx := range []bool{true, false} {
		kind := map[bool]string{true: "tcx", false: "clsact"}[tcx]
		t.Run(kind, func(t *testing.T) {
			if tcx {
				needTCX(t)
			}
			nstest.In(t, "", func() {
				r := newRig(t)
				r.uplink("up0.7")
				r.uplink("up1")
				first := r.start(tcx)
				for range 2 {
					if err := errors.Join(first.Native("up0.7"), first.Tunnel("up1")); err != nil {
						t.Fatal(err)
					}
				}
				expect(t, "attached", list(t, first),
					kind+" strait_from_net up0.7 true", kind+" strait_to_net up0.7 true", kind+" strait_from_vx up1 true", kind+" strait_to_vx up1 true")
			})
		})
	}
}

func TestLinksAcrossRestart(t *testing.T) {
	needTCX(t)
	nstest.In(t, "", func() {
		r := newRig(t)
		r.uplink("up0.7")
		r.uplink("up1")
		first := r.start(true)
		if err := errors.Join(first.Native("up0.7"), first.Native("up1"), first.Native("up1")); err != nil {
			t.Fatal(err)
		}
		expect(t, "first start", list(t, first), nets("up0.7 true", "up1 true")...)
		links := linkIDs(t, r.tree)

		second := r.start(true)
		expect(t, "before the update", list(t, second), nets("up0.7 false", "up1 false")...)
		if err := second.Native("up0.7"); err != nil {
			t.Fatal(err)
		}
		expect(t, "after the update", list(t, second), nets("up0.7 true", "up1 false")...)
		if now := linkIDs(t, r.tree); !slices.Equal(now, links) {
			t.Errorf("links were made anew: %v, were %v", now, links)
		}

		// A device made anew under its name has no program; a device that is gone leaves a pin.
		for _, name := range []string{"up0.7", "up1"} {
			if err := r.net.DeleteDevice(name); err != nil {
				t.Fatal(err)
			}
		}
		r.uplink("up0.7")
		expect(t, "devices gone", list(t, second))
		if err := second.Native("up0.7"); err != nil {
			t.Fatal(err)
		}
		all := func(string) bool { return true }
		removed, err := second.Prune(all)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "pruned", removed, "link of strait_from_net on up1", "link of strait_to_net on up1")
		expect(t, "new device", list(t, second), nets("up0.7 true")...)
		removed, err = second.Prune(func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "no longer native", removed, "link of strait_from_net on up0.7", "link of strait_to_net on up0.7")
		expect(t, "nothing left", list(t, second))
		if err := second.Native("absent0"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("absent device: %v", err)
		}
	})
}

func linkIDs(t *testing.T, tree pin.Tree) []string {
	t.Helper()
	entries, err := os.ReadDir(tree.Links())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(e.Name(), info.ModTime())) // a pin made anew is a new inode
	}
	return out
}

func TestDetachAll(t *testing.T) {
	needTCX(t)
	nstest.In(t, "", func() {
		r := newRig(t)
		r.uplink("up0")
		r.uplink("up1")
		a := r.start(true)
		b := New(r.tree, r.net, a.programs, false)
		if err := errors.Join(a.Native("up0"), a.Cgroup(cgroup(t)), b.Native("up1"), b.AttachPod("up1", 0)); err != nil {
			t.Fatal(err)
		}
		if got := list(t, a); len(got) != 2+11+2 {
			t.Errorf("attached %q", got)
		}
		uninstall := New(r.tree, r.net, nil, true)
		for range 2 {
			if err := uninstall.DetachAll(); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, "nothing left", list(t, uninstall))
		if err := r.tree.Remove(); err != nil {
			t.Fatal(err)
		}
		if err := uninstall.DetachAll(); err != nil {
			t.Errorf("without a tree: %v", err)
		}
	})
}

func TestReadOnlyLinks(t *testing.T) {
	needTCX(t)
	nstest.In(t, "", func() {
		r := newRig(t)
		r.uplink("up0")
		a := r.start(true)
		if err := unix.Mount(r.tree.Links(), r.tree.Links(), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(r.tree.Links(), unix.MNT_DETACH)
		if err := unix.Mount("", r.tree.Links(), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		if err := a.Native("up0"); !errors.Is(err, pin.ErrUnusable) || !strings.Contains(err.Error(), "strait_to_net-up0") {
			t.Errorf("error %v", err)
		}
		expect(t, "nothing half attached", list(t, a))
	})
}

// Everything of an earlier start is replaced at once, also on devices that the agent does not know of yet.
func TestRefresh(t *testing.T) {
	needTCX(t)
	nstest.In(t, "", func() {
		r := newRig(t)
		for _, name := range []string{"up0", "up1", "up2"} {
			r.uplink(name)
		}
		first := r.start(true)
		root := cgroup(t)
		if err := errors.Join(first.Native("up0"), first.XDP("up0", config.XDPGeneric), first.AttachPod("up1", 0), first.Native("up2"), first.Cgroup(root)); err != nil {
			t.Fatal(err)
		}
		before := list(t, first)
		if err := r.net.DeleteDevice("up2"); err != nil { // leaves pins behind
			t.Fatal(err)
		}
		second := r.start(true)
		if got := list(t, second); slices.ContainsFunc(got, func(s string) bool { return strings.HasSuffix(s, " true") }) {
			t.Errorf("before: %q", got)
		}
		for range 2 {
			if err := second.Refresh(); err != nil {
				t.Fatal(err)
			}
		}
		want := slices.DeleteFunc(before, func(s string) bool { return strings.Contains(s, " up2 ") })
		expect(t, "refreshed", list(t, second), want...)
	})
}

func TestXDP(t *testing.T) {
	nstest.In(t, "", func() {
		r := newRig(t)
		r.uplink("up0.7")
		r.uplink("up1")
		a := r.start(load.HaveTCX())
		set := func(a *Attacher, device string, mode config.XDPMode) {
			t.Helper()
			for range 2 {
				if err := a.XDP(device, mode); err != nil {
					t.Fatal(err)
				}
			}
		}
		set(a, "up0.7", config.XDPNative)
		set(a, "up1", config.XDPGeneric)
		expect(t, "both modes", list(t, a), "xdp strait_xdp up0.7 true", "xdp-generic strait_xdp up1 true")
		for name, want := range map[string]uint32{"up0.7": nl.XDP_ATTACHED_DRV, "up1": nl.XDP_ATTACHED_SKB} {
			l, err := netlink.LinkByName(name)
			if err != nil || !l.Attrs().Xdp.Attached || l.Attrs().Xdp.AttachMode != want {
				t.Errorf("%s: %+v, %v, want mode %d", name, l.Attrs().Xdp, err, want)
			}
		}
		pins := linkIDs(t, r.tree)
		b := r.start(load.HaveTCX())
		set(b, "up0.7", config.XDPNative)
		if now := linkIDs(t, r.tree); !slices.Equal(now, pins) {
			t.Errorf("links were made anew: %v, were %v", now, pins)
		}
		expect(t, "after a restart", list(t, b), "xdp strait_xdp up0.7 true", "xdp-generic strait_xdp up1 false")
		set(b, "up0.7", config.XDPGeneric)
		set(b, "up1", config.XDPOff)
		expect(t, "other modes", list(t, b), "xdp-generic strait_xdp up0.7 true")
		set(b, "up1", config.XDPNative)
		removed, err := b.Prune(func(device string) bool { return device == "up1" })
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "no longer native", removed, "link of strait_xdp@generic on up0.7")
		if err := b.Detach("up1"); err != nil {
			t.Fatal(err)
		}
		expect(t, "nothing left", list(t, b))

		// Refused, and nothing half done: a device whose driver cannot, one with another program, an unknown mode.
		if err := b.XDP("lo", config.XDPNative); !errors.Is(err, ErrXDP) || !strings.Contains(err.Error(), "attach XDP to lo in native mode") ||
			!strings.Contains(err.Error(), "set services.xdp to generic or off") {
			t.Errorf("driver without XDP: %v", err)
		}
		alien, err := link.AttachXDP(link.XDPOptions{Program: b.programs.Program(xdpProgram), Interface: index(t, "up1"), Flags: link.XDPDriverMode})
		if err != nil {
			t.Fatal(err)
		}
		defer alien.Close()
		if err := b.XDP("up1", config.XDPNative); !errors.Is(err, ErrXDP) || !strings.Contains(err.Error(), "another XDP program") {
			t.Errorf("occupied: %v", err)
		}
		if err := b.XDP("up1", "offload"); err == nil || !strings.Contains(err.Error(), `mode "offload"`) {
			t.Errorf("unknown mode: %v", err)
		}
		if err := b.XDP("absent0", config.XDPNative); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("absent device: %v", err)
		}
		if err := b.XDP("absent0", config.XDPOff); err != nil {
			t.Errorf("off on an absent device: %v", err)
		}
		expect(t, "nothing of ours", list(t, b))
	})
}

func index(t *testing.T, device string) int {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// cgroup makes a cgroup of this test's own.
func cgroup(t *testing.T) string {
	t.Helper()
	root, err := CgroupRoot("")
	if err != nil {
		t.Skipf("no cgroup v2: %v", err)
	}
	dir, err := os.MkdirTemp(root, "strait-attach-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

func TestCgroupAcrossRestart(t *testing.T) {
	nstest.In(t, "", func() {
		r := newRig(t)
		one, other := cgroup(t), cgroup(t)
		first := r.start(load.HaveTCX())
		if err := errors.Join(first.Cgroup(one), first.Cgroup(one)); err != nil {
			t.Fatal(err)
		}
		if got := list(t, first); len(got) != 11 || got[0] != "cgroup strait_bind4  true" {
			t.Errorf("attached %q", got)
		}
		pins := linkIDs(t, r.tree)
		second := r.start(load.HaveTCX())
		if err := second.Cgroup(one); err != nil {
			t.Fatal(err)
		}
		if now := linkIDs(t, r.tree); !slices.Equal(now, pins) {
			t.Error("links were made anew on restart")
		}
		for _, at := range list(t, second) {
			if !strings.HasSuffix(at, " true") {
				t.Errorf("not updated: %s", at)
			}
		}
		// Another root: the links move.
		if err := second.Cgroup(other); err != nil {
			t.Fatal(err)
		}
		if now := linkIDs(t, r.tree); slices.Equal(now, pins) {
			t.Error("links did not move to the other cgroup")
		}
		if err := errors.Join(second.DetachCgroup(), second.DetachCgroup()); err != nil {
			t.Fatal(err)
		}
		expect(t, "detached", list(t, second))
		if err := second.Cgroup(one + "/absent"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("absent cgroup: %v", err)
		}
	})
}

// Two pods talk through the programs while an agent restarts again and again: nothing is lost.
func TestPodTrafficGoesOnAcrossRestarts(t *testing.T) {
	nsA, nsB := nstest.NetNS(t), nstest.NetNS(t)
	nstest.In(t, "", func() {
		r := newRig(t)
		a := r.start(load.HaveTCX())
		pods := []netdev.Pod{pod(nsA, 1), pod(nsB, 2)}
		for _, p := range pods {
			index, err := r.net.AddPod(p)
			if err != nil {
				t.Fatal(err)
			}
			if wrong, err := a.CheckPod(p.Device, index); err != nil || len(wrong) != 2 {
				t.Errorf("before attaching: %q, %v", wrong, err)
			}
			if err := a.AttachPod(p.Device, index); err != nil {
				t.Fatal(err)
			}
			for _, address := range p.Addresses {
				e := maps.Endpoint{Address: address, Index: uint32(index), PodMAC: p.PodMAC, HostMAC: p.HostMAC}
				if err := r.maps.PutEndpoint(e); err != nil {
					t.Fatal(err)
				}
			}
			if wrong, err := a.CheckPod(p.Device, index); err != nil || len(wrong) != 0 {
				t.Errorf("attached: %q, %v", wrong, err)
			}
		}
		// The node forwards nothing by itself: what arrives was handed over by the programs.
		var server *net.UDPConn
		var client net.Conn
		nstest.In(t, nsB, func() { server = listen(t, pods[1].Addresses[0]) })
		defer server.Close()
		nstest.In(t, nsA, func() { client = dial(t, server.LocalAddr().String()) })
		defer client.Close()
		stop, echoed := make(chan struct{}), make(chan int)
		go func() { echoed <- pingPong(t, client, server, stop) }()
		for range 10 {
			b := r.start(load.HaveTCX())
			for _, p := range pods {
				if wrong, err := b.CheckPod(p.Device, 0); err != nil || len(wrong) != 2 {
					t.Errorf("programs of the last start: %q, %v", wrong, err)
				}
				if err := b.AttachPod(p.Device, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		close(stop)
		if n := <-echoed; n < 100 {
			t.Errorf("only %d packets echoed", n)
		}
		if err := a.DetachPod(pods[0].Device); err != nil {
			t.Fatal(err)
		}
		if wrong, err := a.CheckPod(pods[0].Device, 0); err != nil || len(wrong) != 2 {
			t.Errorf("detached: %q, %v", wrong, err)
		}
		if err := errors.Join(r.net.DeleteDevice(pods[0].Device), a.DetachPod(pods[0].Device)); err != nil {
			t.Errorf("detach from a device that is gone: %v", err)
		}
	})
}

func pod(netns string, i byte) netdev.Pod {
	id := fmt.Sprint("pod", i)
	return netdev.Pod{
		NetNS: netns, IfName: "eth0", Device: netdev.PodDevice(id, "eth0"), PodMAC: netdev.MAC(id), HostMAC: netdev.MAC(id + "h"), MTU: 1500,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 7, 0, i})},
	}
}

func listen(t *testing.T, a netip.Addr) *net.UDPConn {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7000)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t *testing.T, to string) net.Conn {
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pingPong sends one packet at a time and fails on the first that does not come back within a second.
func pingPong(t *testing.T, client net.Conn, server *net.UDPConn, stop <-chan struct{}) (n int) {
	buf := make([]byte, 16)
	for {
		select {
		case <-stop:
			return n
		default:
		}
		deadline := time.Now().Add(time.Second)
		if err := errors.Join(client.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
			t.Error(err)
			return n
		}
		if _, err := client.Write([]byte("ping")); err != nil {
			t.Error(err)
			return n
		}
		_, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Errorf("packet %d did not arrive: %v", n, err)
			return n
		}
		if _, err := server.WriteToUDPAddrPort(buf[:4], from); err != nil {
			t.Error(err)
			return n
		}
		if _, err := client.Read(buf); err != nil {
			t.Errorf("answer %d did not arrive: %v", n, err)
			return n
		}
		n++
		runtime.Gosched()
	}
}
