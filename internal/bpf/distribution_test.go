package bpf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/service/maglev"
)

const tableSize = 16381 // the default of services.maglevSize

// all algorithms in the order of docs/load-balancing.md.
var algorithms = []struct {
	name string
	id   Algorithm
}{
	{"random", AlgorithmRandom}, {"p2c", AlgorithmP2C}, {"rr", AlgorithmRR}, {"lc", AlgorithmLC}, {"sed", AlgorithmSED}, {"nq", AlgorithmNQ},
	{"maglev", AlgorithmMaglev}, {"sh", AlgorithmSH}, {"dh", AlgorithmDH},
}

// pool is a service on a wildcard row, so that clients may name many addresses, with one backend set.
type pool struct {
	asker
	f         serviceFamily
	algorithm Algorithm
	set       uint32
	ids       []uint32
	first     netip.Addr // of many that are this node's
}

const poolPort = 30080

// newPool writes the set as userspace does: weights in slots where loads are compared, in repeated slots elsewhere.
func newPool(a asker, f serviceFamily, algorithm Algorithm, weights ...uint32) *pool {
	b := a.balancer
	p := &pool{asker: a, f: f, algorithm: algorithm, set: b.next + 1, first: f.elsewhere}
	b.check(b.objs.StraitIpcache.Put(IpcacheKeyFrom(netip.PrefixFrom(p.first, 8).Masked()), Remote{Flags: RemoteHost}))
	var backends []netip.AddrPort
	for i := range weights {
		backends = append(backends, netip.AddrPortFrom(f.backends[0].Addr(), uint16(2000+i)))
	}
	p.ids = b.set(p.set, unix.IPPROTO_TCP, backends...)
	p.arrange(weights...)
	return p
}

// arrange gives the set a slot for each turn, the table, and the frontend its count. Weight 0 takes a backend out: the last fills its
// place, as in userspace.
func (p *pool) arrange(weights ...uint32) {
	p.t.Helper()
	var slots []Slot
	var named []maglev.Backend
	repeat := !slices.Contains([]Algorithm{AlgorithmLC, AlgorithmSED, AlgorithmNQ, AlgorithmP2C}, p.algorithm)
	for i, w := range weights {
		n := w
		if !repeat && w > 0 {
			n = 1
		}
		for range n {
			slots = append(slots, Slot{Backend: p.ids[i], Weight: w})
		}
		if w == 0 && i < len(weights)-1 {
			slots = append(slots, Slot{Backend: p.ids[len(weights)-1], Weight: weights[len(weights)-1]})
			weights[len(weights)-1] = 0
		}
	}
	for i, s := range slots {
		p.check(p.objs.StraitSlot.Put(SlotKey{Set: p.set, Slot: uint32(i)}, s))
	}
	if p.algorithm == AlgorithmMaglev {
		var of []uint32
		for _, s := range slots {
			if !slices.Contains(of, s.Backend) {
				of = append(of, s.Backend)
			}
		}
		slices.Sort(of)
		for _, id := range of {
			weight := uint32(0)
			for _, s := range slots {
				if s.Backend == id {
					weight++
				}
			}
			at := netip.AddrPortFrom(p.f.backends[0].Addr(), uint16(id))
			named = append(named, maglev.Backend{AddrPort: at, Weight: weight})
		}
		table := maglev.Table(tableSize, named)
		for i := range table {
			table[i] = of[table[i]]
		}
		p.table(p.set, table)
	}
	p.front(netip.AddrPortFrom(p.f.any, poolPort), unix.IPPROTO_TCP,
		Service{Id: 1, Set: p.set, Count: uint32(len(slots)), Flags: ServiceNodePort, Algorithm: p.algorithm})
}

// nth asks as the nth of many clients: each has an address, a connection with a hash, and an address it asks for.
func (p *pool) nth(i uint32) uint32 {
	p.t.Helper()
	hash := rand.New(rand.NewPCG(1, uint64(i))).Uint32()
	id := p.ask(netip.AddrPortFrom(offset(p.first, i), poolPort), unix.IPPROTO_TCP, asking{addr: offset(p.f.pod, i), hash: hash})
	if id == 0 {
		p.t.Fatalf("client %d gets no backend", i)
	}
	return id
}

// offset is the address i further.
func offset(a netip.Addr, i uint32) netip.Addr {
	b := a.As16()
	b[15], b[14], b[13] = b[15]+byte(i), b[14]+byte(i>>8), b[13]+byte(i>>16)
	if a.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// take is n connections; with stay, each is a load of its backend from then on. It gives the number of each backend.
func (p *pool) take(n int, stay bool) []int {
	p.t.Helper()
	got := make([]int, len(p.ids))
	for i := range n {
		id := p.nth(uint32(i))
		got[slices.Index(p.ids, id)]++
		if stay {
			change(p.t, p.objs.StraitLoad, id, func(l *Load) { l.Sockets++ })
		}
	}
	return got
}

// chiSquare is how far counts are from proportions.
func chiSquare(got []int, proportions []float64) float64 {
	var n, whole, sum float64
	for i := range got {
		n, whole = n+float64(got[i]), whole+proportions[i]
	}
	for i, g := range got {
		want := n * proportions[i] / whole
		if want == 0 {
			if g > 0 {
				return math.Inf(1)
			}
			continue
		}
		sum += (float64(g) - want) * (float64(g) - want) / want
	}
	return sum
}

func percent(got []int) string {
	n := 0
	for _, g := range got {
		n += g
	}
	var s []string
	for _, g := range got {
		s = append(s, fmt.Sprintf("%.1f", 100*float64(g)/float64(n)))
	}
	return strings.Join(s, " / ")
}

// distribution runs fn for IPv4 and IPv6 with each algorithm and prints what it says as a row of a table.
func distribution(t *testing.T, header string, fn func(t *testing.T, a asker, f serviceFamily, algorithm Algorithm) string) {
	t.Helper()
	for _, f := range serviceFamilies()[:2] {
		a := newBalancer(t).asker(constant{DatapathVarCfgMaglevSize, uint32(tableSize)})
		var table strings.Builder
		fmt.Fprintf(&table, "%s, %s\n", t.Name(), f.name)
		fmt.Fprintf(&table, "| algorithm | %s |\n", header)
		for _, alg := range algorithms {
			t.Run(f.name+" "+alg.name, func(t *testing.T) {
				own := *a.balancer // fails this test, not the one around it
				own.t = t
				row := fn(t, asker{&own, a.prog}, f, alg.id)
				a.next = own.next
				if row != "" {
					fmt.Fprintf(&table, "| `%s` | %s |\n", alg.name, row)
				}
			})
		}
		t.Log(table.String())
	}
}

const (
	draws  = 4000
	chi3df = 30.7 // three degrees of freedom: one run in a million is above
	chi9df = 45.1
)

// TestDistributionShort: connections that are over at once, of clients that all differ.
func TestDistributionShort(t *testing.T) {
	distribution(t, "equal weights | weights 1, 2, 3, 4", func(t *testing.T, ask asker, f serviceFamily, a Algorithm) string {
		equal := newPool(ask, f, a, 1, 1, 1, 1).take(draws, false)
		if chi := chiSquare(equal, []float64{1, 1, 1, 1}); chi > chi3df || a == AlgorithmRR && chi != 0 {
			t.Errorf("equal weights: %v, chi-square %.1f", equal, chi)
		}
		weighted := newPool(ask, f, a, 1, 2, 3, 4).take(draws, false)
		want := []float64{1, 2, 3, 4}
		switch a {
		case AlgorithmSED: // the strongest is free, so it is always the quickest
			want = []float64{0, 0, 0, 1}
		case AlgorithmP2C: // of two, each has its weight's chance
			want = []float64{pairs(0), pairs(1), pairs(2), pairs(3)}
		}
		if chi := chiSquare(weighted, want); chi > chi3df || a == AlgorithmRR && chi != 0 {
			t.Errorf("weights 1, 2, 3, 4: %v, want %v, chi-square %.1f", weighted, want, chi)
		}
		return percent(equal) + " | " + percent(weighted)
	})
}

// pairs is the chance of backend i of weight i+1 among four, if each pair is as likely as the others.
func pairs(i int) float64 {
	sum := 0.0
	for j := range 4 {
		if j != i {
			sum += float64(i+1) / float64(i+j+2)
		}
	}
	return sum / 6
}

// TestDistributionLong: connections that stay.
func TestDistributionLong(t *testing.T) {
	distribution(t, "fewest and most of 1,000 on 10 | weights 1, 2, 3, 4 | of the next 500, on a new fifth",
		func(t *testing.T, ask asker, f serviceFamily, a Algorithm) string {
			loads := func(id Algorithm) bool { return id == AlgorithmLC || id == AlgorithmSED || id == AlgorithmNQ }
			even := newPool(ask, f, a, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1).take(1000, true)
			low, high := slices.Min(even), slices.Max(even)
			switch {
			case loads(a) || a == AlgorithmRR:
				if low != 100 || high != 100 {
					t.Errorf("%v, want 100 each", even)
				}
			case a == AlgorithmP2C:
				if low < 94 || high > 106 {
					t.Errorf("%v, want about 100 each", even)
				}
			default:
				if chi := chiSquare(even, []float64{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}); chi > chi9df {
					t.Errorf("%v: chi-square %.1f", even, chi)
				}
			}
			weighted := newPool(ask, f, a, 1, 2, 3, 4).take(1000, true)
			for i, got := range weighted {
				if off := math.Abs(float64(got) - 100*float64(i+1)); loads(a) && off > 2 || a == AlgorithmP2C && off > 20 {
					t.Errorf("weights 1, 2, 3, 4: %v, want 100, 200, 300, 400", weighted)
				}
			}
			p := newPool(ask, f, a, 1, 1, 1, 1, 1)
			p.arrange(1, 1, 1, 1)
			for _, id := range p.ids[:4] {
				change(t, ask.objs.StraitLoad, id, func(l *Load) { l.Sockets = 1000 })
			}
			p.arrange(1, 1, 1, 1, 1)
			fifth := p.take(500, true)[4]
			switch {
			case loads(a) && fifth != 500, a == AlgorithmRR && fifth != 100, a == AlgorithmP2C && (fifth < 145 || fifth > 255):
				t.Errorf("the new backend gets %d of 500", fifth)
			}
			return fmt.Sprintf("%d - %d | %s | %d", low, high, percent(weighted), fifth)
		})
}

// TestDistributionRemoval: clients of backends that stay, when one of ten goes.
func TestDistributionRemoval(t *testing.T) {
	distribution(t, "clients of the other nine that are moved", func(t *testing.T, ask asker, f serviceFamily, a Algorithm) string {
		if !slices.Contains([]Algorithm{AlgorithmRandom, AlgorithmMaglev, AlgorithmSH, AlgorithmDH}, a) {
			return "" // the same client asked again is another connection
		}
		p := newPool(ask, f, a, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
		before := make([]uint32, draws)
		for i := range before {
			before[i] = p.nth(uint32(i))
		}
		p.arrange(1, 1, 1, 0, 1, 1, 1, 1, 1, 1)
		stayed, moved := 0, 0
		for i, was := range before {
			now := p.nth(uint32(i))
			switch {
			case now == p.ids[3]:
				t.Fatalf("client %d goes to the backend that is gone", i)
			case was == p.ids[3]:
			case was == now:
				stayed++
			default:
				moved++
			}
		}
		share := float64(moved) / float64(moved+stayed)
		if a == AlgorithmMaglev && share > 0.05 || a != AlgorithmMaglev && share < 0.8 {
			t.Errorf("%.1f %% of clients were moved", 100*share)
		}
		return fmt.Sprintf("%.1f %%", 100*share)
	})
}
