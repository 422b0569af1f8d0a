package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/state"
)

// grade orders the states of an endpoint: the backends in use are those of the best grade present, never a mixture.
type grade int

const (
	unusable    grade = iota
	terminating       // terminating, but still serving
	ready
)

func gradeOf(e *state.SliceEndpoint, publishNotReady bool) grade {
	switch {
	case e.Ready || publishNotReady:
		return ready
	case e.Serving && e.Terminating:
		return terminating
	}
	return unusable
}

// candidate is one endpoint that has the port.
type candidate struct {
	target netip.AddrPort
	grade  grade
	weight uint16
	*state.SliceEndpoint
}

// candidates returns the endpoints of a port, sorted by target with IPv4 first, each target once. The port's number is looked up in
// each slice by name, because a named target port may differ from pod to pod; then there is one slice for each number.
func candidates(svc state.Service, port state.ServicePort, endpoints []state.EndpointSlice) []candidate {
	var out []candidate
	for _, s := range endpoints {
		number := portOf(s, port)
		if number == 0 {
			continue
		}
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; e.Address.IsValid() {
				out = append(out, candidate{netip.AddrPortFrom(e.Address, number), gradeOf(e, svc.PublishNotReady), weightOf(e, svc.Weights), e})
			}
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if c := a.target.Compare(b.target); c != 0 {
			return c
		}
		// What follows the grade only makes the result independent of the order of slices.
		return cmp.Or(cmp.Compare(b.grade, a.grade), strings.Compare(a.Node, b.Node), strings.Compare(a.Zone, b.Zone),
			strings.Compare(a.Pod, b.Pod), slices.Compare(a.ForNodes, b.ForNodes), slices.Compare(a.ForZones, b.ForZones),
			compareBool(a.Terminating, b.Terminating))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.target == b.target })
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// portOf returns the number that the slice has for the port, 0 for none.
func portOf(s state.EndpointSlice, port state.ServicePort) uint16 {
	for _, p := range s.Ports {
		if p.Name == port.Name && p.Protocol == port.Protocol && p.Port != 0 {
			return p.Port
		}
	}
	return 0
}

// weightOf returns the weight that the most exact rule gives: the address, then the node, then the zone; 1 without a rule.
func weightOf(e *state.SliceEndpoint, weights []state.Weight) uint16 {
	weight, exact := uint16(1), 0
	for _, w := range weights {
		level := 0
		if node, ok := strings.CutPrefix(w.Of, "node:"); ok && node == e.Node {
			level = 2
		} else if zone, ok := strings.CutPrefix(w.Of, "zone:"); ok && zone == e.Zone {
			level = 1
		} else if a, err := netip.ParseAddr(w.Of); err == nil && a == e.Address {
			level = 3
		}
		if level > exact {
			weight, exact = w.Value, level
		}
	}
	return weight
}

// family is an index: 0 for IPv4, 1 for IPv6.
func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// sets are the backends of a port and family: those of the whole cluster, and those on this node where a policy asks for them.
type sets struct{ cluster, local []state.Backend }

// selectSets returns the sets of a port by family.
func selectSets(svc state.Service, port state.ServicePort, endpoints []state.EndpointSlice, local Local) [2]sets {
	var out [2]sets
	for i, list := range byFamily(candidates(svc, port, endpoints)) {
		out[i].cluster = backends(list, choose(list, local, false))
		if svc.InternalPolicy == state.PolicyLocal || svc.ExternalPolicy == state.PolicyLocal {
			out[i].local = backends(list, choose(list, local, true))
		}
	}
	return out
}

func byFamily(list []candidate) [2][]candidate {
	i := slices.IndexFunc(list, func(c candidate) bool { return c.target.Addr().Is6() })
	if i < 0 {
		i = len(list)
	}
	return [2][]candidate{list[:i], list[i:]}
}

// choose decides on each candidate of one family. An endpoint of weight 0 counts as not there, so that what is drained never hides what
// could serve: when all weigh 0 the service has no backend, as was asked. With here only endpoints on this node come into question.
// What comes into question is graded; hints choose among the ready, in the same zone or node only.
func choose(list []candidate, local Local, here bool) []Reason {
	out := make([]Reason, len(list))
	best := unusable
	for i, c := range list {
		switch {
		case c.grade == unusable && c.Terminating:
			out[i] = Leaving
		case c.grade == unusable:
			out[i] = NotReady
		case c.weight == 0:
			out[i] = Drained
		case here && (c.Node == "" || c.Node != local.Node):
			out[i] = OtherNode
		default:
			best = max(best, c.grade)
		}
	}
	hints := hintsFor(list, local, here)
	for i, c := range list {
		switch {
		case out[i] != "":
		case c.grade != best:
			out[i] = Leaving
		case c.grade == terminating:
			out[i] = Fallback
		case hints == byNode && !slices.Contains(c.ForNodes, local.Node):
			out[i] = HintedNode
		case hints == byZone && !slices.Contains(c.ForZones, local.Zone):
			out[i] = HintedZone
		case !c.Ready:
			out[i] = Published
		default:
			out[i] = Ready
		}
	}
	return out
}

// hints says which hints count.
type hints int

const (
	ignored hints = iota
	byZone
	byNode
)

// hintsFor decides as kube-proxy does: hints count only when every ready endpoint has them and one of them is for this node, or this
// node's zone; the node goes first. A traffic policy Local knows no hints.
func hintsFor(list []candidate, local Local, here bool) hints {
	if here {
		return ignored
	}
	allNode, allZone, ourNode, ourZone := true, true, false, false
	for _, c := range list {
		if c.grade != ready || c.weight == 0 {
			continue
		}
		allNode = allNode && len(c.ForNodes) > 0
		allZone = allZone && len(c.ForZones) > 0
		ourNode = ourNode || slices.Contains(c.ForNodes, local.Node)
		ourZone = ourZone || slices.Contains(c.ForZones, local.Zone)
	}
	switch {
	case allNode && ourNode:
		return byNode
	case allZone && ourZone:
		return byZone
	}
	return ignored
}

func backends(list []candidate, reasons []Reason) []state.Backend {
	used := 0
	for _, r := range reasons {
		if r.Used() {
			used++
		}
	}
	if used == 0 {
		return nil
	}
	out := make([]state.Backend, 0, used)
	for i, c := range list {
		if reasons[i].Used() {
			out = append(out, state.Backend{
				Address: c.target.Addr(), Port: c.target.Port(), Weight: c.weight, Terminating: reasons[i] == Fallback, Pod: c.Pod,
			})
		}
	}
	return out
}
