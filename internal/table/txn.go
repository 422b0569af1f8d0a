package table

import "iter"

// Txn is a write in progress. It is valid only inside the function it was given to.
type Txn[T any] struct {
	table *Table[T]
	now   *version[T] // the table's own until something is changed
}

// change returns the version to be changed.
func (tx *Txn[T]) change() *version[T] {
	if tx.now == tx.table.current {
		tx.now = tx.now.clone()
	}
	return tx.now
}

// Get returns the row with the primary key as the transaction sees it.
func (tx *Txn[T]) Get(key string) (row T, rev Revision, ok bool) { return tx.table.get(tx.now, key) }

// Beside yields the rows before and after a key in the order of primary keys, as far as there are any.
func (tx *Txn[T]) Beside(key string) iter.Seq[T] {
	return func(yield func(T) bool) {
		pivot := tx.table.pivot(key)
		defer tx.table.pivots.Put(pivot)
		var before, after *entry[T]
		tx.now.rows.DescendLessOrEqual(pivot, func(e *entry[T]) bool { before = e; return e.key == key })
		tx.now.rows.AscendGreaterOrEqual(pivot, func(e *entry[T]) bool { after = e; return e.key == key })
		for _, e := range []*entry[T]{before, after} {
			if e != nil && e.key != key && !yield(e.row) {
				return
			}
		}
	}
}

// All calls fn with each row as it was when All was called, until fn returns false.
func (tx *Txn[T]) All(fn func(T) bool) {
	rows := tx.now.rows
	if tx.now != tx.table.current {
		rows = rows.Clone()
	}
	rows.Ascend(func(e *entry[T]) bool { return fn(e.row) })
}

// Insert adds or replaces a row and returns its revision.
func (tx *Txn[T]) Insert(row T) Revision {
	v := tx.change()
	v.rev++
	e := &entry[T]{key: tx.table.key(row), row: row, rev: v.rev}
	if old, replaced := v.rows.ReplaceOrInsert(e); replaced {
		tx.forget(old)
	}
	v.byRev.ReplaceOrInsert(e)
	for i, x := range tx.table.indexes {
		for _, value := range x.Keys(row) {
			v.indexes[i].ReplaceOrInsert(indexed[T]{value, e})
		}
	}
	return e.rev
}

// Delete removes the row with the primary key and reports whether there was one.
func (tx *Txn[T]) Delete(key string) bool {
	pivot := tx.table.pivot(key)
	defer tx.table.pivots.Put(pivot)
	if !tx.now.rows.Has(pivot) {
		return false
	}
	v := tx.change()
	old, _ := v.rows.Delete(pivot)
	v.rev++
	tx.forget(old)
	if len(tx.table.changes) > 0 {
		v.dead.ReplaceOrInsert(&entry[T]{key: key, row: old.row, rev: v.rev})
	}
	return true
}

func (tx *Txn[T]) forget(old *entry[T]) {
	tx.now.byRev.Delete(old)
	for i, x := range tx.table.indexes {
		for _, value := range x.Keys(old.row) {
			tx.now.indexes[i].Delete(indexed[T]{value, old})
		}
	}
}
