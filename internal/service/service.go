// Package service selects the frontends of a Service and the backends in use from its EndpointSlices; it is pure.
package service

import (
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/state"
)

// Local is what this node adds to what a Service says.
type Local struct {
	Node string
	Zone string // empty: not known
	// Algorithm and Forwarding are for services that choose none themselves.
	Algorithm  state.Algorithm
	Forwarding state.Forwarding
}

// Frontends returns what svc answers on, in order of ports, kinds and addresses, each with its backends. A service that has no address
// of its own (headless, ExternalName) or that another proxy serves has none. endpoints are the slices of svc, in any order; an endpoint
// that is in several of them counts once, in its best state. Frontends of one backend set share its memory: nobody writes to it.
func Frontends(svc state.Service, endpoints []state.EndpointSlice, local Local) []state.Frontend {
	if !served(svc) {
		return nil
	}
	var out []state.Frontend
	for _, port := range svc.Ports {
		sets := selectSets(svc, port, endpoints, local)
		for _, at := range locations(svc, port) {
			out = append(out, frontend(svc, port, at, sets[family(at.address.Is6())], local))
		}
	}
	return out
}

// served reports whether Strait answers for the service at all.
func served(svc state.Service) bool {
	return !svc.Headless && svc.Type != state.ExternalName && svc.Proxy == ""
}

// location is one place a service port answers.
type location struct {
	address netip.Addr
	port    uint16
	kind    state.ServiceType
}

// locations lists where a port answers. Of two kinds with one address the first counts; a LoadBalancer's comes before an external IP
// because it may be closed to some clients.
func locations(svc state.Service, port state.ServicePort) []location {
	out := make([]location, 0, len(svc.ClusterIPs)+len(svc.ExternalIPs)+len(svc.Ingress)+2)
	for _, a := range svc.ClusterIPs {
		out = append(out, location{a, port.Port, state.ClusterIP})
	}
	if port.NodePort != 0 && (svc.Type == state.NodePort || svc.Type == state.LoadBalancer) {
		for _, v6 := range families(svc) {
			out = append(out, location{anyAddress(v6), port.NodePort, state.NodePort})
		}
	}
	if svc.Type == state.LoadBalancer {
		for _, a := range svc.Ingress {
			out = append(out, location{a, port.Port, state.LoadBalancer})
		}
	}
	for _, a := range svc.ExternalIPs {
		out = append(out, location{a, port.Port, state.ExternalIP})
	}
	return out
}

// families returns those the service has addresses of, each once: false is IPv4.
func families(svc state.Service) []bool {
	var out []bool
	for _, a := range svc.ClusterIPs {
		if !slices.Contains(out, a.Is6()) {
			out = append(out, a.Is6())
		}
	}
	if out == nil {
		return svc.Families
	}
	return out
}

func anyAddress(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// frontend applies the traffic policies. The internal one is about the cluster addresses only: whoever uses another kind from inside
// gets what the cluster has, whatever the policy (KEP-1669).
func frontend(svc state.Service, port state.ServicePort, at location, s sets, local Local) state.Frontend {
	f := state.Frontend{
		Address: at.address, Port: at.port, Protocol: port.Protocol, Type: at.kind,
		Service: svc.ServiceName, PortName: port.Name, Backends: s.cluster,
		Algorithm: svc.Algorithm, Forwarding: svc.Forwarding, Affinity: svc.Affinity,
	}
	if f.Algorithm == "" {
		f.Algorithm = local.Algorithm
	}
	if f.Forwarding == "" {
		f.Forwarding = local.Forwarding
	}
	switch {
	case at.kind == state.ClusterIP:
		if svc.InternalPolicy == state.PolicyLocal {
			f.InnerLocal, f.Backends = true, s.local
		}
	case svc.ExternalPolicy == state.PolicyLocal:
		f.OuterLocal, f.OuterBackends = true, s.local
	}
	if at.kind == state.LoadBalancer {
		f.SourceRanges = svc.SourceRanges
	}
	return f
}

// HostPorts returns the frontends of the host ports of one pod, whose attachments are given. A mapping without hostIP is for every
// address of the node, 0.0.0.0 and :: for every one of their family; the pod's first address of the family is the backend. While
// an attachment is being made it has none; of two attachments that map one port, the newer has it: it is a newer sandbox.
func HostPorts(attachments []state.Endpoint, local Local) []state.Frontend {
	attachments = slices.Clone(attachments)
	slices.SortFunc(attachments, func(a, b state.Endpoint) int { return b.Since.Compare(a.Since) })
	var out []state.Frontend
	for _, e := range attachments {
		if e.Phase == state.EndpointAdding {
			continue
		}
		for _, m := range e.HostPorts {
			for _, target := range firstOfFamilies(e.Addresses) {
				address := m.Address
				if !address.IsValid() {
					address = anyAddress(target.Is6())
				}
				if m.Port == 0 || m.Target == 0 || address.Is6() != target.Is6() {
					continue
				}
				out = append(out, state.Frontend{
					Address: address, Port: m.Port, Protocol: m.Protocol, Type: state.HostPort,
					Service:   state.ServiceName{Namespace: e.Namespace, Name: e.Pod},
					Backends:  []state.Backend{{Address: target, Port: m.Target, Weight: 1, Pod: e.Namespace + "/" + e.Pod}},
					Algorithm: state.Random, Forwarding: local.Forwarding,
				})
			}
		}
	}
	return out
}

func firstOfFamilies(addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addresses {
		if !slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is6() == b.Is6() }) {
			out = append(out, a)
		}
	}
	return out
}
