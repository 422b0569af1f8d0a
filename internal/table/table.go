// Package table holds rows as immutable snapshots with indexes, revisions, watch channels and a feed of changes.
//
// A table is written under one lock and read without any: a Snapshot never changes. The primary key and every index
// are trees of github.com/hashicorp/go-immutable-radix, so that a snapshot costs nothing and a write O(key length).
package table

import (
	"encoding/binary"
	"iter"
	"sync"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Revision counts commits that changed a row; it grows by one with each changed row and is never 0 for a row.
type Revision = uint64

// Index is a secondary, non-unique key. Keys returns the values a row is found by.
type Index[T any] struct {
	Name string
	Keys func(T) []string
}

// Table is a set of rows of one type, unique by primary key.
type Table[T any] struct {
	name    string
	key     func(T) string
	indexes []Index[T]

	mu      sync.Mutex // serialises writers, guards everything below
	current *version[T]
	changes map[*Changes[T]]struct{}
	pending map[string]struct{} // sources that have not delivered everything yet
	started bool                // a source has registered
	synced  chan struct{}
}

// entry is shared by every tree the row is in, and never changes.
type entry[T any] struct {
	row T
	rev Revision
}

// version is one immutable state of the table. dead holds deleted rows by revision until every Changes has seen them.
type version[T any] struct {
	rev     Revision
	rows    *iradix.Tree[*entry[T]]
	byRev   *iradix.Tree[*entry[T]]
	dead    *iradix.Tree[*entry[T]]
	indexes []*iradix.Tree[*entry[T]]
	changed chan struct{} // closed by the commit that replaces this version
}

// New returns an empty table. key returns a row's primary key; rows with equal keys replace each other.
func New[T any](name string, key func(T) string, indexes ...Index[T]) *Table[T] {
	v := &version[T]{
		rows:    iradix.New[*entry[T]](),
		byRev:   iradix.New[*entry[T]](),
		dead:    iradix.New[*entry[T]](),
		changed: make(chan struct{}),
	}
	for range indexes {
		v.indexes = append(v.indexes, iradix.New[*entry[T]]())
	}
	return &Table[T]{
		name:    name,
		key:     key,
		indexes: indexes,
		current: v,
		changes: map[*Changes[T]]struct{}{},
		pending: map[string]struct{}{},
		synced:  make(chan struct{}),
	}
}

// Name returns the table's name.
func (t *Table[T]) Name() string { return t.name }

// Key returns the primary key of a row.
func (t *Table[T]) Key(row T) string { return t.key(row) }

// Register announces a source whose rows are still coming: the table is not initialised before done is called.
// It is an error of the caller to register after the table was initialised; such a source is ignored.
func (t *Table[T]) Register(source string) (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = true
	t.pending[source] = struct{}{}
	var once sync.Once
	return func() {
		once.Do(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.pending, source)
			if len(t.pending) == 0 {
				select {
				case <-t.synced:
				default:
					close(t.synced)
				}
			}
		})
	}
}

// Initialized is closed once at least one source had registered and all of them are done.
func (t *Table[T]) Initialized() <-chan struct{} { return t.synced }

// Pending returns the sources that have not delivered everything yet.
func (t *Table[T]) Pending() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for n := range t.pending {
		names = append(names, n)
	}
	return names
}

// Write runs fn with a transaction; all its changes become visible at once when fn returns.
func (t *Table[T]) Write(fn func(*Txn[T])) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := newTxn(t)
	fn(tx)
	t.commitLocked(tx)
}

// Insert adds or replaces rows in one transaction.
func (t *Table[T]) Insert(rows ...T) {
	t.Write(func(tx *Txn[T]) {
		for _, r := range rows {
			tx.Insert(r)
		}
	})
}

// Delete removes rows by primary key in one transaction; absent keys are ignored.
func (t *Table[T]) Delete(keys ...string) {
	t.Write(func(tx *Txn[T]) {
		for _, k := range keys {
			tx.Delete(k)
		}
	})
}

// CompareAndSwap replaces the row with the same key if its revision is still rev, and reports whether it did.
// The returned revision is the row's new one.
func (t *Table[T]) CompareAndSwap(row T, rev Revision) (now Revision, swapped bool) {
	t.Write(func(tx *Txn[T]) {
		if _, at, ok := tx.Get(t.key(row)); ok && at == rev {
			now = tx.Insert(row)
			swapped = true
		}
	})
	return now, swapped
}

// Snapshot returns the table as it is now.
func (t *Table[T]) Snapshot() Snapshot[T] {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Snapshot[T]{version: t.current, table: t}
}

func (t *Table[T]) commitLocked(tx *Txn[T]) {
	if !tx.dirty {
		return
	}
	next := &version[T]{
		rev:     tx.rev,
		rows:    tx.rows.CommitOnly(),
		byRev:   tx.byRev.CommitOnly(),
		dead:    tx.dead.CommitOnly(),
		changed: make(chan struct{}),
	}
	for _, x := range tx.indexes {
		next.indexes = append(next.indexes, x.CommitOnly())
	}
	old := t.current
	t.current = next
	close(old.changed)
}

// buryLocked forgets deleted rows that every Changes has seen.
func (t *Table[T]) buryLocked() {
	seen := t.current.rev
	for c := range t.changes {
		seen = min(seen, c.seen)
	}
	tx := t.current.dead.Txn()
	n := 0
	it := t.current.dead.Root().Iterator()
	for k, e, ok := it.Next(); ok && e.rev <= seen; k, e, ok = it.Next() {
		tx.Delete(k)
		n++
	}
	if n > 0 {
		next := *t.current
		next.dead = tx.CommitOnly()
		t.current = &next // same content for readers, same changed channel
	}
}

func revKey(rev Revision) []byte { return binary.BigEndian.AppendUint64(nil, rev) }

// indexKey is value, a zero byte, primary key: a prefix walk over value+0 yields the rows of a value in key order.
func indexKey(value, primary string) []byte {
	k := make([]byte, 0, len(value)+1+len(primary))
	k = append(k, value...)
	k = append(k, 0)
	return append(k, primary...)
}

// Snapshot is an immutable view of a table.
type Snapshot[T any] struct {
	version *version[T]
	table   *Table[T]
}

// Revision returns the revision of the last change in the snapshot.
func (s Snapshot[T]) Revision() Revision { return s.version.rev }

// Len returns the number of rows.
func (s Snapshot[T]) Len() int { return s.version.rows.Len() }

// Get returns the row with the primary key, and its revision.
func (s Snapshot[T]) Get(key string) (row T, rev Revision, ok bool) {
	e, ok := s.version.rows.Get([]byte(key))
	if !ok {
		return row, 0, false
	}
	return e.row, e.rev, true
}

// All yields the rows in order of their primary keys.
func (s Snapshot[T]) All() iter.Seq[T] { return walk(s.version.rows, nil) }

// By yields the rows that index finds under value, in order of their primary keys. An index the table
// was not made with yields nothing.
func (s Snapshot[T]) By(index Index[T], value string) iter.Seq[T] {
	for i, x := range s.table.indexes {
		if x.Name == index.Name {
			return walk(s.version.indexes[i], indexKey(value, ""))
		}
	}
	return func(func(T) bool) {}
}

// Changed is closed when the table has changed since the snapshot.
func (s Snapshot[T]) Changed() <-chan struct{} { return s.version.changed }

func walk[T any](tree *iradix.Tree[*entry[T]], prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		it := tree.Root().Iterator()
		it.SeekPrefix(prefix)
		for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
			if !yield(e.row) {
				return
			}
		}
	}
}
