package sync

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
)

// model mirrors the three service maps entry by entry: each successful write changes it, so after a failure it says where the
// kernel stands and the next plan goes on from there.
type model struct {
	services map[maps.Frontend]maps.Service
	owners   map[uint32]maps.Frontend // service id -> who has it
	slots    map[uint32][]uint32      // service id -> backend ids by slot, 0 where the kernel has none
	backends map[uint32]maps.Backend
	ids      map[target]uint32 // backend's address -> its id
	refs     map[uint32]int    // backend id -> slots that point to it

	lastService uint32 // last id given out
	lastBackend uint32
	generation  uint32 // of backends made from now on; never used before for any id
}

// target is what makes two backends the same.
type target struct {
	netip.AddrPort
	protocol uint8
}

func newModel() *model {
	return &model{
		services: map[maps.Frontend]maps.Service{},
		owners:   map[uint32]maps.Frontend{},
		slots:    map[uint32][]uint32{},
		backends: map[uint32]maps.Backend{},
		ids:      map[target]uint32{},
		refs:     map[uint32]int{},
	}
}

// op is one write to one map. Exactly one of the first three says which; remove deletes the entry instead.
type op struct {
	service *maps.Frontend
	slot    *maps.Slot
	backend uint32 // id; with slot: what the slot points to
	remove  bool
	value   maps.Service // with service
	target  maps.Backend // with backend alone
}

// String returns "service 10.0.0.1:80/6 = id 3 count 2", "slot 3/1 -> 7", "delete backend 7".
func (o op) String() string {
	verb := ""
	if o.remove {
		verb = "delete "
	}
	switch {
	case o.service != nil && o.remove:
		return fmt.Sprintf("%sservice %s/%d", verb, o.service.AddrPort, o.service.Protocol)
	case o.service != nil:
		return fmt.Sprintf("service %s/%d = id %d count %d", o.service.AddrPort, o.service.Protocol, o.value.ID, o.value.Count)
	case o.slot != nil && o.remove:
		return fmt.Sprintf("%sslot %d/%d", verb, o.slot.Service, o.slot.Slot)
	case o.slot != nil:
		return fmt.Sprintf("slot %d/%d -> %d", o.slot.Service, o.slot.Slot, o.backend)
	case o.remove:
		return fmt.Sprintf("%sbackend %d", verb, o.backend)
	}
	return fmt.Sprintf("backend %d = %s/%d", o.backend, o.target.AddrPort, o.target.Protocol)
}

// apply notes a write that has succeeded.
func (m *model) apply(o op) {
	switch {
	case o.service != nil && o.remove:
		delete(m.owners, m.services[*o.service].ID)
		delete(m.services, *o.service)
	case o.service != nil:
		m.services[*o.service] = o.value
		m.owners[o.value.ID] = *o.service
	case o.slot != nil:
		to := o.backend
		if o.remove {
			to = 0
		}
		m.point(*o.slot, to)
	case o.remove:
		b := m.backends[o.backend]
		delete(m.backends, o.backend)
		if t := (target{b.AddrPort, b.Protocol}); m.ids[t] == o.backend {
			delete(m.ids, t)
		}
	default:
		m.backends[o.backend] = o.target
		m.ids[target{o.target.AddrPort, o.target.Protocol}] = o.backend
	}
}

// point makes a slot refer to a backend, 0 for none, and keeps the slices without trailing zeros.
func (m *model) point(s maps.Slot, to uint32) {
	list := m.slots[s.Service]
	for uint32(len(list)) <= s.Slot {
		if to == 0 {
			return
		}
		list = append(list, 0)
	}
	if old := list[s.Slot]; old != 0 {
		if m.refs[old]--; m.refs[old] == 0 {
			delete(m.refs, old)
		}
	}
	if list[s.Slot] = to; to != 0 {
		m.refs[to]++
	}
	for len(list) > 0 && list[len(list)-1] == 0 {
		list = list[:len(list)-1]
	}
	if len(list) == 0 {
		delete(m.slots, s.Service)
		return
	}
	m.slots[s.Service] = list
}

// read fills a fresh model from the kernel. Ids go on from the highest one found, generations from the highest one and from epoch:
// an id that was given up before this start may still be in a connection's entry, and its next use must differ.
func read(kernel ServiceMaps, epoch uint32) (*model, error) {
	m := newModel()
	err := kernel.EachService(func(f maps.Frontend, s maps.Service) {
		m.lastService = max(m.lastService, s.ID)
		if _, taken := m.owners[s.ID]; s.ID == 0 || taken {
			s.ID = 0 // not valid, or another's: plan gives it a new one
		} else {
			m.owners[s.ID] = f
		}
		m.services[f] = s
	})
	if err != nil {
		return nil, err
	}
	m.generation = epoch
	err = kernel.EachBackend(func(id uint32, b maps.Backend) {
		m.lastBackend = max(m.lastBackend, id)
		m.generation = max(m.generation, b.Generation+1)
		m.backends[id] = b
		t := target{b.AddrPort, b.Protocol}
		if other, twice := m.ids[t]; !twice || id < other {
			m.ids[t] = id
		}
	})
	if err != nil {
		return nil, err
	}
	err = kernel.EachSlot(func(s maps.Slot, backend uint32) {
		m.lastService = max(m.lastService, s.Service)
		if s.Slot < maxSlots {
			m.point(s, backend)
		}
	})
	return m, err
}

// maxSlots bounds what a corrupt key can make us allocate.
const maxSlots = 1 << 20

// nextService and nextBackend give out ids upwards; after the last one they begin again with free ones.
func (m *model) nextService() uint32 {
	for {
		m.lastService++
		_, taken := m.owners[m.lastService]
		if m.lastService != 0 && !taken && len(m.slots[m.lastService]) == 0 {
			return m.lastService
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

// planFrontend lists the writes that make f have exactly the targets, in an order in which the datapath never meets a slot in use
// without a backend: new backends, slots, then a higher count; a lower count first, and what is no longer used last. Slots
// that stay keep their place; one that leaves is filled by a new one or by the last.
func (m *model) planFrontend(f maps.Frontend, flags bpf.ServiceFlags, targets []target) []op {
	svc, exists := m.services[f]
	if !exists || svc.ID == 0 {
		svc = maps.Service{ID: m.nextService()}
	}
	now := m.slots[svc.ID]
	next, made := m.arrange(now, targets)

	ops := made
	count := func() {
		want := maps.Service{ID: svc.ID, Count: uint32(len(next)), Flags: flags}
		if have, ok := m.services[f]; !ok || have != want {
			ops = append(ops, op{service: &f, value: want})
		}
	}
	shrink := exists && uint32(len(next)) < svc.Count
	if shrink {
		count()
	}
	for i, id := range next {
		if i >= len(now) || now[i] != id {
			ops = append(ops, op{slot: &maps.Slot{Service: svc.ID, Slot: uint32(i)}, backend: id})
		}
	}
	if !shrink {
		count()
	}
	for i := len(now) - 1; i >= len(next); i-- {
		if now[i] != 0 {
			ops = append(ops, op{slot: &maps.Slot{Service: svc.ID, Slot: uint32(i)}, remove: true})
		}
	}
	return append(ops, m.unused(now, next)...)
}

// planRemoval lists the writes that make f not exist.
func (m *model) planRemoval(f maps.Frontend) []op {
	svc, exists := m.services[f]
	if !exists {
		return nil
	}
	ops := []op{{service: &f, remove: true}}
	if svc.ID == 0 {
		return ops
	}
	return append(ops, m.planSlots(svc.ID)...)
}

// planSlots lists the writes that remove all slots of a service id that no frontend uses.
func (m *model) planSlots(id uint32) []op {
	now := m.slots[id]
	var ops []op
	for i := len(now) - 1; i >= 0; i-- {
		if now[i] != 0 {
			ops = append(ops, op{slot: &maps.Slot{Service: id, Slot: uint32(i)}, remove: true})
		}
	}
	return append(ops, m.unused(now, nil)...)
}

// planLeftovers lists the writes that remove slots without a service and backends without a slot.
func (m *model) planLeftovers() []op {
	var ops []op
	gone := map[uint32]int{}
	for _, id := range sorted(m.slots, cmp.Compare[uint32]) {
		if _, used := m.owners[id]; used {
			continue
		}
		for i := len(m.slots[id]) - 1; i >= 0; i-- {
			if b := m.slots[id][i]; b != 0 {
				ops = append(ops, op{slot: &maps.Slot{Service: id, Slot: uint32(i)}, remove: true})
				gone[b]++
			}
		}
	}
	for _, id := range sorted(m.backends, cmp.Compare[uint32]) {
		if m.refs[id] == gone[id] {
			ops = append(ops, op{backend: id, remove: true})
		}
	}
	return ops
}

// arrange returns the backend ids of the next slots and the writes of backends that do not exist yet.
func (m *model) arrange(now []uint32, targets []target) (next []uint32, made []op) {
	missing := make(map[target]bool, len(targets))
	for _, t := range targets {
		missing[t] = true
	}
	size := len(missing)
	next = make([]uint32, size)
	var spare []uint32 // stay, but stand beyond the new end
	for i, id := range now {
		b, known := m.backends[id]
		t := target{b.AddrPort, b.Protocol}
		if !known || !missing[t] {
			continue
		}
		delete(missing, t)
		if i < size {
			next[i] = id
		} else {
			spare = append(spare, id)
		}
	}
	for _, t := range targets { // in the order of the row, not of a map
		if !missing[t] {
			continue
		}
		delete(missing, t)
		id, known := m.ids[t]
		if !known {
			id = m.nextBackend()
			made = append(made, op{backend: id, target: maps.Backend{AddrPort: t.AddrPort, Protocol: t.protocol, Generation: m.generation}})
		}
		spare = append(spare, id)
	}
	for i := range next {
		if next[i] == 0 {
			next[i], spare = spare[0], spare[1:]
		}
	}
	return next, made
}

// unused lists the deletion of backends that lose their last slot when now becomes next.
func (m *model) unused(now, next []uint32) []op {
	change := map[uint32]int{}
	for _, id := range now {
		change[id]--
	}
	for _, id := range next {
		change[id]++
	}
	var ops []op
	for _, id := range sorted(change, cmp.Compare[uint32]) {
		if _, exists := m.backends[id]; exists && change[id] < 0 && m.refs[id]+change[id] <= 0 {
			ops = append(ops, op{backend: id, remove: true})
		}
	}
	return ops
}
