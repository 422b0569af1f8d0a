package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/capture"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/observer/wire"
)

// followFlows hands what this node's observer tells of some addresses to tell, first what it remembers. It returns when ctx ends, or with why
// there is nothing to be told; listening is called when the observer answers.
func (a *app) followFlows(ctx context.Context, about []netip.Addr, listening func(), tell func(capture.Event) error) error {
	socket := filepath.Join(filepath.Dir(a.socketName()), observer.SocketName)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	var addresses []string
	for _, addr := range about {
		addresses = append(addresses, addr.String())
	}
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, &observerpb.GetFlowsRequest{
		Follow: true, Since: timestamppb.New(time.Unix(0, 0)),
		Whitelist: []*flowpb.FlowFilter{{SourceIp: addresses}, {DestinationIp: addresses}, {SourceIpXlated: addresses}},
	})
	if err != nil {
		return fmt.Errorf("ask %s: %s", socket, wire.Reason(err))
	}
	// The observer answers with its first flow, which may be long in coming: it is there if it answers this.
	if _, err := observerpb.NewObserverClient(conn).ServerStatus(ctx, &observerpb.ServerStatusRequest{}); err != nil {
		return fmt.Errorf("ask %s: %s", socket, wire.Reason(err))
	}
	listening()
	for {
		r, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("read from %s: %s", socket, wire.Reason(err))
		}
		if e, ok := toldEvent(r); ok {
			if err := tell(e); err != nil {
				return err
			}
		}
	}
}

// toldEvent translates what an observer says.
func toldEvent(r *observerpb.GetFlowsResponse) (e capture.Event, ok bool) {
	if l := r.GetLostEvents(); l != nil {
		return capture.Event{What: capture.Lost, Time: r.GetTime().AsTime(), Packets: l.GetNumEventsLost()}, true
	}
	f := r.GetFlow()
	if f == nil {
		return e, false
	}
	x := extra{}
	if s := (&structpb.Struct{}); f.GetExtensions().UnmarshalTo(s) == nil {
		x = s.GetFields()
	}
	what := map[string]capture.What{"new": capture.Began, "judged": capture.Judged, "ended": capture.Ended, "denied": capture.Denied, "dropped": capture.Dropped}
	e = capture.Event{
		What: what[x.text(observer.FieldEvent)], Time: f.GetTime().AsTime(), Protocol: protocolNumber(f.GetL4()),
		Front: addressAndPort(x.text(observer.FieldFrontend)), NAT: addressAndPort(x.text(observer.FieldMasquerade)),
		From: podName(f.GetSource()), To: podName(f.GetDestination()), Answer: x[observer.FieldByAnswer].GetBoolValue(), Packets: x.number(observer.FieldPackets),
	}
	source, target := portsOf(f.GetL4())
	e.Source, e.Target = endAddress(f.GetIP().GetSource(), source), endAddress(f.GetIP().GetDestination(), target)
	if s := f.GetDestinationService(); s != nil {
		e.Service = s.GetNamespace() + "/" + s.GetName()
	}
	rule := cmp.Or(x.text(observer.FieldRule), policyNames(f))
	switch f.GetTrafficDirection() {
	case flowpb.TrafficDirection_EGRESS:
		e.Egress = rule
	case flowpb.TrafficDirection_INGRESS:
		e.Ingress = rule
	}
	if f.GetVerdict() == flowpb.Verdict_AUDIT {
		e.Audited = cmp.Or(x.text(observer.FieldAudited), "a policy")
	}
	if f.GetVerdict() == flowpb.Verdict_DROPPED {
		e.Why = cmp.Or(x.text(observer.FieldExplanation), x.text(observer.FieldReasonText), rule, "the node does not say why")
	}
	return e, e.What != 0 && e.Source.IsValid() && e.Target.IsValid()
}

func podName(e *flowpb.Endpoint) string {
	if e.GetPodName() == "" {
		return ""
	}
	return e.GetNamespace() + "/" + e.GetPodName()
}

func endAddress(address, port string) netip.AddrPort {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return netip.AddrPort{}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		n = 0 // of what has no ports
	}
	return netip.AddrPortFrom(addr, uint16(n))
}

// addressAndPort reads ADDRESS:PORT or ADDRESS.
func addressAndPort(text string) netip.AddrPort {
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at
	}
	return endAddress(text, "")
}

func protocolNumber(l4 *flowpb.Layer4) uint8 {
	switch l4.GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return capture.TCP
	case *flowpb.Layer4_UDP:
		return capture.UDP
	case *flowpb.Layer4_SCTP:
		return capture.SCTP
	case *flowpb.Layer4_ICMPv4:
		return capture.ICMP
	case *flowpb.Layer4_ICMPv6:
		return capture.ICMPv6
	}
	return 0
}

// mostKnown is how many connections of before are looked at.
const mostKnown = 20000

// knownConnections are those that the kernel tracks now.
func knownConnections(ctx context.Context, client *localapi.Client, about []netip.Addr) ([]capture.Event, error) {
	var match []string
	for _, addr := range about {
		match = append(match, addr.String())
	}
	dump, err := client.DumpMap(ctx, connectionMap, mostKnown, match...)
	if err != nil {
		return nil, err
	}
	column := map[string]int{}
	for i, name := range dump.Columns {
		column[name] = i
	}
	var out []capture.Event
	for _, row := range dump.Rows {
		cell := func(name string) string {
			if i, ok := column[name]; ok && i < len(row) {
				return row[i]
			}
			return ""
		}
		e := capture.Event{
			What: capture.Known, Source: addressAndPort(cell("BEGINNER")), Target: addressAndPort(cell("OTHER")),
			Front: addressAndPort(cell("FRONT")), NAT: addressAndPort(cell("NAT")),
		}
		e.Age, _ = time.ParseDuration(cell("AGE")) // of no age: nobody knows
		switch cell("PROTOCOL") {
		case "TCP":
			e.Protocol = capture.TCP
		case "UDP":
			e.Protocol = capture.UDP
		case "SCTP":
			e.Protocol = capture.SCTP
		case "ICMP":
			e.Protocol = capture.ICMP
		case "ICMPv6":
			e.Protocol = capture.ICMPv6
		}
		if e.Protocol != 0 && e.Source.IsValid() && e.Target.IsValid() {
			out = append(out, e)
		}
	}
	return out, nil
}
