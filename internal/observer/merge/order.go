package merge

import (
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
)

// order puts what several nodes say in order of time. A flow is let through when every other node has said something later, has nothing more to
// say, or has kept it waiting for too long.
type order struct {
	patience time.Duration
	lanes    []*lane
	// progress is when the client took the last answer: while it takes its time nobody else is late.
	progress time.Time
	reached  time.Time // of the latest flow that was let through
}

// waiting is a flow that nobody has been told yet.
type waiting struct {
	response *Response
	at       time.Time // of the flow
	came     time.Time
}

// add notes what a node said.
func (o *order) add(l *lane, r *Response, now time.Time) {
	if r.GetTime() == nil {
		return
	}
	at := r.GetTime().AsTime()
	if isGap(r) {
		at = l.mark
	}
	if at.After(l.mark) {
		l.mark = at
	}
	if !l.mark.Before(o.reached) {
		l.late = false
	}
	if r.GetNodeStatus() == nil {
		l.queue = append(l.queue, waiting{r, at, now})
	}
}

// isGap reports whether flows were overwritten before the node could tell them: it says so when it finds out, not when they happened.
func isGap(r *Response) bool {
	return r.GetLostEvents().GetSource() == flowpb.LostEventSource_HUBBLE_RING_BUFFER
}

// next returns the flow whose turn it is, and whose it is; nil: none yet, and how long to wait for it.
func (o *order) next(now time.Time) (*Response, *lane, time.Duration) {
	var first *lane
	for _, l := range o.lanes {
		if len(l.queue) > 0 && (first == nil || l.queue[0].at.Before(first.queue[0].at)) {
			first = l
		}
	}
	if first == nil {
		return nil, nil, idle
	}
	head := first.queue[0]
	since := head.came
	if o.progress.After(since) {
		since = o.progress
	}
	left := o.patience - now.Sub(since)
	for _, l := range o.lanes {
		if len(l.queue) > 0 || l.silent() || l.late || !l.mark.Before(head.at) {
			continue
		}
		if left > 0 {
			return nil, nil, left
		}
		l.late = true // until it has caught up: a node whose clock is slow must not make each flow wait
	}
	first.queue[0] = waiting{}
	first.queue = first.queue[1:]
	if head.at.After(o.reached) {
		o.reached = head.at
	}
	return head.response, first, 0
}
