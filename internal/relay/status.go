package relay

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/strait-net/strait/internal/observer/wire"
)

// answerTimeout is how long a node is waited for that is asked how it is.
const answerTimeout = 5 * time.Second

// answer is what a node said.
type answer[T any] struct {
	node string
	says T
	err  error
}

// each asks all nodes at once; answers are in order of names.
func each[T any](ctx context.Context, n *nodes, ask func(context.Context, observerpb.ObserverClient) (T, error)) ([]answer[T], error) {
	names, _, err := n.names()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	out := make([]answer[T], len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() {
			out[i].node = name
			client, err := n.client(name)
			if err == nil {
				out[i].says, err = ask(ctx, client)
			}
			out[i].err = err
		})
	}
	asking.Wait()
	return out, nil
}

func askStatus(ctx context.Context, c observerpb.ObserverClient) (*observerpb.ServerStatusResponse, error) {
	return c.ServerStatus(ctx, &observerpb.ServerStatusRequest{})
}

// ServerStatus implements observerpb.ObserverServer: the sums over all nodes.
func (s *server) ServerStatus(ctx context.Context, _ *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	answers, err := each(ctx, s.nodes, askStatus)
	if err != nil {
		return nil, err
	}
	out := &observerpb.ServerStatusResponse{Version: s.c.Version}
	connected := uint32(0)
	for _, a := range answers {
		if a.err != nil {
			out.UnavailableNodes = append(out.UnavailableNodes, a.node)
			continue
		}
		connected++
		out.NumFlows += a.says.NumFlows
		out.MaxFlows += a.says.MaxFlows
		out.SeenFlows += a.says.SeenFlows
		out.FlowsRate += a.says.FlowsRate
		out.UptimeNs = max(out.UptimeNs, a.says.UptimeNs)
	}
	out.NumConnectedNodes, out.NumUnavailableNodes = wrapperspb.UInt32(connected), wrapperspb.UInt32(uint32(len(out.UnavailableNodes)))
	return out, nil
}

// GetNodes implements observerpb.ObserverServer.
func (s *server) GetNodes(ctx context.Context, _ *observerpb.GetNodesRequest) (*observerpb.GetNodesResponse, error) {
	answers, err := each(ctx, s.nodes, askStatus)
	if err != nil {
		return nil, err
	}
	out := &observerpb.GetNodesResponse{}
	for _, a := range answers {
		row := &observerpb.Node{
			Name: a.node, Address: s.nodes.address(a.node), State: relaypb.NodeState_NODE_UNAVAILABLE,
			Tls: &observerpb.TLS{Enabled: true, ServerName: wire.ObserverName},
		}
		if a.err == nil {
			row.State, row.Version, row.UptimeNs = relaypb.NodeState_NODE_CONNECTED, a.says.Version, a.says.UptimeNs
			row.NumFlows, row.MaxFlows, row.SeenFlows = a.says.NumFlows, a.says.MaxFlows, a.says.SeenFlows
		}
		out.Nodes = append(out.Nodes, row)
	}
	return out, nil
}

// GetNamespaces implements observerpb.ObserverServer: those of all nodes that answer.
func (s *server) GetNamespaces(ctx context.Context, q *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	answers, err := each(ctx, s.nodes, func(ctx context.Context, c observerpb.ObserverClient) (*observerpb.GetNamespacesResponse, error) {
		return c.GetNamespaces(ctx, q)
	})
	if err != nil {
		return nil, err
	}
	out := &observerpb.GetNamespacesResponse{}
	silent := 0
	for _, a := range answers {
		if a.err != nil {
			silent++
			continue
		}
		out.Namespaces = append(out.Namespaces, a.says.Namespaces...)
	}
	if silent == len(answers) {
		return nil, status.Errorf(codes.Unavailable, "none of %d nodes answers", silent)
	}
	slices.SortFunc(out.Namespaces, func(a, b *observerpb.Namespace) int {
		return cmp.Or(strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Namespace, b.Namespace))
	})
	out.Namespaces = slices.CompactFunc(out.Namespaces, func(a, b *observerpb.Namespace) bool {
		return a.Cluster == b.Cluster && a.Namespace == b.Namespace
	})
	return out, nil
}

// GetAgentEvents implements observerpb.ObserverServer.
func (s *server) GetAgentEvents(*observerpb.GetAgentEventsRequest, grpc.ServerStreamingServer[observerpb.GetAgentEventsResponse]) error {
	return status.Error(codes.Unimplemented, "agent events: the relay tells flows only; ask the node")
}

// GetDebugEvents implements observerpb.ObserverServer.
func (s *server) GetDebugEvents(*observerpb.GetDebugEventsRequest, grpc.ServerStreamingServer[observerpb.GetDebugEventsResponse]) error {
	return status.Error(codes.Unimplemented, "debug events: the relay tells flows only; see strait explain")
}
