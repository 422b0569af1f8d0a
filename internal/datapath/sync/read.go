package sync

import (
	"errors"
	"slices"

	"github.com/strait-net/strait/internal/datapath/maps"
)

// maxSlots bounds what a corrupt key can make us allocate.
const maxSlots = 1 << 20

// read fills a fresh model from the kernel. Ids go on from the highest one found, generations from the highest one and from epoch:
// an id that was given up before this start may still be in a connection's entry, and its next use must differ.
func read(kernel ServiceMaps, epoch uint32) (*model, error) {
	m := newModel()
	m.generation = epoch
	err := errors.Join(
		kernel.EachService(func(f maps.Frontend, s maps.Service) {
			m.lastService = max(m.lastService, s.ID)
			m.lastSet = max(m.lastSet, s.Set, s.OuterSet)
			if _, taken := m.owners[s.ID]; s.ID == 0 || taken {
				s.ID = 0 // not valid, or another's: plan gives it a new one
			} else {
				m.owners[s.ID] = struct{}{}
			}
			m.services[f] = s
			m.join(f, s)
		}),
		kernel.EachSource(func(s maps.Source) {
			m.lastService = max(m.lastService, s.Service)
			m.sources[s.Service] = append(m.sources[s.Service], s.Prefix)
		}),
		kernel.EachBackend(func(id uint32, b maps.Backend) {
			m.lastBackend = max(m.lastBackend, id)
			m.generation = max(m.generation, b.Generation+1)
			m.applyBackend(op{id: id, target: b})
		}),
		kernel.EachLoad(func(id uint32, _ maps.Load) {
			if b := m.backends[id]; b != nil {
				b.load = true
			} else {
				m.stray = append(m.stray, id)
			}
		}),
		kernel.EachSlot(func(s maps.Slot, to maps.Share) {
			m.lastSet = max(m.lastSet, s.Set)
			if s.Slot < maxSlots {
				to.Weight = max(to.Weight, 1)
				m.point(s, to)
			}
		}),
		kernel.EachTable(func(set, id uint32) {
			m.lastSet = max(m.lastSet, set)
			m.set(set).table = id
		}),
	)
	// Of two rows with one address the lower id is used, as always.
	for id, b := range m.backends {
		t := target{b.AddrPort, b.Protocol}
		m.ids[t] = min(m.ids[t], id)
	}
	for _, list := range m.sources {
		slices.SortFunc(list, comparePrefix)
	}
	slices.Sort(m.stray)
	return m, err
}

// remember takes over from the model before what the kernel does not say. Ids and generations never go back, even if somebody has emptied
// the maps.
func (m *model) remember(old *model) {
	m.lastService = max(m.lastService, old.lastService)
	m.lastSet = max(m.lastSet, old.lastSet)
	m.lastBackend = max(m.lastBackend, old.lastBackend)
	m.generation = max(m.generation, old.generation)
	for key, id := range old.setIDs {
		if m.sets[id] != nil {
			m.claim(id, key)
			if s := old.sets[id]; s.table == m.sets[id].table {
				m.sets[id].sum = s.sum
			}
		}
	}
	for id, was := range old.backends {
		if b := m.backends[id]; b != nil && b.AddrPort == was.AddrPort && b.Protocol == was.Protocol {
			b.pod = was.pod
		}
	}
	for id, since := range old.leaving {
		if _, still := m.leaving[id]; still {
			m.leaving[id] = since
		}
	}
}
