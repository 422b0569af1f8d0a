package sync

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

// AnnounceMap is the table of service addresses that the programs answer for. *maps.Maps is one.
type AnnounceMap interface {
	PutAnnouncement(maps.Announcement) error
	DeleteAnnouncement(maps.Announcement) error
	EachAnnouncement(func(maps.Announcement)) error
}

// Herald is the part of announcing that is not in the kernel's table.
type Herald interface {
	// Place finds where a device is now: its index and its MAC.
	Place(device string) (index uint32, mac [6]byte, err error)
	// Listen makes the device deliver questions about the address. It may be repeated.
	Listen(device string, index uint32, address netip.Addr) error
	// Announce tells the neighbours that the address has come to the device.
	Announce(index uint32, mac [6]byte, address netip.Addr)
	// Withdraw takes Listen and Announce back.
	Withdraw(index uint32, address netip.Addr)
}

// Announcements applies rows of state.Announcements: the programs answer for an address before its neighbours are told.
type Announcements struct {
	kernel AnnounceMap
	herald Herald

	mu   sync.Mutex
	have map[announced][6]byte // what the kernel's table holds; nil before it was read
}

// announced is a key of the kernel's table.
type announced struct {
	address netip.Addr
	index   uint32
}

// NewAnnouncements returns the operations.
func NewAnnouncements(kernel AnnounceMap, herald Herald) *Announcements {
	return &Announcements{kernel: kernel, herald: herald}
}

// Update makes this node answer for the row's address. Neighbours are told if it did not before: after a restart they know.
func (a *Announcements) Update(_ context.Context, row state.Announcement) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.readLocked(false); err != nil {
		return err
	}
	_, err := a.applyLocked(row)
	return err
}

// Delete makes this node not answer for the row's address, wherever its device is now.
func (a *Announcements) Delete(_ context.Context, row state.Announcement) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.readLocked(false); err != nil {
		return err
	}
	index, _, err := a.herald.Place(row.Device)
	if err != nil {
		return nil //nolint:nilerr // the device has gone; Prune removes what was said about it
	}
	return a.removeLocked(announced{row.Address, index})
}

// Prune reads the kernel's table anew and makes it exactly rows.
func (a *Announcements) Prune(_ context.Context, rows iter.Seq[state.Announcement]) (differences []string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.readLocked(true); err != nil {
		return nil, err
	}
	wanted := map[announced]bool{}
	var errs []error
	for row := range rows {
		index, _, err := a.herald.Place(row.Device)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		wanted[announced{row.Address, index}] = true
		changed, err := a.applyLocked(row)
		if changed {
			differences = append(differences, fmt.Sprintf("announcement of %s is missing or differs", row.Key()))
		}
		errs = append(errs, err)
	}
	for _, k := range sorted(a.have, func(x, y announced) int { return x.address.Compare(y.address) }) {
		if !wanted[k] {
			differences = append(differences, fmt.Sprintf("announcement of %s on the device with index %d is not wanted", k.address, k.index))
			errs = append(errs, a.removeLocked(k))
		}
	}
	return differences, errors.Join(errs...)
}

func (a *Announcements) readLocked(anew bool) error {
	if a.have != nil && !anew {
		return nil
	}
	have := map[announced][6]byte{}
	if err := a.kernel.EachAnnouncement(func(e maps.Announcement) { have[announced{e.Address, e.Index}] = e.MAC }); err != nil {
		return fmt.Errorf("read announcements: %w", err)
	}
	a.have = have
	return nil
}

func (a *Announcements) applyLocked(row state.Announcement) (changed bool, err error) {
	index, mac, err := a.herald.Place(row.Device)
	if err != nil {
		return false, err
	}
	if err := a.herald.Listen(row.Device, index, row.Address); err != nil {
		return false, err
	}
	k := announced{row.Address, index}
	if old, there := a.have[k]; there && old == mac {
		return false, nil
	}
	if err := a.kernel.PutAnnouncement(maps.Announcement{Address: row.Address, Index: index, MAC: mac}); err != nil {
		return true, err
	}
	a.have[k] = mac
	a.herald.Announce(index, mac, row.Address)
	return true, nil
}

func (a *Announcements) removeLocked(k announced) error {
	if err := a.kernel.DeleteAnnouncement(maps.Announcement{Address: k.address, Index: k.index}); err != nil {
		return err
	}
	delete(a.have, k)
	a.herald.Withdraw(k.index, k.address)
	return nil
}
