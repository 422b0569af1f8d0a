package policy

import (
	"net/netip"
	"slices"
)

// Index holds the selectors in use and finds those that a peer matches without asking each. One goroutine at a time.
type Index struct {
	entries map[string]*indexed
	// anchors: selectors of pods and nodes that demand one of a few values of something are found by what the peer has there.
	anchors  map[anchor]bucket
	prefixes map[netip.Prefix]bucket // by CIDR
	services map[string]bucket
	rest     bucket // asked one by one
	// lengths counts prefixes of each length, of IPv4 and IPv6.
	lengths    [2][129]int
	boundaries map[netip.Prefix]int // Selector.Prefixes, counted
}

// bucket is a few selectors, in no order: most have one, and a map of each would be most of what an Index weighs.
type bucket []*indexed

// indexed is a selector in use.
type indexed struct {
	key      string
	selector Selector
	uses     int
	ports    []askedPort
	anchored *Requirement // under whose values it is; nil: in no anchor
	within   string       // namespace that the anchors are of, if the selector names just one
}

// askedPort is a named port with how often it is asked for.
type askedPort struct {
	PortName
	uses int
}

// anchor is a value that peers have. For labels of pods within is the namespace, if the selector names it.
type anchor struct {
	source     Source
	within     string
	key, value string
}

// NewIndex returns an index without selectors.
func NewIndex() *Index {
	return &Index{
		entries:    map[string]*indexed{},
		anchors:    map[anchor]bucket{},
		prefixes:   map[netip.Prefix]bucket{},
		services:   map[string]bucket{},
		boundaries: map[netip.Prefix]int{},
	}
}

// Add counts one more use of a selector and of each of its named ports. It reports whether what Match returns may be other than before.
func (x *Index) Add(w Wanted) bool {
	e, found := x.entries[w.Key]
	if !found {
		e = &indexed{key: w.Key, selector: w.Selector}
		x.entries[w.Key] = e
		x.place(e)
	}
	e.uses++
	changed := !found
	for _, p := range w.Ports {
		i := slices.IndexFunc(e.ports, func(a askedPort) bool { return a.PortName == p })
		if i < 0 {
			e.ports = append(e.ports, askedPort{PortName: p})
			i, changed = len(e.ports)-1, true
		}
		e.ports[i].uses++
	}
	return changed
}

// Remove takes back one Add. It reports whether what Match returns may be other than before. What was not added is ignored.
func (x *Index) Remove(w Wanted) bool {
	e, found := x.entries[w.Key]
	if !found {
		return false
	}
	changed := false
	for _, p := range w.Ports {
		i := slices.IndexFunc(e.ports, func(a askedPort) bool { return a.PortName == p })
		if i < 0 {
			continue
		}
		if e.ports[i].uses--; e.ports[i].uses == 0 {
			e.ports = slices.Delete(e.ports, i, i+1)
			changed = true
		}
	}
	if e.uses--; e.uses > 0 {
		return changed
	}
	delete(x.entries, w.Key)
	x.displace(e)
	return true
}

// Len returns the number of selectors.
func (x *Index) Len() int { return len(x.entries) }

// Prefixes returns where the answer of a selector changes with the address, sorted: each needs a row in the table of identities.
func (x *Index) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(x.boundaries))
	for p := range x.boundaries {
		out = append(out, p)
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

// Services returns the "namespace/name" of the services that selectors ask for, sorted.
func (x *Index) Services() []string {
	out := make([]string, 0, len(x.services))
	for s := range x.services {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// Match returns the selectors that the peer matches, with its numbers for named ports, sorted.
func (x *Index) Match(p *Peer) Matches {
	var out Matches
	x.candidates(p, func(b bucket) {
		for _, e := range b {
			if !e.selector.Matches(p) {
				continue
			}
			out = append(out, Match{Selector: e.key})
			for _, asked := range e.ports {
				for _, n := range namedPorts(p.Ports, asked.Name, asked.Protocol) {
					out = append(out, Match{Selector: e.key, Name: n.Name, Protocol: n.Protocol, Port: n.Port})
				}
			}
		}
	})
	slices.SortFunc(out, Match.Compare)
	return slices.Compact(out)
}

// candidates calls found with every bucket that may hold selectors of the peer.
func (x *Index) candidates(p *Peer, found func(bucket)) {
	at := func(a anchor) {
		if b := x.anchors[a]; len(b) > 0 {
			found(b)
		}
	}
	switch p.Kind {
	case PodPeer:
		at(anchor{source: NamespaceName, value: p.Namespace})
		at(anchor{source: ServiceAccount, value: p.ServiceAccount})
		for _, l := range p.Labels {
			at(anchor{source: PodLabel, key: l.Key, value: l.Value})
			at(anchor{source: PodLabel, within: p.Namespace, key: l.Key, value: l.Value})
		}
		for _, l := range p.NamespaceLabels {
			at(anchor{source: NamespaceLabel, key: l.Key, value: l.Value})
		}
	case HostPeer, NodePeer:
		for _, l := range p.NodeLabels {
			at(anchor{source: NodeLabel, key: l.Key, value: l.Value})
		}
	}
	for _, s := range p.Services {
		if b := x.services[s]; len(b) > 0 {
			found(b)
		}
	}
	if p.Prefix.IsValid() {
		for length := range p.Prefix.Bits() + 1 {
			if x.lengths[family(p.Prefix)][length] == 0 {
				continue
			}
			if covering, err := p.Prefix.Addr().Prefix(length); err == nil && len(x.prefixes[covering]) > 0 {
				found(x.prefixes[covering])
			}
		}
	}
	if len(x.rest) > 0 {
		found(x.rest)
	}
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// place puts a new selector where candidates finds it.
func (x *Index) place(e *indexed) {
	for _, p := range e.selector.Prefixes() {
		x.boundaries[p]++
	}
	switch e.selector.Kind {
	case SelectCIDR:
		put(x.prefixes, e.selector.CIDR, e)
		x.lengths[family(e.selector.CIDR)][e.selector.CIDR.Bits()]++
	case SelectService:
		put(x.services, e.selector.Service, e)
	case SelectPods, SelectNodes:
		x.choose(e)
		if e.anchored == nil {
			x.rest = append(x.rest, e)
			return
		}
		for _, v := range e.anchored.Values {
			put(x.anchors, e.anchor(v), e)
		}
	default:
		x.rest = append(x.rest, e)
	}
}

// displace undoes place.
func (x *Index) displace(e *indexed) {
	for _, p := range e.selector.Prefixes() {
		if x.boundaries[p]--; x.boundaries[p] == 0 {
			delete(x.boundaries, p)
		}
	}
	switch {
	case e.selector.Kind == SelectCIDR:
		take(x.prefixes, e.selector.CIDR, e)
		x.lengths[family(e.selector.CIDR)][e.selector.CIDR.Bits()]--
	case e.selector.Kind == SelectService:
		take(x.services, e.selector.Service, e)
	case e.anchored != nil:
		for _, v := range e.anchored.Values {
			take(x.anchors, e.anchor(v), e)
		}
	default:
		x.rest = x.rest.without(e)
	}
}

func put[K comparable](in map[K]bucket, at K, e *indexed) { in[at] = append(in[at], e) }

func take[K comparable](from map[K]bucket, at K, e *indexed) {
	if from[at] = from[at].without(e); len(from[at]) == 0 {
		delete(from, at)
	}
}

// without returns b, changed, in which e is no longer.
func (b bucket) without(e *indexed) bucket {
	if i := slices.Index(b, e); i >= 0 {
		last := len(b) - 1
		b[i], b[last] = b[last], nil
		b = b[:last]
	}
	return b
}

func (e *indexed) anchor(value string) anchor {
	a := anchor{source: e.anchored.Source, key: e.anchored.Key, value: value}
	if a.source == PodLabel {
		a.within = e.within
	}
	return a
}

// lastResort is more than any number of selectors.
const lastResort = 1 << 30

// choose finds the requirement that keeps apart best: the one whose values have the fewest selectors so far. A namespace counts only where
// there is no label, with which it goes together.
func (x *Index) choose(e *indexed) {
	requirements := e.selector.Requirements
	for i := range requirements {
		if r := &requirements[i]; r.Source == NamespaceName && r.Op == In && len(r.Values) == 1 {
			e.within = r.Values[0]
		}
	}
	best, bestCost := (*Requirement)(nil), 0
	for i := range requirements {
		r := &requirements[i]
		if r.Op != In || !anchorable(e.selector.Kind, r.Source) {
			continue
		}
		e.anchored = r
		cost := 0
		for _, v := range r.Values {
			cost += 1 + len(x.anchors[e.anchor(v)])
		}
		if r.Source == NamespaceName {
			cost += lastResort
		}
		if best == nil || cost < bestCost {
			best, bestCost = r, cost
		}
	}
	e.anchored = best
}

func anchorable(kind SelectorKind, s Source) bool {
	if kind == SelectNodes {
		return s == NodeLabel
	}
	return s == PodLabel || s == NamespaceName || s == NamespaceLabel || s == ServiceAccount
}
