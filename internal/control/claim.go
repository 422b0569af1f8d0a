package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// claim is one prefix a node says is its own.
type claim struct {
	prefix  netip.Prefix
	kind    state.RemoteKind
	node    string
	created time.Time
	rank    int // smaller goes first: see the constants
}

// Whose claim goes first. What this node's own devices carry is a fact, not a claim; what is programmed already is not
// taken away from its holder by a newcomer.
const (
	rankFact = iota
	rankHeld
	rankNew
)

// compareClaims orders claims: the rank, then the older node, then the name; a node's addresses before its pod CIDRs.
func compareClaims(a, b claim) int {
	return cmp.Or(
		cmp.Compare(a.rank, b.rank),
		a.created.Compare(b.created),
		cmp.Compare(a.node, b.node),
		cmp.Compare(order(a.kind), order(b.kind)),
		a.prefix.Compare(b.prefix),
	)
}

func order(k state.RemoteKind) int {
	if k == state.RemotePods {
		return 1
	}
	return 0
}

// territory is a set of claims of which none overlaps another.
type territory struct {
	held    []claim              // accepted, in order
	lengths []int                // prefix lengths that occur, v4-mapped
	exact   map[netip.Prefix]int // v4-mapped prefix -> index in held
	inside  map[netip.Prefix]int // for each of lengths shorter than a claim's: the first claim inside
}

func newTerritory(claims []claim) *territory {
	t := &territory{
		held:  make([]claim, 0, len(claims)),
		exact: make(map[netip.Prefix]int, len(claims)), inside: make(map[netip.Prefix]int, len(claims)),
	}
	for _, c := range claims {
		if bits := mapped(c.prefix).Bits(); !slices.Contains(t.lengths, bits) {
			t.lengths = append(t.lengths, bits)
		}
	}
	return t
}

// overlapping returns an accepted claim that has an address in common with p.
func (t *territory) overlapping(p netip.Prefix) (claim, bool) {
	m := mapped(p)
	for _, bits := range t.lengths {
		if bits > m.Bits() {
			continue
		}
		if i, ok := t.exact[netip.PrefixFrom(m.Addr(), bits).Masked()]; ok {
			return t.held[i], true
		}
	}
	if i, ok := t.inside[m]; ok {
		return t.held[i], true
	}
	return claim{}, false
}

func (t *territory) accept(c claim) {
	m, i := mapped(c.prefix), len(t.held)
	t.held = append(t.held, c)
	t.exact[m] = i
	for _, bits := range t.lengths {
		if bits >= m.Bits() {
			continue
		}
		wider := netip.PrefixFrom(m.Addr(), bits).Masked()
		if _, ok := t.inside[wider]; !ok {
			t.inside[wider] = i
		}
	}
}

// mapped returns the prefix in the one address form of the kernel's maps: IPv4 as v4-mapped IPv6.
func mapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+96)
	}
	return p
}

// settle returns the claims that hold, and a problem for each that does not.
func settle(claims []claim) (*territory, []state.Problem) {
	slices.SortFunc(claims, compareClaims)
	t := newTerritory(claims)
	var problems []state.Problem
	for _, c := range claims {
		other, overlaps := t.overlapping(c.prefix)
		if !overlaps {
			t.accept(c)
			continue
		}
		if other.node == c.node && other.prefix == c.prefix && order(other.kind) == order(c.kind) {
			continue // said twice: an address of the object that is on a device, too
		}
		problems = append(problems, state.Problem{
			Subject: subject(c.node),
			Text: fmt.Sprintf("%s overlaps %s of node %s, which came first; it is not programmed until one of them changes",
				describe(c), describe(other), other.node),
		})
	}
	return t, problems
}

func describe(c claim) string {
	if c.kind == state.RemotePods {
		return "pod CIDR " + c.prefix.String()
	}
	return "address " + c.prefix.Addr().String()
}

func subject(node string) string { return "node " + node }
