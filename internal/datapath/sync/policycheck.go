package sync

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/identity"
)

// Difference is a row of the kernel that is not as it was written.
type Difference struct {
	Table, Key string
	Text       string // what is there, and what should be
	Repaired   bool
}

// String returns "strait_policy 00..1f ingress pod: is missing".
func (d Difference) String() string { return d.Table + " " + d.Key + ": " + d.Text }

// Checked is a table that was compared.
type Checked struct {
	Table string
	Rows  int
}

const (
	checkPause = time.Second // least time between two tables that are compared by themselves
	checkShare = 100         // comparing takes at most one part in so many of the time
)

// Check compares all tables of policy with what was written. Repaired differences are counted by Drift.
func (w *Policies) Check(_ context.Context, repair bool) (tables []Checked, found []Difference, err error) {
	for _, check := range w.checks() {
		table, differences, failed := check(repair)
		tables, found = append(tables, table), append(found, differences...)
		err = errors.Join(err, failed)
	}
	return tables, found, err
}

// Watch compares and repairs one table after the other until ctx ends, slowly; report is told of what was found.
func (w *Policies) Watch(ctx context.Context, report func([]Difference, error)) error {
	checks := w.checks()
	for i := 0; ; i = (i + 1) % len(checks) {
		begin := time.Now()
		_, found, err := checks[i](true)
		if len(found) > 0 || err != nil {
			report(found, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(checkPause, checkShare*time.Since(begin))):
		}
	}
}

// Drift returns how many rows were not as they had been written and were repaired.
func (w *Policies) Drift() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.drift
}

type check func(repair bool) (Checked, []Difference, error)

func (w *Policies) checks() []check {
	return []check{
		w.checkState, // first: every repair writes that row
		func(repair bool) (Checked, []Difference, error) {
			return compare(w, comparison[maps.PolicyKey, maps.PolicyEntry]{
				table: "strait_policy", have: func() map[maps.PolicyKey]maps.PolicyEntry { return w.have.policies },
				each: w.Kernel.EachPolicy, key: policyKeyText, value: entryText, order: comparePolicies,
				repair: func(k maps.PolicyKey) {
					if _, wanted := w.want.row(k); wanted {
						w.todo.policies[k] = true
					} else {
						w.sentence(doomed{at: w.Now().Add(w.Grace), policies: []maps.PolicyKey{k}})
					}
				},
			}, repair)
		},
		func(repair bool) (Checked, []Difference, error) {
			return compare(w, comparison[maps.Port, maps.PolicyVerdict]{
				table: "strait_port", have: func() map[maps.Port]maps.PolicyVerdict { return w.have.ports },
				each: w.Kernel.EachPort, key: portText, value: verdictText, order: comparePorts,
				repair: func(k maps.Port) {
					if _, wanted := w.want.port(k); wanted {
						w.todo.tables[k.Table] = true
						return
					}
					w.foreign = append(w.foreign, k)
				},
			}, repair)
		},
		func(repair bool) (Checked, []Difference, error) {
			return compare(w, comparison[netip.Prefix, uint64]{
				table: "strait_identity", have: func() map[netip.Prefix]uint64 { return w.have.prefixes },
				each: func(fn func(netip.Prefix, uint64)) error {
					return w.Kernel.EachIdentity(func(i maps.Identity) { fn(i.Prefix, i.ID) })
				},
				key: netip.Prefix.String, value: func(id uint64) string { return identity.ID(id).String() }, order: comparePrefix,
				repair: func(p netip.Prefix) { w.todo.prefixes[p] = true },
			}, repair)
		},
		w.checkEnds,
	}
}

// comparison is how one table is compared.
type comparison[K comparable, V comparable] struct {
	table  string
	have   func() map[K]V
	each   func(func(K, V)) error
	key    func(K) string
	value  func(V) string
	order  func(a, b K) int
	repair func(K) // marks what is to be written again
}

// inKernel is what a row is in the kernel; absent: it is not there.
type inKernel[V comparable] struct {
	value  V
	absent bool
}

// compare reads a table without holding anything up. What differs twice is looked at a third time with nobody writing.
func compare[K, V comparable](w *Policies, c comparison[K, V], repair bool) (Checked, []Difference, error) {
	out := Checked{Table: c.table}
	suspects, rows, err := suspect(w, c, false)
	if out.Rows = rows; err != nil || len(suspects) == 0 {
		return out, nil, err
	}
	again, _, err := suspect(w, c, false)
	for k, v := range suspects {
		if again[k] != v {
			delete(suspects, k)
		}
	}
	if err != nil || len(suspects) == 0 {
		return out, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	differ, _, err := suspect(w, c, true)
	if err != nil || len(differ) == 0 {
		return out, nil, err
	}
	have := c.have()
	keys := sorted(differ, c.order)
	found := make([]Difference, 0, len(keys))
	for _, k := range keys {
		now := differ[k]
		want, wanted := have[k]
		d := Difference{Table: c.table, Key: c.key(k)}
		switch {
		case now.absent:
			d.Text = "is missing, want " + c.value(want)
		case wanted:
			d.Text = "is " + c.value(now.value) + ", want " + c.value(want)
		default:
			d.Text = "is " + c.value(now.value) + ", not wanted"
		}
		if repair {
			if now.absent {
				delete(have, k)
			} else {
				have[k] = now.value
			}
			c.repair(k)
		}
		found = append(found, d)
	}
	if repair {
		err = w.repaired(found)
	}
	return out, found, err
}

// suspect returns the rows that differ from what was written.
func suspect[K, V comparable](w *Policies, c comparison[K, V], locked bool) (_ map[K]inKernel[V], rows int, err error) {
	there := map[K]V{}
	if err := c.each(func(k K, v V) { there[k] = v }); err != nil {
		return nil, 0, fmt.Errorf("compare %s: %w", c.table, err)
	}
	if !locked {
		w.mu.Lock()
		defer w.mu.Unlock()
	}
	out := map[K]inKernel[V]{}
	have := c.have()
	for k, v := range there {
		if want, ok := have[k]; !ok || want != v {
			out[k] = inKernel[V]{value: v}
		}
	}
	for k := range have {
		if _, ok := there[k]; !ok {
			out[k] = inKernel[V]{absent: true}
		}
	}
	return out, len(there), nil
}

// repaired writes what differed, and makes connections be judged again.
func (w *Policies) repaired(found []Difference) error {
	w.todo.bump = true
	err := w.flush()
	if err == nil && len(w.foreign) > 0 {
		_, err = w.Kernel.DeletePorts(w.foreign)
		for _, k := range w.foreign {
			delete(w.have.ports, k)
		}
		w.foreign = nil
	}
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	for i := range found {
		found[i].Repaired = true
	}
	w.drift += uint64(len(found))
	return nil
}

// checkState compares the row of strait_node.
func (w *Policies) checkState(repair bool) (Checked, []Difference, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := Checked{Table: "strait_node", Rows: 1}
	now, err := w.Kernel.NodeState()
	if err != nil || now == w.have.state {
		return out, nil, err
	}
	found := []Difference{{Table: out.Table, Key: "0", Text: "is " + stateText(now) + ", want " + stateText(w.have.state)}}
	if !repair {
		return out, found, nil
	}
	w.have.state = maps.NodeState{Revision: max(now.Revision, w.have.state.Revision), Policy: now.Policy}
	w.todo.node = true
	return out, found, w.repaired(found)
}

// checkEnds compares which program the rows of local pods name.
func (w *Policies) checkEnds(repair bool) (Checked, []Difference, error) {
	out := Checked{Table: "strait_endpoint"}
	rows, wrong, err := w.Ends.CheckPolicies(repair)
	if out.Rows = rows; len(wrong) == 0 {
		return out, nil, err
	}
	var found []Difference
	for _, text := range wrong {
		key, text, _ := strings.Cut(text, " ")
		found = append(found, Difference{Table: out.Table, Key: key, Text: text})
	}
	if !repair || err != nil {
		return out, found, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return out, found, w.repaired(found)
}

func stateText(s maps.NodeState) string {
	return fmt.Sprintf("revision %d, policy %016x", s.Revision, s.Policy)
}

func policyKeyText(k maps.PolicyKey) string {
	way := "egress"
	if k.Direction == bpf.PolicyIngress {
		way = "ingress"
	}
	return fmt.Sprintf("%016x %s %s", k.Policy, way, identity.ID(k.Identity))
}

func entryText(e maps.PolicyEntry) string {
	if e.Table != 0 {
		return fmt.Sprintf("table %016x", e.Table)
	}
	return verdictText(e.Verdict)
}

func portText(p maps.Port) string {
	return fmt.Sprintf("%016x protocol %d port %d/%d", p.Table, p.Protocol, p.Port, p.Bits)
}

func verdictText(v maps.PolicyVerdict) string {
	text := "deny"
	if v.Flags&bpf.PolicyAllow != 0 {
		text = "allow"
	}
	text += fmt.Sprintf(" by rule %d", v.Rule)
	if v.Flags&bpf.PolicyAudit != 0 {
		text += fmt.Sprintf(", audited by rule %d", v.AuditRule)
	}
	return text
}
