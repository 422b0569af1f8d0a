package operator

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/enforcement"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	conditionWriters = 8
	conditionPause   = time.Second            // between two writes of one policy
	pendingAfter     = 3 * time.Second        // most policies are enforced everywhere sooner: they are written once
	askEvery         = 2 * time.Second        // while nothing changes
	askPause         = 300 * time.Millisecond // after a change, for it to get to the nodes
	askCost          = 4 * time.Millisecond   // more of both for each node: at most 250 are asked in a second
	shownWithin      = 30 * time.Second       // what was written is seen by then, or it is written again
	maxEvent         = 1000                   // bytes of an event's message
)

// conditions says on policies where they are enforced and why not. It belongs to the goroutine of run but for what is written, which each
// writer keeps for itself until all are done.
type conditions struct {
	client  *kube.Client
	events  *kube.Events
	metrics *metrics
	log     *slog.Logger
	nodes   *table.Table[state.Node]
	objects *table.Table[state.PolicyObject]
	agents  *agents // nil: they cannot be asked

	memory map[string]*memory // by key of the policy
}

// memory is what has been said about one object.
type memory struct {
	uid        string
	generation int64
	since      time.Time // when this generation was first seen
	written    state.PolicyConditions
	writtenAt  time.Time
	event      string // the last thing an event said
}

// run follows policies, nodes and agents until ctx ends.
func (v *conditions) run(ctx context.Context) error {
	for _, known := range []<-chan struct{}{v.nodes.Initialized(), v.objects.Initialized()} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-known:
		}
	}
	if v.agents != nil {
		defer v.agents.close()
	}
	v.memory = map[string]*memory{}
	for {
		nodes, objects := v.nodes.Snapshot(), v.objects.Snapshot()
		var enforced enforcement.Nodes
		if v.agents != nil {
			enforced = v.agents.ask(ctx, slices.Collect(nodes.All()), time.Now())
			v.metrics.agents.WithLabelValues("answering").Set(float64(enforced.Answering()))
			v.metrics.agents.WithLabelValues("silent").Set(float64(enforced.Silent()))
		}
		v.round(ctx, slices.Collect(objects.All()), enforced)
		cost := time.Duration(nodes.Len()) * askCost
		if err := pauseOr(ctx, askEvery+cost, nodes.Changed(), objects.Changed()); err != nil {
			return err
		}
		if err := pauseOr(ctx, askPause+cost, nil, nil); err != nil {
			return err
		}
	}
}

// pauseOr waits for d or until one of two channels is closed.
func pauseOr(ctx context.Context, d time.Duration, a, b <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a:
	case <-b:
	case <-time.After(d):
	}
	return nil
}

// round writes the conditions that are not shown yet and says what is new.
func (v *conditions) round(ctx context.Context, objects []state.PolicyObject, nodes enforcement.Nodes) {
	there := make(map[string]bool, len(objects))
	var group errgroup.Group
	group.SetLimit(conditionWriters)
	for _, o := range objects {
		there[o.Key()] = true
		m := v.remember(o)
		want := nodes.Conditions(o.Policy)
		v.tell(o, m, want)
		want, shows := kube.ShowsPolicyConditions(o.Kind, want)
		if !shows || want == o.Shown || m.wait(want, time.Now()) {
			continue
		}
		group.Go(func() error { return v.write(ctx, o, m, want) })
	}
	_ = group.Wait() // what failed is tried again in the next round
	for key := range v.memory {
		if !there[key] {
			delete(v.memory, key)
		}
	}
}

func (v *conditions) remember(o state.PolicyObject) *memory {
	m := v.memory[o.Key()]
	if m == nil || m.uid != o.UID {
		m = &memory{uid: o.UID}
		v.memory[o.Key()] = m
	}
	if m.generation != o.Generation {
		m.generation, m.since = o.Generation, time.Now()
	}
	return m
}

// wait reports whether it is too early to write.
func (m *memory) wait(want state.PolicyConditions, now time.Time) bool {
	switch age := now.Sub(m.writtenAt); {
	case age < conditionPause:
		return true
	case want == m.written && age < shownWithin:
		return true
	}
	return want.Enforced.Reason == enforcement.ReasonPending && now.Sub(m.since) < pendingAfter
}

func (v *conditions) write(ctx context.Context, o state.PolicyObject, m *memory, want state.PolicyConditions) error {
	m.writtenAt = time.Now()
	err := v.client.SetPolicyConditions(ctx, o, want)
	switch {
	case err == nil:
		m.written = want
		v.metrics.conditions.Inc()
	case errors.Is(err, kube.ErrRefused):
		v.log.Debug("policy changed before its conditions were written", "policy", o.String(), "err", err)
	case ctx.Err() == nil:
		v.metrics.conditionErrors.Inc()
		v.log.Warn("conditions of policy not written, to be tried again", "policy", o.String(), "err", err)
	}
	return err
}

// tell records an event about what is refused, and about NetworkPolicies, which have no conditions, that fail on a node.
func (v *conditions) tell(o state.PolicyObject, m *memory, now state.PolicyConditions) {
	reason, text := "", ""
	switch {
	case !now.Valid.True:
		reason, text = "Policy"+now.Valid.Reason, now.Valid.Message
	case now.Enforced.Reason == enforcement.ReasonFailed && o.Kind == policy.NetworkPolicy:
		reason, text = "Policy"+now.Enforced.Reason, now.Enforced.Message
	}
	if len(text) > maxEvent {
		text = text[:maxEvent]
	}
	before := m.event
	if m.event = reason + text; m.event == before || reason == "" {
		return
	}
	if shown := o.Shown.Valid; shown.Reason != "" && !shown.True && shown.Message == now.Valid.Message {
		return // said before this process began
	}
	v.events.Policy(o, kube.Warning, reason, text)
}
