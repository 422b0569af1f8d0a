package agent

import (
	"context"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/healthcheck"
)

// modeLook is how often the mode of services is looked at: a takeover changes it.
const modeLook = time.Second

// answerHealthChecks serves the healthCheckNodePorts while services are this node's; the ports are kube-proxy's otherwise.
func (a *agent) answerHealthChecks(ctx context.Context) error {
	for {
		if err := a.await(ctx, func(m config.ServiceMode) bool { return m == config.ServicesOn }); err != nil {
			return err
		}
		serving, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = healthcheck.New(healthcheck.Config{
				Node: a.Node, State: a.state, Healthy: a.pruned, Log: a.log,
			}).Run(serving) // it ends with its context only
		}()
		err := a.await(ctx, func(m config.ServiceMode) bool { return m != config.ServicesOn })
		stop()
		<-ended
		if err != nil {
			return err
		}
	}
}

// await waits for a mode of services.
func (a *agent) await(ctx context.Context, wanted func(config.ServiceMode) bool) error {
	for {
		if mode, _ := a.serviceMode(); wanted(mode) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(modeLook):
		}
	}
}

// pruned reports whether the kernel holds what every source wants.
func (a *agent) pruned() bool {
	for _, r := range a.reconcilers {
		select {
		case <-r.Pruned():
		default:
			return false
		}
	}
	return true
}
