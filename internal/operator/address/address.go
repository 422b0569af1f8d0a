// Package address gives Services of type LoadBalancer their addresses; it is pure.
package address

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// Pool is a set of addresses.
type Pool struct {
	Name   string
	Ranges []state.AddressRange
	// Closed pools give out nothing more; what services have of them they keep.
	Closed bool
	// For reports whether the pool is for services with these labels.
	For func(labels map[string]string) bool
}

func (p Pool) contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r state.AddressRange) bool { return r.Contains(a) })
}

// Grant is what a service is to have, and what is to be said about it.
type Grant struct {
	Addresses []netip.Addr // in the order of the service's families
	Says      state.Allocation
}

// Allocate returns the grants in the order of claims: one address per family of each. Pools come in the order in which they are used.
// What a service holds it keeps if a pool that is for it has the address, and nobody older has it; then addresses asked for are
// given, then the lowest that are free. Of two services the older is served first. An address that is to be taken away from a
// service is given to nobody before that has happened. Others are services of somebody else, who have what they hold.
func Allocate(pools []Pool, claims, others []state.Claim) []Grant {
	a := &allocator{pools: pools, users: map[netip.Addr][]*state.Claim{}, leaving: map[netip.Addr]bool{}, shared: map[string][]netip.Addr{}}
	for _, p := range pools {
		lowest := make([]state.AddressRange, len(p.Ranges))
		copy(lowest, p.Ranges)
		slices.SortFunc(lowest, func(x, y state.AddressRange) int { return x.First.Compare(y.First) })
		a.left = append(a.left, lowest)
	}
	for i := range others {
		for _, addr := range others[i].Held {
			a.users[addr] = append(a.users[addr], &others[i])
		}
	}
	order := make([]int, len(claims))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int {
		return cmp.Or(claims[x].Created.Compare(claims[y].Created), strings.Compare(claims[x].String(), claims[y].String()))
	})
	needs := make([][]need, len(claims))
	for _, i := range order {
		needs[i] = a.keep(&claims[i])
	}
	for i := range claims {
		for _, addr := range claims[i].Held {
			if !slices.Contains(a.users[addr], &claims[i]) {
				a.leaving[addr] = true // even if others keep it: who comes may share with them, and not with who goes
			}
		}
	}
	for _, step := range []func(*state.Claim, *need){a.request, a.choose} {
		for _, i := range order {
			for j := range needs[i] {
				if n := &needs[i][j]; !n.addr.IsValid() && n.reason == "" {
					step(&claims[i], n)
				}
			}
		}
	}
	grants := make([]Grant, len(claims))
	for i := range claims {
		grants[i] = grant(&claims[i], needs[i])
	}
	return grants
}

// need is one address a service has to get; reason says why it does not.
type need struct {
	v6           bool
	asked        []netip.Addr // any of them; empty: whatever is free
	addr         netip.Addr
	reason, text string
}

func (n *need) refuse(reason, format string, args ...any) {
	n.reason, n.text = reason, fmt.Sprintf(format, args...)
}

type allocator struct {
	pools   []Pool
	left    [][]state.AddressRange // of each pool, what has not been tried yet
	users   map[netip.Addr][]*state.Claim
	leaving map[netip.Addr]bool
	shared  map[string][]netip.Addr // by sharing key
}

// keep gives a service what it has already.
func (a *allocator) keep(c *state.Claim) []need {
	var needs []need
	for _, v6 := range families(c) {
		n := need{v6: v6}
		for _, addr := range c.RequestedIPs {
			if addr.Is6() == v6 {
				n.asked = append(n.asked, addr)
			}
		}
		for _, addr := range c.Held {
			if addr.Is6() != v6 || len(n.asked) > 0 && !slices.Contains(n.asked, addr) {
				continue
			}
			if pool, _ := a.poolOf(c, addr); pool != nil && a.obstacle(c, addr) == nil {
				a.take(c, &n, addr)
				break
			}
		}
		needs = append(needs, n)
	}
	return needs
}

// request gives a service the first of the addresses it asks for that it may have.
func (a *allocator) request(c *state.Claim, n *need) {
	var why []string
	reason := v1alpha1.ReasonNoPool
	for _, addr := range n.asked {
		pool, text := a.poolOf(c, addr)
		if pool == nil {
			why = append(why, text)
			continue
		}
		obstacle := a.obstacle(c, addr)
		if obstacle == nil && !a.leaving[addr] && !pool.Closed {
			a.take(c, n, addr)
			return
		}
		switch {
		case pool.Closed:
			why = append(why, fmt.Sprintf("%s, asked for, is in LoadBalancerPool %s, which gives out nothing more", addr, pool.Name))
		case obstacle == nil:
			reason = v1alpha1.ReasonConflict
			why = append(why, fmt.Sprintf("%s, asked for, is about to be given up by another service", addr))
		default:
			reason = v1alpha1.ReasonConflict
			why = append(why, fmt.Sprintf("%s, asked for, belongs to service %s: %s", addr, obstacle.with, obstacle.text))
		}
	}
	if len(why) > 0 {
		n.refuse(reason, "%s", strings.Join(why, "; "))
	}
}

// choose gives a service an address it can share, or the lowest free one.
func (a *allocator) choose(c *state.Claim, n *need) {
	for _, addr := range a.shared[c.SharingKey] {
		if addr.Is6() != n.v6 {
			continue
		}
		if pool, _ := a.poolOf(c, addr); pool != nil && !pool.Closed && !a.leaving[addr] && a.obstacle(c, addr) == nil {
			a.take(c, n, addr)
			return
		}
	}
	var full, closed []string
	for i, pool := range a.pools {
		if !pool.For(c.Labels) || !hasFamily(pool, n.v6) {
			continue
		}
		if pool.Closed {
			closed = append(closed, pool.Name)
			continue
		}
		if addr, ok := a.lowest(i, n.v6); ok {
			a.take(c, n, addr)
			return
		}
		full = append(full, pool.Name)
	}
	family := familyName(n.v6)
	switch {
	case len(full) > 0:
		n.refuse(v1alpha1.ReasonExhausted, "no %s address is free in LoadBalancerPool %s: add a block or a pool", family, strings.Join(full, ", "))
	case len(closed) > 0:
		n.refuse(v1alpha1.ReasonNoPool, "LoadBalancerPool %s, which has %s addresses for this service, is not in use: see its condition",
			strings.Join(closed, ", "), family)
	default:
		n.refuse(v1alpha1.ReasonNoPool, "no LoadBalancerPool with %s addresses is for this service", family)
	}
}

// lowest finds the lowest free address of a pool. Nothing becomes free while claims are being served, so it never looks back.
func (a *allocator) lowest(pool int, v6 bool) (netip.Addr, bool) {
	for i := range a.left[pool] {
		r := &a.left[pool][i]
		for r.First.IsValid() && r.First.Is6() == v6 && r.First.Compare(r.Last) <= 0 {
			addr := r.First
			r.First = addr.Next() // not valid behind the last of all addresses
			if len(a.users[addr]) == 0 && !a.leaving[addr] {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func (a *allocator) take(c *state.Claim, n *need, addr netip.Addr) {
	n.addr = addr
	a.users[addr] = append(a.users[addr], c)
	if list := a.shared[c.SharingKey]; c.SharingKey != "" && !slices.Contains(list, addr) {
		at, _ := slices.BinarySearchFunc(list, addr, netip.Addr.Compare)
		a.shared[c.SharingKey] = slices.Insert(list, at, addr)
	}
}

// poolOf finds the pool an address is in and that is for the service, or says why there is none. One that is open comes first.
func (a *allocator) poolOf(c *state.Claim, addr netip.Addr) (found *Pool, why string) {
	why = fmt.Sprintf("%s, asked for, is in no LoadBalancerPool", addr)
	for i := range a.pools {
		p := &a.pools[i]
		if !p.contains(addr) {
			continue
		}
		if !p.For(c.Labels) {
			why = fmt.Sprintf("%s, asked for, is in LoadBalancerPool %s, whose serviceSelector does not choose this service", addr, p.Name)
			continue
		}
		if found == nil || found.Closed && !p.Closed {
			found = p
		}
	}
	return found, why
}

// obstacle is why a service cannot have an address together with those that have it.
type obstacle struct {
	with state.ServiceName
	text string
}

func (a *allocator) obstacle(c *state.Claim, addr netip.Addr) *obstacle {
	for _, other := range a.users[addr] {
		switch {
		case other == c:
		case c.SharingKey == "" || c.SharingKey != other.SharingKey:
			return &obstacle{other.ServiceName, "with the same annotation " + v1alpha1.SharingKeyAnnotation + " they could have it in common"}
		case c.ExternalPolicy == state.PolicyLocal || other.ExternalPolicy == state.PolicyLocal:
			return &obstacle{other.ServiceName, "services that share an address want externalTrafficPolicy Cluster"}
		}
		for _, p := range c.Ports {
			if other != c && slices.ContainsFunc(other.Ports, func(q state.ServicePort) bool { return p.Port == q.Port && p.Protocol == q.Protocol }) {
				return &obstacle{other.ServiceName, fmt.Sprintf("both want port %d/%s", p.Port, p.Protocol)}
			}
		}
	}
	return nil
}

// grant puts together what became of a service.
func grant(c *state.Claim, needs []need) Grant {
	var g Grant
	var texts []string
	for _, n := range needs {
		if n.addr.IsValid() {
			g.Addresses = append(g.Addresses, n.addr)
			continue
		}
		if texts = append(texts, n.text); g.Says.Reason == "" {
			g.Says.Reason = n.reason
		}
	}
	for _, addr := range c.RequestedIPs {
		if !slices.ContainsFunc(needs, func(n need) bool { return n.v6 == addr.Is6() }) {
			texts = append(texts, fmt.Sprintf("%s, asked for: the service has no %s", addr, familyName(addr.Is6())))
			g.Says.Reason = cmp.Or(g.Says.Reason, v1alpha1.ReasonConflict)
		}
	}
	if len(texts) > 0 {
		g.Says.Message = strings.Join(texts, "; ")
		return g
	}
	g.Says = state.Allocation{Done: true, Reason: v1alpha1.ReasonAllocated, Message: join(g.Addresses)}
	return g
}

func join(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

// families returns the families of a service, as it names them or else as its ClusterIPs are.
func families(c *state.Claim) []bool {
	if len(c.Families) > 0 {
		return c.Families
	}
	var out []bool
	for _, a := range c.ClusterIPs {
		if !slices.Contains(out, a.Is6()) {
			out = append(out, a.Is6())
		}
	}
	return out
}

func hasFamily(p Pool, v6 bool) bool {
	return slices.ContainsFunc(p.Ranges, func(r state.AddressRange) bool { return r.First.Is6() == v6 })
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
