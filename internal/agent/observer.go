package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	stdsync "sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
	"github.com/strait-net/strait/internal/table"
)

const (
	observerSubject = "flows for other nodes"
	// lookAtCertificates is how often files of certificates are looked at when nobody connects.
	lookAtCertificates = 10 * time.Second
	retryObserver      = 5 * time.Second
)

// serveFlows answers those who ask for flows: on the socket, and for other nodes by TLS if there is an address for that.
func (a *agent) serveFlows(ctx context.Context) error {
	port, err := portOf(a.cfg.Flows.Listen)
	if err != nil {
		return err
	}
	view := status.Sources{State: a.state, Node: a.Node, Policy: a.policies.view.sources()}
	names := deviceNames{endpoints: a.state.Endpoints, devices: a.state.Devices}
	server := observer.New(observer.Config{
		Node: a.Node, Cluster: a.cfg.ClusterName, Version: a.Version, Began: a.began, Flows: a.flows.store, State: a.state, Port: port,
		Explain: func(f *flow.Flow, way policy.Way) (policy.Explanation, bool) { return view.Denial(f, way) },
		Device:  names.of,
	})
	listener, err := localapi.Listen(filepath.Join(a.cfg.RunDir, observer.SocketName))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error { return server.Serve(ctx, listener) })
	if port != 0 {
		group.Go(func() error { return a.serveFlowsByTLS(ctx, server) })
	}
	return group.Wait()
}

// withdrawFlows removes the socket that an agent which told of flows has left, so that who asks is told that this one does not.
func (a *agent) withdrawFlows() error {
	if err := os.Remove(filepath.Join(a.cfg.RunDir, observer.SocketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove socket of flows: %w", err)
	}
	return nil
}

// serveFlowsByTLS goes on without certificates or the address until they are there: the node forwards without it.
func (a *agent) serveFlowsByTLS(ctx context.Context, server *observer.Server) error {
	certificates := wire.NewCertificates(a.cfg.Flows.TLSDir)
	report := func(err error) {
		if err != nil {
			a.report(observerSubject, err)
			return
		}
		state.Clear(a.state.Problems, agentProblems, observerSubject)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return certificates.Watch(ctx, lookAtCertificates, report) })
	group.Go(func() error {
		for {
			var config net.ListenConfig
			listener, err := config.Listen(ctx, "tcp", a.cfg.Flows.Listen)
			if err == nil {
				err = server.Serve(ctx, listener, certificates.Server())
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			report(fmt.Errorf("flows.listen %q: %w", a.cfg.Flows.Listen, err))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retryObserver):
			}
		}
	})
	return group.Wait()
}

// portOf is the port of host:port; of nothing 0.
func portOf(address string) (uint16, error) {
	if address == "" {
		return 0, nil
	}
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0, fmt.Errorf("flows.listen %q: want host:port: %w", address, err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("flows.listen %q: port %q: want 1 to 65535", address, text)
	}
	return uint16(port), nil
}

// deviceNames knows the devices of pods and of the node by their numbers.
type deviceNames struct {
	endpoints *table.Table[state.Endpoint]
	devices   *table.Table[state.Device]

	mu    stdsync.Mutex // guards everything below
	seen  [2]table.Revision
	names map[uint32]string
}

func (d *deviceNames) of(index uint32) string {
	endpoints, devices := d.endpoints.Snapshot(), d.devices.Snapshot()
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := [2]table.Revision{endpoints.Revision(), devices.Revision()}; now != d.seen || d.names == nil {
		d.seen, d.names = now, map[uint32]string{}
		for e := range endpoints.All() {
			d.names[uint32(e.DeviceIndex)] = e.Device
		}
		for v := range devices.All() {
			d.names[uint32(v.Index)] = v.Name
		}
	}
	return d.names[index]
}
