package observer

import (
	"net/netip"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// Protocols that Hubble has a message for and policy has no name.
const (
	protocolIGMP policy.Protocol = 2
	protocolVRRP policy.Protocol = 112
)

// Kinds of a match that made a verdict, by Hubble's numbers.
const (
	matchNone = 0 // nothing that stands in an object
	matchL3L4 = 2 // a rule
)

// render makes Hubble's flow of a part.
func (s *Server) render(p *part) *flowpb.Flow {
	out := &flowpb.Flow{
		Time: timestamppb.New(p.Time), Uuid: s.setting.boot.uuid(p).String(), NodeName: s.nodeName,
		Emitter: &flowpb.Emitter{Name: "Strait", Version: strings.TrimPrefix(s.c.Version, "v")},
		Verdict: p.verdict, Type: flowpb.FlowType_L3_L4, EventType: &flowpb.CiliumEventType{Type: p.kind, SubType: p.sub},
		TrafficDirection: p.direction, IsReply: isReply(p.Flow),
		L4: layer4(p.Flow), Source: s.endpoint(&p.From), Destination: s.endpoint(&p.To),
		DestinationService: serviceOf(p.Service), NodeLabels: s.nodeLabels(),
	}
	if version := ipVersion(p.Flow); version != flowpb.IPVersion_IP_NOT_USED {
		out.IP = &flowpb.IP{
			Source: p.Source.Addr().String(), Destination: p.Target.Addr().String(), IpVersion: version, SourceXlated: addressOf(p.NAT),
		}
	}
	if p.Device != 0 {
		out.Interface = &flowpb.NetworkInterface{Index: p.Device, Name: s.setting.device(p.Device)}
	}
	switch p.kind {
	case typeTrace:
		out.TraceObservationPoint, _ = pointOf(p.Flow)
		out.TraceReason = flowpb.TraceReason_ESTABLISHED
		if p.Kind == flow.New {
			out.TraceReason = flowpb.TraceReason_NEW
		}
	case typeVerdict:
		s.renderRules(out, p)
	}
	if p.verdict == flowpb.Verdict_DROPPED {
		out.DropReasonDesc = dropReason(p.Reason)
		out.DropReason = uint32(out.DropReasonDesc) //nolint:staticcheck // older clients print this one
	}
	s.describe(out, p)
	return out
}

// renderRules names the policies that decided.
func (s *Server) renderRules(out *flowpb.Flow, p *part) {
	_, rule := ruleOf(p.Flow, p.way())
	if rule != nil && rule.Kind != policy.Builtin && rule.Path != "" {
		out.PolicyMatchType = matchL3L4
	}
	denied := p.verdict == flowpb.Verdict_DROPPED
	if p.verdict == flowpb.Verdict_AUDIT {
		rule, denied = p.AuditedRule, true
	}
	by := policyOf(rule)
	if by == nil {
		return
	}
	switch egress := p.way() == policy.Egress; {
	case egress && denied:
		out.EgressDeniedBy = by
	case egress:
		out.EgressAllowedBy = by
	case denied:
		out.IngressDeniedBy = by
	default:
		out.IngressAllowedBy = by
	}
}

// policyOf is the object a rule stands in; what no object says has none.
func policyOf(r *policy.RuleRef) []*flowpb.Policy {
	if r == nil || r.Kind == policy.Builtin {
		return nil
	}
	return []*flowpb.Policy{{Name: r.Name, Namespace: r.Namespace, Kind: string(r.Kind)}}
}

func (s *Server) endpoint(e *flow.End) *flowpb.Endpoint {
	out := &flowpb.Endpoint{Identity: identityOf(e), ClusterName: clusterOf(e, s.setting.cluster), Labels: labelsOf(e, s.setting.cluster)}
	if e.Pod != nil {
		out.Namespace, out.PodName = e.Pod.Namespace, e.Pod.Name
	}
	if w := workloadOf(e); w != nil {
		out.Workloads = []*flowpb.Workload{w}
	}
	return out
}

// workloadOf is what made the pod; nil: a person did, or nobody knows.
func workloadOf(e *flow.End) *flowpb.Workload {
	if e.Pod == nil || e.Pod.Workload == "" {
		return nil
	}
	kind, name, _ := strings.Cut(e.Pod.Workload, "/")
	return &flowpb.Workload{Kind: kind, Name: name}
}

// clusterOf is the cluster an end belongs to.
func clusterOf(e *flow.End, cluster string) string {
	switch e.Kind {
	case policy.PodPeer, policy.HostPeer, policy.NodePeer:
		return cluster
	}
	return ""
}

// Hubble's numbers of reserved identities that are other ones here, and the first that means no reserved one.
const (
	hubbleRemoteNode = 6
	hubbleAPIServer  = 7
	hubbleFirst      = 256
)

// identityOf is the lower half of the node's own number; those of reserved identities are Hubble's.
func identityOf(e *flow.End) uint32 {
	switch id := e.Identity; id {
	case identity.Unknown, identity.Host, identity.World:
		return uint32(id)
	case identity.RemoteNode:
		return hubbleRemoteNode
	case identity.APIServer:
		return hubbleAPIServer
	case identity.Pod:
		return hubbleFirst
	default:
		if n := uint32(id); n >= hubbleFirst {
			return n
		}
		return uint32(id) + hubbleFirst
	}
}

// isReply reports whether the source of the flow is the end that did not begin. Flows of connections are told as their beginner sees
// them; of a packet that was dropped it is known only when it belongs to a connection.
func isReply(f *flow.Flow) *wrapperspb.BoolValue {
	if f.Kind == flow.Dropped {
		if !f.Answer {
			return nil
		}
		return wrapperspb.Bool(true)
	}
	return wrapperspb.Bool(false)
}

func ipVersion(f *flow.Flow) flowpb.IPVersion {
	switch a := f.Source.Addr(); {
	case a.Is4():
		return flowpb.IPVersion_IPv4
	case a.Is6():
		return flowpb.IPVersion_IPv6
	}
	return flowpb.IPVersion_IP_NOT_USED
}

func addressOf(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}

func serviceOf(name string) *flowpb.Service {
	if name == "" {
		return nil
	}
	namespace, name, _ := strings.Cut(name, "/")
	return &flowpb.Service{Namespace: namespace, Name: name}
}

func layer4(f *flow.Flow) *flowpb.Layer4 {
	source, target := uint32(f.Source.Port()), uint32(f.Target.Port())
	kind, code := uint32(f.ICMP>>8), uint32(f.ICMP&0xff)
	switch f.Protocol {
	case policy.TCP:
		tcp := &flowpb.TCP{SourcePort: source, DestinationPort: target, Flags: flagsOf(f.TCPFlags)}
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: tcp}}
	case policy.UDP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: source, DestinationPort: target}}}
	case policy.SCTP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: source, DestinationPort: target}}}
	case policy.ICMP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{Type: kind, Code: code}}}
	case policy.ICMPv6:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{Type: kind, Code: code}}}
	case protocolVRRP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_VRRP{VRRP: &flowpb.VRRP{}}}
	case protocolIGMP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_IGMP{IGMP: &flowpb.IGMP{}}}
	}
	return nil
}

// The bits of a TCP header's flags.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
	tcpECE
	tcpCWR
)

func flagsOf(b uint8) *flowpb.TCPFlags {
	return &flowpb.TCPFlags{
		FIN: b&tcpFIN != 0, SYN: b&tcpSYN != 0, RST: b&tcpRST != 0, PSH: b&tcpPSH != 0,
		ACK: b&tcpACK != 0, URG: b&tcpURG != 0, ECE: b&tcpECE != 0, CWR: b&tcpCWR != 0,
	}
}

func flagBits(f *flowpb.TCPFlags) (b uint8) {
	for i, set := range []bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR()} {
		if set {
			b |= 1 << i
		}
	}
	return b
}
