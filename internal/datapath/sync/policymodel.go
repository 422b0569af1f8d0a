package sync

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// answerKey is a row of strait_policy within its program.
type answerKey struct {
	identity uint64
	way      bpf.PolicyDirection
}

// wantedProgram is a program that an end has, or is to have.
type wantedProgram struct {
	users int // ends, and the node
	rows  map[answerKey]maps.PolicyEntry
}

// wantedTable is a table that rows of wanted programs refer to.
type wantedTable struct {
	refs int
	rows map[maps.Port]maps.PolicyVerdict
}

// desired is what the kernel is to hold. What is named by a hash of its content never changes under its name.
type desired struct {
	programs map[uint64]*wantedProgram
	tables   map[uint64]*wantedTable
	prefixes map[netip.Prefix]uint64
	uses     map[uint64]int    // identity -> prefixes
	ends     map[string]uint64 // attachment -> program
	node     uint64
	idle     map[uint64]bool // programs that no end is to have, but some may have until the next flush is through: they go on being answered
	rows     int             // of all programs
	ports    int             // rows of all tables
}

// actual is what the kernel holds as far as is known: each successful write changes it.
type actual struct {
	policies map[maps.PolicyKey]maps.PolicyEntry
	ports    map[maps.Port]maps.PolicyVerdict
	prefixes map[netip.Prefix]uint64
	ends     map[string]uint64
	state    maps.NodeState
}

// pending are keys at which desired and actual may differ, in the order of writes, and keys that nothing wants any more.
type pending struct {
	tables   map[uint64]bool
	policies map[maps.PolicyKey]bool
	prefixes map[netip.Prefix]bool
	ends     map[string]bool
	node     bool
	bump     bool // something was written that changes verdicts

	loosePolicies []maps.PolicyKey
	loosePorts    []maps.Port
}

// doomed are keys to be removed at a time at which no program can be looking them up any more, unless something wants them again.
type doomed struct {
	at       time.Time
	policies []maps.PolicyKey
	ports    []maps.Port
}

// sentences are the latest times at which keys are to be removed.
type sentences struct {
	policies map[maps.PolicyKey]time.Time
	ports    map[maps.Port]time.Time
}

func newDesired() desired {
	return desired{
		programs: map[uint64]*wantedProgram{}, tables: map[uint64]*wantedTable{}, prefixes: map[netip.Prefix]uint64{},
		uses: map[uint64]int{}, ends: map[string]uint64{}, idle: map[uint64]bool{},
	}
}

func newPending() pending {
	return pending{
		tables: map[uint64]bool{}, policies: map[maps.PolicyKey]bool{}, prefixes: map[netip.Prefix]bool{}, ends: map[string]bool{},
	}
}

func (p *pending) empty() bool {
	return len(p.tables)+len(p.policies)+len(p.prefixes)+len(p.ends) == 0 && !p.node && !p.bump
}

// readActual reads the tables.
func readActual(kernel PolicyMaps) (h actual, err error) {
	h = actual{
		policies: map[maps.PolicyKey]maps.PolicyEntry{}, ports: map[maps.Port]maps.PolicyVerdict{},
		prefixes: map[netip.Prefix]uint64{}, ends: map[string]uint64{},
	}
	if err := kernel.EachPolicy(func(k maps.PolicyKey, e maps.PolicyEntry) { h.policies[k] = e }); err != nil {
		return h, fmt.Errorf("read policies: %w", err)
	}
	if err := kernel.EachPort(func(p maps.Port, v maps.PolicyVerdict) { h.ports[p] = v }); err != nil {
		return h, fmt.Errorf("read ports of policies: %w", err)
	}
	if err := kernel.EachIdentity(func(i maps.Identity) { h.prefixes[i.Prefix] = i.ID }); err != nil {
		return h, fmt.Errorf("read identities: %w", err)
	}
	h.state, err = kernel.NodeState()
	return h, err
}

// in returns the row's key in strait_policy.
func (k answerKey) in(program uint64) maps.PolicyKey {
	return maps.PolicyKey{Policy: program, Direction: k.way, Identity: k.identity}
}

// row returns what strait_policy is to hold under a key.
func (w *desired) row(k maps.PolicyKey) (maps.PolicyEntry, bool) {
	p := w.programs[k.Policy]
	if p == nil {
		return maps.PolicyEntry{}, false
	}
	e, ok := p.rows[answerKey{k.Identity, k.Direction}]
	return e, ok
}

// port returns what strait_port is to hold under a key.
func (w *desired) port(k maps.Port) (maps.PolicyVerdict, bool) {
	t := w.tables[k.Table]
	if t == nil {
		return maps.PolicyVerdict{}, false
	}
	v, ok := t.rows[k]
	return v, ok
}

// take adds an answer and marks what has to be written for it.
func (w *desired) take(a policy.Answer, number func(policy.RuleRef) uint32, todo *pending) {
	p := w.programs[uint64(a.Program)]
	if p == nil {
		p = &wantedProgram{rows: map[answerKey]maps.PolicyEntry{}}
		w.programs[uint64(a.Program)] = p
	}
	k := answerKey{uint64(a.Identity), bpf.PolicyDirection(a.Way)}
	if _, known := p.rows[k]; known {
		return // under these names nothing else can be said
	}
	e := maps.PolicyEntry{}
	if a.Table == nil {
		e.Verdict = verdictOf(a.Verdict, number)
	} else {
		e.Table = uint64(a.Table.ID)
		w.refer(a.Table, number, todo)
	}
	p.rows[k] = e
	w.rows++
	todo.policies[k.in(uint64(a.Program))] = true
}

func (w *desired) refer(t *policy.Table, number func(policy.RuleRef) uint32, todo *pending) {
	id := uint64(t.ID)
	have := w.tables[id]
	if have == nil {
		have = &wantedTable{rows: make(map[maps.Port]maps.PolicyVerdict, len(t.Rows))}
		for _, r := range t.Rows {
			have.rows[portOf(t.ID, r)] = verdictOf(r.Verdict, number)
		}
		w.tables[id] = have
		w.ports += len(have.rows)
		todo.tables[id] = true
	}
	have.refs++
}

// drop forgets a row of a program and notes what of the kernel nothing wants any more.
func (w *desired) drop(program uint64, p *wantedProgram, k answerKey, todo *pending) {
	e, known := p.rows[k]
	if !known {
		return
	}
	delete(p.rows, k)
	w.rows--
	delete(todo.policies, k.in(program))
	todo.loosePolicies = append(todo.loosePolicies, k.in(program))
	if e.Table == 0 {
		return
	}
	t := w.tables[e.Table]
	if t.refs--; t.refs > 0 {
		return
	}
	for port := range t.rows {
		todo.loosePorts = append(todo.loosePorts, port)
	}
	w.ports -= len(t.rows)
	delete(w.tables, e.Table)
	delete(todo.tables, e.Table)
}

// assign gives an end another program, and notes one that has no user left.
func (w *desired) assign(old, now uint64) {
	if old != 0 {
		if p := w.programs[old]; p != nil {
			if p.users--; p.users == 0 {
				w.idle[old] = true
			}
		}
	}
	if now != 0 {
		if p := w.programs[now]; p != nil {
			p.users++
		}
	}
}

// move makes a prefix an identity's.
func (w *desired) move(m policy.Move, idle map[uint64]bool, todo *pending) {
	old, known := w.prefixes[m.Prefix]
	if known {
		if w.uses[old]--; w.uses[old] == 0 {
			idle[old] = true
			delete(w.uses, old)
		}
	}
	delete(w.prefixes, m.Prefix)
	if !m.Gone {
		w.prefixes[m.Prefix] = uint64(m.To)
		w.uses[uint64(m.To)]++
	}
	todo.prefixes[m.Prefix] = true
}

// apply takes a change in. Its answers have numbers for their rules.
func (w *desired) apply(c *policy.Change, number func(policy.RuleRef) uint32, todo *pending) {
	for _, a := range c.Answers {
		w.take(a, number, todo)
	}
	idle := map[uint64]bool{}
	for _, key := range c.Left { // first: one that was attached again is in Pods as well
		w.assign(w.ends[key], 0)
		delete(w.ends, key)
		delete(todo.ends, key)
	}
	for key, program := range c.Pods {
		w.assign(w.ends[key], uint64(program))
		w.ends[key] = uint64(program)
		todo.ends[key] = true
	}
	if uint64(c.Node) != w.node {
		w.assign(w.node, uint64(c.Node))
		w.node, todo.node = uint64(c.Node), true
	}
	for _, m := range c.Moves {
		w.move(m, idle, todo)
	}
	for id := range idle {
		if who := identity.ID(id); w.uses[id] == 0 && who != identity.Other && who != identity.Unanswered {
			w.forget(id, todo)
		}
	}
}

// dropIdle drops the programs that no end is to have, nor has.
func (w *desired) dropIdle(todo *pending) {
	for id := range w.idle {
		if p := w.programs[id]; p != nil && p.users == 0 {
			for k := range p.rows {
				w.drop(id, p, k, todo)
			}
			delete(w.programs, id)
		}
	}
	clear(w.idle)
}

// forget drops all answers to an identity that nobody has any more.
func (w *desired) forget(id uint64, todo *pending) {
	for program, p := range w.programs {
		w.drop(program, p, answerKey{id, bpf.PolicyEgress}, todo)
		w.drop(program, p, answerKey{id, bpf.PolicyIngress}, todo)
	}
}

func portOf(table policy.ID, r policy.Row) maps.Port {
	if r.Protocol == policy.AnyProtocol {
		return maps.Port{Table: uint64(table)}
	}
	return maps.Port{Table: uint64(table), Protocol: uint8(r.Protocol), Port: r.Port, Bits: r.Bits}
}

func verdictOf(v policy.Verdict, number func(policy.RuleRef) uint32) maps.PolicyVerdict {
	out := maps.PolicyVerdict{Rule: number(v.Rule)}
	if v.Allow {
		out.Flags |= bpf.PolicyAllow
	}
	if v.Audit {
		out.AuditRule = number(v.AuditRule)
		out.Flags |= bpf.PolicyAudit
		if !v.AuditAllow {
			out.Flags |= bpf.PolicyAuditDeny
		}
	}
	return out
}
