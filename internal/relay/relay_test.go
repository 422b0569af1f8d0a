package relay

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/testkit/authority"
)

const everybody = "NODE_CONNECTED [n1 n2 n3]"

// TestFlows: one stream of three nodes, in order of time, filtered and counted as if it were one node.
func TestFlows(t *testing.T) {
	c := newCluster(t, 3)
	base := time.Now().Add(-time.Hour)
	for i := range 30 { // every fifth is denied
		c.agents[i%3].see(base.Add(time.Duration(i)*time.Second), i, i%5 == 0)
	}
	conn, _ := relayOf(t, c, c.agents[1].address.String(), nil)
	connected(t, conn, 3)
	denied := []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}}
	onlyPort := &fieldmaskpb.FieldMask{Paths: []string{"l4", "node_name"}}
	for _, tc := range []struct {
		name string
		q    *observerpb.GetFlowsRequest
		want []int
	}{
		{"everything", &observerpb.GetFlowsRequest{}, count(0, 30)},
		{"the last of all", &observerpb.GetFlowsRequest{Number: 4}, count(26, 30)},
		{"the first of all", &observerpb.GetFlowsRequest{Number: 4, First: true}, count(0, 4)},
		{"since", &observerpb.GetFlowsRequest{Since: timestamppb.New(base.Add(20 * time.Second))}, count(20, 30)},
		{"between", &observerpb.GetFlowsRequest{Since: timestamppb.New(base.Add(20 * time.Second)), Until: timestamppb.New(base.Add(23 * time.Second))}, count(20, 24)},
		{"denied", &observerpb.GetFlowsRequest{Whitelist: denied}, []int{0, 5, 10, 15, 20, 25}},
		{"not denied, the last", &observerpb.GetFlowsRequest{Blacklist: denied, Number: 3}, count(27, 30)},
		{"of a node", &observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{{NodeName: []string{"n2"}}}, Number: 2}, []int{25, 28}},
		{"without UUIDs", &observerpb.GetFlowsRequest{Number: 5, FieldMask: onlyPort}, count(25, 30)},
	} {
		s := ask(t, conn, tc.q)
		s.event(everybody)
		if got := s.ports(len(tc.want)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		s.end()
	}
	s := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true, Number: 3})
	s.event(everybody)
	if got := s.ports(3); !slices.Equal(got, count(27, 30)) {
		t.Errorf("followed: %v", got)
	}
	now := time.Now()
	for node := range 3 { // one node after the other tells what happened between what the others tell
		for i := 2 - node; i < 60; i += 3 {
			c.agents[node].see(now.Add(time.Duration(i)*time.Microsecond), 1000+i, false)
		}
	}
	if got := s.ports(60); !slices.Equal(got, count(1000, 1060)) {
		t.Errorf("not in order of time: %v", got)
	}
	s = ask(t, conn, &observerpb.GetFlowsRequest{Blacklist: []*flowpb.FlowFilter{{SourceIp: []string{"x"}}}})
	if _, err := s.client.Recv(); status.Code(err) != codes.InvalidArgument || strings.Count(err.Error(), "blacklist[0].source_ip") != 1 {
		t.Errorf("refused: %v", err)
	}
}

// TestStatus: what is known of nodes, with all of them and without one.
func TestStatus(t *testing.T) {
	c := newCluster(t, 3)
	for i, a := range c.agents {
		for n := range i + 1 {
			a.see(time.Now(), n, false)
		}
	}
	metrics := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	conn, _ := relayOf(t, c, c.agents[1].address.String(), func(c *Config) { c.Relay.MetricsAddress = metrics })
	connected(t, conn, 3)
	get := func(path string) (int, string) {
		r, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(text)
	}
	client := observerpb.NewObserverClient(conn)
	up, err := client.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil || up.NumFlows != 6 || up.MaxFlows != 3*4096 || up.SeenFlows != 6 || up.FlowsRate == 0 || up.UptimeNs == 0 || up.Version != "v1.2.3" ||
		up.NumUnavailableNodes.GetValue() != 0 {
		t.Errorf("status %v, %v", up, err)
	}
	wait(t, "namespaces", func() error { // they are learnt beside
		names, err := client.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
		if err == nil && (len(names.Namespaces) != 3 || names.Namespaces[0].Namespace != "ns-n1") {
			err = fmt.Errorf("%v", names)
		}
		return err
	})
	stream := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true, Number: 2})
	stream.event(everybody)
	stream.ports(2)
	if code, text := get("/metrics"); code != 200 || !strings.Contains(text, `strait_relay_nodes{state="connected"} 3`) ||
		!strings.Contains(text, "strait_relay_flows_total 2") || !strings.Contains(text, "strait_relay_streams 1") || !strings.Contains(text, "strait_relay_peers_connected 1") {
		t.Errorf("metrics: %d %s", code, text)
	}
	if code, text := get("/readyz"); code != 200 {
		t.Errorf("ready: %d %s", code, text)
	}
	health := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		wait(t, "health", func() error { // it follows readiness
			h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "observer.Observer"})
			if err == nil && h.Status != want {
				err = fmt.Errorf("%v, want %v", h.Status, want)
			}
			return err
		})
	}
	health(healthpb.HealthCheckResponse_SERVING)

	c.agents[2].kill()
	connected(t, conn, 2)
	if up, err = client.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}); err != nil || up.NumFlows != 3 || !slices.Equal(up.UnavailableNodes, []string{"n3"}) ||
		up.NumUnavailableNodes.GetValue() != 1 {
		t.Errorf("status without n3: %v, %v", up, err)
	}
	nodes, err := client.GetNodes(t.Context(), &observerpb.GetNodesRequest{})
	if err != nil || len(nodes.Nodes) != 3 || nodes.Nodes[0].Name != "n1" || nodes.Nodes[0].State.String() != "NODE_CONNECTED" || nodes.Nodes[0].NumFlows != 1 ||
		nodes.Nodes[2].State.String() != "NODE_UNAVAILABLE" || nodes.Nodes[2].Address != c.agents[2].address.String() || nodes.Nodes[0].Version != "v1.2.3" {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	c.agents[0].kill()
	c.agents[1].kill()
	wait(t, "not ready", func() error {
		if code, text := get("/readyz"); code != 503 || text != "none of 3 nodes is connected\n" {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	health(healthpb.HealthCheckResponse_NOT_SERVING)
	if _, err := client.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("namespaces of nobody: %v", err)
	}
	s := ask(t, conn, &observerpb.GetFlowsRequest{})
	if _, err := s.client.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "n2: ") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("flows of nobody: %v", err)
	}
	events, err := client.GetAgentEvents(t.Context(), &observerpb.GetAgentEventsRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("agent events: %v", err)
	}
}

// TestOutage: a node that is away for a while, and one that is started anew: nothing that they remember is lost, and nothing told twice.
func TestOutage(t *testing.T) {
	c := newCluster(t, 3)
	conn, _ := relayOf(t, c, c.agents[1].address.String(), nil)
	connected(t, conn, 3)
	s := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true})
	s.event(everybody)
	port := 0
	see := func(a *agent) { port++; a.see(time.Now(), port, false) }
	want := func(n int) {
		t.Helper()
		got := s.ports(n)
		slices.Sort(got) // the order of nodes that come back is tested elsewhere
		if !slices.Equal(got, count(port+1-n, port+1)) {
			t.Fatalf("%v, want the last %d up to %d", got, n, port)
		}
	}
	for range 3 {
		see(c.agents[2])
	}
	want(3)
	begin := time.Now()
	c.agents[2].kill()
	s.event("NODE_UNAVAILABLE [n3]")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a killed agent was noticed after %v", took)
	}
	for range 5 {
		see(c.agents[2]) // it goes on seeing
	}
	c.agents[2].start(t, c.ctx)
	s.event("NODE_CONNECTED [n3]")
	want(5)
	see(c.agents[0])
	want(1)
	c.agents[2].kill()
	s.event("NODE_UNAVAILABLE [n3]")
	c.agents[2].forget()
	for range 2 {
		see(c.agents[2])
	}
	c.agents[2].start(t, c.ctx)
	s.event("NODE_CONNECTED [n3]")
	want(2)
	see(c.agents[2])
	want(1)
}

// TestNodesComeAndGo: while flows are followed nodes join, move and leave; and who tells of them may itself be replaced.
func TestNodesComeAndGo(t *testing.T) {
	c := newCluster(t, 3)
	conn, _ := relayOf(t, c, c.agents[1].address.String(), nil)
	connected(t, conn, 3)
	s := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true})
	s.event(everybody)
	four := c.add(t, 4)
	s.event("NODE_UNAVAILABLE [n4]") // its agent has not been started yet
	four.see(time.Now(), 7, false)
	four.start(t, c.ctx)
	s.event("NODE_CONNECTED [n4]")
	if got := s.ports(1); got[0] != 7 {
		t.Errorf("flow %v", got)
	}
	for _, a := range c.agents {
		a.state.Nodes.Delete("n1")
	}
	s.event("NODE_GONE [n1]")

	c.agents[1].kill() // who tells of nodes
	s.event("NODE_UNAVAILABLE [n2]")
	four.see(time.Now(), 8, false)
	if got := s.ports(1); got[0] != 8 {
		t.Errorf("flow %v", got)
	}
	for _, a := range c.agents {
		a.state.Nodes.Delete("n3")
	}
	c.agents[1].start(t, c.ctx)
	for _, want := range []string{"NODE_CONNECTED [n2]", "NODE_GONE [n3]"} { // in any order
		r := s.next()
		n := r.GetNodeStatus()
		if text := fmt.Sprintf("%v %v", n.GetStateChange(), n.GetNodeNames()); text != "NODE_CONNECTED [n2]" && text != "NODE_GONE [n3]" {
			t.Fatalf("%v, want %s", r, want)
		}
	}
	four.state.Nodes.Insert(state.Node{Name: "n9"})
	c.agents[1].state.Nodes.Insert(state.Node{Name: "n9"})
	s.event("NODE_UNAVAILABLE [n9] it tells other nodes nothing: see flows.listen")
}

// TestSlowClient: who does not read makes nobody grow, and is told what it has missed.
func TestSlowClient(t *testing.T) {
	c := newCluster(t, 2)
	conn, cfg := relayOf(t, c, c.agents[1].address.String(), nil)
	connected(t, conn, 2)
	small := dial(t, cfg.Relay.Local, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	s := ask(t, small, &observerpb.GetFlowsRequest{Follow: true})
	s.event("NODE_CONNECTED [n1 n2]")
	brisk := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true, Whitelist: []*flowpb.FlowFilter{{SourcePort: []string{"65000"}}}})
	brisk.event("NODE_CONNECTED [n1 n2]")
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const each = 40000
	before := heap()
	for i := range each {
		for _, a := range c.agents {
			a.see(time.Now(), i%60000, false)
		}
	}
	time.Sleep(500 * time.Millisecond)
	if grown := int64(heap()) - int64(before); grown > 12<<20 {
		t.Errorf("%d bytes more for a client that does not read", grown)
	} else {
		t.Logf("%d KiB more for a client that does not read %d flows", grown>>10, 2*each)
	}
	c.agents[0].see(time.Now(), 65000, false)
	for brisk.next().GetFlow() == nil { // what it wants comes, after what it has missed
	}
	told, missed := uint64(0), uint64(0)
	for told+missed < 2*each+1 {
		r := s.next()
		if l := r.GetLostEvents(); l != nil {
			if l.Source != flowpb.LostEventSource_HUBBLE_RING_BUFFER {
				t.Errorf("lost at %v", l.Source)
			}
			missed += l.NumEventsLost
			continue
		}
		told++
	}
	if missed == 0 || told+missed != 2*each+1 {
		t.Errorf("%d told and %d missed of %d", told, missed, 2*each+1)
	}
	t.Logf("%d told, %d missed", told, missed)
}

// TestCertificates: nodes and clients are known by their certificates, which are replaced under running connections.
func TestCertificates(t *testing.T) {
	c := newCluster(t, 3)
	stranger := authority.New(t)
	stranger.Write(t, c.agents[2].tls, wire.ObserverName, 3)
	var listen string
	conn, cfg := relayOf(t, c, c.agents[1].address.String(), func(c *Config) {
		listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		c.Relay.Listen = listen
	})
	connected(t, conn, 2)
	s := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true})
	s.event("NODE_CONNECTED [n1 n2]")
	s.event("NODE_UNAVAILABLE [n3]")

	dir := t.TempDir()
	connect := func(a *authority.Authority, name string) error {
		a.Write(t, dir, "client", 50)
		if err := os.WriteFile(dir+"/ca.crt", c.authority.PEM, 0o600); err != nil {
			t.Fatal(err)
		}
		client := dial(t, listen, wire.NewCertificates(dir).Client(name))
		_, err := observerpb.NewObserverClient(client).ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
		return err
	}
	if err := connect(c.authority, wire.RelayName); err != nil {
		t.Errorf("a client of the authority: %v", err)
	}
	if err := connect(stranger, wire.RelayName); err == nil {
		t.Error("a client of another authority is answered")
	}
	if err := connect(c.authority, wire.ObserverName); err == nil {
		t.Error("the relay shows a certificate of an agent")
	}
	plain := dial(t, listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if _, err := observerpb.NewObserverClient(plain).ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}); err == nil {
		t.Error("answered without TLS")
	}

	// Another authority for everybody: connections go on, new ones are by the new certificates.
	old := c.authority
	c.authority = authority.New(t)
	for i, a := range c.agents {
		c.authority.Write(t, a.tls, wire.ObserverName, int64(i))
	}
	c.authority.Write(t, cfg.Relay.TLSDir, wire.RelayName, 100)
	s.event("NODE_CONNECTED [n3]")
	c.agents[0].see(time.Now(), 5, false)
	if got := s.ports(1); got[0] != 5 {
		t.Errorf("a connection of before: %v", got)
	}
	if err := connect(c.authority, wire.RelayName); err != nil {
		t.Errorf("a client of the new authority: %v", err)
	}
	if err := connect(old, wire.RelayName); err == nil {
		t.Error("a client of the old authority is answered")
	}
}

// TestNobodyTellsOfNodes: without peers there is no answer, and a reason.
func TestNobodyTellsOfNodes(t *testing.T) {
	c := newCluster(t, 1)
	c.agents[0].kill()
	conn, _ := relayOf(t, c, c.agents[0].address.String(), nil)
	wait(t, "a reason", func() error {
		s := ask(t, conn, &observerpb.GetFlowsRequest{Follow: true})
		_, err := s.client.Recv()
		if want := "it is not known yet which nodes there are: ask " + c.agents[0].address.String() + ": "; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("%w, want %s", err, want)
		}
		return nil
	})
	if _, err := observerpb.NewObserverClient(conn).GetNodes(t.Context(), &observerpb.GetNodesRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("nodes: %v", err)
	}
	c.agents[0].start(t, c.ctx)
	connected(t, conn, 1)
}

func TestReflection(t *testing.T) {
	c := newCluster(t, 1)
	conn, _ := relayOf(t, c, c.agents[0].address.String(), nil)
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || !strings.Contains(r.String(), "observer.Observer") {
		t.Errorf("%v, %v", r, err)
	}
	_ = stream.CloseSend()
	_, _ = stream.Recv()
}

// TestBadConfig: what cannot be served is refused by name.
func TestBadConfig(t *testing.T) {
	taken := newCluster(t, 1).agents[0].address.String()
	for want, r := range map[string]config.Relay{
		"relay.peer":                  {Local: "127.0.0.1:4245"},
		"relay.listen, relay.local":   {Peer: "x:1"},
		"relay.local \"" + taken:      {Peer: "x:1", Local: taken},
		"relay.metricsAddress \"[::1": {Peer: "x:1", Local: "127.0.0.1:0", MetricsAddress: "[::1"},
	} {
		err := Run(context.Background(), Config{Relay: r, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
