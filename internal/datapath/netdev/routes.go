package netdev

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/state"
)

// Routes applies rows of state.Routes to the node's main table. It touches only routes of RouteProtocol, except that a row
// replaces a route of the same prefix and metric whoever made it.
type Routes struct{ net *Net }

// NewRoutes returns the reconciler's operations on the routes of n.
func NewRoutes(n *Net) *Routes { return &Routes{net: n} }

// Update makes the kernel hold the route, and no other of ours for the prefix.
func (r *Routes) Update(_ context.Context, row state.Route) error {
	want, err := r.build(row)
	if err != nil {
		return err
	}
	have, err := r.list(row.Prefix)
	if err != nil {
		return err
	}
	_, err = r.repair(row.Prefix, want, have)
	return err
}

// Delete makes the kernel hold no route of ours for the prefix.
func (r *Routes) Delete(_ context.Context, row state.Route) error {
	have, err := r.list(row.Prefix)
	if err != nil {
		return err
	}
	return r.remove(have)
}

// Prune removes routes of ours that are not in rows and repairs the others.
func (r *Routes) Prune(_ context.Context, rows iter.Seq[state.Route]) (differences []string, err error) {
	have := map[netip.Prefix][]netlink.Route{}
	for _, v6 := range []bool{false, true} {
		list, err := r.listFamily(v6)
		if err != nil {
			return nil, err
		}
		for _, route := range list {
			p := destination(route, v6)
			have[p] = append(have[p], route)
		}
	}
	var errs []error
	for row := range rows {
		existing := have[row.Prefix]
		delete(have, row.Prefix)
		want, err := r.build(row)
		if err == nil {
			var found string
			if found, err = r.repair(row.Prefix, want, existing); found != "" {
				differences = append(differences, found)
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	for p, stale := range have {
		differences = append(differences, fmt.Sprintf("route %s is not wanted", p))
		errs = append(errs, r.remove(stale))
	}
	return differences, errors.Join(errs...)
}

// List returns the prefixes the kernel holds a route of ours for.
func (r *Routes) List() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, v6 := range []bool{false, true} {
		list, err := r.listFamily(v6)
		if err != nil {
			return nil, err
		}
		for _, route := range list {
			out = append(out, destination(route, v6))
		}
	}
	return out, nil
}

// repair makes want the only one of ours and describes what differed.
func (r *Routes) repair(p netip.Prefix, want *netlink.Route, have []netlink.Route) (found string, err error) {
	var stale []netlink.Route
	present := false
	for _, h := range have {
		if !present && sameRoute(*want, h) {
			present = true
			continue
		}
		stale = append(stale, h)
	}
	switch {
	case present && len(stale) == 0:
		return "", nil
	case !present && len(have) == 0:
		found = fmt.Sprintf("route %s is missing", p)
	case !present:
		found = fmt.Sprintf("route %s is %s", p, have[0])
	default:
		found = fmt.Sprintf("route %s is there twice", p)
	}
	if !present {
		if err := r.net.h.RouteReplace(want); err != nil {
			return found, fmt.Errorf("replace route %s: %w", p, err)
		}
		// The kernel replaces one of the same metric; IPv6 may keep another whose kind differs.
		if stale, err = r.list(p); err != nil {
			return found, err
		}
		for i, h := range stale {
			if sameRoute(*want, h) {
				stale = append(stale[:i:i], stale[i+1:]...)
				break
			}
		}
	}
	return found, r.remove(stale)
}

func (r *Routes) remove(list []netlink.Route) error {
	var errs []error
	for _, route := range list {
		if err := r.net.h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete route %s: %w", route, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Routes) build(row state.Route) (*netlink.Route, error) {
	out := &netlink.Route{Dst: ipNet(row.Prefix), Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, MTU: row.MTU}
	switch row.Kind {
	case state.RouteUnreachable:
		out.Type = unix.RTN_UNREACHABLE
		return out, nil
	case state.RouteUnicast:
	default:
		return nil, fmt.Errorf("route %s has kind %q, want %q or %q", row.Prefix, row.Kind, state.RouteUnicast, state.RouteUnreachable)
	}
	out.Type = unix.RTN_UNICAST
	index, err := r.net.Index(row.Device)
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", row.Prefix, err)
	}
	out.LinkIndex = index
	if row.Via.IsValid() {
		out.Gw = row.Via.AsSlice()
		out.Flags = int(netlink.FLAG_ONLINK) // the row says where the next hop is, even if no subnet does
	} else if row.Prefix.Addr().Is4() {
		out.Scope = netlink.SCOPE_LINK
	}
	if row.Source.IsValid() {
		out.Src = row.Source.AsSlice()
	}
	return out, nil
}

func (r *Routes) list(p netip.Prefix) ([]netlink.Route, error) {
	return r.listFiltered(p.Addr().Is6(), &netlink.Route{Dst: ipNet(p)}, netlink.RT_FILTER_DST)
}

func (r *Routes) listFamily(v6 bool) ([]netlink.Route, error) {
	return r.listFiltered(v6, &netlink.Route{}, 0)
}

func (r *Routes) listFiltered(v6 bool, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	filter.Table, filter.Protocol = unix.RT_TABLE_MAIN, RouteProtocol
	list, err := dump(func() ([]netlink.Route, error) {
		return r.net.h.RouteListFiltered(family, filter, mask|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func destination(r netlink.Route, v6 bool) netip.Prefix {
	if p := prefix(r.Dst); p.IsValid() {
		return p
	}
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// sameRoute compares what a row decides. An unreachable IPv6 route is listed on lo.
func sameRoute(want, have netlink.Route) bool {
	if want.Type != have.Type {
		return false
	}
	if want.Type == unix.RTN_UNREACHABLE {
		return true
	}
	return want.LinkIndex == have.LinkIndex && addr(want.Gw) == addr(have.Gw) && want.MTU == have.MTU &&
		(want.Src == nil || addr(want.Src) == addr(have.Src))
}
