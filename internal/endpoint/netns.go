package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/strait-net/strait/internal/datapath/maps"
)

// The socket programs see a network namespace's cookie and look its clients' addresses up in strait_netns. A sandbox with several
// interfaces has one entry, of the one that was attached first: its default routes lead there.

// nameNetNS makes strait_netns say what the records say about a namespace; those that are being removed say nothing.
func (k *Keeper) nameNetNS(cookie uint64) error {
	if cookie == 0 {
		return nil
	}
	k.netns.Lock() // two interfaces of one sandbox are changed under different locks
	defer k.netns.Unlock()
	var first *record
	k.mu.Lock()
	for _, r := range k.records {
		if r.NetNSCookie == cookie && !k.leaving[r.key()] && (first == nil || before(r, first)) {
			first = r
		}
	}
	k.mu.Unlock()
	if first == nil {
		return k.cfg.Maps.DeleteNetns(cookie)
	}
	return k.cfg.Maps.PutNetns(cookie, netnsEntry(first.Addresses))
}

func before(a, b *record) bool {
	if a.Created.Equal(b.Created) {
		return a.key() < b.key()
	}
	return a.Created.Before(b.Created)
}

func netnsEntry(addrs []netip.Addr) (n maps.Netns) {
	for _, a := range addrs {
		if a.Is4() {
			n.IPv4 = a
		} else {
			n.IPv6 = a
		}
	}
	return n
}

// learnNetNS completes a record of an agent that did not note the cookie.
func (k *Keeper) learnNetNS(r *record) *record {
	if r.NetNSCookie != 0 {
		return r
	}
	cookie, err := k.cfg.Links.NetNSCookie(r.NetNS)
	if err == nil {
		known := *r
		known.NetNSCookie = cookie
		if err = k.store.rewrite(&known); err == nil {
			return &known
		}
	}
	if !errors.Is(err, os.ErrNotExist) { // one that is gone is dealt with as such
		k.cfg.Log.Warn("learn network namespace", "attachment", r.key(), "error", err)
	}
	return r
}

// pruneNetNS removes from strait_netns what no record, orphan or the node itself is about: what an agent that was killed has left.
func (k *Keeper) pruneNetNS() error {
	wanted := map[uint64]bool{k.cfg.OwnNetNS: true}
	k.mu.Lock()
	for _, r := range k.records {
		wanted[r.NetNSCookie] = true
	}
	var orphans []netip.Addr
	for _, o := range k.orphans {
		orphans = append(orphans, o.addrs...)
	}
	k.mu.Unlock()
	return k.deleteNetNS(func(cookie uint64, n maps.Netns) bool {
		return !wanted[cookie] && !slices.Contains(orphans, n.IPv4) && !slices.Contains(orphans, n.IPv6)
	})
}

// repairNetNS compares strait_netns with the records and returns in how many entries it was wrong.
func (k *Keeper) repairNetNS() (found int, err error) {
	have := map[uint64]maps.Netns{}
	if err := k.cfg.Maps.EachNetns(func(cookie uint64, n maps.Netns) { have[cookie] = n }); err != nil {
		return 0, fmt.Errorf("read strait_netns: %w", err)
	}
	named := map[uint64][]maps.Netns{}
	k.mu.Lock()
	for _, r := range k.records {
		if r.Phase == ready && r.NetNSCookie != 0 && !k.leaving[r.key()] {
			named[r.NetNSCookie] = append(named[r.NetNSCookie], netnsEntry(r.Addresses))
		}
	}
	k.mu.Unlock()
	for cookie, entries := range named {
		if n, ok := have[cookie]; !ok || !slices.Contains(entries, n) {
			found++
			err = errors.Join(err, k.nameNetNS(cookie))
		}
	}
	return found, err
}

// forgetNetNS removes the entries with one of the addresses, for want of a record that knows the cookie.
func (k *Keeper) forgetNetNS(addrs []netip.Addr) error {
	return k.deleteNetNS(func(cookie uint64, n maps.Netns) bool {
		return cookie != k.cfg.OwnNetNS && (slices.Contains(addrs, n.IPv4) || slices.Contains(addrs, n.IPv6))
	})
}

func (k *Keeper) deleteNetNS(unwanted func(uint64, maps.Netns) bool) error {
	var gone []uint64
	err := k.cfg.Maps.EachNetns(func(cookie uint64, n maps.Netns) {
		if unwanted(cookie, n) {
			gone = append(gone, cookie)
		}
	})
	if err != nil {
		return fmt.Errorf("read strait_netns: %w", err)
	}
	for _, cookie := range gone {
		err = errors.Join(err, k.cfg.Maps.DeleteNetns(cookie))
	}
	return err
}
