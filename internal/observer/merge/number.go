package merge

import (
	"fmt"
	"math"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
)

// keepMost is how many flows are kept at most to find the last ones of all nodes.
const keepMost = 1 << 16

// ErrTooMany says that the last flows of all nodes that were asked for are too many to be kept until it is known which they are.
var ErrTooMany = fmt.Errorf("more than %d flows to find the last ones in: ask for fewer, for all of them, or since a time", keepMost)

// number lets as many flows through as are asked for: of all nodes, not of each.
type number struct {
	want   uint64 // 0: all that come
	follow bool
	waits  bool // for the last ones of those that have been: they are kept until it is known which they are
	kept   []*Response
	flows  uint64 // in kept, or let through
}

func numberOf(q *observerpb.GetFlowsRequest) number {
	n := number{want: q.GetNumber(), follow: q.GetFollow()}
	if n.want == math.MaxUint64 || n.follow && q.GetSince() != nil {
		n.want = 0
	}
	n.waits = n.want > 0 && !q.GetFirst() && q.GetSince() == nil
	return n
}

// take returns what may be told after a flow has come, and whether that was all. began is when those that have been end, if others follow.
func (n *number) take(r *Response, began time.Time) (tell []*Response, done bool, err error) {
	if n.want == 0 {
		return []*Response{r}, false, nil
	}
	if n.waits && n.follow && !r.GetTime().AsTime().Before(began) {
		return append(n.flush(), r), false, nil
	}
	if r.GetFlow() != nil {
		n.flows++
	}
	if !n.waits {
		return []*Response{r}, n.flows >= n.want, nil
	}
	for n.kept = append(n.kept, r); n.flows > n.want; n.kept = n.kept[1:] {
		if n.kept[0].GetFlow() != nil {
			n.flows--
		}
		n.kept[0] = nil
	}
	if len(n.kept) > keepMost {
		return nil, false, ErrTooMany
	}
	return nil, false, nil
}

// flush returns what has been kept; all that comes later is let through.
func (n *number) flush() []*Response {
	kept := n.kept
	n.kept, n.waits = nil, false
	if n.follow {
		n.want = 0
	}
	return kept
}
