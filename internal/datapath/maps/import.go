package maps

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/takeover"
)

// Import enters connections that another proxy has made, so that the programs go on with them; with stack, only once it is said again
// without: until then every packet of theirs goes through the node's stack. It can be repeated; the first error ends it.
func (m *Maps) Import(connections []takeover.Connection, stack bool) error {
	now, err := clock()
	if err != nil {
		return err
	}
	for _, c := range connections {
		if err := m.importOne(c, now, stack); err != nil {
			return fmt.Errorf("import connection of %s to %s: %w", c.Client, c.Front, err)
		}
	}
	return nil
}

// importOne writes the ways back before the client's entry, which makes packets take the way there.
func (m *Maps) importOne(c takeover.Connection, now time.Duration, stack bool) error {
	client := entry{flags: bpf.CtService}
	if c.Masquerade.IsValid() {
		client.flags |= bpf.CtNat
		if err := put(m, bpf.DatapathMapStraitNat, bpf.NatKey{
			Remote: bpf.AddrFrom(c.Backend.Addr()), RemotePort: bpf.NetPort(c.Backend.Port()),
			Node: bpf.AddrFrom(c.Masquerade.Addr()), NodePort: bpf.NetPort(c.Masquerade.Port()), Proto: c.Protocol,
		}, bpf.NatEntry{
			Client: bpf.AddrFrom(c.Client.Addr()), ClientPort: bpf.NetPort(c.Client.Port()),
			FrontAddr: bpf.AddrFrom(c.Front.Addr()), FrontPort: bpf.NetPort(c.Front.Port()),
		}); err != nil {
			return err
		}
	}
	if c.Ends {
		if err := m.enter(c, c.Backend, entry{flags: bpf.CtFront}, now, stack); err != nil {
			return err
		}
	}
	return m.enter(c, c.Front, client, now, stack)
}

// entry is what an imported connection's entry says beside its ends.
type entry struct{ flags bpf.CtFlags }

// enter writes the entry of the client and another end. What the programs have counted already stays.
func (m *Maps) enter(c takeover.Connection, other netip.AddrPort, e entry, now time.Duration, stack bool) error {
	key, high := ctKey(c.Client, other, c.Protocol)
	v, known, err := lookup[bpf.CtEntry](m, bpf.DatapathMapStraitCt, key)
	if err != nil {
		return err
	}
	if !known {
		v.Began = uint64(now)
	}
	flags := e.flags | v.Flags&(bpf.CtReplied|bpf.CtFinLo|bpf.CtFinHi)
	if e.flags&bpf.CtFront != 0 {
		flags |= v.Flags & bpf.CtNat // a pod's with a backend outside: masqueraded by the programs already
	}
	if stack {
		flags |= bpf.CtStack
	}
	if high {
		flags |= bpf.CtHiBegan
	}
	if c.Replied {
		flags |= bpf.CtReplied
	}
	v.Flags, v.LastSeen = flags, uint32(now/time.Second)
	if e.flags&bpf.CtService != 0 {
		v.Backend, v.BackendGen = c.ID, c.Generation
	}
	if e.flags&bpf.CtNat != 0 {
		v.NatAddr, v.NatPort = bpf.AddrFrom(c.Masquerade.Addr()), bpf.NetPort(c.Masquerade.Port())
	}
	if e.flags&bpf.CtFront != 0 {
		v.FrontAddr, v.FrontPort = bpf.AddrFrom(c.Front.Addr()), bpf.NetPort(c.Front.Port())
	}
	return put(m, bpf.DatapathMapStraitCt, key, v)
}

// ctKey returns the key of a connection, and whether from is its high end.
func ctKey(from, to netip.AddrPort, protocol uint8) (k bpf.CtKey, high bool) {
	a, b := from.Addr().As16(), to.Addr().As16()
	if high = bytes.Compare(a[:], b[:]) > 0; high {
		from, to = to, from
	}
	return bpf.CtKey{
		Lo: bpf.AddrFrom(from.Addr()), LoPort: bpf.NetPort(from.Port()), Hi: bpf.AddrFrom(to.Addr()), HiPort: bpf.NetPort(to.Port()), Proto: protocol,
	}, high
}

// LeaveStack forgets the connections that are marked as the stack's and have an end for which match holds.
func (m *Maps) LeaveStack(match func(end netip.AddrPort, protocol uint8) bool) error {
	at := func(a bpf.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Netip(), bpf.NetPort(port)) }
	return purge(m, bpf.DatapathMapStraitCt, func(k bpf.CtKey, e bpf.CtEntry) bool {
		return e.Flags&bpf.CtStack != 0 && (match(at(k.Lo, k.LoPort), k.Proto) || match(at(k.Hi, k.HiPort), k.Proto))
	})
}

// HasImports reports whether there are ways back at ports outside the range of this node's masquerade: those of imported connections,
// which the programs find only when they are told to look.
func (m *Maps) HasImports(lo, hi uint16) (found bool, err error) {
	k, err := m.get(bpf.DatapathMapStraitNat)
	if err != nil {
		return false, err
	}
	err = scan(k, func(k bpf.NatKey, e bpf.NatEntry) bool {
		port := bpf.NetPort(k.NodePort)
		found = e.FrontPort != 0 && (port < lo || port > hi)
		return !found
	})
	if err != nil {
		return found, fmt.Errorf("look for imported connections: %w", err)
	}
	return found, nil
}

// Served returns how many connections to services the programs carry.
func (m *Maps) Served() (n int, err error) {
	now, err := clock()
	if err != nil {
		return 0, err
	}
	err = each(m, bpf.DatapathMapStraitCt, func(k bpf.CtKey, e bpf.CtEntry) {
		const fins = bpf.CtFinLo | bpf.CtFinHi
		if e.Flags&bpf.CtService != 0 && e.Flags&bpf.CtRst == 0 && e.Flags&fins != fins && !expired(k, e, uint32(now/time.Second)) {
			n++
		}
	})
	return n, err
}
