package maps

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/verdict"
)

// Endpoint is a row of strait_endpoint: how to hand a packet over to a local pod.
type Endpoint struct {
	Address netip.Addr
	Index   uint32 // of the node's end of the pair
	Policy  uint64 // name of its policy in strait_policy, 0: none
	PodMAC  net.HardwareAddr
	HostMAC net.HardwareAddr
}

// Remote is a row of strait_ipcache: who has a prefix and the way there.
type Remote struct {
	Prefix netip.Prefix
	Flags  bpf.RemoteFlags
	Node   netip.Addr // tunnel endpoint or next hop
	Index  uint32     // egress device, 0 with a tunnel
	NodeID uint32     // the same in all rows of one node, 0 in those of none
}

// Device is a row of strait_device: a native device and the addresses pods are masqueraded with.
type Device struct {
	Index   uint32
	Address netip.Addr // IPv4, zero if none
	IPv6    netip.Addr // zero if none
	MTU     uint32
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
		return refused(k, name, err)
	}
	return nil
}

// ErrFull is matched by the error of a write that found no room in a map.
var ErrFull = errors.New("no room")

// refused says what a failed write means.
func refused(k *ebpf.Map, name string, err error) error {
	for _, full := range []error{unix.E2BIG, unix.ENOSPC, unix.ENOMEM} {
		if errors.Is(err, full) {
			return fmt.Errorf("write %s: %w for more than %d entries", name, ErrFull, k.MaxEntries())
		}
	}
	return fmt.Errorf("write %s: %w", name, err)
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
	v := bpf.Endpoint{Ifindex: e.Index, Policy: e.Policy}
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
		Address: k.Netip(), Index: v.Ifindex, Policy: v.Policy,
		PodMAC: net.HardwareAddr(v.PodMac[:]), HostMAC: net.HardwareAddr(v.HostMac[:]),
	}
}

// PutRemote writes a prefix of the ipcache.
func (m *Maps) PutRemote(r Remote) error {
	return put(m, bpf.DatapathMapStraitIpcache, bpf.IpcacheKeyFrom(r.Prefix),
		bpf.Remote{Flags: r.Flags, Node: bpf.AddrFrom(r.Node), Ifindex: r.Index, NodeId: r.NodeID})
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
	return Remote{Prefix: k.Prefix(), Flags: v.Flags, Node: v.Node.Netip(), Index: v.Ifindex, NodeID: v.NodeId}
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
