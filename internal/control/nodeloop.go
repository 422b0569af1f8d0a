package control

import (
	"context"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	nodeProblems = "nodes"                // source of the problems the node loop reports
	nodePause    = 100 * time.Millisecond // least time between two computations, so that a burst of nodes costs few of them
)

// apiServerService is the Service whose endpoints are the API servers.
const apiServerService = state.APIServerService

// Nodes keeps state.Remotes and state.Routes as the nodes, this node's devices and the configuration want them.
type Nodes struct {
	self   string
	cfg    config.Config
	tunnel string
	state  *state.State
	log    *slog.Logger
	done   []func()
}

// NewNodes returns the loop of node self; tunnelDevice is the name of the tunnel's device. It registers with the tables it writes.
func NewNodes(self string, cfg config.Config, tunnelDevice string, st *state.State, log *slog.Logger) *Nodes {
	return &Nodes{
		self: self, cfg: cfg, tunnel: tunnelDevice, state: st, log: log,
		done: []func(){st.Remotes.Register(nodeProblems), st.Routes.Register(nodeProblems)},
	}
}

// Run computes after every change until ctx ends. It begins when the intent tables and the devices are known whole.
func (n *Nodes) Run(ctx context.Context) error {
	s := n.state
	if err := all(ctx, s.Nodes.Initialized(), s.Devices.Initialized(), s.EndpointSlices.Initialized()); err != nil {
		return err
	}
	for {
		nodes, devices, endpoints := s.Nodes.Snapshot(), s.Devices.Snapshot(), s.EndpointSlices.Snapshot()
		begin := time.Now()
		n.compute()
		pause := max(nodePause, 4*time.Since(begin)) // at most a fifth of a core, however many nodes there are
		for same := true; same; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-nodes.Changed():
				same = false
			case <-devices.Changed():
				same = false
			case <-endpoints.Changed():
				// Most slices are not the API server's.
				before := apiServers(endpoints)
				endpoints = s.EndpointSlices.Snapshot()
				same = slices.Equal(before, apiServers(endpoints))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// compute writes what follows from the present state. While this node has no object nothing is changed: it would take
// the node's own rows away.
func (n *Nodes) compute() {
	s := n.state
	if _, _, ok := s.Nodes.Snapshot().Get(n.self); !ok {
		state.Report(s.Problems, nodeProblems, time.Now(), []state.Problem{{
			Subject: subject(n.self), Text: "has no Node object; what was programmed stays as it is",
		}})
		return
	}
	held := s.Remotes.Snapshot()
	ways := Compile(Cluster{
		Self: n.self, Mode: n.cfg.RoutingMode, IPv4: n.cfg.IPv4, IPv6: n.cfg.IPv6, TunnelDevice: n.tunnel,
		Nodes:      slices.Collect(s.Nodes.Snapshot().All()),
		Devices:    slices.Collect(s.Devices.Snapshot().All()),
		APIServers: append(apiServers(s.EndpointSlices.Snapshot()), n.configuredServer()...),
		Held: func(p netip.Prefix) (state.Remote, bool) {
			row, _, ok := held.Get(p.String())
			return row, ok
		},
	})
	write(s.Remotes, ways.Remotes)
	write(s.Routes, ways.Routes)
	state.Report(s.Problems, nodeProblems, time.Now(), ways.Problems)
	for _, done := range n.done {
		done()
	}
	n.done = nil
	n.log.Debug("nodes computed", "remotes", len(ways.Remotes), "routes", len(ways.Routes), "problems", len(ways.Problems))
}

// configuredServer returns the address of api.server if it is one.
func (n *Nodes) configuredServer() []netip.Addr {
	u, err := url.Parse(n.cfg.API.Server)
	if err != nil {
		return nil
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil || a.IsLoopback() {
		return nil
	}
	return []netip.Addr{a.Unmap()}
}

func apiServers(endpoints table.Snapshot[state.EndpointSlice]) []netip.Addr {
	var out []netip.Addr
	for s := range endpoints.By(state.SlicesByService, apiServerService) {
		for _, e := range s.Endpoints {
			out = append(out, e.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
