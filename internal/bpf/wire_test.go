package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/verdict"
)

// cluster is two nodes with pods and an outside, each a network namespace, on one link. The programs run where they run in life:
// on veth pairs, on the nodes' devices and on collect-metadata tunnel devices.
//
//	podA1 podA2   podB1         world: 203.0.113.7, 2001:db8:ffff::7
//	   \   |        |             |
//	   node A     node B        router
//	     \__________\___ link ___/
type cluster struct {
	t     testing.TB
	world netns.NsHandle
	nodes [2]*wireNode
}

type wireNode struct {
	name string
	ns   netns.NsHandle
	rig  *rig
	pods []netns.NsHandle
}

// where things are, by family; n is the node, i the pod.
func nodeIP(n int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", n+10))
	}
	return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n+10))
}

func podIP(n, i int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", n+1, i+2))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", n+1, i+2))
}

func podCIDR(n int, v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(podIP(n, 0, v6), 64).Masked()
	}
	return netip.PrefixFrom(podIP(n, 0, v6), 24).Masked()
}

func worldIP(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:ffff::7")
	}
	return netip.MustParseAddr("203.0.113.7")
}

func routerIP(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:1::1")
	}
	return netip.MustParseAddr("192.0.2.1")
}

func podGateway(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.MustParseAddr("169.254.1.1")
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// within runs f in a namespace; sockets and file descriptors that it opens stay there.
func within(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread is lost
		}
	}()
	f()
}

func (c *cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) namespace() netns.NsHandle {
	c.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	c.check(err)
	defer home.Close()
	ns, err := netns.New()
	c.check(err)
	c.check(c.up("lo"))
	c.check(netns.Set(home))
	c.t.Cleanup(func() { ns.Close() })
	return ns
}

func (c *cluster) up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// pair makes a veth pair between two namespaces.
func (c *cluster) pair(a netns.NsHandle, nameA string, b netns.NsHandle, nameB string, mtu int) {
	c.t.Helper()
	within(c.t, a, func() {
		c.check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA, MTU: mtu}, PeerName: nameB, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b)}))
		c.check(c.up(nameA))
	})
	within(c.t, b, func() { c.check(c.up(nameB)) })
}

func (c *cluster) address(name string, p netip.Prefix) {
	c.t.Helper()
	l, err := netlink.LinkByName(name)
	c.check(err)
	c.check(netlink.AddrAdd(l, &netlink.Addr{IPNet: ipnet(p), Flags: unix.IFA_F_NODAD}))
}

func (c *cluster) route(to netip.Prefix, dev string, via netip.Addr) {
	c.t.Helper()
	l, err := netlink.LinkByName(dev)
	c.check(err)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(to)}
	if via.IsValid() {
		r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	c.check(netlink.RouteReplace(r))
}

func (c *cluster) forwarding() {
	c.t.Helper()
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		c.check(os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0o644))
	}
}

func newCluster(t testing.TB, tunnel bool, network Network) *cluster {
	t.Helper()
	needRoot(t)
	c := &cluster{t: t}
	c.world = c.namespace()
	within(t, c.world, func() {
		c.forwarding()
		c.check(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
		c.check(c.up("br0"))
		for _, v6 := range []bool{false, true} {
			c.address("br0", netip.PrefixFrom(routerIP(v6), map[bool]int{false: 24, true: 64}[v6]))
			c.address("lo", host(worldIP(v6)))
		}
	})
	for n := range c.nodes {
		c.nodes[n] = c.node(n, network)
	}
	for n := range c.nodes {
		for i := range 2 {
			c.pod(n, i)
		}
		c.routes(n, 1-n, tunnel)
	}
	return c
}

// node makes a node: its namespace, device, tunnel device and programs.
func (c *cluster) node(n int, network Network) *wireNode {
	c.t.Helper()
	node := &wireNode{name: string(rune('A' + n)), ns: c.namespace()}
	uplink := "node" + node.name
	c.pair(c.world, uplink, node.ns, "eth0", 1500)
	within(c.t, c.world, func() {
		br, err := netlink.LinkByName("br0")
		c.check(err)
		l, err := netlink.LinkByName(uplink)
		c.check(err)
		c.check(netlink.LinkSetMaster(l, br))
	})
	within(c.t, node.ns, func() {
		c.forwarding()
		for _, v6 := range []bool{false, true} {
			c.address("eth0", netip.PrefixFrom(nodeIP(n, v6), map[bool]int{false: 24, true: 64}[v6]))
			everything := netip.PrefixFrom(map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[v6], 0)
			c.route(everything, "eth0", routerIP(v6))
			c.check(netlink.RouteAdd(&netlink.Route{Dst: ipnet(podCIDR(n, v6)), Type: unix.RTN_UNREACHABLE}))
		}
		// No UDP checksum on IPv4, as the tunnel key says; VNI and port are those of the datapath.
		c.check(netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "strait_vxlan", HardwareAddr: macTunnel, MTU: podMTU, Flags: 0}, FlowBased: true, Port: 8472}))
		vx := c.index("strait_vxlan")
		l, err := netlink.LinkByName("strait_vxlan")
		c.check(err)
		c.check(netlink.LinkSetARPOff(l))
		c.check(c.up("strait_vxlan"))
		node.rig = c.load(network, vx)
		node.rig.st, node.rig.net = 0, c.index("eth0")
		o := &node.rig.objs
		c.attach("eth0", o.StraitFromNet, ebpf.AttachTCXIngress)
		c.attach("eth0", o.StraitToNet, ebpf.AttachTCXEgress)
		c.attach("strait_vxlan", o.StraitFromVx, ebpf.AttachTCXIngress)
		c.attach("strait_vxlan", o.StraitToVx, ebpf.AttachTCXEgress)
		c.check(o.StraitDevice.Put(uint32(c.index("eth0")), Device{Mtu: 1500, Addr4: AddrFrom(nodeIP(n, false)), Addr6: AddrFrom(nodeIP(n, true))}))
	})
	return node
}

func (c *cluster) index(name string) int {
	c.t.Helper()
	l, err := netlink.LinkByName(name)
	c.check(err)
	return l.Attrs().Index
}

func (c *cluster) load(network Network, vx int) *rig {
	c.t.Helper()
	r := &rig{t: c.t, was: map[verdict.Reason]uint64{}}
	spec := privateSpec(c.t)
	r.set(spec, DatapathVarCfgNetwork, network)
	r.set(spec, DatapathVarCfgPodMtu, uint32(podMTU))
	r.set(spec, DatapathVarCfgVxlanIfindex, uint32(vx))
	r.set(spec, DatapathVarCfgMasqPortMin, uint16(portMin))
	r.set(spec, DatapathVarCfgMasqPortMax, uint16(portMax))
	r.set(spec, DatapathVarCfgServices, ServicesOn)
	r.set(spec, DatapathVarCfgEvents, true)
	c.check(spec.LoadAndAssign(&r.objs, nil))
	c.t.Cleanup(func() { r.objs.Close() })
	return r
}

func (c *cluster) attach(dev string, p *ebpf.Program, at ebpf.AttachType) {
	c.t.Helper()
	l, err := link.AttachTCX(link.TCXOptions{Interface: c.index(dev), Program: p, Attach: at})
	c.check(err)
	c.t.Cleanup(func() { l.Close() })
}

// pod makes a pod as the CNI does: host addresses, one gateway, permanent neighbours at both ends.
func (c *cluster) pod(n, i int) {
	c.t.Helper()
	node := c.nodes[n]
	ns := c.namespace()
	dev := fmt.Sprintf("st%d", i)
	c.pair(node.ns, dev, ns, "eth0", podMTU)
	var outer, inner net.HardwareAddr
	within(c.t, node.ns, func() { outer = c.mac(dev) })
	within(c.t, ns, func() {
		inner = c.mac("eth0")
		for _, v6 := range []bool{false, true} {
			c.address("eth0", host(podIP(n, i, v6)))
			c.neighbour("eth0", podGateway(v6), outer)
			everything := netip.PrefixFrom(map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[v6], 0)
			c.route(everything, "eth0", podGateway(v6))
		}
	})
	within(c.t, node.ns, func() {
		o := &node.rig.objs
		for _, v6 := range []bool{false, true} {
			ip := podIP(n, i, v6)
			c.neighbour(dev, ip, inner)
			c.route(host(ip), dev, netip.Addr{})
			e := Endpoint{Ifindex: uint32(c.index(dev))}
			copy(e.PodMac[:], inner)
			copy(e.HostMac[:], outer)
			c.check(o.StraitEndpoint.Put(AddrFrom(ip), e))
		}
		c.attach(dev, o.StraitFromPod, ebpf.AttachTCXIngress)
		c.attach(dev, o.StraitToPod, ebpf.AttachTCXEgress)
	})
	node.pods = append(node.pods, ns)
}

func (c *cluster) mac(dev string) net.HardwareAddr {
	c.t.Helper()
	l, err := netlink.LinkByName(dev)
	c.check(err)
	return l.Attrs().HardwareAddr
}

func (c *cluster) neighbour(dev string, ip netip.Addr, mac net.HardwareAddr) {
	c.t.Helper()
	c.check(netlink.NeighSet(&netlink.Neigh{LinkIndex: c.index(dev), IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}))
}

// routes tells node n about itself and about the other one: ipcache and the stack's own routes.
func (c *cluster) routes(n, other int, tunnel bool) {
	c.t.Helper()
	o := &c.nodes[n].rig.objs
	for _, v6 := range []bool{false, true} {
		row := Remote{Flags: RemotePod, Node: AddrFrom(nodeIP(other, v6)), Ifindex: uint32(c.nodes[n].rig.net), NodeId: 1}
		if tunnel {
			row = Remote{Flags: RemotePod | RemoteTunnel, Node: AddrFrom(nodeIP(other, false)), NodeId: 1}
		}
		node := row
		node.Flags = node.Flags&^RemotePod | RemoteNode
		c.check(o.StraitIpcache.Put(IpcacheKeyFrom(host(nodeIP(n, v6))), Remote{Flags: RemoteHost}))
		c.check(o.StraitIpcache.Put(IpcacheKeyFrom(podCIDR(n, v6)), Remote{Flags: RemotePod}))
		c.check(o.StraitIpcache.Put(IpcacheKeyFrom(podCIDR(other, v6)), row))
		c.check(o.StraitIpcache.Put(IpcacheKeyFrom(host(nodeIP(other, v6))), node))
		within(c.t, c.nodes[n].ns, func() {
			if !tunnel {
				c.route(podCIDR(other, v6), "eth0", nodeIP(other, v6))
				return
			}
			l, err := netlink.LinkByName("strait_vxlan")
			c.check(err)
			c.check(netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(podCIDR(other, v6)),
				Src: nodeIP(n, v6).AsSlice(), Scope: netlink.SCOPE_LINK}))
		})
	}
}
