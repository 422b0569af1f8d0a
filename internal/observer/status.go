package observer

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/state"
)

// ServerStatus implements observerpb.ObserverServer.
func (s *Server) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	now := time.Now()
	c := s.c.Flows.Counts(now)
	return &observerpb.ServerStatusResponse{
		NumFlows: uint64(c.Kept), MaxFlows: uint64(c.Max), SeenFlows: c.Seen, FlowsRate: c.PerSecond,
		UptimeNs: uint64(now.Sub(s.c.Began)), Version: s.c.Version,
	}, nil
}

// GetNodes implements observerpb.ObserverServer. Of other nodes no more is known than where they are.
func (s *Server) GetNodes(context.Context, *observerpb.GetNodesRequest) (*observerpb.GetNodesResponse, error) {
	out := &observerpb.GetNodesResponse{}
	for n := range s.c.State.Nodes.Snapshot().All() {
		row := &observerpb.Node{Name: absolute(s.c.Cluster, n.Name), Address: s.address(n), Tls: &observerpb.TLS{}}
		if s.c.Port != 0 {
			row.Tls = &observerpb.TLS{Enabled: true, ServerName: wire.ObserverName}
		}
		if n.Name == s.c.Node {
			now := time.Now()
			c := s.c.Flows.Counts(now)
			row.State, row.Version, row.UptimeNs = relaypb.NodeState_NODE_CONNECTED, s.c.Version, uint64(now.Sub(s.c.Began))
			row.NumFlows, row.MaxFlows, row.SeenFlows = uint64(c.Kept), uint64(c.Max), c.Seen
		}
		out.Nodes = append(out.Nodes, row)
	}
	return out, nil
}

// address is where the observer of a node is reached; empty: nowhere but on the node itself.
func (s *Server) address(n state.Node) string {
	if s.c.Port == 0 || len(n.Addresses) == 0 {
		return ""
	}
	return net.JoinHostPort(n.Addresses[0].String(), strconv.Itoa(int(s.c.Port)))
}

// GetNamespaces implements observerpb.ObserverServer.
func (s *Server) GetNamespaces(context.Context, *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	out := &observerpb.GetNamespacesResponse{}
	for _, name := range s.namespaces.list(time.Now()) {
		out.Namespaces = append(out.Namespaces, &observerpb.Namespace{Cluster: s.c.Cluster, Namespace: name})
	}
	return out, nil
}

// GetDebugEvents implements observerpb.ObserverServer.
func (s *Server) GetDebugEvents(*observerpb.GetDebugEventsRequest, grpc.ServerStreamingServer[observerpb.GetDebugEventsResponse]) error {
	return status.Error(codes.Unimplemented, "debug events: Strait's programs tell none; see strait explain")
}

// namespacesLinger is how long a namespace is told after its last flow: what Hubble promises.
const namespacesLinger = time.Hour

// namespaces remembers which namespaces had flows.
type namespaces struct {
	mu   sync.Mutex
	seen map[string]time.Time // guarded by mu
}

func newNamespaces() *namespaces { return &namespaces{seen: map[string]time.Time{}} }

// follow reads all flows. It is the only reader that reads without being asked: missing some is no harm.
func (n *namespaces) follow(ctx context.Context, store *flow.Store) error {
	cursor := store.Oldest()
	for {
		f, _, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		for _, pod := range []*state.Pod{f.From.Pod, f.To.Pod} {
			if pod != nil {
				n.saw(pod.Namespace, f.Time)
			}
		}
	}
}

func (n *namespaces) saw(name string, at time.Time) {
	if name == "" { // a sandbox that is no pod's has none
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen[name] = at
}

// list returns the names in order, and forgets what is too old.
func (n *namespaces) list(now time.Time) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for name, at := range n.seen {
		if now.Sub(at) > namespacesLinger {
			delete(n.seen, name)
			continue
		}
		out = append(out, name)
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
