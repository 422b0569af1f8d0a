// Package sync makes the kernel's tables hold what the desired tables say: operations for reconcilers, with planning apart from
// writing.
package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

// RemoteMap is the ipcache. *maps.Maps is one.
type RemoteMap interface {
	PutRemote(maps.Remote) error
	DeleteRemote(netip.Prefix) error
	Remotes() ([]maps.Remote, error)
}

// Remotes applies rows of state.Remotes to the ipcache. Address families that are not enabled are the table owner's concern.
type Remotes struct {
	kernel RemoteMap
	index  func(device string) (int, bool)
}

// NewRemotes returns the operations. index gives the index of a device; a row by a device it does not know is an error until it
// does.
func NewRemotes(kernel RemoteMap, index func(device string) (int, bool)) *Remotes {
	return &Remotes{kernel: kernel, index: index}
}

// Update makes the ipcache hold the row.
func (r *Remotes) Update(_ context.Context, row state.Remote) error {
	want, err := r.build(row)
	if err != nil {
		return err
	}
	return r.kernel.PutRemote(want)
}

// Delete makes the ipcache not hold the row.
func (r *Remotes) Delete(_ context.Context, row state.Remote) error {
	return r.kernel.DeleteRemote(row.Prefix)
}

// Prune makes the ipcache exactly rows. Prefixes are added before others are removed, so that an address is never unknown between.
func (r *Remotes) Prune(_ context.Context, rows iter.Seq[state.Remote]) (differences []string, err error) {
	list, err := r.kernel.Remotes()
	if err != nil {
		return nil, err
	}
	have := make(map[netip.Prefix]maps.Remote, len(list))
	for _, h := range list {
		have[h.Prefix] = h
	}
	var errs []error
	for row := range rows {
		prefix := row.Prefix.Masked()
		h, present := have[prefix]
		delete(have, prefix)
		want, err := r.build(row)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch {
		case present && h == want:
			continue
		case present:
			differences = append(differences, fmt.Sprintf("ipcache entry %s is %s, want %s", prefix, describe(h), describe(want)))
		default:
			differences = append(differences, fmt.Sprintf("ipcache entry %s is missing", prefix))
		}
		errs = append(errs, r.kernel.PutRemote(want))
	}
	for _, h := range sorted(have, comparePrefix) {
		differences = append(differences, fmt.Sprintf("ipcache entry %s is not wanted", h))
		errs = append(errs, r.kernel.DeleteRemote(h))
	}
	return differences, errors.Join(errs...)
}

// build is pure but for the index.
func (r *Remotes) build(row state.Remote) (maps.Remote, error) {
	out := maps.Remote{Prefix: row.Prefix.Masked(), Node: row.NextHop, NodeID: nodeID(row.Node)}
	switch row.Kind {
	case state.RemoteHost:
		out.Flags = bpf.RemoteHost
	case state.RemoteNode:
		out.Flags = bpf.RemoteNode
	case state.RemotePods:
		out.Flags = bpf.RemotePod
	case state.RemoteAPIServer:
		out.Flags = bpf.RemoteAPIServer
	default:
		return maps.Remote{}, fmt.Errorf("remote %s has unknown kind %q", row.Prefix, row.Kind)
	}
	switch {
	case row.Tunnel && !row.NextHop.IsValid():
		return maps.Remote{}, fmt.Errorf("remote %s goes through the tunnel but has no tunnel endpoint", row.Prefix)
	case row.Tunnel:
		out.Flags |= bpf.RemoteTunnel
	case row.Device != "":
		index, ok := r.index(row.Device)
		if !ok {
			return maps.Remote{}, fmt.Errorf("remote %s: device %s is not there", row.Prefix, row.Device)
		}
		out.Index = uint32(index)
	}
	return out, nil
}

// nodeID is a number by which the programs see that two rows are of one node: an FNV-1a hash of its name, never 0.
func nodeID(name string) uint32 {
	if name == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return max(h.Sum32(), 1)
}

func describe(r maps.Remote) string {
	return fmt.Sprintf("flags 0x%x via %s device %d", uint32(r.Flags), r.Node, r.Index)
}

// DeviceMap is the table of native devices. *maps.Maps is one.
type DeviceMap interface {
	PutDevice(maps.Device) error
	DeleteDevice(index uint32) error
	Devices() ([]maps.Device, error)
}

// Devices makes strait_device exactly the native devices and returns what it had to change. Rows of state.Devices are observed, not
// desired, so there is no reconciler for them: call it when they change, and now and then.
func Devices(kernel DeviceMap, rows iter.Seq[state.Device]) (differences []string, err error) {
	list, err := kernel.Devices()
	if err != nil {
		return nil, err
	}
	have := make(map[uint32]maps.Device, len(list))
	for _, h := range list {
		have[h.Index] = h
	}
	var errs []error
	for row := range rows {
		if !row.Native {
			continue
		}
		want := device(row)
		if h, ok := have[want.Index]; !ok || h != want {
			differences = append(differences, fmt.Sprintf("device %s (index %d) differs", row.Name, row.Index))
			errs = append(errs, kernel.PutDevice(want))
		}
		delete(have, want.Index)
	}
	for _, index := range sorted(have, cmp.Compare[uint32]) {
		differences = append(differences, fmt.Sprintf("device with index %d is not wanted", index))
		errs = append(errs, kernel.DeleteDevice(index))
	}
	return differences, errors.Join(errs...)
}

// device chooses the first address of each family to masquerade with; node addresses come first in a row.
func device(row state.Device) maps.Device {
	out := maps.Device{Index: uint32(row.Index), MTU: uint32(row.MTU)}
	for _, p := range row.Addresses {
		switch a := p.Addr(); {
		case a.Is4() && !out.Address.IsValid():
			out.Address = a
		case a.Is6() && !out.IPv6.IsValid():
			out.IPv6 = a
		}
	}
	return out
}

// sorted returns the keys of m in order, so that what is done and said does not depend on the map's.
func sorted[K comparable, V any](m map[K]V, compare func(K, K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
