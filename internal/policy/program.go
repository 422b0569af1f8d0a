package policy

import (
	"slices"

	"github.com/strait-net/strait/internal/identity"
)

// ID names a program by a hash of its content; never 0.
type ID uint64

// RuleRef names a rule for people and for its counter: where it stands, or what else decided.
type RuleRef struct {
	Ref
	Way  Way
	Path string // of the rule in the object; for what no rule allowed: empty
}

// Verdict is what becomes of a connection. Rule is what decided: of a denial because no rule allowed it, the first isolating policy (in the
// order of Compare; mode always comes after all of them) with an empty Path. What no object decides has a Ref of Kind Builtin.
type Verdict struct {
	Allow bool
	Rule  RuleRef
	// Audit: with the policies that are only audited the outcome would be the other one: AuditAllow, by AuditRule. Another rule for the same
	// outcome is not Audit.
	Audit      bool
	AuditAllow bool
	AuditRule  RuleRef
}

// Entry is a program's answer to an identity.
type Entry struct {
	Verdict        // for every protocol and port when Table is nil
	Table   *Table // else
}

// Within reports whether e lets nobody through whom o stops, as far as that can be told without looking at ports.
func (e Entry) Within(o Entry) bool {
	return e.Equal(o) || e.Table == nil && !e.Allow || o.Table == nil && o.Allow
}

// Unanswered returns the answer to identity.Unanswered: to somebody who may be anybody. It is that to all others, because rules that allow add
// to it; where a rule denies somebody in particular, or passes over what would allow him, it is a denial.
func (p *Program) Unanswered(way Way) Entry {
	w := &p.ways[way]
	if slices.ContainsFunc(w.rules, func(r rule) bool { return r.action != Allow && !r.audit && r.selects() }) {
		return Entry{Verdict: Verdict{Rule: builtin(NoRoomForWho, way)}}
	}
	return w.other
}

// selects reports whether the rule tells peers apart.
func (r *rule) selects() bool {
	return !r.everyone || slices.ContainsFunc(r.ports, func(p Port) bool { return p.Name != "" })
}

// Table is a function of protocol and port. Equal tables have equal IDs.
type Table struct {
	ID   ID
	Rows []Row // in the order of protocol, port, bits
}

// Row is the verdict for a protocol and the ports that share their leading bits with Port; the longest one that covers a packet counts.
type Row struct {
	Protocol Protocol // AnyProtocol: all, with Bits 0 (the row every table has)
	Port     uint16
	Bits     uint8 // 0: every port
	Verdict
}

// Set is what selects a pod: pods with equal sets share a program.
type Set struct {
	Policies []*Policy // that select the pod, in any order
	Mode     Mode
	Audit    bool        // all of them, and the isolation of mode always, are only audited here
	Ports    []NamedPort // of the pod, those that named ports of its ingress rules ask for
}

// Match is a selector that a peer matches. With a Name it is
// said in addition what number the peer has for a port that a rule of egress asks for by name; Protocol is then that of the peer's port.
type Match struct {
	Selector string // Selector.Key
	Name     string // of the port, empty: only the selector
	Protocol Protocol
	Port     uint16
}

// Matches are the selectors in use that a peer matches, sorted; equal ones are one identity.
type Matches []Match

// Decision is one identity's answer in both directions.
type Decision struct {
	Identity        identity.ID
	Ingress, Egress Entry
}
