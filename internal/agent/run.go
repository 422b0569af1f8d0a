package agent

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/control"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/enforcement"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/probe"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	verifyEvery = time.Minute      // local pods compared with the kernel
	sweepEvery  = 10 * time.Second // connection table
)

// agent is one running agent.
type agent struct {
	Config
	*node
	began       time.Time
	client      *kube.Client     // nil with a static source
	writer      *kube.NodeWriter // nil with a static source
	metrics     *metric.Agent
	reconcilers []reconciler
	frontends   *sync.Frontends
	flows       *flows // nil: nothing is told
	// announcements is apart from reconcilers: it waits for other nodes.
	announcements reconciler
	prober        *probe.Prober
	watcher       *netdev.Watcher
	switching     stdsync.Mutex // held by who changes who serves Services
	rehearsed     chan struct{} // closed when a pod can be started
	lastAdd       atomic.Int64  // unix nanoseconds of the last successful ADD
	lastError     atomic.Value  // string: of the last ADD, empty when it succeeded
}

type reconciler interface {
	Run(context.Context) error
	Pruned() <-chan struct{}
	Health() reconcile.Health
}

// run starts everything in the order in which it can be relied on, and waits for the first that cannot go on.
func (a *agent) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	source, client, err := a.newSource()
	if err != nil {
		return err
	}
	if a.client = client; client != nil {
		a.writer = kube.NewNodeWriter(ctx, client, a.Node, "strait-agent", a.log)
	}
	choiceFinal := a.state.Devices.Register("node addresses")
	look := make(chan struct{})
	a.watcher, err = netdev.NewWatcher(a.net, netdev.WatchConfig{
		Table: a.state.Devices, Log: a.log, Devices: a.cfg.Devices, NodeAddresses: a.addresses, Refresh: look,
	})
	if err != nil {
		return err
	}
	if err := a.load(a.mtuOf(slices.Collect(a.state.Devices.Snapshot().All()))); err != nil {
		return err
	}
	if err := a.keeper.Restore(ctx); err != nil {
		return err
	}
	registry := metric.NewRegistry("agent", a.Version)
	a.metrics = metric.NewAgent(registry, a.status)
	programming := metric.NewProgramming(registry, a.began)
	if err := a.newReconcilers(); err != nil {
		return err
	}
	a.announcements = a.newAnnouncements(ctx)
	if a.policies, err = a.newPolicies(metric.NewPolicy(registry)); err != nil {
		return err
	}
	defer a.policies.writer.Close()
	if a.cfg.Flows.Enabled {
		if a.flows, err = a.newFlows(); err != nil {
			return err
		}
		defer a.flows.close()
	} else if err := a.withdrawFlows(); err != nil {
		return err
	}
	if err := a.serveMetrics(ctx, group, metric.Server{Registry: registry, Log: a.log, More: a.furtherPaths()}); err != nil {
		return err
	}
	loops := []func(context.Context) error{
		source.Run,
		a.watcher.Run,
		control.NewNodes(a.Node, a.cfg, netdev.VXLANDevice, a.state, a.log).Run,
		control.NewServices(a.state, a.Node, a.cfg.Services, a.log).Run,
		a.policies.loop.Run,
		a.watchPolicy,
		func(ctx context.Context) error { return a.followNode(ctx, look, choiceFinal) },
		a.followDevices,
		func(ctx context.Context) error { a.keeper.Run(ctx, verifyEvery); return ctx.Err() },
		a.sweep,
		a.closeDeparted,
		a.answerHealthChecks,
		a.warmExplain,
		a.followTakeover,
		func(ctx context.Context) error {
			return programming.Run(ctx, a.state.EndpointSlices, a.state.Frontends)
		},
		a.serveAPI,
		a.serveCNI,
	}
	for _, r := range a.reconcilers {
		loops = append(loops, r.Run)
	}
	loops = append(loops, a.announceLoops()...)
	if a.flows != nil {
		loops = append(loops, a.readFlows, a.serveFlows)
	}
	for _, loop := range loops {
		group.Go(func() error { return loop(ctx) })
	}
	return group.Wait()
}

func (a *agent) newReconcilers() error {
	frontends, err := sync.NewFrontends(a.maps, uint32(a.began.Unix()), a.cfg.Services.MaglevSize)
	if err != nil {
		return err
	}
	a.frontends = frontends
	a.reconcilers = []reconciler{
		newReconciler(a, a.state.Remotes, sync.NewRemotes(a.maps, a.deviceIndex)),
		newReconciler(a, a.state.Routes, netdev.NewRoutes(a.net)),
		newReconciler(a, a.state.Frontends, frontends),
	}
	return nil
}

// followNode gives the keeper the node's pod CIDRs, and makes the choice of devices follow its addresses. The choice is final once
// they are known: while this node has no object, what was attached stays attached.
func (a *agent) followNode(ctx context.Context, look chan<- struct{}, choiceFinal func()) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.state.Nodes.Initialized():
	}
	var last state.Node
	for {
		nodes := a.state.Nodes.Snapshot()
		self, known := a.self()
		switch {
		case !known:
			a.report(a.subject(), errors.New("has no Node object: start the kubelet, or set --node-name to the name the kubelet uses"))
		case !self.Equal(last):
			a.adoptSelf(self)
			last = self
			// The second send is taken when the look that the first asked for is over.
			for range 2 {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case look <- struct{}{}:
				}
			}
			choiceFinal()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes.Changed():
		}
	}
}

func (a *agent) adoptSelf(self state.Node) {
	var cidrs []netip.Prefix
	for _, p := range self.PodCIDRs {
		if p.Addr().Is6() && a.cfg.IPv6 || p.Addr().Is4() && a.cfg.IPv4 {
			cidrs = append(cidrs, p)
		}
	}
	switch err := a.keeper.SetPools(cidrs); {
	case err != nil:
		a.report(a.subject(), err)
	case len(self.Addresses) == 0:
		a.report(a.subject(), errors.New("has no InternalIP address in its status: set the kubelet's --node-ip"))
	default:
		state.Clear(a.state.Problems, agentProblems, a.subject())
	}
}

// subject is what problems with this node's object are reported under.
func (a *agent) subject() string { return "node " + a.Node }

func (a *agent) sweep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(sweepEvery):
		}
		swept, err := a.maps.Sweep()
		if err != nil {
			a.report("connection table", err)
			continue
		}
		state.Clear(a.state.Problems, agentProblems, "connection table")
		a.log.Debug("connections swept", "seen", swept.Connections, "expired", swept.Expired, "took", swept.Took)
	}
}

// synced waits until the kernel holds what every source wants and pods can get addresses.
func (a *agent) synced(ctx context.Context) error {
	for _, r := range a.reconcilers {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.Pruned():
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.policies.loop.Ready():
	}
	for {
		nodes := a.state.Nodes.Snapshot()
		// A full pool is no reason to wait: the DELs that empty it come through the socket.
		if err := a.keeper.Status(ctx); err == nil || errors.Is(err, ipam.ErrExhausted) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes.Changed():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *agent) serveCNI(ctx context.Context) error {
	a.closeNewNode(ctx)
	if err := a.synced(ctx); err != nil {
		return err
	}
	socket := filepath.Join(a.cfg.RunDir, "cni.sock")
	s := server.New(server.Config{
		Socket: socket, StateDir: a.cfg.StateDir, Endpoints: countingAdds{a.keeper, a}, Gateway: netdev.Gateway,
		Problems: a.state.Problems, Log: a.log, Observe: a.observeCNI,
	})
	if err := s.Listen(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return a.open(ctx, socket) })
	return group.Wait()
}

func (a *agent) observeCNI(command wire.Command, code uint, took time.Duration) {
	a.metrics.CNI(string(command), code, took)
}

func newReconciler[T reconcile.Row[T]](a *agent, t *table.Table[T], ops reconcile.Ops[T]) reconciler {
	return reconcile.New(reconcile.Config[T]{Table: t, Ops: ops, Log: a.log, Observe: a.metrics.Reconciler(t.Name())})
}

// serveMetrics also answers the other agents' probes.
func (a *agent) serveMetrics(ctx context.Context, group *errgroup.Group, s metric.Server) error {
	if a.cfg.MetricsAddress == "" {
		return nil
	}
	s.Address, s.Ready = a.cfg.MetricsAddress, a.ready
	listener, err := s.Listen(ctx)
	if err != nil {
		return err
	}
	group.Go(func() error { return s.Serve(ctx, listener) })
	_, port, err := splitPort(a.cfg.MetricsAddress)
	if err != nil {
		return err
	}
	a.prober = probe.New(probe.Config{Nodes: a.state.Nodes, Self: a.Node, Port: port})
	group.Go(func() error { return a.prober.Run(ctx) })
	return nil
}

func (a *agent) serveAPI(ctx context.Context) error {
	listener, err := localapi.Listen(filepath.Join(a.cfg.RunDir, "agent.sock"))
	if err != nil {
		return err
	}
	return localapi.Serve(ctx, listener, a.provider(), a.log)
}

// furtherPaths are those that other parts of Strait ask for on the address of the metrics.
func (a *agent) furtherPaths() map[string]http.Handler {
	return map[string]http.Handler{
		"GET " + enforcement.Path: enforcement.Handler(enforcement.Tables{Node: a.Node, State: a.state}),
	}
}
