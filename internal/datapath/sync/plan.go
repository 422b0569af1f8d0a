package sync

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/service/maglev"
	"github.com/strait-net/strait/internal/state"
)

// request is a row of state.Frontends in the kernel's words.
type request struct {
	front     maps.Frontend
	service   state.ServiceName
	flags     bpf.ServiceFlags
	algorithm bpf.Algorithm
	affinity  uint32
	sources   []netip.Prefix // sorted
	keys      [2]state.SetKey
	wants     [2][]want // inner and outer; outer is empty when both are one set
}

// one reports whether clients inside and outside have the same set.
func (r *request) one() bool { return r.keys[0] == r.keys[1] }

// plan is a list of writes in an order in which the datapath never meets a slot in use without a backend, and what has to be undone when one
// of them fails.
type plan struct {
	*model
	req    *request
	ops    []op
	next   map[uint32][]maps.Share // set -> its slots afterwards
	made   map[target]uint32       // backends that do not exist yet
	change map[uint32]int          // backend -> change of its references
}

func (m *model) newPlan(r *request) *plan {
	ops := m.spare
	m.spare = nil
	return &plan{model: m, req: r, ops: ops, next: map[uint32][]maps.Share{}, made: map[target]uint32{}, change: map[uint32]int{}}
}

func (p *plan) add(o op) { p.ops = append(p.ops, o) }

// planFrontend lists the writes that make a frontend be exactly as requested. New backends come first, then slots, then higher counts; lower
// counts before all slots, and what is no longer used last. Every frontend of a set gets its count.
func (m *model) planFrontend(r *request, tableSize uint32) *plan {
	p := m.newPlan(r)
	have, exists := m.services[r.front]
	value := p.value(have)
	p.putBackends()
	for _, s := range r.sources {
		if _, there := slices.BinarySearchFunc(m.sources[value.ID], s, comparePrefix); !there {
			p.add(op{kind: opSource, source: maps.Source{Service: value.ID, Prefix: s}})
		}
	}
	lowered := p.lower(value)
	p.putSlots()
	p.putTables(tableSize)
	p.raise(lowered, value)
	p.surplus()
	if exists {
		p.abandon(have, value.Set, value.OuterSet)
	}
	p.strangers(value.ID, r.sources)
	p.leaveLast()
	return p
}

// value returns the row the frontend is to have, and decides on the slots of its sets.
func (p *plan) value(have maps.Service) maps.Service {
	r := p.req
	v := maps.Service{ID: have.ID, Flags: r.flags, Algorithm: r.algorithm, Affinity: r.affinity}
	if v.ID == 0 {
		v.ID = p.nextService()
	}
	v.Set = p.setFor(r.keys[0], have.Set)
	p.next[v.Set] = p.arrange(v.Set, r.wants[0])
	v.Count = uint32(len(p.next[v.Set]))
	v.OuterSet, v.OuterCount = v.Set, v.Count
	if !r.one() {
		v.OuterSet = p.setFor(r.keys[1], have.OuterSet)
		p.next[v.OuterSet] = p.arrange(v.OuterSet, r.wants[1])
		v.OuterCount = uint32(len(p.next[v.OuterSet]))
	}
	return v
}

// setFor returns the set of a key. One that is not known yet after a start is the one the kernel's row of the frontend names, unless that
// is another's.
func (m *model) setFor(key state.SetKey, kernel uint32) uint32 {
	if id, ok := m.setIDs[key]; ok {
		return id
	}
	if s := m.sets[kernel]; kernel == 0 || s == nil || s.claimed {
		kernel = m.nextSet()
	}
	m.claim(kernel, key)
	return kernel
}

func (p *plan) arrange(id uint32, list []want) []maps.Share {
	now := p.set(id).slots
	next := arrange(now, list, p.idOf, p.addressOf)
	for _, s := range now {
		p.change[s.Backend]--
	}
	for _, s := range next {
		p.change[s.Backend]++
	}
	return next
}

func (p *plan) idOf(w want) uint32 {
	if id, known := p.ids[w.target]; known {
		return id
	}
	id, known := p.made[w.target]
	if !known {
		id = p.nextBackend()
		p.made[w.target] = id
	}
	return id
}

func (p *plan) addressOf(id uint32) (target, bool) {
	if b := p.backends[id]; b != nil {
		return target{b.AddrPort, b.Protocol}, true
	}
	return target{}, false
}

// putBackends makes those that are missing, with their loads, and takes back that others are leaving.
func (p *plan) putBackends() {
	written := map[uint32]bool{}
	for _, list := range p.req.wants {
		for _, w := range list {
			id := p.idOf(w)
			b := p.backends[id]
			if b != nil && w.pod != "" {
				b.pod = w.pod
			}
			if b != nil && b.load && b.Flags == 0 || written[id] {
				continue
			}
			written[id] = true
			if b == nil && !slices.Contains(p.stray, id) || b != nil && !b.load {
				p.add(op{kind: opLoad, id: id})
			}
			switch {
			case b == nil:
				p.add(op{kind: opBackend, id: id, pod: w.pod,
					target: maps.Backend{AddrPort: w.AddrPort, Protocol: w.protocol, Generation: p.generation}})
			case b.Flags != 0:
				p.add(op{kind: opBackend, id: id, target: flagged(b.Backend, 0)})
			}
		}
	}
}

func flagged(b maps.Backend, f bpf.BackendFlags) maps.Backend {
	b.Flags = f
	return b
}

// lower writes the rows that count more slots than their set will have, and returns them as they are then.
func (p *plan) lower(value maps.Service) map[maps.Frontend]maps.Service {
	lowered := map[maps.Frontend]maps.Service{}
	for f, have := range p.users() {
		row := have
		row.Count = min(row.Count, p.size(row.Set, row.Count))
		row.OuterCount = min(row.OuterCount, p.size(row.OuterSet, row.OuterCount))
		if row == have {
			continue
		}
		if f == p.req.front && value.Set == have.Set && value.OuterSet == have.OuterSet && value.Count <= have.Count && value.OuterCount <= have.OuterCount {
			row = value // the only write it needs
		}
		lowered[f] = row
		p.add(op{kind: opService, front: f, value: row})
	}
	return lowered
}

// raise writes the rows of all frontends of the sets as they are to be, that of the request last.
func (p *plan) raise(lowered map[maps.Frontend]maps.Service, value maps.Service) {
	now := func(f maps.Frontend, have maps.Service) maps.Service {
		if row, ok := lowered[f]; ok {
			return row
		}
		return have
	}
	for f, have := range p.users() {
		if f == p.req.front {
			continue
		}
		row := now(f, have)
		want := row
		want.Count, want.OuterCount = p.size(row.Set, row.Count), p.size(row.OuterSet, row.OuterCount)
		if want != row {
			p.add(op{kind: opService, front: f, value: want})
		}
	}
	have, exists := p.services[p.req.front]
	if !exists || now(p.req.front, have) != value {
		p.add(op{kind: opService, front: p.req.front, value: value})
	}
}

// size returns how many slots a set will have; other for one that is not planned.
func (p *plan) size(set, other uint32) uint32 {
	if next, planned := p.next[set]; planned {
		return uint32(len(next))
	}
	return other
}

// planned returns the sets of the request in a fixed order.
func (p *plan) planned() []uint32 {
	return sorted(p.next, cmp.Compare[uint32])
}

// users calls the body with every valid frontend of the planned sets and its row.
func (p *plan) users() iter.Seq2[maps.Frontend, maps.Service] {
	return func(yield func(maps.Frontend, maps.Service) bool) {
		seen := map[maps.Frontend]bool{}
		for _, id := range p.planned() {
			for _, f := range p.sets[id].users {
				row := p.services[f]
				if seen[f] || row.ID == 0 {
					continue
				}
				if seen[f] = true; !yield(f, row) {
					return
				}
			}
		}
	}
}

func (p *plan) putSlots() {
	for _, id := range p.planned() {
		now := p.sets[id].slots
		for i, share := range p.next[id] {
			if i >= len(now) || now[i] != share {
				p.add(op{kind: opSlot, slot: maps.Slot{Set: id, Slot: uint32(i)}, share: share})
			}
		}
	}
}

// putTables writes the maglev tables that differ from the backends.
func (p *plan) putTables(size uint32) {
	if p.req.algorithm != bpf.AlgorithmMaglev {
		return
	}
	for i, key := range p.req.keys {
		if i == 1 && p.req.one() {
			continue
		}
		id := p.setIDs[key]
		if t := p.table(p.req.wants[i], size); t != nil && p.sets[id].sum != t.sum {
			p.add(op{kind: opTable, id: id, table: t})
		}
	}
}

// table returns what the maglev table of a set is made from, nil for an empty one.
func (p *plan) table(list []want, size uint32) *table {
	if len(list) == 0 {
		return nil
	}
	t := &table{ids: make([]uint32, len(list)), backends: make([]maglev.Backend, len(list))}
	h := fnv.New64a()
	word := func(n uint32) { _, _ = h.Write(binary.BigEndian.AppendUint32(nil, n)) } // never fails
	word(size)
	for i, w := range byAddress(list) {
		t.ids[i], t.backends[i] = p.idOf(w), maglev.Backend{AddrPort: w.AddrPort, Weight: w.slots}
		word(t.ids[i])
		word(w.slots)
	}
	t.sum = max(h.Sum64(), 1)
	return t
}

// surplus removes the slots beyond the end of the planned sets, tables that are no longer used, and the memory of clients that stay with a
// backend which is no longer in the set.
func (p *plan) surplus() {
	for _, id := range p.planned() {
		s, next := p.sets[id], p.next[id]
		p.deleteSlots(id, len(next))
		if s.table != 0 && (p.req.algorithm != bpf.AlgorithmMaglev || len(next) == 0) {
			p.add(op{kind: opTable, id: id, remove: true})
		}
		if p.req.flags&bpf.ServiceAffinity == 0 {
			continue
		}
		stays := map[uint32]bool{0: true}
		for _, share := range next {
			stays[share.Backend] = true
		}
		for _, share := range s.slots {
			if !stays[share.Backend] {
				stays[share.Backend] = true
				p.add(op{kind: opAffinity, id: id, share: share, remove: true})
			}
		}
	}
}

func (p *plan) deleteSlots(set uint32, from int) {
	now := p.sets[set].slots
	for i := len(now) - 1; i >= from; i-- {
		if now[i].Backend != 0 {
			p.add(op{kind: opSlot, slot: maps.Slot{Set: set, Slot: uint32(i)}, remove: true})
		}
	}
}

// abandon removes what a row that is replaced or removed leaves behind: sets that no other frontend has, and the memory of affinities that
// are no longer wanted.
func (p *plan) abandon(have maps.Service, keep ...uint32) {
	for _, id := range setsOf(have) {
		switch {
		case !slices.Contains(keep, id):
			p.drop(id, have.Flags)
		case have.Flags&bpf.ServiceAffinity != 0 && p.req.flags&bpf.ServiceAffinity == 0:
			p.add(op{kind: opAffinity, id: id, remove: true})
		}
	}
}

// drop removes a set that nobody but the frontend of the request has.
func (p *plan) drop(id uint32, flags bpf.ServiceFlags) {
	s := p.sets[id]
	if s == nil || slices.ContainsFunc(s.users, func(f maps.Frontend) bool { return f != p.req.front }) {
		return
	}
	if _, planned := p.next[id]; planned {
		return
	}
	p.next[id] = nil
	for _, share := range s.slots {
		p.change[share.Backend]--
	}
	if s.table != 0 {
		p.add(op{kind: opTable, id: id, remove: true})
	}
	p.deleteSlots(id, 0)
	if flags&bpf.ServiceAffinity != 0 {
		p.add(op{kind: opAffinity, id: id, remove: true})
	}
}

// strangers removes prefixes that may no longer use a frontend.
func (p *plan) strangers(id uint32, wanted []netip.Prefix) {
	for _, s := range p.sources[id] {
		if _, stays := slices.BinarySearchFunc(wanted, s, comparePrefix); !stays {
			p.add(op{kind: opSource, source: maps.Source{Service: id, Prefix: s}, remove: true})
		}
	}
}

// leaveLast marks backends that lose their last slot: connections stay until whoever watches pods has closed them.
func (p *plan) leaveLast() {
	for _, id := range sorted(p.change, cmp.Compare[uint32]) {
		if b := p.backends[id]; b != nil && b.refs+p.change[id] <= 0 && b.Flags&bpf.BackendLeaving == 0 {
			p.add(op{kind: opBackend, id: id, target: flagged(b.Backend, bpf.BackendLeaving)})
		}
	}
}

// planRemoval lists the writes that make a frontend not exist, nor what only it has.
func (m *model) planRemoval(r *request) *plan {
	p := m.newPlan(r)
	have, exists := m.services[r.front]
	if exists {
		p.add(op{kind: opService, front: r.front, remove: true})
		p.strangers(have.ID, nil)
		p.abandon(have)
	}
	for _, key := range r.keys { // what a write that failed has left
		if id, known := m.setIDs[key]; known {
			p.drop(id, r.flags)
		}
	}
	p.leaveLast()
	return p
}

// planLeftovers lists the writes that remove what no frontend has.
func (m *model) planLeftovers() *plan {
	p := m.newPlan(&request{})
	for _, id := range sorted(m.sources, cmp.Compare[uint32]) {
		if _, owned := m.owners[id]; !owned {
			p.strangers(id, nil)
		}
	}
	for _, id := range sorted(m.sets, cmp.Compare[uint32]) {
		p.drop(id, 0)
	}
	for id := range m.leaving {
		p.change[id] += 0
	}
	p.leaveLast()
	for _, id := range m.stray {
		p.add(op{kind: opLoad, id: id, remove: true})
	}
	return p
}

// planUndo lists the writes that leave nothing of a plan that could not be finished: no backend, slot or prefix that only it would have used.
func (m *model) planUndo(failed *plan) *plan {
	p := m.newPlan(&request{})
	for _, id := range failed.planned() {
		s := m.sets[id]
		switch {
		case s == nil:
		case len(s.users) == 0:
			p.drop(id, 0)
			m.tidy(id)
		case s.table != 0: // its table may be the new one already: the next attempt finishes
			return p
		default:
			used := m.used(id)
			for i := used; i < len(s.slots); i++ {
				p.change[s.slots[i].Backend]--
			}
			p.deleteSlots(id, used)
		}
	}
	for _, id := range failed.made {
		b := m.backends[id]
		unused := b != nil && b.refs+p.change[id] == 0
		if unused {
			p.add(op{kind: opBackend, id: id, remove: true}) // no connection has met it
			delete(p.change, id)
		}
		if unused && b.load || slices.Contains(m.stray, id) {
			p.add(op{kind: opLoad, id: id, remove: true})
		}
	}
	for _, list := range failed.req.wants {
		for _, w := range list {
			if _, made := failed.made[w.target]; !made {
				p.change[m.ids[w.target]] += 0
			}
		}
	}
	p.leaveLast()
	for id := range m.sources {
		if _, owned := m.owners[id]; !owned {
			p.strangers(id, nil)
		}
	}
	return p
}

// used returns how many slots of a set its frontends count.
func (m *model) used(id uint32) (n int) {
	for _, f := range m.sets[id].users {
		row := m.services[f]
		if row.Set == id {
			n = max(n, int(row.Count))
		}
		if row.OuterSet == id {
			n = max(n, int(row.OuterCount))
		}
	}
	return n
}
