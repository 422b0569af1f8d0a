// Package merge asks the observers of several nodes the same, and makes one stream of what they say, in order of time.
package merge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
)

const (
	// Patience is how long a flow waits for a node that says nothing, where nothing else is said.
	Patience = 2 * time.Second
	// ahead is how many flows of a node are read before they are told: then the node waits. Of very many nodes it is fewer, aheadAll together,
	// but not less than aheadMin.
	ahead, aheadAll, aheadMin = 256, 1 << 14, 16
	// A node that failed is asked again after retryMin, then after twice that, up to retryMax.
	retryMin, retryMax = 500 * time.Millisecond, 5 * time.Second
)

// Response is what an observer says.
type Response = observerpb.GetFlowsResponse

// Source is a node that can be asked.
type Source struct {
	Node string
	// Ask asks the node, and hands each answer to hear until there is no more (nil) or until hear fails. hear blocks while the node is too far
	// ahead. The node has to say now and then that it is there: see wire.Beat.
	Ask func(ctx context.Context, q *observerpb.GetFlowsRequest, hear func(*Response) error) error
}

// Refusal is the error of a node that will not answer this request, as no other node would. It ends the merge.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns what the node said.
func (r *Refusal) Unwrap() error { return r.Err }

// Unreachable is the error when no node has answered.
type Unreachable struct{ Nodes []Failure }

// Failure is why a node has not answered.
type Failure struct {
	Node string
	Err  error
}

func (u *Unreachable) Error() string {
	const named = 5
	if len(u.Nodes) == 0 {
		return "there is no node to ask"
	}
	var reasons []string
	for _, f := range u.Nodes[:min(named, len(u.Nodes))] {
		reasons = append(reasons, f.Node+": "+f.Err.Error())
	}
	if more := len(u.Nodes) - named; more > 0 {
		reasons = append(reasons, fmt.Sprintf("and %d more", more))
	}
	return "no node answers: " + strings.Join(reasons, "; ")
}

// Config is what a Merge needs.
type Config struct {
	Request *observerpb.GetFlowsRequest
	// Name is who tells of nodes; it may be empty.
	Name string
	// Patience is how long the others wait for a node that says nothing, and Start how long the beginning waits for one that has not answered.
	Patience, Start time.Duration
	// Silence is how long a node may say nothing until it has failed.
	Silence time.Duration
}

// Merge is one request to many nodes. Run tells what they say; nodes may join and leave meanwhile.
type Merge struct {
	Config
	began time.Time

	wake   chan struct{} // room for one: something has changed below
	asking sync.WaitGroup

	mu      sync.Mutex // guards everything below
	ctx     context.Context
	order   order
	left    map[string]time.Time // nodes that are gone: the last flow they told
	begun   bool                 // the client knows who is there
	started time.Time            // since when
	changed bool                 // a node's state may be news
	refused *Refusal
	number  number
}

// New returns a merge without nodes.
func New(c Config) *Merge {
	return &Merge{
		Config: c, wake: make(chan struct{}, 1), left: map[string]time.Time{}, order: order{patience: c.Patience}, number: numberOf(c.Request),
	}
}

// Join adds a node. What it is asked depends on when it comes: from the beginning on, or since the merge began.
func (m *Merge) Join(s Source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &lane{Source: s, room: make(chan struct{}, max(aheadMin, min(ahead, aheadAll/(len(m.order.lanes)+1)))), since: time.Now()}
	l.memory.floor = m.left[s.Node]
	delete(m.left, s.Node)
	m.order.lanes = append(m.order.lanes, l)
	m.changedLocked()
	if m.ctx != nil {
		m.startLocked(l)
	}
}

// Leave takes a node out; what it has said is still told.
func (m *Merge) Leave(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.order.lanes {
		if l.Node != node || l.state == gone {
			continue
		}
		if l.cancel != nil {
			l.cancel()
		}
		l.state = gone
		m.left[node] = l.memory.newest()
	}
	m.changedLocked()
}

// Run asks, and hands what nodes say to tell, one answer after the other, until all of them have said everything, tell fails or ctx ends. Nodes
// that join, fail and leave are told as events of status; nothing is told before it is known which nodes answer. The errors are a *Refusal,
// *Unreachable, ErrTooMany, that of tell or of ctx.
func (m *Merge) Run(ctx context.Context, tell func(*Response) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer m.asking.Wait()
	defer cancel()
	m.mu.Lock()
	m.ctx, m.began = ctx, time.Now()
	m.order.progress = m.began
	for _, l := range m.order.lanes {
		m.startLocked(l)
	}
	m.mu.Unlock()
	for {
		s := m.next(time.Now())
		for _, r := range s.tell {
			if err := tell(r); err != nil {
				return err
			}
		}
		switch {
		case s.err != nil:
			return s.err
		case s.done:
			return nil
		case s.again || len(s.tell) > 0:
			m.told()
			continue
		}
		timer := time.NewTimer(s.wait)
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// step is what Run does next.
type step struct {
	tell []*Response
	err  error
	done bool
	// again: at once, else after wait or when something has changed.
	again bool
	wait  time.Duration
}

// told notes that the client has taken what it was told, however long that took.
func (m *Merge) told() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order.progress = time.Now()
}

func (m *Merge) next(now time.Time) step {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refused != nil {
		return step{err: m.refused}
	}
	if !m.begun {
		if s, begins := m.beginLocked(now); !begins {
			return s
		}
	}
	news, wait := m.newsLocked(now)
	if news != nil {
		return step{tell: news}
	}
	for {
		flow, from, more := m.order.next(now)
		if flow == nil {
			wait = min(wait, more)
			break
		}
		<-from.room
		if tell, done, err := m.number.take(flow, m.began); len(tell) > 0 || done || err != nil {
			return step{tell: tell, done: done, err: err}
		}
	}
	switch {
	case !m.openLocked():
		return step{tell: m.number.flush(), done: true}
	case m.number.waits && m.Request.GetFollow():
		if m.pastLocked(now) {
			return step{tell: m.number.flush(), again: true}
		}
		wait = min(wait, m.Patience-now.Sub(m.started))
	}
	return step{wait: wait}
}

// idle is how long Run waits when nothing is to happen by itself.
const idle = time.Hour

// beginLocked reports whether it is known which nodes answer: all have, or have failed, or one has and the others are waited for no longer.
func (m *Merge) beginLocked(now time.Time) (step, bool) {
	answered, open := false, false
	var failed []Failure
	for _, l := range m.order.lanes {
		switch {
		case l.met:
			answered = true
		case l.state == asked:
			open = true
		case l.state == failing:
			failed = append(failed, Failure{l.Node, l.err})
		}
	}
	left := m.Start - now.Sub(m.began)
	switch {
	case !answered && !open:
		slices.SortFunc(failed, func(a, b Failure) int { return strings.Compare(a.Node, b.Node) })
		return step{err: &Unreachable{failed}}, false
	case !answered:
		return step{wait: idle}, false
	case open && left > 0:
		return step{wait: left}, false
	}
	m.begun, m.changed, m.started = true, true, now
	return step{}, true
}

// openLocked reports whether any node may say more.
func (m *Merge) openLocked() bool {
	return m.Request.GetFollow() && m.Request.GetUntil() == nil || slices.ContainsFunc(m.order.lanes, func(l *lane) bool {
		return len(l.queue) > 0 || l.state == asked || l.state == speaking || l.state == failing && m.Request.GetFollow()
	})
}

// pastLocked reports whether everything that was before the merge began has been told, or is waited for no longer.
func (m *Merge) pastLocked(now time.Time) bool {
	return now.Sub(m.started) >= m.Patience || !slices.ContainsFunc(m.order.lanes, func(l *lane) bool {
		return (l.state == asked || l.state == speaking) && l.mark.Before(m.began)
	})
}

func (m *Merge) changedLocked() {
	m.changed = true
	m.wakeLocked()
}

func (m *Merge) wakeLocked() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// errEnded is the failure of a node whose answer ends although more was to come.
var errEnded = errors.New("its agent has ended")
