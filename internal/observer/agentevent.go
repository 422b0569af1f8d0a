package observer

import (
	"context"
	"sync"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// keptAgentEvents is how many events of the agent are remembered.
const keptAgentEvents = 1024

// agentEvent is what the agent did, and when.
type agentEvent struct {
	at   time.Time
	what *flowpb.AgentEvent
}

// agentEvents remembers the last events of the agent.
type agentEvents struct {
	mu      sync.Mutex
	events  []agentEvent  // guarded by mu; the newest last
	dropped uint64        // guarded by mu: older ones
	changed chan struct{} // guarded by mu; closed by the next event
}

func newAgentEvents() *agentEvents { return &agentEvents{changed: make(chan struct{})} }

func (a *agentEvents) add(at time.Time, what *flowpb.AgentEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.events) == keptAgentEvents {
		a.events = append(a.events[:0:0], a.events[keptAgentEvents/2:]...) // readers have the old one
		a.dropped += keptAgentEvents / 2
	}
	a.events = append(a.events, agentEvent{at, what})
	close(a.changed)
	a.changed = make(chan struct{})
}

// after returns events from a position on, the position after them, and a channel that is closed when there are more.
func (a *agentEvents) after(position uint64) ([]agentEvent, uint64, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := a.dropped + uint64(len(a.events))
	position = min(max(position, a.dropped), end)
	return a.events[position-a.dropped:], end, a.changed
}

// follow tells of the agent's start, of policies and of local pods.
func (a *agentEvents) follow(ctx context.Context, st *state.State, began time.Time) error {
	a.add(began, &flowpb.AgentEvent{
		Type:         flowpb.AgentEventType_AGENT_STARTED,
		Notification: &flowpb.AgentEvent_AgentStart{AgentStart: &flowpb.TimeNotification{Time: timestamppb.New(began)}},
	})
	policies, endpoints := st.Policies.Changes(), st.Endpoints.Changes()
	defer policies.Close()
	defer endpoints.Close()
	local := map[string]bool{}
	for {
		changed, morePolicies := policies.Next()
		for _, c := range changed {
			a.add(time.Now(), policyEvent(c))
		}
		pods, moreEndpoints := endpoints.Next()
		for _, c := range pods {
			if c.Deleted != local[c.Row.Key()] {
				continue // neither new nor gone
			}
			local[c.Row.Key()] = !c.Deleted
			if c.Deleted {
				delete(local, c.Row.Key())
			}
			a.add(time.Now(), endpointEvent(c))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-morePolicies:
		case <-moreEndpoints:
		}
	}
}

func policyEvent(c table.Change[state.Policy]) *flowpb.AgentEvent {
	kind := flowpb.AgentEventType_POLICY_UPDATED
	if c.Deleted {
		kind = flowpb.AgentEventType_POLICY_DELETED
	}
	const prefix = sourceKubernetes + ":io.cilium.k8s.policy."
	rules := 0
	for i := range c.Row.Specs {
		rules += len(c.Row.Specs[i].Ingress.Rules) + len(c.Row.Specs[i].Egress.Rules)
	}
	labels := []string{prefix + "derived-from=" + string(c.Row.Kind), prefix + "name=" + c.Row.Name}
	if c.Row.Namespace != "" {
		labels = append(labels, prefix+"namespace="+c.Row.Namespace)
	}
	return &flowpb.AgentEvent{Type: kind, Notification: &flowpb.AgentEvent_PolicyUpdate{PolicyUpdate: &flowpb.PolicyUpdateNotification{
		Labels: labels, Revision: uint64(c.Row.Generation), RuleCount: int64(rules),
	}}}
}

func endpointEvent(c table.Change[state.Endpoint]) *flowpb.AgentEvent {
	kind := flowpb.AgentEventType_ENDPOINT_CREATED
	if c.Deleted {
		kind = flowpb.AgentEventType_ENDPOINT_DELETED
	}
	return &flowpb.AgentEvent{Type: kind, Notification: &flowpb.AgentEvent_EndpointUpdate{EndpointUpdate: &flowpb.EndpointUpdateNotification{
		Id: uint64(c.Row.DeviceIndex), PodName: c.Row.Pod, Namespace: c.Row.Namespace,
	}}}
}

// GetAgentEvents implements observerpb.ObserverServer.
func (s *Server) GetAgentEvents(req *observerpb.GetAgentEventsRequest, stream grpc.ServerStreamingServer[observerpb.GetAgentEventsResponse]) error {
	at, err := spanOf(req)
	if err != nil {
		return err
	}
	events, position, more := s.events.after(0)
	for first := true; ; first = false {
		chosen := at.choose(events, first)
		for _, e := range chosen {
			err := stream.Send(&observerpb.GetAgentEventsResponse{NodeName: s.nodeName, Time: timestamppb.New(e.at), AgentEvent: e.what})
			if err != nil {
				return err
			}
		}
		if !at.follow {
			return nil
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-more:
		}
		events, position, more = s.events.after(position)
	}
}

// choose returns what is asked for: of those that are remembered when reading begins, the first or the last ones; later all.
func (s *span) choose(events []agentEvent, remembered bool) []agentEvent {
	var out []agentEvent
	for _, e := range events {
		if !s.early(e.at) && !s.late(e.at) {
			out = append(out, e)
		}
	}
	n := len(out)
	switch {
	case !remembered:
	case s.follow && s.number == 0 && s.since.IsZero():
		return nil
	case s.number == 0 || s.number >= uint64(n):
	case s.first || !s.since.IsZero():
		out = out[:s.number]
	default:
		out = out[uint64(n)-s.number:]
	}
	return out
}
