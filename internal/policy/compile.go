package policy

import (
	"cmp"
	"maps"
	"slices"
	"sync"
)

// Program is what a set of policies says about every peer. Nothing that it says changes after NewProgram; many goroutines may ask it.
type Program struct {
	id        ID
	ways      [2]program // by Way
	selectors []Wanted
}

// Wanted is a selector in use, with the named ports whose numbers at its peers are asked for.
type Wanted struct {
	Key      string // Selector.Key
	Selector Selector
	Ports    []PortName // sorted, without doubles; of rules of egress only
}

// PortName asks for a container port by name; AnyProtocol: of every protocol that has ports.
type PortName struct {
	Name     string
	Protocol Protocol
}

// program is one way of a Program.
type program struct {
	way   Way
	rules []rule // in the order in which they decide: admin, denials of normal, allowances of normal, baseline
	// everyone are the rules that match every peer, the others are found by the key of a selector. Indexes into rules, ascending.
	everyone []int32
	bySelect map[string][]int32
	// isolated is the rule named when nothing matches in the normal tier, isolatedNow the same without what is only audited; nil: not
	// isolated.
	isolated, isolatedNow *RuleRef
	audits                bool // something here is only audited
	other                 Entry

	// answers are those given before: many identities differ in what only other programs ask about.
	mu      sync.Mutex
	answers map[string]Entry
}

// rule is a Rule of a policy with what is needed to apply it.
type rule struct {
	stage    stage
	action   Action
	audit    bool
	everyone bool
	ports    []Port   // of ingress: names resolved; nil: all
	keys     []string // of the peers; of a rule for everyone with named ports: everyPod's
	ref      RuleRef
}

// stage is a step of the decision.
type stage uint8

const (
	adminStage stage = iota
	denyStage
	allowStage
	baselineStage
)

func stageOf(tier Tier, action Action) stage {
	switch {
	case tier == Admin:
		return adminStage
	case tier == Baseline:
		return baselineStage
	case action == Deny:
		return denyStage
	}
	return allowStage
}

// everyPod is whose named ports a rule means that says nothing about peers: only pods have any.
func everyPod() Selector { return Selector{Kind: SelectPods} }

// NewProgram compiles a set. The order of its policies does not matter.
func NewProgram(set Set) *Program {
	policies := sorted(set.Policies)
	ports := set.askedPorts(policies)
	p := &Program{id: set.digest(policies, ports)}
	if set.Mode == ModeNever {
		for _, way := range []Way{Egress, Ingress} {
			p.ways[way].other = Entry{Verdict: Verdict{Allow: true, Rule: builtin(ModeNeverOn, way)}}
		}
		return p
	}
	wanted := map[string]*Wanted{}
	for _, way := range []Way{Egress, Ingress} {
		p.ways[way].compile(set, policies, ports, way, wanted)
	}
	p.selectors = make([]Wanted, 0, len(wanted))
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		w := wanted[key]
		slices.SortFunc(w.Ports, comparePortNames)
		w.Ports = slices.Compact(w.Ports)
		p.selectors = append(p.selectors, *w)
	}
	return p
}

func comparePortNames(a, b PortName) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
}

func sorted(policies []*Policy) []*Policy {
	out := slices.Clone(policies)
	slices.SortFunc(out, Compare)
	return out
}

func builtin(name string, way Way) RuleRef {
	return RuleRef{Ref: Ref{Kind: Builtin, Name: name}, Way: way}
}

// compile fills w with one way of the policies, which are sorted, and adds to wanted what their rules select.
func (w *program) compile(set Set, policies []*Policy, ports []NamedPort, way Way, wanted map[string]*Wanted) {
	w.way = way
	w.bySelect = map[string][]int32{}
	count := 0
	for _, p := range policies {
		count += len(p.Of(way).Rules)
	}
	w.rules = make([]rule, 0, count)
	for _, p := range policies {
		audit := p.Audit || set.Audit
		direction := p.Of(way)
		if direction.Isolates && p.Tier == Normal {
			w.isolate(RuleRef{Ref: p.Ref, Way: way}, audit)
		}
		for i := range direction.Rules {
			r, ok := newRule(p, &direction.Rules[i], way, ports)
			if !ok {
				continue
			}
			r.audit = audit
			w.audits = w.audits || audit
			r.keys = want(&direction.Rules[i], way, wanted)
			w.rules = append(w.rules, r)
		}
	}
	if set.Mode == ModeAlways {
		w.isolate(builtin(ModeAlwaysOn, way), set.Audit)
	}
	slices.SortStableFunc(w.rules, func(a, b rule) int { return cmp.Compare(a.stage, b.stage) })
	for i := range w.rules {
		r := &w.rules[i]
		if r.everyone {
			w.everyone = append(w.everyone, int32(i))
		}
		for _, key := range r.keys {
			w.bySelect[key] = append(w.bySelect[key], int32(i))
		}
	}
	w.other = w.entry(w.everyone, nil)
}

// isolate notes that the way is isolated. The first that says so is the one named.
func (w *program) isolate(by RuleRef, audit bool) {
	if w.isolated == nil {
		w.isolated = &by
	}
	if audit {
		w.audits = true
	} else if w.isolatedNow == nil {
		w.isolatedNow = &by
	}
}

// newRule returns the rule without its selectors, or false if it can never match.
func newRule(p *Policy, r *Rule, way Way, named []NamedPort) (rule, bool) {
	out := rule{stage: stageOf(p.Tier, r.Action), action: r.Action, everyone: r.Peers == nil, ref: RuleRef{Ref: p.Ref, Way: way, Path: r.Path}}
	if p.Tier == Normal && r.Action == Pass || !out.everyone && len(r.Peers) == 0 {
		return rule{}, false
	}
	if r.Ports == nil {
		return out, true
	}
	for _, port := range r.Ports {
		switch {
		case port.Name != "" && way == Ingress:
			for _, n := range namedPorts(named, port.Name, port.Protocol) {
				out.ports = append(out.ports, Port{Protocol: n.Protocol, First: n.Port, Last: n.Port})
			}
		case port.Name != "" || port.First <= port.Last:
			out.ports = append(out.ports, port)
		}
	}
	return out, len(out.ports) > 0
}

// want adds the selectors of a rule's peers, and the named ports that it asks of them, to wanted, and returns their keys, each once.
func want(r *Rule, way Way, wanted map[string]*Wanted) []string {
	var names []PortName
	if way == Egress {
		for _, p := range r.Ports {
			if p.Name != "" {
				names = append(names, PortName{p.Name, p.Protocol})
			}
		}
	}
	peers := r.Peers
	if peers == nil && names != nil {
		peers = []Selector{everyPod()}
	}
	keys := make([]string, 0, len(peers))
	for i := range peers {
		key := peers[i].Key()
		w := wanted[key]
		if w == nil {
			w = &Wanted{Key: key, Selector: peers[i]}
			wanted[key] = w
		}
		w.Ports = append(w.Ports, names...)
		keys = append(keys, w.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// ID returns the hash of everything that decides or is named.
func (p *Program) ID() ID { return p.id }

// Selectors returns the selectors that the program distinguishes peers by, sorted by key.
func (p *Program) Selectors() []Wanted { return p.selectors }

// Other returns the answer to identities that match none of the program's selectors, this node apart.
func (p *Program) Other(way Way) Entry { return p.ways[way].other }

// Entry returns the answer to an identity: a kind of peer and all selectors in use that it matches, the program's own or not. One that is
// Equal to Other needs no row in the kernel.
func (p *Program) Entry(way Way, kind PeerKind, ms Matches) Entry {
	if way == Ingress && kind == HostPeer {
		return Entry{Verdict: Verdict{Allow: true, Rule: builtin(OwnNode, way)}}
	}
	w := &p.ways[way]
	if !w.distinguishes(ms) {
		return w.other
	}
	return w.answer(w.matched(ms), ms)
}

// answer is entry, computed once for all peers that the same rules match and that have the same numbers for the named ports in them.
func (w *program) answer(rules []int32, ms Matches) Entry {
	var d digest
	d.number(uint64(len(rules)))
	for _, r := range rules {
		d.number(uint64(r))
	}
	for i := range ms {
		if m := &ms[i]; m.Name != "" && len(w.bySelect[m.Selector]) > 0 {
			d.text(m.Selector)
			d.text(m.Name)
			d.number(uint64(m.Protocol))
			d.number(uint64(m.Port))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	known, found := w.answers[string(d.data)]
	if !found {
		known = w.entry(rules, ms)
		if w.answers == nil {
			w.answers = map[string]Entry{}
		}
		w.answers[string(d.data)] = known
	}
	return known
}

func (w *program) distinguishes(ms Matches) bool {
	for i := range ms {
		if len(w.bySelect[ms[i].Selector]) > 0 {
			return true
		}
	}
	return false
}

// matched returns the rules whose peers somebody is of whom ms are known, ascending.
func (w *program) matched(ms Matches) []int32 {
	out := slices.Clone(w.everyone)
	for i := range ms {
		if ms[i].Name == "" {
			out = append(out, w.bySelect[ms[i].Selector]...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Decision returns the answers to an identity in both directions.
func (p *Program) Decision(i Identity) Decision {
	return Decision{Identity: i.ID, Ingress: p.Entry(Ingress, i.Kind, i.Matches), Egress: p.Entry(Egress, i.Kind, i.Matches)}
}

// Equal reports whether both say the same about every protocol and port.
func (e Entry) Equal(o Entry) bool {
	if e.Table != nil || o.Table != nil {
		return e.Table == o.Table || e.Table != nil && o.Table != nil && e.Table.ID == o.Table.ID
	}
	return e.Verdict == o.Verdict
}
