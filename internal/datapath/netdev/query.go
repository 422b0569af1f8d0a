package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The questions of this file change nothing. They are those of a packet: which way, through which device, to whom.

// Link is a device as a packet meets it.
type Link struct {
	Index   int
	Name    string
	Kind    string // veth, vxlan, device, ...
	Up      bool   // somebody has set it up
	Carrier bool   // the other end is there and up
	MTU     int
	MAC     net.HardwareAddr
	Peer    int    // index of a pair's other end, in its own namespace; 0: none
	Master  int    // of which bridge, bond or vrf it is a part; 0: none
	XDP     uint32 // id of the XDP program that sees its frames first; 0: none
}

// LinkAt returns the device with an index. The error matches os.ErrNotExist when there is none.
func (n *Net) LinkAt(index int) (Link, error) {
	l, err := n.h.LinkByIndex(index)
	if err != nil {
		return Link{}, fmt.Errorf("device with index %d: %w", index, notExist(err))
	}
	return linkOf(l), nil
}

// LinkOf returns a device by name. The error matches os.ErrNotExist when there is none.
func (n *Net) LinkOf(name string) (Link, error) {
	l, err := n.link(name)
	if err != nil {
		return Link{}, err
	}
	return linkOf(l), nil
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	xdp := uint32(0)
	if a.Xdp != nil && a.Xdp.Attached {
		xdp = a.Xdp.ProgId
	}
	return Link{
		XDP: xdp, Index: a.Index, Name: a.Name, Kind: l.Type(), Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, MTU: a.MTU,
		MAC: a.HardwareAddr, Peer: a.ParentIndex, Master: a.MasterIndex,
	}
}

// LinkWithMAC returns the device that is up and has a hardware address, if there is one.
func (n *Net) LinkWithMAC(mac net.HardwareAddr) (Link, bool, error) {
	all, err := n.links()
	if err != nil {
		return Link{}, false, err
	}
	for _, l := range all {
		if l.Attrs().HardwareAddr.String() == mac.String() {
			return linkOf(l), true, nil
		}
	}
	return Link{}, false, nil
}

// RouteQuestion asks which way the namespace's stack sends a packet.
type RouteQuestion struct {
	Target netip.Addr
	Source netip.Addr // not valid: the stack chooses
	From   int        // the device it came by; 0: it is the stack's own
}

// Way is what the stack does with a packet.
type Way struct {
	Local   bool // it is for the namespace itself
	Device  int
	Gateway netip.Addr // next hop; not valid: the target itself
	Source  netip.Addr // that the stack chooses for its own packets
	MTU     int        // of the route, 0: the device's
	Entry   string     // the route that decided: "10.244.2.0/24 dev strait_vxlan proto 83 (table main)"
	// Refused is why there is no way; then Code says how the kernel puts it, and nothing else is set.
	Refused string
	Code    error
}

// Way asks the kernel, which follows rules, routes and the checks of a packet's source.
func (n *Net) Way(q RouteQuestion) (Way, error) {
	o := &netlink.RouteGetOptions{IifIndex: q.From}
	if q.Source.IsValid() {
		o.SrcAddr = q.Source.AsSlice()
	}
	found, err := n.h.RouteGetWithOptions(q.Target.AsSlice(), o)
	var code unix.Errno
	switch {
	case errors.As(err, &code):
		return Way{Refused: noWay(code, q), Code: code}, nil
	case err != nil:
		return Way{}, fmt.Errorf("ask for the route to %s: %w", q.Target, err)
	case len(found) == 0:
		return Way{Refused: "no route", Code: unix.ENETUNREACH}, nil
	}
	r := found[0]
	way := Way{Local: r.Type == unix.RTN_LOCAL, Device: r.LinkIndex, Source: addr(r.Src), MTU: r.MTU}
	if r.Gw != nil {
		way.Gateway = addr(r.Gw)
	} else if via, ok := r.Via.(*netlink.Via); ok {
		way.Gateway = addr(via.Addr)
	}
	switch r.Type {
	case unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_BLACKHOLE, unix.RTN_THROW:
		return Way{Refused: "the route says " + routeKind(r.Type), Code: unix.EHOSTUNREACH}, nil
	}
	way.Entry = n.entry(q, o)
	return way, nil
}

// Conditions are the rules of policy routing of a family that ask for what a RouteQuestion does not say: marks, ports, protocols, users. They
// may send a packet another way.
func (n *Net) Conditions(v6 bool) (texts []string, err error) {
	family := netlink.FAMILY_V4
	if v6 {
		family = netlink.FAMILY_V6
	}
	rules, err := dump(func() ([]netlink.Rule, error) { return n.h.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("list rules of policy routing: %w", err)
	}
	for _, r := range rules {
		var asks []string
		if r.Mark != 0 || r.Mask != nil && *r.Mask != 0 {
			asks = append(asks, fmt.Sprintf("fwmark %#x", r.Mark))
		}
		if r.IPProto != 0 {
			asks = append(asks, fmt.Sprintf("ipproto %d", r.IPProto))
		}
		if r.Sport != nil {
			asks = append(asks, fmt.Sprintf("sport %d-%d", r.Sport.Start, r.Sport.End))
		}
		if r.Dport != nil {
			asks = append(asks, fmt.Sprintf("dport %d-%d", r.Dport.Start, r.Dport.End))
		}
		if r.UIDRange != nil {
			asks = append(asks, fmt.Sprintf("uidrange %d-%d", r.UIDRange.Start, r.UIDRange.End))
		}
		if r.Tos != 0 {
			asks = append(asks, fmt.Sprintf("tos %#x", r.Tos))
		}
		if len(asks) > 0 {
			texts = append(texts, fmt.Sprintf("ip rule %d: %s lookup %d", r.Priority, strings.Join(asks, " "), r.Table))
		}
	}
	return texts, nil
}

func routeKind(kind int) string {
	switch kind {
	case unix.RTN_UNREACHABLE:
		return "unreachable"
	case unix.RTN_PROHIBIT:
		return "prohibit"
	case unix.RTN_BLACKHOLE:
		return "blackhole"
	}
	return "throw"
}

// noWay is the kernel's errno in words.
func noWay(code unix.Errno, q RouteQuestion) string {
	switch code {
	case unix.ENETUNREACH:
		return "no route"
	case unix.EHOSTUNREACH:
		if q.From != 0 {
			return "the route says unreachable, or the device that the packet comes by does not forward"
		}
		return "the route says unreachable"
	case unix.EXDEV:
		return "the reverse path filter (rp_filter) refuses the source: the way back to it is another device"
	case unix.EACCES:
		return "the route says prohibit"
	case unix.EINVAL:
		return "the route says blackhole, or the kernel takes an address for impossible here"
	}
	return code.Error()
}

// entry is the row of the routing table that decided, as far as the kernel tells.
func (n *Net) entry(q RouteQuestion, o *netlink.RouteGetOptions) string {
	match := *o
	match.FIBMatch, match.IifIndex = true, 0
	if q.From != 0 {
		match.SrcAddr = nil // it is not an address of this namespace
	}
	found, err := n.h.RouteGetWithOptions(q.Target.AsSlice(), &match)
	if err != nil || len(found) == 0 {
		return ""
	}
	r := found[0]
	var text []string
	if p := prefix(r.Dst); p.IsValid() && p.Bits() > 0 {
		text = append(text, p.String())
	} else {
		text = append(text, "default")
	}
	if r.Type != unix.RTN_UNICAST {
		text = append([]string{strings.ToLower(routeType(r.Type))}, text...)
	}
	if r.Gw != nil {
		text = append(text, "via", addr(r.Gw).String())
	}
	if name, err := n.DeviceName(r.LinkIndex); err == nil {
		text = append(text, "dev", name)
	}
	if r.Protocol == RouteProtocol || r.Protocol == PodRouteProtocol {
		text = append(text, fmt.Sprintf("proto %d", r.Protocol))
	}
	if r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL {
		text = append(text, fmt.Sprintf("table %d", r.Table))
	}
	return strings.Join(text, " ")
}

func routeType(kind int) string {
	if kind == unix.RTN_LOCAL {
		return "local"
	}
	return fmt.Sprintf("type-%d", kind)
}

// Neighbour is who the namespace thinks has an address of a link.
type Neighbour struct {
	MAC   net.HardwareAddr // nil: not known
	State string
}

// Neighbour returns the entry of an address. A kernel without one asks the link when a packet comes.
func (n *Net) Neighbour(device int, a netip.Addr) (out Neighbour, ok bool, err error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := dump(func() ([]netlink.Neigh, error) { return n.h.NeighList(device, family) })
	if err != nil {
		return out, false, fmt.Errorf("list neighbours: %w", err)
	}
	for _, e := range list {
		if addr(e.IP) == a {
			out.MAC, out.State = e.HardwareAddr, neighbourState(e.State)
			if len(out.MAC) == 0 || e.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) != 0 {
				out.MAC = nil
			}
			return out, true, nil
		}
	}
	return out, false, nil
}

func neighbourState(s int) string {
	for _, row := range []struct {
		bit  int
		name string
	}{
		{netlink.NUD_PERMANENT, "permanent"}, {netlink.NUD_NOARP, "noarp"}, {netlink.NUD_REACHABLE, "reachable"}, {netlink.NUD_STALE, "stale"},
		{netlink.NUD_DELAY, "delay"}, {netlink.NUD_PROBE, "probe"}, {netlink.NUD_FAILED, "failed"}, {netlink.NUD_INCOMPLETE, "incomplete"},
	} {
		if s&row.bit != 0 {
			return row.name
		}
	}
	return "none"
}

// States of sockets in the kernel's own numbers (include/net/tcp_states.h).
const (
	stateEstablished = 1
	stateListen      = 10
)

// Listens says who would take the first packet of a connection: the address that a socket is bound to. ok is false when nobody would.
func (n *Net) Listens(protocol uint8, at netip.AddrPort, from netip.AddrPort, device int) (by netip.AddrPort, ok bool, err error) {
	h, err := netlink.NewHandleAt(n.ns, unix.NETLINK_INET_DIAG)
	if err != nil {
		return by, false, fmt.Errorf("open sock_diag: %w", err)
	}
	defer h.Close()
	families := []uint8{unix.AF_INET6}
	if at.Addr().Is4() {
		families = []uint8{unix.AF_INET, unix.AF_INET6} // a socket of :: takes IPv4, too
	}
	for _, family := range families {
		list := func() ([]*netlink.Socket, error) { return h.SocketDiagUDP(family) }
		if protocol == unix.IPPROTO_TCP {
			list = func() ([]*netlink.Socket, error) { return h.SocketDiagTCP(family) }
		}
		all, err := dump(list)
		if err != nil {
			return by, false, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range all {
			bound := addr(s.ID.Source)
			if s.ID.SourcePort != at.Port() || s.ID.Interface != 0 && int(s.ID.Interface) != device {
				continue
			}
			if bound != at.Addr() && !bound.IsUnspecified() || protocol == unix.IPPROTO_TCP && s.State != stateListen {
				continue
			}
			if protocol == unix.IPPROTO_UDP && s.State == stateEstablished && netip.AddrPortFrom(addr(s.ID.Destination), s.ID.DestinationPort) != from {
				continue
			}
			return netip.AddrPortFrom(bound, at.Port()), true, nil
		}
	}
	return by, false, nil
}

// Sysctl returns a setting of the namespace, such as "net/ipv4/ip_forward"; one that does not exist is empty.
func (n *Net) Sysctl(name string) (value string, err error) {
	err = inNamespace(n.ns, func() error {
		value, err = readSysctl(name)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	return value, err
}

// Inside runs fn on a thread of the namespace. It is for what other libraries open themselves.
func (n *Net) Inside(fn func() error) error { return inNamespace(n.ns, fn) }
