package maps

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/verdict"
)

// Endpoint is a row of strait_endpoint: how to hand a packet over to a local pod.
type Endpoint struct {
	Address  netip.Addr
	Index    uint32 // of the node's end of the pair
	PolicyID uint32
	Identity uint32
	PodMAC   net.HardwareAddr
	HostMAC  net.HardwareAddr
}

// Remote is a row of strait_ipcache: who has a prefix and the way there.
type Remote struct {
	Prefix   netip.Prefix
	Identity uint32
	Flags    bpf.RemoteFlags
	Node     netip.Addr // tunnel endpoint or next hop
	Index    uint32     // egress device, 0 with a tunnel
	NodeID   uint32     // the same in all rows of one node, 0 in those of none
}

// Device is a row of strait_device: a native device and the addresses pods are masqueraded with.
type Device struct {
	Index   uint32
	Address netip.Addr // IPv4, zero if none
	IPv6    netip.Addr // zero if none
	MTU     uint32
}

// Frontend is the key of strait_service.
type Frontend struct {
	netip.AddrPort
	Protocol uint8
}

// Service is the value of strait_service.
type Service struct {
	ID    uint32 // never 0
	Count uint32 // slots 0..Count-1 are in use
	Flags bpf.ServiceFlags
}

// Slot is the key of strait_slot.
type Slot struct{ Service, Slot uint32 }

// Backend is the value of strait_backend.
type Backend struct {
	netip.AddrPort
	Protocol   uint8
	Generation uint32 // changes when the id is given to another address
}

// Counter is a row of strait_counter, summed over all CPUs.
type Counter struct {
	Reason  verdict.Reason
	Packets uint64
	Bytes   uint64
}

func (m *Maps) get(name string) (*ebpf.Map, error) {
	k, ok := m.byName[name]
	if !ok {
		return nil, fmt.Errorf("map %s is not open", name)
	}
	return k, nil
}

func put[K, V any](m *Maps, name string, key K, value V) error {
	k, err := m.get(name)
	if err != nil {
		return err
	}
	if err := k.Put(&key, &value); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// remove deletes an entry; an absent one is no error.
func remove[K any](m *Maps, name string, key K) error {
	k, err := m.get(name)
	if err != nil {
		return err
	}
	if err := k.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %s: %w", name, err)
	}
	return nil
}

func lookup[V, K any](m *Maps, name string, key K) (value V, ok bool, err error) {
	k, err := m.get(name)
	if err != nil {
		return value, false, err
	}
	err = k.Lookup(&key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return value, false, nil
	}
	if err != nil {
		return value, false, fmt.Errorf("read %s: %w", name, err)
	}
	return value, true, nil
}

func each[K, V any](m *Maps, name string, fn func(K, V)) error {
	k, err := m.get(name)
	if err != nil {
		return err
	}
	if err := scan(k, func(key K, value V) bool { fn(key, value); return true }); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// PutEndpoint writes one address of a local pod.
func (m *Maps) PutEndpoint(e Endpoint) error {
	v := bpf.Endpoint{Ifindex: e.Index, PolicyId: e.PolicyID, Identity: e.Identity}
	copy(v.PodMac[:], e.PodMAC)
	copy(v.HostMac[:], e.HostMAC)
	if err := put(m, bpf.DatapathMapStraitEndpoint, bpf.AddrFrom(e.Address), v); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.Address, err)
	}
	return nil
}

// DeleteEndpoint removes one address of a local pod.
func (m *Maps) DeleteEndpoint(address netip.Addr) error {
	return remove(m, bpf.DatapathMapStraitEndpoint, bpf.AddrFrom(address))
}

// Endpoint returns the entry of a local pod's address.
func (m *Maps) Endpoint(address netip.Addr) (e Endpoint, ok bool, err error) {
	v, ok, err := lookup[bpf.Endpoint](m, bpf.DatapathMapStraitEndpoint, bpf.AddrFrom(address))
	if !ok || err != nil {
		return Endpoint{}, false, err
	}
	return endpoint(bpf.AddrFrom(address), v), true, nil
}

// Endpoints returns all addresses of local pods.
func (m *Maps) Endpoints() (out []Endpoint, err error) {
	err = each(m, bpf.DatapathMapStraitEndpoint, func(k bpf.Addr, v bpf.Endpoint) { out = append(out, endpoint(k, v)) })
	return out, err
}

func endpoint(k bpf.Addr, v bpf.Endpoint) Endpoint {
	return Endpoint{
		Address: k.Netip(), Index: v.Ifindex, PolicyID: v.PolicyId, Identity: v.Identity,
		PodMAC: net.HardwareAddr(v.PodMac[:]), HostMAC: net.HardwareAddr(v.HostMac[:]),
	}
}

// PutRemote writes a prefix of the ipcache.
func (m *Maps) PutRemote(r Remote) error {
	return put(m, bpf.DatapathMapStraitIpcache, bpf.IpcacheKeyFrom(r.Prefix),
		bpf.Remote{Identity: r.Identity, Flags: r.Flags, Node: bpf.AddrFrom(r.Node), Ifindex: r.Index, NodeId: r.NodeID})
}

// DeleteRemote removes a prefix of the ipcache.
func (m *Maps) DeleteRemote(p netip.Prefix) error {
	return remove(m, bpf.DatapathMapStraitIpcache, bpf.IpcacheKeyFrom(p))
}

// Remotes returns the ipcache.
func (m *Maps) Remotes() (out []Remote, err error) {
	err = each(m, bpf.DatapathMapStraitIpcache, func(k bpf.IpcacheKey, v bpf.Remote) { out = append(out, remote(k, v)) })
	return out, err
}

func remote(k bpf.IpcacheKey, v bpf.Remote) Remote {
	return Remote{Prefix: k.Prefix(), Identity: v.Identity, Flags: v.Flags, Node: v.Node.Netip(), Index: v.Ifindex, NodeID: v.NodeId}
}

// PutDevice writes a native device.
func (m *Maps) PutDevice(d Device) error {
	return put(m, bpf.DatapathMapStraitDevice, d.Index,
		bpf.Device{Addr4: bpf.AddrFrom(d.Address), Addr6: bpf.AddrFrom(d.IPv6), Mtu: d.MTU})
}

// DeleteDevice removes a native device.
func (m *Maps) DeleteDevice(index uint32) error {
	return remove(m, bpf.DatapathMapStraitDevice, index)
}

// Devices returns the native devices.
func (m *Maps) Devices() (out []Device, err error) {
	err = each(m, bpf.DatapathMapStraitDevice, func(k uint32, v bpf.Device) { out = append(out, device(k, v)) })
	return out, err
}

func device(k uint32, v bpf.Device) Device {
	return Device{Index: k, Address: v.Addr4.Netip(), IPv6: v.Addr6.Netip(), MTU: v.Mtu}
}

// PutService writes a frontend.
func (m *Maps) PutService(f Frontend, s Service) error {
	return put(m, bpf.DatapathMapStraitService, bpf.SockaddrKeyFrom(f.AddrPort, f.Protocol),
		bpf.Service{Id: s.ID, Count: s.Count, Flags: s.Flags, Set: s.ID, OuterSet: s.ID, OuterCount: s.Count})
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

func service(v bpf.Service) Service { return Service{ID: v.Id, Count: v.Count, Flags: v.Flags} }

// PutSlot makes a slot of a service point to a backend.
func (m *Maps) PutSlot(s Slot, backend uint32) error {
	return put(m, bpf.DatapathMapStraitSlot, bpf.SlotKey{Set: s.Service, Slot: s.Slot}, bpf.Slot{Backend: backend})
}

// DeleteSlot removes a slot of a service.
func (m *Maps) DeleteSlot(s Slot) error {
	return remove(m, bpf.DatapathMapStraitSlot, bpf.SlotKey{Set: s.Service, Slot: s.Slot})
}

// EachSlot calls fn with every slot.
func (m *Maps) EachSlot(fn func(Slot, uint32)) error {
	return each(m, bpf.DatapathMapStraitSlot, func(k bpf.SlotKey, v bpf.Slot) { fn(Slot{k.Set, k.Slot}, v.Backend) })
}

// PutBackend writes a backend.
func (m *Maps) PutBackend(id uint32, b Backend) error {
	return put(m, bpf.DatapathMapStraitBackend, id, bpf.Backend{
		Addr: bpf.AddrFrom(b.Addr()), Port: bpf.NetPort(b.Port()), Proto: b.Protocol, Generation: b.Generation,
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
	return Backend{netip.AddrPortFrom(v.Addr.Netip(), bpf.NetPort(v.Port)), v.Proto, v.Generation}
}

// Counters returns what became of packets, for each reason that has occurred or has a name.
func (m *Maps) Counters() ([]Counter, error) {
	k, err := m.get(bpf.DatapathMapStraitCounter)
	if err != nil {
		return nil, err
	}
	named := map[verdict.Reason]bool{}
	for _, r := range verdict.All() {
		named[r] = true
	}
	var out []Counter
	var perCPU []bpf.Counter
	for i := range k.MaxEntries() {
		if err := k.Lookup(i, &perCPU); err != nil {
			return nil, fmt.Errorf("read %s: %w", bpf.DatapathMapStraitCounter, err)
		}
		c := Counter{Reason: verdict.Reason(i)}
		for _, one := range perCPU {
			c.Packets += one.Packets
			c.Bytes += one.Bytes
		}
		if c.Packets > 0 || named[c.Reason] {
			out = append(out, c)
		}
	}
	return out, nil
}
