package control

import (
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// podClaims are addresses that pods are said to have by nothing but an annotation, from ADD until a kubelet reports them. Whoever may write the pod
// can write it, so it is believed only of an address that
//
//   - lies in a pod CIDR of the pod's node, which is not this one: what is attached here is known;
//   - no node, API server, local attachment or pod with reported addresses has;
//   - no other pod of that node claims: of several none is believed, because which of them was first nobody knows after a restart.
//
// An address of which nothing is believed is unknown until a kubelet reports it.
type podClaims struct {
	byPod map[string][]claimed
	pods  map[claimed]map[string]bool // their keys
}

// claimed is an address that pods of a node claim.
type claimed struct {
	node string
	addr netip.Addr
}

func newPodClaims() podClaims {
	return podClaims{byPod: map[string][]claimed{}, pods: map[claimed]map[string]bool{}}
}

func (c *podClaims) add(key string, at claimed) {
	if c.pods[at] == nil {
		c.pods[at] = map[string]bool{}
	}
	c.pods[at][key] = true
	c.byPod[key] = append(c.byPod[key], at)
}

// remove forgets what a pod claims, and returns what that was.
func (c *podClaims) remove(key string) []claimed {
	all := c.byPod[key]
	for _, at := range all {
		if delete(c.pods[at], key); len(c.pods[at]) == 0 {
			delete(c.pods, at)
		}
	}
	delete(c.byPod, key)
	return all
}

// changedClaims takes in what a pod claims. Others that claim its addresses, or those it does not claim any more, are looked at again.
func (p *peers) changedClaims(key string, c *table.Change[state.Pod]) {
	for _, at := range p.claims.remove(key) {
		p.doubt(at)
	}
	if c.Row.HostNetwork {
		return
	}
	for _, a := range c.Row.Addresses {
		at := claimed{c.Row.Node, a}
		p.doubt(at)
		if c.Row.Claimed && !c.Deleted {
			p.claims.add(key, at)
		}
	}
}

// doubt marks the one pod that claims an address. Where there are several none is believed, whatever else has changed.
func (p *peers) doubt(at claimed) {
	if pods := p.claims.pods[at]; len(pods) == 1 {
		for key := range pods {
			p.stale[key] = true
		}
	}
}

// doubtAll marks all pods that claim addresses.
func (p *peers) doubtAll() {
	for key := range p.claims.byPod {
		p.stale[key] = true
	}
}

// claimAt is the only claim to an address that can be true: that of pods of the node whose pod CIDR it lies in, unless a node or an API server
// has it.
func (p *peers) claimAt(a netip.Addr) claimed {
	if area := p.solidAt(host(a)); area != nil {
		return claimed{area.node, a}
	}
	return claimed{addr: a}
}

// believed returns the addresses of a pod that are to be believed: all that a kubelet has reported, and of those that are claimed see podClaims.
func (p *peers) believed(pod *state.Pod, s *subjects) []netip.Addr {
	if !pod.Claimed {
		return pod.Addresses
	}
	if pod.Node == "" || pod.Node == p.own {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(pod.Addresses), func(a netip.Addr) bool {
		at := claimed{pod.Node, a}
		return p.claimAt(a) != at || len(p.claims.pods[at]) > 1 || p.reported(a) || s.attachedAt(a)
	})
}

// reported reports whether a kubelet says that a pod has an address.
func (p *peers) reported(a netip.Addr) bool {
	for range p.state.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		return true
	}
	return false
}

// attachedAt reports whether a local attachment has an address.
func (s *subjects) attachedAt(a netip.Addr) bool {
	for _, l := range s.locals {
		if slices.Contains(l.addrs, a) {
			return true
		}
	}
	return false
}
