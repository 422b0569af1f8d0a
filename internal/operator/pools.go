package operator

import (
	"cmp"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/operator/address"
	"github.com/strait-net/strait/internal/state"
)

// poolVerdict is a pool and whether addresses are taken from it.
type poolVerdict struct {
	state.Pool
	status state.PoolStatus // without the counts
}

// occupied is a range that no pool may touch, and what has it.
type occupied struct {
	state.AddressRange
	by string
}

// judgePools finds the pools that may be used; it is pure. Of two that overlap the older one may. The order is that in which addresses
// are taken: pools with a selector before those without, then by name.
//
// The network of a node is nothing a pool must keep out of: addresses that are announced by ARP and neighbour discovery lie in it.
func judgePools(pools []state.Pool, taken []occupied) []poolVerdict {
	byAge := slices.Clone(pools)
	slices.SortFunc(byAge, func(a, b state.Pool) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	var older []occupied
	var out []poolVerdict
	for _, p := range byAge {
		v := poolVerdict{Pool: p, status: state.PoolStatus{Ready: true, Reason: v1alpha1.ReasonInUse, Generation: p.Generation}}
		refuse := func(reason, format string, args ...any) {
			v.status.Ready, v.status.Reason, v.status.Message = false, reason, fmt.Sprintf(format, args...)
		}
		own, self := overlapWithin(p.Ranges)
		mine, other, overlaps := firstOverlap(p.Ranges, taken)
		if !overlaps {
			mine, other, overlaps = firstOverlap(p.Ranges, older)
		}
		switch {
		case p.Invalid != "":
			refuse(v1alpha1.ReasonInvalid, "%s", p.Invalid)
		case self:
			refuse(v1alpha1.ReasonInvalid, "spec.blocks: %s is in two of them", own)
		case overlaps:
			refuse(v1alpha1.ReasonOverlap, "block %s of LoadBalancerPool %s overlaps %s; want addresses that nothing else has; services keep those they have "+
				"been given", mine, p.Name, other.by)
		case p.Disabled:
			refuse(v1alpha1.ReasonDisabled, "spec.disabled is true; services keep the addresses they have been given")
		}
		if v.status.Ready || v.status.Reason == v1alpha1.ReasonDisabled {
			for _, r := range p.Ranges {
				older = append(older, occupied{r, fmt.Sprintf("block %s of LoadBalancerPool %s, which is older", r, p.Name)})
			}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b poolVerdict) int {
		if (a.Selector == "") != (b.Selector == "") {
			return map[bool]int{true: 1, false: -1}[a.Selector == ""]
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// firstOverlap finds the first of taken that has an address in common with one of ranges.
func firstOverlap(ranges []state.AddressRange, taken []occupied) (mine state.AddressRange, other occupied, found bool) {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b state.AddressRange) int { return a.First.Compare(b.First) })
	var last netip.Addr // of the ranges so far; a pool whose own blocks overlap is refused for that
	for i := range sorted {
		if last.IsValid() && sorted[i].Last.Compare(last) < 0 {
			sorted[i].Last = last
		}
		last = sorted[i].Last
	}
	for _, t := range taken {
		// The last range that begins before t ends: no other can reach into t if this one does not.
		at, _ := slices.BinarySearchFunc(sorted, t.Last, func(r state.AddressRange, a netip.Addr) int {
			if r.First.Compare(a) <= 0 {
				return -1
			}
			return 1
		})
		if at > 0 && sorted[at-1].Overlaps(t.AddressRange) {
			return sorted[at-1], t, true
		}
	}
	return state.AddressRange{}, occupied{}, false
}

func overlapWithin(ranges []state.AddressRange) (state.AddressRange, bool) {
	for i, a := range ranges {
		for _, b := range ranges[i+1:] {
			if a.Overlaps(b) {
				first, last := a.First, a.Last
				if first.Less(b.First) {
					first = b.First
				}
				if b.Last.Less(last) {
					last = b.Last
				}
				return state.AddressRange{First: first, Last: last}, true
			}
		}
	}
	return state.AddressRange{}, false
}

// taken lists what pods, nodes and services have.
func takenRanges(cfg config.Config, nodes []state.Node, claims []state.Claim) []occupied {
	var out []occupied
	prefix := func(p netip.Prefix, by string) {
		if p.IsValid() {
			out = append(out, occupied{state.RangeOf(p), by})
		}
	}
	for _, f := range families(cfg) {
		prefix(f.pool, fmt.Sprintf("%s %s, the addresses of pods", f.key, f.pool))
	}
	for _, s := range cfg.ServiceCIDRs {
		prefix(s.Prefix, fmt.Sprintf("serviceCIDRs %s, the addresses of services", s))
	}
	for _, n := range nodes {
		for _, p := range n.PodCIDRs {
			prefix(p, fmt.Sprintf("pod CIDR %s of node %s", p, n.Name))
		}
		for _, a := range n.Addresses {
			prefix(netip.PrefixFrom(a, a.BitLen()), fmt.Sprintf("address %s of node %s", a, n.Name))
		}
	}
	for _, c := range claims {
		for _, a := range c.ClusterIPs {
			prefix(netip.PrefixFrom(a, a.BitLen()), fmt.Sprintf("ClusterIP %s of service %s", a, c))
		}
	}
	return out
}

// allocatorPools is what the allocator takes from.
func allocatorPools(verdicts []poolVerdict) []address.Pool {
	out := make([]address.Pool, 0, len(verdicts))
	for _, v := range verdicts {
		selector, err := labels.Parse(v.Selector)
		if err != nil { // kube has made this text from a selector
			selector = labels.Nothing()
		}
		out = append(out, address.Pool{
			Name: v.Name, Ranges: v.Ranges, Closed: !v.status.Ready,
			For: func(l map[string]string) bool { return selector.Matches(labels.Set(l)) },
		})
	}
	return out
}

// countPools adds the counts to the verdicts; given are all addresses that services have or are about to have, each once.
func countPools(verdicts []poolVerdict, given map[netip.Addr]bool) {
	for i := range verdicts {
		v := &verdicts[i]
		total := [2]*big.Int{new(big.Int), new(big.Int)}
		for _, r := range v.Ranges {
			n := new(big.Int).Sub(number(r.Last), number(r.First))
			total[family6(r.First)].Add(total[family6(r.First)], n.Add(n, big.NewInt(1)))
		}
		var used [2]int64
		for a := range given {
			if slices.ContainsFunc(v.Ranges, func(r state.AddressRange) bool { return r.Contains(a) }) {
				used[family6(a)]++
			}
		}
		for f := range total {
			free := new(big.Int).Sub(total[f], big.NewInt(used[f]))
			v.status.Counts[f] = state.AddressCount{Total: capped(total[f]), Allocated: used[f], Free: capped(free)}
		}
	}
}

func family6(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

func capped(n *big.Int) int64 {
	if n.IsInt64() {
		return n.Int64()
	}
	return 1<<63 - 1
}
