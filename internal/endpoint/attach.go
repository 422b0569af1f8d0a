package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/ipam"
	"github.com/strait-net/strait/internal/state"
)

// Add attaches a sandbox. When it returns, all of the attachment is in the kernel; when it fails, nothing is left of it. An
// attachment that exists with the same network namespace is returned as it is.
func (k *Keeper) Add(ctx context.Context, a wire.Attachment) (state.Endpoint, error) {
	unlock, err := k.lock(ctx, a)
	if err != nil {
		return state.Endpoint{}, wire.WithCode(types.ErrTryAgainLater, err)
	}
	defer unlock()
	r := k.get(a.Key())
	if r != nil && r.Phase == ready {
		err = k.again(r, a)
	} else {
		err = k.addNew(ctx, r, a)
	}
	if err != nil {
		return state.Endpoint{}, fmt.Errorf("add %s: %w", a.Key(), err)
	}
	row, _, _ := k.cfg.Table.Snapshot().Get(a.Key())
	return row, nil
}

// again answers an ADD of an attachment that is there: the answer to the first one may have been lost.
func (k *Keeper) again(r *record, a wire.Attachment) error {
	if r.NetNS != a.NetNS {
		return wire.WithCode(types.ErrInvalidEnvironmentVariables,
			fmt.Errorf("CNI_NETNS: %q, but it is attached already in %q", a.NetNS, r.NetNS))
	}
	if found, err := k.inspect(r); err != nil || len(found) > 0 {
		return errors.Join(fmt.Errorf("it is attached already, and not as it should be: %s", strings.Join(found, "; ")), err)
	}
	return nil
}

// addNew makes an attachment. left is one whose removal failed after an earlier attempt, if there is one.
func (k *Keeper) addNew(ctx context.Context, left *record, a wire.Attachment) error {
	if err := k.Status(ctx); err != nil {
		return wire.WithCode(types.ErrTryAgainLater, err)
	}
	if err := k.checkNetNS(a.NetNS); err != nil {
		return wire.WithCode(types.ErrInvalidNetNS, err)
	}
	cookie, err := k.cfg.Links.NetNSCookie(a.NetNS)
	if err != nil {
		return err
	}
	if left != nil {
		if err := k.remove(left); err != nil {
			return err
		}
	}
	if err := k.removeOrphan(netdev.PodDevice(a.ContainerID, a.IfName)); err != nil { // its record was lost
		return err
	}
	k.mu.Lock()
	err = k.freePortsLocked(a)
	k.mu.Unlock()
	if err != nil {
		return err
	}
	addrs, err := k.cfg.Pools.Allocate(a.Key(), k.cfg.Now())
	if err != nil {
		if errors.Is(err, ipam.ErrExhausted) || errors.Is(err, ipam.ErrNoPools) {
			err = wire.WithCode(types.ErrTryAgainLater, err)
		}
		return err
	}
	r := &record{
		Version: recordVersion, Phase: adding, Network: a.Network,
		ContainerID: a.ContainerID, IfName: a.IfName, NetNS: a.NetNS, NetNSCookie: cookie,
		Namespace: a.Namespace, Pod: a.Pod, PodUID: a.PodUID,
		Device:    netdev.PodDevice(a.ContainerID, a.IfName),
		Addresses: addrs,
		PodMAC:    mac{netdev.MAC("pod " + a.Key())},
		HostMAC:   mac{netdev.MAC("node " + a.Key())},
		Created:   k.cfg.Now().UTC(),
		HostPorts: a.HostPorts,
	}
	k.mu.Lock() // one step, so that SetMTU either comes first or finds the record, and of two pods with one host port the second does
	r.MTU = k.mtu
	if err = k.freePortsLocked(a); err == nil {
		k.records[r.key()] = r
	}
	k.mu.Unlock()
	if err != nil {
		k.cfg.Pools.Release(r.key(), k.cfg.Now())
		return err
	}
	err = k.build(ctx, r)
	if err == nil {
		return nil
	}
	if undo := k.remove(r); undo != nil {
		return errors.Join(err, undo)
	}
	return err
}

// build takes the attachment from its record to the kernel. The record is written first: whatever it names may exist then.
func (k *Keeper) build(ctx context.Context, r *record) error {
	if err := k.store.begin(r); err != nil {
		return err
	}
	k.publish(r, 0, "")
	admitted := k.admit(ctx, r) // takes about as long as the interface
	index, err := k.cfg.Links.AddPod(k.pod(r))
	refused := admitted(err != nil)
	if err == nil && refused != nil {
		return refused
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && k.checkNetNS(r.NetNS) != nil {
			err = wire.WithCode(types.ErrInvalidNetNS, err)
		}
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// The addresses come last: what the programs, which are there since before the routes, do not know they drop.
	if err := k.enter(r, index); err != nil {
		return err
	}
	done, err := k.store.commit(r)
	if err != nil {
		return err
	}
	k.put(done)
	k.publish(done, index, "")
	k.cfg.Log.Info("pod attached", "pod", r.Namespace+"/"+r.Pod, "attachment", r.key(), "device", r.Device, "addresses", r.Addresses)
	return nil
}

// program attaches the programs and writes the tables; it is idempotent.
func (k *Keeper) program(r *record, index int) error {
	if err := k.cfg.Programs.AttachPod(r.Device, index); err != nil {
		return err
	}
	return k.enter(r, index)
}

// enter writes the tables; it is idempotent.
func (k *Keeper) enter(r *record, index int) error {
	if err := k.nameNetNS(r.NetNSCookie); err != nil {
		return err
	}
	for _, addr := range r.Addresses {
		if err := k.rows.put(r.key(), entry(r, index, addr)); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keeper) checkNetNS(path string) error {
	id, err := netNSOf(path)
	if err != nil {
		return err
	}
	if id == k.own {
		return fmt.Errorf("network namespace %s is the node's own", path)
	}
	return nil
}

// Del detaches a sandbox. One that is not attached is no error.
func (k *Keeper) Del(ctx context.Context, a wire.Attachment) error {
	unlock, err := k.lock(ctx, a)
	if err != nil {
		return wire.WithCode(types.ErrTryAgainLater, err)
	}
	defer unlock()
	if r := k.get(a.Key()); r != nil {
		err = k.remove(r)
	} else {
		err = k.removeOrphan(netdev.PodDevice(a.ContainerID, a.IfName))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", a.Key(), err)
	}
	return nil
}

// remove undoes an attachment. Every step is idempotent and all are tried; only when all have worked is the record retired and
// are the addresses let go, so that nothing of them is left in the kernel.
func (k *Keeper) remove(r *record) error {
	k.mu.Lock()
	k.leaving[r.key()] = true
	k.mu.Unlock()
	err := errors.Join(k.dismantle(r.Device, r.Addresses), k.nameNetNS(r.NetNSCookie))
	now := k.cfg.Now()
	if err == nil {
		err = k.store.retire(r, now)
	}
	if err != nil {
		k.publish(r, 0, "not removed completely: "+err.Error())
		return err
	}
	k.cfg.Pools.Release(r.key(), now)
	k.mu.Lock()
	delete(k.records, r.key())
	delete(k.leaving, r.key())
	k.mu.Unlock()
	k.rows.forget(r.key())
	k.cfg.Table.Delete(r.key())
	k.cfg.Log.Info("pod detached", "pod", r.Namespace+"/"+r.Pod, "attachment", r.key(), "device", r.Device, "addresses", r.Addresses)
	return nil
}

// dismantle takes an interface and its addresses out of the kernel. Without its entry in strait_endpoint an address neither sends
// nor receives, so nothing is added any more to the tables that are purged last.
func (k *Keeper) dismantle(device string, addrs []netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		errs = append(errs, k.rows.remove(addr))
	}
	errs = append(errs,
		k.cfg.Programs.DetachPod(device),
		k.cfg.Links.DeleteDevice(device),
		k.purge.purge(addrs),
	)
	return errors.Join(errs...)
}

// removeOrphan undoes what the kernel holds for a device without a record; none is no error.
func (k *Keeper) removeOrphan(device string) error {
	k.mu.Lock()
	o, known := k.orphans[device]
	k.mu.Unlock()
	if !known {
		return nil
	}
	err := errors.Join(k.dismantle(device, o.addrs), k.forgetNetNS(o.addrs))
	if err == nil && o.about.ContainerID != "" {
		err = k.store.forgetCorrupt(o.about)
	}
	if err != nil {
		return err
	}
	k.cfg.Pools.Release(orphanOwner(device), k.cfg.Now())
	k.mu.Lock()
	delete(k.orphans, device)
	k.mu.Unlock()
	k.cfg.Table.Delete(o.about.Key())
	state.Clear(k.cfg.Problems, problemSource, orphanSubject(device))
	state.Clear(k.cfg.Problems, problemSource, recordSubject(o.about.FileName()))
	return nil
}

// Check returns an error that lists everything in which the attachment is not what it should be. addresses are those the
// runtime was told.
func (k *Keeper) Check(ctx context.Context, a wire.Attachment, addresses []netip.Addr) error {
	unlock, err := k.lock(ctx, a)
	if err != nil {
		return wire.WithCode(types.ErrTryAgainLater, err)
	}
	defer unlock()
	r := k.get(a.Key())
	if r == nil {
		return wire.WithCode(types.ErrUnknownContainer, fmt.Errorf("check %s: it is not attached", a.Key()))
	}
	found, err := k.inspect(r)
	if r.NetNS != a.NetNS {
		found = append(found, fmt.Sprintf("network namespace is %s, want %s", a.NetNS, r.NetNS))
	}
	for _, want := range addresses {
		if !slices.Contains(r.Addresses, want) {
			found = append(found, fmt.Sprintf("address %v of the runtime's result is not the attachment's, which has %v", want, r.Addresses))
		}
	}
	for _, have := range r.Addresses {
		if !slices.Contains(addresses, have) {
			found = append(found, fmt.Sprintf("address %v is missing in the runtime's result", have))
		}
	}
	if len(found) > 0 {
		err = errors.Join(errors.New(strings.Join(found, "; ")), err)
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", a.Key(), err)
	}
	return nil
}

// inspect compares the attachment with the kernel: interface, programs, tables. What cannot be looked at is an error.
func (k *Keeper) inspect(r *record) (found []string, err error) {
	if r.Phase != ready {
		return []string{"it is not attached completely"}, nil
	}
	links, err := k.cfg.Links.CheckPod(k.pod(r))
	if errors.Is(err, os.ErrNotExist) {
		return []string{err.Error()}, nil
	}
	for _, d := range links {
		found = append(found, d.String())
	}
	index, noDevice := k.cfg.Links.Index(r.Device)
	if noDevice != nil {
		if errors.Is(noDevice, os.ErrNotExist) {
			noDevice = nil // found already
		}
		return found, errors.Join(err, noDevice)
	}
	programs, perr := k.cfg.Programs.CheckPod(r.Device, index)
	found = append(found, programs...)
	err = errors.Join(err, perr)
	for _, addr := range r.Addresses {
		want := entry(r, index, addr)
		have, ok, merr := k.cfg.Maps.Endpoint(addr)
		err = errors.Join(err, merr)
		switch {
		case merr != nil:
		case !ok:
			found = append(found, fmt.Sprintf("entry of %v in strait_endpoint is missing", addr))
		case !sameDelivery(have, want):
			found = append(found, fmt.Sprintf("entry of %v in strait_endpoint is %s, want %s", addr, delivery(have), delivery(want)))
		default:
			if program, known := k.rows.of(r.key()); known && have.Policy != program {
				found = append(found, fmt.Sprintf("entry of %v in strait_endpoint has policy %016x, want %016x", addr, have.Policy, program))
			}
		}
	}
	return found, err
}

// sameDelivery compares how a packet is handed over.
func sameDelivery(a, b maps.Endpoint) bool {
	return a.Index == b.Index && bytes.Equal(a.PodMAC, b.PodMAC) && bytes.Equal(a.HostMAC, b.HostMAC)
}

func delivery(e maps.Endpoint) string {
	return fmt.Sprintf("device %d, MACs %s and %s", e.Index, e.PodMAC, e.HostMAC)
}

// GC detaches every attachment of the network that is not valid, and, when no other network has attachments, what the kernel
// holds without a record and is not valid either. It goes on after an error.
func (k *Keeper) GC(ctx context.Context, network string, valid map[string]bool) error {
	var errs []error
	others := false
	for _, key := range k.keys() {
		r := k.get(key)
		if r == nil || r.Network != network {
			others = others || r != nil
			continue
		}
		if !valid[key] {
			k.cfg.Log.Info("remove attachment the runtime does not know", "attachment", key, "addresses", r.Addresses)
			errs = append(errs, k.Del(ctx, r.attachment()))
		}
	}
	if others {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, k.collectOrphans(ctx, valid))...)
}

func (k *Keeper) collectOrphans(ctx context.Context, valid map[string]bool) error {
	live := map[string]bool{}
	for key := range valid {
		if id, ifName, ok := strings.Cut(key, "/"); ok {
			live[netdev.PodDevice(id, ifName)] = true
		}
	}
	k.mu.Lock()
	devices := slices.Sorted(gomaps.Keys(k.orphans))
	k.mu.Unlock()
	var errs []error
	for _, device := range devices {
		if live[device] {
			continue
		}
		unlock, err := k.locks.lock(ctx, device)
		if err == nil {
			k.cfg.Log.Info("remove interface without a record that the runtime does not know", "device", device)
			err = k.removeOrphan(device)
			unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Status returns why Add would fail now, or nil.
func (k *Keeper) Status(context.Context) error {
	k.mu.Lock()
	restored, mtu := k.restored, k.mtu
	k.mu.Unlock()
	switch {
	case !restored:
		return errors.New("the agent is starting: endpoints are not restored yet")
	case mtu == 0:
		return errors.New("the agent is starting: the MTU of pods is not known yet")
	}
	return k.cfg.Pools.Ready(k.cfg.Now())
}
