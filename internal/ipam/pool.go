package ipam

import (
	"fmt"
	"math"
	"net/netip"
)

// pool is one prefix addresses are given from, lowest first, wrapping around after the last: next fit.
type pool struct {
	prefix      netip.Prefix
	first, last netip.Addr // inclusive
	capacity    uint64     // saturates at MaxUint64
	cursor      netip.Addr // where the next search begins
	inUse       int        // addresses of [first, last] with an owner
	cooling     int        // addresses of [first, last] that cool down
}

func newPool(prefix netip.Prefix) (pool, error) {
	if !prefix.IsValid() || prefix.Addr().Is4In6() {
		return pool{}, fmt.Errorf("pool %v: not a prefix", prefix)
	}
	p := pool{prefix: prefix.Masked()}
	host := prefix.Addr().BitLen() - prefix.Bits()
	spared := uint64(1) // network address; in IPv6 the subnet-router anycast address
	p.last = lastOf(p.prefix)
	if prefix.Addr().Is4() {
		spared = 2
		p.last = p.last.Prev() // broadcast
	}
	p.capacity = math.MaxUint64
	if host < 64 {
		if 1<<host <= spared {
			return pool{}, fmt.Errorf("pool %v has no usable address", prefix)
		}
		p.capacity = 1<<host - spared
	}
	p.first = p.prefix.Addr().Next()
	p.cursor = p.first
	return p, nil
}

// lastOf returns the address of the prefix with all host bits set.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// usable reports whether the pool may give out the address.
func (p *pool) usable(a netip.Addr) bool {
	return p.prefix.Contains(a) && p.first.Compare(a) <= 0 && a.Compare(p.last) <= 0
}

// after returns the address that follows a in the pool's order.
func (p *pool) after(a netip.Addr) netip.Addr {
	if a == p.last {
		return p.first
	}
	return a.Next()
}

// full reports whether no address is free.
func (p *pool) full() bool {
	return uint64(p.inUse)+uint64(p.cooling) >= p.capacity
}
