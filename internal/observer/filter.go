package observer

import (
	"errors"
	"fmt"
	"slices"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// filters choose parts: one of allow has to match, if there are any, and none of deny.
type filters struct{ allow, deny []filter }

// filter matches when all of its conditions do.
type filter []match

type match func(*part) bool

func (f filters) pass(p *part) bool {
	hit := func(f filter) bool { return f.matches(p) }
	return (len(f.allow) == 0 || slices.ContainsFunc(f.allow, hit)) && !slices.ContainsFunc(f.deny, hit)
}

func (f filter) matches(p *part) bool {
	for _, m := range f {
		if !m(p) {
			return false
		}
	}
	return true
}

// errUnsupported is wrapped when a filter asks for what cannot be told here.
var errUnsupported = errors.New("not supported")

// setting is what conditions look at beside the flow itself.
type setting struct {
	cluster    string
	node       string // without the cluster
	boot       boot
	nodeLabels func() policy.Labels
	device     func(index uint32) string
	slices     *table.Table[state.EndpointSlice]
}

// compileFilters reads what a request asks for. The error names the list, the field and the value.
func (s *setting) compileFilters(allow, deny []*flowpb.FlowFilter) (f filters, err error) {
	if f.allow, err = s.compileList("whitelist", allow); err == nil {
		f.deny, err = s.compileList("blacklist", deny)
	}
	return f, err
}

func (s *setting) compileList(list string, from []*flowpb.FlowFilter) (out []filter, err error) {
	for i, ff := range from {
		f, err := s.compile(ff)
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", list, i, err)
		}
		out = append(out, f)
	}
	return out, nil
}

// condition is a field of a FlowFilter. build is called when it has values.
type condition struct {
	field string
	set   bool
	build func() (match, error)
}

// compile turns a filter into conditions. What it asks for is never left out silently: a field that is not known here is refused.
func (s *setting) compile(ff *flowpb.FlowFilter) (filter, error) {
	if unknown := ff.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		return nil, fmt.Errorf("(unknown field): %w: the filter has a field that this version does not know", errUnsupported)
	}
	out := filter{} // matches everything, unlike a filter that is not there
	for _, c := range slices.Concat(s.endConditions(ff), s.packetConditions(ff), s.placeConditions(ff), laterConditions(ff)) {
		if !c.set {
			continue
		}
		m, err := c.build()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.field, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// side is one end of the conditions that exist for both.
type side struct {
	ips, pods, labels, services, clusters, ports []string
	workloads                                    []*flowpb.Workload
	identities                                   []uint32
	end                                          func(*part) *flow.End
	peer                                         func(*part) endpoint
	service                                      func([]string) (match, error)
}

// endConditions are those on who sends and who receives.
func (s *setting) endConditions(ff *flowpb.FlowFilter) (out []condition) {
	sides := map[string]side{
		"source": {
			ff.SourceIp, ff.SourcePod, ff.SourceLabel, ff.SourceService, ff.SourceClusterName, ff.SourcePort, ff.SourceWorkload, ff.SourceIdentity,
			func(p *part) *flow.End { return &p.From },
			func(p *part) endpoint { return endpoint{at: p.Source} },
			s.bySourceService,
		},
		"destination": {
			ff.DestinationIp, ff.DestinationPod, ff.DestinationLabel, ff.DestinationService, ff.DestinationClusterName, ff.DestinationPort,
			ff.DestinationWorkload, ff.DestinationIdentity,
			func(p *part) *flow.End { return &p.To },
			func(p *part) endpoint { return endpoint{p.Target, p.Front} },
			s.byDestinationService,
		},
	}
	for _, name := range []string{"source", "destination"} {
		e := sides[name]
		out = append(out,
			condition{name + "_ip", e.ips != nil, func() (match, error) { return byAddress(e.ips, e.peer) }},
			condition{name + "_pod", e.pods != nil, func() (match, error) { return byPod(e.pods, e.end) }},
			condition{name + "_label", e.labels != nil, func() (match, error) {
				return bySelector(e.labels, func(p *part) endLabels { return endLabels{end: e.end(p), cluster: s.cluster} })
			}},
			condition{name + "_service", e.services != nil, func() (match, error) { return e.service(e.services) }},
			condition{name + "_cluster_name", e.clusters != nil, func() (match, error) { return s.byCluster(e.clusters, e.end) }},
			condition{name + "_port", e.ports != nil, func() (match, error) { return byPort(e.ports, e.peer) }},
			condition{name + "_workload", e.workloads != nil, func() (match, error) { return byWorkload(e.workloads, e.end), nil }},
			condition{name + "_identity", e.identities != nil, func() (match, error) {
				return func(p *part) bool { return slices.Contains(e.identities, identityOf(e.end(p))) }, nil
			}},
		)
	}
	return append(out, condition{"source_ip_xlated", ff.SourceIpXlated != nil, func() (match, error) {
		return byAddress(ff.SourceIpXlated, func(p *part) endpoint { return endpoint{at: p.NAT} })
	}})
}

// packetConditions are those on what was sent and what became of it.
func (s *setting) packetConditions(ff *flowpb.FlowFilter) []condition {
	return []condition{
		{"uuid", ff.Uuid != nil, func() (match, error) { return byUUID(ff.Uuid, s.boot) }},
		{"traffic_direction", ff.TrafficDirection != nil, func() (match, error) {
			return byEnum(ff.TrafficDirection, flowpb.TrafficDirection_name, func(p *part) flowpb.TrafficDirection { return p.direction })
		}},
		{"verdict", ff.Verdict != nil, func() (match, error) {
			return byEnum(ff.Verdict, flowpb.Verdict_name, func(p *part) flowpb.Verdict { return p.verdict })
		}},
		{"drop_reason_desc", ff.DropReasonDesc != nil, func() (match, error) {
			m, err := byEnum(ff.DropReasonDesc, flowpb.DropReason_name, func(p *part) flowpb.DropReason { return dropReason(p.Reason) })
			return func(p *part) bool { return p.verdict == flowpb.Verdict_DROPPED && m(p) }, err
		}},
		{"event_type", ff.EventType != nil, func() (match, error) { return byType(ff.EventType), nil }},
		{"protocol", ff.Protocol != nil, func() (match, error) { return byProtocol(ff.Protocol) }},
		{"reply", ff.Reply != nil, func() (match, error) {
			// What was dropped may be an answer without anybody knowing: it counts as none, as in Hubble.
			return func(p *part) bool { return slices.Contains(ff.Reply, isReply(p.Flow).GetValue()) }, nil
		}},
		{"tcp_flags", ff.TcpFlags != nil, func() (match, error) { return byFlags(ff.TcpFlags), nil }},
		{"ip_version", ff.IpVersion != nil, func() (match, error) {
			return byEnum(ff.IpVersion, flowpb.IPVersion_name, func(p *part) flowpb.IPVersion { return ipVersion(p.Flow) })
		}},
		{"encrypted", ff.Encrypted != nil, func() (match, error) {
			return func(*part) bool { return slices.Contains(ff.Encrypted, false) }, nil
		}},
	}
}

// placeConditions are those on where it was seen.
func (s *setting) placeConditions(ff *flowpb.FlowFilter) []condition {
	return []condition{
		{"node_name", ff.NodeName != nil, func() (match, error) { return s.byNode(ff.NodeName) }},
		{"node_labels", ff.NodeLabels != nil, func() (match, error) {
			return bySelector(ff.NodeLabels, func(*part) endLabels { return endLabels{node: s.nodeLabels()} })
		}},
		{"interface", ff.Interface != nil, func() (match, error) { return s.byInterface(ff.Interface), nil }},
	}
}

// laterConditions are those on what no flow has yet: they match nothing, but have to be right.
func laterConditions(ff *flowpb.FlowFilter) []condition {
	never := func(*part) bool { return false }
	names := func(patterns []string) func() (match, error) {
		return func() (match, error) { return never, checkNames(patterns) }
	}
	expressions := func(texts []string) func() (match, error) {
		return func() (match, error) { return never, checkExpressions(texts) }
	}
	return []condition{
		{"source_fqdn", ff.SourceFqdn != nil, names(ff.SourceFqdn)},
		{"destination_fqdn", ff.DestinationFqdn != nil, names(ff.DestinationFqdn)},
		{"dns_query", ff.DnsQuery != nil, expressions(ff.DnsQuery)},
		{"http_status_code", ff.HttpStatusCode != nil, func() (match, error) { return never, checkStatusCodes(ff.HttpStatusCode) }},
		{"http_method", ff.HttpMethod != nil, func() (match, error) { return never, nil }},
		{"http_path", ff.HttpPath != nil, expressions(ff.HttpPath)},
		{"http_url", ff.HttpUrl != nil, expressions(ff.HttpUrl)},
		{"http_header", ff.HttpHeader != nil, func() (match, error) { return never, nil }},
		{"trace_id", ff.TraceId != nil, func() (match, error) {
			return func(*part) bool { return slices.Contains(ff.TraceId, "") }, nil
		}},
		{"ip_trace_id", ff.IpTraceId != nil, func() (match, error) {
			return func(*part) bool { return slices.Contains(ff.IpTraceId, 0) }, nil
		}},
		{"experimental", ff.Experimental != nil, func() (match, error) {
			if len(ff.Experimental.CelExpression) > 0 {
				return nil, fmt.Errorf("cel_expression %q: %w", ff.Experimental.CelExpression[0], errUnsupported)
			}
			return func(*part) bool { return true }, nil
		}},
	}
}
