// Package service selects the frontends of a Service and the backends in use from its EndpointSlices; it is pure.
package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/state"
)

// Frontends returns what svc answers on, in order of ports and then addresses, each with its backends. A service that
// has no address of its own (headless, ExternalName) or that another proxy serves has none. slices are those of svc,
// in any order; an endpoint that is in several of them counts once, in its best state.
func Frontends(svc state.Service, endpoints []state.EndpointSlice) []state.Frontend {
	if svc.Headless || svc.Type == state.ExternalName || svc.Proxy != "" {
		return nil
	}
	var out []state.Frontend
	for _, port := range svc.Ports {
		candidates := candidatesOf(svc, port, endpoints)
		for _, at := range addresses(svc, port) {
			out = append(out, state.Frontend{
				Address:  at.address,
				Port:     at.port,
				Protocol: port.Protocol,
				Type:     at.kind,
				Service:  svc.ServiceName,
				PortName: port.Name,
				Backends: inUse(candidates, at.address.Is6()),
			})
		}
	}
	return out
}

// location is one place a service port answers.
type location struct {
	address netip.Addr
	port    uint16
	kind    state.ServiceType
}

// addresses lists where a port answers. Every type of service has cluster addresses; what the other types
// have besides is added here.
func addresses(svc state.Service, port state.ServicePort) []location {
	out := make([]location, 0, len(svc.ClusterIPs))
	for _, a := range svc.ClusterIPs {
		out = append(out, location{a, port.Port, state.ClusterIP})
	}
	return out
}

// grade orders the states of an endpoint: the backends in use are those of the best grade present, never a mixture.
type grade int

const (
	unusable    grade = iota
	terminating       // terminating, but still serving
	ready
)

type candidate struct {
	target netip.AddrPort
	grade  grade
}

// candidatesOf returns the usable endpoints of a port, sorted, each target once. The port's number is looked up in each
// slice by name, because a named target port may differ from pod to pod; then there is one slice for each number.
func candidatesOf(svc state.Service, port state.ServicePort, endpoints []state.EndpointSlice) []candidate {
	var out []candidate
	for _, s := range endpoints {
		i := slices.IndexFunc(s.Ports, func(p state.EndpointPort) bool {
			return p.Name == port.Name && p.Protocol == port.Protocol && p.Port != 0
		})
		if i < 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if g := gradeOf(e, svc.PublishNotReady); g != unusable {
				out = append(out, candidate{netip.AddrPortFrom(e.Address, s.Ports[i].Port), g})
			}
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		return cmp.Or(a.target.Compare(b.target), cmp.Compare(b.grade, a.grade))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.target == b.target })
}

func gradeOf(e state.SliceEndpoint, publishNotReady bool) grade {
	switch {
	case !e.Address.IsValid():
		return unusable
	case e.Ready || publishNotReady:
		return ready
	case e.Serving && e.Terminating:
		return terminating
	}
	return unusable
}

// inUse returns the backends of the best grade of one family.
func inUse(candidates []candidate, v6 bool) []state.Backend {
	best := unusable
	for _, c := range candidates {
		if c.target.Addr().Is6() == v6 {
			best = max(best, c.grade)
		}
	}
	var out []state.Backend
	for _, c := range candidates {
		if c.target.Addr().Is6() == v6 && c.grade == best {
			out = append(out, state.Backend{Address: c.target.Addr(), Port: c.target.Port(), Terminating: c.grade == terminating})
		}
	}
	return out
}
