package status

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Target is an address, port and protocol: a frontend or a backend as the kernel's tables name it.
type Target struct {
	netip.AddrPort
	Protocol state.Protocol
}

// KernelServices is what the kernel's tables hold of services. The zero value is that of an empty kernel.
type KernelServices struct {
	Frontends map[Target]KernelFrontend
	Backends  map[Target]KernelBackend
	// Affinity counts the clients that stay with a backend now.
	Affinity map[KernelAffinity]int
}

// KernelFrontend is a row of strait_service.
type KernelFrontend struct{ ID, Set, OuterSet uint32 }

// KernelBackend is a row of strait_backend with its load.
type KernelBackend struct {
	ID      uint32
	Leaving bool
	Open    uint32 // connections under way, by sockets and by packets
	Ever    uint64
}

// KernelAffinity is a set and one of its backends.
type KernelAffinity struct{ Set, Backend uint32 }

// What a service without frontends is shown as.
const (
	headless     = "Headless"
	externalName = string(state.ExternalName)
)

func (s Sources) services() ([]localapi.Service, error) {
	kernel, err := s.Services()
	if err != nil {
		return nil, err
	}
	services := s.State.Services.Snapshot()
	rows := Frontends(s.State.Frontends.Snapshot().All(), services, s.addresses(), kernel)
	return append(rows, Idle(services.All())...), nil
}

// addresses returns this node's own addresses that clients use: those of its object, then those of its native devices.
func (s Sources) addresses() (out []netip.Addr) {
	if n, _, ok := s.State.Nodes.Snapshot().Get(s.Node); ok {
		out = append(out, n.Addresses...)
	}
	for d := range s.State.Devices.Snapshot().All() {
		for _, p := range d.Addresses {
			if d.Native && !slices.Contains(out, p.Addr()) {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}

// Frontends returns the frontends in order of their ids, those the kernel does not hold last. A row of the kernel that stands for every
// address of the node is followed by one for each of addresses.
func Frontends(frontends iter.Seq[state.Frontend], services table.Snapshot[state.Service], addresses []netip.Addr, kernel KernelServices) []localapi.Service {
	rows := []localapi.Service{}
	for f := range frontends {
		row := frontend(f, kernel)
		if svc, _, ok := services.Get(f.Service.String()); ok && f.Type != state.HostPort {
			row.HealthCheck = svc.HealthCheckNodePort
		}
		rows = append(rows, row)
		if !f.Address.IsUnspecified() {
			continue
		}
		wildcard := row.Frontend
		for _, a := range addresses {
			if a.Is6() == f.Address.Is6() {
				one := row
				one.Frontend, one.Of = netip.AddrPortFrom(a, f.Port), &wildcard
				rows = append(rows, one)
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b localapi.Service) int {
		switch {
		case a.ID == b.ID && (a.Of != nil) != (b.Of != nil):
			return cmp.Compare(order(a), order(b))
		case a.ID == b.ID:
			return a.Frontend.Compare(b.Frontend)
		case a.ID == 0 || b.ID != 0 && a.ID > b.ID:
			return 1
		}
		return -1
	})
	return rows
}

func order(s localapi.Service) int {
	if s.Of != nil {
		return 1
	}
	return 0
}

func frontend(f state.Frontend, kernel KernelServices) localapi.Service {
	at := netip.AddrPortFrom(f.Address, f.Port)
	known := kernel.Frontends[Target{at, f.Protocol}]
	row := localapi.Service{
		ID: known.ID, Set: known.Set, Frontend: at, Protocol: f.Protocol.String(), Type: string(f.Type),
		Namespace: f.Service.Namespace, Name: f.Service.Name, Port: f.PortName,
		Algorithm: string(f.Algorithm), Forwarding: string(f.Forwarding), AffinitySeconds: uint32(f.Affinity / time.Second),
		SourceRanges: f.SourceRanges, InternalLocal: f.InnerLocal, ExternalLocal: f.OuterLocal,
		Backends: backends(f.Backends, f.Protocol, kernel), Status: kind(f.Status), Error: f.Err,
	}
	if f.OuterLocal {
		row.OuterSet, row.Outer = known.OuterSet, backends(f.OuterBackends, f.Protocol, kernel)
	}
	return row
}

func backends(all []state.Backend, protocol state.Protocol, kernel KernelServices) []localapi.Backend {
	out := []localapi.Backend{}
	for _, b := range all {
		at := netip.AddrPortFrom(b.Address, b.Port)
		row := localapi.Backend{
			Address: at, State: localapi.BackendActive, Weight: b.Weight, Pod: b.Pod, Open: kernel.Backends[Target{at, protocol}].Open,
		}
		if b.Terminating {
			row.State = localapi.BackendTerminating
		}
		out = append(out, row)
	}
	return out
}

// Idle returns the services that have no frontend, with what serves them instead.
func Idle(services iter.Seq[state.Service]) []localapi.Service {
	var rows []localapi.Service
	for svc := range services {
		kind, note := idle(svc)
		if note == "" {
			continue
		}
		rows = append(rows, localapi.Service{
			Type: kind, Namespace: svc.Namespace, Name: svc.Name, Note: note, Backends: []localapi.Backend{}, Status: "done",
		})
	}
	return rows
}

// idle says why a service has no frontend, and what type it is shown as; the note is empty for one that has.
func idle(svc state.Service) (kind, note string) {
	switch {
	case svc.Proxy != "":
		return string(svc.Type), "nothing to do: served by " + svc.Proxy + " (label service.kubernetes.io/service-proxy-name)"
	case svc.Type == state.ExternalName:
		return externalName, "nothing to do: resolved by DNS to " + orElse(svc.Target, "nothing, spec.externalName is empty")
	case svc.Headless:
		return headless, "nothing to do: DNS answers with its endpoints"
	}
	return string(svc.Type), ""
}
