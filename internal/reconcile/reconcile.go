// Package reconcile drives the kernel towards the rows of a desired table and notes the result in each row.
package reconcile

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/strait-net/strait/internal/table"
)

// Kind is the state of a row towards the kernel.
type Kind string

// The kinds of status. A row is written with the zero Status, which is pending.
const (
	Pending Kind = ""
	Done    Kind = "done"
	Error   Kind = "error"
)

// Status is embedded in the rows of desired tables. The owner of the table writes it zero; the reconciler fills it in.
type Status struct {
	Kind    Kind      `json:"kind"`
	Err     string    `json:"error,omitempty"`
	Updated time.Time `json:"updated,omitzero"`
}

// Result returns the status; it makes a row that embeds Status satisfy Row.
func (s Status) Result() Status { return s }

// Row is a desired row that carries its Status.
type Row[T any] interface {
	Result() Status
	WithStatus(Status) T
}

// Ops is what a reconciler can do to the kernel. Each call is idempotent.
type Ops[T any] interface {
	// Update makes the kernel hold the row.
	Update(ctx context.Context, row T) error
	// Delete makes the kernel not hold the row.
	Delete(ctx context.Context, row T) error
	// Prune removes from the kernel what is not in rows, repairs what differs, and describes each difference it found.
	// It is first called when every source of the table has delivered, then periodically.
	Prune(ctx context.Context, rows iter.Seq[T]) (differences []string, err error)
}

// Config is what a Reconciler needs. Table, Ops and Log are required.
type Config[T Row[T]] struct {
	Table *table.Table[T]
	Ops   Ops[T]
	Log   *slog.Logger
	// RetryMin and RetryMax bound the exponential back-off of a row that could not be applied. Default 50 ms, 30 s.
	RetryMin, RetryMax time.Duration
	// PruneEvery is the period of the drift check. Default 60 s.
	PruneEvery time.Duration
	// Observe, when set, is told of every operation ("update", "delete", "prune") with its duration and result.
	Observe func(operation string, took time.Duration, err error)
}

// Health sums up a reconciler for status and metrics.
type Health struct {
	Table     string    `json:"table"`
	Rows      int       `json:"rows"`
	Failing   int       `json:"failing"`
	LastError string    `json:"lastError,omitempty"`
	Pruned    time.Time `json:"pruned,omitzero"` // last successful drift check
	Drift     uint64    `json:"drift"`           // differences repaired since start, the first prune excepted
}

// Reconciler applies the rows of one table. Run owns everything but health.
type Reconciler[T Row[T]] struct {
	Config[T]
	retries  map[string]*retry[T]
	written  map[string]table.Revision // revision of our own status write
	pruned   chan struct{}
	firstRun bool

	mu     sync.Mutex
	health Health
}

type retry[T any] struct {
	change table.Change[T]
	wait   time.Duration
	at     time.Time
	err    error
}

// New returns a reconciler; Run starts it.
func New[T Row[T]](c Config[T]) *Reconciler[T] {
	if c.RetryMin == 0 {
		c.RetryMin = 50 * time.Millisecond
	}
	if c.RetryMax == 0 {
		c.RetryMax = 30 * time.Second
	}
	if c.PruneEvery == 0 {
		c.PruneEvery = time.Minute
	}
	if c.Observe == nil {
		c.Observe = func(string, time.Duration, error) {}
	}
	c.Log = c.Log.With("table", c.Table.Name())
	return &Reconciler[T]{
		Config:   c,
		retries:  map[string]*retry[T]{},
		written:  map[string]table.Revision{},
		pruned:   make(chan struct{}),
		firstRun: true,
		health:   Health{Table: c.Table.Name()},
	}
}

// Pruned is closed after the first successful prune: the kernel then holds exactly the table.
func (r *Reconciler[T]) Pruned() <-chan struct{} { return r.pruned }

// Health returns the current summary.
func (r *Reconciler[T]) Health() Health {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.health
}

// Run applies changes until ctx ends. A failing row never holds up another.
func (r *Reconciler[T]) Run(ctx context.Context) error {
	changes := r.Table.Changes()
	defer changes.Close()
	initialized := r.Table.Initialized()
	var prune <-chan time.Time
	for {
		batch, more := changes.Next()
		r.apply(ctx, batch)
		r.apply(ctx, r.due(time.Now()))
		r.report()
		timer := time.NewTimer(r.nextRetry(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-more:
		case <-timer.C:
		case <-initialized:
			initialized = nil
			prune = r.prune(ctx, changes)
		case <-prune:
			prune = r.prune(ctx, changes)
		}
		timer.Stop()
	}
}

// apply performs the newest operation of each key in order of first appearance.
func (r *Reconciler[T]) apply(ctx context.Context, batch []table.Change[T]) {
	newest := make(map[string]int, len(batch))
	for i, c := range batch {
		newest[r.Table.Key(c.Row)] = i
	}
	var results []result[T]
	for i, c := range batch {
		key := r.Table.Key(c.Row)
		if newest[key] != i || ctx.Err() != nil {
			continue
		}
		if !c.Deleted && r.written[key] == c.Revision {
			continue
		}
		err := r.do(ctx, c)
		r.note(key, c, err)
		if !c.Deleted {
			results = append(results, result[T]{c, err})
		}
	}
	r.writeStatus(results)
}

type result[T any] struct {
	change table.Change[T]
	err    error
}

func (r *Reconciler[T]) do(ctx context.Context, c table.Change[T]) error {
	begin, operation := time.Now(), "update"
	var err error
	if c.Deleted {
		operation = "delete"
		err = r.Ops.Delete(ctx, c.Row)
	} else {
		err = r.Ops.Update(ctx, c.Row)
	}
	r.Observe(operation, time.Since(begin), err)
	if err != nil {
		r.Log.Warn("row not applied", "operation", operation, "key", r.Table.Key(c.Row), "err", err)
	}
	return err
}

func (r *Reconciler[T]) note(key string, c table.Change[T], err error) {
	if c.Deleted {
		delete(r.written, key)
	}
	if err == nil {
		delete(r.retries, key)
		return
	}
	wait := r.RetryMin
	if old := r.retries[key]; old != nil && old.change.Revision == c.Revision {
		wait = min(2*old.wait, r.RetryMax)
	}
	r.retries[key] = &retry[T]{change: c, wait: wait, at: time.Now().Add(wait), err: err}
}

// writeStatus notes results in rows that have not changed meanwhile.
func (r *Reconciler[T]) writeStatus(results []result[T]) {
	if len(results) == 0 {
		return
	}
	now := time.Now()
	r.Table.Write(func(tx *table.Txn[T]) {
		for _, res := range results {
			status := Status{Kind: Done, Updated: now}
			if res.err != nil {
				status = Status{Kind: Error, Err: res.err.Error(), Updated: now}
			}
			key := r.Table.Key(res.change.Row)
			row, rev, ok := tx.Get(key)
			if !ok || rev != res.change.Revision {
				continue
			}
			if old := row.Result(); old.Kind == status.Kind && old.Err == status.Err {
				continue
			}
			written := tx.Insert(row.WithStatus(status))
			r.written[key] = written
			if again := r.retries[key]; again != nil {
				again.change.Revision = written
			}
		}
	})
}

func (r *Reconciler[T]) due(now time.Time) []table.Change[T] {
	var out []table.Change[T]
	snapshot := r.Table.Snapshot()
	for key, again := range r.retries {
		if again.at.After(now) {
			continue
		}
		// A newer row, or a row again where one was deleted, supersedes the retry: its own change is applied.
		if _, rev, ok := snapshot.Get(key); ok && rev == again.change.Revision {
			delete(r.written, key) // our own status write must not make apply skip it
			out = append(out, again.change)
		} else if !ok && again.change.Deleted {
			out = append(out, again.change)
		} else {
			delete(r.retries, key)
		}
	}
	return out
}

func (r *Reconciler[T]) nextRetry(now time.Time) time.Duration {
	wait := r.PruneEvery
	for _, again := range r.retries {
		wait = min(wait, again.at.Sub(now))
	}
	return max(wait, 0)
}

// prune first applies what has come in, so that a row still on its way is not taken for a difference.
func (r *Reconciler[T]) prune(ctx context.Context, changes *table.Changes[T]) <-chan time.Time {
	batch, _ := changes.Next()
	r.apply(ctx, batch)
	begin := time.Now()
	differences, err := r.Ops.Prune(ctx, r.Table.Snapshot().All())
	r.Observe("prune", time.Since(begin), err)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			r.Log.Warn("prune incomplete", "err", err)
		}
		r.mu.Lock()
		r.health.LastError = err.Error()
		r.mu.Unlock()
		return time.After(max(r.RetryMin, r.PruneEvery/10))
	}
	for _, d := range differences {
		r.Log.Info("kernel differed from the table, repaired", "difference", d)
	}
	r.mu.Lock()
	r.health.Pruned = time.Now()
	if !r.firstRun {
		r.health.Drift += uint64(len(differences))
	}
	r.mu.Unlock()
	if r.firstRun {
		r.firstRun = false
		close(r.pruned)
	}
	return time.After(r.PruneEvery)
}

func (r *Reconciler[T]) report() {
	h := Health{Rows: r.Table.Snapshot().Len(), Failing: len(r.retries)}
	for _, again := range r.retries {
		h.LastError = r.Table.Key(again.change.Row) + ": " + again.err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.health.Rows, r.health.Failing, r.health.LastError = h.Rows, h.Failing, h.LastError
}
