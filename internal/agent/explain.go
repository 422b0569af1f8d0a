package agent

import (
	"context"
	"time"

	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/explain/part"
	"github.com/strait-net/strait/internal/localapi"
)

const (
	// explainKept is how long what packets have left stays for the next question about the same path.
	explainKept = time.Minute
	// explainSessions is how many paths are asked about at the same time.
	explainSessions = 64
	// warmAfter is how long after pods can be started the programs that explain tries are loaded, warmPause the time between two of them, and
	// warmCheck how often it is looked whether others are attached by now.
	warmAfter, warmPause, warmCheck = 15 * time.Second, time.Second, time.Minute
)

// explain works out this node's part of a packet's path.
func (a *agent) explain(_ context.Context, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	return part.Answer(part.Sources{
		Node: a.Node, Version: a.Version, State: a.state, Maps: a.maps, Net: a.net, Bench: a.bench, Loaded: a.loadedPrograms,
		Rule: a.policies.view.ref, Judge: a.policies.view.judge,
	}, q)
}

// loadedPrograms returns what the attached programs were loaded with, and whether sockets are load balanced.
func (n *node) loadedPrograms() (load.Config, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.constants, n.cgroup != ""
}

// warmExplain loads the programs that explain tries, one by one, when the agent has nothing else to do: the verifier takes about a second for all
// of them, and who asks would wait for it. In the kernel they take 1.7 MB.
func (a *agent) warmExplain(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.rehearsed:
	}
	pause := warmAfter
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = warmCheck
		constants, _ := a.loadedPrograms()
		for _, name := range part.Programs(constants) {
			if loaded, err := a.bench.Warm(name, constants); err != nil {
				a.log.Warn("program that explain tries cannot be loaded", "program", name, "err", err)
			} else if !loaded {
				pause = warmPause
				break
			}
		}
	}
}
