package operator

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/operator/cidr"
	"github.com/strait-net/strait/internal/state"
)

// Reasons of findings, as in events and metrics.
const (
	reasonOutside   = "PodCIDROutsidePool"
	reasonCollision = "PodCIDRCollision"
	reasonOverlap   = "PodCIDROverlap"
	reasonFamily    = "PodCIDRFamilyMissing"
	reasonExhausted = "PodCIDRPoolExhausted"
	reasonMissing   = "PodCIDRMissing"
	reasonRace      = "PodCIDRSetByAnother"
)

// grace is how long a node may be without pod CIDRs in mode kubernetes before that is a finding.
const grace = 30 * time.Second

// finding is something wrong with a node's pod CIDRs that only a person can repair.
type finding struct {
	node, uid, reason, text string
}

// assignment is what a node without pod CIDRs is to get.
type assignment struct {
	node, uid string
	cidrs     []netip.Prefix
}

// use is how much of a pool is given out.
type use struct {
	family     string
	used, free uint64
}

// plan is everything that follows from the nodes as they are.
type plan struct {
	assign   []assignment
	findings []finding
	pools    []use
	cursors  [2]uint64 // where the next plan begins to search, IPv4 and IPv6
}

// input is what a plan is made from.
type input struct {
	cfg   config.Config
	nodes []state.Node
	// pending holds the CIDRs that were sent for nodes, by UID, and are perhaps set although the node does not show them yet.
	pending map[string][]netip.Prefix
	cursors [2]uint64
	now     time.Time
}

// holding is one CIDR of one node.
type holding struct {
	prefix netip.Prefix
	node   state.Node
}

// makePlan is pure. A node that has pod CIDRs keeps them whatever they are; one that has none gets one of each enabled family, or none at all.
func makePlan(in input) plan {
	nodes := slices.Clone(in.nodes)
	slices.SortFunc(nodes, func(a, b state.Node) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	var out plan
	var held []holding
	var waiting []state.Node
	for _, n := range nodes {
		for _, p := range n.PodCIDRs {
			held = append(held, holding{p, n})
		}
		if len(n.PodCIDRs) == 0 {
			waiting = append(waiting, n)
		} else {
			out.findings = append(out.findings, checkNode(in.cfg, n)...)
		}
	}
	out.findings = append(out.findings, collisions(held)...)
	out.findings = append(out.findings, overlaps(in.cfg, nodes, held)...)
	if in.cfg.IPAM.Mode == config.ClusterPool {
		out.allocate(in, nodes, held, waiting)
	} else {
		out.findings = append(out.findings, missing(waiting, in.now)...)
	}
	slices.SortStableFunc(out.findings, func(a, b finding) int {
		return cmp.Or(strings.Compare(a.node, b.node), strings.Compare(a.reason, b.reason), strings.Compare(a.text, b.text))
	})
	return out
}

// allocate gives CIDRs to the nodes that wait, the oldest first.
func (out *plan) allocate(in input, nodes []state.Node, held []holding, waiting []state.Node) {
	closed := reserved(in.cfg, nodes)
	for _, h := range held {
		closed = append(closed, h.prefix)
	}
	sent := map[string][]netip.Prefix{}
	for _, n := range waiting {
		p := in.pending[n.UID]
		taken := func(q netip.Prefix) bool {
			return slices.ContainsFunc(held, func(h holding) bool { return h.prefix.Overlaps(q) })
		}
		if len(p) > 0 && !slices.ContainsFunc(p, taken) {
			sent[n.UID] = p
			closed = append(closed, p...)
		}
	}
	var pools [2]*cidr.Pool
	for i, family := range families(in.cfg) {
		if !family.pool.IsValid() {
			continue
		}
		pool, err := cidr.New(family.pool, family.bits, closed, in.cursors[i])
		if err != nil {
			return // refused by config.Validate
		}
		pools[i] = pool
	}
	for _, n := range waiting {
		cidrs := sent[n.UID]
		if cidrs == nil {
			var short string
			if cidrs, short = takeBoth(pools); cidrs == nil {
				out.findings = append(out.findings, finding{n.Name, n.UID, reasonExhausted, short})
				continue
			}
		}
		out.assign = append(out.assign, assignment{n.Name, n.UID, cidrs})
	}
	for i, pool := range pools {
		if pool != nil {
			out.cursors[i] = pool.Cursor()
			out.pools = append(out.pools, use{families(in.cfg)[i].name, pool.Size() - pool.Free(), pool.Free()})
		}
	}
}

// takeBoth takes one block of each pool, IPv4 first as Kubernetes shows them; nothing when one of the pools has none.
func takeBoth(pools [2]*cidr.Pool) (cidrs []netip.Prefix, short string) {
	for i, pool := range pools {
		if pool != nil && pool.Free() == 0 {
			family := "IPv4, ipam.podCIDRv4"
			if i == 1 {
				family = "IPv6, ipam.podCIDRv6"
			}
			return nil, fmt.Sprintf("no pod CIDR is left (%s: all %d are in use or overlap services or nodes); remove Node objects that are gone, "+
				"or add a larger pool", family, pool.Size())
		}
	}
	for _, pool := range pools {
		if pool != nil {
			block, _ := pool.Take()
			cidrs = append(cidrs, block)
		}
	}
	return cidrs, ""
}

// family is what the configuration says about one family; pool is zero when it is off.
type family struct {
	name, key string
	pool      netip.Prefix
	bits      int
}

func families(cfg config.Config) [2]family {
	return [2]family{
		{"IPv4", "ipam.podCIDRv4", cfg.PodCIDR(false), cfg.IPAM.NodeMaskV4},
		{"IPv6", "ipam.podCIDRv6", cfg.PodCIDR(true), cfg.IPAM.NodeMaskV6},
	}
}

// reserved lists what no pod CIDR may touch.
func reserved(cfg config.Config, nodes []state.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range cfg.ServiceCIDRs {
		out = append(out, s.Prefix)
	}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// checkNode finds what is wrong with a node's CIDRs by themselves.
func checkNode(cfg config.Config, n state.Node) []finding {
	var out []finding
	for i, f := range families(cfg) {
		v6 := i == 1
		enabled := cfg.IPv4
		if v6 {
			enabled = cfg.IPv6
		}
		if enabled && !n.PodCIDR(v6).IsValid() {
			out = append(out, finding{n.Name, n.UID, reasonFamily, fmt.Sprintf("spec.podCIDRs %v has no %s CIDR and cannot be changed any more; "+
				"drain the node, delete its Node object and let the kubelet register it again", n.PodCIDRs, f.name)})
		}
		for _, p := range n.PodCIDRs {
			if cfg.IPAM.Mode != config.ClusterPool || p.Addr().Is6() != v6 || !f.pool.IsValid() {
				continue
			}
			if p.Bits() < f.pool.Bits() || !f.pool.Contains(p.Addr()) {
				out = append(out, finding{n.Name, n.UID, reasonOutside, fmt.Sprintf("pod CIDR %s lies outside %s %s; another writer has set it: "+
					"is kube-controller-manager run with --allocate-node-cidrs=true? Then use ipam.mode kubernetes", p, f.key, f.pool)})
			}
		}
	}
	return out
}

// collisions finds nodes whose CIDRs have addresses in common. After sorting, a CIDR overlaps an earlier one exactly if
// the widest one begun before contains it.
func collisions(held []holding) []finding {
	sorted := slices.Clone(held)
	slices.SortStableFunc(sorted, func(a, b holding) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var out []finding
	var cover holding
	for _, h := range sorted {
		if !cover.prefix.IsValid() || !cover.prefix.Overlaps(h.prefix) {
			cover = h
			continue
		}
		younger, older := h, cover
		if h.node.Created.Before(cover.node.Created) {
			younger, older = cover, h
		}
		out = append(out, finding{younger.node.Name, younger.node.UID, reasonCollision, fmt.Sprintf("pod CIDR %s overlaps %s of node %s; "+
			"drain one of the nodes, delete its Node object and let the kubelet register it again", younger.prefix, older.prefix, older.node.Name)})
	}
	return out
}

// overlaps finds CIDRs that contain services or nodes.
func overlaps(cfg config.Config, nodes []state.Node, held []holding) []finding {
	var out []finding
	report := func(h holding, what string) {
		out = append(out, finding{h.node.Name, h.node.UID, reasonOverlap, fmt.Sprintf("pod CIDR %s overlaps %s; want ranges that have no address in common", h.prefix, what)})
	}
	byLength := map[int]map[netip.Prefix]holding{}
	for _, h := range held {
		for _, s := range cfg.ServiceCIDRs {
			if h.prefix.Overlaps(s.Prefix) {
				report(h, "service range "+s.String())
			}
		}
		if byLength[h.prefix.Bits()] == nil {
			byLength[h.prefix.Bits()] = map[netip.Prefix]holding{}
		}
		byLength[h.prefix.Bits()][h.prefix] = h
	}
	for _, n := range nodes {
		for _, a := range n.Addresses {
			for bits, list := range byLength {
				p, err := a.Prefix(bits)
				if err != nil {
					continue // a length of the other family
				}
				if h, ok := list[p]; ok {
					report(h, "address "+a.String()+" of node "+n.Name)
				}
			}
		}
	}
	return out
}

// missing finds nodes that kube-controller-manager has forgotten.
func missing(waiting []state.Node, now time.Time) []finding {
	var out []finding
	for _, n := range waiting {
		if now.Sub(n.Created) > grace {
			out = append(out, finding{n.Name, n.UID, reasonMissing, "spec.podCIDRs is empty and ipam.mode is kubernetes; run kube-controller-manager with " +
				"--allocate-node-cidrs=true and --cluster-cidr, or use ipam.mode cluster-pool"})
		}
	}
	return out
}
