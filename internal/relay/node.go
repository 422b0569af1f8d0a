package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/observer/wire"
)

const (
	// connectTimeout is how long one attempt to connect to a node may take; after it others follow, at most connectPause apart.
	connectTimeout = 5 * time.Second
	connectPause   = 5 * time.Second
	connectAgain   = 500 * time.Millisecond // after the first attempt
	// buffer is that of a connection, each way: there may be thousands.
	buffer = 8 << 10
)

// nodes are those that there are, each with one connection for all clients.
type nodes struct {
	certificates *wire.Certificates
	metrics      *metric.Relay
	log          *slog.Logger

	mu      sync.Mutex // guards everything below, and the nodes' own fields
	ctx     context.Context
	running sync.WaitGroup
	byName  map[string]*node
	known   bool          // all of them have been told
	problem error         // why nobody tells of them
	changed chan struct{} // closed with each change of the above, or of a node's state
}

// node is one of them.
type node struct {
	name, address, serverName string
	conn                      *grpc.ClientConn
	refused                   error // why there is no connection to be had
	connected                 bool
	stop                      context.CancelFunc
}

func newNodes(c *wire.Certificates, m *metric.Relay, log *slog.Logger) *nodes {
	return &nodes{certificates: c, metrics: m, log: log, byName: map[string]*node{}, changed: make(chan struct{})}
}

// run ends with ctx, and with all connections.
func (n *nodes) run(ctx context.Context) error {
	n.mu.Lock()
	n.ctx = ctx
	for _, node := range n.byName {
		n.startLocked(node)
	}
	n.mu.Unlock()
	<-ctx.Done()
	n.running.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, node := range n.byName {
		node.close()
	}
	return ctx.Err()
}

func (n *node) close() {
	if n.conn != nil {
		_ = n.conn.Close() // of a client: only when it is closed already
	}
}

// put adds a node, or notes that it is elsewhere now.
func (n *nodes) put(name, address, serverName string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.byName[name]
	if old != nil && old.address == address && old.serverName == serverName {
		return
	}
	if old != nil {
		n.endLocked(old)
	}
	node := &node{name: name, address: address, serverName: serverName}
	if address == "" {
		node.refused = errors.New("it tells other nodes nothing: see flows.listen in its configuration")
	} else {
		node.conn, node.refused = grpc.NewClient("passthrough:///"+address, n.certificates.Client(serverName), wire.Alive(), grpc.WithIdleTimeout(0),
			grpc.WithReadBufferSize(buffer), grpc.WithWriteBufferSize(buffer),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: connectAgain, Multiplier: backoff.DefaultConfig.Multiplier, Jitter: backoff.DefaultConfig.Jitter, MaxDelay: connectPause},
				MinConnectTimeout: connectTimeout,
			}))
	}
	n.byName[name] = node
	if n.ctx != nil {
		n.startLocked(node)
	}
	n.changedLocked()
}

// drop forgets a node.
func (n *nodes) drop(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.byName[name]; old != nil {
		n.log.Info("node has left", "node", name)
		n.endLocked(old)
		delete(n.byName, name)
		n.changedLocked()
	}
}

// settle notes that all nodes have been told: others are gone.
func (n *nodes) settle(told map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, old := range n.byName {
		if !told[name] {
			n.log.Info("node has left", "node", name)
			n.endLocked(old)
			delete(n.byName, name)
		}
	}
	n.known = true
	n.changedLocked()
}

// trouble notes why nobody tells of nodes; nil: somebody does.
func (n *nodes) trouble(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problem = err
	n.changedLocked()
}

func (n *nodes) endLocked(old *node) {
	if old.stop != nil {
		old.stop()
	}
	old.close()
}

func (n *nodes) startLocked(node *node) {
	if node.conn == nil {
		return
	}
	ctx, stop := context.WithCancel(n.ctx)
	node.stop = stop
	n.running.Go(func() { n.watch(ctx, node) })
}

// watch keeps a node connected, and notes whether it is.
func (n *nodes) watch(ctx context.Context, node *node) {
	told := ""
	for state := node.conn.GetState(); ; state = node.conn.GetState() {
		n.note(node, state == connectivity.Ready)
		switch state {
		case connectivity.Idle:
			node.conn.Connect()
		case connectivity.Ready:
			n.log.Info("node is connected", "node", node.name, "address", node.address)
			told = ""
		case connectivity.TransientFailure:
			// A call says why.
			_, err := healthpb.NewHealthClient(node.conn).Check(ctx, &healthpb.HealthCheckRequest{})
			if text := wire.Reason(err); err != nil && text != told && ctx.Err() == nil {
				n.log.Warn("node is not connected", "node", node.name, "address", node.address, "err", text)
				told = text
			}
		}
		if !node.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

func (n *nodes) note(node *node, connected bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if node.connected != connected {
		node.connected = connected
		n.changedLocked()
	}
}

func (n *nodes) changedLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
	connected := 0
	for _, node := range n.byName {
		if node.connected {
			connected++
		}
	}
	n.metrics.Nodes(connected, len(n.byName)-connected)
}

// changes returns a channel that is closed with the next change.
func (n *nodes) changes() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// names returns which nodes there are, and a channel that is closed with the next change. The error says why that is not known.
func (n *nodes) names() ([]string, <-chan struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.byName)), n.changed, n.unknownLocked()
}

func (n *nodes) unknownLocked() error {
	switch {
	case n.known:
		return nil
	case n.problem != nil:
		return fmt.Errorf("it is not known yet which nodes there are: %w", n.problem)
	}
	return errors.New("it is not known yet which nodes there are")
}

// errLeft is the error for a node that is no more.
var errLeft = errors.New("it has left")

// client returns a client of a node.
func (n *nodes) client(name string) (observerpb.ObserverClient, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.byName[name]
	switch {
	case node == nil:
		return nil, errLeft
	case node.refused != nil:
		return nil, node.refused
	}
	return observerpb.NewObserverClient(node.conn), nil
}

// address returns where a node is.
func (n *nodes) address(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if node := n.byName[name]; node != nil {
		return node.address
	}
	return ""
}

// ready: there is somebody to ask.
func (n *nodes) ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.unknownLocked(); err != nil {
		return err
	}
	for _, node := range n.byName {
		if node.connected {
			return nil
		}
	}
	return fmt.Errorf("none of %d nodes is connected", len(n.byName))
}
