package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/datapath/maps"
)

// policyRows writes the entries of strait_endpoint: the keeper knows how a packet is handed over, the policy loop by what it is judged, and
// neither may undo what the other has done. What the loop has not spoken about yet stays as it is in the kernel.
type policyRows struct {
	kernel Maps

	mu       sync.Mutex        // held while an entry is read and written; guards programs
	programs map[string]uint64 // by attachment; none: the loop has said nothing
}

// put writes the entry of an address with the policy it is to have.
func (p *policyRows) put(attachment string, e maps.Endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var known bool
	if e.Policy, known = p.programs[attachment]; !known {
		have, _, err := p.kernel.Endpoint(e.Address)
		if err != nil {
			return err
		}
		e.Policy = have.Policy
	}
	return p.kernel.PutEndpoint(e)
}

// set makes the entries of an attachment name a program. addrs gives its addresses, or false when it is not there.
func (p *policyRows) set(attachment string, program uint64, addrs func() ([]netip.Addr, bool)) (changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list, there := addrs()
	if !there {
		return false, nil
	}
	p.programs[attachment] = program
	for _, a := range list {
		e, there, err := p.kernel.Endpoint(a)
		if err != nil {
			return changed, err
		}
		if !there || e.Policy == program {
			continue
		}
		e.Policy = program
		if err := p.kernel.PutEndpoint(e); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// remove deletes an entry.
func (p *policyRows) remove(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kernel.DeleteEndpoint(a)
}

// forget ends what the loop has said about an attachment.
func (p *policyRows) forget(attachment string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.programs, attachment)
}

// of returns the program of an attachment, if the loop has said anything.
func (p *policyRows) of(attachment string) (program uint64, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	program, known = p.programs[attachment]
	return program, known
}

// SetPolicy makes the packets of an attachment be judged by a program of strait_policy, 0: by none. Said of an attachment that is being made
// it holds from its first entry on; said of one that is not there it is no error. changed: an entry named another program before.
func (k *Keeper) SetPolicy(attachment string, program uint64) (changed bool, err error) {
	return k.rows.set(attachment, program, func() ([]netip.Addr, bool) {
		r := k.get(attachment) // it is removed before what was said about it is forgotten
		if r == nil {
			return nil, false
		}
		return r.Addresses, true
	})
}

// CheckPolicies compares the programs that entries of strait_endpoint name with what SetPolicy has said. It returns how many entries were
// compared, and what differed as "ADDRESS is ...".
func (k *Keeper) CheckPolicies(repair bool) (rows int, differences []string, err error) {
	for _, key := range k.keys() {
		k.rows.mu.Lock()
		program, known := k.rows.programs[key]
		r := k.get(key)
		if known && r != nil {
			for _, a := range r.Addresses {
				e, there, failed := k.cfg.Maps.Endpoint(a)
				if failed != nil || !there {
					err = errors.Join(err, failed)
					continue // that it is missing is found by Verify
				}
				if rows++; e.Policy == program {
					continue
				}
				differences = append(differences, fmt.Sprintf("%s is judged by program %016x, want %016x", a, e.Policy, program))
				if e.Policy = program; repair {
					err = errors.Join(err, k.cfg.Maps.PutEndpoint(e))
				}
			}
		}
		k.rows.mu.Unlock()
	}
	return rows, differences, err
}

// Held returns the programs that entries of strait_endpoint name, also those of pods whose records are lost.
func (k *Keeper) Held() (map[uint64]bool, error) {
	entries, err := k.cfg.Maps.Endpoints()
	if err != nil {
		return nil, fmt.Errorf("read strait_endpoint: %w", err)
	}
	held := map[uint64]bool{}
	for _, e := range entries {
		held[e.Policy] = true
	}
	k.rows.mu.Lock()
	defer k.rows.mu.Unlock()
	for _, program := range k.rows.programs { // entries are about to be made
		held[program] = true
	}
	delete(held, 0)
	return held, nil
}

// admit begins to bring the policy of an attachment into the kernel. What it returns waits for that, or gives it up.
func (k *Keeper) admit(ctx context.Context, r *record) (wait func(giveUp bool) error) {
	if k.cfg.Policies == nil {
		return func(bool) error { return nil }
	}
	row, _, _ := k.cfg.Table.Snapshot().Get(r.key())
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- k.cfg.Policies.Admit(ctx, row) }()
	return func(giveUp bool) error {
		defer cancel()
		if giveUp {
			cancel()
		}
		if err := <-done; err != nil {
			return wire.WithCode(types.ErrTryAgainLater, err)
		}
		if _, known := k.rows.of(r.key()); !known {
			return errors.New("policy was admitted without a program")
		}
		return nil
	}
}
