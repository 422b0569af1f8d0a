package sync

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// span leads from one identity to another.
type span struct{ from, to uint64 }

// id names who is on the way: nobody else is.
func (s span) id() uint64 {
	return uint64(policy.Identify(policy.UnknownPeer, policy.Matches{{Selector: fmt.Sprintf("between %016x and %016x", s.from, s.to)}}))
}

// bridge is for programs of an earlier agent that are in use and not wanted any more: policies have changed while there was no agent. What they
// would say to identities of now nobody knows, only what they said to those of then. So whoever is to become another identity becomes, on the
// way there, one of its own that the programs of then know as what it was, and those of now as what it will be:
//
//	from --programs of then say what they said--> between --pods get the programs of now--> to
//
// It is done before everything has been written once; afterwards programs are asked about new identities as long as they are in use.
func (w *Policies) bridge() error {
	if w.begun {
		return nil
	}
	then, err := w.foreigners()
	if err != nil || len(then) == 0 {
		return err
	}
	spans := map[span]bool{}
	var rows []maps.Identity
	for p := range w.todo.prefixes {
		s := span{covering(w.have.prefixes, p), covering(w.want.prefixes, p)}
		_, apart := w.have.prefixes[p]
		switch {
		case s.from == s.to && !apart: // it stays who it is while others around it move
			rows = append(rows, maps.Identity{Prefix: p, ID: s.to})
		case s.from == s.to || w.bridged[s.from] == s.to: // there, or on the way since a flush that failed
		default:
			spans[s] = true
			rows = append(rows, maps.Identity{Prefix: p, ID: s.id()})
		}
	}
	err = w.writeSpans(then, spans)
	if errors.Is(err, maps.ErrFull) {
		return nil // a moment of the answer to all others is better than none ever
	}
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b maps.Identity) int {
		return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	for s := range spans {
		w.bridged[s.id()] = s.to
	}
	done, err := w.Kernel.PutIdentities(rows)
	for _, row := range rows[:done] {
		w.have.prefixes[row.Prefix] = row.ID
		w.todo.bump = true
	}
	if errors.Is(err, maps.ErrFull) {
		return nil
	}
	if err == nil {
		err = w.writeEnds()
	}
	if err == nil {
		err = w.writeState()
	}
	return err
}

// foreigners returns the programs in use that are not wanted.
func (w *Policies) foreigners() (map[uint64]bool, error) {
	held, err := w.Ends.Held()
	if err != nil {
		return nil, err
	}
	then := map[uint64]bool{}
	for id := range held {
		then[id] = true
	}
	then[w.have.state.Policy] = true
	delete(then, 0)
	for id := range w.want.programs {
		delete(then, id)
	}
	return then, nil
}

// writeSpans makes all programs answer those who are on the way.
func (w *Policies) writeSpans(then map[uint64]bool, spans map[span]bool) error {
	var keys []maps.PolicyKey
	var values []maps.PolicyEntry
	answer := func(program, who, as uint64, row func(maps.PolicyKey) (maps.PolicyEntry, bool)) {
		for _, way := range []bpf.PolicyDirection{bpf.PolicyEgress, bpf.PolicyIngress} {
			k := maps.PolicyKey{Policy: program, Direction: way, Identity: who}
			if e, ok := row(maps.PolicyKey{Policy: program, Direction: way, Identity: as}); ok && w.have.policies[k] != e {
				keys = append(keys, k)
				values = append(values, e)
			}
		}
	}
	said := func(k maps.PolicyKey) (maps.PolicyEntry, bool) { e, ok := w.have.policies[k]; return e, ok }
	for s := range spans {
		for program := range then {
			answer(program, s.id(), s.from, said)
		}
		for program := range w.want.programs {
			answer(program, s.id(), s.to, w.want.row)
		}
	}
	done, err := w.Kernel.PutPolicies(keys, values)
	for i, k := range keys[:done] {
		w.have.policies[k] = values[i]
	}
	return err
}

// covering returns whose addresses of a prefix are that have no longer row of their own. In the kernel IPv4 lies within IPv6.
func covering(rows map[netip.Prefix]uint64, p netip.Prefix) uint64 {
	for bits := p.Bits(); bits >= 0; bits-- {
		outer, err := p.Addr().Prefix(bits)
		if id, ok := rows[outer]; ok && err == nil {
			return id
		}
	}
	if p.Addr().Is4() {
		return covering(rows, netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), 95))
	}
	return uint64(identity.World)
}
