package maps

import (
	"net/netip"

	"github.com/strait-net/strait/internal/bpf"
)

// Remote returns the row of the ipcache that an address falls into: the one of the longest prefix.
func (m *Maps) Remote(a netip.Addr) (r Remote, ok bool, err error) {
	const name = bpf.DatapathMapStraitIpcache
	key := bpf.IpcacheKeyFrom(netip.PrefixFrom(a, a.BitLen()))
	value, ok, err := lookup[bpf.Remote](m, name, key)
	if !ok || err != nil {
		return Remote{}, false, err
	}
	// The kernel gives the value, not its prefix: that is the shortest question that gets the same answer.
	least := uint32(0)
	if a.Is4() {
		least = 96
	}
	for length := key.PrefixLen; length > least; length-- {
		shorter := key
		shorter.PrefixLen = length - 1
		v, found, err := lookup[bpf.Remote](m, name, shorter)
		if err != nil {
			return Remote{}, false, err
		}
		if !found || v != value {
			key.PrefixLen = length
			break
		}
		key.PrefixLen = length - 1
	}
	return remote(bpf.IpcacheKeyFrom(key.Prefix()), value), true, nil
}

// Service returns the row of a frontend.
func (m *Maps) Service(f Frontend) (s Service, ok bool, err error) {
	v, ok, err := lookup[bpf.Service](m, bpf.DatapathMapStraitService, bpf.SockaddrKeyFrom(f.AddrPort, f.Protocol))
	return service(v), ok, err
}

// Backends returns the backends in the slots of a set that new connections may get, each once, in the order of the slots.
func (m *Maps) Backends(set, count uint32) (out []Backend, err error) {
	seen := map[uint32]bool{}
	for i := range count {
		slot, ok, err := lookup[bpf.Slot](m, bpf.DatapathMapStraitSlot, bpf.SlotKey{Set: set, Slot: i})
		if err != nil {
			return nil, err
		}
		if !ok || seen[slot.Backend] {
			continue
		}
		seen[slot.Backend] = true
		b, ok, err := lookup[bpf.Backend](m, bpf.DatapathMapStraitBackend, slot.Backend)
		if err != nil {
			return nil, err
		}
		if ok && b.Flags&bpf.BackendLeaving == 0 {
			out = append(out, backend(b))
		}
	}
	return out, nil
}

// Admits reports whether a service with source ranges has one for a client.
func (m *Maps) Admits(service uint32, client netip.Addr) (bool, error) {
	_, ok, err := lookup[uint32](m, bpf.DatapathMapStraitSource, bpf.SourceKeyFrom(service, netip.PrefixFrom(client, client.BitLen())))
	return ok, err
}

// Stays returns the backend that a client is to stay with, by address.
func (m *Maps) Stays(client netip.Addr, set uint32) (b Backend, ok bool, err error) {
	a, ok, err := lookup[bpf.Affinity](m, bpf.DatapathMapStraitAffinity, bpf.AffinityKey{Client: bpf.AddrFrom(client), Set: set})
	if !ok || err != nil {
		return Backend{}, false, err
	}
	v, ok, err := lookup[bpf.Backend](m, bpf.DatapathMapStraitBackend, a.Backend)
	return backend(v), ok && v.Generation == a.Generation && v.Flags&bpf.BackendLeaving == 0, err
}

// ConnectionText is an entry of strait_ct as it is dumped, on one line.
func ConnectionText(k bpf.CtKey, e bpf.CtEntry) string {
	row := connectionRow(k, e)
	text := bpf.DatapathMapStraitCt + " " + row[0] + " " + row[1] + " -> " + row[2]
	for i, name := range []string{" as ", " backend ", " known as ", " "} {
		if cell := row[len(row)-4+i]; cell != "" {
			text += name + cell
		}
	}
	return text
}

// WayBackText is an entry of strait_nat as it is dumped, on one line.
func WayBackText(k bpf.NatKey, v bpf.NatEntry) string {
	row := wayBackRow(k, v)
	text := bpf.DatapathMapStraitNat + " " + row[0] + " " + row[1] + " -> " + row[2] + " is for " + row[3]
	if row[4] != "" {
		text += ", who knows the other end as " + row[4]
	}
	return text
}

// Text is a row of strait_ipcache on one line.
func (r Remote) Text() string {
	text := bpf.DatapathMapStraitIpcache + " " + r.Prefix.String() + " -> " + remoteFlags(r.Flags&^bpf.RemoteTunnel)
	switch {
	case r.Flags&bpf.RemoteTunnel != 0:
		text += " by tunnel to " + r.Node.String()
	case r.Index != 0:
		text += " by " + r.Node.String()
	}
	return text
}
