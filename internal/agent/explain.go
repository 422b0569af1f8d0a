package agent

import (
	"context"
	"time"

	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/explain/part"
	"github.com/strait-net/strait/internal/localapi"
)

const (
	// explainKept is how long programs and what packets have left stay for the next question about the same path.
	explainKept = time.Minute
	// explainSessions is how many paths are asked about at the same time.
	explainSessions = 64
)

// explain works out this node's part of a packet's path.
func (a *agent) explain(_ context.Context, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	return part.Answer(part.Sources{
		Node: a.Node, Version: a.Version, State: a.state, Maps: a.maps, Net: a.net, Bench: a.bench, Loaded: a.loadedPrograms,
		Rule:  func(number uint32) string { return a.policies.view.ref(number).String() },
		Judge: a.policies.view.judge,
	}, q)
}

// loadedPrograms returns what the attached programs were loaded with, and whether sockets are load balanced.
func (n *node) loadedPrograms() (load.Config, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.constants, n.cgroup != ""
}
