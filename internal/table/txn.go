package table

import iradix "github.com/hashicorp/go-immutable-radix/v2"

// Txn is a write in progress. It is valid only inside the function it was given to.
type Txn[T any] struct {
	table   *Table[T]
	rev     Revision
	dirty   bool
	rows    *iradix.Txn[*entry[T]]
	byRev   *iradix.Txn[*entry[T]]
	dead    *iradix.Txn[*entry[T]]
	indexes []*iradix.Txn[*entry[T]]
}

func newTxn[T any](t *Table[T]) *Txn[T] {
	v := t.current
	tx := &Txn[T]{table: t, rev: v.rev, rows: v.rows.Txn(), byRev: v.byRev.Txn(), dead: v.dead.Txn()}
	for _, x := range v.indexes {
		tx.indexes = append(tx.indexes, x.Txn())
	}
	return tx
}

// Get returns the row with the primary key as the transaction sees it.
func (tx *Txn[T]) Get(key string) (row T, rev Revision, ok bool) {
	e, ok := tx.rows.Get([]byte(key))
	if !ok {
		return row, 0, false
	}
	return e.row, e.rev, true
}

// All calls fn with each row as it was when All was called, until fn returns false.
func (tx *Txn[T]) All(fn func(T) bool) {
	it := tx.rows.Clone().Root().Iterator()
	for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
		if !fn(e.row) {
			return
		}
	}
}

// Insert adds or replaces a row and returns its revision.
func (tx *Txn[T]) Insert(row T) Revision {
	tx.dirty = true
	tx.rev++
	key := tx.table.key(row)
	e := &entry[T]{row: row, rev: tx.rev}
	if old, replaced := tx.rows.Insert([]byte(key), e); replaced {
		tx.forget(key, old)
	}
	tx.byRev.Insert(revKey(e.rev), e)
	for i, x := range tx.table.indexes {
		for _, value := range x.Keys(row) {
			tx.indexes[i].Insert(indexKey(value, key), e)
		}
	}
	return e.rev
}

// Delete removes the row with the primary key and reports whether there was one.
func (tx *Txn[T]) Delete(key string) bool {
	old, ok := tx.rows.Delete([]byte(key))
	if !ok {
		return false
	}
	tx.dirty = true
	tx.rev++
	tx.forget(key, old)
	if len(tx.table.changes) > 0 {
		tx.dead.Insert(revKey(tx.rev), &entry[T]{row: old.row, rev: tx.rev})
	}
	return true
}

func (tx *Txn[T]) forget(key string, old *entry[T]) {
	tx.byRev.Delete(revKey(old.rev))
	for i, x := range tx.table.indexes {
		for _, value := range x.Keys(old.row) {
			tx.indexes[i].Delete(indexKey(value, key))
		}
	}
}
