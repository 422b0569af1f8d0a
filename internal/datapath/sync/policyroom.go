package sync

import (
	"fmt"
	"net/netip"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/policy"
)

// forecast counts answers of a change that is being made.
type forecast struct {
	*Policies
	maxRows, maxPorts uint32 // rows that may be used in all; 0: any number
	rows, ports       int
	tables            map[policy.ID]bool
	refs              map[policy.RuleRef]bool
	unnumbered        int // of refs
	recycled          bool
}

// Forecast returns a function that counts answers of a change to come, each given once. A *policy.NoRoom says that with these it would never fit
// next to what is wanted by now: they are not counted then. Of programs in use, answers to peers that have come may not take the last of the
// tables: with none left, no program could be replaced by one that needs less.
func (w *Policies) Forecast(inUse bool) func([]policy.Answer) *policy.NoRoom {
	f := &forecast{
		Policies: w, maxRows: w.Sizes.Policies, maxPorts: w.Sizes.Ports, tables: map[policy.ID]bool{}, refs: map[policy.RuleRef]bool{},
	}
	if inUse {
		f.maxRows -= f.maxRows / keptFree
		f.maxPorts -= f.maxPorts / keptFree
	}
	return f.count
}

// keptFree is which part of a table is for programs only.
const keptFree = 16

func (f *forecast) count(answers []policy.Answer) *policy.NoRoom {
	f.mu.Lock()
	defer f.mu.Unlock()
	rows, ports := f.rows, f.ports
	tables, refs := map[policy.ID]bool{}, map[policy.RuleRef]bool{}
	for i := range answers {
		a := &answers[i]
		if _, known := f.want.row(rowOf(a)); known {
			continue
		}
		rows++
		if a.Table == nil {
			noteRules(refs, a.Verdict)
			continue
		}
		if id := a.Table.ID; f.tables[id] || tables[id] || f.want.tables[uint64(id)] != nil {
			continue
		}
		tables[a.Table.ID] = true
		ports += len(a.Table.Rows)
		for j := range a.Table.Rows {
			noteRules(refs, a.Table.Rows[j].Verdict)
		}
	}
	if fit := int(f.maxRows) - f.want.rows; rows > f.rows && rows > fit && f.maxRows > 0 {
		return &policy.NoRoom{Table: "strait_policy", Setting: "maps.policies", Fit: max(fit, 0)}
	}
	if fit := int(f.maxPorts) - f.want.ports; ports > f.ports && ports > fit && f.maxPorts > 0 {
		return &policy.NoRoom{Table: "strait_port", Setting: "maps.ports", Fit: max(fit, 0)}
	}
	if short := f.number(refs); short != nil {
		return short
	}
	f.rows, f.ports = rows, ports
	for id := range tables {
		f.tables[id] = true
	}
	return nil
}

// number counts rules that have no number yet.
func (f *forecast) number(refs map[policy.RuleRef]bool) *policy.NoRoom {
	var more []policy.RuleRef
	unnumbered := f.unnumbered
	for ref := range refs {
		if f.refs[ref] {
			continue
		}
		more = append(more, ref)
		if _, known := f.rules.byRef[ref]; !known {
			unnumbered++
		}
	}
	if unnumbered > f.rules.room() && !f.recycled {
		f.recycled = true
		for ref := range f.refs {
			refs[ref] = true
		}
		f.recycle(refs)
		f.unnumbered = f.rules.missing(f.refs)
		unnumbered = f.rules.missing(refs)
	}
	if fit := f.rules.room(); unnumbered > f.unnumbered && unnumbered > fit {
		return &policy.NoRoom{Table: "strait_rule", Setting: "maps.rules", Fit: fit}
	}
	f.unnumbered = unnumbered
	for _, ref := range more {
		f.refs[ref] = true
	}
	return nil
}

// fit forecasts what a change needs, next to what is there until it is removed.
func (w *Policies) fit(c *policy.Change) error {
	if err := w.complete(c); err != nil {
		return err
	}
	rows, ports := 0, 0
	var prefixes []netip.Prefix
	tables, refs := map[policy.ID]bool{}, map[policy.RuleRef]bool{}
	for i := range c.Answers {
		a := &c.Answers[i]
		k := rowOf(a)
		if _, known := w.want.row(k); known {
			continue
		}
		if _, there := w.have.policies[k]; !there {
			rows++
		}
		if a.Table == nil {
			noteRules(refs, a.Verdict)
			continue
		}
		if tables[a.Table.ID] || w.want.tables[uint64(a.Table.ID)] != nil {
			continue
		}
		tables[a.Table.ID] = true
		for _, r := range a.Table.Rows {
			noteRules(refs, r.Verdict)
			if _, there := w.have.ports[portOf(a.Table.ID, r)]; !there {
				ports++
			}
		}
	}
	for _, m := range c.Moves {
		if _, there := w.have.prefixes[m.Prefix]; !m.Gone && !there {
			prefixes = append(prefixes, m.Prefix)
		}
	}
	pendingRows, pendingPorts, pendingPrefixes := w.unwritten()
	for _, short := range []*policy.NoRoom{
		w.room("strait_policy", "maps.policies", rows, len(w.have.policies)+pendingRows, len(w.have.policies)-w.want.rows, w.Sizes.Policies),
		w.room("strait_port", "maps.ports", ports, len(w.have.ports)+pendingPorts, len(w.have.ports)-w.want.ports, w.Sizes.Ports),
		w.room("strait_identity", "maps.identities", len(prefixes), len(w.have.prefixes)+pendingPrefixes, 0, w.Sizes.Identities),
		w.ruleRoom(refs),
	} {
		if short == nil {
			continue
		}
		if short.Table == "strait_identity" {
			short.Prefixes = prefixes
		}
		return short
	}
	return nil
}

// complete refuses a change that would leave an end with a program of which nothing is known: all its packets would be dropped.
func (w *Policies) complete(c *policy.Change) error {
	known := map[policy.ID]bool{0: true}
	for i := range c.Answers {
		known[c.Answers[i].Program] = true
	}
	for key, program := range c.Pods {
		if !known[program] && w.want.programs[uint64(program)] == nil {
			return fmt.Errorf("program %016x of pod %s has no answers", uint64(program), key)
		}
	}
	if !known[c.Node] && w.want.programs[uint64(c.Node)] == nil {
		return fmt.Errorf("program %016x of the node has no answers", uint64(c.Node))
	}
	return nil
}

// unwritten counts rows that are wanted and not there.
func (w *Policies) unwritten() (rows, ports, prefixes int) {
	for k := range w.todo.policies {
		if _, there := w.have.policies[k]; !there {
			rows++
		}
	}
	for id := range w.todo.tables {
		ports += len(w.want.tables[id].rows)
	}
	for p := range w.todo.prefixes {
		_, there := w.have.prefixes[p]
		if _, wanted := w.want.prefixes[p]; wanted && !there {
			prefixes++
		}
	}
	return rows, ports, prefixes
}

// room is nil when more rows fit next to those that are there, of which some go away by themselves.
func (w *Policies) room(table, setting string, more, there, going int, limit uint32) *policy.NoRoom {
	fit := int(limit) - there
	if more == 0 || limit == 0 || more <= fit {
		return nil
	}
	return &policy.NoRoom{
		Table: table, Setting: setting, Need: more, Fit: max(fit+max(going, 0), 0), Soon: more <= fit+max(going, 0) && w.loses(),
	}
}

// loses reports whether something goes away when what was accepted has been written.
func (w *Policies) loses() bool {
	return len(w.doomed)+len(w.todo.loosePolicies)+len(w.todo.loosePorts)+len(w.want.idle) > 0
}

func (w *Policies) ruleRoom(refs map[policy.RuleRef]bool) *policy.NoRoom {
	need := w.rules.missing(refs)
	if need <= w.rules.room() {
		return nil
	}
	w.recycle(refs)
	if need <= w.rules.room() {
		return nil
	}
	return &policy.NoRoom{Table: "strait_rule", Setting: "maps.rules", Need: need, Fit: w.rules.room(), Soon: w.loses()}
}

// recycle takes the numbers of rules that neither the tables use nor refs have.
func (w *Policies) recycle(refs map[policy.RuleRef]bool) {
	used := w.usedRules()
	for ref := range refs {
		if n, known := w.rules.byRef[ref]; known {
			used[n] = true
		}
	}
	w.rules.recycle(used)
}

// usedRules are the numbers in rows that are wanted or in the kernel.
func (w *Policies) usedRules() map[uint32]bool {
	used := map[uint32]bool{}
	note := func(v maps.PolicyVerdict) { used[v.Rule], used[v.AuditRule] = true, true }
	for _, e := range w.have.policies {
		note(e.Verdict)
	}
	for _, v := range w.have.ports {
		note(v)
	}
	for _, p := range w.want.programs {
		for _, e := range p.rows {
			note(e.Verdict)
		}
	}
	for _, t := range w.want.tables {
		for _, v := range t.rows {
			note(v)
		}
	}
	return used
}

func noteRules(refs map[policy.RuleRef]bool, v policy.Verdict) {
	refs[v.Rule] = true
	if v.Audit {
		refs[v.AuditRule] = true
	}
}

// rowOf is the key of an answer in strait_policy.
func rowOf(a *policy.Answer) maps.PolicyKey {
	return maps.PolicyKey{Policy: uint64(a.Program), Direction: bpf.PolicyDirection(a.Way), Identity: uint64(a.Identity)}
}
