// Package wire makes network namespaces and the cables between them.
package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace. Nothing names it in a file system, so it disappears with the last process and
// descriptor that holds it.
type Namespace struct {
	Name   string
	handle netns.NsHandle
}

// New makes an empty network namespace with its loopback up.
func New(name string) (*Namespace, error) {
	var n *Namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network of %s: %w", name, err)
		}
		handle, err := netns.Get()
		if err != nil {
			return fmt.Errorf("open network of %s: %w", name, err)
		}
		n = &Namespace{Name: name, handle: handle}
		return n.Up("lo")
	})
	return n, err
}

// Open opens the namespace behind a file such as /proc/PID/ns/net.
func Open(name, path string) (*Namespace, error) {
	handle, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network of %s at %s: %w", name, path, err)
	}
	return &Namespace{Name: name, handle: handle}, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.handle.Close() }

// onThread runs fn on a thread of its own, which ends with it: a thread that changed its namespace never returns to the pool.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// Do runs fn on a thread inside the namespace.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter network of %s: %w", n.Name, err)
		}
		return fn()
	})
}

// Visit runs fn inside the namespace on the calling thread, which must be locked, and brings the thread back.
func (n *Namespace) Visit(fn func() error) error {
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own network: %w", err)
	}
	defer func() { _ = home.Close() }()
	if err := netns.Set(n.handle); err != nil {
		return fmt.Errorf("enter network of %s: %w", n.Name, err)
	}
	return errors.Join(fn(), netns.Set(home))
}

// with gives fn a netlink handle inside the namespace.
func (n *Namespace) with(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.Name, err)
	}
	defer h.Close()
	if err := fn(h); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}

// Sysctl writes one setting of the namespace; key is a path below /proc/sys.
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s of %s to %s: %w", key, n.Name, value, err)
		}
		return nil
	})
}

// Up sets a device up.
func (n *Namespace) Up(device string) error {
	return n.with(func(h *netlink.Handle) error {
		link, err := h.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", device, err)
		}
		return nil
	})
}

// Bridge makes a bridge that is up.
func (n *Namespace) Bridge(name string) error {
	return n.with(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := h.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge %s: %w", name, err)
		}
		return h.LinkSetUp(bridge)
	})
}

// End is one end of a cable.
type End struct {
	Space     *Namespace
	Device    string
	Addresses []netip.Prefix
	Bridge    string // attach to this bridge of Space; empty: stand alone
}

// Cable lays a veth pair between two ends, with one transmit and receive queue per end, and sets both up.
func Cable(a, b End, mtu int) error {
	err := a.Space.with(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.NumTxQueues, attrs.NumRxQueues = a.Device, mtu, 1, 1
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Device, PeerNamespace: netlink.NsFd(int(b.Space.handle)), PeerMTU: uint32(mtu),
			PeerNumTxQueues: 1, PeerNumRxQueues: 1}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s to %s of %s: %w", a.Device, b.Device, b.Space.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, end := range []End{a, b} {
		if err := end.settle(); err != nil {
			return err
		}
	}
	return nil
}

func (e End) settle() error {
	return e.Space.with(func(h *netlink.Handle) error {
		link, err := h.LinkByName(e.Device)
		if err != nil {
			return fmt.Errorf("find %s: %w", e.Device, err)
		}
		for _, p := range e.Addresses {
			addr, err := netlink.ParseAddr(p.String())
			if err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s to %s: %w", p, e.Device, err)
			}
		}
		if e.Bridge != "" {
			bridge, err := h.LinkByName(e.Bridge)
			if err != nil {
				return fmt.Errorf("find %s: %w", e.Bridge, err)
			}
			if err := h.LinkSetMaster(link, bridge); err != nil {
				return fmt.Errorf("attach %s to %s: %w", e.Device, e.Bridge, err)
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", e.Device, err)
		}
		return nil
	})
}

// Programs returns the ids of the BPF programs that tc filters run on any device of the namespace.
func (n *Namespace) Programs() ([]uint32, error) {
	var ids []uint32
	err := n.with(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, link := range links {
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, err := h.FilterList(link, parent)
				if err != nil {
					continue // no clsact qdisc
				}
				for _, f := range filters {
					if b, ok := f.(*netlink.BpfFilter); ok {
						ids = append(ids, uint32(b.Id))
					}
				}
			}
		}
		return nil
	})
	return ids, err
}

// Packets returns the sum of received and sent packets of a device.
func (n *Namespace) Packets(device string) (uint64, error) {
	var total uint64
	err := n.with(func(h *netlink.Handle) error {
		link, err := h.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		if s := link.Attrs().Statistics; s != nil {
			total = s.RxPackets + s.TxPackets
		}
		return nil
	})
	return total, err
}

// Address adds an address to a device.
func (n *Namespace) Address(device string, p netip.Prefix) error {
	return End{Space: n, Device: device, Addresses: []netip.Prefix{p}}.settle()
}

// Route adds a route by way of a neighbour.
func (n *Namespace) Route(to netip.Prefix, via netip.Addr) error {
	return n.with(func(h *netlink.Handle) error {
		dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
		if err := h.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("add route to %s by way of %s: %w", to, via, err)
		}
		return nil
	})
}
