package rig

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/result"
	"github.com/strait-net/strait/bench/internal/rr"
)

const (
	slowest   = 12_500 // connections per second with which the search for the fastest begins
	narrowing = 3      // halvings between the fastest that lost nothing and the slowest that lost something
	// allTold is how long it may take until everything that happened is told or counted: repeats are held back for a second, a client may be behind.
	allTold = 20 * time.Second
)

// flows makes row 13: what telling of connections costs, how many can be told of, and whether all are counted when it is too many.
func (r *rig) flows(ctx context.Context) error {
	if err := r.floods(ctx); err != nil {
		return err
	}
	var paths []*path.Path
	var clusters []*path.Strait
	for _, name := range []string{result.FlowsOff, result.FlowsOn, result.FlowsRead} {
		c, err := r.site.Strait(path.StraitOptions{Name: name, Mode: "vxlan", Nodes: 1, Services: 10, Silent: name == result.FlowsOff})
		if err != nil {
			return fmt.Errorf("cluster %s: %w", name, err)
		}
		p, err := c.SameNode(name)
		if err == nil {
			p, err = c.Accounted(p)
		}
		if err == nil && name == result.FlowsRead {
			p, err = c.Read(p)
		}
		if p, err = r.note(p, err); err != nil {
			return err
		}
		paths, clusters = append(paths, p), append(clusters, c)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle): // agents have done what a start takes, and the reader follows
	}
	r.measure(ctx, paths, r.mainTests())
	for _, c := range clusters {
		if err := c.Reads(); err != nil {
			return err
		}
	}
	return r.programs(ctx, paths[:2], r.mainTests())
}

// floods finds out how many connections can be told of, and counts, with nobody who asks and with a client that follows. Each has a node of its own, whose
// agent ends with it: for minutes it would be busy with the connections that the flood has left.
func (r *rig) floods(ctx context.Context) error {
	for _, followed := range []bool{false, true} {
		name := "flood"
		if followed {
			name = "flood-read"
		}
		n, err := r.site.Flood(name)
		if err != nil {
			return err
		}
		if _, err := r.note(n.Path, nil); err != nil {
			return err
		}
		f := &flood{rig: r, node: n, length: 2 * time.Second}
		if r.Brief {
			f.length = time.Second
		}
		loads := f.loads
		if followed {
			loads = f.following
		}
		if err := errors.Join(loads(ctx), n.Retire()); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// flood makes the loads of a node and counts what became of them.
type flood struct {
	*rig
	node     *path.Flood
	length   time.Duration
	followed bool
}

// following makes the loads while a client follows all flows.
func (f *flood) following(ctx context.Context) error {
	if err := f.node.Follow(); err != nil {
		return err
	}
	f.followed = true
	err := f.received()
	if err == nil {
		err = f.loads(ctx)
	}
	_, ended := f.node.Unfollow()
	return errors.Join(err, ended)
}

var errSilent = errors.New("the client that follows receives nothing")

// received waits until the client follows: what was before is not its business.
func (f *flood) received() error {
	for end := time.Now().Add(allTold); time.Now().Before(end); {
		if _, err := f.node.Connections(slowest, 10*time.Millisecond); err != nil {
			return err
		}
		if _, err := f.worked(); err != nil {
			return err
		}
		if client, err := f.node.Followed(); err != nil || client.Flows > 0 {
			return err
		}
	}
	return errSilent
}

// loads makes all loads. TCP is before all others: what a flood leaves ends by itself later, at any time.
func (f *flood) loads(ctx context.Context) error {
	if err := f.keep(f.tcp()); err != nil {
		return err
	}
	if err := f.ramp(ctx); err != nil {
		return err
	}
	return f.keep(f.everything())
}

func (f *flood) keep(x result.Flood, err error) error {
	if err != nil {
		return err
	}
	f.run.Floods = append(f.run.Floods, x)
	f.Say("%s", x)
	return nil
}

// ramp searches the most connections per second of which none is lost.
func (f *flood) ramp(ctx context.Context) error {
	s := search{}
	for rate, found := slowest, false; !found && ctx.Err() == nil; {
		x, err := f.connections(rate)
		if err := f.keep(x, err); err != nil {
			return err
		}
		rate, found = s.next(rate, x.PerSecond, x.Complete())
	}
	return ctx.Err()
}

// search looks for the largest rate that is good: it doubles, then halves what is between.
type search struct {
	good, bad int // the largest and the smallest that were tried; 0: none
	narrowed  int
}

// next returns what to try after a rate, of which only so many per second could be reached; found: nothing.
func (s *search) next(rate int, reached float64, good bool) (next int, found bool) {
	if good {
		s.good = max(s.good, rate)
	} else {
		s.bad = rate
	}
	if s.bad == 0 {
		return 2 * rate, reached < 0.9*float64(rate) // more cannot be made to happen
	}
	s.narrowed++
	return (s.good + s.bad) / 2, s.narrowed > narrowing
}

// caused is what a load has made happen, by kind of record, and how many of them per second.
type caused struct {
	kinds     map[string]uint64
	perSecond float64
}

func (f *flood) connections(rate int) (result.Flood, error) {
	return f.count(result.LoadConnections, func() (caused, error) {
		sent, err := f.node.Connections(rate, f.length)
		return caused{map[string]uint64{result.New: sent.Sent}, sent.Rate()}, err
	})
}

func (f *flood) tcp() (result.Flood, error) {
	return f.count(result.LoadTCP, func() (caused, error) {
		s, err := f.node.Sample(rr.CRR, f.length)
		return caused{map[string]uint64{result.New: s.AllOps, result.Ended: s.AllOps}, 2 * s.Rate()}, err
	})
}

func (f *flood) everything() (result.Flood, error) {
	return f.count(result.LoadEverything, func() (caused, error) {
		open, shut, err := f.node.Everything(f.length)
		return caused{map[string]uint64{result.New: open.Sent, result.Denied: shut.Sent}, open.Rate() + shut.Rate()}, err
	})
}

// count makes a load and waits until everything is told or counted as lost, or time is up.
func (f *flood) count(load string, do func() (caused, error)) (out result.Flood, err error) {
	before, err := f.read()
	if err != nil {
		return out, err
	}
	c, err := do()
	if err != nil {
		return out, fmt.Errorf("%s: %w", load, err)
	}
	agent, err := f.worked()
	if err != nil {
		return out, err
	}
	for end := time.Now().Add(allTold); ; time.Sleep(200 * time.Millisecond) {
		after, err := f.read()
		if err != nil {
			return out, err
		}
		after.agent = agent // without what it costs to ask it
		out = result.Flood{Load: load, Followed: f.followed, RingBytes: int(after.metrics["strait_flow_ring_size_bytes"]), PerSecond: c.perSecond}
		after.minus(before).fill(&out, c.kinds)
		if out.Unaccounted() == 0 || time.Now().After(end) {
			return out, nil
		}
	}
}

// worked waits until the agent, and the client if there is one, are done with a load, and returns what CPU time the agent has used.
func (f *flood) worked() (time.Duration, error) {
	for last := uint64(0); ; {
		time.Sleep(150 * time.Millisecond)
		if !f.followed {
			return f.agent()
		}
		client, err := f.node.Followed()
		if err != nil {
			return 0, err
		}
		if client.Flows == last {
			return f.agent()
		}
		last = client.Flows
	}
}

func (f *flood) agent() (time.Duration, error) {
	used, err := cpuTicks(f.node.AgentDir())
	return time.Duration(used) * time.Second / ticks, err
}

// reading is what there is to count from.
type reading struct {
	metrics map[string]uint64
	client  node.Followed
	agent   time.Duration // CPU time
}

func (f *flood) read() (out reading, err error) {
	if out.metrics, err = f.node.Metrics(); err != nil {
		return out, err
	}
	if f.followed {
		if out.client, err = f.node.Followed(); err != nil {
			return out, err
		}
	}
	out.agent, err = f.agent()
	return out, err
}

// minus is what has come since an earlier reading.
func (r reading) minus(before reading) reading {
	out := reading{metrics: map[string]uint64{}, agent: r.agent - before.agent}
	for name, v := range r.metrics {
		out.metrics[name] = v - before.metrics[name]
	}
	out.client.Flows, out.client.Missed = r.client.Flows-before.client.Flows, r.client.Missed-before.client.Missed
	return out
}

// fill says what became of the kinds that were caused.
func (r reading) fill(out *result.Flood, kinds map[string]uint64) {
	lost := uint64(0)
	for _, kind := range []string{result.New, result.Ended, result.Denied} {
		records := r.metrics[`strait_flows_total{kind="`+kind+`"}`]
		out.Remembered += records
		c := result.FloodCount{Kind: kind, Caused: kinds[kind], Records: records, Told: records, Lost: r.metrics[`strait_flow_records_lost_total{kind="`+kind+`"}`]}
		lost += c.Lost
		if kind == result.Denied { // packets: a record may stand for many
			c.Told = r.metrics[`strait_flow_stopped_packets_total{direction="ingress",reason="policy-ingress"}`]
			c.Lost = r.metrics[`strait_flow_packets_lost_total{kind="denied"}`]
		}
		if c.Caused > 0 {
			out.Counts = append(out.Counts, c)
		}
	}
	if out.Remembered > 0 {
		out.AgentCPU = float64(r.agent.Microseconds()) / float64(out.Remembered)
	}
	if out.Followed {
		out.Client = &result.Client{Received: r.client.Flows, Missed: r.client.Missed, Comparable: lost == 0}
	}
}
