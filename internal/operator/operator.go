// Package operator is the cluster-wide process: it gives nodes their pod CIDRs and services their LoadBalancer addresses, says on
// policies where they are enforced, keeps the certificates of agents and relay, and finds what is wrong.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/certificate"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/state"
)

const (
	component = "strait-operator"
	writers   = 8                      // assignments under way at once
	pause     = 50 * time.Millisecond  // between two plans, so that a burst of nodes is one
	retryMin  = 500 * time.Millisecond // after an assignment that was not accepted
	retryMax  = 30 * time.Second
	review    = time.Minute // a plan at least this often
)

// Config is what an operator needs.
type Config struct {
	Config    config.Config
	Namespace string // of the Lease, and of the Secrets with certificates
	Identity  string // unique among the replicas
	Version   string
	Log       *slog.Logger
	// Client speaks to the API server; nil: made from Config.API.
	Client *kube.Client
}

// Run takes part in the election and does the work while elected, until ctx ends. It returns kube.ErrLeaseLost when
// another replica took over: the process should end then, so that nothing of its knowledge is used again.
func Run(ctx context.Context, c Config) error {
	if c.Client == nil {
		client, err := kube.NewClient(c.Config.API, component)
		if err != nil {
			return err
		}
		c.Client = client
	}
	registry := metric.NewRegistry("operator", c.Version)
	o := &operator{Config: c, metrics: newMetrics(registry), pending: map[string][]netip.Prefix{}, accepted: map[string]bool{}}
	group, ctx := errgroup.WithContext(ctx)
	if c.Config.Operator.MetricsAddress != "" {
		server := metric.Server{Address: c.Config.Operator.MetricsAddress, Registry: registry, Ready: o.ready, Log: c.Log}
		listener, err := server.Listen(ctx)
		if err != nil {
			return err
		}
		group.Go(func() error { return server.Serve(ctx, listener) })
	}
	election := kube.Election{Client: c.Client, Namespace: c.Namespace, Name: c.Config.Operator.Lease, Identity: c.Identity, Log: c.Log}
	group.Go(func() error { return election.Run(ctx, o.lead) })
	return group.Wait()
}

// operator is the elected replica's work. Everything but the atomics belongs to the goroutine of lead.
type operator struct {
	Config
	metrics *metrics
	events  *kube.Events
	leading atomic.Bool
	synced  atomic.Bool

	mu       sync.Mutex                // guards the two below
	pending  map[string][]netip.Prefix // CIDRs sent, by the UID of their node
	accepted map[string]bool           // UIDs of pending whose CIDRs the API server has taken

	cursors [2]uint64
	known   map[finding]bool
}

// ready: a replica that waits is ready to take over, one that leads must know the nodes.
func (o *operator) ready() error {
	if o.leading.Load() && !o.synced.Load() {
		return errors.New("the nodes have not been read yet")
	}
	return nil
}

func (o *operator) lead(ctx context.Context) error {
	o.leading.Store(true)
	o.metrics.leader.Set(1)
	defer o.metrics.leader.Set(0)
	o.events = kube.NewEvents(ctx, o.Client, component, o.Identity, o.Log)
	st := state.New()
	pools, claims, policies := state.NewPools(), state.NewClaims(), state.NewPolicyObjects()
	tables := kube.Tables{Nodes: st.Nodes, Pools: pools, Claims: claims, PolicyObjects: policies, Problems: st.Problems, Cluster: o.Config.Config.ClusterName}
	source := kube.NewAPIServer(o.Client, tables, o.Log)
	addresses := balancer{
		cfg: o.Config.Config, client: o.Client, events: o.events, metrics: o.metrics, log: o.Log,
		nodes: st.Nodes, pools: pools, claims: claims, sent: map[string][]netip.Addr{}, said: map[string]string{},
	}
	enforced := conditions{client: o.Client, events: o.events, metrics: o.metrics, log: o.Log, nodes: st.Nodes, objects: policies}
	asked, err := newAgents(o.Config.Config.MetricsAddress)
	if enforced.agents = asked; err != nil {
		o.Log.Warn("agents cannot be asked which policies they enforce", "err", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	if settings := o.Config.Config.Operator.Certificates; settings.Enabled {
		kept := certificates{
			client: o.Client, events: o.events, metrics: o.metrics, log: o.Log, now: time.Now,
			config: certificate.Config{Namespace: o.Namespace, Validity: settings.Validity.Duration},
		}
		group.Go(func() error { return kept.run(ctx) })
	}
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error { return addresses.run(ctx) })
	group.Go(func() error { return enforced.run(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.Nodes.Initialized(): // before that, a CIDR in use might look free
		}
		o.synced.Store(true)
		return o.follow(ctx, st)
	})
	return group.Wait()
}

// follow plans after every change of a node, and again when something was not accepted.
func (o *operator) follow(ctx context.Context, st *state.State) error {
	wait := retryMin
	for {
		nodes := st.Nodes.Snapshot()
		again := review
		if o.round(ctx, slices.Collect(nodes.All())) {
			wait = retryMin
		} else {
			again, wait = wait, min(2*wait, retryMax)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes.Changed():
		case <-time.After(again):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// round makes one plan and carries it out; it reports whether everything was accepted.
func (o *operator) round(ctx context.Context, nodes []state.Node) bool {
	o.forget(nodes)
	p := makePlan(input{cfg: o.Config.Config, nodes: nodes, pending: o.snapshotPending(), cursors: o.cursors, now: time.Now()})
	o.cursors = p.cursors
	o.report(p)
	var group errgroup.Group // one that fails does not stop the others
	group.SetLimit(writers)
	for _, a := range p.assign {
		group.Go(func() error { return o.assign(ctx, a) })
	}
	return group.Wait() == nil
}

// assign writes one assignment. Whatever the answer was, the CIDRs stay reserved for the node until it shows what it has:
// a request whose answer was lost may have been carried out.
func (o *operator) assign(ctx context.Context, a assignment) error {
	o.mu.Lock()
	accepted := o.accepted[a.uid]
	o.pending[a.uid] = a.cidrs
	o.mu.Unlock()
	if accepted {
		return nil // the node will show it
	}
	err := o.Client.SetPodCIDRs(ctx, a.node, a.uid, a.cidrs)
	switch {
	case err == nil:
		o.mu.Lock()
		o.accepted[a.uid] = true
		o.mu.Unlock()
		o.metrics.assigned.Inc()
		o.Log.Info("pod CIDRs assigned", "node", a.node, "cidrs", fmt.Sprint(a.cidrs))
		return nil
	case errors.Is(err, kube.ErrRefused):
		o.metrics.refused.Inc()
		o.Log.Warn("pod CIDRs refused", "node", a.node, "err", err)
		o.raced(ctx, a)
		return nil // what the node has now comes with its next change
	case kube.IsNotFound(err):
		return nil // deleted meanwhile
	case ctx.Err() != nil:
		return ctx.Err()
	}
	o.metrics.errors.Inc()
	o.Log.Warn("pod CIDRs not assigned, to be tried again", "node", a.node, "err", err)
	return err
}

// raced looks for the other writer after a refusal.
func (o *operator) raced(ctx context.Context, a assignment) {
	o.mu.Lock()
	delete(o.pending, a.uid)
	o.mu.Unlock()
	object, err := o.Client.Node(ctx, a.node)
	if err != nil || string(object.UID) != a.uid || len(object.Spec.PodCIDRs) == 0 {
		return
	}
	o.events.Node(a.node, a.uid, kube.Warning, reasonRace, fmt.Sprintf("spec.podCIDRs was set to %v by another writer while strait-operator "+
		"was about to set %v; ipam.mode cluster-pool wants kube-controller-manager with --allocate-node-cidrs=false", object.Spec.PodCIDRs, a.cidrs))
}

// forget drops what was sent for nodes that show their CIDRs or are gone.
func (o *operator) forget(nodes []state.Node) {
	waiting := map[string]bool{}
	for _, n := range nodes {
		waiting[n.UID] = len(n.PodCIDRs) == 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for uid := range o.pending {
		if !waiting[uid] {
			delete(o.pending, uid)
			delete(o.accepted, uid)
		}
	}
}

func (o *operator) snapshotPending() map[string][]netip.Prefix {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make(map[string][]netip.Prefix, len(o.pending))
	for uid, cidrs := range o.pending {
		out[uid] = cidrs
	}
	return out
}

// report shows findings: in the metrics while they last, in the log and as events on their node when they are new.
func (o *operator) report(p plan) {
	o.metrics.show(p)
	now := make(map[finding]bool, len(p.findings))
	for _, f := range p.findings {
		if now[f] = true; o.known[f] {
			continue
		}
		o.Log.Warn("pod CIDRs need a person", "node", f.node, "reason", f.reason, "problem", f.text)
		o.events.Node(f.node, f.uid, kube.Warning, f.reason, f.text)
	}
	for f := range o.known {
		if !now[f] {
			o.Log.Info("pod CIDRs repaired", "node", f.node, "reason", f.reason)
		}
	}
	o.known = now
}
