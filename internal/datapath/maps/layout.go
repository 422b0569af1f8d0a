package maps

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
)

// layout is a form that the values of a pinned map may have, with the way to today's.
type layout struct {
	value uint32 // bytes
	// fill copies all entries into an empty map that nobody uses yet.
	fill func(from, to *ebpf.Map) error
	// merge copies what has come or gone on since, while programs use to; nil: programs add no entries to this map.
	merge func(from, to *ebpf.Map) error
}

// layouts returns the forms of a map that Open can rebuild, today's first; none: it is never rebuilt.
func layouts(name string) []layout {
	switch name {
	case bpf.DatapathMapStraitEndpoint:
		return []layout{kept[bpf.Addr, bpf.Endpoint]()}
	case bpf.DatapathMapStraitIpcache:
		return []layout{kept[bpf.IpcacheKey, bpf.Remote]()}
	case bpf.DatapathMapStraitDevice:
		return []layout{kept[uint32, bpf.Device]()}
	case bpf.DatapathMapStraitCt:
		return []layout{
			written[bpf.CtKey](same[bpf.CtEntry], wentOn),
			written[bpf.CtKey](extended[[88]byte, bpf.CtEntry], wentOn), // without front_addr and front_port
		}
	case bpf.DatapathMapStraitNat:
		return []layout{
			written[bpf.NatKey](same[bpf.NatEntry], nil),
			written[bpf.NatKey](extended[[24]byte, bpf.NatEntry], nil), // without front_addr; zero in place of front_port
		}
	case bpf.DatapathMapStraitFrag:
		return []layout{written[bpf.FragKey](same[bpf.FragEntry], nil)}
	case bpf.DatapathMapStraitService:
		return []layout{kept[bpf.SockaddrKey, bpf.Service](), converted[bpf.SockaddrKey](withSets)}
	case bpf.DatapathMapStraitSlot:
		return []layout{kept[bpf.SlotKey, bpf.Slot](), converted[bpf.SlotKey](extended[uint32, bpf.Slot])} // without weight
	case bpf.DatapathMapStraitMaglev:
		return []layout{{value: 4, fill: fillTables}}
	case bpf.DatapathMapStraitBackend:
		return []layout{kept[uint32, bpf.Backend](), converted[uint32](extended[[24]byte, bpf.Backend])} // without flags
	case bpf.DatapathMapStraitLoad:
		return []layout{kept[uint32, bpf.Load]()}
	case bpf.DatapathMapStraitAffinity:
		return []layout{written[bpf.AffinityKey](same[bpf.Affinity], usedLater)}
	case bpf.DatapathMapStraitNetns:
		return []layout{kept[uint64, bpf.Netns]()}
	case bpf.DatapathMapStraitSource:
		return []layout{kept[bpf.SourceKey, uint32]()}
	case bpf.DatapathMapStraitAnnounce:
		return []layout{kept[bpf.AnnounceKey, bpf.Announce]()}
	case bpf.DatapathMapStraitDgram:
		return []layout{written[bpf.DgramKey](same[bpf.SockaddrKey], nil)}
	case bpf.DatapathMapStraitIdentity:
		return []layout{kept[bpf.IpcacheKey, uint64]()}
	case bpf.DatapathMapStraitPolicy:
		return []layout{kept[bpf.PolicyKey, bpf.PolicyEntry]()}
	case bpf.DatapathMapStraitPort:
		return []layout{kept[bpf.PortKey, bpf.PolicyVerdict]()}
	case bpf.DatapathMapStraitNode:
		return []layout{kept[uint32, bpf.NodeState]()}
	case bpf.DatapathMapStraitRule:
		return []layout{{value: 16, fill: fillRules}}
	case bpf.DatapathMapStraitEvents:
		return []layout{{fill: func(_, _ *ebpf.Map) error { return nil }}} // what nobody has read stays unread
	case bpf.DatapathMapStraitMuted:
		return []layout{written[bpf.MutedKey](same[bpf.Muted], nil)}
	}
	return nil // socket storage cannot be read as a whole; the size of counters, lost ones too, never changes
}

// withSets turns {id, count, flags, pad} into a row whose set had the service's id.
func withSets(old [4]uint32) bpf.Service {
	id, count, flags := old[0], old[1], old[2]
	return bpf.Service{Id: id, Count: count, Flags: bpf.ServiceFlags(flags), Set: id, OuterSet: id, OuterCount: count}
}

func same[V any](v V) V { return v }

// extended keeps the bytes of a value that has grown at its end; what is new is zero.
func extended[Old, New any](old Old) (v New) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), unsafe.Slice((*byte)(unsafe.Pointer(&old)), unsafe.Sizeof(old)))
	return v
}

// wentOn reports whether a connection has carried packets that its copy does not know of.
func wentOn(old, have bpf.CtEntry) bool {
	return old.Packets[0]+old.Packets[1] > have.Packets[0]+have.Packets[1]
}

func usedLater(old, have bpf.Affinity) bool { return int32(old.Last-have.Last) > 0 }

// kept is the form of a map that userspace fills, when only its size changes; converted is another form of one.
func kept[K, V any]() layout { return converted[K](same[V]) }

func converted[K, Old, New any](convert func(Old) New) layout {
	var old Old
	return layout{
		value: uint32(unsafe.Sizeof(old)),
		fill:  func(from, to *ebpf.Map) error { return fill[K](from, to, convert) },
	}
}

// written is a form of a map that programs fill. newer says whether the entry of the old map is to replace the one in the new.
func written[K, Old, New any](convert func(Old) New, newer func(old, have New) bool) layout {
	l := converted[K](convert)
	l.merge = func(from, to *ebpf.Map) error {
		var failed error
		err := scan(from, func(k K, old Old) bool {
			v := convert(old)
			failed = to.Update(&k, &v, ebpf.UpdateNoExist)
			if errors.Is(failed, ebpf.ErrKeyExist) {
				failed = replace(to, k, v, newer)
			}
			return failed == nil
		})
		return errors.Join(err, failed)
	}
	return l
}

func replace[K, V any](to *ebpf.Map, k K, v V, newer func(old, have V) bool) error {
	var have V
	if newer == nil {
		return nil
	}
	switch err := to.Lookup(&k, &have); {
	case errors.Is(err, ebpf.ErrKeyNotExist): // a program has just removed it
		return nil
	case err != nil:
		return err
	case !newer(v, have):
		return nil
	}
	return to.Put(&k, &v)
}

// fill writes in batches.
func fill[K, Old, New any](from, to *ebpf.Map, convert func(Old) New) error {
	keys, values := make([]K, 0, scanChunk), make([]New, 0, scanChunk)
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		_, err := to.BatchUpdate(keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			err = nil
			for i := range keys {
				err = errors.Join(err, to.Put(&keys[i], &values[i]))
			}
		}
		keys, values = keys[:0], values[:0]
		return err
	}
	var failed error
	err := scan(from, func(k K, old Old) bool {
		keys, values = append(keys, k), append(values, convert(old))
		if len(keys) == cap(keys) {
			failed = flush()
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return flush()
}

// fillTables gives a map of maps the same inner ones.
func fillTables(from, to *ebpf.Map) error {
	var failed error
	err := scan(from, func(set uint32, id ebpf.MapID) bool {
		inner, err := ebpf.NewMapFromID(id)
		if err == nil {
			err = to.Put(&set, inner)
			_ = inner.Close()
		}
		if err != nil {
			failed = fmt.Errorf("maglev table of set %d: %w", set, err)
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}
