package maps

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
)

// Frontend is the key of strait_service. An unspecified address stands for every address of the node.
type Frontend struct {
	netip.AddrPort
	Protocol uint8
}

// Service is the value of strait_service.
type Service struct {
	ID         uint32 // of the frontend, never 0
	Flags      bpf.ServiceFlags
	Algorithm  bpf.Algorithm
	Affinity   uint32 // seconds
	Set        uint32 // backends of clients inside the cluster, never 0
	Count      uint32 // slots 0..Count-1 of Set are in use
	OuterSet   uint32 // backends of clients outside
	OuterCount uint32
}

// Slot is the key of strait_slot.
type Slot struct{ Set, Slot uint32 }

// Share is the value of strait_slot.
type Share struct {
	Backend uint32 // id
	Weight  uint32 // 0 counts as 1
}

// Backend is the value of strait_backend.
type Backend struct {
	netip.AddrPort
	Protocol   uint8
	Flags      bpf.BackendFlags
	Generation uint32 // changes when the id is given to another address
}

// Load is the value of strait_load: the connections of a backend.
type Load struct {
	Sockets     uint32 // under way, by sockets
	Tracked     uint32 // under way, by packets
	Connections uint64 // ever
}

// Source is a key of strait_source: clients in Prefix may use the frontend with the id.
type Source struct {
	Service uint32
	Prefix  netip.Prefix
}

// Affinity is a row of strait_affinity: the backend a client stays with.
type Affinity struct {
	Client     netip.Addr
	Set        uint32
	Backend    uint32
	Generation uint32
	Last       uint32 // last use: seconds of CLOCK_MONOTONIC_COARSE
}

// Netns is the value of strait_netns: the addresses clients in a network namespace have. Either may be the zero netip.Addr.
type Netns struct{ IPv4, IPv6 netip.Addr }

// Announcement is a row of strait_announce: a service address that the node answers for on a device.
type Announcement struct {
	Address netip.Addr
	Index   uint32 // of the device
	MAC     [6]byte
}

// PutService writes a frontend. The turn of round robin goes on from where the programs have brought it.
func (m *Maps) PutService(f Frontend, s Service) error {
	k := bpf.SockaddrKeyFrom(f.AddrPort, f.Protocol)
	v := bpf.Service{
		Id: s.ID, Count: s.Count, Flags: s.Flags, Set: s.Set, OuterSet: s.OuterSet, OuterCount: s.OuterCount,
		Algorithm: s.Algorithm, Affinity: s.Affinity,
	}
	if s.Algorithm == bpf.AlgorithmRR {
		old, _, err := lookup[bpf.Service](m, bpf.DatapathMapStraitService, k)
		if err != nil {
			return err
		}
		v.Turn = old.Turn
	}
	return put(m, bpf.DatapathMapStraitService, k, v)
}

// DeleteService removes a frontend.
func (m *Maps) DeleteService(f Frontend) error {
	return remove(m, bpf.DatapathMapStraitService, bpf.SockaddrKeyFrom(f.AddrPort, f.Protocol))
}

// EachService calls fn with every frontend.
func (m *Maps) EachService(fn func(Frontend, Service)) error {
	return each(m, bpf.DatapathMapStraitService, func(k bpf.SockaddrKey, v bpf.Service) { fn(frontend(k), service(v)) })
}

func frontend(k bpf.SockaddrKey) Frontend { return Frontend{k.AddrPort(), k.Proto} }

func service(v bpf.Service) Service {
	return Service{
		ID: v.Id, Flags: v.Flags, Algorithm: v.Algorithm, Affinity: v.Affinity,
		Set: v.Set, Count: v.Count, OuterSet: v.OuterSet, OuterCount: v.OuterCount,
	}
}

// PutSlot makes a slot of a set point to a backend.
func (m *Maps) PutSlot(s Slot, to Share) error {
	return put(m, bpf.DatapathMapStraitSlot, bpf.SlotKey{Set: s.Set, Slot: s.Slot}, bpf.Slot{Backend: to.Backend, Weight: to.Weight})
}

// DeleteSlot removes a slot of a set.
func (m *Maps) DeleteSlot(s Slot) error {
	return remove(m, bpf.DatapathMapStraitSlot, bpf.SlotKey{Set: s.Set, Slot: s.Slot})
}

// EachSlot calls fn with every slot.
func (m *Maps) EachSlot(fn func(Slot, Share)) error {
	return each(m, bpf.DatapathMapStraitSlot, func(k bpf.SlotKey, v bpf.Slot) { fn(Slot{k.Set, k.Slot}, Share{v.Backend, v.Weight}) })
}

// PutBackend writes a backend.
func (m *Maps) PutBackend(id uint32, b Backend) error {
	return put(m, bpf.DatapathMapStraitBackend, id, bpf.Backend{
		Addr: bpf.AddrFrom(b.Addr()), Port: bpf.NetPort(b.Port()), Proto: b.Protocol, Generation: b.Generation, Flags: b.Flags,
	})
}

// DeleteBackend removes a backend.
func (m *Maps) DeleteBackend(id uint32) error {
	return remove(m, bpf.DatapathMapStraitBackend, id)
}

// EachBackend calls fn with every backend.
func (m *Maps) EachBackend(fn func(id uint32, b Backend)) error {
	return each(m, bpf.DatapathMapStraitBackend, func(k uint32, v bpf.Backend) { fn(k, backend(v)) })
}

func backend(v bpf.Backend) Backend {
	return Backend{netip.AddrPortFrom(v.Addr.Netip(), bpf.NetPort(v.Port)), v.Proto, v.Flags, v.Generation}
}

// PutLoad makes the programs count the connections of a backend. What they have counted already stays.
func (m *Maps) PutLoad(backend uint32) error {
	k, err := m.get(bpf.DatapathMapStraitLoad)
	if err != nil {
		return err
	}
	if err := k.Update(&backend, &bpf.Load{}, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return refused(k, bpf.DatapathMapStraitLoad, err)
	}
	return nil
}

// DeleteLoad ends the counting of a backend's connections.
func (m *Maps) DeleteLoad(backend uint32) error { return remove(m, bpf.DatapathMapStraitLoad, backend) }

// Load returns the connections of a backend.
func (m *Maps) Load(backend uint32) (l Load, ok bool, err error) {
	v, ok, err := lookup[bpf.Load](m, bpf.DatapathMapStraitLoad, backend)
	return Load{v.Sockets, v.Tracked, v.Connections}, ok, err
}

// EachLoad calls fn with the connections of every backend.
func (m *Maps) EachLoad(fn func(backend uint32, l Load)) error {
	return each(m, bpf.DatapathMapStraitLoad, func(k uint32, v bpf.Load) { fn(k, Load{v.Sockets, v.Tracked, v.Connections}) })
}

// PutSource lets clients of a prefix use a frontend.
func (m *Maps) PutSource(s Source) error {
	return put(m, bpf.DatapathMapStraitSource, bpf.SourceKeyFrom(s.Service, s.Prefix), uint32(1))
}

// DeleteSource takes that back.
func (m *Maps) DeleteSource(s Source) error {
	return remove(m, bpf.DatapathMapStraitSource, bpf.SourceKeyFrom(s.Service, s.Prefix))
}

// EachSource calls fn with every prefix that may use a frontend.
func (m *Maps) EachSource(fn func(Source)) error {
	return each(m, bpf.DatapathMapStraitSource, func(k bpf.SourceKey, _ uint32) { fn(Source{k.Service, k.Prefix()}) })
}

// EachAffinity calls fn with every client that stays with a backend.
func (m *Maps) EachAffinity(fn func(Affinity)) error {
	return each(m, bpf.DatapathMapStraitAffinity, func(k bpf.AffinityKey, v bpf.Affinity) { fn(affinity(k, v)) })
}

func affinity(k bpf.AffinityKey, v bpf.Affinity) Affinity {
	return Affinity{Client: k.Client.Netip(), Set: k.Set, Backend: v.Backend, Generation: v.Generation, Last: v.Last}
}

// ForgetAffinity makes the clients of a set no longer stay with a backend; 0 is every backend. It reads the whole table.
func (m *Maps) ForgetAffinity(set, backend uint32) error {
	return purge(m, bpf.DatapathMapStraitAffinity, func(k bpf.AffinityKey, v bpf.Affinity) bool {
		return k.Set == set && (backend == 0 || v.Backend == backend)
	})
}

// PutNetns says which addresses the clients in a network namespace have.
func (m *Maps) PutNetns(cookie uint64, n Netns) error {
	return put(m, bpf.DatapathMapStraitNetns, cookie, bpf.Netns{Addr4: bpf.AddrFrom(n.IPv4), Addr6: bpf.AddrFrom(n.IPv6)})
}

// DeleteNetns forgets a network namespace.
func (m *Maps) DeleteNetns(cookie uint64) error { return remove(m, bpf.DatapathMapStraitNetns, cookie) }

// EachNetns calls fn with every network namespace.
func (m *Maps) EachNetns(fn func(cookie uint64, n Netns)) error {
	return each(m, bpf.DatapathMapStraitNetns, func(k uint64, v bpf.Netns) { fn(k, Netns{v.Addr4.Netip(), v.Addr6.Netip()}) })
}

// PutAnnouncement makes the node answer for a service address on a device.
func (m *Maps) PutAnnouncement(a Announcement) error {
	return put(m, bpf.DatapathMapStraitAnnounce, announceKey(a), bpf.Announce{Mac: a.MAC})
}

// DeleteAnnouncement ends that; the MAC is of no matter.
func (m *Maps) DeleteAnnouncement(a Announcement) error {
	return remove(m, bpf.DatapathMapStraitAnnounce, announceKey(a))
}

// EachAnnouncement calls fn with every address the node answers for.
func (m *Maps) EachAnnouncement(fn func(Announcement)) error {
	return each(m, bpf.DatapathMapStraitAnnounce, func(k bpf.AnnounceKey, v bpf.Announce) {
		fn(Announcement{Address: k.Addr.Netip(), Index: k.Ifindex, MAC: v.Mac})
	})
}

func announceKey(a Announcement) bpf.AnnounceKey {
	return bpf.AnnounceKey{Addr: bpf.AddrFrom(a.Address), Ifindex: a.Index}
}
