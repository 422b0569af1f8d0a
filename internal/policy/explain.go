package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Explanation says how a verdict came about.
type Explanation struct {
	Verdict
	// Stage is where the enforced decision fell: a tier ("admin", "normal", "baseline"), or the name of a Builtin rule.
	Stage string
	// Policies are those that select the pod and say anything about this way, in the order in which they are asked.
	Policies []Selecting
	// Matching are the rules that match peer and port, in the order in which they decide: denials of the normal tier before its allowances.
	Matching []MatchingRule
	// Misses are, where no rule allowed the connection, the rules of the normal tier that came near: a few of each policy, the nearest first.
	Misses []Miss
}

// Selecting is a policy that selects the pod.
type Selecting struct {
	Ref
	Spec     int
	Tier     Tier
	Priority int32
	Isolates bool
	Audit    bool
}

// MatchingRule is a rule that matches.
type MatchingRule struct {
	RuleRef
	Tier    Tier
	Action  Action
	Audit   bool
	Decides bool // it is what the kernel's verdict comes from
}

// Miss is a rule that does not match, and every condition that would have to be otherwise.
type Miss struct {
	RuleRef
	Why []string // "peer label app=web, want app=client", "port 81/TCP, want 80/TCP"
}

// String names the rule and what is missing: "NetworkPolicy shop/db spec.ingress[0]: port 81/TCP, want 80/TCP".
func (m Miss) String() string {
	return m.Ref.String() + " " + m.Path + ": " + strings.Join(m.Why, "; ")
}

// missesOfPolicy is how many rules of one policy are worth a look.
const missesOfPolicy = 3

// Explain says what a set decides about a connection of one protocol and port with a peer, and why. Of ICMP, port is type << 8 | code.
func Explain(set Set, way Way, peer *Peer, protocol Protocol, port uint16) Explanation {
	program := NewProgram(set)
	ms := program.match(peer)
	out := Explanation{Verdict: program.Entry(way, peer.Kind, ms).At(protocol, port)}
	for _, p := range sorted(set.Policies) {
		if d := p.Of(way); d.Isolates || len(d.Rules) > 0 {
			out.Policies = append(out.Policies, Selecting{p.Ref, p.Spec, p.Tier, p.Priority, d.Isolates && p.Tier == Normal, p.Audit || set.Audit})
		}
	}
	w := &program.ways[way]
	matching := ports{starts: []uint32{0, 1 << 16}}
	for _, i := range w.matched(ms) {
		r := &w.rules[i]
		if r.ports == nil || slices.ContainsFunc(r.spans(ms), func(p Port) bool { return p.has(protocol, port) }) {
			matching.rules = append(matching.rules, covered{i, [][2]int32{{0, 1}}})
			out.Matching = append(out.Matching, MatchingRule{RuleRef: r.ref, Tier: r.stage.tier(), Action: r.action, Audit: r.audit})
		}
	}
	if out.Rule.Kind == Builtin {
		out.Stage = out.Rule.Name
	}
	if out.Rule == builtin(OwnNode, way) || out.Rule == builtin(ModeNeverOn, way) {
		return out
	}
	switch d := w.decide(&matching, true)[0]; {
	case d >= 0:
		out.Stage = w.rules[d].stage.tier().String()
		out.Matching[slices.IndexFunc(matching.rules, func(c covered) bool { return c.rule == d })].Decides = true
	case d == byIsolation:
		if out.Stage == "" {
			out.Stage = Normal.String()
		}
		out.Misses = misses(set, way, peer, protocol, port)
	}
	return out
}

// match returns the program's selectors that a peer matches.
func (p *Program) match(peer *Peer) Matches {
	var out Matches
	for i := range p.selectors {
		if w := &p.selectors[i]; w.Selector.Matches(peer) {
			out = w.matches(peer, out)
		}
	}
	slices.SortFunc(out, Match.Compare)
	return slices.Compact(out)
}

// matches adds to out what is said of a peer that the selector means.
func (w *Wanted) matches(peer *Peer, out Matches) Matches {
	out = append(out, Match{Selector: w.Key})
	for _, asked := range w.Ports {
		for _, n := range namedPorts(peer.Ports, asked.Name, asked.Protocol) {
			out = append(out, Match{Selector: w.Key, Name: n.Name, Protocol: n.Protocol, Port: n.Port})
		}
	}
	return out
}

// At returns the verdict for a protocol and port as the kernel looks it up.
func (e Entry) At(protocol Protocol, port uint16) Verdict {
	if e.Table == nil {
		return e.Verdict
	}
	best := &e.Table.Rows[0]
	for i := range e.Table.Rows {
		r := &e.Table.Rows[i]
		if r.Protocol == protocol && r.Protocol != AnyProtocol && uint32(r.Port^port)>>(16-r.Bits) == 0 {
			best = r // rows of a protocol are in the order of ports and bits: what covers the port and comes later is longer
		}
	}
	return best.Verdict
}

// has reports whether a port with numbers covers protocol and port. AnyProtocol stands for everything.
func (p Port) has(protocol Protocol, port uint16) bool {
	return p.Protocol == AnyProtocol || p.Protocol == protocol && p.First <= port && port <= p.Last
}

// misses returns the rules of the normal tier that would allow the connection if little was otherwise.
func misses(set Set, way Way, peer *Peer, protocol Protocol, port uint16) []Miss {
	type candidate struct {
		Miss
		distance int
	}
	nearest := func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) }
	var all []candidate
	q := question{set: set, way: way, peer: peer, protocol: protocol, port: port}
	for _, p := range sorted(set.Policies) {
		if p.Tier != Normal {
			continue
		}
		var near []candidate
		for i := range p.Of(way).Rules {
			r := &p.Of(way).Rules[i]
			if r.Action != Allow {
				continue
			}
			if why, distance := q.missing(r); distance > 0 {
				near = append(near, candidate{Miss{RuleRef{p.Ref, way, r.Path}, why}, distance})
			}
		}
		slices.SortStableFunc(near, nearest)
		all = append(all, near[:min(len(near), missesOfPolicy)]...)
	}
	slices.SortStableFunc(all, nearest)
	var out []Miss
	for _, c := range all {
		out = append(out, c.Miss)
	}
	return out
}
