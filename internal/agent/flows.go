package agent

import (
	"cmp"
	"context"
	"slices"
	stdsync "sync"
	"time"

	"github.com/strait-net/strait/internal/datapath/events"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

const (
	flowSubject = "flows"
	// namesWait is how long records wait for the names of pods and nodes at the start; the ring holds them meanwhile.
	namesWait = 10 * time.Second
)

// flows is what the agent has of flows.
type flows struct {
	reader *events.Reader
	store  *flow.Store

	mu    stdsync.Mutex // guards everything below: the ring and those who forget connections tell
	namer *flow.Namer
	named []flow.Flow
}

// newFlows opens the ring, and has told what is forgotten from now on. Policy is there already: it knows whose the numbers of rules are.
func (a *agent) newFlows() (*flows, error) {
	f := &flows{
		store: flow.NewStore(int(a.cfg.Flows.Keep)),
		namer: flow.NewNamer(flow.NamerConfig{Node: a.Node, State: a.state, Rule: a.policies.writer.Ref}),
	}
	var err error
	f.reader, err = events.New(events.Config{Kernel: a.maps, Tell: f.tell, Report: a.reportFlows})
	if err != nil {
		f.namer.Close()
		return nil, err
	}
	a.maps.Ended = func(e flow.Event) { f.tell([]flow.Event{e}) }
	return f, nil
}

func (f *flows) close() {
	f.reader.Close()
	f.namer.Close()
}

// tell names events and remembers them.
func (f *flows) tell(told []flow.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.named = f.namer.Name(now, told, f.named[:0])
	f.store.Append(now, f.named)
}

func (a *agent) reportFlows(err error) {
	if err != nil {
		a.report(flowSubject, err)
		return
	}
	state.Clear(a.state.Problems, agentProblems, flowSubject)
}

// readFlows reads records when it can name them.
func (a *agent) readFlows(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	for _, known := range []<-chan struct{}{
		a.state.Nodes.Initialized(), a.state.Pods.Initialized(), a.state.Frontends.Initialized(), a.policies.loop.Ready(),
	} {
		select {
		case <-known:
		case <-wait.Done():
		}
	}
	return a.flows.reader.Run(ctx)
}

func (a *agent) flowStatus() localapi.FlowStatus {
	if a.flows == nil {
		return localapi.FlowStatus{}
	}
	c := a.flows.store.Counts(time.Now())
	s := localapi.FlowStatus{Enabled: true, PerSecond: c.PerSecond, Kept: c.Kept, Max: c.Max}
	s.RingUsed, s.RingSize = a.flows.reader.Fill()
	for kind := flow.New; kind < flow.Lost; kind++ {
		s.Seen = append(s.Seen, localapi.FlowCount{Kind: kind.String(), Flows: c.ByKind[kind]})
	}
	for kind, l := range c.Lost {
		if l.Records > 0 || kind >= int(flow.New) && kind < int(flow.Lost) {
			s.Lost = append(s.Lost, localapi.LostCount{Kind: flow.Kind(kind).String(), Records: l.Records, Packets: l.Packets, Bytes: l.Bytes})
		}
	}
	for why, t := range c.Stopped {
		s.Stopped = append(s.Stopped, localapi.StoppedCount{
			Reason: why.Reason.String(), Direction: why.Way.String(), Packets: t.Packets, Bytes: t.Bytes,
		})
	}
	slices.SortFunc(s.Stopped, func(x, y localapi.StoppedCount) int {
		return cmp.Or(cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.Direction, y.Direction))
	})
	return s
}
