// Package relay serves the flows of all nodes in one stream, as Hubble's relay does: docs/design/0009-relay.md.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/observer/wire"
)

// lookAtCertificates is how often files of certificates are looked at when nobody connects.
const lookAtCertificates = 10 * time.Second

// Config is what the relay needs.
type Config struct {
	Relay   config.Relay
	Name    string // of this relay, for clients
	Version string
	Log     *slog.Logger
}

// Run serves until ctx ends.
func Run(ctx context.Context, c Config) error {
	if c.Relay.Peer == "" {
		return errors.New(`relay.peer: "": without an agent to ask no node is known; want host:port of an agent's flows.listen, or of a Service of agents`)
	}
	if c.Relay.Listen == "" && c.Relay.Local == "" {
		return errors.New(`relay.listen, relay.local: both are "", there is nothing to listen on; want host:port in one of them`)
	}
	registry := metric.NewRegistry("relay", c.Version)
	metrics := metric.NewRelay(registry)
	certificates := wire.NewCertificates(c.Relay.TLSDir)
	known := newNodes(certificates, metrics, c.Log)
	s := &server{c: c, nodes: known, metrics: metrics}
	up := wire.Healthy(observerpb.Observer_ServiceDesc.ServiceName)
	doors := []door{
		{"relay.listen", c.Relay.Listen, func(ctx context.Context, l net.Listener) error { return s.serve(ctx, l, up, certificates.Server()) }},
		{"relay.local", c.Relay.Local, func(ctx context.Context, l net.Listener) error { return s.serve(ctx, l, up) }},
		{"relay.metricsAddress", c.Relay.MetricsAddress, metric.Server{Registry: registry, Ready: known.ready, Log: c.Log}.Serve},
	}
	listeners, err := open(ctx, doors)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range listeners {
		if l != nil {
			group.Go(func() error { return doors[i].serve(ctx, l) })
		}
	}
	group.Go(func() error { return certificates.Watch(ctx, lookAtCertificates, c.reportCertificates) })
	group.Go(func() error { return tellHealth(ctx, known, up) })
	group.Go(func() error { return known.run(ctx) })
	group.Go(func() error { return peers{c.Relay.Peer, certificates, known, metrics, c.Log}.run(ctx) })
	return group.Wait()
}

// door is an address that is listened on, unless it is empty. serve closes the listener.
type door struct {
	key, address string
	serve        func(context.Context, net.Listener) error
}

// open opens all doors or none; a door without an address has no listener.
func open(ctx context.Context, doors []door) ([]net.Listener, error) {
	out := make([]net.Listener, len(doors))
	for i, d := range doors {
		if d.address == "" {
			continue
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", d.address)
		if err != nil {
			for _, opened := range out {
				if opened != nil {
					_ = opened.Close() // nobody has connected
				}
			}
			return nil, fmt.Errorf("%s %q: %w", d.key, d.address, err)
		}
		out[i] = l
	}
	return out, nil
}

func (s *server) serve(ctx context.Context, l net.Listener, up *health.Server, options ...grpc.ServerOption) error {
	return wire.Serve(ctx, l, func(server *grpc.Server) { observerpb.RegisterObserverServer(server, s) }, up, options...)
}

func (c Config) reportCertificates(err error) {
	if err != nil {
		c.Log.Warn("certificates cannot be read", "err", err)
		return
	}
	c.Log.Info("certificates read", "dir", c.Relay.TLSDir)
}

// tellHealth lets the health service say what readiness is.
func tellHealth(ctx context.Context, n *nodes, up *health.Server) error {
	for {
		changed := n.changes()
		if n.ready() == nil {
			up.Resume()
		} else {
			up.Shutdown()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
