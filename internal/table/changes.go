package table

import "github.com/google/btree"

// Change is a row that was written, or the last content of a row that was deleted.
type Change[T any] struct {
	Row      T
	Revision Revision
	Deleted  bool
}

// Changes is one reader's position in the history of a table. Not for concurrent use.
type Changes[T any] struct {
	table *Table[T]
	seen  Revision // guarded by table.mu
}

// Changes begins a feed: the first Next returns every present row. Close ends it.
func (t *Table[T]) Changes() *Changes[T] {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &Changes[T]{table: t}
	t.changes[c] = struct{}{}
	return c
}

// Next returns what has changed since the last call in order of revisions, each row at most once in its newest form, and a
// channel that is closed when there is more. A row deleted and inserted again appears as both.
func (c *Changes[T]) Next() ([]Change[T], <-chan struct{}) {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.current
	live, dead := since(v.byRev, c.seen), since(v.dead, c.seen)
	out := make([]Change[T], 0, len(live)+len(dead))
	for len(live)+len(dead) > 0 {
		if len(dead) == 0 || len(live) > 0 && live[0].rev < dead[0].rev {
			out = append(out, Change[T]{Row: live[0].row, Revision: live[0].rev})
			live = live[1:]
			continue
		}
		out = append(out, Change[T]{Row: dead[0].row, Revision: dead[0].rev, Deleted: true})
		dead = dead[1:]
	}
	c.seen = v.rev
	t.buryLocked()
	return out, v.changed
}

// Close ends the feed.
func (c *Changes[T]) Close() {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	delete(c.table.changes, c)
	c.table.buryLocked()
}

func since[T any](tree *btree.BTreeG[*entry[T]], rev Revision) []*entry[T] {
	var out []*entry[T]
	tree.AscendGreaterOrEqual(&entry[T]{rev: rev + 1}, func(e *entry[T]) bool {
		out = append(out, e)
		return true
	})
	return out
}
