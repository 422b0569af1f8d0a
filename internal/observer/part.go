package observer

import (
	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

// Types of events, by the numbers of Hubble's event_type.
const (
	typeDrop    = 1
	typeTrace   = 4
	typeVerdict = 5
)

// part is what Hubble calls a flow: of an event one for each direction that was judged, or one for all of it.
type part struct {
	*flow.Flow
	index     uint8 // among the event's parts
	kind, sub int32 // Hubble's event_type
	direction flowpb.TrafficDirection
	verdict   flowpb.Verdict
}

// partsOf appends the parts of an event. One of kind Lost has none.
func partsOf(f *flow.Flow, into []part) []part {
	switch f.Kind {
	case flow.New, flow.Judged:
		return judgedParts(f, into)
	case flow.Ended:
		return append(into, traceOf(f))
	case flow.Denied, flow.Dropped:
		return append(into, dropOf(f))
	}
	return into
}

func judgedParts(f *flow.Flow, into []part) []part {
	n := uint8(0)
	for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
		if number, _ := ruleOf(f, way); number == 0 {
			continue
		}
		p := part{Flow: f, index: n, kind: typeVerdict, direction: directionOf(way), verdict: flowpb.Verdict_FORWARDED}
		if f.Audited != 0 && (f.AuditedRule == nil || f.AuditedRule.Way == way) {
			p.verdict = flowpb.Verdict_AUDIT
		}
		into = append(into, p)
		n++
	}
	if n == 0 {
		into = append(into, traceOf(f))
	}
	return into
}

// traceOf is the part of a connection that nothing judged here, or of its end.
func traceOf(f *flow.Flow) part {
	_, sub := pointOf(f)
	return part{Flow: f, kind: typeTrace, sub: sub, verdict: flowpb.Verdict_FORWARDED, direction: locality(f)}
}

// dropOf is the part of what did not arrive. What policy denies is a verdict, of the direction that denies.
func dropOf(f *flow.Flow) part {
	p := part{Flow: f, kind: typeVerdict, verdict: flowpb.Verdict_DROPPED}
	switch f.Reason {
	case verdict.PolicyEgress:
		p.direction = flowpb.TrafficDirection_EGRESS
	case verdict.PolicyIngress:
		p.direction = flowpb.TrafficDirection_INGRESS
	default:
		p.kind, p.sub, p.direction = typeDrop, int32(dropReason(f.Reason)), locality(f)
	}
	return p
}

// way returns the direction that a part of typeVerdict is about.
func (p *part) way() policy.Way {
	if p.direction == flowpb.TrafficDirection_INGRESS {
		return policy.Ingress
	}
	return policy.Egress
}

func directionOf(w policy.Way) flowpb.TrafficDirection {
	if w == policy.Ingress {
		return flowpb.TrafficDirection_INGRESS
	}
	return flowpb.TrafficDirection_EGRESS
}

// ruleOf returns the number of the rule that decided a direction, and its name as far as it is known.
func ruleOf(f *flow.Flow, way policy.Way) (uint32, *policy.RuleRef) {
	if way == policy.Ingress {
		return f.Ingress, f.IngressRule
	}
	return f.Egress, f.EgressRule
}

// locality is the direction as a pod of this node sees it. Between two of them it is egress, as long as it is seen at the sender.
func locality(f *flow.Flow) flowpb.TrafficDirection {
	from := f.From.Local && f.From.Kind == policy.PodPeer
	to := f.To.Local && f.To.Kind == policy.PodPeer
	switch {
	case to && (!from || f.Hook != flow.FromPod):
		return flowpb.TrafficDirection_INGRESS
	case from:
		return flowpb.TrafficDirection_EGRESS
	}
	return flowpb.TrafficDirection_TRAFFIC_DIRECTION_UNKNOWN
}

// pointOf is where a packet was seen, and the sub type that stands for it: they differ in one number. The sweep of idle connections sees no
// packets: its place is the pod's.
func pointOf(f *flow.Flow) (flowpb.TraceObservationPoint, int32) {
	var point flowpb.TraceObservationPoint
	switch f.Hook {
	case flow.FromPod:
		point = flowpb.TraceObservationPoint_FROM_ENDPOINT
	case flow.ToPod:
		return flowpb.TraceObservationPoint_TO_ENDPOINT, 0
	case flow.FromNet, flow.XDP:
		point = flowpb.TraceObservationPoint_FROM_NETWORK
	case flow.ToNet:
		point = flowpb.TraceObservationPoint_TO_NETWORK
	case flow.FromVX:
		point = flowpb.TraceObservationPoint_FROM_OVERLAY
	case flow.ToVX:
		point = flowpb.TraceObservationPoint_TO_OVERLAY
	default:
		if locality(f) == flowpb.TrafficDirection_INGRESS {
			return flowpb.TraceObservationPoint_TO_ENDPOINT, 0
		}
		point = flowpb.TraceObservationPoint_FROM_ENDPOINT
	}
	return point, int32(point)
}

// dropReason is Hubble's number where it has an equal reason; else unknown, and the words are in the summary.
func dropReason(r verdict.Reason) flowpb.DropReason {
	switch r {
	case verdict.PolicyEgress, verdict.PolicyIngress:
		return flowpb.DropReason_POLICY_DENIED
	case verdict.PolicyMissing:
		return flowpb.DropReason_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION
	case verdict.SpoofedSource:
		return flowpb.DropReason_INVALID_SOURCE_IP
	case verdict.Malformed:
		return flowpb.DropReason_INVALID_PACKET_DROPPED
	case verdict.UnsupportedL2:
		return flowpb.DropReason_UNSUPPORTED_L2_PROTOCOL
	case verdict.NoEndpoint:
		return flowpb.DropReason_STALE_OR_UNROUTABLE_IP
	case verdict.TunnelSpoofed:
		return flowpb.DropReason_UNKNOWN_SENDER
	case verdict.TunnelKey:
		return flowpb.DropReason_ERROR_RETRIEVING_TUNNEL_KEY
	case verdict.NoTunnelEndpoint:
		return flowpb.DropReason_NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT
	case verdict.NoMasqueradePort, verdict.NoServicePort:
		return flowpb.DropReason_NO_MAPPING_FOR_NAT_MASQUERADE
	case verdict.CtInsert:
		return flowpb.DropReason_CT_MAP_INSERTION_FAILED
	case verdict.FragmentUnknown:
		return flowpb.DropReason_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND
	case verdict.Rewrite:
		return flowpb.DropReason_ERROR_WRITING_TO_PACKET
	case verdict.TtlExceeded:
		return flowpb.DropReason_TTL_EXCEEDED
	case verdict.NoLocalBackend, verdict.BackendGone:
		return flowpb.DropReason_SERVICE_BACKEND_NOT_FOUND
	case verdict.SourceRange:
		return flowpb.DropReason_DENIED_BY_LB_SRC_RANGE_CHECK
	case verdict.ServiceInternal:
		return flowpb.DropReason_IS_A_CLUSTERIP
	}
	return flowpb.DropReason_DROP_REASON_UNKNOWN
}
