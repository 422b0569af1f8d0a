package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
)

// anySize is BPF_F_INNER_MAP: tables may differ in size from the one the outer map was made with, so a change of the size in the
// configuration replaces them one by one (Linux 5.10).
const anySize = 1 << 12

// PutTable gives a set a maglev table of backend ids, and returns the kernel's id of it: a table that has been written never changes.
// The programs see the old one or the new one, never a mixture.
func (m *Maps) PutTable(set uint32, table []uint32) (id uint32, err error) {
	outer, err := m.get(bpf.DatapathMapStraitMaglev)
	if err != nil {
		return 0, err
	}
	inner, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "strait_table", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(table)), Flags: anySize,
	})
	if err != nil {
		return 0, fmt.Errorf("make maglev table of set %d: %w", set, err)
	}
	defer inner.Close()
	keys := make([]uint32, len(table))
	for i := range keys {
		keys[i] = uint32(i)
	}
	if _, err := inner.BatchUpdate(keys, table, nil); err != nil {
		return 0, fmt.Errorf("fill maglev table of set %d: %w", set, err)
	}
	info, err := inner.Info()
	if err != nil {
		return 0, fmt.Errorf("look at maglev table of set %d: %w", set, err)
	}
	if err := outer.Put(&set, inner); err != nil {
		return 0, refused(outer, bpf.DatapathMapStraitMaglev, err)
	}
	known, _ := info.ID()
	return uint32(known), nil
}

// DeleteTable takes the maglev table of a set away.
func (m *Maps) DeleteTable(set uint32) error { return remove(m, bpf.DatapathMapStraitMaglev, set) }

// Table returns the maglev table of a set, nil if there is none.
func (m *Maps) Table(set uint32) ([]uint32, error) {
	id, ok, err := lookup[ebpf.MapID](m, bpf.DatapathMapStraitMaglev, set)
	if !ok || err != nil {
		return nil, err
	}
	inner, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open maglev table of set %d: %w", set, err)
	}
	defer inner.Close()
	table := make([]uint32, inner.MaxEntries())
	keys := make([]uint32, len(table))
	var cursor ebpf.MapBatchCursor
	n, err := inner.BatchLookup(&cursor, keys, table, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read maglev table of set %d: %w", set, err)
	}
	return table[:n], nil
}

// EachTable calls fn with every set that has a maglev table and the kernel's id of the table.
func (m *Maps) EachTable(fn func(set, id uint32)) error {
	return each(m, bpf.DatapathMapStraitMaglev, func(set, id uint32) { fn(set, id) })
}
