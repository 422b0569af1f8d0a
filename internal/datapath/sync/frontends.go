package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	gosync "sync"
	"time"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/service/maglev"
	"github.com/strait-net/strait/internal/state"
)

// ServiceMaps are the maps of services. *maps.Maps is one.
type ServiceMaps interface {
	PutService(maps.Frontend, maps.Service) error
	DeleteService(maps.Frontend) error
	EachService(func(maps.Frontend, maps.Service)) error
	PutSlot(maps.Slot, maps.Share) error
	DeleteSlot(maps.Slot) error
	EachSlot(func(maps.Slot, maps.Share)) error
	PutBackend(uint32, maps.Backend) error
	DeleteBackend(uint32) error
	EachBackend(func(uint32, maps.Backend)) error
	PutLoad(backend uint32) error
	DeleteLoad(backend uint32) error
	EachLoad(func(uint32, maps.Load)) error
	PutSource(maps.Source) error
	DeleteSource(maps.Source) error
	EachSource(func(maps.Source)) error
	PutTable(set uint32, backends []uint32) (id uint32, err error)
	DeleteTable(set uint32) error
	Table(set uint32) ([]uint32, error)
	EachTable(func(set, id uint32)) error
	ForgetAffinity(set, backend uint32) error
}

// Frontends applies rows of state.Frontends to the service maps.
type Frontends struct {
	kernel    ServiceMaps
	epoch     uint32
	tableSize uint32

	mu    gosync.Mutex // guards model
	model *model
}

// NewFrontends returns the operations; ids of frontends, sets and backends go on as they are in the kernel. epoch must differ from that of
// every start before, such as the time in seconds: it is the generation of new backends. tableSize is the number of entries of a maglev
// table, a prime.
func NewFrontends(kernel ServiceMaps, epoch, tableSize uint32) (*Frontends, error) {
	m, err := read(kernel, epoch)
	if err != nil {
		return nil, fmt.Errorf("restore service ids: %w", err)
	}
	return &Frontends{kernel: kernel, epoch: epoch, tableSize: tableSize, model: m}, nil
}

// ID returns the id of a frontend, for people who compare with the kernel's tables.
func (s *Frontends) ID(row state.Frontend) (id uint32, ok bool) {
	svc, ok := s.Service(row)
	return svc.ID, ok && svc.ID != 0
}

// Service returns what the kernel has of a frontend.
func (s *Frontends) Service(row state.Frontend) (maps.Service, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, ok := s.model.services[key(row)]
	return svc, ok
}

// BackendID returns the id of a backend, to find its load by.
func (s *Frontends) BackendID(at netip.AddrPort, protocol state.Protocol) (id uint32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok = s.model.ids[target{netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), uint8(protocol)}]
	return id, ok
}

// Update makes the kernel send connections to the row's frontend to its backends, and to no others. What does not fit leaves nothing
// behind, and the error names the service and the map.
func (s *Frontends) Update(_ context.Context, row state.Frontend) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.planLocked(row)
	if err != nil {
		return err
	}
	return s.executeLocked(p)
}

// Delete makes the kernel not know the frontend. Backends that no other has are leaving then.
func (s *Frontends) Delete(_ context.Context, row state.Frontend) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.executeLocked(s.model.planRemoval(newRequest(row)))
}

// Departed is a backend in no slot. Its connections go on until Release.
type Departed struct {
	ID uint32
	netip.AddrPort
	Protocol state.Protocol
	Pod      string    // namespace/name, empty when it is none or left before this start
	Since    time.Time // when it left, or this start
}

// Leaving returns the backends that are in no slot any more, in order of their ids.
func (s *Frontends) Leaving() []Departed {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Departed, 0, len(s.model.leaving))
	for _, id := range sorted(s.model.leaving, cmp.Compare[uint32]) {
		b := s.model.backends[id]
		out = append(out, Departed{ID: id, AddrPort: b.AddrPort, Protocol: state.Protocol(b.Protocol), Pod: b.pod, Since: s.model.leaving[id]})
	}
	return out
}

// Release removes a backend that is leaving: whoever calls has closed the sockets connected to it. One that is back in a slot, or gone,
// is left alone.
func (s *Frontends) Release(id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, leaving := s.model.leaving[id]; !leaving {
		return nil
	}
	p := s.model.newPlan(&request{})
	p.add(op{kind: opBackend, id: id, remove: true})
	if s.model.backends[id].load {
		p.add(op{kind: opLoad, id: id, remove: true})
	}
	return s.executeLocked(p)
}

// Prune reads the kernel's tables anew, makes them exactly rows and describes what it had to do. Backends that are leaving stay. What fails is
// tried again by the next call.
func (s *Frontends) Prune(ctx context.Context, rows iter.Seq[state.Frontend]) (differences []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	actual, err := read(s.kernel, s.epoch)
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	actual.remember(s.model)
	s.model = actual

	var errs []error
	step := func(what string, p *plan) {
		if len(p.ops) == 0 {
			return
		}
		differences = append(differences, fmt.Sprintf("%s: %d writes, first: %s", what, len(p.ops), p.ops[0]))
		errs = append(errs, s.executeLocked(p))
	}
	wanted := make(map[maps.Frontend]bool, len(actual.services))
	for row := range rows {
		if err := ctx.Err(); err != nil {
			return differences, err
		}
		wanted[key(row)] = true
		p, err := s.planLocked(row)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		step("service "+row.Key(), p)
	}
	for _, f := range sorted(s.model.services, compareFrontend) {
		if !wanted[f] {
			step(fmt.Sprintf("service %s/%d is not wanted", f.AddrPort, f.Protocol), s.model.planRemoval(&request{front: f}))
		}
	}
	step("what no service uses", s.model.planLeftovers())
	return differences, errors.Join(errs...)
}

// planLocked plans a row. Maglev tables from before this start are compared with what they should be, once.
func (s *Frontends) planLocked(row state.Frontend) (*plan, error) {
	r := newRequest(row)
	p := s.model.planFrontend(r, s.tableSize)
	if !slices.ContainsFunc(p.ops, func(o op) bool { return o.kind == opTable && !o.remove && s.unknownLocked(o.id) }) {
		return p, nil
	}
	for _, o := range p.ops {
		if o.kind != opTable || o.remove || !s.unknownLocked(o.id) {
			continue
		}
		have, err := s.kernel.Table(o.id)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", row.Service, err)
		}
		if slices.Equal(have, o.table.entries(s.tableSize)) {
			s.model.sets[o.id].sum = o.table.sum
		}
	}
	return s.model.planFrontend(r, s.tableSize), nil
}

func (s *Frontends) unknownLocked(set uint32) bool {
	have := s.model.sets[set]
	return have != nil && have.table != 0 && have.sum == 0
}

// entries computes the table of backend ids.
func (t *table) entries(size uint32) []uint32 {
	out := maglev.Table(size, t.backends)
	for i, b := range out {
		out[i] = t.ids[b]
	}
	return out
}

// executeLocked writes until the first failure, and then undoes what would be of no use: what follows may rely on what failed.
func (s *Frontends) executeLocked(p *plan) error {
	defer s.reuseLocked(p)
	err := s.runLocked(p)
	if err == nil {
		return nil
	}
	if p.req.service != (state.ServiceName{}) {
		err = fmt.Errorf("service %s: %w", p.req.service, err)
	}
	return errors.Join(err, s.runLocked(s.model.planUndo(p)))
}

// reuseLocked keeps the memory of a plan of usual size: at a cold start it would be most of what is allocated.
func (s *Frontends) reuseLocked(p *plan) {
	const usual = 64
	if cap(p.ops) <= usual {
		clear(p.ops)
		s.model.spare = p.ops[:0]
	}
}

func (s *Frontends) runLocked(p *plan) error {
	for _, o := range p.ops {
		tableID, err := s.write(o)
		if err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
		s.model.apply(o, tableID)
	}
	return nil
}

func (s *Frontends) write(o op) (tableID uint32, err error) {
	switch o.kind {
	case opService:
		if o.remove {
			return 0, s.kernel.DeleteService(o.front)
		}
		return 0, s.kernel.PutService(o.front, o.value)
	case opSlot:
		if o.remove {
			return 0, s.kernel.DeleteSlot(o.slot)
		}
		return 0, s.kernel.PutSlot(o.slot, o.share)
	case opBackend:
		if o.remove {
			return 0, s.kernel.DeleteBackend(o.id)
		}
		return 0, s.kernel.PutBackend(o.id, o.target)
	case opLoad:
		if o.remove {
			return 0, s.kernel.DeleteLoad(o.id)
		}
		return 0, s.kernel.PutLoad(o.id)
	case opSource:
		if o.remove {
			return 0, s.kernel.DeleteSource(o.source)
		}
		return 0, s.kernel.PutSource(o.source)
	case opTable:
		if o.remove {
			return 0, s.kernel.DeleteTable(o.id)
		}
		return s.kernel.PutTable(o.id, o.table.entries(s.tableSize))
	}
	return 0, s.kernel.ForgetAffinity(o.id, o.share.Backend)
}

func key(row state.Frontend) maps.Frontend {
	return maps.Frontend{AddrPort: netip.AddrPortFrom(row.Address.Unmap(), row.Port), Protocol: uint8(row.Protocol)}
}

func newRequest(row state.Frontend) *request {
	r := &request{
		front: key(row), service: row.Service, flags: flags(row), algorithm: algorithm(row.Algorithm),
		keys: [2]state.SetKey{row.Set(false), row.Set(true)},
	}
	if row.Affinity > 0 {
		r.affinity = max(uint32(row.Affinity/time.Second), 1)
	}
	for _, p := range row.SourceRanges {
		r.sources = append(r.sources, p.Masked())
	}
	slices.SortFunc(r.sources, comparePrefix)
	r.sources = slices.Compact(r.sources)
	r.wants[0] = wants(row.Backends, row.Protocol, r.algorithm)
	if !r.one() {
		r.wants[1] = wants(row.OuterBackends, row.Protocol, r.algorithm)
	}
	return r
}

func compareFrontend(a, b maps.Frontend) int {
	return cmp.Or(a.Compare(b.AddrPort), cmp.Compare(a.Protocol, b.Protocol))
}
