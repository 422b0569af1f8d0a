package policy

import "slices"

// tables collects the verdicts of one Entry and turns functions of the port into rows.
type tables struct {
	program *program
	known   map[Verdict]int32
	list    []Verdict // in the order in which they were first needed
}

// verdicts returns for each interval an index into list. Audit is set only where the outcome differs, not where only another rule brings it
// about.
func (t *tables) verdicts(p *ports) []int32 {
	out := t.program.decide(p, true)
	full := out
	if t.program.audits {
		full = t.program.decide(p, false)
	}
	indexes := make([]int32, len(out))
	for i := range out {
		if i > 0 && out[i] == out[i-1] && full[i] == full[i-1] {
			indexes[i] = indexes[i-1]
			continue
		}
		var v Verdict
		v.Allow, v.Rule = t.program.outcome(out[i], true)
		if t.program.audits {
			if allow, by := t.program.outcome(full[i], false); allow != v.Allow {
				v.Audit, v.AuditAllow, v.AuditRule = true, allow, by
			}
		}
		indexes[i] = t.index(v)
	}
	return indexes
}

func (t *tables) index(v Verdict) int32 {
	i, found := t.known[v]
	if !found {
		i = int32(len(t.list))
		t.known[v] = i
		t.list = append(t.list, v)
	}
	return i
}

// piece is a run of ports with one verdict, which ends where the next piece starts.
type piece struct {
	start   uint32
	verdict int32
}

// node is a prefix of ports: the verdicts it may have itself so that the fewest rows are needed below it. children: nil if all of its
// ports have one verdict.
type node struct {
	choices  []int32 // sorted
	children *[2]node
}

// rows returns the fewest prefixes that say what intervals say, longer ones over shorter ones, where ports without a row have the verdict rest
// (Draves, King, Venkatachary, Zill: Constructing Optimal IP Routing Tables, 1999).
func (t *tables) rows(protocol Protocol, starts []uint32, verdicts []int32, rest int32) []Row {
	pieces := make([]piece, 0, len(verdicts))
	for i, v := range verdicts {
		if i == 0 || v != verdicts[i-1] {
			pieces = append(pieces, piece{starts[i], v})
		}
	}
	root := grow(pieces, 0, 16)
	var out []Row
	t.pick(&root, Row{Protocol: protocol}, rest, &out)
	return out
}

// grow returns the node of the 1<<size ports from first on; pieces[0] covers the first of them.
func grow(pieces []piece, first uint32, size uint8) node {
	end := first + 1<<size
	if len(pieces) == 1 || pieces[1].start >= end {
		return node{choices: []int32{pieces[0].verdict}}
	}
	middle := first + 1<<(size-1)
	split, exact := slices.BinarySearchFunc(pieces, middle, func(p piece, start uint32) int { return int(p.start) - int(start) })
	if !exact {
		split--
	}
	children := &[2]node{grow(pieces, first, size-1), grow(pieces[split:], middle, size-1)}
	return node{choices: merge(children[0].choices, children[1].choices), children: children}
}

// merge returns what two sorted lists have in common or, if that is nothing, all that is in either.
func merge(a, b []int32) []int32 {
	var both, either []int32
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] == b[0]:
			both = append(both, a[0])
			either = append(either, a[0])
			a, b = a[1:], b[1:]
		case a[0] < b[0]:
			either = append(either, a[0])
			a = a[1:]
		default:
			either = append(either, b[0])
			b = b[1:]
		}
	}
	if both != nil {
		return both
	}
	return append(append(either, a...), b...)
}

// pick writes the rows of n, whose prefix is in at, into out. What is above says inherited.
func (t *tables) pick(n *node, at Row, inherited int32, out *[]Row) {
	if _, ok := slices.BinarySearch(n.choices, inherited); !ok {
		inherited = n.choices[0]
		at.Verdict = t.list[inherited]
		*out = append(*out, at)
	}
	if n.children == nil {
		return
	}
	at.Bits++
	t.pick(&n.children[0], at, inherited, out)
	at.Port |= 1 << (16 - at.Bits)
	t.pick(&n.children[1], at, inherited, out)
}

// tableID names rows by their content.
func tableID(rows []Row) ID {
	d := digest{data: make([]byte, 0, 128*len(rows))}
	d.text("table")
	for i := range rows {
		r := &rows[i]
		d.number(uint64(r.Protocol))
		d.number(uint64(r.Port))
		d.number(uint64(r.Bits))
		d.verdict(&r.Verdict)
	}
	return ID(d.sum(1))
}
