package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Difference is one way in which a pod's attachment is not what it should be.
type Difference struct {
	What string `json:"what"` // "MTU of eth0"
	Want string `json:"want"`
	Have string `json:"have"` // "" when it is missing
}

// String returns "MTU of eth0 is 1400, want 1450" or "address 10.0.0.1 of eth0 is missing".
func (d Difference) String() string {
	if d.Have == "" {
		return fmt.Sprintf("%s is missing, want %s", d.What, d.Want)
	}
	return fmt.Sprintf("%s is %s, want %s", d.What, d.Have, d.Want)
}

// CheckPod compares the attachment with what AddPod made. What it cannot look at is an error; a missing network namespace
// is one that matches os.ErrNotExist.
func (n *Net) CheckPod(p Pod) ([]Difference, error) {
	ns, err := OpenAt(p.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	c := checker{pod: p}
	host := c.device(n, p.Device, p.HostMAC)
	pod := c.device(ns, p.IfName, p.PodMAC)
	if host != nil && pod != nil && host.ParentIndex != pod.Index {
		c.add("other end of "+p.Device, fmt.Sprintf("%s (index %d)", p.IfName, pod.Index), fmt.Sprintf("index %d", host.ParentIndex))
	}
	if host != nil {
		c.nodeEnd(n, host.Index)
	}
	if pod != nil {
		c.podEnd(ns, pod.Index)
	}
	return c.found, errors.Join(c.errs...)
}

type checker struct {
	pod   Pod
	found []Difference
	errs  []error
}

func (c *checker) add(what, want, have string) {
	c.found = append(c.found, Difference{What: what, Want: want, Have: have})
}

func (c *checker) device(n *Net, name string, mac net.HardwareAddr) *netlink.LinkAttrs {
	link, err := n.link(name)
	if errors.Is(err, os.ErrNotExist) {
		c.add("interface "+name, "veth", "")
		return nil
	}
	if err != nil {
		c.errs = append(c.errs, err)
		return nil
	}
	a := link.Attrs()
	if link.Type() != "veth" {
		c.add("type of "+name, "veth", link.Type())
	}
	if !bytes.Equal(a.HardwareAddr, mac) {
		c.add("MAC of "+name, mac.String(), a.HardwareAddr.String())
	}
	if a.MTU != c.pod.MTU {
		c.add("MTU of "+name, fmt.Sprint(c.pod.MTU), fmt.Sprint(a.MTU))
	}
	if a.RawFlags&unix.IFF_UP == 0 {
		c.add("state of "+name, "up", "down")
	}
	return a
}

func (c *checker) podEnd(ns *Net, index int) {
	name := c.pod.IfName
	have, err := ns.addresses(index)
	if err != nil {
		c.errs = append(c.errs, err)
		return
	}
	families := map[bool]bool{}
	for _, a := range c.pod.Addresses {
		families[a.Is6()] = true
		if !have[netip.PrefixFrom(a, a.BitLen())] {
			c.add("address of "+name, netip.PrefixFrom(a, a.BitLen()).String(), "")
		}
	}
	for v6 := range families {
		gateway := Gateway(v6)
		c.neighbour(ns, name, index, gateway, c.pod.HostMAC)
		want := podDefaultRoute(index, v6)
		c.route(ns, want, func(r netlink.Route) bool { return r.LinkIndex == index && addr(r.Gw) == gateway },
			fmt.Sprintf("default route of %s", name), fmt.Sprintf("via %s dev %s", gateway, name))
	}
}

func (c *checker) nodeEnd(n *Net, index int) {
	for _, a := range c.pod.Addresses {
		c.neighbour(n, c.pod.Device, index, a, c.pod.PodMAC)
		c.route(n, nodeRouteToPod(c.pod, index, a), func(r netlink.Route) bool { return r.LinkIndex == index },
			fmt.Sprintf("node's route to %s", a), "dev "+c.pod.Device)
	}
}

func (c *checker) neighbour(n *Net, device string, index int, a netip.Addr, mac net.HardwareAddr) {
	family := neighbour(index, a, mac).Family
	list, err := dump(func() ([]netlink.Neigh, error) { return n.h.NeighList(index, family) })
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("list neighbours of %s: %w", device, err))
		return
	}
	what, want := fmt.Sprintf("neighbour %s on %s", a, device), mac.String()+" permanent"
	for _, have := range list {
		if addr(have.IP) != a {
			continue
		}
		if !bytes.Equal(have.HardwareAddr, mac) || have.State&netlink.NUD_PERMANENT == 0 {
			c.add(what, want, fmt.Sprintf("%s state 0x%x", have.HardwareAddr, have.State))
		}
		return
	}
	c.add(what, want, "")
}

func (c *checker) route(n *Net, want *netlink.Route, match func(netlink.Route) bool, what, text string) {
	family := familyOf(prefix(want.Dst))
	have, err := dump(func() ([]netlink.Route, error) {
		return n.h.RouteListFiltered(family, &netlink.Route{Dst: want.Dst, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("list routes: %w", err))
		return
	}
	for _, r := range have {
		if match(r) {
			return
		}
	}
	if len(have) > 0 {
		c.add(what, text, have[0].String())
		return
	}
	c.add(what, text, "")
}

func (n *Net) addresses(index int) (map[netip.Prefix]bool, error) {
	list, err := dump(func() ([]netlink.Addr, error) {
		return n.h.AddrList(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: index}}, unix.AF_UNSPEC)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make(map[netip.Prefix]bool, len(list))
	for _, a := range list {
		out[prefix(a.IPNet)] = true
	}
	return out, nil
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
