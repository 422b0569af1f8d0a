package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"

	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/observer/wire"
)

const (
	// An agent that does not know the nodes itself is left after peersTimeout for another one.
	peersTimeout = 5 * time.Second
	retryPeers   = time.Second
)

// peers learns from an agent which nodes there are.
type peers struct {
	address      string
	certificates *wire.Certificates
	nodes        *nodes
	metrics      *metric.Relay
	log          *slog.Logger
}

// run asks an agent, and another one when it is gone: behind the address there may be many. Meanwhile the nodes are those known last.
func (p peers) run(ctx context.Context) error {
	told := ""
	for {
		err := p.listen(ctx, func() {
			p.log.Info("an agent tells which nodes there are", "address", p.address)
			told = ""
		})
		p.metrics.Peers(false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := wire.Reason(err)
		p.nodes.trouble(fmt.Errorf("ask %s: %s", p.address, text))
		if text != told {
			p.log.Warn("no agent tells which nodes there are", "address", p.address, "err", text)
			told = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryPeers):
		}
	}
}

// listen makes a connection of its own each time, so that it may be another agent that answers.
func (p peers) listen(ctx context.Context, answered func()) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address, p.certificates.Client(wire.ObserverName), wire.Alive(),
		grpc.WithReadBufferSize(buffer), grpc.WithWriteBufferSize(buffer))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // of a client: never fails
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := fmt.Errorf("no answer in %v", peersTimeout)
	timer := time.AfterFunc(peersTimeout, func() { cancel(late) })
	defer timer.Stop()
	stream, err := peerpb.NewPeerClient(conn).Notify(ctx, &peerpb.NotifyRequest{})
	if err == nil {
		err = p.hear(stream, func() {
			timer.Stop()
			answered()
			p.nodes.trouble(nil)
			p.metrics.Peers(true)
		})
	}
	if errors.Is(context.Cause(ctx), late) {
		return late
	}
	return err
}

// hear takes in what an agent says.
func (p peers) hear(stream grpc.ServerStreamingClient[peerpb.ChangeNotification], answered func()) error {
	header, err := stream.Header()
	if err != nil {
		return err
	}
	beginning := -1 // how many notices say which nodes there are; negative: this agent does not say
	if values := header.Get(wire.Peers); len(values) == 1 {
		if beginning, err = strconv.Atoi(values[0]); err != nil {
			return fmt.Errorf("%s: %w", wire.Peers, err)
		}
	}
	told := map[string]bool{}
	for count := 0; ; count++ {
		if count == 0 && beginning >= 0 || count == 1 && beginning < 0 {
			answered()
		}
		if count == beginning {
			p.nodes.settle(told)
		}
		n, err := stream.Recv()
		if err != nil {
			return err
		}
		switch n.GetType() {
		case peerpb.ChangeNotificationType_PEER_ADDED, peerpb.ChangeNotificationType_PEER_UPDATED:
			name := n.GetTls().GetServerName()
			if name == "" {
				name = wire.ObserverName
			}
			told[n.GetName()] = true
			p.nodes.put(n.GetName(), n.GetAddress(), name)
		case peerpb.ChangeNotificationType_PEER_DELETED:
			delete(told, n.GetName())
			p.nodes.drop(n.GetName())
		}
	}
}
