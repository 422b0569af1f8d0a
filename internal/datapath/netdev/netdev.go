// Package netdev is everything Strait says to the kernel over netlink: devices, addresses, routes, neighbours, per-namespace
// sysctls, and the watch on the node's devices.
package netdev

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Route protocol numbers (rtm_protocol) that mark routes as ours. They are unassigned in the kernel's rtnetlink.h and iproute2.
const (
	RouteProtocol    = 83 // routes of the table state.Routes
	PodRouteProtocol = 84 // routes of local pods; they vanish with the pod's device
)

// VXLANDevice is the name of the tunnel device.
const VXLANDevice = "strait_vxlan"

const podDevicePrefix = "st"

// Gateway returns the link-local next hop of every pod for the family.
func Gateway(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

// PodDevice returns the name of the node's end of a pod's veth pair: st and 12 hexadecimal digits.
func PodDevice(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return podDevicePrefix + hex.EncodeToString(sum[:6])
}

// IsPodDevice reports whether the name is one PodDevice makes.
func IsPodDevice(name string) bool {
	digits, ok := strings.CutPrefix(name, podDevicePrefix)
	if !ok || len(digits) != 12 {
		return false
	}
	_, err := hex.DecodeString(digits)
	return err == nil
}

// MAC returns the locally administered unicast address that belongs to a seed, always the same.
func MAC(seed string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(seed))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// Net is one network namespace seen through netlink. Its methods may be called from any goroutine.
type Net struct {
	h    *netlink.Handle
	nl   map[int]*nl.SocketHandle // for the messages that netlink has no call for
	ns   netns.NsHandle
	idle chan *Net // for borrow
}

// maxIdle is how many sets of sockets are kept for the next operations on pods.
const maxIdle = 4

// Open returns the network namespace of the calling thread.
func Open() (*Net, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n, err := open(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return n, nil
}

// OpenAt returns the network namespace at a path such as /run/netns/NAME or /proc/PID/ns/net. An error matches
// os.ErrNotExist when there is none.
func OpenAt(path string) (*Net, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n, err := open(ns)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return n, nil
}

func open(ns netns.NsHandle) (*Net, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	_ = s.SetExtAck(true) // the kernel's own words for an EINVAL, where it has any
	return &Net{h: h, nl: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, ns: ns, idle: make(chan *Net, maxIdle)}, nil
}

// borrow returns the same namespace with sockets that nobody else uses until done is called. A socket answers one request at a time,
// and the deletion of a device takes 20 ms, most of it outside the kernel's network lock: 40 deletions in parallel take 0.9 s over
// one socket and 0.12 s over one each.
func (n *Net) borrow() (own *Net, done func(), err error) {
	select {
	case own = <-n.idle:
	default:
		if own, err = open(n.ns); err != nil {
			return nil, nil, err
		}
		own.idle = n.idle
	}
	return own, func() {
		select {
		case n.idle <- own:
		default:
			own.closeSockets()
		}
	}, nil
}

// Close releases the sockets. No other method may be running.
func (n *Net) Close() {
	for len(n.idle) > 0 {
		(<-n.idle).closeSockets()
	}
	n.closeSockets()
	_ = n.ns.Close()
}

func (n *Net) closeSockets() {
	n.h.Close()
	for _, s := range n.nl {
		s.Close()
	}
}

// Index returns the index of a device. The error matches os.ErrNotExist when there is none.
func (n *Net) Index(device string) (int, error) {
	link, err := n.link(device)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// DeviceName returns the name of the device with the index. The error matches os.ErrNotExist when there is none.
func (n *Net) DeviceName(index int) (string, error) {
	link, err := n.h.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("device with index %d: %w", index, notExist(err))
	}
	return link.Attrs().Name, nil
}

// DeleteDevice removes a device; one that is not there is no error. The other end of a veth pair goes with it.
func (n *Net) DeleteDevice(name string) error {
	n, done, err := n.borrow()
	if err != nil {
		return err
	}
	defer done()
	link, err := n.link(name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := n.h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// PodDevices returns the names of all devices of the node that are, by name and type, the node's end of a pod's pair.
func (n *Net) PodDevices() ([]string, error) {
	links, err := n.links()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		if l.Type() == "veth" && IsPodDevice(l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

func (n *Net) link(name string) (netlink.Link, error) {
	link, err := n.h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, notExist(err))
	}
	return link, nil
}

// dumps are interrupted when the kernel's list changes meanwhile: the answer may then lack entries, so it is asked for again.
const dumpAttempts = 8

func (n *Net) links() ([]netlink.Link, error) {
	links, err := dump(func() ([]netlink.Link, error) { return n.h.LinkList() })
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return links, nil
}

func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpAttempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// notExist gives "no such device" of the netlink library the errno, which matches os.ErrNotExist as well.
func notExist(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return noDevice{}
	}
	return err
}

// noDevice matches unix.ENODEV and os.ErrNotExist.
type noDevice struct{}

func (noDevice) Error() string { return "no such device" }

func (noDevice) Is(target error) bool {
	return target == unix.ENODEV || errors.Is(unix.ENOENT, target)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

// prefix is the zero Prefix for a nil or strange n.
func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, width := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok || width == 0 {
		return netip.Prefix{}
	}
	a = a.Unmap()
	if width == 128 && a.Is4() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
