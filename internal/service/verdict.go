package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/state"
)

// Reason says why an endpoint is used or not, for a person to read.
type Reason string

// The reasons. The first three are those of endpoints in use.
const (
	Ready       Reason = "ready"
	Published   Reason = "not ready, but the service publishes such endpoints"
	Fallback    Reason = "terminating but still serving, and none is ready"
	NotReady    Reason = "not ready"
	Leaving     Reason = "terminating"
	Drained     Reason = "weight 0"
	OtherNode   Reason = "on another node, and the traffic policy is Local"
	HintedNode  Reason = "its hints are for other nodes"
	HintedZone  Reason = "its hints are for other zones"
	NoPort      Reason = "its slice has no port of this name and protocol"
	OtherFamily Reason = "the service has no address of its family"
	Repeated    Reason = "another slice has the same endpoint"
)

// Used reports whether an endpoint gets connections.
func (r Reason) Used() bool { return r == Ready || r == Published || r == Fallback }

// Verdict is what became of one endpoint of a slice for one port of the service.
type Verdict struct {
	Port       string // name of the service port
	Protocol   state.Protocol
	Address    netip.Addr
	TargetPort uint16 // 0 with NoPort
	Slice      string // name of the EndpointSlice
	Pod        string // namespace/name, empty when it is none
	Node       string
	Zone       string
	Weight     uint16
	Inside     Reason // for clients inside the cluster that use the cluster address
	Outside    Reason // for clients outside; empty when nobody outside is served
}

// Endpoints tells of every endpoint in the slices of svc, for every port, why it is used or not, by the same decisions as Frontends:
// in order of ports, then of addresses. A service without frontends has none.
func Endpoints(svc state.Service, endpoints []state.EndpointSlice, local Local) []Verdict {
	if !served(svc) {
		return nil
	}
	var out []Verdict
	for _, port := range svc.Ports {
		chosen := decide(svc, port, endpoints, local)
		first := len(out)
		for _, s := range endpoints {
			number := portOf(s, port)
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				v := Verdict{
					Port: port.Name, Protocol: port.Protocol, Address: e.Address, TargetPort: number, Slice: s.Name,
					Pod: e.Pod, Node: e.Node, Zone: e.Zone, Weight: weightOf(e, svc.Weights),
				}
				v.judge(svc, port, e, chosen)
				out = append(out, v)
			}
		}
		slices.SortFunc(out[first:], func(a, b Verdict) int {
			return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.TargetPort, b.TargetPort), strings.Compare(a.Slice, b.Slice))
		})
	}
	return out
}

// decision is what choose said of a candidate for the whole cluster and for this node.
type decision struct {
	from           *state.SliceEndpoint // whose state counted
	cluster, local Reason
}

func decide(svc state.Service, port state.ServicePort, endpoints []state.EndpointSlice, local Local) map[netip.AddrPort]decision {
	out := map[netip.AddrPort]decision{}
	for _, list := range byFamily(candidates(svc, port, endpoints)) {
		cluster, here := choose(list, local, false), choose(list, local, true)
		for i, c := range list {
			out[c.target] = decision{c.SliceEndpoint, cluster[i], here[i]}
		}
	}
	return out
}

func (v *Verdict) judge(svc state.Service, port state.ServicePort, e *state.SliceEndpoint, chosen map[netip.AddrPort]decision) {
	at := locations(svc, port)
	same := func(l location) bool { return l.address.Is6() == e.Address.Is6() }
	outer := slices.ContainsFunc(at, func(l location) bool { return same(l) && l.kind != state.ClusterIP })
	d, known := chosen[netip.AddrPortFrom(e.Address, v.TargetPort)]
	switch {
	case !slices.ContainsFunc(at, same):
		d = decision{cluster: OtherFamily, local: OtherFamily}
	case !known:
		d = decision{cluster: NoPort, local: NoPort}
	case d.from != e:
		d = decision{cluster: Repeated, local: Repeated}
	}
	v.Inside, v.Outside = d.cluster, d.cluster
	if svc.InternalPolicy == state.PolicyLocal {
		v.Inside = d.local
	}
	if svc.ExternalPolicy == state.PolicyLocal {
		v.Outside = d.local
	}
	if !outer {
		v.Outside = ""
	}
}
