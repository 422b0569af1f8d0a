package netdev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// WatchConfig is what a Watcher needs. Table and Log are required.
type WatchConfig struct {
	Table *table.Table[state.Device]
	Log   *slog.Logger
	// Devices are names or patterns ("eth*") of the native devices; empty: those with a node address or a default route.
	Devices []string
	// NodeAddresses returns this node's addresses as Kubernetes knows them; nil: none are known.
	NodeAddresses func() []netip.Addr
	// Refresh, when it can be received from, makes the Watcher look again: NodeAddresses has changed.
	Refresh <-chan struct{}
	// Settle is how long changes are gathered before looking. Default 50 ms.
	Settle time.Duration
	// Every is the period of looking even if nothing was announced. Default 30 s.
	Every time.Duration
}

// Watcher keeps state.Devices as the node's devices are. It is the table's owner.
type Watcher struct {
	WatchConfig
	net    *Net
	socket *nl.NetlinkSocket
	synced func()

	mu       sync.Mutex
	problems []string
}

// NewWatcher subscribes to the devices, addresses and routes of n's namespace (which must be that of the calling thread) and
// fills the table once. Run keeps it up to date.
func NewWatcher(n *Net, c WatchConfig) (*Watcher, error) {
	if c.Settle == 0 {
		c.Settle = 50 * time.Millisecond
	}
	if c.Every == 0 {
		c.Every = 30 * time.Second
	}
	if c.NodeAddresses == nil {
		c.NodeAddresses = func() []netip.Addr { return nil }
	}
	for _, p := range c.Devices {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("devices: %q is neither a name nor a pattern: %w", p, err)
		}
	}
	s, err := nl.SubscribeAt(n.ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to device changes: %w", err)
	}
	w := &Watcher{WatchConfig: c, net: n, socket: s, synced: c.Table.Register("netlink")}
	if err := w.look(); err != nil {
		s.Close()
		return nil, err
	}
	w.synced()
	return w, nil
}

// Problems returns what is wrong with the choice of devices, for status.
func (w *Watcher) Problems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.problems)
}

// Run follows changes until ctx ends, then closes the subscription.
func (w *Watcher) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { w.receive(ctx, wake) })
	defer receiver.Wait()
	defer w.socket.Close()
	periodic := time.NewTicker(w.Every)
	defer periodic.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-periodic.C:
		case _, ok := <-w.Refresh:
			if !ok {
				w.Refresh = nil
				continue
			}
		case <-wake:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(w.Settle):
			}
			select {
			case <-wake: // announced meanwhile
			default:
			}
		}
		if err := w.look(); err != nil {
			w.Log.Warn("devices not read", "err", err)
		}
	}
}

// receive wakes Run on each announcement that matters. A full socket buffer is an announcement, too.
func (w *Watcher) receive(ctx context.Context, wake chan<- struct{}) {
	for {
		msgs, _, err := w.socket.Receive()
		if ctx.Err() != nil {
			return
		}
		matters := false
		switch {
		case errors.Is(err, unix.ENOBUFS):
			matters = true
		case err != nil:
			w.Log.Warn("announcements of devices ended, looking periodically", "err", err)
			return
		}
		for _, m := range msgs {
			matters = matters || announces(m.Header.Type, m.Data)
		}
		if matters {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}

// announces leaves out the pods: each of them makes a dozen messages that say nothing about the node's devices.
func announces(kind uint16, data []byte) bool {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(data) < unix.SizeofRtMsg {
			return false
		}
		m := nl.DeserializeRtMsg(data)
		return m.Protocol != RouteProtocol && m.Protocol != PodRouteProtocol && m.Dst_len == 0
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(data) < unix.SizeofIfInfomsg {
			return false
		}
		attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfInfomsg:])
		if err != nil {
			return true
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				return !IsPodDevice(strings.TrimRight(string(a.Value), "\x00"))
			}
		}
	}
	return true
}

// look reads the namespace and writes the rows that differ.
func (w *Watcher) look() error {
	seen, err := w.net.observe()
	if err != nil {
		return err
	}
	rows, problems := choose(seen, w.Devices, w.NodeAddresses())
	w.mu.Lock()
	if !slices.Equal(problems, w.problems) && len(problems) > 0 {
		w.Log.Warn("choice of devices", "problems", problems)
	}
	w.problems = problems
	w.mu.Unlock()
	old := map[string]state.Device{}
	for d := range w.Table.Snapshot().All() {
		old[d.Name] = d
	}
	var changed []state.Device
	for _, d := range rows {
		if o, ok := old[d.Name]; !ok || !sameDevice(o, d) {
			changed = append(changed, d)
		}
		delete(old, d.Name)
	}
	if len(changed) == 0 && len(old) == 0 {
		return nil
	}
	w.Table.Write(func(tx *table.Txn[state.Device]) {
		for name := range old {
			tx.Delete(name)
		}
		for _, d := range changed {
			tx.Insert(d)
		}
	})
	return nil
}

func sameDevice(a, b state.Device) bool {
	return a.Index == b.Index && a.MTU == b.MTU && a.Up == b.Up && a.Native == b.Native && slices.Equal(a.Addresses, b.Addresses)
}

// observed is a device and whether a default route leaves by it.
type observed struct {
	state.Device
	loopback     bool
	defaultRoute bool
}

// unusable are flags of addresses that the node does not have yet, or cannot have.
const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

// passing reports whether an address is not for long: the node is reached by it while it is there, and chooses others first. The flag of temporary
// addresses of IPv6 is that of secondary ones of IPv4.
func passing(a *netlink.Addr) bool {
	return a.Flags&unix.IFA_F_DEPRECATED != 0 || a.IP.To4() == nil && a.Flags&unix.IFA_F_TEMPORARY != 0
}

// observe returns the devices of the namespace, those of pods left out, in the order of their indexes.
func (n *Net) observe() ([]observed, error) {
	links, err := n.links()
	if err != nil {
		return nil, err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return n.h.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	lasting, brief := map[int][]netip.Prefix{}, map[int][]netip.Prefix{}
	for _, a := range addrs {
		switch {
		case a.Scope != int(netlink.SCOPE_UNIVERSE) || a.Flags&unusable != 0:
		case passing(&a):
			brief[a.LinkIndex] = append(brief[a.LinkIndex], prefix(a.IPNet))
		default:
			lasting[a.LinkIndex] = append(lasting[a.LinkIndex], prefix(a.IPNet))
		}
	}
	defaults, err := n.defaultRouteDevices()
	if err != nil {
		return nil, err
	}
	var out []observed
	for _, l := range links {
		a := l.Attrs()
		if IsPodDevice(a.Name) && l.Type() == "veth" {
			continue
		}
		out = append(out, observed{
			Device: state.Device{
				Name: a.Name, Index: a.Index, MTU: a.MTU, Up: a.RawFlags&unix.IFF_UP != 0,
				Addresses: slices.Concat(lasting[a.Index], brief[a.Index]),
			},
			loopback:     a.RawFlags&unix.IFF_LOOPBACK != 0,
			defaultRoute: defaults[a.Index],
		})
	}
	slices.SortFunc(out, func(x, y observed) int { return cmp.Compare(x.Index, y.Index) })
	return out, nil
}

func (n *Net) defaultRouteDevices() (map[int]bool, error) {
	out := map[int]bool{}
	for _, zero := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		p := netip.PrefixFrom(zero, 0)
		routes, err := dump(func() ([]netlink.Route, error) {
			return n.h.RouteListFiltered(familyOf(p), &netlink.Route{Dst: ipNet(p), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST},
				netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			out[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	return out, nil
}

// choose marks the native devices. Loopback and our own devices never are; the former is a row only if it has addresses that others may
// reach. Node addresses are put before others, which keep their order.
func choose(seen []observed, patterns []string, node []netip.Addr) (rows []state.Device, problems []string) {
	used := make([]bool, len(patterns))
	native := 0
	for _, o := range seen {
		if o.loopback && len(o.Addresses) == 0 {
			continue
		}
		d := o.Device
		d.Addresses = slices.Clone(d.Addresses)
		slices.SortStableFunc(d.Addresses, func(x, y netip.Prefix) int {
			return cmp.Compare(rank(x.Addr(), node), rank(y.Addr(), node))
		})
		if d.Name != VXLANDevice && !o.loopback {
			d.Native = o.carries(patterns, used, node)
		}
		if d.Native {
			native++
		}
		rows = append(rows, d)
	}
	for i, p := range patterns {
		if !used[i] {
			problems = append(problems, fmt.Sprintf("devices: no device of this node matches %q", p))
		}
	}
	if native == 0 && len(patterns) == 0 {
		problems = append(problems, "no device has a node address or a default route: name it in devices")
	}
	return rows, problems
}

func rank(a netip.Addr, node []netip.Addr) int {
	if i := slices.Index(node, a); i >= 0 {
		return i
	}
	return len(node)
}

func (o observed) carries(patterns []string, used []bool, node []netip.Addr) bool {
	if len(patterns) == 0 {
		return o.defaultRoute || slices.ContainsFunc(o.Addresses, func(p netip.Prefix) bool { return slices.Contains(node, p.Addr()) })
	}
	found := false
	for i, p := range patterns {
		if ok, err := path.Match(p, o.Name); err == nil && ok {
			used[i], found = true, true
		}
	}
	return found
}

// Bytes that VXLAN puts around a packet: outer IP, UDP, VXLAN and inner Ethernet header.
const (
	overheadV4 = 20 + 8 + 8 + 14
	overheadV6 = 40 + 8 + 8 + 14
)

// PodMTU returns the largest packet a pod can send to every other node: the smallest MTU of the native devices that are up
// (or configured, when not 0), less the tunnel's overhead. It is 0 while there is no such device.
func PodMTU(devices []state.Device, configured int, tunnel, underlayV6 bool) int {
	mtu := configured
	if mtu == 0 {
		for _, d := range devices {
			if d.Native && d.Up && (mtu == 0 || d.MTU < mtu) {
				mtu = d.MTU
			}
		}
	}
	switch {
	case mtu == 0 || !tunnel:
		return mtu
	case underlayV6:
		return mtu - overheadV6
	}
	return mtu - overheadV4
}
