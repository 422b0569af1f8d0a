package rig

import (
	"context"
	"fmt"
	"time"

	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/result"
)

// turnsAt is the number of remote pods with which row 10 is measured.
const turnsAt = 10_000

// policies makes rows 5, 9 and 10, each with an API server of its own: what one has filled is not the other's business.
func (r *rig) policies(ctx context.Context) error {
	if r.wants("9", "10") {
		if err := r.crowds(ctx); err != nil {
			return err
		}
	}
	if r.wants("5") {
		return r.rules(ctx)
	}
	return nil
}

// crowds measures agents among other nodes' pods, and how fast they follow.
func (r *rig) crowds(ctx context.Context) error {
	cluster, err := r.site.Cluster("crowd")
	if err != nil {
		return err
	}
	defer cluster.Close()
	for _, pods := range r.Pods {
		for _, policies := range r.Policies {
			if !r.wants("9") && pods != turnsAt {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			begin := time.Now()
			if err := cluster.Gather(pods, policies); err != nil {
				return fmt.Errorf("store %d pods and %d policies: %w", pods, policies, err)
			}
			r.Say("%d pods and %d policies are at the API server after %s", pods, policies, time.Since(begin).Round(10*time.Millisecond))
			if err := r.crowd(cluster, pods, policies); err != nil {
				return fmt.Errorf("%d pods, %d policies: %w", pods, policies, err)
			}
		}
	}
	return nil
}

func (r *rig) crowd(cluster *path.Cluster, pods, policies int) error {
	m, err := cluster.Join(fmt.Sprintf("crowd-%d-%d", pods, policies), path.System{Name: result.Strait})
	if err != nil {
		return err
	}
	rest := 10 * time.Second
	if r.Brief {
		rest = 4 * time.Second
	}
	used, err := m.Watching(rest)
	if err != nil {
		return fmt.Errorf("%w: %s", err, m.Log())
	}
	r.Say("%d pods, %d policies: %s until pods are added, %s of CPU time, RSS %d MiB, peak %d MiB, idle %.1f milli, %d changes %s", pods, policies,
		used.Took.Round(time.Millisecond), used.CPU, used.RSS>>10, used.Peak>>10, used.Idle, used.Changed, used.Busy)
	if r.wants("9") {
		r.run.Crowds = append(r.run.Crowds, result.Crowd{Pods: pods, Policies: policies, Seconds: used.Took.Seconds(), CPU: used.CPU.Seconds(), RSSKiB: used.RSS,
			PeakKiB: used.Peak, IdleMilli: used.Idle, Changed: used.Changed, ChangeCPU: used.Busy.Seconds()})
	}
	if r.wants("10") && pods == turnsAt {
		turns, err := m.Turns(r.TurnCount)
		if err != nil {
			return fmt.Errorf("%w: %s", err, m.Log())
		}
		for _, t := range turns {
			turn := result.Turn{Kind: t.Kind, Pods: pods, Policies: policies}
			for i := range t.Took {
				turn.Ms, turn.WriteMs = append(turn.Ms, milli(t.Took[i])), append(turn.WriteMs, milli(t.Written[i]))
			}
			r.run.Turns = append(r.run.Turns, turn)
		}
	}
	return m.Retire()
}

// rules opens the paths of row 5.
func (r *rig) rules(ctx context.Context) error {
	cluster, err := r.site.Cluster("rules")
	if err != nil {
		return err
	}
	defer cluster.Close()
	for _, n := range result.Rules() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !r.PeersOnly {
			name := result.WithRules(result.Strait, n)
			m, err := cluster.Join(fmt.Sprintf("rules-%d", n), path.System{Name: result.Strait})
			if err != nil {
				return err
			}
			ruled, err := m.Ruled(name, n)
			if err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, m.Log())
			}
			r.Say("%d rules on a pod: %s until it is added, %s of CPU time, RSS %d MiB, peak %d MiB", n, ruled.Took.Round(time.Millisecond), ruled.CPU,
				ruled.RSS>>10, ruled.Peak>>10)
			r.run.Rulings = append(r.run.Rulings, result.Ruling{Rules: n, Seconds: ruled.Took.Seconds(), CPU: ruled.CPU.Seconds(), RSSKiB: ruled.RSS, PeakKiB: ruled.Peak})
			if err := m.Retire(); err != nil { // the kernel keeps what it has
				return err
			}
			if _, err := r.add(ruled.Path, nil); err != nil {
				return err
			}
		}
		if _, err := r.add(r.site.RuledByNft(result.WithRules(result.NftSets, n), n)); err != nil {
			return fmt.Errorf("%d rules by nftables: %w", n, err)
		}
	}
	return nil
}
