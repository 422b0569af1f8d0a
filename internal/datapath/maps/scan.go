package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// scanChunk is how many entries one system call returns; a hash bucket that holds more makes it grow.
const scanChunk = 2048

// scan calls fn with every entry, in no order, until fn returns false. Entries added or removed meanwhile may be seen or not;
// all others are seen at least once.
func scan[K, V any](m *ebpf.Map, fn func(K, V) bool) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, scanChunk), make([]V, scanChunk)
	for first := true; ; first = false {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		switch {
		case errors.Is(err, unix.ENOSPC):
			keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
			continue
		case first && errors.Is(err, ebpf.ErrNotSupported):
			return scanSingly(m, fn)
		case err != nil && !last:
			return fmt.Errorf("read map: %w", err)
		}
		for i := range n {
			if !fn(keys[i], values[i]) {
				return nil
			}
		}
		if last {
			return nil
		}
	}
}

func scanSingly[K, V any](m *ebpf.Map, fn func(K, V) bool) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !fn(k, v) {
			return nil
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read map: %w", err)
	}
	return nil
}
