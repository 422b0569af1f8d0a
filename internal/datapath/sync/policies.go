package sync

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	stdsync "sync"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/policy"
)

// PolicyMaps are the tables of policy. *maps.Maps are some. A write of several rows tells how many of them, from the first, were done.
type PolicyMaps interface {
	PutIdentities(rows []maps.Identity) (done int, err error)
	DeleteIdentities(prefixes []netip.Prefix) (done int, err error)
	EachIdentity(fn func(maps.Identity)) error
	PutPolicies(keys []maps.PolicyKey, entries []maps.PolicyEntry) (done int, err error)
	DeletePolicies(keys []maps.PolicyKey) (done int, err error)
	EachPolicy(fn func(maps.PolicyKey, maps.PolicyEntry)) error
	PutPorts(keys []maps.Port, verdicts []maps.PolicyVerdict) (done int, err error)
	DeletePorts(keys []maps.Port) (done int, err error)
	EachPort(fn func(maps.Port, maps.PolicyVerdict)) error
	PutNodeState(s maps.NodeState) error
	NodeState() (maps.NodeState, error)
	ZeroRule(rule uint32) error
	EachRule(fn func(maps.RuleCount)) error
}

// Ends are the local pods' rows of strait_endpoint.
type Ends interface {
	// SetPolicy makes an attachment's packets be judged by a program, 0: by none, and reports whether they were judged by another before. One
	// that is not there is no error.
	SetPolicy(attachment string, program uint64) (changed bool, err error)
	// Held returns the programs that any row names.
	Held() (map[uint64]bool, error)
	// CheckPolicies compares rows with what SetPolicy has said, and returns how many there are and what differs, as "ADDRESS is ...".
	CheckPolicies(repair bool) (rows int, differences []string, err error)
}

// PolicyConfig is what NewPolicies needs. All but Grace and Now are required.
type PolicyConfig struct {
	Kernel   PolicyMaps
	Ends     Ends
	Sizes    config.Maps // of the tables
	StateDir string      // where numbers of rules are kept
	// Grace is how long a row that nothing refers to any more is kept for programs that are running. Default 1 s.
	Grace time.Duration
	Now   func() time.Time // default time.Now
}

// Policies keeps the kernel's tables of policy as they are to be, in the order of docs/design/0006: at every moment, also after a write has
// failed, a packet is judged as before or as wanted. Methods may be called from any goroutine.
type Policies struct {
	PolicyConfig

	mu      stdsync.Mutex // guards everything below
	rules   *ruleNumbers
	want    desired
	have    actual
	todo    pending
	doomed  []doomed // in the order of their times
	due     sentences
	foreign []maps.Port       // rows that nobody has written, about to be removed
	begun   bool              // everything that is wanted has been written once
	bridged map[uint64]uint64 // identities on the way to others before that, and to which
	drift   uint64
}

// NewPolicies reads what the kernel holds and who has which number of a rule. Nothing is written.
func NewPolicies(c PolicyConfig) (*Policies, error) {
	if c.Grace == 0 {
		c.Grace = time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	have, err := readActual(c.Kernel)
	if err != nil {
		return nil, err
	}
	rules, err := openRules(c.StateDir, c.Sizes.Rules, have.state.Revision == 0, c.Kernel.ZeroRule, c.Now)
	if err != nil {
		return nil, err
	}
	w := &Policies{PolicyConfig: c, rules: rules, want: newDesired(), have: have, todo: newPending(), bridged: map[uint64]uint64{}}
	w.due = sentences{map[maps.PolicyKey]time.Time{}, map[maps.Port]time.Time{}}
	w.todo.bump = have.state.Revision == 0 // never 0 when programs compare with it
	for p := range have.prefixes {
		w.todo.prefixes[p] = true // nobody says of what is not wanted that it is gone
	}
	return w, nil
}

// Close ends the use of the file of numbers.
func (w *Policies) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules.close()
}

// Accept takes a change in; Flush brings it into the kernel. A *policy.NoRoom says that it does not fit: nothing was taken in then.
func (w *Policies) Accept(c *policy.Change) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fit(c); err != nil {
		return err
	}
	w.want.apply(c, w.rules.number, &w.todo)
	for _, key := range c.Left { // whoever has Ends has forgotten it: said again if it is attached again
		delete(w.have.ends, key)
	}
	return nil
}

// Flush writes what is wanted and not there. After an error it is called again: it goes on where it stopped, and until then nothing is done
// that relies on what could not be done.
func (w *Policies) Flush(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush()
}

func (w *Policies) flush() error {
	if w.begun && w.todo.empty() && len(w.todo.loosePolicies)+len(w.todo.loosePorts)+len(w.want.idle) == 0 {
		return nil
	}
	if err := w.rules.confirm(); err != nil {
		return err
	}
	for _, step := range []func() error{w.writePorts, w.writePolicies, w.bridge, w.writePrefixes, w.writeEnds, w.writeState} {
		if err := step(); err != nil {
			return err
		}
	}
	w.condemn()
	return nil
}

func (w *Policies) writePorts() error {
	var keys []maps.Port
	var values []maps.PolicyVerdict
	for id := range w.todo.tables {
		for k, v := range w.want.tables[id].rows {
			if have, there := w.have.ports[k]; !there || have != v {
				keys = append(keys, k)
			}
		}
	}
	slices.SortFunc(keys, comparePorts)
	for _, k := range keys {
		v, _ := w.want.port(k)
		values = append(values, v)
	}
	done, err := w.Kernel.PutPorts(keys, values)
	for i := range done {
		w.changes(w.have.ports[keys[i]].Flags, keys[i], values[i])
		w.have.ports[keys[i]] = values[i]
	}
	if err != nil {
		return err
	}
	clear(w.todo.tables)
	return nil
}

// changes notes that a row which programs may be using says something else now: it was not as it should have been.
func (w *Policies) changes(before bpf.PolicyFlags, k maps.Port, now maps.PolicyVerdict) {
	if _, there := w.have.ports[k]; there && before != now.Flags {
		w.todo.bump = true
	}
}

func (w *Policies) writePolicies() error {
	keys := make([]maps.PolicyKey, 0, len(w.todo.policies))
	for k := range w.todo.policies {
		want, ok := w.want.row(k)
		if have, there := w.have.policies[k]; ok && (!there || have != want) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, comparePolicies)
	values := make([]maps.PolicyEntry, len(keys))
	for i, k := range keys {
		values[i], _ = w.want.row(k)
	}
	done, err := w.Kernel.PutPolicies(keys, values)
	for i := range done {
		if have, there := w.have.policies[keys[i]]; there && (have.Table != values[i].Table || have.Verdict.Flags != values[i].Verdict.Flags) {
			w.todo.bump = true
		}
		w.have.policies[keys[i]] = values[i]
	}
	if err != nil {
		return err
	}
	clear(w.todo.policies)
	return nil
}

// writePrefixes moves addresses so that none is ever taken for a third identity: longer prefixes are written before those that contain
// them, and removed after.
func (w *Policies) writePrefixes() error {
	var put []maps.Identity
	var gone []netip.Prefix
	for p := range w.todo.prefixes {
		have, there := w.have.prefixes[p]
		want, wanted := w.want.prefixes[p]
		switch {
		case wanted && (!there || have != want):
			put = append(put, maps.Identity{Prefix: p, ID: want})
		case !wanted && there:
			gone = append(gone, p)
		}
	}
	slices.SortFunc(put, func(a, b maps.Identity) int {
		return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	slices.SortFunc(gone, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	done, err := w.Kernel.PutIdentities(put)
	for _, row := range put[:done] {
		w.have.prefixes[row.Prefix] = row.ID
		w.todo.bump = true
	}
	if err != nil {
		return err
	}
	done, err = w.Kernel.DeleteIdentities(gone)
	for _, p := range gone[:done] {
		delete(w.have.prefixes, p)
		w.todo.bump = true
	}
	if err != nil {
		return err
	}
	clear(w.todo.prefixes)
	return nil
}

func (w *Policies) writeEnds() error {
	keys := make([]string, 0, len(w.todo.ends))
	for key := range w.todo.ends {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		want := w.want.ends[key]
		if have, known := w.have.ends[key]; !known || have != want {
			changed, err := w.Ends.SetPolicy(key, want)
			w.todo.bump = w.todo.bump || changed
			if err != nil {
				return fmt.Errorf("policy of pod %s: %w", key, err)
			}
			w.have.ends[key] = want
		}
		delete(w.todo.ends, key)
	}
	return nil
}

// writeState makes programs judge again what is established.
func (w *Policies) writeState() error {
	if !w.todo.bump && w.have.state.Policy == w.want.node {
		w.todo.node = false
		return nil
	}
	next := maps.NodeState{Revision: max(w.have.state.Revision+1, 1), Policy: w.want.node}
	if err := w.Kernel.PutNodeState(next); err != nil {
		return err
	}
	w.have.state = next
	w.todo.bump, w.todo.node = false, false
	return nil
}

// condemn sentences what nothing wants any more. At the first time that is everything that an earlier agent has left.
func (w *Policies) condemn() {
	w.want.dropIdle(&w.todo)
	d := doomed{at: w.Now().Add(w.Grace), policies: w.todo.loosePolicies, ports: w.todo.loosePorts}
	w.todo.loosePolicies, w.todo.loosePorts = nil, nil
	if !w.begun {
		w.begun = true
		for k := range w.have.policies {
			if _, wanted := w.want.row(k); !wanted {
				d.policies = append(d.policies, k)
			}
		}
		for k := range w.have.ports {
			if _, wanted := w.want.port(k); !wanted {
				d.ports = append(d.ports, k)
			}
		}
	}
	w.sentence(d)
}

func (w *Policies) sentence(d doomed) {
	if len(d.policies)+len(d.ports) == 0 {
		return
	}
	w.doomed = append(w.doomed, d)
	slices.SortStableFunc(w.doomed, func(a, b doomed) int { return a.at.Compare(b.at) })
	for _, k := range d.policies {
		w.due.policies[k] = d.at
	}
	for _, k := range d.ports {
		w.due.ports[k] = d.at
	}
}

// Retire removes what has been unused for long enough and returns when there will be more of it; the zero time: nothing is left. As long as
// something that was accepted is not written nothing is removed: a write that was overtaken may have brought old rows into use again.
func (w *Policies) Retire(context.Context) (next time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.doomed) > 0 {
		now := w.Now()
		d := w.doomed[0]
		switch {
		case !w.todo.empty():
			return now.Add(w.Grace), nil
		case now.Before(d.at):
			return d.at, nil
		}
		w.doomed = w.doomed[1:]
		if err := w.remove(&d); err != nil {
			d.at = now.Add(w.Grace)
			w.sentence(d)
			return d.at, err
		}
	}
	return time.Time{}, nil
}

// remove carries out sentences that stand. A program that a pod's row still names stays: whoever wrote that row is not told of here.
func (w *Policies) remove(d *doomed) error {
	policies := make([]maps.PolicyKey, 0, len(d.policies))
	later := doomed{at: w.Now().Add(30 * w.Grace)}
	var named map[uint64]bool
	if len(d.policies) > 0 {
		var err error
		if named, err = w.Ends.Held(); err != nil {
			return err
		}
	}
	for _, k := range d.policies {
		_, there := w.have.policies[k]
		if w.due.policies[k].After(d.at) {
			continue
		}
		delete(w.due.policies, k)
		if _, wanted := w.want.row(k); !there || wanted {
			continue
		}
		if named[k.Policy] && w.want.programs[k.Policy] == nil {
			later.policies = append(later.policies, k)
			if e := w.have.policies[k]; e.Table != 0 {
				named[e.Table] = true // of a table now: names are hashes of their content
			}
			continue
		}
		policies = append(policies, k)
	}
	done, err := w.Kernel.DeletePolicies(policies)
	for _, k := range policies[:done] {
		delete(w.have.policies, k)
	}
	if err != nil {
		return err
	}
	ports := make([]maps.Port, 0, len(d.ports))
	for _, k := range d.ports {
		if w.due.ports[k].After(d.at) {
			continue
		}
		delete(w.due.ports, k)
		_, there := w.have.ports[k]
		switch {
		case !there || w.want.tables[k.Table] != nil:
		case named[k.Table]:
			later.ports = append(later.ports, k)
		default:
			ports = append(ports, k)
		}
	}
	done, err = w.Kernel.DeletePorts(ports)
	for _, k := range ports[:done] {
		delete(w.have.ports, k)
	}
	w.sentence(later)
	return err
}

// Entries returns how many rows a program has.
func (w *Policies) Entries(program policy.ID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.want.programs[uint64(program)]; p != nil {
		return len(p.rows)
	}
	return 0
}

// Revision returns the revision of what the programs decide by.
func (w *Policies) Revision() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.have.state.Revision
}

func comparePolicies(a, b maps.PolicyKey) int {
	return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Identity, b.Identity))
}

func comparePorts(a, b maps.Port) int {
	return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.Port, b.Port))
}
