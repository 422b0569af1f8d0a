// Package model is the kernel's policy tables as plain maps, filled as docs/design/0006-policy.md says and looked up as the programs do: what
// tests hold against package eval.
package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// ErrMissing is wrapped when a lookup finds nothing where something has to be: the programs deny, and say so.
var ErrMissing = errors.New("missing in the kernel")

// Tables are the kernel's, of one node.
type Tables struct {
	Identities map[Prefix]identity.ID
	Entries    map[EntryKey]Entry
	Ports      map[PortKey]policy.Verdict
	Endpoints  map[netip.Addr]policy.ID // of the node's pods
	Node       policy.ID                // of the node itself; 0: none
}

// Prefix is a row of strait_identity: IPv4 is v4-mapped, and its prefixes are 96 bits longer.
type Prefix struct {
	Address [16]byte
	Bits    int
}

// EntryKey is the key of strait_policy.
type EntryKey struct {
	Program  policy.ID
	Way      policy.Way
	Identity identity.ID
}

// Entry is the value of strait_policy: Verdict counts when Table is 0.
type Entry struct {
	Table   policy.ID
	Verdict policy.Verdict
}

// PortKey is the key of strait_port. Protocol 0 with Bits 0 stands for every protocol.
type PortKey struct {
	Table    policy.ID
	Protocol policy.Protocol
	Port     uint16
	Bits     uint8
}

// NewTables returns empty tables.
func NewTables() *Tables {
	return &Tables{
		Identities: map[Prefix]identity.ID{},
		Entries:    map[EntryKey]Entry{},
		Ports:      map[PortKey]policy.Verdict{},
		Endpoints:  map[netip.Addr]policy.ID{},
	}
}

// PrefixOf returns the key of a prefix of either family.
func PrefixOf(p netip.Prefix) Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return masked(p.Addr().As16(), bits)
}

func masked(address [16]byte, bits int) Prefix {
	for i := bits; i < 128; i++ {
		address[i/8] &^= 0x80 >> (i % 8)
	}
	return Prefix{address, bits}
}

// Identity returns who has an address: the longest prefix says so, no row is the world.
func (t *Tables) Identity(a netip.Addr) identity.ID {
	found, longest := identity.World, -1
	for p, id := range t.Identities {
		if p.Bits > longest && masked(a.As16(), p.Bits) == p {
			found, longest = id, p.Bits
		}
	}
	return found
}

// Lookup returns what a program says about a peer.
func (t *Tables) Lookup(program policy.ID, way policy.Way, peer netip.Addr, protocol policy.Protocol, port uint16) (policy.Verdict, error) {
	who := t.Identity(peer)
	e, ok := t.Entries[EntryKey{program, way, who}]
	if !ok {
		if e, ok = t.Entries[EntryKey{program, way, identity.Other}]; !ok {
			return policy.Verdict{}, fmt.Errorf("%w: program %x %s has neither %s nor other", ErrMissing, uint64(program), way, who)
		}
	}
	if e.Table == 0 {
		return e.Verdict, nil
	}
	for bits := 16; bits >= 0; bits-- {
		if v, ok := t.Ports[PortKey{e.Table, protocol, port &^ (1<<(16-bits) - 1), uint8(bits)}]; ok {
			return v, nil
		}
	}
	if v, ok := t.Ports[PortKey{Table: e.Table}]; ok {
		return v, nil
	}
	return policy.Verdict{}, fmt.Errorf("%w: table %x", ErrMissing, uint64(e.Table))
}

// Judge returns what the pod at an address of this node, or the node itself, says about a connection with a peer; nil: it has no policy.
func (t *Tables) Judge(own netip.Addr, way policy.Way, peer netip.Addr, protocol policy.Protocol, port uint16) (*policy.Verdict, error) {
	program, pod := t.Endpoints[own]
	if !pod {
		program = t.Node
	}
	if program == 0 {
		return nil, nil
	}
	v, err := t.Lookup(program, way, peer, protocol, port)
	return &v, err
}

// Add writes an entry and its table. Two contents under one name are an error: names are hashes of content.
func (t *Tables) Add(k EntryKey, e policy.Entry) error {
	if was, ok := t.Entries[k]; ok && (e.Table == nil && was != Entry{Verdict: e.Verdict} || e.Table != nil && was != Entry{Table: e.Table.ID}) {
		return fmt.Errorf("program %x says two things to %s %s: %+v and %+v", uint64(k.Program), k.Way, k.Identity, was, e)
	}
	if e.Table == nil {
		t.Entries[k] = Entry{Verdict: e.Verdict}
		return nil
	}
	for _, r := range e.Table.Rows {
		key := PortKey{e.Table.ID, r.Protocol, r.Port, r.Bits}
		if was, ok := t.Ports[key]; ok && was != r.Verdict {
			return fmt.Errorf("table %x says two things about %s port %d/%d: %+v and %+v", uint64(e.Table.ID), r.Protocol, r.Port, r.Bits, was, r.Verdict)
		}
		if r.Port != r.Port&^uint16(1<<(16-r.Bits)-1) || r.Bits > 16 || r.Protocol == policy.AnyProtocol && r.Bits != 0 {
			return fmt.Errorf("table %x: no such prefix: %s port %d/%d", uint64(e.Table.ID), r.Protocol, r.Port, r.Bits)
		}
		t.Ports[key] = r.Verdict
	}
	t.Entries[k] = Entry{Table: e.Table.ID}
	return nil
}

// AddProgram writes a program with its answers to identities. Only those are written that are not what everybody else is told.
func (t *Tables) AddProgram(p *policy.Program, identities []policy.Identity) error {
	for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
		other := p.Other(way)
		if err := t.Add(EntryKey{p.ID(), way, identity.Other}, other); err != nil {
			return err
		}
		for _, i := range identities {
			if e := p.Entry(way, i.Kind, i.Matches); !e.Equal(other) {
				if err := t.Add(EntryKey{p.ID(), way, i.ID}, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Programs returns the programs in use, each once.
func (t *Tables) Programs() []policy.ID {
	out := []policy.ID{t.Node}
	for _, id := range t.Endpoints {
		out = append(out, id)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if out[0] == 0 {
		out = out[1:]
	}
	return out
}

// Netip returns the prefix of IPv4 or IPv6.
func (p Prefix) Netip() netip.Prefix {
	a := netip.AddrFrom16(p.Address)
	if a.Is4In6() && p.Bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), p.Bits-96)
	}
	return netip.PrefixFrom(a, p.Bits)
}
