package sync

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/service/maglev"
	"github.com/strait-net/strait/internal/state"
)

// model mirrors the service maps entry by entry: each successful write changes it, so after a failure it says where the kernel stands
// and the next plan goes on from there.
type model struct {
	services map[maps.Frontend]maps.Service
	owners   map[uint32]struct{}       // frontend ids in use
	sources  map[uint32][]netip.Prefix // frontend id -> who may use it, sorted
	sets     map[uint32]*set
	setIDs   map[state.SetKey]uint32
	backends map[uint32]*backend
	ids      map[target]uint32    // backend's address -> its id
	leaving  map[uint32]time.Time // backends in no slot, and since when
	stray    []uint32             // rows of strait_load that no backend has

	spare []op // of a plan that is done, for the next one

	lastService uint32 // last id given out
	lastSet     uint32
	lastBackend uint32
	generation  uint32 // of backends made from now on; never used before for any id
}

// set is a backend set. It exists in the kernel by its slots, its table and the frontends that name it.
type set struct {
	key     state.SetKey
	claimed bool // key is known: it is in setIDs
	slots   []maps.Share
	users   []maps.Frontend
	table   uint32 // kernel's id of the maglev table, 0: none
	sum     uint64 // what table was made from, 0: not known
}

// backend is a row of strait_backend with what belongs to it.
type backend struct {
	maps.Backend
	refs int  // slots that point to it
	load bool // it has a row in strait_load
	pod  string
}

func newModel() *model {
	return &model{
		services: map[maps.Frontend]maps.Service{},
		owners:   map[uint32]struct{}{},
		sources:  map[uint32][]netip.Prefix{},
		sets:     map[uint32]*set{},
		setIDs:   map[state.SetKey]uint32{},
		backends: map[uint32]*backend{},
		ids:      map[target]uint32{},
		leaving:  map[uint32]time.Time{},
	}
}

type opKind uint8

const (
	opService opKind = iota
	opSlot
	opBackend
	opLoad
	opSource
	opTable
	opAffinity // forget clients that stay with a backend of a set
)

// op is one write to one map; remove deletes the entry instead.
type op struct {
	kind   opKind
	remove bool
	id     uint32        // of a backend, load, table's set, or set of affinities
	front  maps.Frontend // opService
	value  maps.Service
	slot   maps.Slot // opSlot
	share  maps.Share
	target maps.Backend // opBackend
	pod    string
	source maps.Source // opSource
	table  *table      // opTable
}

// table is what a maglev table is made from.
type table struct {
	ids      []uint32
	backends []maglev.Backend
	sum      uint64
}

// String returns "service 10.0.0.1:80/6 = id 3 set 2 count 2", "slot 3/1 -> 7", "delete backend 7".
func (o op) String() string {
	what, put := "", ""
	switch o.kind {
	case opService:
		what = fmt.Sprintf("service %s/%d", o.front.AddrPort, o.front.Protocol)
		put = fmt.Sprintf(" = id %d set %d count %d", o.value.ID, o.value.Set, o.value.Count)
		if o.value.OuterSet != o.value.Set {
			put += fmt.Sprintf(" outer set %d count %d", o.value.OuterSet, o.value.OuterCount)
		}
	case opSlot:
		what, put = fmt.Sprintf("slot %d/%d", o.slot.Set, o.slot.Slot), fmt.Sprintf(" -> %d", o.share.Backend)
	case opBackend:
		what, put = fmt.Sprintf("backend %d", o.id), fmt.Sprintf(" = %s/%d", o.target.AddrPort, o.target.Protocol)
		if o.target.Flags&bpf.BackendLeaving != 0 {
			put += " leaving"
		}
	case opLoad:
		what = fmt.Sprintf("load of backend %d", o.id)
	case opSource:
		what = fmt.Sprintf("source %s of service id %d", o.source.Prefix, o.source.Service)
	case opTable:
		what = fmt.Sprintf("maglev table of set %d", o.id)
	case opAffinity:
		what = fmt.Sprintf("affinities of set %d", o.id)
	}
	if o.remove {
		return "delete " + what
	}
	return what + put
}

// apply notes a write that has succeeded. tableID is the kernel's id of a table that was written.
func (m *model) apply(o op, tableID uint32) {
	switch o.kind {
	case opService:
		m.applyService(o)
	case opSlot:
		to := o.share
		if o.remove {
			to = maps.Share{}
		}
		m.point(o.slot, to)
	case opBackend:
		m.applyBackend(o)
	case opLoad:
		if b := m.backends[o.id]; b != nil {
			b.load = !o.remove
		} else if i := slices.Index(m.stray, o.id); i >= 0 && o.remove {
			m.stray = slices.Delete(m.stray, i, i+1)
		} else if i < 0 && !o.remove {
			m.stray = append(m.stray, o.id)
		}
	case opSource:
		m.applySource(o)
	case opTable:
		s := m.set(o.id)
		if s.table, s.sum = tableID, 0; !o.remove {
			s.sum = o.table.sum
		}
		m.tidy(o.id)
	case opAffinity: // nothing of it is mirrored
	}
}

func (m *model) applyService(o op) {
	old, existed := m.services[o.front]
	if !o.remove {
		m.join(o.front, o.value) // before it leaves others: a set must not be forgotten between
	}
	if existed {
		delete(m.owners, old.ID) // 0 in a row that does not own its id
		m.leave(o.front, old)
		delete(m.services, o.front)
	}
	if !o.remove {
		m.services[o.front] = o.value
		m.owners[o.value.ID] = struct{}{}
	}
}

func (m *model) applyBackend(o op) {
	b := m.backends[o.id]
	if o.remove {
		if b == nil {
			return
		}
		delete(m.backends, o.id)
		delete(m.leaving, o.id)
		if t := (target{b.AddrPort, b.Protocol}); m.ids[t] == o.id {
			delete(m.ids, t)
		}
		if b.load {
			m.stray = append(m.stray, o.id)
		}
		return
	}
	if b == nil {
		b = &backend{pod: o.pod}
		if i := slices.Index(m.stray, o.id); i >= 0 {
			m.stray, b.load = slices.Delete(m.stray, i, i+1), true
		}
		m.backends[o.id] = b
		m.leaving[o.id] = time.Now()
	}
	b.Backend = o.target
	m.ids[target{o.target.AddrPort, o.target.Protocol}] = o.id
}

func (m *model) applySource(o op) {
	list := m.sources[o.source.Service]
	i, found := slices.BinarySearchFunc(list, o.source.Prefix, comparePrefix)
	switch {
	case o.remove && found:
		list = slices.Delete(list, i, i+1)
	case !o.remove && !found:
		list = slices.Insert(list, i, o.source.Prefix)
	}
	if m.sources[o.source.Service] = list; len(list) == 0 {
		delete(m.sources, o.source.Service)
	}
}

// set returns the set with an id, made if need be.
func (m *model) set(id uint32) *set {
	s := m.sets[id]
	if s == nil {
		s = &set{}
		m.sets[id] = s
	}
	return s
}

// tidy forgets a set of which nothing is in the kernel.
func (m *model) tidy(id uint32) {
	s := m.sets[id]
	if s == nil || len(s.slots) > 0 || len(s.users) > 0 || s.table != 0 {
		return
	}
	if s.claimed {
		delete(m.setIDs, s.key)
	}
	delete(m.sets, id)
}

// claim gives a set its name.
func (m *model) claim(id uint32, key state.SetKey) {
	s := m.set(id)
	s.key, s.claimed = key, true
	m.setIDs[key] = id
}

// join and leave keep the users of a frontend's sets.
func (m *model) join(f maps.Frontend, v maps.Service) {
	for _, id := range setsOf(v) {
		s := m.set(id)
		s.users = append(s.users, f)
	}
}

func (m *model) leave(f maps.Frontend, v maps.Service) {
	for _, id := range setsOf(v) {
		s := m.sets[id]
		if s == nil {
			continue
		}
		if i := slices.Index(s.users, f); i >= 0 {
			s.users = slices.Delete(s.users, i, i+1)
		}
		m.tidy(id)
	}
}

// setsOf returns the sets a row names, each once.
func setsOf(v maps.Service) []uint32 {
	out := make([]uint32, 0, 2)
	for _, id := range [2]uint32{v.Set, v.OuterSet} {
		if id != 0 && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// point makes a slot refer to a backend, 0 for none, and keeps the slices without trailing zeros.
func (m *model) point(at maps.Slot, to maps.Share) {
	s := m.set(at.Set)
	for uint32(len(s.slots)) <= at.Slot {
		if to.Backend == 0 {
			m.tidy(at.Set)
			return
		}
		s.slots = append(s.slots, maps.Share{})
	}
	m.refer(s.slots[at.Slot].Backend, -1)
	m.refer(to.Backend, 1)
	s.slots[at.Slot] = to
	for len(s.slots) > 0 && s.slots[len(s.slots)-1].Backend == 0 {
		s.slots = s.slots[:len(s.slots)-1]
	}
	m.tidy(at.Set)
}

func (m *model) refer(id uint32, change int) {
	b := m.backends[id]
	if b == nil {
		return
	}
	b.refs += change
	switch {
	case b.refs > 0:
		delete(m.leaving, id)
	case m.leaving[id].IsZero():
		m.leaving[id] = time.Now()
	}
}

// nextService, nextSet and nextBackend give out ids upwards; after the last one they begin again with free ones.
func (m *model) nextService() uint32 {
	for {
		m.lastService++
		if _, taken := m.owners[m.lastService]; m.lastService != 0 && !taken && m.sources[m.lastService] == nil {
			return m.lastService
		}
	}
}

func (m *model) nextSet() uint32 {
	for {
		m.lastSet++
		if _, taken := m.sets[m.lastSet]; m.lastSet != 0 && !taken {
			return m.lastSet
		}
	}
}

func (m *model) nextBackend() uint32 {
	for {
		m.lastBackend++
		if m.lastBackend == 0 {
			m.generation++
			continue
		}
		if _, taken := m.backends[m.lastBackend]; !taken {
			return m.lastBackend
		}
	}
}
