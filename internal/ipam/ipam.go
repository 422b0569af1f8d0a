// Package ipam gives a node's pod addresses to sandboxes: next fit over the node's prefixes, with a cool-down before reuse.
//
// An address is in one of three states, and the allocator remembers only those that are not free, so a /64 costs no more
// than a /24:
//
//	free --Allocate, Restore--> owned --Release--> cooling --time--> free
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Errors of the allocator, wrapped with the addresses and owners concerned.
var (
	// ErrNoPools is returned by Allocate before SetPools.
	ErrNoPools = errors.New("the node has no pod CIDR yet")
	// ErrExhausted is matched by the ExhaustedError that Allocate returns.
	ErrExhausted = errors.New("address pool is exhausted")
	// ErrInUse is returned by Restore for an address another owner holds.
	ErrInUse = errors.New("address is in use")
	// ErrForeign is returned by Restore for an address outside every pool.
	ErrForeign = errors.New("address is outside the node's pod CIDRs")
)

// ExhaustedError says why there is no free address in any pool of a family.
type ExhaustedError struct {
	Pools   []netip.Prefix
	InUse   int
	Cooling int
	Until   time.Time // when the first of the cooling addresses is free; zero when none cools down
}

func (e *ExhaustedError) Error() string {
	s := fmt.Sprintf("pool %v is exhausted: %d in use", e.Pools[0], e.InUse)
	if len(e.Pools) > 1 {
		s = fmt.Sprintf("pools %v are exhausted: %d in use", e.Pools, e.InUse)
	}
	if e.Cooling > 0 {
		s += fmt.Sprintf(", %d cooling down until %s", e.Cooling, e.Until.UTC().Format(time.RFC3339))
	}
	return s
}

// Is makes errors.Is(err, ErrExhausted) hold.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// PoolReport is the fill of one pool.
type PoolReport struct {
	Prefix   netip.Prefix
	Capacity uint64 // usable addresses; saturates at the largest uint64
	InUse    int
	Cooling  int
}

// Allocator gives addresses of the pools to owners. It is safe for concurrent use.
type Allocator struct {
	coolDown time.Duration

	mu      sync.Mutex // guards everything below
	pools   []pool
	owners  map[string][]netip.Addr
	owned   map[netip.Addr]string
	cooling map[netip.Addr]time.Time // until when
	queue   []cooled                 // sorted by until; an entry that no longer agrees with cooling is void
}

type cooled struct {
	addr  netip.Addr
	until time.Time
}

// New returns an allocator without pools. A released address is given out again coolDown later at the earliest.
func New(coolDown time.Duration) *Allocator {
	return &Allocator{
		coolDown: coolDown,
		owners:   map[string][]netip.Addr{},
		owned:    map[netip.Addr]string{},
		cooling:  map[netip.Addr]time.Time{},
	}
}

// SetPools replaces the prefixes that addresses are given from. Addresses that are owned or cool down stay so, also
// when they are in no pool any more. On an error the pools are as before.
func (a *Allocator) SetPools(prefixes []netip.Prefix) error {
	pools := make([]pool, 0, len(prefixes))
	for i, prefix := range prefixes {
		p, err := newPool(prefix)
		if err != nil {
			return err
		}
		for _, other := range prefixes[:i] {
			if other.Overlaps(prefix) {
				return fmt.Errorf("pool %v overlaps pool %v", prefix, other)
			}
		}
		pools = append(pools, p)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pools = pools
	for addr := range a.owned {
		if p := a.poolLocked(addr); p != nil {
			p.inUse++
			if p.cursor.Compare(addr) <= 0 { // a fresh pool: go on behind the highest address in use
				p.cursor = p.after(addr)
			}
		}
	}
	for addr := range a.cooling {
		if p := a.poolLocked(addr); p != nil {
			p.cooling++
		}
	}
	return nil
}

// Allocate gives owner one address of each family that has a pool, IPv4 first. An owner that holds addresses gets
// the same ones again. Nothing is taken when a family is exhausted.
func (a *Allocator) Allocate(owner string, now time.Time) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if held := a.owners[owner]; held != nil {
		return slices.Clone(held), nil
	}
	if len(a.pools) == 0 {
		return nil, ErrNoPools
	}
	a.thawLocked(now)
	var addrs []netip.Addr
	for _, v6 := range []bool{false, true} {
		p, err := a.roomLocked(v6)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		addrs = append(addrs, a.nextLocked(p))
	}
	for _, addr := range addrs {
		p := a.poolLocked(addr)
		p.cursor = p.after(addr)
		a.ownLocked(owner, addr)
	}
	return slices.Clone(addrs), nil
}

// Restore makes owner hold addresses it was given in an earlier life of the agent. With ErrInUse nothing has changed;
// with ErrForeign the addresses are held all the same, since the sandbox has them whatever the pools say.
func (a *Allocator) Restore(owner string, addrs ...netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		if o, ok := a.owned[addr]; ok && o != owner {
			return fmt.Errorf("restore address %v of %s: %w by %s", addr, owner, ErrInUse, o)
		}
	}
	var foreign error
	for _, addr := range addrs {
		p := a.poolLocked(addr)
		if p == nil && len(a.pools) > 0 {
			foreign = fmt.Errorf("restore address %v of %s: %w %v", addr, owner, ErrForeign, a.prefixesLocked())
		}
		if _, ok := a.owned[addr]; ok {
			continue
		}
		if _, ok := a.cooling[addr]; ok {
			delete(a.cooling, addr)
			if p != nil {
				p.cooling--
			}
		}
		a.ownLocked(owner, addr)
	}
	return foreign
}

// Release takes the owner's addresses back; they cool down from now on. It returns them; none if there is no such owner.
func (a *Allocator) Release(owner string, now time.Time) []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	addrs := a.owners[owner]
	delete(a.owners, owner)
	for _, addr := range addrs {
		delete(a.owned, addr)
		if p := a.poolLocked(addr); p != nil {
			p.inUse--
		}
		a.coolLocked(addr, now.Add(a.coolDown))
	}
	return addrs
}

// Cool keeps a free address from being given out until the time; for addresses released in an earlier life of the agent.
// An address with an owner is left alone.
func (a *Allocator) Cool(addr netip.Addr, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.owned[addr]; !ok {
		a.coolLocked(addr, until)
	}
}

// CoolDown returns how long a released address rests.
func (a *Allocator) CoolDown() time.Duration { return a.coolDown }

// Owner returns who holds the address.
func (a *Allocator) Owner(addr netip.Addr) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o, ok := a.owned[addr]
	return o, ok
}

// Foreign returns the addresses that have an owner and are in no pool, sorted. Without pools there are none.
func (a *Allocator) Foreign() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.pools) == 0 {
		return nil
	}
	var out []netip.Addr
	for addr := range a.owned {
		if a.poolLocked(addr) == nil {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Report returns the fill of each pool, in the order of SetPools.
func (a *Allocator) Report(now time.Time) []PoolReport {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.thawLocked(now)
	out := make([]PoolReport, 0, len(a.pools))
	for i := range a.pools {
		p := &a.pools[i]
		out = append(out, PoolReport{Prefix: p.prefix, Capacity: p.capacity, InUse: p.inUse, Cooling: p.cooling})
	}
	return out
}

// Ready returns nil if Allocate would succeed now, else the error it would return.
func (a *Allocator) Ready(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.pools) == 0 {
		return ErrNoPools
	}
	a.thawLocked(now)
	for _, v6 := range []bool{false, true} {
		if _, err := a.roomLocked(v6); err != nil {
			return err
		}
	}
	return nil
}

// roomLocked returns the first pool of the family with a free address; nil if the family has no pools.
func (a *Allocator) roomLocked(v6 bool) (*pool, error) {
	e := &ExhaustedError{}
	for i := range a.pools {
		p := &a.pools[i]
		if p.prefix.Addr().Is6() != v6 {
			continue
		}
		if !p.full() {
			return p, nil
		}
		e.Pools = append(e.Pools, p.prefix)
		e.InUse += p.inUse
		e.Cooling += p.cooling
		for addr, until := range a.cooling {
			if p.usable(addr) && (e.Until.IsZero() || until.Before(e.Until)) {
				e.Until = until
			}
		}
	}
	if e.Pools == nil {
		return nil, nil
	}
	return nil, e
}

// nextLocked returns the next free address of a pool that is not full.
func (a *Allocator) nextLocked(p *pool) netip.Addr {
	for addr := p.cursor; ; addr = p.after(addr) {
		if _, ok := a.owned[addr]; ok {
			continue
		}
		if _, ok := a.cooling[addr]; ok {
			continue
		}
		return addr
	}
}

func (a *Allocator) ownLocked(owner string, addr netip.Addr) {
	a.owned[addr] = owner
	a.owners[owner] = append(a.owners[owner], addr)
	if p := a.poolLocked(addr); p != nil {
		p.inUse++
	}
}

func (a *Allocator) coolLocked(addr netip.Addr, until time.Time) {
	if _, ok := a.cooling[addr]; !ok {
		if p := a.poolLocked(addr); p != nil {
			p.cooling++
		}
	}
	a.cooling[addr] = until
	at, _ := slices.BinarySearchFunc(a.queue, until, func(c cooled, t time.Time) int {
		if c.until.After(t) {
			return 1
		}
		return -1
	})
	a.queue = slices.Insert(a.queue, at, cooled{addr, until})
}

// thawLocked frees the addresses whose cool-down is over.
func (a *Allocator) thawLocked(now time.Time) {
	n := 0
	for ; n < len(a.queue) && !a.queue[n].until.After(now); n++ {
		c := a.queue[n]
		if until, ok := a.cooling[c.addr]; !ok || !until.Equal(c.until) {
			continue // taken by Restore, or cooled again since
		}
		delete(a.cooling, c.addr)
		if p := a.poolLocked(c.addr); p != nil {
			p.cooling--
		}
	}
	a.queue = slices.Delete(a.queue, 0, n)
}

// poolLocked returns the pool that could give out the address, or nil.
func (a *Allocator) poolLocked(addr netip.Addr) *pool {
	for i := range a.pools {
		if a.pools[i].usable(addr) {
			return &a.pools[i]
		}
	}
	return nil
}

func (a *Allocator) prefixesLocked() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a.pools {
		out = append(out, p.prefix)
	}
	return out
}
