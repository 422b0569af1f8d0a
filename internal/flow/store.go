package flow

import (
	"context"
	"iter"
	"maps"
	"sync"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

const (
	// chunk is how many flows a reader copies at a time: it holds the writer up for no longer than that takes.
	chunk = 64
	// window is what Counts.PerSecond is over, in seconds.
	window = 60
	// disorder is how far events may be out of order: those of the sweep are read beside those of the ring.
	disorder = time.Second
)

// Store remembers the last flows. One goroutine appends; any number may read, each in its own time: who falls behind is told how many flows
// it has missed.
type Store struct {
	mu      sync.RWMutex // guards everything below
	ring    []Flow       // flow n is at (n-1) % len
	last    uint64       // Number of the newest flow; 0: there was none yet
	counts  Counts       // without Stopped
	stopped map[Stop]Traffic
	began   time.Time      // first Append
	seconds [window]second // by Unix second % window
	waiting chan struct{}  // closed by the next Append; nil: nobody waits
}

type second struct {
	at int64 // Unix
	n  uint64
}

// Counts sum up what a Store has been told.
type Counts struct {
	Seen   uint64           // flows ever, without those of kind Lost
	ByKind [Kinds]uint64    // of them, by Kind
	Lost   [Kinds]LostCount // records that the kernel had no room for, by Kind
	Kept   int              // flows that can be read
	Max    int              // at most
	// Stopped is what was denied and dropped, as far as it was told.
	Stopped map[Stop]Traffic
	// PerSecond is how many flows there were per second in the last minute.
	PerSecond float64
}

// Stop is why packets were stopped.
type Stop struct {
	Reason verdict.Reason
	Way    policy.Way
}

// LostCount is a number of records that were lost, and of the packets they would have stood for.
type LostCount struct {
	Records uint64
	Traffic
}

// LostRecords is the sum over all kinds.
func (c Counts) LostRecords() (n uint64) {
	for _, l := range c.Lost {
		n += l.Records
	}
	return n
}

// NewStore returns a store of the last keep flows, at least 1.
func NewStore(keep int) *Store {
	return &Store{ring: make([]Flow, max(keep, 1)), stopped: map[Stop]Traffic{}}
}

// Append adds flows, the oldest first, and gives them their numbers; flows is not kept. now is what Counts counts by.
func (s *Store) Append(now time.Time, flows []Flow) {
	if len(flows) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began.IsZero() {
		s.began = now
	}
	for i := range flows {
		s.last++
		slot := &s.ring[(s.last-1)%uint64(len(s.ring))]
		*slot = flows[i]
		slot.Number = s.last
		s.countLocked(slot, now)
	}
	if s.waiting != nil {
		close(s.waiting)
		s.waiting = nil
	}
}

func (s *Store) countLocked(f *Flow, now time.Time) {
	if f.Kind == Lost {
		l := &s.counts.Lost[f.LostKind%Kinds]
		l.Records += f.LostRecords
		l.Traffic = l.Add(f.Sent)
		return
	}
	s.counts.Seen++
	s.counts.ByKind[f.Kind%Kinds]++
	if f.Kind.Stops() {
		why := Stop{f.Reason, f.Way()}
		s.stopped[why] = s.stopped[why].Add(f.Sent)
	}
	at := now.Unix()
	if b := &s.seconds[at%window]; b.at == at {
		b.n++
	} else {
		*b = second{at, 1}
	}
}

// Counts sums up what there was until now.
func (s *Store) Counts(now time.Time) Counts {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.counts
	c.Stopped = maps.Clone(s.stopped)
	c.Kept, c.Max = int(s.last+1-s.oldestLocked()), len(s.ring)
	var n uint64
	for _, b := range s.seconds {
		if b.at > now.Unix()-window {
			n += b.n
		}
	}
	if over := min(now.Sub(s.began).Seconds(), window); over > 0 && n > 0 {
		c.PerSecond = float64(n) / max(over, 1)
	}
	return c
}

// oldestLocked returns the number of the oldest flow that is kept; of an empty store, that of the first.
func (s *Store) oldestLocked() uint64 {
	if keep := uint64(len(s.ring)); s.last > keep {
		return s.last - keep + 1
	}
	return 1
}

func (s *Store) atLocked(number uint64) *Flow { return &s.ring[(number-1)%uint64(len(s.ring))] }

// Cursor is a position between flows: a reader. For one goroutine.
type Cursor struct {
	store *Store
	next  uint64 // Number of the first flow after batch
	batch []Flow // read ahead: what is left of ahead
	ahead []Flow
	// missed were overwritten before batch could be read; told with its first flow.
	missed uint64
}

// Oldest returns a cursor before the oldest flow that is kept.
func (s *Store) Oldest() *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Cursor{store: s, next: s.oldestLocked()}
}

// Last returns a cursor before the last n flows, or as many as are kept; Last(0) is after the newest.
func (s *Store) Last(n uint64) *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Cursor{store: s, next: max(s.oldestLocked(), s.last+1-min(n, s.last))}
}

// From returns a cursor before the flow with a number, or before the oldest if that is newer.
func (s *Store) From(number uint64) *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Cursor{store: s, next: max(number, s.oldestLocked())}
}

// Since returns a cursor before the first flow that is not older than t. Flows are nearly in order of time: a few that are older may follow.
func (s *Store) Since(t time.Time) *Cursor {
	s.mu.RLock()
	defer s.mu.RUnlock()
	lo, hi := s.oldestLocked(), s.last+1
	for t = t.Add(-disorder); lo < hi; {
		if mid := lo + (hi-lo)/2; s.atLocked(mid).Time.Before(t) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return &Cursor{store: s, next: lo}
}

// Try returns the next flow if there is one, and how many were overwritten before they could be read.
func (c *Cursor) Try() (f Flow, missed uint64, ok bool) {
	if len(c.batch) == 0 && !c.read() {
		return Flow{}, 0, false
	}
	f, c.batch = c.batch[0], c.batch[1:]
	missed, c.missed = c.missed, 0
	return f, missed, true
}

// Next is Try that waits until there is a flow. The error is that of ctx.
func (c *Cursor) Next(ctx context.Context) (f Flow, missed uint64, err error) {
	for {
		if f, missed, ok := c.Try(); ok {
			return f, missed, nil
		}
		select {
		case <-ctx.Done():
			return Flow{}, 0, ctx.Err()
		case <-c.store.after(c.next):
		}
	}
}

// read reads ahead.
func (c *Cursor) read() bool {
	s := c.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if oldest := s.oldestLocked(); c.next < oldest {
		c.missed, c.next = c.missed+oldest-c.next, oldest
	}
	c.ahead = c.ahead[:0]
	for ; c.next <= s.last && len(c.ahead) < chunk; c.next++ {
		c.ahead = append(c.ahead, *s.atLocked(c.next))
	}
	c.batch = c.ahead
	return len(c.batch) > 0
}

// after returns a channel that is closed when the flow with the number is there.
func (s *Store) after(number uint64) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last >= number {
		there := make(chan struct{})
		close(there)
		return there
	}
	if s.waiting == nil {
		s.waiting = make(chan struct{})
	}
	return s.waiting
}

// Backward yields the flows that are kept, the newest first. It ends where flows have been overwritten meanwhile.
func (s *Store) Backward() iter.Seq[Flow] {
	return func(yield func(Flow) bool) {
		s.mu.RLock()
		last := s.last
		s.mu.RUnlock()
		batch := make([]Flow, 0, chunk)
		for {
			batch = s.before(last+1, batch[:0])
			if len(batch) == 0 {
				return
			}
			for _, f := range batch {
				if !yield(f) {
					return
				}
			}
			last -= uint64(len(batch))
		}
	}
}

// before appends flows with smaller numbers, the newest first, as many as fit.
func (s *Store) before(number uint64, into []Flow) []Flow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for oldest := s.oldestLocked(); number > oldest && len(into) < cap(into); {
		number--
		into = append(into, *s.atLocked(number))
	}
	return into
}
