package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	gosync "sync"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

// ServiceMaps are the three maps of services. *maps.Maps is one.
type ServiceMaps interface {
	PutService(maps.Frontend, maps.Service) error
	DeleteService(maps.Frontend) error
	EachService(func(maps.Frontend, maps.Service)) error
	PutSlot(maps.Slot, uint32) error
	DeleteSlot(maps.Slot) error
	EachSlot(func(maps.Slot, uint32)) error
	PutBackend(uint32, maps.Backend) error
	DeleteBackend(uint32) error
	EachBackend(func(uint32, maps.Backend)) error
}

// Frontends applies rows of state.Frontends to the service maps.
type Frontends struct {
	kernel ServiceMaps
	epoch  uint32

	mu    gosync.Mutex // guards model
	model *model
}

// NewFrontends returns the operations; ids of services and backends go on as they are in the kernel. epoch must differ from that of
// every start before, such as the time in seconds: it is the generation of new backends.
func NewFrontends(kernel ServiceMaps, epoch uint32) (*Frontends, error) {
	m, err := read(kernel, epoch)
	if err != nil {
		return nil, fmt.Errorf("restore service ids: %w", err)
	}
	return &Frontends{kernel: kernel, epoch: epoch, model: m}, nil
}

// ID returns the service id of a frontend, for people who compare with the kernel's tables.
func (s *Frontends) ID(row state.Frontend) (id uint32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, ok := s.model.services[key(row)]
	return svc.ID, ok && svc.ID != 0
}

// Update makes the kernel send connections to the row's frontend to its backends, and to no others.
func (s *Frontends) Update(_ context.Context, row state.Frontend) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.executeLocked(s.model.planFrontend(key(row), flags(row), targets(row)))
}

// Delete makes the kernel not know the frontend.
func (s *Frontends) Delete(_ context.Context, row state.Frontend) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.executeLocked(s.model.planRemoval(key(row)))
}

// Prune reads the kernel's tables anew, makes them exactly rows and describes what it had to do. What fails is tried again by the
// next call.
func (s *Frontends) Prune(ctx context.Context, rows iter.Seq[state.Frontend]) (differences []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	actual, err := read(s.kernel, s.epoch)
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	// Ids and generations never go back, even if somebody has emptied the maps.
	actual.lastService = max(actual.lastService, s.model.lastService)
	actual.lastBackend = max(actual.lastBackend, s.model.lastBackend)
	actual.generation = max(actual.generation, s.model.generation)
	s.model = actual

	var errs []error
	step := func(what string, ops []op) {
		if len(ops) == 0 {
			return
		}
		differences = append(differences, fmt.Sprintf("%s: %d writes, first: %s", what, len(ops), ops[0]))
		errs = append(errs, s.executeLocked(ops))
	}
	wanted := make(map[maps.Frontend]bool, len(actual.services))
	for row := range rows {
		if err := ctx.Err(); err != nil {
			return differences, err
		}
		wanted[key(row)] = true
		step("service "+row.Key(), s.model.planFrontend(key(row), flags(row), targets(row)))
	}
	for _, f := range sorted(s.model.services, compareFrontend) {
		if !wanted[f] {
			step(fmt.Sprintf("service %s/%d is not wanted", f.AddrPort, f.Protocol), s.model.planRemoval(f))
		}
	}
	step("unused slots and backends", s.model.planLeftovers())
	return differences, errors.Join(errs...)
}

// executeLocked writes until the first failure: what follows may rely on what failed.
func (s *Frontends) executeLocked(ops []op) error {
	for _, o := range ops {
		if err := s.write(o); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
		s.model.apply(o)
	}
	return nil
}

func (s *Frontends) write(o op) error {
	switch {
	case o.service != nil && o.remove:
		return s.kernel.DeleteService(*o.service)
	case o.service != nil:
		return s.kernel.PutService(*o.service, o.value)
	case o.slot != nil && o.remove:
		return s.kernel.DeleteSlot(*o.slot)
	case o.slot != nil:
		return s.kernel.PutSlot(*o.slot, o.backend)
	case o.remove:
		return s.kernel.DeleteBackend(o.backend)
	}
	return s.kernel.PutBackend(o.backend, o.target)
}

func key(row state.Frontend) maps.Frontend {
	return maps.Frontend{AddrPort: netip.AddrPortFrom(row.Address.Unmap(), row.Port), Protocol: uint8(row.Protocol)}
}

func flags(row state.Frontend) bpf.ServiceFlags {
	if row.Type == state.ClusterIP {
		return bpf.ServiceClusterIP
	}
	return 0
}

func targets(row state.Frontend) []target {
	out := make([]target, 0, len(row.Backends))
	for _, b := range row.Backends {
		out = append(out, target{netip.AddrPortFrom(b.Address.Unmap(), b.Port), uint8(row.Protocol)})
	}
	return out
}

func compareFrontend(a, b maps.Frontend) int {
	return cmp.Or(a.Compare(b.AddrPort), cmp.Compare(a.Protocol, b.Protocol))
}
