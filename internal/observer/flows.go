package observer

import (
	"context"
	"errors"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/observer/wire"
)

const (
	// disorder is how far flows may be out of order of time in the store.
	disorder = time.Second
	// delay is how long a flow may be on its way from the kernel into the store.
	delay = 200 * time.Millisecond
	// Beats may be asked for this often.
	minBeat, maxBeat = 10 * time.Millisecond, time.Hour
)

// beatsOf is how often the client wants to hear that the node is there; 0: never.
func beatsOf(ctx context.Context) (time.Duration, error) {
	values := metadata.ValueFromIncomingContext(ctx, wire.Beat)
	if len(values) == 0 {
		return 0, nil
	}
	every, err := time.ParseDuration(values[0])
	if err != nil || every < minBeat || every > maxBeat || len(values) > 1 {
		return 0, status.Errorf(codes.InvalidArgument, "metadata %s: %q: want one time from %v to %v, such as %v", wire.Beat, values, minBeat, maxBeat, wire.BeatEvery)
	}
	return every, nil
}

// span is the part of what is remembered that a request asks for.
type span struct {
	number       uint64 // 0: all
	first        bool
	follow       bool
	since, until time.Time // zero: no bound
}

// asking are the fields that requests for flows and for events of agents share.
type asking interface {
	GetNumber() uint64
	GetFirst() bool
	GetFollow() bool
	GetSince() *timestamppb.Timestamp
	GetUntil() *timestamppb.Timestamp
}

func spanOf(q asking) (s span, err error) {
	s = span{number: q.GetNumber(), first: q.GetFirst(), follow: q.GetFollow()}
	if s.first && s.follow {
		return s, status.Error(codes.InvalidArgument, "first and follow: the first flows have been, there is nothing to wait for; want one of them")
	}
	for _, t := range []struct {
		name string
		from *timestamppb.Timestamp
		to   *time.Time
	}{{"since", q.GetSince(), &s.since}, {"until", q.GetUntil(), &s.until}} {
		if t.from == nil {
			continue
		}
		if err := t.from.CheckValid(); err != nil {
			return s, status.Errorf(codes.InvalidArgument, "%s: %v", t.name, err)
		}
		*t.to = t.from.AsTime()
	}
	return s, nil
}

// early and late report whether a time is outside.
func (s *span) early(t time.Time) bool { return !s.since.IsZero() && t.Before(s.since) }
func (s *span) late(t time.Time) bool  { return !s.until.IsZero() && t.After(s.until) }

// GetFlows implements observerpb.ObserverServer.
func (s *Server) GetFlows(req *observerpb.GetFlowsRequest, stream grpc.ServerStreamingServer[observerpb.GetFlowsResponse]) error {
	at, err := spanOf(req)
	if err != nil {
		return err
	}
	choose, err := s.setting.compileFilters(req.GetWhitelist(), req.GetBlacklist())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	only, err := maskOf(req.GetFieldMask())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	every, err := beatsOf(stream.Context())
	if err != nil {
		return err
	}
	r := &reading{server: s, span: at, filters: choose, mask: only, every: every, stream: stream}
	err = r.run(stream.Context())
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return err
}

// reading is one client's way through the flows. It has a position of its own in the store: a client that reads slowly holds up nobody
// and is told how many flows it has missed.
type reading struct {
	server *Server
	span
	filters
	mask   mask
	every  time.Duration // of beats; 0: none
	stream grpc.ServerStreamingServer[observerpb.GetFlowsResponse]

	cursor *flow.Cursor
	newest uint64 // when reading began: where it ends unless it follows
	skip   uint64 // parts at the beginning that are more than asked for
	sent   uint64
	spoke  time.Time // when the client was told something last, if there are beats
	parts  []part
}

func (r *reading) run(ctx context.Context) error {
	r.begin()
	if err := r.beat(time.Time{}); err != nil {
		return err
	}
	for {
		f, missed, err := r.next(ctx)
		if errors.Is(err, errSilence) {
			if err := r.beat(time.Now().Add(-delay)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if missed > 0 {
			if err := r.lost(flowpb.LostEventSource_HUBBLE_RING_BUFFER, missed, time.Now()); err != nil {
				return err
			}
		}
		if f == nil || r.late(f.Time.Add(-disorder)) {
			return nil
		}
		if done, err := r.tell(f); done || err != nil {
			return err
		}
		if r.every > 0 && time.Since(r.spoke) >= r.every { // many flows, none of them wanted
			if err := r.beat(f.Time.Add(-delay)); err != nil {
				return err
			}
		}
	}
}

// errSilence says that nothing has come for as long as the client is to be left alone.
var errSilence = errors.New("silence")

// next returns nil when there is no more.
func (r *reading) next(ctx context.Context) (*flow.Flow, uint64, error) {
	if r.follow && r.every == 0 {
		f, missed, err := r.cursor.Next(ctx)
		return &f, missed, err
	}
	if r.follow {
		if f, missed, ok := r.cursor.Try(); ok {
			return &f, missed, nil
		}
		wait, cancel := context.WithDeadlineCause(ctx, r.spoke.Add(r.every), errSilence)
		defer cancel()
		f, missed, err := r.cursor.Next(wait)
		if err != nil {
			err = context.Cause(wait)
		}
		return &f, missed, err
	}
	f, missed, ok := r.cursor.Try()
	if !ok || f.Number > r.newest {
		return nil, missed, ctx.Err()
	}
	return &f, missed, ctx.Err()
}

// tell sends what the client wants of an event, and reports whether that was all it asked for.
func (r *reading) tell(f *flow.Flow) (done bool, err error) {
	if f.Kind == flow.Lost {
		return false, r.lost(flowpb.LostEventSource_PERF_EVENT_RING_BUFFER, f.LostRecords, f.Time)
	}
	if r.early(f.Time) || r.late(f.Time) {
		return false, nil
	}
	r.parts = partsOf(f, r.parts[:0])
	for i := range r.parts {
		p := &r.parts[i]
		if !r.pass(p) {
			continue
		}
		if r.skip > 0 {
			r.skip--
			continue
		}
		out := r.server.render(p)
		answer := &observerpb.GetFlowsResponse{NodeName: out.NodeName, Time: out.Time}
		answer.ResponseTypes = &observerpb.GetFlowsResponse_Flow{Flow: r.mask.of(out)}
		if err := r.send(answer); err != nil {
			return true, err
		}
		if r.sent++; r.number > 0 && !r.follow && r.sent >= r.number {
			return true, nil
		}
	}
	return false, nil
}

func (r *reading) send(answer *observerpb.GetFlowsResponse) error {
	if r.every > 0 {
		defer func() { r.spoke = time.Now() }()
	}
	return r.stream.Send(answer)
}

// beat says, to who wants to know, that the node is there, and up to when it has told everything; zero: that is not known.
func (r *reading) beat(upTo time.Time) error {
	if r.every == 0 {
		return nil
	}
	answer := &observerpb.GetFlowsResponse{
		NodeName: r.server.nodeName,
		ResponseTypes: &observerpb.GetFlowsResponse_NodeStatus{NodeStatus: &relaypb.NodeStatusEvent{
			StateChange: relaypb.NodeState_NODE_CONNECTED, NodeNames: []string{r.server.nodeName},
		}},
	}
	if !upTo.IsZero() {
		answer.Time = timestamppb.New(upTo)
	}
	return r.send(answer)
}

func (r *reading) lost(where flowpb.LostEventSource, n uint64, at time.Time) error {
	t := timestamppb.New(at)
	return r.send(&observerpb.GetFlowsResponse{
		NodeName: r.server.nodeName, Time: t,
		ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{Source: where, NumEventsLost: n, First: t, Last: t}},
	})
}

// begin finds where to begin: since a time, at the oldest flow, after the newest, or before the last ones that are wanted.
func (r *reading) begin() {
	store := r.server.c.Flows
	for f := range store.Backward() {
		r.newest = f.Number
		break
	}
	switch {
	case !r.since.IsZero():
		r.cursor = store.Since(r.since)
	case r.follow && r.number == 0:
		r.cursor = store.Last(0)
	case r.first || r.number == 0:
		r.cursor = store.Oldest()
	default:
		r.rewind()
	}
}

// rewind goes back until there are as many flows as are wanted.
func (r *reading) rewind() {
	store := r.server.c.Flows
	found := uint64(0)
	for f := range store.Backward() {
		if f.Number > r.newest || r.late(f.Time) {
			continue
		}
		r.parts = partsOf(&f, r.parts[:0])
		for i := range r.parts {
			if r.pass(&r.parts[i]) {
				found++
			}
		}
		if found >= r.number {
			r.skip = found - r.number
			r.cursor = store.From(f.Number)
			return
		}
	}
	r.cursor = store.Oldest()
}
