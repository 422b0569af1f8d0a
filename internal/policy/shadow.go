package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Shadow is a rule that never decides anything, because another one always does so before it.
type Shadow struct {
	Rule RuleRef
	By   RuleRef // with an empty Path: that policy isolates what the rule is about. Builtin: the own node passes anyway
}

// Shadowed returns the rules of policies that never decide anything wherever they are in use. It names none that could decide, but does not
// find them all: each is compared with one other at a time.
func Shadowed(policies []*Policy) []Shadow {
	var out []Shadow
	for _, way := range []Way{Egress, Ingress} {
		s := newShadows(policies, way)
		for i := range s.rules {
			r := &s.rules[i]
			if by, ok := s.by(r); ok {
				out = append(out, Shadow{Rule: r.ref(way), By: by})
			}
		}
	}
	slices.SortFunc(out, func(a, b Shadow) int { return cmp.Or(a.Rule.Compare(b.Rule), a.By.Compare(b.By)) })
	return slices.Compact(out)
}

// shadows are all rules of one way, in the order in which they decide.
type shadows struct {
	way      Way
	rules    []shading
	places   map[place][]int32 // rules, ascending
	isolates map[anchor][]*Policy
	passes   int // index of the first rule of the admin tier that passes, or len(rules)
}

// place is where rules are looked for that may be broader than another: by something that their subject demands, and something that one of
// their peers demands. Zero: they demand nothing by which they could be found.
type place struct {
	subject anchor
	peer    anchor
	prefix  netip.Prefix // of peers that are CIDRs
}

// shading is a rule that may shadow others or be shadowed.
type shading struct {
	*Rule
	policy *Policy
	stage  stage
	index  int32
}

func (r *shading) ref(way Way) RuleRef { return RuleRef{Ref: r.policy.Ref, Way: way, Path: r.Path} }

func newShadows(policies []*Policy, way Way) *shadows {
	s := &shadows{way: way, places: map[place][]int32{}, isolates: map[anchor][]*Policy{}}
	for _, p := range sorted(policies) {
		direction := p.Of(way)
		if direction.Isolates && p.Tier == Normal {
			for _, a := range p.Subject.demanded() {
				s.isolates[a] = append(s.isolates[a], p)
			}
		}
		for i := range direction.Rules {
			r := &direction.Rules[i]
			void := r.Peers != nil && len(r.Peers) == 0 || r.Ports != nil && len(r.Ports) == 0 || p.Tier == Normal && r.Action == Pass
			if !void {
				s.rules = append(s.rules, shading{Rule: r, policy: p, stage: stageOf(p.Tier, r.Action)})
			}
		}
	}
	slices.SortStableFunc(s.rules, func(a, b shading) int { return cmp.Compare(a.stage, b.stage) })
	s.passes = len(s.rules)
	for i := range s.rules {
		r := &s.rules[i]
		r.index = int32(i)
		if r.stage == adminStage && r.Action == Pass {
			s.passes = min(s.passes, i)
		}
		s.put(r)
	}
	return s
}

// put puts a rule where it is found by what it may be broader than.
func (s *shadows) put(r *shading) {
	subjects := r.policy.Subject.demanded()
	at := func(p place) {
		for _, p.subject = range subjects {
			if list := s.places[p]; len(list) == 0 || list[len(list)-1] != r.index {
				s.places[p] = append(list, r.index)
			}
		}
	}
	if r.Peers == nil {
		at(place{})
	}
	for i := range r.Peers {
		if peer := &r.Peers[i]; peer.Kind == SelectCIDR {
			at(place{prefix: peer.CIDR})
		} else {
			for _, a := range peer.demanded() {
				at(place{peer: a})
			}
		}
	}
}

// demanded returns what a selector of pods or nodes is found by: one of these values has who it means. It is that of a label rather than of a
// name; the zero anchor if there is none.
func (s *Selector) demanded() []anchor {
	var found *Requirement
	if s.Kind == SelectPods || s.Kind == SelectNodes {
		for i := range s.Requirements {
			if r := &s.Requirements[i]; r.Op == In && (found == nil || r.Source == PodLabel && found.Source != PodLabel) {
				found = r
			}
		}
	}
	if found == nil {
		return []anchor{{}}
	}
	out := make([]anchor, len(found.Values))
	for i, v := range found.Values {
		out[i] = anchor{source: found.Source, key: found.Key, value: v}
	}
	return out
}

// offers returns by what a selector may be found that includes s: each value that all whom s means have.
func (s *Selector) offers() []anchor {
	out := []anchor{{}}
	if s.Kind == SelectPods || s.Kind == SelectNodes {
		for i := range s.Requirements {
			if r := &s.Requirements[i]; r.Op == In && len(r.Values) > 0 {
				out = append(out, anchor{source: r.Source, key: r.Key, value: r.Values[0]})
			}
		}
	}
	return out
}

// placesOf returns where rules may be that are broader than r, the subject apart.
func placesOf(r *Rule) []place {
	out := []place{{}}
	if len(r.Peers) == 0 {
		return out
	}
	first := &r.Peers[0]
	for _, a := range first.offers()[1:] {
		out = append(out, place{peer: a})
	}
	if first.Kind == SelectCIDR {
		for length := range first.CIDR.Bits() + 1 {
			if prefix, err := first.CIDR.Addr().Prefix(length); err == nil {
				out = append(out, place{prefix: prefix})
			}
		}
	}
	return out
}

// by returns what shadows a rule.
func (s *shadows) by(r *shading) (RuleRef, bool) {
	if s.way == Ingress && r.Peers != nil && !slices.ContainsFunc(r.Peers, func(p Selector) bool { return p.Kind != SelectEntity || p.Entity != EntityHost }) {
		return builtin(OwnNode, s.way), true
	}
	first := r.index
	subjects, places := r.policy.Subject.offers(), placesOf(r.Rule)
	for _, p := range places {
		for _, p.subject = range subjects {
			first = s.firstAt(p, r, first)
		}
	}
	if first < r.index {
		return s.rules[first].ref(s.way), true
	}
	if r.stage == baselineStage {
		for _, a := range subjects {
			for _, p := range s.isolates[a] {
				if selects(p, r.policy) {
					return RuleRef{Ref: p.Ref, Way: s.way}, true
				}
			}
		}
	}
	return RuleRef{}, false
}

// firstAt returns the first rule of a place that shadows r, if it comes before the one that is known.
func (s *shadows) firstAt(p place, r *shading, known int32) int32 {
	for _, i := range s.places[p] {
		if i >= known {
			break
		}
		if s.shades(&s.rules[i], r) {
			return i
		}
	}
	return known
}

// shades reports whether a always decides before b, which comes later.
func (s *shadows) shades(a, b *shading) bool {
	// What goes from the admin tier to the next is judged there again: by b, and never by a if an earlier rule passed it on.
	if a.stage == adminStage && b.stage != adminStage && (a.Action == Pass || s.passes < int(a.index)) {
		return false
	}
	return a.coversPorts(b.Rule) && a.coversPeers(b.Rule) && selects(a.policy, b.policy)
}

// selects reports whether a is in force wherever b is. What is only audited enforces nothing.
func selects(a, b *Policy) bool {
	return a.Node == b.Node && (!a.Audit || b.Audit) && a.Subject.includes(&b.Subject)
}

func (r *Rule) coversPeers(o *Rule) bool {
	if r.Peers == nil {
		return true
	}
	if o.Peers == nil {
		return slices.ContainsFunc(r.Peers, func(s Selector) bool { return s.Kind == SelectEntity && s.Entity == EntityAll })
	}
	return all(o.Peers, func(inner *Selector) bool {
		return some(r.Peers, func(outer *Selector) bool { return outer.includes(inner) })
	})
}

func (r *Rule) coversPorts(o *Rule) bool {
	if r.Ports == nil {
		return true
	}
	return o.Ports != nil && all(o.Ports, func(inner *Port) bool {
		return slices.ContainsFunc(r.Ports, func(outer Port) bool { return outer.includes(*inner) })
	})
}

func all[T any](list []T, holds func(*T) bool) bool {
	for i := range list {
		if !holds(&list[i]) {
			return false
		}
	}
	return true
}

func some[T any](list []T, holds func(*T) bool) bool {
	for i := range list {
		if holds(&list[i]) {
			return true
		}
	}
	return false
}

// includes reports whether p matches whatever o matches.
func (p Port) includes(o Port) bool {
	if p.Protocol == AnyProtocol && p.Name == "" && p.First == 0 && p.Last == 0 {
		return true
	}
	if p.Protocol != o.Protocol && (p.Protocol != AnyProtocol || !o.Protocol.HasPorts()) {
		return false
	}
	whole := p.First == 0 && p.Last == 0
	if p.Name != "" || o.Name != "" {
		return p.Name == o.Name || p.Name == "" && whole
	}
	return whole || (o.First != 0 || o.Last != 0) && p.First <= o.First && o.Last <= p.Last
}

// includes reports whether s means every peer that o means. It may say no where the answer is yes.
func (s *Selector) includes(o *Selector) bool {
	if s.Kind == SelectEntity {
		return s.Entity.includes(o)
	}
	if s.Kind != o.Kind {
		return false
	}
	switch s.Kind {
	case SelectPods, SelectNodes:
		return all(s.Requirements, func(r *Requirement) bool {
			return some(o.Requirements, func(given *Requirement) bool { return given.implies(r) })
		})
	case SelectCIDR:
		return (s.Everyone || !o.Everyone) && within(s.CIDR, o.CIDR) && all(s.Except, func(e *netip.Prefix) bool {
			return !e.Overlaps(o.CIDR) || slices.ContainsFunc(o.Except, func(given netip.Prefix) bool { return within(given, *e) })
		})
	case SelectService:
		return s.Service == o.Service
	}
	return false
}

// implies reports whether r holds wherever given holds.
func (given *Requirement) implies(r *Requirement) bool {
	if given.Source != r.Source || given.Key != r.Key {
		return false
	}
	switch r.Op {
	case In:
		return given.Op == In && all(given.Values, func(v *string) bool { return r.has(*v) })
	case NotIn:
		switch given.Op {
		case In:
			return all(given.Values, func(v *string) bool { return !r.has(*v) })
		case NotIn:
			return all(r.Values, func(v *string) bool { return given.has(*v) })
		}
		return given.Op == DoesNotExist
	case Exists:
		return given.Op == In || given.Op == Exists
	case DoesNotExist:
		return given.Op == DoesNotExist
	}
	return false
}

// includes reports whether e has every peer that o means.
func (e Entity) includes(o *Selector) bool {
	if e == EntityAll || o.Kind == SelectEntity && (o.Entity == e || o.Entity == EntityNone) {
		return true
	}
	switch e {
	case EntityWorld:
		return o.Kind == SelectCIDR && !o.Everyone || o.Kind == SelectEntity && (o.Entity == EntityWorldIPv4 || o.Entity == EntityWorldIPv6)
	case EntityCluster:
		return o.Kind == SelectPods || o.Kind == SelectNodes ||
			o.Kind == SelectEntity && (o.Entity == EntityHost || o.Entity == EntityRemoteNode || o.Entity == EntityUnmanaged)
	}
	return false
}
