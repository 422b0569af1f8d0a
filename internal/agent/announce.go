package agent

import (
	"context"

	"github.com/strait-net/strait/internal/announce"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/probe"
)

// newAnnouncements returns the reconciler that makes this node answer for service addresses. It is not among those that the node's
// readiness waits for: it waits for other nodes.
func (a *agent) newAnnouncements(ctx context.Context) reconciler {
	return newReconciler(a, a.state.Announcements, sync.NewAnnouncements(a.maps, announce.NewHerald(ctx, a.log)))
}

// announceLoops choose this node's share of the service addresses on its networks and answer for it.
func (a *agent) announceLoops() []func(context.Context) error {
	c := announce.Config{Self: a.Node, State: a.state, Enabled: a.cfg.Services.Announce, Log: a.log}
	for _, other := range a.reconcilers {
		c.After = append(c.After, other.Pruned())
	}
	loops := []func(context.Context) error{a.announcements.Run}
	if a.prober != nil {
		watch := probe.NewWatch(probe.WatchConfig{Nodes: a.state.Nodes, Port: a.prober.Port, Slow: a.prober})
		c.Peers = watch
		loops = append(loops, watch.Run)
	}
	return append(loops, announce.NewLoop(c).Run)
}
