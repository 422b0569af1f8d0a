package merge

import (
	"context"
	"errors"
	"fmt"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// state is that of a node:
//
//	asked --> speaking --> ended
//	   \      ^   |
//	    v    /    v
//	    failing <-+         (asked again, when flows are followed)
//
// and from each of them to gone.
type state int

const (
	asked    state = iota // has not answered yet
	speaking              // has answered, and will say more
	failing               // does not answer
	ended                 // has said everything
	gone                  // has left
)

// lane is a node and what it has said and nobody has been told yet. It is guarded by the mutex of its Merge.
type lane struct {
	Source
	cancel context.CancelFunc
	room   chan struct{} // one token for each flow in queue
	queue  []waiting
	mark   time.Time // up to when the node has told everything
	late   bool      // is not waited for

	state  state
	since  time.Time // when it was asked first
	met    bool      // has answered at least once
	err    error     // of failing
	said   said      // what the client knows of it
	memory memory
}

// silent reports whether nothing is to be expected of the node.
func (l *lane) silent() bool { return l.state != asked && l.state != speaking }

// startLocked begins to ask a node.
func (m *Merge) startLocked(l *lane) {
	ctx, cancel := context.WithCancel(m.ctx)
	l.cancel = cancel
	m.asking.Go(func() {
		defer cancel()
		m.ask(ctx, l)
	})
}

// ask asks a node, again and again if flows are followed, until ctx ends.
func (m *Merge) ask(ctx context.Context, l *lane) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		spoke, err := m.askOnce(ctx, l)
		if ctx.Err() != nil || !m.ended(l, err) {
			return
		}
		if spoke {
			wait = retryMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// askOnce ends with the answer, or when the node says nothing for too long.
func (m *Merge) askOnce(ctx context.Context, l *lane) (spoke bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := fmt.Errorf("no answer in %v", m.Silence)
	silence := time.AfterFunc(m.Silence, func() { cancel(silent) })
	defer silence.Stop()
	err = l.Ask(ctx, m.request(l), func(r *Response) error {
		silence.Stop() // whoever is told it may take as long as he wants
		defer silence.Reset(m.Silence)
		spoke = true
		return m.hear(ctx, l, r)
	})
	if errors.Is(context.Cause(ctx), silent) {
		err = silent
	}
	return spoke, err
}

// request is what a node is asked now: at the beginning what the client asked for, later what has happened since then.
func (m *Merge) request(l *lane) *observerpb.GetFlowsRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !l.met && !m.begun && l.memory.floor.IsZero() {
		return m.Request
	}
	q := proto.CloneOf(m.Request)
	since := l.memory.again()
	if q.Since != nil && since.Before(q.Since.AsTime()) {
		since = q.Since.AsTime()
	}
	if since.IsZero() {
		since = m.began
	}
	if q.Follow {
		q.Number, q.Since = 0, timestamppb.New(since)
	}
	return q
}

// hear notes what a node said. It blocks while the node is too far ahead.
func (m *Merge) hear(ctx context.Context, l *lane, r *Response) error {
	beat := r.GetNodeStatus() != nil
	if !beat {
		select {
		case l.room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.state != speaking && l.state != gone {
		l.state, l.met, l.err = speaking, true, nil
		m.changed = true
	}
	if !beat && (l.state == gone || l.memory.known(r)) {
		<-l.room
		return nil
	}
	m.order.add(l, r, time.Now())
	m.wakeLocked()
	return nil
}

// ended notes how a node's answer ended, and reports whether it is to be asked again.
func (m *Merge) ended(l *lane, err error) (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.changedLocked()
	follow := m.Request.GetFollow()
	if err == nil && follow && m.Request.GetUntil() == nil {
		err = errEnded
	}
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		m.refused = refusal
		return false
	case err == nil:
		l.state, l.met = ended, true
		return false
	}
	l.state, l.err = failing, err
	return follow
}
