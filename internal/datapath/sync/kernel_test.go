package sync

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/strait-net/strait/internal/bpf"
	kmaps "github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

var errFlaky = errors.New("write failed on purpose")

// kernel is the service maps in memory. It checks after every write what the datapath relies on, and fails every write with a given
// probability.
type kernel struct {
	t        *testing.T
	services map[kmaps.Frontend]kmaps.Service
	slots    map[kmaps.Slot]kmaps.Share
	backends map[uint32]kmaps.Backend
	loads    map[uint32]kmaps.Load
	sources  map[kmaps.Source]bool
	tables   map[uint32]uint32 // set -> table
	content  map[uint32][]uint32
	forgot   []string
	random   *rand.Rand
	failing  float64
	loose    bool // do not check: a test has damaged the tables
	room     map[string]int
	writes   []string
}

func newKernel(t *testing.T) *kernel {
	return &kernel{
		t: t, services: map[kmaps.Frontend]kmaps.Service{}, slots: map[kmaps.Slot]kmaps.Share{}, backends: map[uint32]kmaps.Backend{},
		loads: map[uint32]kmaps.Load{}, sources: map[kmaps.Source]bool{}, tables: map[uint32]uint32{}, content: map[uint32][]uint32{},
		random: rand.New(rand.NewPCG(1, 2)), room: map[string]int{},
	}
}

func (k *kernel) write(what string, do func()) error {
	if k.random.Float64() < k.failing {
		return errFlaky
	}
	do()
	k.writes = append(k.writes, what)
	if !k.loose {
		k.check(what)
	}
	return nil
}

// check fails when a slot in use has no backend of its protocol or one without a load, when a table does, or when a backend is said to be
// leaving that is in a slot in use.
func (k *kernel) check(what string) {
	k.t.Helper()
	for f, s := range k.services {
		for set, count := range map[uint32]uint32{s.Set: s.Count, s.OuterSet: s.OuterCount} {
			for i := range count {
				to := k.slots[kmaps.Slot{Set: set, Slot: i}]
				b, there := k.backends[to.Backend]
				if _, load := k.loads[to.Backend]; !there || !load || b.Protocol != f.Protocol || b.Flags&bpf.BackendLeaving != 0 {
					k.t.Fatalf("after %q: slot %d of %s points to %+v (there: %v, load: %v); writes %q", what, i, f.AddrPort, b, there, load, k.writes)
				}
			}
			if s.Algorithm != bpf.AlgorithmMaglev {
				continue
			}
			for _, id := range k.content[k.tables[set]] {
				if _, there := k.backends[id]; !there {
					k.t.Fatalf("after %q: table of %s points to backend %d, which is not there", what, f.AddrPort, id)
				}
			}
		}
		if s.Flags&bpf.ServiceSources != 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(k.sources)), func(x kmaps.Source) bool { return x.Service == s.ID }) {
			k.t.Fatalf("after %q: nobody may use %s", what, f.AddrPort)
		}
	}
}

// insert is a write that needs room when it is of a new key.
func insert[K comparable, V any](k *kernel, name string, m map[K]V, key K, v V, what string) error {
	if _, there := m[key]; !there && k.room[name] > 0 && len(m) >= k.room[name] {
		return fmt.Errorf("write %s: %w", name, kmaps.ErrFull)
	}
	return k.write(what, func() { m[key] = v })
}

func (k *kernel) PutService(f kmaps.Frontend, s kmaps.Service) error {
	return insert(k, "services", k.services, f, s, fmt.Sprintf("service %s count %d", f.AddrPort, s.Count))
}

func (k *kernel) DeleteService(f kmaps.Frontend) error {
	return k.write("delete service", func() { delete(k.services, f) })
}

func (k *kernel) PutSlot(s kmaps.Slot, to kmaps.Share) error {
	return insert(k, "slots", k.slots, s, to, fmt.Sprintf("slot %d", s.Slot))
}

func (k *kernel) DeleteSlot(s kmaps.Slot) error {
	return k.write(fmt.Sprintf("delete slot %d", s.Slot), func() { delete(k.slots, s) })
}

func (k *kernel) PutBackend(id uint32, b kmaps.Backend) error {
	what := "backend " + b.String()
	if b.Flags&bpf.BackendLeaving != 0 {
		what += " leaving"
	}
	return insert(k, "backends", k.backends, id, b, what)
}

func (k *kernel) DeleteBackend(id uint32) error {
	return k.write("delete backend", func() { delete(k.backends, id) })
}

func (k *kernel) PutLoad(id uint32) error {
	return insert(k, "loads", k.loads, id, k.loads[id], "load")
}

func (k *kernel) DeleteLoad(id uint32) error {
	return k.write("delete load", func() { delete(k.loads, id) })
}

func (k *kernel) PutSource(s kmaps.Source) error {
	return insert(k, "sources", k.sources, s, true, "source "+s.Prefix.String())
}

func (k *kernel) DeleteSource(s kmaps.Source) error {
	return k.write("delete source "+s.Prefix.String(), func() { delete(k.sources, s) })
}

func (k *kernel) PutTable(set uint32, table []uint32) (uint32, error) {
	id := uint32(len(k.content) + 1)
	k.content[id] = slices.Clone(table) // made aside
	if err := insert(k, "tables", k.tables, set, id, "table"); err != nil {
		return 0, err
	}
	return id, nil
}

func (k *kernel) DeleteTable(set uint32) error {
	return k.write("delete table", func() { delete(k.tables, set) })
}

func (k *kernel) Table(set uint32) ([]uint32, error) { return k.content[k.tables[set]], nil }

func (k *kernel) ForgetAffinity(set, backend uint32) error {
	return k.write("forget", func() { k.forgot = append(k.forgot, fmt.Sprintf("%d/%d", set, backend)) })
}

func (k *kernel) EachService(fn func(kmaps.Frontend, kmaps.Service)) error {
	return visit(k.services, fn)
}
func (k *kernel) EachSlot(fn func(kmaps.Slot, kmaps.Share)) error  { return visit(k.slots, fn) }
func (k *kernel) EachBackend(fn func(uint32, kmaps.Backend)) error { return visit(k.backends, fn) }
func (k *kernel) EachLoad(fn func(uint32, kmaps.Load)) error       { return visit(k.loads, fn) }
func (k *kernel) EachTable(fn func(set, id uint32)) error          { return visit(k.tables, fn) }
func (k *kernel) EachSource(fn func(kmaps.Source)) error {
	return visit(k.sources, func(s kmaps.Source, _ bool) { fn(s) })
}

func visit[K comparable, V any](m map[K]V, fn func(K, V)) error {
	for k, v := range m {
		fn(k, v)
	}
	return nil
}

// seen is what the datapath makes of the maps for one frontend.
type seen struct {
	Inner, Outer []string // backend x weight, sorted
	Flags        bpf.ServiceFlags
	Algorithm    bpf.Algorithm
	Affinity     uint32
	Sources      []string
	Table        int // entries
}

// content is what the datapath makes of the maps.
func content(t *testing.T, k ServiceMaps) map[string]seen {
	t.Helper()
	slots, backends, sources, out := map[kmaps.Slot]kmaps.Share{}, map[uint32]kmaps.Backend{}, map[uint32][]string{}, map[string]seen{}
	list := func(set, count uint32) []string {
		names := []string{}
		for i := range count {
			to := slots[kmaps.Slot{Set: set, Slot: i}]
			names = append(names, fmt.Sprintf("%s x %d", backends[to.Backend], to.Weight))
		}
		slices.Sort(names)
		return names
	}
	err := errors.Join(
		k.EachSlot(func(s kmaps.Slot, to kmaps.Share) { slots[s] = to }),
		k.EachBackend(func(id uint32, b kmaps.Backend) { backends[id] = b }),
		k.EachSource(func(s kmaps.Source) { sources[s.Service] = append(sources[s.Service], s.Prefix.String()) }),
		k.EachService(func(f kmaps.Frontend, s kmaps.Service) {
			table, err := k.Table(s.Set)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(sources[s.ID])
			out[f.String()] = seen{list(s.Set, s.Count), list(s.OuterSet, s.OuterCount), s.Flags, s.Algorithm, s.Affinity, sources[s.ID], len(table)}
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wanted is what the rows ask for, worked out in the simplest way.
func wanted(rows ...state.Frontend) map[string]seen {
	out := map[string]seen{}
	for _, r := range rows {
		list := func(backends []state.Backend) []string {
			names := []string{}
			for _, w := range wants(backends, r.Protocol, algorithm(r.Algorithm)) {
				for range w.slots {
					names = append(names, fmt.Sprintf("%s x %d", w.AddrPort, w.weight))
				}
			}
			slices.Sort(names)
			return names
		}
		w := seen{Inner: list(r.Backends), Flags: flags(r), Algorithm: algorithm(r.Algorithm), Affinity: uint32(r.Affinity.Seconds())}
		if w.Outer = w.Inner; r.OuterLocal {
			w.Outer = list(r.OuterBackends)
		}
		for _, p := range r.SourceRanges {
			w.Sources = append(w.Sources, p.String())
		}
		slices.Sort(w.Sources)
		if r.Algorithm == state.Maglev && len(r.Backends) > 0 {
			w.Table = tableEntries
		}
		out[netip.AddrPortFrom(r.Address, r.Port).String()] = w
	}
	return out
}

const tableEntries = 251

// checkExact fails when something is there that nothing uses, apart from backends that are leaving.
func checkExact(t *testing.T, k *kernel) {
	t.Helper()
	slots, used, sets, ids := 0, map[uint32]bool{}, map[uint32]bool{}, map[uint32]bool{}
	for _, s := range k.services {
		ids[s.ID] = true
		for set, count := range map[uint32]uint32{s.Set: s.Count, s.OuterSet: s.OuterCount} {
			if sets[set] {
				continue
			}
			sets[set] = true
			slots += int(count)
			for i := range count {
				used[k.slots[kmaps.Slot{Set: set, Slot: i}].Backend] = true
			}
		}
	}
	if slots != len(k.slots) || len(k.loads) != len(k.backends) || len(ids) != len(k.services) {
		t.Errorf("%d slots (%d used), %d loads of %d backends, %d ids of %d frontends", len(k.slots), slots, len(k.loads), len(k.backends),
			len(ids), len(k.services))
	}
	for id, b := range k.backends {
		if leaving := b.Flags&bpf.BackendLeaving != 0; leaving == used[id] {
			t.Errorf("backend %d is used: %v, leaving: %v", id, used[id], leaving)
		}
		if _, ok := k.loads[id]; !ok {
			t.Errorf("backend %d has no load", id)
		}
	}
	for set := range k.tables {
		if !sets[set] {
			t.Errorf("set %d has a table and no frontend", set)
		}
	}
	for s := range k.sources {
		if !ids[s.Service] {
			t.Errorf("prefix %s is of service id %d, which is not there", s.Prefix, s.Service)
		}
	}
}
