package state

import (
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/table"
)

// AddressRange is a range of addresses of one family, both ends included.
type AddressRange struct{ First, Last netip.Addr }

// Contains reports whether an address lies in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Overlaps reports whether two ranges have an address in common.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// String returns "192.0.2.1-192.0.2.9", or the one address.
func (r AddressRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Pool is what a LoadBalancerPool says. Intent of the operator; owner: kube.
type Pool struct {
	Name       string
	UID        string
	Created    time.Time // decides who keeps addresses that two pools have: the older one
	Generation int64
	Version    string // resourceVersion
	Ranges     []AddressRange
	Selector   string // of services, in the form of a label selector's text; empty: all
	Disabled   bool
	Invalid    string // why nothing of it can be used
	Shown      PoolStatus
	Since      time.Time // when Shown.Ready last changed
}

// PoolStatus is what the status of a LoadBalancerPool says.
type PoolStatus struct {
	Ready      bool
	Reason     string
	Message    string
	Generation int64           // observed
	Counts     [2]AddressCount // IPv4, IPv6
}

// AddressCount counts the addresses of one family in a pool.
type AddressCount struct{ Total, Allocated, Free int64 }

// Equal reports whether two pools say the same.
func (p Pool) Equal(o Pool) bool {
	return p.Name == o.Name && p.UID == o.UID && p.Created.Equal(o.Created) && p.Generation == o.Generation && p.Version == o.Version &&
		slices.Equal(p.Ranges, o.Ranges) && p.Selector == o.Selector && p.Disabled == o.Disabled && p.Invalid == o.Invalid && p.Shown == o.Shown &&
		p.Since.Equal(o.Since)
}

// NewPools returns the table of pools, keyed by name.
func NewPools() *table.Table[Pool] {
	return table.New("pools", func(p Pool) string { return p.Name })
}

// Allocation is what the condition strait.dev/AddressAllocated of a Service says. The zero value: it has none, so that its LoadBalancer
// addresses, if any, were given by somebody else.
type Allocation struct {
	Done    bool
	Reason  string // not empty when there is the condition
	Message string
}

// Claim is a Service as the giver of LoadBalancer addresses sees it. Intent of the operator; owner: kube.
type Claim struct {
	Service
	SharingKey string
	Held       []netip.Addr // of status.loadBalancer.ingress
	Foreign    bool         // status.loadBalancer.ingress has names
	Version    string       // resourceVersion
}

// Equal reports whether two claims say the same.
func (c Claim) Equal(o Claim) bool {
	return c.SharingKey == o.SharingKey && slices.Equal(c.Held, o.Held) && c.Foreign == o.Foreign && c.Version == o.Version &&
		c.Service.Equal(o.Service)
}

// NewClaims returns the table of claims, keyed by namespace/name.
func NewClaims() *table.Table[Claim] {
	return table.New("claims", func(c Claim) string { return c.String() })
}

// RangeOf returns all addresses of a prefix.
func RangeOf(p netip.Prefix) AddressRange {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := range last {
		// Bits of the byte that belong to the host part.
		if host := min(8, 8*(i+1)-p.Bits()); host > 0 {
			last[i] |= 0xff >> (8 - host)
		}
	}
	end, _ := netip.AddrFromSlice(last) // as long as the first
	return AddressRange{First: p.Addr(), Last: end}
}
