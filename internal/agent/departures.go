package agent

import (
	"context"

	"github.com/strait-net/strait/internal/datapath/sockets"
	"github.com/strait-net/strait/internal/departure"
)

// closeDeparted closes connections to backends that have vanished, until ctx ends.
func (a *agent) closeDeparted(ctx context.Context) error {
	table, err := sockets.New(a.maps)
	if err != nil {
		return err
	}
	defer table.Release()
	cfg := departure.Config{
		Node: a.Node, State: a.state, Backends: a.frontends, Loads: a.maps, Sockets: table, Log: a.log,
	}
	if a.client != nil {
		cfg.Alive = a.client.PodLives
	}
	return departure.New(cfg).Run(ctx)
}
