package cli

import (
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
)

// merger puts what several nodes say in order of time. A flow is let through when every other node has said something later, has nothing more
// to say, or has kept it waiting for too long.
type merger struct {
	patience time.Duration
	lanes    []lane
}

// lane is what one node has said and nobody has seen yet.
type lane struct {
	queue []waiting
	mark  time.Time // up to when the node has told everything
	done  bool
}

type waiting struct {
	response *observerpb.GetFlowsResponse
	at       time.Time // of the flow
	came     time.Time
}

// add notes what node i said at a time.
func (m *merger) add(i int, r *observerpb.GetFlowsResponse, now time.Time) {
	l := &m.lanes[i]
	at := r.GetTime().AsTime()
	if at.After(l.mark) {
		l.mark = at
	}
	if r.GetNodeStatus() == nil {
		l.queue = append(l.queue, waiting{r, at, now})
	}
}

// next returns the flow whose turn it is, and whose it is; false: none yet.
func (m *merger) next(now time.Time) (*observerpb.GetFlowsResponse, int, bool) {
	first := -1
	for i := range m.lanes {
		if q := m.lanes[i].queue; len(q) > 0 && (first < 0 || q[0].at.Before(m.lanes[first].queue[0].at)) {
			first = i
		}
	}
	if first < 0 {
		return nil, 0, false
	}
	head := m.lanes[first].queue[0]
	if now.Sub(head.came) < m.patience {
		for i := range m.lanes {
			if l := &m.lanes[i]; len(l.queue) == 0 && !l.done && l.mark.Before(head.at) {
				return nil, 0, false
			}
		}
	}
	m.lanes[first].queue = m.lanes[first].queue[1:]
	return head.response, first, true
}

// open reports whether a node may say more.
func (m *merger) open() bool {
	for i := range m.lanes {
		if !m.lanes[i].done {
			return true
		}
	}
	return false
}
