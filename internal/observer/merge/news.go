package merge

import (
	"fmt"
	"maps"
	"slices"
	"time"

	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/protobuf/types/known/timestamppb"

	observerpb "github.com/cilium/cilium/api/v1/observer"
)

// said is what the client has been told of a node.
type said int

const (
	unsaid said = iota
	saidHere
	saidAway
)

// newsLocked returns what the client does not know yet of who answers, and after what time that may change by itself.
func (m *Merge) newsLocked(now time.Time) (tell []*Response, wait time.Duration) {
	wait = idle
	if !m.changed {
		return nil, wait
	}
	m.changed = false
	var here, left []string
	away, failed := map[string][]string{}, map[string][]string{} // by reason
	for _, l := range m.order.lanes {
		switch {
		case l.state == asked && l.said == unsaid:
			if remains := m.Start - now.Sub(l.since); remains > 0 {
				wait, m.changed = min(wait, remains), true
				continue
			}
			l.said = saidAway
			reason := fmt.Sprintf("no answer in %v", m.Start)
			away[reason] = append(away[reason], l.Node)
		case l.state == failing && l.said != saidAway:
			to := away
			if l.met && !m.Request.GetFollow() {
				to = failed // in the middle of its answer: it is not asked again
			}
			to[l.err.Error()] = append(to[l.err.Error()], l.Node)
			l.said = saidAway
		case (l.state == speaking || l.state == ended) && l.said != saidHere:
			here, l.said = append(here, l.Node), saidHere
		case l.state == gone && l.said != unsaid:
			left, l.said = append(left, l.Node), unsaid
		}
	}
	m.order.lanes = slices.DeleteFunc(m.order.lanes, func(l *lane) bool { return l.state == gone && len(l.queue) == 0 })
	if len(left) > 0 {
		tell = append(tell, m.event(relaypb.NodeState_NODE_GONE, "", left...)) // first: it may have come again
	}
	if len(here) > 0 {
		tell = append(tell, m.event(relaypb.NodeState_NODE_CONNECTED, "", here...))
	}
	for _, list := range []struct {
		state relaypb.NodeState
		nodes map[string][]string
	}{{relaypb.NodeState_NODE_UNAVAILABLE, away}, {relaypb.NodeState_NODE_ERROR, failed}} {
		for _, reason := range slices.Sorted(maps.Keys(list.nodes)) {
			tell = append(tell, m.event(list.state, reason, list.nodes[reason]...))
		}
	}
	return tell, wait
}

func (m *Merge) event(state relaypb.NodeState, message string, nodes ...string) *Response {
	slices.Sort(nodes)
	return &Response{
		NodeName: m.Name, Time: timestamppb.Now(),
		ResponseTypes: &observerpb.GetFlowsResponse_NodeStatus{NodeStatus: &relaypb.NodeStatusEvent{StateChange: state, NodeNames: nodes, Message: message}},
	}
}
