package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	checkEvery = 10 * time.Second      // a few pods are computed from scratch
	checkAgain = 20 * time.Millisecond // what differs may be about to change
	checkPods  = 20                    // at a time; on demand all local ones, and at most
	checkLimit = 5000
)

// Difference is something that is in force and does not follow from what Kubernetes says.
type Difference struct{ Table, Key, Text string }

// policyCheck is a comparison that somebody waits for, or that the loop makes by itself.
type policyCheck struct {
	locals, pods int                 // at most
	first        map[Difference]bool // what differed at the first look; nil: there was none
	at           time.Time           // of the next look
	rows         int
	found        []Difference
	done         chan struct{} // nil: nobody waits
}

// Check computes programs of local pods and identities from scratch, and compares them with what was computed step by step. What differs is
// computed again, and brought into force.
func (p *Policies) Check(ctx context.Context) (rows int, found []Difference, err error) {
	c := &policyCheck{locals: checkLimit, pods: checkLimit, done: make(chan struct{})}
	select {
	case p.checks <- c:
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("compare policy with what Kubernetes says: %w", ctx.Err())
	}
	select {
	case <-c.done:
		return c.rows, c.found, nil
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("compare policy with what Kubernetes says: %w", ctx.Err())
	}
}

// check makes the comparisons that are due. What has changed since the last step differs, too, but not for long.
func (p *Policies) check(now time.Time) {
	if p.ownCheck.at.IsZero() {
		p.ownCheck = policyCheck{locals: 1, pods: checkPods, at: now.Add(checkEvery)}
	}
	p.look(&p.ownCheck, now)
	p.checking = slices.DeleteFunc(p.checking, func(c *policyCheck) bool {
		p.look(c, now)
		return c.first == nil
	})
}

// look compares once. first is nil when nothing is left to do.
func (p *Policies) look(c *policyCheck, now time.Time) {
	if p.unsettled || now.Before(c.at) {
		return
	}
	differ := map[Difference]func(){}
	c.rows = p.comparePrograms(c.locals, differ) + p.compareIdentities(c.pods, differ)
	if c.first == nil && len(differ) > 0 {
		c.first, c.at = map[Difference]bool{}, now.Add(checkAgain)
		for d := range differ {
			c.first[d] = true
		}
		return
	}
	for d, repair := range differ {
		if c.first[d] {
			c.found = append(c.found, d)
			repair()
		}
	}
	slices.SortFunc(c.found, func(a, b Difference) int { return compareTexts(a.Table+a.Key, b.Table+b.Key) })
	if len(c.found) > 0 {
		p.Log.Error("policy differs from what Kubernetes says", "found", c.found)
		p.repair = true
	}
	c.first = nil
	if c.done != nil {
		close(c.done)
		return
	}
	*c = policyCheck{locals: c.locals, pods: c.pods, at: now.Add(checkEvery)}
}

func compareTexts(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// comparePrograms asks every policy there is about some local pods.
func (p *Policies) comparePrograms(limit int, differ map[Difference]func()) (rows int) {
	s := p.subjects
	pods, policies := p.State.Pods.Snapshot(), p.State.Policies.Snapshot()
	for l := range s.everyone() { // in another order each time
		if rows++; rows > limit {
			return limit
		}
		if l.refused != nil {
			continue
		}
		now := *l
		if row, _, ok := pods.Get(l.podKey()); ok && l.key != "" && samePod(row.UID, l.uid) {
			now.pod = &row
			now.peer = podPeer(&row, p.State.Namespaces.Snapshot())
		}
		set := s.setOf(&now)
		set.Policies = nil
		for row := range policies.All() {
			for i := range row.Specs {
				if spec := (&spec{Policy: &row.Specs[i]}); now.selectedBy(spec) {
					set.Policies = append(set.Policies, spec.Policy)
				}
			}
		}
		want := policy.ID(0)
		if set.Mode == policy.ModeAlways || set.Mode == policy.ModeDefault && len(set.Policies) > 0 {
			want = set.ID()
		}
		if have := idOf(l.want); have != want {
			key := "node"
			if l.key != "" {
				key = l.podKey()
			}
			differ[Difference{"programs", key, fmt.Sprintf("is judged by program %s, want %s", identity.ID(have), identity.ID(want))}] = func() {
				s.dirty[l] = true
			}
		}
	}
	return rows
}

// compareIdentities asks every selector in use about some pods.
func (p *Policies) compareIdentities(limit int, differ map[Difference]func()) (rows int) {
	if !p.peers.short.until.IsZero() {
		return 0 // rows are not as they should be, which is said
	}
	index := policy.NewIndex()
	for _, u := range p.subjects.uses {
		for _, w := range u.program.Selectors() {
			index.Add(w)
		}
	}
	for _, w := range p.peers.released {
		index.Add(w)
	}
	spaces := p.State.Namespaces.Snapshot()
	for pod := range somePods(p.State.Pods.Snapshot(), limit) {
		if pod.HostNetwork {
			continue
		}
		for _, a := range p.peers.believed(&pod, p.subjects) {
			if owner := p.peers.owners[a]; owner != "" && owner != pod.Key() {
				continue // it is somebody else's: a local attachment's, mostly
			}
			peer := podPeer(&pod, spaces)
			peer.Prefix, peer.APIServer, peer.Services = host(a), p.peers.servers[a], p.peers.services[a]
			rows++
			if have, want := p.peers.known(a), index.Match(&peer); !slices.Equal(have, want) {
				differ[Difference{"identities", a.String(), fmt.Sprintf("pod %s is taken for %v, want %v", pod.Key(), selectorsOf(have), selectorsOf(want))}] = func() {
					p.peers.stale[pod.Key()] = true
				}
			}
		}
	}
	return rows
}

// known returns the selectors that the rows say of an address.
func (p *peers) known(a netip.Addr) policy.Matches {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if outer, err := a.Prefix(bits); err == nil {
			if id := p.rows[outer]; id != nil {
				return id.Matches
			}
		}
	}
	return nil
}

func selectorsOf(ms policy.Matches) []string {
	out := make([]string, 0, len(ms))
	for _, m := range ms {
		out = append(out, m.Selector)
	}
	return slices.Compact(out)
}

// somePods yields at most limit pods, from somewhere on in their order.
func somePods(pods table.Snapshot[state.Pod], limit int) func(func(state.Pod) bool) {
	skip := 0
	if n := pods.Len(); n > limit {
		skip = int(time.Now().UnixNano() % int64(n-limit))
	}
	return func(yield func(state.Pod) bool) {
		for pod := range pods.All() {
			if skip > 0 {
				skip--
				continue
			}
			if limit--; limit < 0 || !yield(pod) {
				return
			}
		}
	}
}
