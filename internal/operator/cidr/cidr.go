// Package cidr divides a prefix into blocks of one size and finds free ones; it is pure.
package cidr

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// MaxBits bounds a Pool: it has at most 2^MaxBits blocks.
const MaxBits = 32

// Pool is a prefix divided into blocks.
type Pool struct {
	prefix netip.Prefix
	bits   int    // length of a block
	blocks uint64 // number of blocks
	used   []span // sorted, neither overlapping nor adjacent
	next   uint64 // where the search begins
}

// span is a range of blocks, both ends included.
type span struct{ first, last uint64 }

// New returns a pool of blocks of length bits. Blocks that have an address in common with one of used are not free. The
// search for free ones begins at block from, modulo their number.
func New(prefix netip.Prefix, bits int, used []netip.Prefix, from uint64) (*Pool, error) {
	if !prefix.IsValid() || prefix != prefix.Masked() || bits < prefix.Bits() || bits > prefix.Addr().BitLen() || bits-prefix.Bits() > MaxBits {
		return nil, fmt.Errorf("divide %s into blocks of length %d: want %d to %d", prefix, bits,
			prefix.Bits(), min(prefix.Addr().BitLen(), prefix.Bits()+MaxBits))
	}
	p := &Pool{prefix: prefix, bits: bits, blocks: 1 << (bits - prefix.Bits())}
	p.next = from % p.blocks
	for _, u := range used {
		if s, ok := p.spanOf(u); ok {
			p.used = append(p.used, s)
		}
	}
	p.used = join(p.used)
	return p, nil
}

// Size returns the number of blocks.
func (p *Pool) Size() uint64 { return p.blocks }

// Free returns the number of blocks that Take can still give.
func (p *Pool) Free() uint64 {
	free := p.blocks
	for _, s := range p.used {
		free -= s.last - s.first + 1
	}
	return free
}

// Cursor returns the block at which the next search begins: what New takes as from.
func (p *Pool) Cursor() uint64 { return p.next }

// Take returns the next free block in order, so that a block given back is used again as late as possible; ok is false
// when there is none.
func (p *Pool) Take() (block netip.Prefix, ok bool) {
	i, ok := p.find(p.next)
	if !ok {
		if i, ok = p.find(0); !ok {
			return netip.Prefix{}, false
		}
	}
	p.next = (i + 1) % p.blocks
	at, _ := slices.BinarySearchFunc(p.used, i, func(s span, i uint64) int { return cmp.Compare(s.first, i) })
	p.used = slices.Insert(p.used, at, span{i, i})
	if at+1 < len(p.used) && p.used[at+1].first == i+1 {
		p.used[at].last = p.used[at+1].last
		p.used = slices.Delete(p.used, at+1, at+2)
	}
	if at > 0 && p.used[at-1].last+1 == i {
		p.used[at-1].last = p.used[at].last
		p.used = slices.Delete(p.used, at, at+1)
	}
	return p.block(i), true
}

// find returns the first free block not before i.
func (p *Pool) find(i uint64) (uint64, bool) {
	at, _ := slices.BinarySearchFunc(p.used, i, func(s span, i uint64) int { return cmp.Compare(s.last, i) })
	if at < len(p.used) && p.used[at].first <= i {
		i = p.used[at].last + 1 // spans are never adjacent: this one is free
	}
	return i, i < p.blocks
}

// spanOf returns the blocks that have an address in common with u.
func (p *Pool) spanOf(u netip.Prefix) (span, bool) {
	if !u.Overlaps(p.prefix) {
		return span{}, false
	}
	if u.Bits() <= p.prefix.Bits() {
		return span{0, p.blocks - 1}, true
	}
	first := p.index(u.Addr())
	if u.Bits() >= p.bits {
		return span{first, first}, true
	}
	width := uint64(1) << (p.bits - u.Bits())
	first &^= width - 1
	return span{first, first + width - 1}, true
}

// index returns the block an address of the pool is in.
func (p *Pool) index(a netip.Addr) uint64 {
	high, low := words(a)
	shift := p.shift()
	if shift >= 64 {
		return high >> (shift - 64) & (p.blocks - 1)
	}
	return (high<<(64-shift) | low>>shift) & (p.blocks - 1)
}

func (p *Pool) block(i uint64) netip.Prefix {
	high, low := words(p.prefix.Addr())
	shift := p.shift()
	if shift >= 64 {
		high |= i << (shift - 64)
	} else {
		low |= i << shift
		if shift > 0 {
			high |= i >> (64 - shift)
		}
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], high)
	binary.BigEndian.PutUint64(b[8:], low)
	a := netip.AddrFrom16(b)
	if p.prefix.Addr().Is4() {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, p.bits)
}

// shift is the number of bits below a block's number in a 128-bit address.
func (p *Pool) shift() int { return p.prefix.Addr().BitLen() - p.bits }

func words(a netip.Addr) (high, low uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func join(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}
