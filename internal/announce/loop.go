package announce

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	owner = "announce"
	// pause is the least time between two plans, so that a burst of changes costs few of them.
	pause = 100 * time.Millisecond
)

// Peers tells which nodes answer. *probe.Watch is one.
type Peers interface {
	// Set says which nodes are asked often.
	Set(nodes []string)
	// Alive reports whether a node answers; known is false for one that is not asked often, or has not been heard of yet.
	Alive(node string) (alive, known bool)
	// Changed is closed when an answer of Alive has changed since the call.
	Changed() <-chan struct{}
}

// Config is what a Loop needs.
type Config struct {
	Self  string
	State *state.State
	// Enabled: without it nothing is announced, and what was is withdrawn.
	Enabled bool
	// Peers may be nil: then every node with a Node object is taken to be alive.
	Peers Peers
	// After are closed when the kernel holds the services: no address is announced before this node serves it.
	After []<-chan struct{}
	Log   *slog.Logger
}

// Loop keeps state.Announcements.
type Loop struct {
	Config
	done func()
}

// NewLoop returns the loop. It registers with the table it writes.
func NewLoop(c Config) *Loop { return &Loop{Config: c, done: c.State.Announcements.Register(owner)} }

// Run plans after every change until ctx ends. The table counts as complete when every node that is before this one has been heard of:
// until then, what the kernel announces since the last run goes on.
func (l *Loop) Run(ctx context.Context) error {
	st := l.State
	known := append([]<-chan struct{}{
		st.Nodes.Initialized(), st.Services.Initialized(), st.EndpointSlices.Initialized(), st.Devices.Initialized(),
	}, l.After...)
	for _, c := range known {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c:
		}
	}
	for {
		nodes, services, endpoints, devices := st.Nodes.Snapshot(), st.Services.Snapshot(), st.EndpointSlices.Snapshot(), st.Devices.Snapshot()
		var peers <-chan struct{}
		if l.Peers != nil {
			peers = l.Peers.Changed()
		}
		begin := time.Now()
		listed, local := relevant(services)
		l.report(listed)
		plan := l.plan(View{
			Self: l.Self, Nodes: slices.Collect(nodes.All()), Devices: slices.Collect(devices.All()), Services: listed,
			Serving: func(name state.ServiceName, v6 bool) map[string]bool { return serving(services, endpoints, name, v6) },
		})
		l.write(plan)
		var slicesChanged <-chan struct{}
		if local { // else they do not matter
			slicesChanged = endpoints.Changed()
		}
		wait := max(pause, 4*time.Since(begin))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes.Changed():
		case <-services.Changed():
		case <-devices.Changed():
		case <-slicesChanged:
		case <-peers:
			continue // a failure does not wait
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// plan also tells the peers whom to ask.
func (l *Loop) plan(v View) Decision {
	if !l.Enabled {
		l.done()
		return Decision{}
	}
	v.Alive = func(string) (alive, known bool) { return true, true }
	if l.Peers != nil {
		v.Alive = l.Peers.Alive
	}
	d := Plan(v)
	complete := true
	if l.Peers != nil {
		l.Peers.Set(d.Watch)
		for _, n := range d.Watch {
			_, known := l.Peers.Alive(n)
			complete = complete && known
		}
	}
	if complete {
		defer l.done()
	}
	return d
}

func (l *Loop) write(d Decision) {
	keep := make(map[string]bool, len(d.Announcements))
	l.State.Announcements.Write(func(tx *table.Txn[state.Announcement]) {
		for _, a := range d.Announcements {
			keep[a.Key()] = true
			if old, _, ok := tx.Get(a.Key()); !ok || !old.SameIntent(a) {
				tx.Insert(a)
				l.Log.Info("address announced by this node", "address", a.Address, "device", a.Device)
			}
		}
		tx.All(func(old state.Announcement) bool {
			if !keep[old.Key()] {
				tx.Delete(old.Key())
				l.Log.Info("address no longer announced by this node", "address", old.Address, "device", old.Device)
			}
			return true
		})
	})
}

// report shows services that wait for an address.
func (l *Loop) report(services []state.Service) {
	var problems []state.Problem
	for _, s := range services {
		if a := s.Allocation; a.Reason != "" && !a.Done {
			problems = append(problems, state.Problem{
				Subject: "service " + s.String(), Text: fmt.Sprintf("does not have the LoadBalancer addresses it wants (%s): %s", a.Reason, a.Message),
			})
		}
	}
	state.Report(l.State.Problems, owner, time.Now(), problems)
}

// relevant returns the services with addresses to announce, or that wait for some; local: some of them want their traffic to stay on
// the node.
func relevant(services table.Snapshot[state.Service]) (out []state.Service, local bool) {
	for s := range services.All() {
		if s.Allocation.Reason == "" && len(Addresses(s)) == 0 {
			continue
		}
		out = append(out, s)
		local = local || s.ExternalPolicy == state.PolicyLocal
	}
	return out, local
}

// serving returns the nodes with ready endpoints or, if there are none anywhere, with those that still serve while they terminate.
func serving(services table.Snapshot[state.Service], endpoints table.Snapshot[state.EndpointSlice], name state.ServiceName, v6 bool) map[string]bool {
	svc, _, _ := services.Get(name.String())
	ready, leaving := map[string]bool{}, map[string]bool{}
	for s := range endpoints.By(state.SlicesByService, name.String()) {
		for _, e := range s.Endpoints {
			switch {
			case e.Address.Is6() != v6 || e.Node == "":
			case e.Ready || svc.PublishNotReady:
				ready[e.Node] = true
			case e.Serving && e.Terminating:
				leaving[e.Node] = true
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return leaving
}
