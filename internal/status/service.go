package status

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/service"
	"github.com/strait-net/strait/internal/state"
)

// service tells everything of one service as this node has it.
func (s Sources) service(name state.ServiceName) (localapi.ServiceDetail, error) {
	services := s.State.Services.Snapshot()
	svc, _, known := services.Get(name.String())
	rows := slices.Collect(s.State.Frontends.Snapshot().By(state.FrontendsByService, name.String()))
	if !known && len(rows) == 0 {
		return localapi.ServiceDetail{}, fmt.Errorf("service %s: %w", name, localapi.ErrNotFound)
	}
	kernel, err := s.Services()
	if err != nil {
		return localapi.ServiceDetail{}, err
	}
	d := localapi.ServiceDetail{Node: s.Node, Namespace: name.Namespace, Name: name.Name, Endpoints: []localapi.ServiceEndpoint{}}
	d.Frontends = Frontends(slices.Values(rows), services, s.addresses(), kernel)
	describe(&d, svc, known)
	v := endpointView{kernel: kernel, detail: &d, inUse: map[Target]state.Backend{}, seen: map[Target]bool{}, sets: map[Target][]uint32{}, timeout: svc.Affinity}
	v.collect(rows)
	endpoints := slices.Collect(s.State.EndpointSlices.Snapshot().By(state.SlicesByService, name.String()))
	if known && d.Note == "" {
		v.add(service.Endpoints(svc, endpoints, s.local()))
	} else {
		v.addUnserved(svc, endpoints)
	}
	v.addRest()
	var targets []Target
	for _, e := range d.Endpoints {
		targets = append(targets, Target{e.Address, protocolOf(e.Protocol)})
	}
	traffic, err := s.Traffic(targets)
	if err != nil {
		return d, err
	}
	for i := range d.Endpoints {
		d.Endpoints[i].Traffic = traffic[i]
	}
	d.Problems = s.problemsOf(name, rows)
	return d, nil
}

// local is this node as the selection of backends sees it.
func (s Sources) local() service.Local {
	l := service.Local{Node: s.Node}
	if n, _, ok := s.State.Nodes.Snapshot().Get(s.Node); ok {
		l.Zone = n.Zone
	}
	return l
}

func describe(d *localapi.ServiceDetail, svc state.Service, known bool) {
	if !known { // a pod with host ports
		d.Type = string(state.HostPort)
		return
	}
	d.Created, d.Target = svc.Created, svc.Target
	d.Type, d.Note = idle(svc)
	d.InternalPolicy, d.ExternalPolicy = string(svc.InternalPolicy), ""
	if svc.Type == state.NodePort || svc.Type == state.LoadBalancer || len(svc.ExternalIPs) > 0 {
		d.ExternalPolicy = string(svc.ExternalPolicy)
	}
	d.AffinitySeconds = uint32(svc.Affinity / time.Second)
	d.SourceRanges, d.HealthCheckNodePort = svc.SourceRanges, svc.HealthCheckNodePort
	d.Distribution, d.PublishNotReady = svc.Distribution, svc.PublishNotReady
	d.Algorithm, d.Forwarding = string(svc.Algorithm), string(svc.Forwarding)
	for _, f := range d.Frontends { // what holds when the service does not choose
		d.Algorithm, d.Forwarding = f.Algorithm, f.Forwarding
	}
}

// endpointView joins what the selection says of endpoints with what the kernel holds of them.
type endpointView struct {
	kernel  KernelServices
	detail  *localapi.ServiceDetail
	inUse   map[Target]state.Backend
	seen    map[Target]bool     // in detail.Endpoints
	sets    map[Target][]uint32 // of the kernel, that a backend may be in
	timeout time.Duration
}

func (v *endpointView) collect(rows []state.Frontend) {
	for _, f := range rows {
		known := v.kernel.Frontends[Target{netip.AddrPortFrom(f.Address, f.Port), f.Protocol}]
		for _, b := range slices.Concat(f.Backends, f.OuterBackends) {
			t := Target{netip.AddrPortFrom(b.Address, b.Port), f.Protocol}
			v.inUse[t] = b
			for _, set := range []uint32{known.Set, known.OuterSet} {
				if set != 0 && !slices.Contains(v.sets[t], set) {
					v.sets[t] = append(v.sets[t], set)
				}
			}
		}
	}
}

func (v *endpointView) add(verdicts []service.Verdict) {
	for _, e := range verdicts {
		t := Target{netip.AddrPortFrom(e.Address, e.TargetPort), e.Protocol}
		if e.Inside == service.OtherFamily && len(v.detail.Frontends) > 0 || e.Inside == service.Repeated {
			continue // a dual-stack pod's other address, or told already
		}
		v.append(localapi.ServiceEndpoint{
			Port: e.Port, Pod: e.Pod, Node: e.Node, Zone: e.Zone, Weight: e.Weight, State: stateOf(e), Why: why(e),
		}, t)
	}
}

// addUnserved adds the endpoints of a service without frontends: DNS answers with those that are ready.
func (v *endpointView) addUnserved(svc state.Service, endpoints []state.EndpointSlice) {
	for _, s := range endpoints {
		for _, e := range s.Endpoints {
			row := localapi.ServiceEndpoint{Pod: e.Pod, Node: e.Node, Zone: e.Zone, State: localapi.BackendActive}
			switch {
			case e.Ready || svc.PublishNotReady:
			case e.Terminating:
				row.State, row.Why = localapi.BackendOut, string(service.Leaving)
			default:
				row.State, row.Why = localapi.BackendOut, string(service.NotReady)
			}
			for _, p := range s.Ports {
				row.Port = p.Name
				v.append(row, Target{netip.AddrPortFrom(e.Address, p.Port), p.Protocol})
			}
		}
	}
}

// addRest adds backends that no slice has: the pod of host ports.
func (v *endpointView) addRest() {
	var rest []Target
	for t := range v.inUse {
		if !v.seen[t] {
			rest = append(rest, t)
		}
	}
	slices.SortFunc(rest, func(a, b Target) int { return a.Compare(b.AddrPort) })
	for _, t := range rest {
		b := v.inUse[t]
		v.append(localapi.ServiceEndpoint{Pod: b.Pod, Weight: b.Weight, State: localapi.BackendActive}, t)
	}
}

func (v *endpointView) append(e localapi.ServiceEndpoint, t Target) {
	v.seen[t] = true
	e.Address, e.Protocol = t.AddrPort, t.Protocol.String()
	if b, ok := v.kernel.Backends[t]; ok {
		e.ID, e.Open, e.Ever = b.ID, b.Open, b.Ever
		if e.State == localapi.BackendOut && b.Leaving {
			e.State = localapi.BackendLeaving
		}
		for _, set := range v.sets[t] {
			e.Clients += v.kernel.Affinity[KernelAffinity{set, b.ID}]
		}
	}
	if v.timeout == 0 {
		e.Clients = 0
	}
	v.detail.AffinityClients += e.Clients
	v.detail.Endpoints = append(v.detail.Endpoints, e)
}

func stateOf(e service.Verdict) string {
	active := func(r service.Reason) bool { return r == service.Ready || r == service.Published }
	switch {
	case active(e.Inside) || active(e.Outside):
		return localapi.BackendActive
	case e.Inside.Used() || e.Outside.Used():
		return localapi.BackendTerminating
	}
	return localapi.BackendOut
}

// why says what keeps an endpoint from clients, and which clients if only some.
func why(e service.Verdict) string {
	text := func(r service.Reason) string {
		if r == service.Ready {
			return ""
		}
		return string(r)
	}
	switch {
	case e.Outside == "" || e.Outside == e.Inside:
		return text(e.Inside)
	case e.Inside == service.Ready:
		return "for clients outside: " + text(e.Outside)
	case e.Outside == service.Ready:
		return "for clients inside: " + text(e.Inside)
	}
	return "inside: " + text(e.Inside) + "; outside: " + text(e.Outside)
}

// problemsOf returns what has been reported about a service, and why the kernel does not hold its frontends.
func (s Sources) problemsOf(name state.ServiceName, rows []state.Frontend) (out []string) {
	for p := range s.State.Problems.Snapshot().All() {
		if p.Subject == serviceSubject+name.String() || p.Subject == "pod "+name.String() { // a pod has host ports
			out = append(out, p.Text)
		}
	}
	for _, f := range rows {
		if f.Err != "" {
			out = append(out, f.Key()+" is not in the kernel: "+f.Err)
		}
	}
	return out
}

func protocolOf(name string) state.Protocol {
	for _, p := range []state.Protocol{state.TCP, state.UDP, state.SCTP} {
		if p.String() == name {
			return p
		}
	}
	return 0
}

// FailedServices names the services that the kernel does not hold, and why.
func FailedServices(frontends iter.Seq[state.Frontend]) (out []localapi.Problem) {
	seen := map[state.ServiceName]bool{}
	for f := range frontends {
		if f.Err == "" || seen[f.Service] {
			continue
		}
		seen[f.Service] = true
		out = append(out, localapi.Problem{
			Severity: localapi.SeverityError, Subject: serviceSubject + f.Service.String(), Text: f.Key() + " is not in the kernel: " + f.Err,
			Action: "it is tried again by itself; strait service show " + f.Service.String(),
		})
	}
	return out
}
