package observer

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// serve runs the server on a socket, and returns a connection to it.
func serve(t *testing.T, s *Server, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	listener, err := localapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Serve(ctx, listener) }()
	go func() { done <- s.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+path, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("server ends with %v", err)
			}
		}
	})
	return conn
}

// flowsOf reads a stream to its end.
func flowsOf(t *testing.T, conn *grpc.ClientConn, q *observerpb.GetFlowsRequest) (out []*observerpb.GetFlowsResponse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
}

// named says which parts of the sample the answers are.
func named(answers []*observerpb.GetFlowsResponse) string {
	b := bootOf("n1", began)
	byUUID := map[string]string{}
	for i, p := range sampleParts() {
		byUUID[b.uuid(&p).String()] = partNames[i]
	}
	var out []string
	for _, a := range answers {
		switch {
		case a.GetLostEvents() != nil:
			out = append(out, "lost")
		default:
			out = append(out, byUUID[a.GetFlow().GetUuid()])
		}
	}
	return strings.Join(out, " ")
}

func TestGetFlows(t *testing.T) {
	conn := serve(t, newServer(t, 64, sample()...))
	when := func(seconds float64) *timestamppb.Timestamp {
		return timestamppb.New(began.Add(time.Duration(seconds * float64(time.Second))))
	}
	tcp := []*flowpb.FlowFilter{{Protocol: []string{"tcp"}}}
	for _, tc := range []struct {
		name string
		q    *observerpb.GetFlowsRequest
		want string
	}{
		{"everything", &observerpb.GetFlowsRequest{}, all + " lost"},
		{"the last", &observerpb.GetFlowsRequest{Number: 1}, "audit-in"},
		{"the last two", &observerpb.GetFlowsRequest{Number: 2}, "audit-out audit-in"},
		{"half of an event", &observerpb.GetFlowsRequest{Number: 3, Whitelist: tcp, Blacklist: []*flowpb.FlowFilter{{SourcePort: []string{"43211"}}}}, "open-in ended denied"},
		{"more than there are", &observerpb.GetFlowsRequest{Number: 1000}, all + " lost"},
		{"the first", &observerpb.GetFlowsRequest{Number: 1, First: true}, "open-out"},
		{"the first three", &observerpb.GetFlowsRequest{Number: 3, First: true}, "open-out open-in ended"},
		{"the first dropped", &observerpb.GetFlowsRequest{Number: 1, First: true, Whitelist: []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}}}, "denied"},
		{"since", &observerpb.GetFlowsRequest{Since: when(4)}, "dropped pinged audit-out audit-in lost"},
		{"some since", &observerpb.GetFlowsRequest{Since: when(4), Number: 2}, "dropped pinged"},
		{"until", &observerpb.GetFlowsRequest{Until: when(3)}, "open-out open-in ended denied"},
		{"the last until", &observerpb.GetFlowsRequest{Until: when(3), Number: 2}, "ended denied"},
		{"since until", &observerpb.GetFlowsRequest{Since: when(2), Until: when(3)}, "ended denied"},
		{"nothing since then", &observerpb.GetFlowsRequest{Since: when(1000)}, ""},
		{"black and white", &observerpb.GetFlowsRequest{Whitelist: tcp, Blacklist: []*flowpb.FlowFilter{{TrafficDirection: []flowpb.TrafficDirection{flowpb.TrafficDirection_INGRESS}}}}, "open-out audit-out lost"},
	} {
		if got := named(flowsOf(t, conn, tc.q)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	for _, a := range flowsOf(t, conn, &observerpb.GetFlowsRequest{}) {
		if a.NodeName != "blue/n1" || !a.Time.IsValid() {
			t.Errorf("answer of node %q at %v", a.NodeName, a.Time)
		}
		if l := a.GetLostEvents(); l != nil && (l.NumEventsLost != 17 || l.Source != flowpb.LostEventSource_PERF_EVENT_RING_BUFFER) {
			t.Errorf("lost: %v", l)
		}
	}
}

func TestGetFlowsRefused(t *testing.T) {
	conn := serve(t, newServer(t, 8))
	for _, tc := range []struct {
		q    *observerpb.GetFlowsRequest
		want string
	}{
		{&observerpb.GetFlowsRequest{First: true, Follow: true}, "first and follow"},
		{&observerpb.GetFlowsRequest{Since: &timestamppb.Timestamp{Nanos: -1}}, "since"},
		{&observerpb.GetFlowsRequest{Blacklist: []*flowpb.FlowFilter{{}, {SourceIp: []string{"x"}}}}, `blacklist[1].source_ip: "x"`},
		{&observerpb.GetFlowsRequest{FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.id"}}}, `field_mask "source.id"`},
	} {
		stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), tc.q)
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %s", tc.q, err, tc.want)
		}
	}
}

func TestFieldMask(t *testing.T) {
	conn := serve(t, newServer(t, 8, sample()...))
	q := &observerpb.GetFlowsRequest{Number: 1, First: true, FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.pod_name", "verdict", "l4", "source.namespace", "destination", "destination.labels"}}}
	f := flowsOf(t, conn, q)[0].GetFlow()
	want := &flowpb.Flow{Verdict: flowpb.Verdict_FORWARDED, L4: f.L4, Source: &flowpb.Endpoint{PodName: "web-1", Namespace: "shop"}, Destination: f.Destination}
	if f.L4.GetTCP().GetDestinationPort() != 5432 || f.Destination.GetPodName() != "db-0" || f.String() != want.String() {
		t.Errorf("flow %v, want %v", f, want)
	}
}

// TestFollow: who follows gets what happens from now on, after the last ones asked for, and nothing when it goes.
func TestFollow(t *testing.T) {
	for _, last := range []uint64{0, 2} {
		s := newServer(t, 64, sample()...)
		conn := serve(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true, Number: last})
		if err != nil {
			t.Fatal(err)
		}
		for range last + 1 { // what was before is followed by what was lost
			if last > 0 {
				if r, err := stream.Recv(); err != nil || r.GetFlow() == nil && r.GetLostEvents() == nil {
					t.Fatal(r, err)
				}
			}
		}
		stop := make(chan struct{})
		go func() { // the server may begin to follow a moment later
			defer close(stop)
			for ctx.Err() == nil {
				s.c.Flows.Append(time.Now(), []flow.Flow{denied()})
				time.Sleep(time.Millisecond)
			}
		}()
		if r, err := stream.Recv(); err != nil || r.GetFlow().GetVerdict() != flowpb.Verdict_DROPPED {
			t.Errorf("last %d: %v, %v", last, r, err)
		}
		cancel()
		<-stop
		for {
			if _, err := stream.Recv(); err != nil {
				if status.Code(err) != codes.Canceled {
					t.Errorf("after cancel: %v", err)
				}
				break
			}
		}
	}
}

// TestSlowReader: a client that does not read holds up nobody, and is told how much it has missed.
func TestSlowReader(t *testing.T) {
	const keep, flood = 256, 20000
	s := newServer(t, keep)
	conn := serve(t, s, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	stream, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Follow: true, Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.c.Flows.Append(time.Now(), []flow.Flow{denied()})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for range flood {
		s.c.Flows.Append(time.Now(), []flow.Flow{denied()})
	}
	t.Logf("%d flows written in %v beside a client that does not read", flood, time.Since(begin))
	got, lost := uint64(0), uint64(0)
	for got+lost < flood {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if l := r.GetLostEvents(); l != nil {
			if l.Source != flowpb.LostEventSource_HUBBLE_RING_BUFFER {
				t.Errorf("lost at %v", l.Source)
			}
			lost += l.NumEventsLost
			continue
		}
		got++
	}
	if got+lost != flood || lost == 0 {
		t.Errorf("%d flows and %d missed of %d", got, lost, flood)
	}
	t.Logf("%d read, %d missed", got, lost)
}

func TestStatusNodesNamespaces(t *testing.T) {
	s := newServer(t, 64, sample()...)
	conn := serve(t, s)
	client := observerpb.NewObserverClient(conn)
	st, err := client.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil || st.NumFlows != 7 || st.MaxFlows != 64 || st.SeenFlows != 6 || st.Version != "v1.2.3" || st.UptimeNs == 0 {
		t.Errorf("status %v, %v", st, err)
	}
	nodes, err := client.GetNodes(t.Context(), &observerpb.GetNodesRequest{})
	if err != nil || len(nodes.Nodes) != 2 || nodes.Nodes[0].Address != "172.18.0.2:4244" || nodes.Nodes[1].Address != "[fd00::3]:4244" ||
		nodes.Nodes[0].State.String() != "NODE_CONNECTED" || nodes.Nodes[1].Name != "blue/n2" || !nodes.Nodes[1].Tls.Enabled {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	s.namespaces.saw("old", time.Now().Add(-2*time.Hour))
	s.namespaces.saw("young", time.Now())
	s.namespaces.saw("", time.Now()) // of a sandbox that is no pod's
	names, err := client.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
	if err != nil || len(names.Namespaces) != 1 || names.Namespaces[0].Namespace != "young" {
		t.Errorf("namespaces %v, %v", names, err)
	}
	debug, err := client.GetDebugEvents(t.Context(), &observerpb.GetDebugEventsRequest{})
	if err == nil {
		_, err = debug.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("debug events: %v", err)
	}
	for _, service := range []string{"observer.Observer", "peer.Peer", "hubble.server.Observer", ""} { // the third is asked for by hubble status
		up, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || up.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, up, err)
		}
	}
}

// TestReflection: a client that knows no protocol finds it.
func TestReflection(t *testing.T) {
	conn := serve(t, newServer(t, 8))
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []*reflectionpb.ServerReflectionRequest{
		{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}},
		{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "observer.Observer"}},
		{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "google.protobuf.Struct"}},
	} {
		if err := stream.Send(q); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || r.GetErrorResponse() != nil {
			t.Fatalf("%v: %v, %v", q, r.GetErrorResponse(), err)
		}
		if l := r.GetListServicesResponse(); l != nil && (!strings.Contains(l.String(), "observer.Observer") || !strings.Contains(l.String(), "peer.Peer")) {
			t.Errorf("services %v", l)
		}
	}
	_ = stream.CloseSend()
	_, _ = stream.Recv()
}

func TestPeers(t *testing.T) {
	s := newServer(t, 8)
	known := s.c.State.Nodes.Register("test")
	conn := serve(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := peerpb.NewPeerClient(conn).Notify(ctx, &peerpb.NotifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(text string) {
		t.Helper()
		n, err := stream.Recv()
		if err != nil || n.GetName()+" "+n.GetAddress()+" "+n.GetType().String() != text || n.GetTls().GetServerName() != wire.ObserverName {
			t.Fatalf("%v, %v; want %s", n, err, text)
		}
	}
	time.AfterFunc(10*time.Millisecond, known)
	if header, err := stream.Header(); err != nil || !slices.Equal(header.Get(wire.Peers), []string{"2"}) {
		t.Errorf("header %v, %v", header, err)
	}
	select {
	case <-s.c.State.Nodes.Initialized():
	default:
		t.Error("told before all nodes are known")
	}
	want("blue/n1 172.18.0.2:4244 PEER_ADDED")
	want("blue/n2 [fd00::3]:4244 PEER_ADDED")
	n, _, _ := s.c.State.Nodes.Snapshot().Get("n2")
	n.Zone = "b" // nobody dials by zone
	s.c.State.Nodes.Insert(n)
	n1, _, _ := s.c.State.Nodes.Snapshot().Get("n1")
	n.Addresses = n1.Addresses
	s.c.State.Nodes.Insert(n)
	want("blue/n2 172.18.0.2:4244 PEER_UPDATED")
	s.c.State.Nodes.Delete("n2")
	want("blue/n2 172.18.0.2:4244 PEER_DELETED")
}

func TestAgentEvents(t *testing.T) {
	s := newServer(t, 8)
	s.c.State.Policies.Insert(state.Policy{Ref: refEgress.Ref, Generation: 3, Specs: []policy.Policy{{Egress: policy.Direction{Rules: make([]policy.Rule, 2)}}}})
	conn := serve(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := observerpb.NewObserverClient(conn).GetAgentEvents(ctx, &observerpb.GetAgentEventsRequest{Follow: true, Number: 100})
	if err != nil {
		t.Fatal(err)
	}
	want := func(kind flowpb.AgentEventType, text string) {
		t.Helper()
		r, err := stream.Recv()
		if err != nil || r.AgentEvent.Type != kind || !strings.Contains(strings.ReplaceAll(r.AgentEvent.String(), "  ", " "), text) || r.NodeName != "blue/n1" {
			t.Fatalf("%v, %v; want %v with %s", r, err, kind, text)
		}
	}
	want(flowpb.AgentEventType_AGENT_STARTED, "seconds")
	want(flowpb.AgentEventType_POLICY_UPDATED, `revision:3 rule_count:2`)
	pod := state.Endpoint{ContainerID: "c", IfName: "eth0", Namespace: "shop", Pod: "web-1", DeviceIndex: 7}
	s.c.State.Endpoints.Insert(pod)
	want(flowpb.AgentEventType_ENDPOINT_CREATED, `pod_name:"web-1"`)
	pod.MTU = 1400
	s.c.State.Endpoints.Insert(pod) // the same pod
	s.c.State.Policies.Delete(state.Policy{Ref: refEgress.Ref}.Key())
	want(flowpb.AgentEventType_POLICY_DELETED, "name=web")
	s.c.State.Endpoints.Delete(pod.Key())
	want(flowpb.AgentEventType_ENDPOINT_DELETED, `namespace:"shop"`)
	for number, q := range map[int]*observerpb.GetAgentEventsRequest{
		5: {}, 2: {Number: 2}, 1: {Number: 1, First: true}, 4: {Since: timestamppb.New(began.Add(time.Second))}, 0: {Until: timestamppb.New(began.Add(-time.Second))},
	} {
		stream, err := observerpb.NewObserverClient(conn).GetAgentEvents(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; err == nil; n++ {
			_, err = stream.Recv()
		}
		if n-1 != number || !errors.Is(err, io.EOF) {
			t.Errorf("%v: %d events, %v; want %d", q, n-1, err, number)
		}
	}
}

func TestAgentEventsForgetTheOldest(t *testing.T) {
	a := newAgentEvents()
	for range 3 * keptAgentEvents {
		a.add(began, &flowpb.AgentEvent{})
	}
	events, position, _ := a.after(0)
	if len(events) == 0 || len(events) > keptAgentEvents || position != 3*keptAgentEvents {
		t.Errorf("%d events up to %d", len(events), position)
	}
}

// TestBeats: who asks for them hears at the beginning and in times of silence that the node is there; others never do.
func TestBeats(t *testing.T) {
	s := newServer(t, 64, sample()...)
	conn := serve(t, s)
	ask := func(every string, q *observerpb.GetFlowsRequest) grpc.ServerStreamingClient[observerpb.GetFlowsResponse] {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		stream, err := observerpb.NewObserverClient(conn).GetFlows(metadata.AppendToOutgoingContext(ctx, wire.Beat, every), q)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	receive := func(stream grpc.ServerStreamingClient[observerpb.GetFlowsResponse]) *observerpb.GetFlowsResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	beat := func(stream grpc.ServerStreamingClient[observerpb.GetFlowsResponse]) *timestamppb.Timestamp {
		t.Helper()
		r := receive(stream)
		if n := r.GetNodeStatus(); n.GetStateChange() != relaypb.NodeState_NODE_CONNECTED || !slices.Equal(n.GetNodeNames(), []string{"blue/n1"}) || r.NodeName != "blue/n1" {
			t.Fatalf("%v, want a beat", r)
		}
		return r.Time
	}
	stream := ask("500ms", &observerpb.GetFlowsRequest{Number: 2}) // a reading that ends
	if at := beat(stream); at != nil {
		t.Errorf("the first beat knows a time: %v", at)
	}
	for range 2 {
		if r := receive(stream); r.GetFlow() == nil {
			t.Errorf("%v, want a flow", r)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}

	stream = ask("20ms", &observerpb.GetFlowsRequest{Follow: true})
	beat(stream)
	var last time.Time
	for range 3 {
		begin := time.Now()
		at := beat(stream).AsTime()
		if behind := begin.Sub(at); at.Before(last) || behind < delay-50*time.Millisecond || behind > 10*time.Second {
			t.Errorf("told everything up to %v, after %v", at, last)
		}
		last = at
	}
	f := denied()
	f.Time = time.Now()
	s.c.Flows.Append(time.Now(), []flow.Flow{f})
	for receive(stream).GetFlow() == nil {
	}
	beat(stream)

	stream = ask("20ms", &observerpb.GetFlowsRequest{Follow: true, Whitelist: []*flowpb.FlowFilter{{SourcePod: []string{"nobody"}}}})
	beat(stream)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // never silent, but nothing of it is wanted
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				f.Time = time.Now()
				s.c.Flows.Append(f.Time, []flow.Flow{f})
			}
		}
	}()
	for range 3 {
		beat(stream)
	}
	close(stop)
	<-done

	for _, wrong := range []string{"often", "1ms", "-1s", "2h", ""} {
		stream := ask(wrong, &observerpb.GetFlowsRequest{})
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `strait-beat: ["`+wrong) {
			t.Errorf("beat %q: %v", wrong, err)
		}
	}
	plain, err := observerpb.NewObserverClient(conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r := receive(plain); r.GetFlow() == nil {
		t.Errorf("%v for a client that does not ask for beats", r)
	}
}
