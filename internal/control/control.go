// Package control turns intent into desired state: pure functions of snapshots, and one thin loop for each of them.
package control

import (
	"context"

	"github.com/strait-net/strait/internal/table"
)

// write makes t hold exactly desired. Rows that want what they wanted are left alone, with the reconciler's result in them.
func write[T interface{ SameIntent(T) bool }](t *table.Table[T], desired []T) {
	keys := make(map[string]bool, len(desired))
	for _, row := range desired {
		keys[t.Key(row)] = true
	}
	t.Write(func(tx *table.Txn[T]) {
		tx.All(func(row T) bool {
			if key := t.Key(row); !keys[key] {
				tx.Delete(key)
			}
			return true
		})
		for _, row := range desired {
			if old, _, ok := tx.Get(t.Key(row)); !ok || !old.SameIntent(row) {
				tx.Insert(row)
			}
		}
	})
}

// all waits until every channel is closed.
func all(ctx context.Context, initialized ...<-chan struct{}) error {
	for _, c := range initialized {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c:
		}
	}
	return nil
}
