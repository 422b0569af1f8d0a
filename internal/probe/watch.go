package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	// failures is how many rounds in a row a node must not answer at all to count as dead: one lost packet is no failure.
	failures = 2
	// patience is how many rounds in a row a node that was never ready may be up without it: its agent may just be restarting, and its
	// kernel answering for the addresses all the time.
	patience = 5
)

// WatchConfig is what a Watch needs. Nodes and Port are required.
type WatchConfig struct {
	Nodes *table.Table[state.Node]
	Port  string // of the agents' health endpoint
	// Every is the time from one question to the next, Timeout, not longer, the wait for the answer. Default 1 s, 900 ms: a dead node is
	// known after at most 3 s.
	Every, Timeout time.Duration
	// Grace is how long a node may be up without a ready agent before it counts as dead: its kernel goes on while the agent is
	// upgraded. Default 1 min.
	Grace time.Duration
	// Slow answers for nodes that are not watched; nil: they count as alive.
	Slow *Prober
}

// Watch asks a few nodes often. Run owns the asking.
//
//	unknown --ready--> alive --no answer, twice, or up without being ready for Grace--> dead --ready--> alive
//	unknown --no answer, twice, or up without being ready, five times--> dead
type Watch struct {
	WatchConfig
	client *http.Client
	wake   chan struct{} // the set of nodes has changed

	mu      sync.Mutex // guards the rest
	watched map[string]*watched
	changed chan struct{}
}

// watched is one node.
type watched struct {
	cancel   context.CancelFunc // nil before Run has begun to ask
	known    bool
	alive    bool
	missed   int       // answers in a row
	waited   int       // answers in a row that it is up and not ready
	notReady time.Time // since when it is
}

// answer is what a node made of a question.
type answer int

const (
	silent answer = iota // no answer from any address
	up                   // the node answers, its agent is not ready or not there
	ready
)

// NewWatch returns a watch of no node; Run starts it.
func NewWatch(c WatchConfig) *Watch {
	if c.Every == 0 {
		c.Every, c.Timeout = time.Second, 900*time.Millisecond
	}
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}
	return &Watch{
		WatchConfig: c, client: &http.Client{Transport: transport}, wake: make(chan struct{}, 1),
		watched: map[string]*watched{}, changed: make(chan struct{}),
	}
}

// Set makes nodes the ones that are asked.
func (w *Watch) Set(nodes []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range w.watched {
		if !slices.Contains(nodes, name) {
			if n.cancel != nil {
				n.cancel()
			}
			delete(w.watched, name)
		}
	}
	for _, name := range nodes {
		if w.watched[name] == nil {
			w.watched[name] = &watched{}
		}
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Alive reports whether a node answers. While it is not watched, or has not been heard of, known is false, and it is what the slow
// prober takes it for.
func (w *Watch) Alive(node string) (alive, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.watched[node]; n != nil && n.known {
		return n.alive, true
	}
	return w.Slow == nil || !w.Slow.silent(node), false
}

// Changed is closed when an answer of Alive about a watched node has changed since the call.
func (w *Watch) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// silent reports whether the last probe found that no address of a node answers. A refusal is an answer: the node is up.
func (p *Prober) silent(node string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer, asked := p.peers[node]
	return asked && !peer.Reachable && !p.refused[node]
}

// Run asks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		w.mu.Lock()
		for name, n := range w.watched {
			if n.cancel == nil {
				var own context.Context
				own, n.cancel = context.WithCancel(ctx)
				group.Go(func() { w.follow(own, name, n) })
			}
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
	}
}

// follow asks one node. The time to the next question does not depend on how long the answer takes.
func (w *Watch) follow(ctx context.Context, name string, n *watched) {
	ticker := time.NewTicker(w.Every)
	defer ticker.Stop()
	for {
		a := w.ask(ctx, name)
		if ctx.Err() != nil {
			return
		}
		w.note(n, a, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// note is one step of the machine above.
func (w *Watch) note(n *watched, a answer, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := *n
	if a == silent {
		n.missed++
	} else {
		n.missed = 0
	}
	if a != up {
		n.waited = 0
	} else if n.waited++; n.waited == 1 {
		n.notReady = now
	}
	switch {
	case a == ready:
		n.alive, n.known = true, true
	case n.missed >= failures, n.waited >= patience && !n.known, a == up && n.known && now.Sub(n.notReady) >= w.Grace:
		n.alive, n.known = false, true
	}
	if n.alive != before.alive || n.known != before.known {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// ask tries all addresses of a node at once; the best answer counts.
func (w *Watch) ask(ctx context.Context, name string) answer {
	n, _, ok := w.Nodes.Snapshot().Get(name)
	if !ok {
		return silent
	}
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	answers := make(chan answer, len(n.Addresses))
	for _, a := range n.Addresses {
		go func() { answers <- w.get(ctx, a) }()
	}
	best := silent
	for range n.Addresses {
		if best = max(best, <-answers); best == ready {
			break
		}
	}
	return best
}

func (w *Watch) get(ctx context.Context, a netip.Addr) answer {
	url := fmt.Sprintf("http://%s/readyz", net.JoinHostPort(a.String(), w.Port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return silent
	}
	resp, err := w.client.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		return up
	case err != nil:
		return silent
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // only the status matters
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return ready
	}
	return up
}

// Watched returns the nodes that are asked often, by name.
func (w *Watch) Watched() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.watched))
}
