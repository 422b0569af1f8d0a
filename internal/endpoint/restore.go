package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
)

// Restore makes records and kernel agree after a restart: half-made attachments are undone, complete ones compared and
// repaired, those whose sandbox is gone removed. What cannot be made to agree is reported and left as it is; an error is
// returned only when the records or the kernel's tables cannot be read at all. No ADD is served before.
func (k *Keeper) Restore(ctx context.Context) error {
	if err := k.store.init(); err != nil {
		return err
	}
	names, corrupt, err := k.store.names()
	if err != nil {
		return err
	}
	k.restoreCooling()
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("restore endpoints: %w", err)
		}
		r, err := k.store.read(name)
		if err == nil {
			// An address has one owner; a second record of it is not believed.
			err = k.cfg.Pools.Restore(r.key(), r.Addresses...)
			if errors.Is(err, ipam.ErrForeign) {
				err = nil // held all the same, and reported
			}
		}
		if err == nil {
			k.restoreRecord(r)
			continue
		}
		k.problem(recordSubject(name), err.Error())
		if err := k.store.setAside(name); err != nil {
			return err
		}
		if strings.HasSuffix(name, readySuffix) {
			corrupt = append(corrupt, name+corruptSuffix)
		}
	}
	if err := k.restoreOrphans(corrupt); err != nil {
		return err
	}
	if err := k.pruneNetNS(); err != nil {
		return err
	}
	k.reportForeign()
	k.mu.Lock()
	k.restored = true
	k.mu.Unlock()
	return nil
}

// restoreCooling keeps addresses released in an earlier life from being given out too early. The wall clock may have jumped, so
// none rests longer than a cool-down from now.
func (k *Keeper) restoreCooling() {
	now, coolDown := k.cfg.Now(), k.cfg.Pools.CoolDown()
	rest, err := k.store.cooling(now, coolDown)
	if err != nil {
		k.cfg.Log.Warn("restore cooling addresses", "error", err)
	}
	for _, c := range rest {
		for _, addr := range c.addrs {
			k.cfg.Pools.Cool(addr, now.Add(min(coolDown, coolDown-now.Sub(c.released))))
		}
	}
}

func (k *Keeper) restoreRecord(r *record) {
	k.put(r)
	if r.Phase == adding {
		k.cfg.Log.Info("undo attachment that was not finished", "attachment", r.key())
		if err := k.remove(r); err != nil {
			k.cfg.Log.Error("undo attachment", "attachment", r.key(), "error", err)
		}
		return
	}
	r = k.learnNetNS(r)
	k.put(r)
	// Always: the programs may be newer than those the last agent attached.
	if found := k.verify(r, true); len(found) > 0 {
		k.cfg.Log.Warn("attachment was not as it should be", "attachment", r.key(), "found", found)
	}
}

// verify compares a complete attachment with the kernel, repairs what can be, and publishes the outcome. It returns what was
// different. With renew the programs and entries are written before: at a start the programs are other ones than those attached.
func (k *Keeper) verify(r *record, renew bool) (found []string) {
	index, err := k.cfg.Links.Index(r.Device)
	if errors.Is(err, os.ErrNotExist) {
		found = append(found, fmt.Sprintf("interface %s is missing", r.Device))
		// A veth pair ends with the namespace of either end, so only now can the sandbox be gone. A path that is not there
		// says less: it may be hidden from the agent by its mounts.
		if _, gone := netNSOf(r.NetNS); errors.Is(gone, os.ErrNotExist) {
			k.cfg.Log.Info("remove attachment whose sandbox is gone", "attachment", r.key(), "netns", r.NetNS)
			if err := k.remove(r); err != nil {
				k.cfg.Log.Error("remove attachment", "attachment", r.key(), "error", err)
			}
			return found
		}
		renew = true
		index, err = k.cfg.Links.AddPod(k.pod(r))
	}
	if err == nil && renew {
		err = k.program(r, index)
	}
	var wrong []string
	if err == nil {
		wrong, err = k.inspect(r)
		found = append(found, wrong...)
	}
	if err == nil && len(wrong) > 0 {
		if err = errors.Join(k.program(r, index), k.cfg.Links.SetPodMTU(k.pod(r))); err == nil {
			wrong, err = k.inspect(r)
		}
	}
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	k.publish(r, index, strings.Join(wrong, "; "))
	return found
}

// restoreOrphans looks for what the kernel holds without a record. Addresses handed to a device that still exists may be those
// of a living pod whose record was lost: they stay, are not given out, and are reported; DEL or GC removes them. Entries
// that lead nowhere are purged.
func (k *Keeper) restoreOrphans(corrupt []string) error {
	entries, err := k.cfg.Maps.Endpoints()
	if err != nil {
		return fmt.Errorf("read strait_endpoint: %w", err)
	}
	devices, err := k.cfg.Links.PodDevices()
	if err != nil {
		return err
	}
	recorded := map[string]bool{}
	owned := map[netip.Addr]bool{}
	for _, key := range k.keys() {
		r := k.get(key)
		recorded[r.Device] = true
		for _, addr := range r.Addresses {
			owned[addr] = true
		}
	}
	orphans := map[string][]netip.Addr{}
	for _, device := range devices {
		if !recorded[device] {
			orphans[device] = nil
		}
	}
	var stale []netip.Addr
	for _, e := range entries {
		if owned[e.Address] {
			continue
		}
		device, err := k.cfg.Links.DeviceName(int(e.Index))
		if _, lives := orphans[device]; err != nil || !lives {
			stale = append(stale, e.Address)
			err = k.cfg.Maps.DeleteEndpoint(e.Address)
			if err != nil {
				return fmt.Errorf("remove entry without a device: %w", err)
			}
			continue
		}
		orphans[device] = append(orphans[device], e.Address)
	}
	if err := k.purge.purge(stale); err != nil {
		return fmt.Errorf("purge addresses without a device: %w", err)
	}
	files := map[string]wire.Attachment{} // by device
	for _, name := range corrupt {
		if a, ok := attachmentOfFile(strings.TrimSuffix(name, corruptSuffix)); ok {
			files[netdev.PodDevice(a.ContainerID, a.IfName)] = a
			if _, lives := orphans[netdev.PodDevice(a.ContainerID, a.IfName)]; !lives {
				orphans[netdev.PodDevice(a.ContainerID, a.IfName)] = nil
			}
		}
	}
	for _, device := range slices.Sorted(maps.Keys(orphans)) {
		k.keepOrphan(device, orphans[device], files[device])
	}
	return nil
}

// keepOrphan notes a device without a record; a is the attachment its unreadable record was about, if there is one.
func (k *Keeper) keepOrphan(device string, addrs []netip.Addr, a wire.Attachment) {
	slices.SortFunc(addrs, netip.Addr.Compare)
	if err := k.cfg.Pools.Restore(orphanOwner(device), addrs...); err != nil {
		k.cfg.Log.Warn("keep addresses of a device without a record", "error", err)
	}
	k.mu.Lock()
	k.orphans[device] = orphan{addrs: addrs, about: a}
	k.mu.Unlock()
	text := fmt.Sprintf("has no record; its addresses %v stay reserved until the runtime deletes the pod", addrs)
	if a.ContainerID != "" {
		text = fmt.Sprintf("the record of %s cannot be read; the addresses %v stay reserved until the runtime deletes the pod", a.Key(), addrs)
		k.cfg.Table.Insert(state.Endpoint{
			ContainerID: a.ContainerID, IfName: a.IfName, Device: device, Addresses: addrs,
			Phase: state.EndpointDegraded, Error: text, Since: k.cfg.Now(),
		})
	}
	k.problem(orphanSubject(device), text)
}

func orphanOwner(device string) string { return "device " + device }

func recordSubject(file string) string { return "record " + file }

func orphanSubject(device string) string { return "device " + device }

// attachmentOfFile is the reverse of wire.Attachment.FileName.
func attachmentOfFile(name string) (wire.Attachment, bool) {
	name, ok := strings.CutSuffix(name, ".json")
	at := strings.LastIndexByte(name, '-')
	if !ok || at <= 0 || at == len(name)-1 {
		return wire.Attachment{}, false
	}
	return wire.Attachment{ContainerID: name[:at], IfName: strings.ReplaceAll(name[at+1:], "%2D", "-")}, true
}

// SetMTU applies the MTU to all pods, now and later. Pods it could not be applied to are published as degraded; the error names
// them.
func (k *Keeper) SetMTU(ctx context.Context, mtu int) error {
	k.mu.Lock()
	k.mtu = mtu
	k.mu.Unlock()
	var errs []error
	for _, key := range k.keys() {
		if err := k.setMTU(ctx, key, mtu); err != nil {
			errs = append(errs, fmt.Errorf("set MTU %d of %s: %w", mtu, key, err))
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) setMTU(ctx context.Context, key string, mtu int) error {
	r := k.get(key)
	if r == nil {
		return nil
	}
	unlock, err := k.lock(ctx, r.attachment())
	if err != nil {
		return err
	}
	defer unlock()
	r = k.get(key) // as it is under the lock
	if r == nil || r.Phase != ready || r.MTU == mtu {
		return nil
	}
	index, err := k.cfg.Links.Index(r.Device)
	if err != nil {
		return err
	}
	changed := *r
	changed.MTU = mtu
	if err := k.cfg.Links.SetPodMTU(k.pod(&changed)); err != nil {
		k.publish(r, index, err.Error())
		return err
	}
	if err := k.store.rewrite(&changed); err != nil {
		return err
	}
	k.put(&changed)
	k.publish(&changed, index, "")
	return nil
}

// Run compares all attachments with the kernel once per period and repairs what differs, until ctx ends.
func (k *Keeper) Run(ctx context.Context, period time.Duration) {
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			k.Verify(ctx)
		}
	}
}

// Verify compares all attachments with the kernel now, repairs what differs and logs it. It also forgets the records of
// addresses that have cooled down.
func (k *Keeper) Verify(ctx context.Context) {
	for _, key := range k.keys() {
		r := k.get(key)
		if r == nil {
			continue
		}
		unlock, err := k.lock(ctx, r.attachment())
		if err != nil {
			return
		}
		if r = k.get(key); r != nil && r.Phase == ready {
			if found := k.verify(r, false); len(found) > 0 {
				k.cfg.Log.Warn("attachment was not as it should be", "attachment", key, "found", found)
			}
		}
		unlock()
	}
	if found, err := k.repairNetNS(); err != nil || found > 0 {
		k.cfg.Log.Warn("entries of strait_netns were not as they should be", "found", found, "error", err)
	}
	if _, err := k.store.cooling(k.cfg.Now(), k.cfg.Pools.CoolDown()); err != nil {
		k.cfg.Log.Warn("forget cooled addresses", "error", err)
	}
}
