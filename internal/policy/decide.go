package policy

import (
	"slices"
)

// decided is what decides for a protocol and port: an index into program.rules, or one of these.
type decided = int32

const (
	undecided decided = -1 - iota
	passed            // by the admin tier, which has no more to say
	byIsolation
	byDefault
)

// ports are the ports of one protocol, cut where the answer of some rule changes: interval i is [starts[i], starts[i+1]).
type ports struct {
	starts []uint32 // the first is 0; one more at the end: 65536
	rules  []covered
}

// covered is a rule with the intervals it matches, [from, to) each.
type covered struct {
	rule      int32
	intervals [][2]int32
}

// entry computes the answer to a peer that rules, ascending, match; ms gives named ports of egress their numbers.
func (w *program) entry(rules []int32, ms Matches) Entry {
	b := tables{program: w, known: map[Verdict]int32{}}
	// What says nothing about ports applies to all protocols, those that nobody names included.
	var all ports
	all.starts = []uint32{0, 1 << 16}
	spans := make([][]Port, len(rules))
	var protocols []Protocol
	for i, r := range rules {
		whole := w.rules[r].ports == nil
		if !whole {
			spans[i] = w.rules[r].spans(ms)
		}
		for _, s := range spans[i] {
			if s.Protocol == AnyProtocol {
				whole = true
			} else if !slices.Contains(protocols, s.Protocol) {
				protocols = append(protocols, s.Protocol)
			}
		}
		if whole {
			all.rules = append(all.rules, covered{r, [][2]int32{{0, 1}}})
		}
	}
	rest := b.verdicts(&all)[0]
	if len(protocols) == 0 {
		return Entry{Verdict: b.list[rest]}
	}
	slices.Sort(protocols)
	t := &Table{Rows: []Row{{Verdict: b.list[rest]}}}
	for _, protocol := range protocols {
		p := cut(protocol, rules, spans, w)
		t.Rows = append(t.Rows, b.rows(protocol, p.starts, b.verdicts(&p), rest)...)
	}
	if len(t.Rows) == 1 {
		return Entry{Verdict: b.list[rest]}
	}
	t.ID = tableID(t.Rows)
	return Entry{Table: t}
}

// spans returns the ports a rule matches, with numbers in place of names and with one protocol each; AnyProtocol stands for everything.
func (r *rule) spans(ms Matches) []Port {
	out := make([]Port, 0, len(r.ports))
	for _, p := range r.ports {
		switch {
		case p.Name != "":
			for _, key := range r.keys {
				out = append(out, ms.named(key, p.Name, p.Protocol)...)
			}
		case p.Protocol == AnyProtocol && (p.First != 0 || p.Last != 0):
			for _, protocol := range []Protocol{TCP, UDP, SCTP} {
				out = append(out, Port{Protocol: protocol, First: p.First, Last: p.Last})
			}
		case p.First == 0 && p.Last == 0:
			out = append(out, Port{Protocol: p.Protocol, Last: 1<<16 - 1})
		default:
			out = append(out, p)
		}
	}
	return out
}

// named returns the ports that a selector's peer gives to a name.
func (ms Matches) named(selector, name string, protocol Protocol) []Port {
	var out []Port
	i, _ := slices.BinarySearchFunc(ms, Match{Selector: selector}, Match.Compare)
	for ; i < len(ms) && ms[i].Selector == selector; i++ {
		m := &ms[i]
		if m.Name == name && (m.Protocol == protocol || protocol == AnyProtocol && m.Protocol.HasPorts()) {
			out = append(out, Port{Protocol: m.Protocol, First: m.Port, Last: m.Port})
		}
	}
	return out
}

// cut finds the intervals of a protocol's ports, and which of them each rule matches.
func cut(protocol Protocol, rules []int32, spans [][]Port, w *program) ports {
	p := ports{starts: []uint32{0, 1 << 16}}
	for _, list := range spans {
		for _, s := range list {
			if s.Protocol == protocol {
				p.starts = append(p.starts, uint32(s.First), uint32(s.Last)+1)
			}
		}
	}
	slices.Sort(p.starts)
	p.starts = slices.Compact(p.starts)
	everything := [2]int32{0, int32(len(p.starts) - 1)}
	for i, r := range rules {
		c := covered{rule: r}
		if w.rules[r].ports == nil {
			c.intervals = [][2]int32{everything}
		}
		for _, s := range spans[i] {
			switch s.Protocol {
			case AnyProtocol:
				c.intervals = append(c.intervals, everything)
			case protocol:
				from, _ := slices.BinarySearch(p.starts, uint32(s.First))
				to, _ := slices.BinarySearch(p.starts, uint32(s.Last)+1)
				c.intervals = append(c.intervals, [2]int32{int32(from), int32(to)})
			}
		}
		if c.intervals != nil {
			p.rules = append(p.rules, c)
		}
	}
	return p
}

// decide returns what decides for each interval: with everything, or with what is enforced only.
func (w *program) decide(p *ports, enforced bool) []decided {
	out := make([]decided, len(p.starts)-1)
	for i := range out {
		out[i] = undecided
	}
	isolated := w.isolated
	if enforced {
		isolated = w.isolatedNow
	}
	// next[i] is the first interval from i on that the stage has not decided, found by following it.
	next := make([]int32, len(out)+1)
	rules := p.rules
	for tier := Admin; tier <= Baseline; tier++ {
		for i := range next {
			next[i] = int32(i)
		}
		for i, d := range out {
			if d == passed {
				out[i] = undecided
			} else if d != undecided {
				next[i] = int32(i) + 1
			}
		}
		for len(rules) > 0 && w.rules[rules[0].rule].stage.tier() == tier {
			c := rules[0]
			rules = rules[1:]
			r := &w.rules[c.rule]
			if enforced && r.audit {
				continue
			}
			d := c.rule
			if r.action == Pass {
				d = passed
			}
			for _, interval := range c.intervals {
				for i := find(next, interval[0]); i < interval[1]; i = find(next, i) {
					out[i] = d
					next[i] = i + 1
				}
			}
		}
		if tier == Normal && isolated != nil {
			for i, d := range out {
				if d == undecided {
					out[i] = byIsolation
				}
			}
		}
	}
	for i, d := range out {
		if d == undecided || d == passed {
			out[i] = byDefault
		}
	}
	return out
}

// find follows next from i, and shortens the way for those who come after.
func find(next []int32, i int32) int32 {
	for next[i] != i {
		next[i] = next[next[i]]
		i = next[i]
	}
	return i
}

func (s stage) tier() Tier {
	switch s {
	case adminStage:
		return Admin
	case baselineStage:
		return Baseline
	}
	return Normal
}

// outcome returns what a decision says, and its rule.
func (w *program) outcome(d decided, enforced bool) (bool, RuleRef) {
	switch {
	case d >= 0:
		return w.rules[d].action == Allow, w.rules[d].ref
	case d == byIsolation && enforced:
		return false, *w.isolatedNow
	case d == byIsolation:
		return false, *w.isolated
	}
	return true, builtin(DefaultAllow, w.way)
}

// Compare orders Matches.
func (m Match) Compare(o Match) int {
	if m.Selector != o.Selector {
		if m.Selector < o.Selector {
			return -1
		}
		return 1
	}
	return compareNamedPorts(NamedPort{m.Name, m.Protocol, m.Port}, NamedPort{o.Name, o.Protocol, o.Port})
}
