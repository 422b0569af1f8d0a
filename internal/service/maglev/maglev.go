// Package maglev computes lookup tables for consistent hashing: every node computes the same one from the same backends, and a
// backend that goes takes few connections of others with it.
//
// The algorithm is that of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4. A backend of weight n
// takes n turns where others take one.
package maglev

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
)

// Backend is one target of a table. Its place in the table depends on nothing but address and port.
type Backend struct {
	netip.AddrPort
	Weight uint32 // 0 counts as 1
}

// Table returns for each of size entries the index of its backend. size is a prime, and above the number of backends, or some of them
// get no entry. The order of backends decides only who takes the first turn: callers sort them. No backends: nil.
func Table(size uint32, backends []Backend) []uint32 {
	if len(backends) == 0 || size == 0 {
		return nil
	}
	var heaviest uint64
	walkers := make([]walker, len(backends))
	for i, b := range backends {
		walkers[i] = newWalker(b, uint64(size))
		heaviest = max(heaviest, walkers[i].weight)
	}
	table := make([]uint32, size)
	taken := make([]bool, size)
	for filled := uint32(0); ; {
		for i := range walkers {
			w := &walkers[i]
			if w.credit += w.weight; w.credit < heaviest {
				continue
			}
			w.credit -= heaviest
			entry := w.next(uint64(size), taken)
			taken[entry], table[entry] = true, uint32(i)
			if filled++; filled == size {
				return table
			}
		}
	}
}

// walker goes through a backend's permutation of the entries: at, at+skip, at+2*skip, ... modulo the table's size.
type walker struct {
	at, skip       uint64
	weight, credit uint64 // a turn is due when the credit reaches the heaviest weight
}

// newWalker takes position and step from a hash that does not depend on machine, process or family.
func newWalker(b Backend, size uint64) walker {
	var name [18]byte
	ip := b.Addr().As16()
	copy(name[:], ip[:])
	binary.BigEndian.PutUint16(name[16:], b.Port())
	sum := sha256.Sum256(name[:])
	w := walker{at: binary.BigEndian.Uint64(sum[0:]) % size, skip: 1, weight: uint64(max(b.Weight, 1))}
	if size > 1 {
		w.skip = binary.BigEndian.Uint64(sum[8:])%(size-1) + 1
	}
	return w
}

// next returns the first entry that is free; there is one. Steps are smaller than the prime size, so they reach every entry.
func (w *walker) next(size uint64, taken []bool) uint64 {
	for taken[w.at] {
		if w.at += w.skip; w.at >= size {
			w.at -= size
		}
	}
	return w.at
}
