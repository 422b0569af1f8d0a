package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Pod is the attachment of one pod: a veth pair, the pod's addresses and default routes, and the node's routes to it.
type Pod struct {
	NetNS     string // path of the pod's network namespace
	IfName    string // name of the pod's end
	Device    string // name of the node's end
	PodMAC    net.HardwareAddr
	HostMAC   net.HardwareAddr
	MTU       int          // of both ends
	Addresses []netip.Addr // of the pod
	// Sources are the node's own addresses that its stack prefers towards the pod, at most one per family. They must be
	// assigned to a device of the node. Without one the kernel chooses.
	Sources []netip.Addr
	// Guard is called with the index of the node's end before anything can pass it, for the programs that judge what does. nil: nobody does.
	Guard func(index int) error
}

// AddPod makes the attachment; all of it works when it returns. It removes what it made when it fails. The index is that of
// the node's end. A device of the node with the same name is a leftover of the same attachment and is replaced.
func (n *Net) AddPod(p Pod) (index int, err error) {
	n, done, err := n.borrow()
	if err != nil {
		return 0, err
	}
	defer done()
	ns, err := OpenAt(p.NetNS)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	host, err := n.makePair(p, ns)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.DeleteDevice(p.Device))
		}
	}()
	if p.Guard != nil {
		if err := p.Guard(host.Attrs().Index); err != nil {
			return 0, err
		}
	}
	if err := ns.setUpPodEnd(p, host.Attrs().ParentIndex); err != nil {
		return 0, fmt.Errorf("set up %s in %s: %w", p.IfName, p.NetNS, err)
	}
	if err := n.setUpNodeEnd(p, host); err != nil {
		return 0, fmt.Errorf("set up %s: %w", p.Device, err)
	}
	if _, err := ns.Index(p.IfName); err != nil {
		return 0, err
	}
	return host.Attrs().Index, nil
}

// makePair creates both ends with names, addresses and MTU in one message. Both are down.
//
// The pod's end comes up first, then the node's. The kernel lets an end send as soon as it has come up with the other one up already,
// but the end that was first only when its link watch has run, some time later (commit facd15dfd691). A node that can reach the pod
// when ADD returns matters more than a pod, which has no process yet; on kernels with that commit a look at the pod's end waits for it.
func (n *Net) makePair(p Pod, ns *Net) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.Device
	attrs.MTU = p.MTU
	attrs.HardwareAddr = p.HostMAC
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // the kernel's default is one per possible CPU, of which it uses one
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         p.IfName,
		PeerHardwareAddr: p.PodMAC,
		PeerNamespace:    netlink.NsFd(ns.ns),
		PeerTxQLen:       -1,
	}
	err := n.h.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if _, taken := ns.link(p.IfName); taken == nil {
			if _, own := n.link(p.Device); own != nil {
				return nil, fmt.Errorf("create %s in %s: the pod has an interface of that name: %w", p.IfName, p.NetNS, os.ErrExist)
			}
		}
		if err := n.DeleteDevice(p.Device); err != nil {
			return nil, err
		}
		err = n.h.LinkAdd(veth)
	}
	if err != nil {
		return nil, fmt.Errorf("create veth pair %s and %s in %s: %w", p.Device, p.IfName, p.NetNS, err)
	}
	host, err := n.link(p.Device)
	if err == nil {
		err = n.configure(host.Attrs().Index)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", p.Device, err), n.DeleteDevice(p.Device))
	}
	return host, nil
}

func (n *Net) setUpPodEnd(p Pod, index int) error {
	if err := n.configure(index); err != nil {
		return fmt.Errorf("turn off link-local addresses: %w", err)
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: index, Name: p.IfName}}
	if err := n.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	families := map[bool]bool{}
	for _, a := range p.Addresses {
		families[a.Is6()] = true
		if err := n.addPodAddress(p, index, a); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	for v6 := range families {
		gateway := Gateway(v6)
		if err := n.h.NeighSet(neighbour(index, gateway, p.HostMAC)); err != nil {
			return fmt.Errorf("add neighbour %s: %w", gateway, err)
		}
		if err := n.h.RouteAdd(podDefaultRoute(index, v6)); err != nil {
			return fmt.Errorf("add default route via %s: %w", gateway, err)
		}
	}
	return nil
}

// addPodAddress adds an address that is usable at once: there is nobody on the link who could have the same.
func (n *Net) addPodAddress(p Pod, index int, a netip.Addr) error {
	entry := &netlink.Addr{IPNet: hostNet(a), LinkIndex: index}
	if a.Is6() {
		entry.Flags = unix.IFA_F_NODAD
	}
	err := n.h.AddrAdd(nil, entry)
	if a.Is6() && errors.Is(err, unix.EACCES) { // net.ipv6.conf.*.disable_ipv6 in the pod, set by some runtimes
		if err := inNamespace(n.ns, func() error { return writeSysctl("net/ipv6/conf/"+p.IfName+"/disable_ipv6", "0") }); err != nil {
			return err
		}
		err = n.h.AddrAdd(nil, entry)
	}
	return err
}

// SetPodMTU gives both ends of an attachment p.MTU. The pod's end goes first when packets get smaller and last when they may
// grow, so that the node's end never refuses what the pod was allowed to send.
func (n *Net) SetPodMTU(p Pod) error {
	ns, err := OpenAt(p.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	host, err := n.link(p.Device)
	if err != nil {
		return err
	}
	pod, err := ns.link(p.IfName)
	if err != nil {
		return fmt.Errorf("in %s: %w", p.NetNS, err)
	}
	steps := []struct {
		in   *Net
		link netlink.Link
	}{{n, host}, {ns, pod}}
	if p.MTU < host.Attrs().MTU {
		slices.Reverse(steps)
	}
	for _, s := range steps {
		if s.link.Attrs().MTU == p.MTU {
			continue
		}
		if err := s.in.h.LinkSetMTU(s.link, p.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", s.link.Attrs().Name, p.MTU, err)
		}
	}
	return nil
}

func (n *Net) setUpNodeEnd(p Pod, link netlink.Link) error {
	index := link.Attrs().Index
	if err := n.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, a := range p.Addresses {
		if err := n.h.NeighSet(neighbour(index, a, p.PodMAC)); err != nil {
			return fmt.Errorf("add neighbour %s: %w", a, err)
		}
		if err := n.h.RouteReplace(nodeRouteToPod(p, index, a)); err != nil {
			return fmt.Errorf("add route to %s: %w", a, err)
		}
	}
	return nil
}

func neighbour(index int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

func podDefaultRoute(index int, v6 bool) *netlink.Route {
	zero := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		zero = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{
		LinkIndex: index,
		Dst:       ipNet(zero),
		Gw:        Gateway(v6).AsSlice(),
		Flags:     int(netlink.FLAG_ONLINK),
	}
}

func nodeRouteToPod(p Pod, index int, a netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: hostNet(a), Protocol: PodRouteProtocol}
	if a.Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if s := p.source(a.Is6()); s.IsValid() {
		r.Src = s.AsSlice()
	}
	return r
}

func (p Pod) source(v6 bool) netip.Addr {
	for _, s := range p.Sources {
		if s.Is6() == v6 {
			return s
		}
	}
	return netip.Addr{}
}

// Per-device settings of the kernel, include/uapi/linux/{if_link,ip}.h.
const (
	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	iflaInetConf    = 1 // IFLA_INET_CONF
	devconfRPFilter = 8 // IPV4_DEVCONF_RP_FILTER
	rpFilterLoose   = 2
)

// configure turns off IPv6 link-local addresses and makes the source check loose (the stricter one of "all" loses against it). The
// device must be down for the former to be in time.
func (n *Net) configure(index int) error {
	err := n.setLink(index, true)
	if errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6 on this device, so no link-local address either
		err = n.setLink(index, false)
	}
	return err
}

func (n *Net) setLink(index int, inet6 bool) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = n.nl
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(iflaInetConf, nil)
	conf.AddRtAttr(devconfRPFilter, nl.Uint32Attr(rpFilterLoose))
	if inet6 {
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(addrGenModeNone))
	}
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// NetNSCookie returns the kernel's name of the network namespace at a path, which no other one ever gets. The error matches
// os.ErrNotExist when there is none.
func (n *Net) NetNSCookie(path string) (uint64, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	return cookieOf(ns, path)
}

// OwnNetNSCookie returns that of the namespace itself.
func (n *Net) OwnNetNSCookie() (uint64, error) { return cookieOf(n.ns, "of the node") }

func cookieOf(ns netns.NsHandle, name string) (uint64, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("network namespace %s: open netlink: %w", name, err)
	}
	defer s.Close()
	cookie, err := unix.GetsockoptUint64(s.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace %s: get its cookie: %w", name, err)
	}
	return cookie, nil
}

// inNamespace runs fn on a thread inside ns. It is for what netlink cannot do.
func inNamespace(ns netns.NsHandle, fn func() error) error {
	done := make(chan error, 1)
	Throwaway(func() {
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	})
	return <-done
}
