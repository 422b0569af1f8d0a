package merge

import (
	"math/rand/v2"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func flowAt(seconds int) *Response {
	return &Response{Time: timestamppb.New(time.Unix(int64(seconds), 0)), ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{}}}
}

func beatAt(seconds int) *Response {
	return &Response{Time: timestamppb.New(time.Unix(int64(seconds), 0)), ResponseTypes: &observerpb.GetFlowsResponse_NodeStatus{NodeStatus: &relaypb.NodeStatusEvent{}}}
}

// orderOf is an order of n nodes that have answered.
func orderOf(n int, patience time.Duration) *order {
	o := &order{patience: patience}
	for range n {
		o.lanes = append(o.lanes, &lane{state: speaking})
	}
	return o
}

func TestOrder(t *testing.T) {
	now := time.Unix(100, 0)
	o := orderOf(3, 2*time.Second)
	want := func(wait time.Duration, times ...int64) {
		t.Helper()
		for _, w := range times {
			if r, _, _ := o.next(now); r.GetTime().GetSeconds() != w {
				t.Fatalf("next is %v, want %d", r.GetTime(), w)
			}
			o.progress = now
		}
		if r, _, left := o.next(now); r != nil || left != wait {
			t.Fatalf("next is %v, or to wait %v; want %v", r.GetTime(), left, wait)
		}
	}
	add := func(i int, r *Response) { o.add(o.lanes[i], r, now) }
	want(idle)
	add(0, flowAt(10))
	add(1, flowAt(9))
	want(2 * time.Second)
	add(2, beatAt(9)) // tells everything until then
	want(2*time.Second, 9)
	add(2, beatAt(11))
	add(1, beatAt(10))
	want(idle, 10)
	add(0, flowAt(12))
	o.lanes[1].state = ended
	now = now.Add(time.Second)
	want(time.Second)
	add(2, flowAt(13))
	want(2*time.Second, 12)
	now = now.Add(3 * time.Second) // node 0 has kept it waiting for long enough
	want(idle, 13)
	add(2, flowAt(14)) // and is not waited for any more
	want(idle, 14)
	add(0, beatAt(14)) // until it has caught up
	add(2, flowAt(16))
	want(2 * time.Second)
	now = now.Add(time.Second)
	o.progress = now // the client was slow: nobody else is to blame
	now = now.Add(1500 * time.Millisecond)
	want(500 * time.Millisecond)
	o.lanes[0].state = failing
	want(idle, 16)
	o.lanes[0].state = speaking
	add(0, beatAt(16))
	gap := &Response{Time: timestamppb.New(now), ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{
		LostEvents: &flowpb.LostEvent{Source: flowpb.LostEventSource_HUBBLE_RING_BUFFER}}}
	add(2, gap) // is where it is, whenever it was found
	add(2, flowAt(17))
	want(2*time.Second, now.Unix())
	add(0, flowAt(18))
	want(2*time.Second, 17)
}

// TestOrderOfAnything: lanes in order, cut into any pieces, come out in order and complete.
func TestOrderOfAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		o := orderOf(1+r.IntN(5), time.Hour)
		clock, sent, got := make([]int, len(o.lanes)), 0, 0
		last := int64(0)
		now := time.Unix(0, 0)
		drain := func() {
			for {
				x, _, _ := o.next(now)
				if x == nil {
					return
				}
				if x.Time.Seconds < last {
					t.Fatalf("%d after %d", x.Time.Seconds, last)
				}
				last, got = x.Time.Seconds, got+1
			}
		}
		for range 200 {
			i := r.IntN(len(o.lanes))
			clock[i] += r.IntN(3)
			if r.IntN(4) == 0 {
				o.add(o.lanes[i], beatAt(clock[i]), now)
			} else {
				o.add(o.lanes[i], flowAt(clock[i]), now)
				sent++
			}
			drain()
		}
		for _, l := range o.lanes {
			l.state = ended
		}
		if drain(); got != sent {
			t.Fatalf("%d of %d", got, sent)
		}
	}
}

// TestMemory: since when a node is asked again, and what of its answer is known.
func TestMemory(t *testing.T) {
	var m memory
	if since := m.again(); !since.IsZero() {
		t.Errorf("without flows since %v", since)
	}
	if m.known(flowAt(100)) || m.known(flowAt(90)) || m.known(flowAt(101)) { // one of them comes late
		t.Error("a flow is known that was never told")
	}
	if since := m.again(); since.Unix() != 100 {
		t.Errorf("since %v", since)
	}
	if !m.known(flowAt(100)) || !m.known(flowAt(101)) || m.known(flowAt(101)) || m.known(flowAt(103)) {
		t.Error("known is not what was told, as often as it was")
	}
	m.known(&Response{Time: timestamppb.New(time.Unix(1000, 0)), ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{
		LostEvents: &flowpb.LostEvent{Source: flowpb.LostEventSource_HUBBLE_RING_BUFFER}}}) // says nothing of what was told
	for range 2 * remembered {
		m.known(flowAt(104))
	}
	m.known(flowAt(105))
	if since := m.again(); since.UnixNano() != 104e9+1 || len(m.recent) > remembered {
		t.Errorf("since %v with %d remembered", since, len(m.recent))
	}
}
