// Package network wires the namespaces of a lab together: bridge, veth pairs, addresses, routes.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/namespace"
)

const bridge = "br0"

// Uplink is the name every machine of the lab gives its link to the underlay.
const Uplink = "eth0"

// Underlay makes the bridge in its namespace.
func Underlay(ns *namespace.Net) error {
	return ns.Do(func() error {
		// br_netfilter would send frames through the namespace's iptables; the file exists only where it is loaded.
		for _, family := range []string{"iptables", "ip6tables", "arptables"} {
			err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+family, []byte("0"), 0o644)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("keep bridged frames out of %s: %w", family, err)
			}
		}
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return netlink.LinkSetUp(link)
	})
}

// Port is one end of a link to be made.
type Port struct {
	Net    *namespace.Net
	Device string
	Addrs  []netip.Prefix
	MAC    net.HardwareAddr // nil: the kernel invents one
}

// Plug connects a machine to the underlay's bridge; name is the bridge port's.
func Plug(underlay *namespace.Net, name string, p Port) error {
	err := underlay.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: name},
			PeerName:      p.Device,
			PeerNamespace: netlink.NsFd(p.Net.Fd()),

			PeerHardwareAddr: p.MAC,
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("add link %s: %w", name, err)
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(pair, master); err != nil {
			return fmt.Errorf("plug %s into the bridge: %w", name, err)
		}
		return netlink.LinkSetUp(pair)
	})
	if err != nil {
		return err
	}
	return configure(p)
}

// Unplug removes a bridge port that a dead machine left behind; a missing one is fine.
func Unplug(underlay *namespace.Net, name string) error {
	return underlay.Do(func() error {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// Connect joins two namespaces by a pair.
func Connect(a, b Port) error {
	err := a.Net.Do(func() error {
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: a.Device},
			PeerName:      b.Device,
			PeerNamespace: netlink.NsFd(b.Net.Fd()),
		}
		return netlink.LinkAdd(pair)
	})
	if err != nil {
		return fmt.Errorf("connect %s and %s: %w", a.Net.Name, b.Net.Name, err)
	}
	return errors.Join(configure(a), configure(b))
}

// configure sets the machine's loopback and link up and gives the link its addresses.
func configure(p Port) error {
	err := p.Net.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		link, err := netlink.LinkByName(p.Device)
		if err != nil {
			return err
		}
		for _, a := range p.Addrs {
			address := &netlink.Addr{IPNet: ipNet(a)}
			if a.Addr().Is6() {
				address.Flags = unix.IFA_F_NODAD // usable at once: the lab knows that it is unique
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return fmt.Errorf("add %s to %s: %w", a, p.Device, err)
			}
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", p.Net.Name, err)
	}
	return nil
}

// DefaultRoutes sends everything else to the gateways.
func DefaultRoutes(ns *namespace.Net, gateways []netip.Addr) error {
	for _, g := range gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := Route(ns, all, g); err != nil {
			return err
		}
	}
	return nil
}

// Route sets the route of a prefix.
func Route(ns *namespace.Net, to netip.Prefix, via netip.Addr) error {
	err := ns.Do(func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: net.IP(via.AsSlice())})
	})
	if err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", to, via, ns.Name, err)
	}
	return nil
}

// Forward makes a namespace a router.
func Forward(ns *namespace.Net) error {
	return ns.Do(func() error {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0o644); err != nil {
				return fmt.Errorf("enable forwarding in %s: %w", ns.Name, err)
			}
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
