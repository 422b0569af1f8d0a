package netdev

import (
	"bytes"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VXLANMAC returns the address of the tunnel device, the same on every node: the neighbour layer of a NOARP device takes the
// device's own address for everybody's, so packets of the node's stack arrive with the right one without any entry.
func VXLANMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x54, 0x52, 0x54, 0x00} }

// VXLAN is the tunnel device. Where a packet goes is decided per packet by the datapath (collect metadata).
type VXLAN struct {
	Port uint16 // UDP, of both ends
	MTU  int    // of packets inside; 0: not known, left as it is
}

// EnsureVXLAN makes the tunnel device as described and returns its index and what it had to change. Attributes that can be
// changed are changed; else the device is made anew, which removes its routes and programs.
func (n *Net) EnsureVXLAN(v VXLAN) (index int, changed []string, err error) {
	link, err := n.link(VXLANDevice)
	if err == nil {
		if wrong := v.fixedDifferences(link); len(wrong) > 0 {
			if err := n.DeleteDevice(VXLANDevice); err != nil {
				return 0, nil, err
			}
			changed = append(wrong, "made anew")
			link = nil
		}
	}
	if link == nil {
		if changed == nil {
			changed = []string{"created"}
		}
		if link, err = n.createVXLAN(v); err != nil {
			return 0, nil, err
		}
	}
	more, err := n.adjustVXLAN(v, link)
	if err != nil {
		return 0, nil, err
	}
	return link.Attrs().Index, append(changed, more...), nil
}

func (n *Net) createVXLAN(v VXLAN) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = VXLANDevice
	attrs.MTU = v.MTU
	attrs.HardwareAddr = VXLANMAC()
	device := &netlink.Vxlan{
		LinkAttrs: attrs,
		FlowBased: true,
		Port:      int(v.Port),
		// Outer checksums: the inner packet has its own. On IPv6 zero must be accepted explicitly (RFC 6935).
		UDP6ZeroCSumTx: true,
		UDP6ZeroCSumRx: true,
	}
	if err := n.h.LinkAdd(device); err != nil {
		return nil, fmt.Errorf("create device %s with UDP port %d: %w", VXLANDevice, v.Port, err)
	}
	return n.link(VXLANDevice)
}

// fixedDifferences describes what the kernel cannot change on a living device.
func (v VXLAN) fixedDifferences(link netlink.Link) []string {
	have, ok := link.(*netlink.Vxlan)
	if !ok {
		return []string{"type " + link.Type() + ", want vxlan"}
	}
	var wrong []string
	if !have.FlowBased {
		wrong = append(wrong, "not in collect-metadata mode")
	}
	if have.Port != int(v.Port) {
		wrong = append(wrong, fmt.Sprintf("UDP port %d, want %d", have.Port, v.Port))
	}
	return wrong
}

// adjustVXLAN sets what can be changed, in the order in which nothing goes out with a wrong setting.
func (n *Net) adjustVXLAN(v VXLAN, link netlink.Link) (changed []string, err error) {
	have := link.Attrs()
	fail := func(what string, err error) ([]string, error) {
		return nil, fmt.Errorf("set %s of device %s: %w", what, VXLANDevice, err)
	}
	if v.MTU != 0 && have.MTU != v.MTU {
		if err := n.h.LinkSetMTU(link, v.MTU); err != nil {
			return fail(fmt.Sprintf("MTU %d", v.MTU), err)
		}
		changed = append(changed, fmt.Sprintf("MTU %d, want %d", have.MTU, v.MTU))
	}
	if !bytes.Equal(have.HardwareAddr, VXLANMAC()) {
		if err := n.h.LinkSetHardwareAddr(link, VXLANMAC()); err != nil {
			return fail("address", err)
		}
		changed = append(changed, fmt.Sprintf("MAC %s, want %s", have.HardwareAddr, VXLANMAC()))
	}
	if have.RawFlags&unix.IFF_NOARP == 0 {
		if err := n.h.LinkSetARPOff(link); err != nil {
			return fail("NOARP", err)
		}
		changed = append(changed, "not NOARP")
	}
	if err := n.configure(have.Index); err != nil {
		return fail("per-device settings", err)
	}
	if have.RawFlags&unix.IFF_UP == 0 {
		if err := n.h.LinkSetUp(link); err != nil {
			return fail("up", err)
		}
		changed = append(changed, "down")
	}
	return changed, nil
}
