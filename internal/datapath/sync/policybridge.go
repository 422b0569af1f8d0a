package sync

import (
	"net/netip"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
)

// bridge makes programs that an earlier agent has written, and whose policies have changed since, answer those who are somebody else now as
// they answered them before: until the pods have their new programs they are judged by these. Of two who become one with different answers
// the first counts.
func (w *Policies) bridge() error {
	if w.begun {
		return nil
	}
	named, err := w.Ends.Held()
	if err != nil {
		return err
	}
	if w.have.state.Policy != 0 {
		named[w.have.state.Policy] = true
	}
	var keys []maps.PolicyKey
	var values []maps.PolicyEntry
	for program := range named {
		if w.want.programs[program] != nil {
			continue
		}
		for p := range w.todo.prefixes {
			before, was := around(w.have.prefixes, p)
			now, is := around(w.want.prefixes, p)
			if !was || !is || before == now {
				continue
			}
			for _, way := range []bpf.PolicyDirection{bpf.PolicyEgress, bpf.PolicyIngress} {
				to := maps.PolicyKey{Policy: program, Direction: way, Identity: now}
				if _, there := w.have.policies[to]; there {
					continue
				}
				if e, there := w.have.policies[maps.PolicyKey{Policy: program, Direction: way, Identity: before}]; there {
					w.have.policies[to] = e
					keys, values = append(keys, to), append(values, e)
				}
			}
		}
	}
	done, err := w.Kernel.PutPolicies(keys, values)
	for _, k := range keys[done:] {
		delete(w.have.policies, k)
	}
	return err
}

// around returns whose the longest prefix is that contains p.
func around(rows map[netip.Prefix]uint64, p netip.Prefix) (id uint64, ok bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if outer, err := p.Addr().Prefix(bits); err == nil {
			if id, ok := rows[outer]; ok {
				return id, true
			}
		}
	}
	return 0, false
}
