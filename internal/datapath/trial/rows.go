package trial

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
)

// private says how the maps that programs write are made for a trial. All others are the live ones. Tables that push out the longest unused
// become plain ones, and those of a row per CPU have one: what is in them is this trial's alone, and little.
func private(name string, spec *ebpf.MapSpec) bool {
	switch name {
	case bpf.DatapathMapStraitCt, bpf.DatapathMapStraitNat, bpf.DatapathMapStraitFrag, bpf.DatapathMapStraitAffinity,
		bpf.DatapathMapStraitDgram, bpf.DatapathMapStraitService, bpf.DatapathMapStraitLoad, "strait_muted":
		spec.Type, spec.MaxEntries, spec.Flags = ebpf.Hash, privateEntries, unix.BPF_F_NO_PREALLOC
	case bpf.DatapathMapStraitCounter, bpf.DatapathMapStraitRule, "strait_lost":
		spec.Type = ebpf.Array
	case "strait_events":
		spec.MaxEntries = privateRing
	default:
		return false
	}
	spec.Pinning = ebpf.PinNone
	return true
}

const (
	privateEntries = 4096
	privateRing    = 64 << 10 // bytes: a multiple of every page size in use
)

// remembered are the maps whose rows the next packet of a session finds.
func remembered() []string {
	return []string{
		bpf.DatapathMapStraitCt, bpf.DatapathMapStraitNat, bpf.DatapathMapStraitFrag, bpf.DatapathMapStraitAffinity,
		bpf.DatapathMapStraitService, bpf.DatapathMapStraitLoad,
	}
}

// rows are raw rows of maps, by the name of the map and the key's bytes.
type rows map[string]map[string][]byte

func (r rows) put(name string, key, value []byte) {
	if r[name] == nil {
		r[name] = map[string][]byte{}
	}
	r[name][string(key)] = value
}

func raw[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

func typed[T any](b []byte) (v T) {
	copy(raw(&v), b)
	return v
}

// lend copies a live row for the programs of a trial, unless the session has one already.
func lend[V, K any](b *Bench, r rows, name string, key K) (v V, ok bool, err error) {
	k := raw(&key)
	if have, ok := r[name][string(k)]; ok {
		return typed[V](have), true, nil
	}
	value, err := b.live[name].LookupBytes(k)
	if err != nil {
		return v, false, fmt.Errorf("read %s: %w", name, err)
	}
	if value == nil {
		return v, false, nil
	}
	r.put(name, k, value)
	return typed[V](value), true, nil
}

// prepare lends what the programs may write of the rows that a packet leads to.
func (b *Bench) prepare(r rows, p Packet, established bool) error {
	for _, end := range []netip.AddrPort{p.Source, p.Target, p.Front} {
		if !end.IsValid() {
			continue
		}
		anyAddr := netip.IPv4Unspecified()
		if end.Addr().Is6() {
			anyAddr = netip.IPv6Unspecified()
		}
		for _, front := range []netip.AddrPort{end, netip.AddrPortFrom(anyAddr, end.Port())} {
			if err := b.prepareService(r, bpf.SockaddrKeyFrom(front, p.Protocol), p.Source.Addr()); err != nil {
				return err
			}
		}
	}
	if !established {
		return nil
	}
	if err := b.prepareConnection(r, p.Source, p.Target, p.number()); err != nil {
		return err
	}
	way := bpf.NatKey{
		Remote: bpf.AddrFrom(p.Source.Addr()), Node: bpf.AddrFrom(p.Target.Addr()), RemotePort: bpf.NetPort(p.Source.Port()),
		NodePort: bpf.NetPort(p.Target.Port()), Proto: p.number(),
	}
	if p.icmp() {
		way.RemotePort = 0
	}
	back, ok, err := lend[bpf.NatEntry](b, r, bpf.DatapathMapStraitNat, way)
	if err != nil || !ok {
		return err
	}
	client, other := netip.AddrPortFrom(back.Client.Netip(), bpf.NetPort(back.ClientPort)), p.Source
	if back.FrontPort != 0 {
		other = netip.AddrPortFrom(back.FrontAddr.Netip(), bpf.NetPort(back.FrontPort))
	}
	return b.prepareConnection(r, client, other, p.number())
}

// prepareService lends a frontend with the loads of its backends and the client's choice.
func (b *Bench) prepareService(r rows, key bpf.SockaddrKey, client netip.Addr) error {
	svc, ok, err := lend[bpf.Service](b, r, bpf.DatapathMapStraitService, key)
	if err != nil || !ok {
		return err
	}
	for _, set := range []struct{ id, count uint32 }{{svc.Set, svc.Count}, {svc.OuterSet, svc.OuterCount}} {
		if _, _, err := lend[bpf.Affinity](b, r, bpf.DatapathMapStraitAffinity, bpf.AffinityKey{Client: bpf.AddrFrom(client), Set: set.id}); err != nil {
			return err
		}
		for i := range min(set.count, privateEntries/4) {
			slot := bpf.SlotKey{Set: set.id, Slot: i}
			value, err := b.live[bpf.DatapathMapStraitSlot].LookupBytes(raw(&slot))
			if err != nil {
				return fmt.Errorf("read %s: %w", bpf.DatapathMapStraitSlot, err)
			}
			if value == nil {
				continue
			}
			if _, _, err := lend[bpf.Load](b, r, bpf.DatapathMapStraitLoad, typed[bpf.Slot](value).Backend); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepareConnection lends the entry of a connection with those that belong to it.
func (b *Bench) prepareConnection(r rows, x, y netip.AddrPort, protocol uint8) error {
	ct, ok, err := lend[bpf.CtEntry](b, r, bpf.DatapathMapStraitCt, connectionKey(x, y, protocol))
	if err != nil || !ok {
		return err
	}
	began, other := x, y
	if (ct.Flags&bpf.CtHiBegan != 0) == (x.Addr().Compare(y.Addr()) <= 0) {
		began, other = y, x
	}
	if ct.Flags&bpf.CtService != 0 {
		value, err := b.live[bpf.DatapathMapStraitBackend].LookupBytes(raw(&ct.Backend))
		if err != nil {
			return fmt.Errorf("read %s: %w", bpf.DatapathMapStraitBackend, err)
		}
		if value != nil {
			to := typed[bpf.Backend](value)
			other = netip.AddrPortFrom(to.Addr.Netip(), bpf.NetPort(to.Port))
			if err := b.prepareConnection(r, began, other, protocol); err != nil {
				return err
			}
		}
	}
	if ct.Flags&bpf.CtNat == 0 {
		return nil
	}
	_, _, err = lend[bpf.NatEntry](b, r, bpf.DatapathMapStraitNat, bpf.NatKey{
		Remote: bpf.AddrFrom(other.Addr()), Node: ct.NatAddr, RemotePort: bpf.NetPort(other.Port()), NodePort: ct.NatPort, Proto: protocol,
	})
	return err
}

// connectionKey is ct_key_make.
func connectionKey(x, y netip.AddrPort, protocol uint8) bpf.CtKey {
	if y.Addr().Compare(x.Addr()) < 0 {
		x, y = y, x
	}
	return bpf.CtKey{
		Lo: bpf.AddrFrom(x.Addr()), Hi: bpf.AddrFrom(y.Addr()), LoPort: bpf.NetPort(x.Port()), HiPort: bpf.NetPort(y.Port()), Proto: protocol,
	}
}

// restore makes a private map hold the rows and nothing else.
func restore(m *ebpf.Map, want map[string][]byte) error {
	have, err := content(m)
	if err != nil {
		return err
	}
	for key := range have {
		if err := m.Delete([]byte(key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	for key, value := range want {
		if err := m.Put([]byte(key), value); err != nil {
			return err
		}
	}
	return nil
}

func content(m *ebpf.Map) (map[string][]byte, error) {
	out := map[string][]byte{}
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		out[string(key)] = append([]byte(nil), value...)
	}
	return out, it.Err()
}
