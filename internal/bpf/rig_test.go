package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

const (
	childEnv  = "STRAIT_BPF_TEST_CHILD"
	cgroupEnv = "STRAIT_BPF_TEST_CGROUP"
)

// TestMain runs the tests in a network namespace and a cgroup of their own when it may, so that devices, routes and socket programs
// end with it and reach nobody else.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(childEnv) != "" {
		os.Exit(m.Run())
	}
	code, err := again()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run tests in a namespace:", err)
		code = 1
	}
	os.Exit(code)
}

func again() (int, error) {
	runtime.LockOSThread() // Pdeathsig follows the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if parent := ownCgroup(); parent != "" {
		group, err := os.MkdirTemp(parent, "strait-bpf-test-")
		if err != nil {
			return 1, err
		}
		defer os.Remove(group)
		dir, err := os.Open(group)
		if err != nil {
			return 1, err
		}
		defer dir.Close()
		cmd.Env = append(cmd.Env, cgroupEnv+"="+group)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// ownCgroup is this process's directory in the cgroup v2 tree, "" if none is mounted.
func ownCgroup() string {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var fs unix.Statfs_t
			if unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
				return filepath.Join(root, path)
			}
		}
	}
	return ""
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading programs and making devices needs root")
	}
}

var (
	macPod    = net.HardwareAddr{2, 0, 0, 0, 0, 0xa1} // pod A's eth0
	macHost   = net.HardwareAddr{2, 0, 0, 0, 0, 0xa0} // its end on the node
	macPodB   = net.HardwareAddr{2, 0, 0, 0, 0, 0xb1}
	macHostB  = net.HardwareAddr{2, 0, 0, 0, 0, 0xb0}
	macTunnel = net.HardwareAddr{2, 0x53, 0x54, 0x52, 0x54, 0}
	macSender = net.HardwareAddr{2, 0x53, 0x54, 0x52, 0x54, 1}
)

const (
	podBIfindex = 4000 // redirects are not followed by test runs, so no such device is needed
	vxIfindex   = 5000
	podMTU      = 1450
	portMin     = 10000
	portMax     = 29999

	actStack    = 0xffffffff // TC_ACT_UNSPEC
	actShot     = 2
	actRedirect = 7
)

// rig is one loaded datapath with the maps of the little cluster filled in.
type rig struct {
	t    testing.TB
	objs DatapathObjects
	st   int // ifindex of pod A's end on the node
	net  int // ifindex of the node's device
	mac  net.HardwareAddr
	was  map[verdict.Reason]uint64
}

func newRig(t testing.TB, network Network) *rig {
	t.Helper()
	return newRigWith(t, network, func(*ebpf.CollectionSpec, *rig) {})
}

func newRigWith(t testing.TB, network Network, change func(*ebpf.CollectionSpec, *rig)) *rig {
	t.Helper()
	needRoot(t)
	r := &rig{t: t, was: map[verdict.Reason]uint64{}}
	r.devices()
	spec := privateSpec(t)
	r.set(spec, DatapathVarCfgNetwork, network)
	r.set(spec, DatapathVarCfgPodMtu, uint32(podMTU))
	r.set(spec, DatapathVarCfgVxlanIfindex, uint32(vxIfindex))
	r.set(spec, DatapathVarCfgVxlanPort, uint16(8472))
	r.set(spec, DatapathVarCfgMasqPortMin, uint16(portMin))
	r.set(spec, DatapathVarCfgMasqPortMax, uint16(portMax))
	change(spec, r)
	if err := spec.LoadAndAssign(&r.objs, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.objs.Close() })
	for _, f := range families() {
		r.populate(f)
	}
	return r
}

// privateSpec is the datapath with small maps that are pinned nowhere.
func privateSpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		m.MaxEntries = min(m.MaxEntries, 8192)
	}
	return spec
}

func (r *rig) set(spec *ebpf.CollectionSpec, name string, value any) {
	r.t.Helper()
	if err := spec.Variables[name].Set(value); err != nil {
		r.t.Fatal(err)
	}
}

// devices makes the two devices of the node, once for the namespace.
func (r *rig) devices() {
	r.t.Helper()
	if _, err := netlink.LinkByName("net0"); err != nil {
		for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			r.check(os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0o644))
		}
		r.veth("st0", "eth0")
		r.veth("net0", "peer0")
		dev := r.link("net0")
		for _, f := range families() {
			ip := &net.IPNet{IP: f.link.Addr().AsSlice(), Mask: net.CIDRMask(f.link.Bits(), f.link.Addr().BitLen())}
			r.check(netlink.AddrAdd(dev, &netlink.Addr{IPNet: ip, Flags: 2 /* IFA_F_NODAD */}))
			r.check(netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: f.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		}
	}
	r.st = r.link("st0").Attrs().Index
	r.net, r.mac = r.link("net0").Attrs().Index, r.link("net0").Attrs().HardwareAddr
}

func (r *rig) veth(name, peer string) {
	r.t.Helper()
	r.check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	r.check(netlink.LinkSetUp(r.link(name)))
	r.check(netlink.LinkSetUp(r.link(peer)))
}

func (r *rig) link(name string) netlink.Link {
	r.t.Helper()
	l, err := netlink.LinkByName(name)
	r.check(err)
	return l
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) populate(f family) {
	r.t.Helper()
	pods := []struct {
		ip        netip.Addr
		ifindex   int
		pod, host net.HardwareAddr
	}{{f.podA, r.st, macPod, macHost}, {f.podB, podBIfindex, macPodB, macHostB}}
	for _, p := range pods {
		e := Endpoint{Ifindex: uint32(p.ifindex)}
		copy(e.PodMac[:], p.pod)
		copy(e.HostMac[:], p.host)
		r.check(r.objs.StraitEndpoint.Put(AddrFrom(p.ip), e))
	}
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	tunnel := Remote{Flags: RemotePod | RemoteTunnel, Node: AddrFrom(f.tunnelNode), NodeId: 1}
	native := Remote{Flags: RemotePod, Node: AddrFrom(f.nativeNode), Ifindex: uint32(r.net), NodeId: 2}
	tunnelNode, nativeNode := tunnel, native
	tunnelNode.Flags, nativeNode.Flags = RemoteNode|RemoteTunnel, RemoteNode
	for p, row := range map[netip.Prefix]Remote{
		host(f.node): {Flags: RemoteHost}, f.podCIDR: {Flags: RemotePod},
		f.tunnelCIDR: tunnel, host(f.tunnelNode): tunnelNode,
		f.nativeCIDR: native, host(f.nativeNode): nativeNode,
		host(f.apiserver): {Flags: RemoteAPIServer},
	} {
		r.check(r.objs.StraitIpcache.Put(IpcacheKeyFrom(p), row))
	}
	var d Device
	key := uint32(r.net)
	_ = r.objs.StraitDevice.Lookup(key, &d)
	d.Mtu = 1500
	if f.v6 {
		d.Addr6 = AddrFrom(f.node)
	} else {
		d.Addr4 = AddrFrom(f.node)
	}
	r.check(r.objs.StraitDevice.Put(key, d))
}

// context is the part of struct __sk_buff that a test run takes and gives.
type context struct {
	_              [36]byte
	IngressIfindex uint32
	Ifindex        uint32
	_              [132]byte
	GsoSize        uint32
	_              [12]byte
}

// step is one packet through one program.
type step struct {
	what   string
	prog   *ebpf.Program
	in     []byte
	gso    uint32
	act    uint32
	reason verdict.Reason
	out    []byte // nil: as it came in
}

func (r *rig) ifindex(p *ebpf.Program) int {
	switch p {
	case r.objs.StraitFromNet, r.objs.StraitToNet:
		return r.net
	case r.objs.StraitFromVx, r.objs.StraitToVx:
		return 1 // stands for strait_vxlan
	}
	return r.st
}

func (r *rig) run(s step) (uint32, []byte) {
	r.t.Helper()
	ctx := context{Ifindex: uint32(r.ifindex(s.prog)), GsoSize: s.gso}
	opts := ebpf.RunOptions{Data: s.in, DataOut: make([]byte, len(s.in)+256), Context: ctx, ContextOut: make([]byte, 192)}
	act, err := s.prog.Run(&opts)
	if err != nil {
		r.t.Fatalf("%s: %v", s.what, err)
	}
	return act, opts.DataOut
}

// do runs steps in order, on the same maps.
func (r *rig) do(steps ...step) {
	r.t.Helper()
	for _, s := range steps {
		act, out := r.run(s)
		if got := r.reason(); act != s.act || got != s.reason {
			r.t.Errorf("%s: verdict %d (%s), want %d (%s)", s.what, int32(act), got, int32(s.act), s.reason)
			continue
		}
		want := s.out
		if want == nil {
			want = s.in
		}
		if !bytes.Equal(out, want) {
			r.t.Errorf("%s: packet out (-want +got):\n%s", s.what, cmp.Diff(layersOf(want), layersOf(out)))
		}
	}
}

// reason is the one under which the packet since the last call was counted.
func (r *rig) reason() verdict.Reason {
	r.t.Helper()
	found := verdict.Unknown
	for _, reason := range verdict.All() {
		var perCPU []Counter
		r.check(r.objs.StraitCounter.Lookup(uint32(reason), &perCPU))
		var sum uint64
		for _, c := range perCPU {
			sum += c.Packets
		}
		if sum != r.was[reason] {
			if sum != r.was[reason]+1 || found != verdict.Unknown {
				r.t.Errorf("counted under %s: %d times, want one packet under one reason", reason, sum-r.was[reason])
			}
			found = reason
		}
		r.was[reason] = sum
	}
	return found
}

// layersOf names a frame's layers and ends with all bytes, for people to compare.
func layersOf(frame []byte) []string {
	var s []string
	for _, l := range gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).Layers() {
		s = append(s, gopacket.LayerString(l))
	}
	return append(s, fmt.Sprintf("%x", frame))
}

// connection finds the entry of the tuple in either order.
func (r *rig) connection(a, b netip.AddrPort, proto layers.IPProtocol) *CtEntry {
	r.t.Helper()
	lo, hi := a, b
	if b.Addr().Compare(a.Addr()) < 0 {
		lo, hi = b, a
	}
	key := CtKey{Lo: AddrFrom(lo.Addr()), Hi: AddrFrom(hi.Addr()), LoPort: NetPort(lo.Port()), HiPort: NetPort(hi.Port()), Proto: uint8(proto)}
	var e CtEntry
	if err := r.objs.StraitCt.Lookup(key, &e); err != nil {
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			r.t.Fatal(err)
		}
		return nil
	}
	return &e
}

func (r *rig) entries(m *ebpf.Map) int {
	r.t.Helper()
	var k, v []byte
	n := 0
	it := m.Iterate()
	for it.Next(&k, &v) {
		n++
	}
	r.check(it.Err())
	return n
}

// macs is what a packet handed to pod B, or the tunnel, has in front.
func withMACs(s skb, dst, src net.HardwareAddr) skb {
	s.macs = [2]net.HardwareAddr{dst, src}
	return s
}

// hop is the packet one routed hop further.
func (s skb) hop() skb {
	if s.ttl == 0 {
		s.ttl = 64
	}
	s.ttl--
	return s
}
