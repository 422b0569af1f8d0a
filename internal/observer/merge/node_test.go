package merge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// observed is an observer as merges see one: it remembers flows, answers requests for them, and may be killed.
type observed struct {
	name   string
	behind time.Duration // of its clock
	bare   bool          // clients want no UUIDs
	still  bool          // takes requests, and says nothing

	mu    sync.Mutex // guards everything below
	flows []*Response
	down  error
	news  chan struct{} // closed when any of it changes
	heard int           // answers that clients have taken
	asked []*observerpb.GetFlowsRequest
}

func newObserved(name string) *observed { return &observed{name: name, news: make(chan struct{})} }

func (o *observed) source() Source { return Source{Node: o.name, Ask: o.ask} }

func (o *observed) change(to func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	to()
	close(o.news)
	o.news = make(chan struct{})
}

func (o *observed) kill(err error) { o.change(func() { o.down = err }) }

// see adds a flow that happened some time ago.
func (o *observed) see(ago time.Duration) {
	o.change(func() {
		f := &flowpb.Flow{NodeName: o.name, Uuid: fmt.Sprintf("%s-%d", o.name, len(o.flows))}
		o.flows = append(o.flows, &Response{
			NodeName: o.name, Time: timestamppb.New(time.Now().Add(-ago - o.behind)), ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: f},
		})
	})
}

func (o *observed) tell(r *Response, hear func(*Response) error) error {
	if o.bare && r.GetFlow() != nil {
		r = &Response{NodeName: r.NodeName, Time: r.Time, ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{}}}
	}
	if err := hear(r); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard++
	return nil
}

func (o *observed) beat(at time.Time, hear func(*Response) error) error {
	r := &Response{NodeName: o.name, ResponseTypes: &observerpb.GetFlowsResponse_NodeStatus{NodeStatus: &relaypb.NodeStatusEvent{StateChange: relaypb.NodeState_NODE_CONNECTED}}}
	if !at.IsZero() {
		r.Time = timestamppb.New(at.Add(-o.behind))
	}
	return o.tell(r, hear)
}

// first is where a request begins in flows.
func (o *observed) first(q *observerpb.GetFlowsRequest) int {
	if q.Since != nil {
		i := slices.IndexFunc(o.flows, func(r *Response) bool { return !r.Time.AsTime().Before(q.Since.AsTime()) })
		if i < 0 {
			return len(o.flows)
		}
		return i
	}
	if n := int(min(q.Number, 1<<30)); !q.First && (n > 0 || q.Follow) {
		return max(0, len(o.flows)-n)
	}
	return 0
}

func (o *observed) ask(ctx context.Context, q *observerpb.GetFlowsRequest, hear func(*Response) error) error {
	o.mu.Lock()
	o.asked = append(o.asked, q)
	at, end, down := o.first(q), len(o.flows), o.down
	o.mu.Unlock()
	if o.still {
		<-ctx.Done()
		return ctx.Err()
	}
	if down != nil {
		return down
	}
	if err := o.beat(time.Time{}, hear); err != nil {
		return err
	}
	for told := uint64(0); ; {
		o.mu.Lock()
		news, down := o.news, o.down
		var next *Response
		if at < len(o.flows) && (q.Follow || at < end) {
			next = o.flows[at]
		}
		o.mu.Unlock()
		switch {
		case down != nil:
			return down
		case next != nil:
			if at++; q.Since != nil && next.Time.AsTime().Before(q.Since.AsTime()) {
				continue
			}
			if err := o.tell(next, hear); err != nil {
				return err
			}
			if told++; !q.Follow && told == q.Number {
				return nil
			}
			continue
		case !q.Follow:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		case <-time.After(500 * time.Millisecond):
			if err := o.beat(time.Now().Add(-200*time.Millisecond), hear); err != nil {
				return err
			}
		}
	}
}

// client collects what a merge tells.
type client struct {
	mu     sync.Mutex
	flows  []*Response
	events []string
	block  chan struct{} // while it is open it takes nothing
}

func (c *client) take(r *Response) error {
	if c.block != nil {
		<-c.block
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := r.GetNodeStatus(); n != nil {
		text := fmt.Sprintf("%s %v", n.StateChange, n.NodeNames)
		if n.Message != "" {
			text += ": " + n.Message
		}
		c.events = append(c.events, text)
		return nil
	}
	c.flows = append(c.flows, r)
	return nil
}

func (c *client) names() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.flows {
		out = append(out, r.GetFlow().GetUuid())
	}
	return out
}

func (c *client) said() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// mergeOf is a merge of these with usual times.
func mergeOf(q *observerpb.GetFlowsRequest, nodes ...*observed) *Merge {
	m := New(Config{Request: q, Patience: Patience, Start: Patience, Silence: 10 * time.Second})
	for _, n := range nodes {
		m.Join(n.source())
	}
	return m
}

var errDown = errors.New("connection refused")
