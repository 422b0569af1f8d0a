package relay

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/observer/merge"
	"github.com/strait-net/strait/internal/observer/wire"
)

// silence is how long a node may say nothing until it has failed: many of its beats.
const silence = 10 * time.Second

// server answers Hubble's clients.
type server struct {
	observerpb.UnimplementedObserverServer
	c       Config
	nodes   *nodes
	metrics *metric.Relay
}

// GetFlows implements observerpb.ObserverServer.
func (s *server) GetFlows(q *observerpb.GetFlowsRequest, stream grpc.ServerStreamingServer[observerpb.GetFlowsResponse]) error {
	defer s.metrics.Stream()()
	names, changed, err := s.nodes.names()
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	ctx, cancel := context.WithCancel(stream.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	how := merge.Config{Request: q, Name: s.c.Name, Patience: merge.Patience, Start: merge.Patience, Silence: silence}
	if !q.GetFollow() {
		how.Patience = silence // it has something to say, or has failed: order is worth more
	}
	m := merge.New(how)
	for _, name := range names {
		m.Join(s.source(name))
	}
	if q.GetFollow() {
		watching.Go(func() { s.members(ctx, m, names, changed) })
	}
	err = m.Run(ctx, func(r *observerpb.GetFlowsResponse) error {
		switch {
		case r.GetFlow() != nil:
			s.metrics.Flow()
		case r.GetLostEvents() != nil:
			s.metrics.Lost(r.GetLostEvents().GetNumEventsLost())
		}
		return stream.Send(r)
	})
	var refusal *merge.Refusal
	var unreachable *merge.Unreachable
	switch {
	case errors.As(err, &refusal):
		return refusal.Err
	case errors.As(err, &unreachable):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, merge.ErrTooMany):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return err
}

// members lets nodes join and leave a merge as they come and go, until ctx ends.
func (s *server) members(ctx context.Context, m *merge.Merge, in []string, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		var now []string
		now, changed, _ = s.nodes.names() // once they are known they stay known
		for _, name := range in {
			if !slices.Contains(now, name) {
				m.Leave(name)
			}
		}
		for _, name := range now {
			if !slices.Contains(in, name) {
				m.Join(s.source(name))
			}
		}
		in = now
	}
}

// source is a node as a merge asks it.
func (s *server) source(name string) merge.Source {
	var again []grpc.CallOption
	return merge.Source{Node: name, Ask: func(ctx context.Context, q *observerpb.GetFlowsRequest, hear func(*observerpb.GetFlowsResponse) error) error {
		err := s.ask(ctx, name, q, hear, again...)
		again = []grpc.CallOption{grpc.WaitForReady(true)} // that it does not answer has been told: now it is about when it does
		if _, left := s.nodes.client(name); errors.Is(left, errLeft) && q.GetFollow() {
			<-ctx.Done() // it is told by members
		}
		return err
	}}
}

func (s *server) ask(ctx context.Context, name string, q *observerpb.GetFlowsRequest, hear func(*observerpb.GetFlowsResponse) error, options ...grpc.CallOption) error {
	client, err := s.nodes.client(name)
	if err != nil {
		return err
	}
	stream, err := client.GetFlows(metadata.AppendToOutgoingContext(ctx, wire.Beat, wire.BeatEvery.String()), q, options...)
	if err != nil {
		return failure(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failure(err)
		}
		if err := hear(r); err != nil {
			return err
		}
	}
}

// failure is the error of a call to a node, for those who read of it in the stream.
func failure(err error) error {
	if status.Code(err) == codes.InvalidArgument {
		return &merge.Refusal{Err: err}
	}
	return errors.New(wire.Reason(err))
}
