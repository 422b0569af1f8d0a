package operator

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/operator/address"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	statusWriters = 32          // Services written at once
	poolPause     = time.Second // between two writes of a pool's counts, so that many services cost few of them
)

// balancer gives Services of type LoadBalancer addresses out of pools. Everything but what mu guards belongs to the goroutine of run.
type balancer struct {
	cfg     config.Config
	client  *kube.Client
	events  *kube.Events
	metrics *metrics
	log     *slog.Logger
	nodes   *table.Table[state.Node]
	pools   *table.Table[state.Pool]
	claims  *table.Table[state.Claim]

	mu sync.Mutex
	// sent holds, by UID, the addresses that were written and that the service does not show yet: they are given to nobody else, even
	// if the answer to the request was lost.
	sent map[string][]netip.Addr

	said         map[string]string // by UID of a service or pool, the last thing an event said about it
	poolsWritten time.Time
}

// run begins when everything is known: before that, an address in use might look free.
func (b *balancer) run(ctx context.Context) error {
	for _, known := range []<-chan struct{}{b.nodes.Initialized(), b.pools.Initialized(), b.claims.Initialized()} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-known:
		}
	}
	wait := retryMin
	for {
		nodes, pools, claims := b.nodes.Snapshot(), b.pools.Snapshot(), b.claims.Snapshot()
		again, ok := b.round(ctx, slices.Collect(nodes.All()), slices.Collect(pools.All()), slices.Collect(claims.All()))
		if ok {
			wait = retryMin
		} else {
			again, wait = wait, min(2*wait, retryMax)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes.Changed():
		case <-pools.Changed():
		case <-claims.Changed():
		case <-time.After(again):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// round makes one plan and carries it out; it reports whether everything was accepted, and when to look again at the latest.
func (b *balancer) round(ctx context.Context, nodes []state.Node, pools []state.Pool, claims []state.Claim) (again time.Duration, ok bool) {
	p := b.plan(nodes, pools, claims)
	b.report(p)
	var group errgroup.Group // one that fails does not stop the others
	group.SetLimit(statusWriters)
	for i, c := range p.ours {
		want := p.grants[i]
		if c.shows(want) {
			continue
		}
		group.Go(func() error {
			b.remember(c.UID, want.Addresses)
			return b.settle(ctx, c.Claim, b.client.SetAllocation(ctx, c.Claim, want.Addresses, want.Says))
		})
	}
	for _, c := range p.abandoned {
		group.Go(func() error { return b.settle(ctx, c, b.client.ClearAllocation(ctx, c)) })
	}
	failed := group.Wait()
	again, err := b.writePools(ctx, p.verdicts)
	return again, failed == nil && err == nil
}

// claimant is a service of ours; what it shows is apart from what it holds, which may have been written a moment ago.
type claimant struct {
	state.Claim
	shown []netip.Addr
}

func (c claimant) shows(want address.Grant) bool {
	return slices.Equal(c.shown, want.Addresses) && !c.Foreign && c.Allocation == want.Says
}

// balance is everything that follows from the objects as they are.
type balance struct {
	verdicts  []poolVerdict
	ours      []claimant
	grants    []address.Grant // of ours
	abandoned []state.Claim   // not ours any more
}

// plan decides; it writes nothing.
func (b *balancer) plan(nodes []state.Node, pools []state.Pool, claims []state.Claim) balance {
	p := balance{verdicts: judgePools(pools, takenRanges(b.cfg, nodes, claims))}
	var mine, others []state.Claim
	for _, c := range claims {
		switch {
		case isOurs(c, pools):
			shown := c.Held
			c.Held = b.held(c)
			p.ours, mine = append(p.ours, claimant{c, shown}), append(mine, c)
		case c.Allocation.Reason != "":
			p.abandoned = append(p.abandoned, c)
		default:
			others = append(others, c)
		}
	}
	b.forget(mine)
	p.grants = address.Allocate(allocatorPools(p.verdicts), mine, others)
	given := map[netip.Addr]bool{}
	for _, g := range p.grants {
		for _, a := range g.Addresses {
			given[a] = true
		}
	}
	for _, c := range others {
		for _, a := range c.Held {
			given[a] = true
		}
	}
	countPools(p.verdicts, given)
	return p
}

// isOurs: a service without a class may be that of a cloud's controller. It is ours once we have said something about it, or if there
// is a pool and its addresses, if it has any, are of pools.
func isOurs(c state.Claim, pools []state.Pool) bool {
	switch {
	case c.Type != state.LoadBalancer:
		return false
	case c.Class == v1alpha1.LoadBalancerClass:
		return true
	case c.Class != "":
		return false
	case c.Allocation.Reason != "":
		return true
	case len(pools) == 0 || c.Foreign:
		return false
	}
	return !slices.ContainsFunc(c.Held, func(a netip.Addr) bool {
		return !slices.ContainsFunc(pools, func(p state.Pool) bool {
			return slices.ContainsFunc(p.Ranges, func(r state.AddressRange) bool { return r.Contains(a) })
		})
	})
}

// held returns what a service has: first what was written for it and it does not show yet, then what it shows.
func (b *balancer) held(c state.Claim) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	sent, waiting := b.sent[c.UID]
	if !waiting {
		return c.Held
	}
	if slices.Equal(sent, c.Held) {
		delete(b.sent, c.UID)
		return c.Held
	}
	return append(slices.Clone(sent), c.Held...)
}

// forget drops what was written for services that are gone.
func (b *balancer) forget(ours []state.Claim) {
	there := make(map[string]bool, len(ours))
	for _, c := range ours {
		there[c.UID] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for uid := range b.sent {
		if !there[uid] {
			delete(b.sent, uid)
		}
	}
}

func (b *balancer) remember(uid string, addresses []netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent[uid] = addresses
}

// settle looks at the answer to a write. After a refusal nothing was written; the object as it is now comes, or has come, with the
// watch.
func (b *balancer) settle(ctx context.Context, c state.Claim, err error) error {
	switch {
	case err == nil:
		b.metrics.allocations.Inc()
		return nil
	case errors.Is(err, kube.ErrRefused):
		b.mu.Lock()
		delete(b.sent, c.UID)
		b.mu.Unlock()
		b.log.Debug("service changed before its status was written", "service", c.String(), "err", err)
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	b.metrics.allocationErrors.Inc()
	b.log.Warn("status of service not written, to be tried again", "service", c.String(), "err", err)
	return err
}

// writePools writes the statuses that differ, counts alone not more often than poolPause.
func (b *balancer) writePools(ctx context.Context, verdicts []poolVerdict) (again time.Duration, failed error) {
	again = review
	soon := time.Until(b.poolsWritten.Add(poolPause))
	for _, v := range verdicts {
		counts := v.Shown
		counts.Counts = v.status.Counts
		switch {
		case v.Shown == v.status:
			continue
		case counts == v.status && soon > 0:
			again = soon
			continue
		}
		err := b.client.SetPoolStatus(ctx, v.Pool, v.status)
		if err != nil && !errors.Is(err, kube.ErrRefused) && ctx.Err() == nil {
			b.log.Warn("status of pool not written, to be tried again", "pool", v.Name, "err", err)
		}
		failed = errors.Join(failed, err)
		b.poolsWritten = time.Now()
	}
	return again, failed
}

// report tells people what is new: a refusal, and that it is over.
func (b *balancer) report(p balance) {
	b.metrics.showPools(p)
	now := make(map[string]string, len(b.said))
	for i, c := range p.ours {
		says := p.grants[i].Says
		text := says.Reason + ": " + says.Message
		if says.Done {
			text = ""
		}
		before, known := b.said[c.UID]
		if now[c.UID] = text; known && before == text {
			continue
		}
		switch {
		case !says.Done && (known || c.Allocation != says):
			b.events.Service(c.ServiceName, c.UID, kube.Warning, "Address"+says.Reason, says.Message)
		case says.Done && (c.Allocation.Reason != "" || known) && !c.Allocation.Done:
			b.events.Service(c.ServiceName, c.UID, kube.Normal, "AddressAllocated", says.Message)
		}
	}
	for _, v := range p.verdicts {
		text := ""
		if !v.status.Ready {
			text = v.status.Reason + ": " + strings.TrimSpace(v.status.Message)
		}
		before, known := b.said[v.UID]
		if now[v.UID] = text; known && before == text {
			continue
		}
		if text != "" && v.status.Reason != v1alpha1.ReasonDisabled && (v.Shown.Reason != v.status.Reason || v.Shown.Message != v.status.Message) {
			b.events.Pool(v.Name, v.UID, kube.Warning, "Pool"+v.status.Reason, v.status.Message)
		}
	}
	b.said = now
}
