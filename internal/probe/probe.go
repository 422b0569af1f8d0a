// Package probe asks the agents of the other nodes whether they can be reached over the node network.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Config is what a Prober needs. Nodes, Self and Port are required.
type Config struct {
	Nodes *table.Table[state.Node]
	Self  string // name of this node, which is not probed
	Port  string // of the agents' health endpoint
	// Every is the time from one round to the next, Timeout the longest wait for one node. Default 10 s, 3 s.
	Every, Timeout time.Duration
	// Parallel bounds the nodes asked at the same time. Default 16.
	Parallel int
}

// Prober keeps the last answer of every other node. Run owns the asking.
type Prober struct {
	Config
	client *http.Client

	mu      sync.Mutex
	peers   map[string]localapi.Peer // by node
	refused map[string]bool          // by node: nobody listens, but the node is up
}

// New returns a prober; Run starts it.
func New(c Config) *Prober {
	if c.Every == 0 {
		c.Every = 10 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 3 * time.Second
	}
	if c.Parallel == 0 {
		c.Parallel = 16
	}
	// A new connection each time: an old one would hide that new ones are no longer let through.
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}
	return &Prober{Config: c, client: &http.Client{Transport: transport}, peers: map[string]localapi.Peer{}, refused: map[string]bool{}}
}

// Run probes until ctx ends, and at once when the set of nodes changes.
func (p *Prober) Run(ctx context.Context) error {
	for {
		snapshot := p.Nodes.Snapshot()
		p.round(ctx, slices.Collect(snapshot.All()))
		timer := time.NewTimer(p.Every)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-snapshot.Changed():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Health returns what the last probes found, in order of node names. A node not asked yet has the zero Checked.
func (p *Prober) Health() localapi.ClusterHealth {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := localapi.ClusterHealth{Nodes: 1, Reachable: 1, Peers: []localapi.Peer{}}
	for n := range p.Nodes.Snapshot().All() {
		if n.Name == p.Self {
			continue
		}
		peer, ok := p.peers[n.Name]
		if !ok {
			peer = localapi.Peer{Node: n.Name}
		}
		h.Nodes++
		if peer.Reachable {
			h.Reachable++
		}
		h.Peers = append(h.Peers, peer)
	}
	return h
}

// Peers returns Health's peers.
func (p *Prober) Peers() []localapi.Peer { return p.Health().Peers }

func (p *Prober) round(ctx context.Context, nodes []state.Node) {
	var group errgroup.Group
	group.SetLimit(p.Parallel)
	for _, n := range nodes {
		if n.Name == p.Self {
			continue
		}
		group.Go(func() error {
			peer, refused := p.ask(ctx, n)
			if ctx.Err() == nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.peers[n.Name], p.refused[n.Name] = peer, refused
			}
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.peers {
		if !slices.ContainsFunc(nodes, func(n state.Node) bool { return n.Name == name }) {
			delete(p.peers, name)
			delete(p.refused, name)
		}
	}
}

// ask tries the node's addresses in turn; the peer is reachable when one answers, whatever the answer is: an agent that
// is not healthy says so itself.
func (p *Prober) ask(ctx context.Context, n state.Node) (peer localapi.Peer, refused bool) {
	peer = localapi.Peer{Node: n.Name, Checked: time.Now()}
	if len(n.Addresses) == 0 {
		peer.Error = "the node has no address"
		return peer, false
	}
	var why []string
	for _, a := range n.Addresses {
		begin := time.Now()
		err := p.get(ctx, a)
		if err == nil {
			peer.Address, peer.Reachable, peer.RTT = p.at(a), true, time.Since(begin)
			return peer, false
		}
		refused = refused || errors.Is(err, syscall.ECONNREFUSED)
		why = append(why, err.Error())
	}
	peer.Address = p.at(n.Addresses[0])
	peer.Error = strings.Join(slices.Compact(why), "; ")
	return peer, refused
}

func (p *Prober) at(a netip.Addr) string { return net.JoinHostPort(a.String(), p.Port) }

func (p *Prober) get(ctx context.Context, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.at(a)+"/healthz", http.NoBody)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	resp, err := p.client.Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer in %v", p.Timeout)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err // the rest of the message repeats the address
	}
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // only the answering matters
	return resp.Body.Close()
}
