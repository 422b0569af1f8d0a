package policy

import (
	"fmt"
	"slices"
	"testing"
)

// least returns the smallest number of rows for a node whose surroundings say inherited, by trying everything.
func least(pieces []piece, first uint32, size uint8, inherited int32, all int32) int {
	if len(pieces) == 1 || pieces[1].start >= first+1<<size {
		if pieces[0].verdict == inherited {
			return 0
		}
		return 1
	}
	middle := first + 1<<(size-1)
	split := 0
	for split+1 < len(pieces) && pieces[split+1].start <= middle {
		split++
	}
	best := least(pieces, first, size-1, inherited, all) + least(pieces[split:], middle, size-1, inherited, all)
	for v := range all {
		if v != inherited {
			best = min(best, 1+least(pieces, first, size-1, v, all)+least(pieces[split:], middle, size-1, v, all))
		}
	}
	return best
}

func TestRowsAreFewAndExact(t *testing.T) {
	// Ports of 6 bits in the high end: every other bit is the same for all, which costs no row.
	for seed := range uint64(400) {
		g := newGenerator(seed)
		verdicts := int32(2 + g.IntN(2))
		b := tables{known: map[Verdict]int32{}}
		for i := range verdicts {
			b.index(Verdict{Rule: RuleRef{Path: fmt.Sprint(i)}})
		}
		starts := []uint32{0}
		values := []int32{g.Int32N(verdicts)}
		for port := uint32(1 << 10); port < 1<<16; port += 1 << 10 {
			if g.IntN(6) == 0 {
				starts, values = append(starts, port), append(values, g.Int32N(verdicts))
			}
		}
		var pieces []piece
		for i, v := range values {
			if i == 0 || v != values[i-1] {
				pieces = append(pieces, piece{starts[i], v})
			}
		}
		rest := g.Int32N(verdicts)
		rows := b.rows(TCP, append(starts, 1<<16), values, rest)
		if want := least(pieces, 0, 16, rest, verdicts); len(rows) != want {
			t.Fatalf("seed %d: %d rows, %d are enough", seed, len(rows), want)
		}
		entry := Entry{Table: &Table{Rows: append([]Row{{Verdict: b.list[rest]}}, rows...)}}
		for port := range uint32(1 << 16) {
			i, exact := slices.BinarySearch(starts, port)
			if !exact {
				i--
			}
			if got := entry.At(TCP, uint16(port)); got != b.list[values[i]] {
				t.Fatalf("seed %d: port %d is %+v, want %d", seed, port, got, values[i])
			}
		}
		if entry.At(UDP, 1) != b.list[rest] {
			t.Fatalf("seed %d: rows of TCP say something about UDP", seed)
		}
	}
}

// Rows are in the order of protocol, port, bits, each once, and name only bits that they cover.
func TestRowsAreInOrder(t *testing.T) {
	for seed := range uint64(500) {
		g := newGenerator(seed)
		p := NewProgram(g.set())
		for range 5 {
			peer := g.peer()
			e := p.Entry(pick(g, Egress, Ingress), peer.Kind, p.match(peer))
			if e.Table == nil {
				continue
			}
			if r := e.Table.Rows[0]; r.Protocol != AnyProtocol || r.Port != 0 || r.Bits != 0 {
				t.Fatalf("seed %d: the row every table has: %+v", seed, r)
			}
			if e.Table.ID != tableID(e.Table.Rows) || e.Table.ID == 0 || len(e.Table.Rows) < 2 {
				t.Fatalf("seed %d: %+v", seed, e.Table)
			}
			for i, r := range e.Table.Rows {
				if uint32(r.Port)<<r.Bits&0xffff != 0 || r.Bits > 16 {
					t.Fatalf("seed %d: %+v has bits behind its prefix", seed, r)
				}
				if i == 0 {
					continue
				}
				b := e.Table.Rows[i-1]
				if b.Protocol > r.Protocol || b.Protocol == r.Protocol && (b.Port > r.Port || b.Port == r.Port && b.Bits >= r.Bits) {
					t.Fatalf("seed %d: %+v before %+v", seed, b, r)
				}
			}
		}
	}
}

func TestRowsOfRanges(t *testing.T) {
	for _, k := range []struct {
		ports []Port
		want  string
	}{
		{tcp(80), "ANY:0/0- TCP:80/16+"},
		{[]Port{{Protocol: TCP}}, "ANY:0/0- TCP:0/0+"},
		{[]Port{{Protocol: TCP, First: 8000, Last: 8003}}, "ANY:0/0- TCP:8000/14+"},
		{[]Port{{Protocol: TCP, First: 1, Last: 65535}}, "ANY:0/0- TCP:0/0+ TCP:0/16-"},
		{[]Port{{Protocol: TCP, First: 1, Last: 4}}, "ANY:0/0- TCP:0/14+ TCP:0/16- TCP:4/16+"},
		{[]Port{{First: 53, Last: 53}}, "ANY:0/0- TCP:53/16+ UDP:53/16+ SCTP:53/16+"},
		{[]Port{{Protocol: ICMP, First: 8 << 8, Last: 8<<8 | 255}}, "ANY:0/0- ICMP:2048/8+"},
		{[]Port{{Protocol: TCP, First: 80, Last: 80}, {}}, "all+"},
		{[]Port{}, "all-"},
		{[]Port{{Protocol: TCP, First: 90, Last: 80}}, "all-"},
	} {
		p := &Policy{Tier: Normal, Ingress: Direction{Isolates: true, Rules: []Rule{{Path: "r", Ports: k.ports}}}}
		e := NewProgram(Set{Policies: []*Policy{p}}).Other(Ingress)
		sign := func(allow bool) string { return map[bool]string{true: "+", false: "-"}[allow] }
		got := "all" + sign(e.Allow)
		if e.Table != nil {
			got = ""
			for i, r := range e.Table.Rows {
				if i > 0 {
					got += " "
				}
				got += fmt.Sprintf("%s:%d/%d%s", r.Protocol, r.Port, r.Bits, sign(r.Allow))
			}
		}
		if got != k.want {
			t.Errorf("%v: %s, want %s", k.ports, got, k.want)
		}
	}
}
