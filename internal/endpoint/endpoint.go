// Package endpoint owns the life of the pods attached to this node: their addresses, records, interfaces, programs and entries
// in the kernel's tables.
//
// An attachment moves through these states; each arrow begins with the step that makes the next one safe to be killed in:
//
//	        record "adding"        record "ready"
//	(none) ----------------> adding -------------> ready
//	  ^                        |                     |
//	  |   everything undone    |    tables purged, programs and interface removed,
//	  +------------------------+    record retired: its addresses cool down
//	  +----------------------------------------------+
//
// What a killed agent leaves is decided by the record alone: adding is undone at the next start, ready is compared with the
// kernel and repaired, and a removal that was not finished leaves ready behind, whose DEL the runtime repeats.
package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Links makes and looks at the pods' interfaces. *netdev.Net is one.
type Links interface {
	AddPod(p netdev.Pod) (index int, err error)
	CheckPod(p netdev.Pod) ([]netdev.Difference, error)
	SetPodMTU(p netdev.Pod) error // to p.MTU
	PodDevices() ([]string, error)
	Index(device string) (int, error) // the error matches os.ErrNotExist when there is none
	DeviceName(index int) (string, error)
	DeleteDevice(name string) error // none is no error
	// NetNSCookie returns the kernel's name of the network namespace at a path. The error matches os.ErrNotExist when there is none.
	NetNSCookie(path string) (uint64, error)
}

// Programs attaches the pod programs to the node's end of a pod's interface.
type Programs interface {
	// AttachPod attaches or replaces them; it is idempotent.
	AttachPod(device string, index int) error
	// CheckPod describes what is not attached as it should be.
	CheckPod(device string, index int) ([]string, error)
	// DetachPod forgets them, also when the device is gone already.
	DetachPod(device string) error
}

// Maps is the part of the kernel's tables that belongs to local pods. *maps.Maps is one.
type Maps interface {
	PutEndpoint(e maps.Endpoint) error
	DeleteEndpoint(a netip.Addr) error // none is no error
	Endpoint(a netip.Addr) (e maps.Endpoint, ok bool, err error)
	Endpoints() ([]maps.Endpoint, error)
	// Purge removes every entry that packets of the addresses have made: connections, translations, fragments.
	Purge(addrs []netip.Addr) error

	PutNetns(cookie uint64, n maps.Netns) error
	DeleteNetns(cookie uint64) error // none is no error
	EachNetns(fn func(cookie uint64, n maps.Netns)) error
}

// Policies brings a pod's policy into the kernel before its addresses are.
type Policies interface {
	// Admit returns when SetPolicy was called for the attachment and all that it relies on is in the kernel.
	Admit(ctx context.Context, row state.Endpoint) error
}

// Config is what a Keeper needs. All but Policies, Sources, OwnNetNS and Now are required.
type Config struct {
	Dir      string // of the records
	Pools    *ipam.Allocator
	Links    Links
	Programs Programs
	Maps     Maps
	Table    *table.Table[state.Endpoint]
	Problems *table.Table[state.Problem]
	Log      *slog.Logger
	// Policies; nil: nothing is enforced.
	Policies Policies
	// Sources returns the addresses the node's stack prefers towards pods, at most one per family.
	Sources func() []netip.Addr
	// OwnNetNS is the cookie of the node's network namespace, whose entry in strait_netns is not the keeper's.
	OwnNetNS uint64
	Now      func() time.Time // default time.Now
}

// Keeper owns the attachments of one node. Restore comes before everything else.
type Keeper struct {
	cfg   Config
	store store
	locks keyLock // by device: every change of a record, and of the kernel on its behalf, is made under it
	purge purger
	own   nsID
	netns sync.Mutex // held while an entry of strait_netns is found out and written
	rows  policyRows

	mu       sync.Mutex // guards the fields below
	records  map[string]*record
	leaving  map[string]bool   // records whose removal has begun
	orphans  map[string]orphan // by device
	mtu      int               // of pods; 0: not known yet
	restored bool
}

// New returns a keeper that knows nothing yet.
func New(cfg Config) *Keeper {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Sources == nil {
		cfg.Sources = func() []netip.Addr { return nil }
	}
	own, _ := netNSOf("/proc/thread-self/ns/net") // zero, which no pod has, where there is no /proc
	return &Keeper{
		cfg:     cfg,
		store:   store{dir: cfg.Dir},
		purge:   purger{sweep: cfg.Maps.Purge},
		own:     own,
		records: map[string]*record{},
		leaving: map[string]bool{},
		orphans: map[string]orphan{},
		rows:    policyRows{kernel: cfg.Maps, programs: map[string]uint64{}},
	}
}

// SetPools gives the keeper the node's pod CIDRs. Attachments with addresses outside them stay and are reported.
func (k *Keeper) SetPools(prefixes []netip.Prefix) error {
	if err := k.cfg.Pools.SetPools(prefixes); err != nil {
		return fmt.Errorf("set pod CIDRs of the node: %w", err)
	}
	k.reportForeign()
	return nil
}

// reportForeign notes which pods have addresses outside the node's pod CIDRs.
func (k *Keeper) reportForeign() {
	foreign := k.cfg.Pools.Foreign()
	if len(foreign) == 0 {
		state.Clear(k.cfg.Problems, problemSource, foreignSubject)
		return
	}
	var cidrs []netip.Prefix
	for _, p := range k.cfg.Pools.Report(k.cfg.Now()) {
		cidrs = append(cidrs, p.Prefix)
	}
	k.problem(foreignSubject, fmt.Sprintf("%v are in use by pods but outside the node's pod CIDRs %v: restart these pods", foreign, cidrs))
}

// problemSource is the owner of the keeper's rows in the table of problems.
const (
	problemSource  = "endpoints"
	foreignSubject = "pod addresses"
)

func (k *Keeper) problem(subject, text string) {
	k.cfg.Log.Warn("problem", "subject", subject, "text", text)
	state.Raise(k.cfg.Problems, state.Problem{Source: problemSource, Subject: subject, Text: text}, k.cfg.Now())
}

// orphan is a device without a record, and what the kernel hands to it.
type orphan struct {
	addrs []netip.Addr
	// about is the attachment whose record could not be read; zero if there was no such record.
	about wire.Attachment
}

// lock keeps others from changing the attachment.
func (k *Keeper) lock(ctx context.Context, a wire.Attachment) (unlock func(), err error) {
	return k.locks.lock(ctx, netdev.PodDevice(a.ContainerID, a.IfName))
}

func (k *Keeper) get(key string) *record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.records[key]
}

// keys returns the keys of all attachments, sorted.
func (k *Keeper) keys() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]string, 0, len(k.records))
	for key := range k.records {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

func (k *Keeper) put(r *record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records[r.key()] = r
}

// publish shows the attachment in the table. wrong is what is wrong with it, if anything.
func (k *Keeper) publish(r *record, index int, wrong string) {
	row := state.Endpoint{
		ContainerID: r.ContainerID,
		IfName:      r.IfName,
		Namespace:   r.Namespace,
		Pod:         r.Pod,
		PodUID:      r.PodUID,
		NetNS:       r.NetNS,
		NetNSCookie: r.NetNSCookie,
		Device:      r.Device,
		DeviceIndex: index,
		Addresses:   slices.Clone(r.Addresses),
		PodMAC:      r.PodMAC.HardwareAddr,
		HostMAC:     r.HostMAC.HardwareAddr,
		MTU:         r.MTU,
		HostPorts:   r.portMappings(),
		Phase:       state.EndpointReady,
		Error:       wrong,
	}
	switch {
	case wrong != "":
		row.Phase = state.EndpointDegraded
	case r.Phase == adding:
		row.Phase = state.EndpointAdding
	}
	k.cfg.Table.Write(func(tx *table.Txn[state.Endpoint]) {
		row.Since = k.cfg.Now()
		old, _, known := tx.Get(row.Key())
		if known && old.Phase == row.Phase {
			row.Since = old.Since
		}
		if !known || !reflect.DeepEqual(old, row) { // who watches is not woken for nothing
			tx.Insert(row)
		}
	})
}

func (k *Keeper) pod(r *record) netdev.Pod {
	return netdev.Pod{
		NetNS: r.NetNS, IfName: r.IfName, Device: r.Device,
		PodMAC: r.PodMAC.HardwareAddr, HostMAC: r.HostMAC.HardwareAddr,
		MTU: r.MTU, Addresses: r.Addresses, Sources: k.cfg.Sources(),
		Guard: func(index int) error { return k.cfg.Programs.AttachPod(r.Device, index) },
	}
}

// entry is what strait_endpoint holds for an address of the attachment, its policy apart.
func entry(r *record, index int, addr netip.Addr) maps.Endpoint {
	return maps.Endpoint{
		Address: addr, Index: uint32(index),
		PodMAC: r.PodMAC.HardwareAddr, HostMAC: r.HostMAC.HardwareAddr,
	}
}

// nsID tells network namespaces apart. The zero value is none.
type nsID struct{ dev, inode uint64 }

const nsfsMagic = 0x6e736673 // NSFS_MAGIC, include/uapi/linux/magic.h

// netNSOf returns which network namespace the path is. The error matches os.ErrNotExist also for a file that is left of one:
// runtimes make an empty file and mount the namespace over it.
func netNSOf(path string) (nsID, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(path, &fs); err != nil {
		return nsID{}, fmt.Errorf("network namespace %s: %w", path, err)
	}
	if fs.Type != nsfsMagic {
		return nsID{}, fmt.Errorf("network namespace %s is an ordinary file: %w", path, os.ErrNotExist)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return nsID{}, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return nsID{dev: st.Dev, inode: st.Ino}, nil
}
