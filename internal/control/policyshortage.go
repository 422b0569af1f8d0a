package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// shortage is what is held back because the kernel's tables have no room for it next to programs in use. It is tried again at a time.
type shortage struct {
	idents   map[identity.ID]*withheld  // to which programs have no answers: who has one is identity.Unanswered in the kernel
	prefixes map[netip.Prefix]*withheld // that have no row: they count as what is around them
	blurred  map[netip.Prefix]bool      // areas of which one of prefixes may not count as the rest: all of it is identity.Unanswered
	tight    map[netip.Prefix]bool      // without a row, and none to be had: what is around is blurred there; nil: it is not as bad as that
	until    time.Time                  // zero: nothing is held back
	anybody  *ident                     // identity.Unanswered: programs answer it from the beginning
}

// keptFree is which part of the table of identities is left for others when it is full.
const keptFree = 16

// withheld is one thing that is held back.
type withheld struct {
	why      *policy.NoRoom
	programs map[policy.ID]bool // that would say something else otherwise
}

func newShortage() shortage {
	return shortage{
		idents: map[identity.ID]*withheld{}, prefixes: map[netip.Prefix]*withheld{}, blurred: map[netip.Prefix]bool{},
		anybody: &ident{Identity: policy.Identity{ID: identity.Unanswered}},
	}
}

// fitting returns whose row a prefix has in the kernel as far as there is room.
func (p *peers) fitting(prefix netip.Prefix) *ident {
	id := p.row(prefix)
	switch before := p.rows[prefix]; {
	case p.short.prefixes[prefix] != nil:
		return nil
	case p.short.blurred[prefix]:
		return p.short.anybody
	case id == nil || p.short.idents[id.ID] == nil:
		return id
	case id.Kind == policy.HostPeer && before != nil && before.told && before.Kind == policy.HostPeer:
		return before // nobody else can have come to have the own node's address, and probes go on
	}
	return p.short.anybody
}

// untold returns the identities with rows that the writer does not know: pods last, then in the order of their numbers.
func (p *peers) untold() (out []*ident) {
	for id := range p.touchedIdents {
		if id.rows > 0 && !id.told {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b *ident) int {
		return cmp.Or(compareBools(a.Kind == policy.PodPeer, b.Kind == policy.PodPeer), cmp.Compare(a.ID, b.ID))
	})
	return out
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// touchHeld makes rows of identities that are held back be looked at.
func (p *peers) touchHeld() {
	p.short.until = time.Now().Add(refuseFor)
	for prefix := range p.rows {
		if id := p.row(prefix); id != nil && p.short.idents[id.ID] != nil {
			p.touched[prefix] = true
		}
	}
}

// retryHeld lets what is held back be tried again.
func (p *peers) retryHeld(now time.Time) {
	if p.short.until.IsZero() || now.Before(p.short.until) {
		return
	}
	p.touchHeld()
	for prefix := range p.short.prefixes {
		p.touched[prefix] = true
	}
	for prefix := range p.short.blurred {
		p.touched[prefix] = true
	}
	anybody := p.short.anybody
	p.short = newShortage()
	p.short.anybody = anybody
}

// holdRows leaves as many prefixes as do not fit without a row, of those that have none yet: pods before anything else, and of them first those who
// may do whatever those around them may; of these the highest addresses. It reports whether there was any.
func (p *peers) holdRows(room *policy.NoRoom, s *subjects) bool {
	harmful := p.harm(s)
	p.short.until = time.Now().Add(refuseFor)
	type candidate struct {
		netip.Prefix
		area, harmful bool
	}
	var list []candidate
	for _, prefix := range room.Prefixes {
		if prefix.Bits() > 0 && !p.short.blurred[prefix] && p.short.prefixes[prefix] == nil {
			list = append(list, candidate{prefix, p.areas[prefix] != nil, harmful(prefix)})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(compareBools(a.area, b.area), compareBools(a.harmful, b.harmful), b.Addr().Compare(a.Addr()), cmp.Compare(b.Bits(), a.Bits()))
	})
	if len(list) == 0 && p.short.tight == nil && len(room.Prefixes) > 0 {
		p.short.tight = map[netip.Prefix]bool{}
		for _, prefix := range room.Prefixes {
			p.short.tight[prefix] = true
		}
		return true
	}
	list = list[:min(max(room.Need-room.Fit, 1)+int(p.cfg.Maps.Identities)/keptFree, len(list))]
	for _, c := range list {
		w := &withheld{why: room}
		if id := p.row(c.Prefix); id != nil {
			w.programs = programsOf(s.answersTo(id))
		}
		p.short.prefixes[c.Prefix] = w
		p.touched[c.Prefix] = true
	}
	return len(list) > 0
}

// blur finds the areas in which somebody who has no row might do more than he may, if he counted as the others there.
func (p *peers) blur(s *subjects) {
	if len(p.short.prefixes)+len(p.short.blurred) == 0 {
		return
	}
	before, harmful := p.short.blurred, p.harm(s)
	p.short.blurred = map[netip.Prefix]bool{}
	for prefix := range p.short.prefixes {
		if harmful(prefix) {
			area := p.outside(prefix).peer.Prefix
			p.short.blurred[area], p.touched[area] = true, true
		}
	}
	for area := range before {
		p.touched[area] = true
	}
}

// outside returns the smallest area that a prefix lies in and that has a row, or may have one; nil: there is none.
func (p *peers) outside(prefix netip.Prefix) *area {
	for a := p.around(prefix, false); a != nil; a = p.around(prefix, false) {
		prefix = a.peer.Prefix
		if p.short.prefixes[prefix] == nil && (p.short.tight == nil || p.row(prefix) != nil && !p.short.tight[prefix]) {
			return a
		}
	}
	return nil
}

// harm returns a function that tells whether some program lets through those around a prefix where it stops who has the prefix.
func (p *peers) harm(s *subjects) func(netip.Prefix) bool {
	known := map[[2]*ident]bool{}
	return func(prefix netip.Prefix) bool {
		id, area := p.row(prefix), p.outside(prefix)
		if id == nil || area == nil || p.short.idents[area.ident.ID] != nil {
			return false
		}
		pair := [2]*ident{id, area.ident}
		if _, done := known[pair]; !done {
			known[pair] = s.lets(area.ident, id)
		}
		return known[pair]
	}
}

// lets reports whether some program lets a through where it stops b.
func (s *subjects) lets(a, b *ident) bool {
	for _, u := range s.uses {
		if !u.told && len(u.ends) == 0 {
			continue // nobody has it
		}
		for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
			if !u.program.Entry(way, a.Kind, a.Matches).Within(u.program.Entry(way, b.Kind, b.Matches)) {
				return true
			}
		}
	}
	return false
}

// shortages returns what programs in use are told nothing of, and all that is held back as problems.
func (p *Policies) shortages() (lacking map[policy.ID]string, wrong []state.Problem) {
	short, uses := &p.peers.short, p.subjects.uses
	if short.until.IsZero() {
		return nil, nil
	}
	who := map[*withheld][]string{} // as people know them
	outside := make([]string, 0, len(short.prefixes))
	for prefix, w := range short.prefixes {
		who[w] = append(who[w], p.peers.whoHas(prefix))
		outside = append(outside, p.peers.whoHas(prefix))
	}
	for prefix, have := range p.peers.rows {
		if id := p.peers.row(prefix); id != nil && id != have && short.idents[id.ID] != nil {
			who[short.idents[id.ID]] = append(who[short.idents[id.ID]], p.peers.whoHas(prefix))
		}
	}
	named := map[policy.ID]map[string][]string{}
	for w, names := range who {
		for id := range w.programs {
			if named[id] == nil {
				named[id] = map[string][]string{}
			}
			named[id][w.why.Error()] = append(named[id][w.why.Error()], names...)
		}
	}
	lacking = map[policy.ID]string{}
	for id, reasons := range named {
		u := uses[id]
		if u == nil {
			continue
		}
		why := slices.Sorted(maps.Keys(reasons))[0]
		lacking[id] = u.text() + ": " + why + " to know " + someOf(reasons[why])
	}
	for _, text := range slices.Compact(slices.Sorted(maps.Values(lacking))) {
		subject, text, _ := strings.Cut(text, ": ")
		wrong = append(wrong, state.Problem{Subject: subject, Text: text + "; what it allows only some it does not allow them, and nothing where it denies some"})
	}
	if len(outside) > 0 {
		wrong = append(wrong, state.Problem{Subject: "strait_identity", Text: fmt.Sprintf("needs %d rows more than its %d (maps.identities); without one, and taken for what is around: %s",
			len(outside), p.Config.Maps.Identities, someOf(outside))})
	}
	return lacking, wrong
}

// whoHas names a prefix for people.
func (p *peers) whoHas(prefix netip.Prefix) string {
	if pod := p.podAt(prefix.Addr()); prefix.IsSingleIP() && len(pod) > 1 {
		return pod + " (" + prefix.Addr().String() + ")"
	}
	return prefix.String()
}

// someOf lists names, each once.
func someOf(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	text := strings.Join(names[:min(len(names), 5)], ", ")
	if len(names) > 5 {
		text += fmt.Sprintf(" and %d more", len(names)-5)
	}
	return text
}
