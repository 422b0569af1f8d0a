package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/testkit/authority"
	"github.com/strait-net/strait/internal/verdict"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is an observer of a node, by mTLS at an address of its own.
type agent struct {
	name    string
	address netip.AddrPort
	tls     string // directory
	state   *state.State

	store  *flow.Store
	server *observer.Server
	kill   func()
}

// cluster is some agents that know each other.
type cluster struct {
	authority *authority.Authority
	agents    []*agent
	port      uint16
	ctx       context.Context
}

// newCluster starts agents n1 to n<count> at 127.0.0.1 and so on.
func newCluster(t *testing.T, count int) *cluster {
	t.Helper()
	c := &cluster{authority: authority.New(t), port: freePort(t)}
	ctx, cancel := context.WithCancel(context.Background())
	c.ctx = ctx
	for i := range count {
		c.add(t, i+1)
	}
	for _, a := range c.agents {
		a.start(t, ctx)
	}
	t.Cleanup(func() {
		for _, a := range c.agents {
			a.kill()
		}
		cancel()
	})
	return c
}

// freePort is one that nobody listens on, at any loopback address.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// add makes an agent that all others know, and does not start it.
func (c *cluster) add(t *testing.T, number int) *agent {
	t.Helper()
	address := netip.AddrFrom4([4]byte{127, 0, 0, byte(number)})
	a := &agent{name: fmt.Sprint("n", number), address: netip.AddrPortFrom(address, c.port), tls: t.TempDir(), state: state.New(), kill: func() {}}
	c.authority.Write(t, a.tls, wire.ObserverName, int64(number))
	a.forget()
	a.state.Nodes.Register("test")()
	c.agents = append(c.agents, a)
	for _, x := range c.agents {
		for _, y := range c.agents {
			x.state.Nodes.Insert(state.Node{Name: y.name, Addresses: []netip.Addr{y.address.Addr()}})
		}
	}
	return a
}

// forget is what a restart does.
func (a *agent) forget() {
	a.store = flow.NewStore(4096)
	a.server = observer.New(observer.Config{
		Node: a.name, Version: "v1.2.3", Began: time.Now(), Flows: a.store, State: a.state, Port: a.address.Port(),
	})
}

// start serves; kill ends that at once.
func (a *agent) start(t *testing.T, ctx context.Context) {
	t.Helper()
	var listener net.Listener
	var err error
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if listener, err = net.Listen("tcp", a.address.String()); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 2)
	server := a.server
	go func() { done <- server.Serve(ctx, listener, wire.NewCertificates(a.tls).Server()) }()
	go func() { done <- server.Run(ctx) }()
	a.kill = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("observer of %s ends with %v", a.name, err)
			}
		}
	})
}

// see adds a flow from a port of a pod of this node, denied or not.
func (a *agent) see(at time.Time, port int, denied bool) {
	f := flow.Flow{
		Event: flow.Event{
			Time: at, Kind: flow.New, Hook: flow.FromPod, Protocol: policy.TCP, TCPFlags: 2,
			Source: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(port)), Target: netip.MustParseAddrPort("10.0.0.2:80"),
		},
		From: flow.End{Kind: policy.PodPeer, Local: true, Node: a.name, Pod: &state.Pod{Namespace: "ns-" + a.name, Name: "web", Node: a.name}},
		To:   flow.End{Kind: policy.WorldPeer},
	}
	if denied {
		f.Kind, f.Reason, f.Egress = flow.Denied, verdict.PolicyEgress, 9
	}
	a.store.Append(time.Now(), []flow.Flow{f})
}

// relayOf runs a relay that asks an agent for its peers, and returns how it is reached without TLS.
func relayOf(t *testing.T, c *cluster, peer string, change func(*Config)) (conn *grpc.ClientConn, cfg Config) {
	t.Helper()
	cfg = Config{
		Relay: config.Relay{Peer: peer, Local: fmt.Sprintf("127.0.0.1:%d", freePort(t)), TLSDir: t.TempDir()}, Name: "relay", Version: "v1.2.3",
		Log: slog.New(slog.NewTextHandler(logOf{t}, nil)),
	}
	c.authority.Write(t, cfg.Relay.TLSDir, wire.RelayName, 100)
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("relay ends with %v", err)
		}
	})
	return dial(t, cfg.Relay.Local, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)), grpc.WithTransportCredentials(insecure.NewCredentials())), cfg
}

// logOf is the log of a test.
type logOf struct{ t *testing.T }

func (l logOf) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func dial(t *testing.T, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// connected waits until so many nodes are connected.
func connected(t *testing.T, conn *grpc.ClientConn, want int) {
	t.Helper()
	wait(t, fmt.Sprint(want, " nodes"), func() error {
		r, err := observerpb.NewObserverClient(conn).ServerStatus(t.Context(), &observerpb.ServerStatusRequest{}, grpc.WaitForReady(true))
		if err == nil && r.GetNumConnectedNodes().GetValue() != uint32(want) {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
}

func wait(t *testing.T, what string, is func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// stream is an answer that is read beside the test.
type stream struct {
	t      *testing.T
	client grpc.ServerStreamingClient[observerpb.GetFlowsResponse]
	cancel context.CancelFunc
}

func ask(t *testing.T, conn *grpc.ClientConn, q *observerpb.GetFlowsRequest) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	client, err := observerpb.NewObserverClient(conn).GetFlows(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return &stream{t, client, cancel}
}

func (s *stream) next() *observerpb.GetFlowsResponse {
	s.t.Helper()
	r, err := s.client.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// event reads what is to be one of nodes.
func (s *stream) event(want string) {
	s.t.Helper()
	r := s.next()
	n := r.GetNodeStatus()
	if text := fmt.Sprintf("%v %v %s", n.GetStateChange(), n.GetNodeNames(), n.GetMessage()); n == nil || !strings.HasPrefix(text, want) || r.NodeName != "relay" || r.Time == nil {
		s.t.Fatalf("%v, want %s", r, want)
	}
}

// ports reads so many flows, and returns their source ports.
func (s *stream) ports(count int) (out []int) {
	s.t.Helper()
	for range count {
		r := s.next()
		if r.GetFlow() == nil || r.GetFlow().GetNodeName() != r.NodeName {
			s.t.Fatalf("%v, want a flow after %v", r, out)
		}
		out = append(out, int(r.GetFlow().GetL4().GetTCP().GetSourcePort()))
	}
	return out
}

func (s *stream) end() {
	s.t.Helper()
	if r, err := s.client.Recv(); !errors.Is(err, io.EOF) {
		s.t.Fatalf("%v, %v; want the end", r, err)
	}
}

func count(from, to int) (out []int) {
	for i := from; i < to; i++ {
		out = append(out, i)
	}
	return out
}
