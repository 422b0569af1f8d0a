// Package observer serves what the node knows of flows as Hubble does: observer.Observer and peer.Peer by gRPC.
// docs/design/0007-flows.md says what fields mean here.
package observer

import (
	"context"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// defaultCluster is the name of a cluster that was given none: it is left out of the names of nodes.
const defaultCluster = "default"

// Denials that are explained: compiling the policies of a pod again is what a flood of them must not ask for.
const (
	explainedPerSecond = 100
	explainedAtOnce    = 1000
)

// Config is what a Server needs.
type Config struct {
	Node    string
	Cluster string
	Version string
	Began   time.Time // of the agent: numbers of flows begin again with it
	Flows   *flow.Store
	State   *state.State
	// Explain says why a direction of a flow was denied. It is asked only for what is sent; nil: rules are named without what almost allowed it.
	Explain func(*flow.Flow, policy.Way) (policy.Explanation, bool)
	// Device names a device of the node, or is empty.
	Device func(index uint32) string
	// Port is where observers of all nodes are reached by TLS; 0: nowhere.
	Port uint16
}

// Server answers Hubble's clients. Run keeps it up to date.
type Server struct {
	observerpb.UnimplementedObserverServer
	peerpb.UnimplementedPeerServer
	c            Config
	setting      setting
	nodeName     string // with the cluster, unless that has no name
	explanations *rate.Limiter
	namespaces   *namespaces
	events       *agentEvents
}

// New returns a server that has seen nothing yet.
func New(c Config) *Server {
	s := &Server{
		c: c, nodeName: absolute(c.Cluster, c.Node), explanations: rate.NewLimiter(explainedPerSecond, explainedAtOnce),
		namespaces: newNamespaces(), events: newAgentEvents(),
	}
	if s.c.Device == nil {
		s.c.Device = func(uint32) string { return "" }
	}
	s.setting = setting{cluster: c.Cluster, node: c.Node, boot: bootOf(c.Node, c.Began), nodeLabels: s.labels, device: s.c.Device, slices: c.State.EndpointSlices}
	return s
}

// Run follows flows and tables until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.namespaces.follow(ctx, s.c.Flows) })
	group.Go(func() error { return s.events.follow(ctx, s.c.State, s.c.Began) })
	return group.Wait()
}

// absolute is the name of a node in Hubble's answers.
func absolute(cluster, node string) string {
	if cluster == "" || cluster == defaultCluster {
		return node
	}
	return cluster + "/" + node
}

// labels are those of this node now.
func (s *Server) labels() policy.Labels {
	n, _, _ := s.c.State.Nodes.Snapshot().Get(s.c.Node)
	return n.Labels
}

func (s *Server) nodeLabels() []string {
	var out []string
	for _, l := range s.labels() {
		out = append(out, l.Key+"="+l.Value)
	}
	return out
}
