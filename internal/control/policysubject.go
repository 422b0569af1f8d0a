package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// subjects knows which policies select which local pods, and the node, and the program that follows from it.
type subjects struct {
	state *state.State
	own   string
	cfg   config.Policy

	objects     map[string][]*spec           // by state.Policy.Key
	byNamespace map[string]map[*spec]bool    // those that select in one namespace only
	elsewhere   map[*spec]bool               // all others that select pods
	ofNodes     map[*spec]bool               // those that select nodes
	last        uint64                       // number of a spec
	locals      map[string]*local            // by attachment
	byPod       map[string]map[string]*local // by namespace/name, then attachment
	node        *local
	uses        map[policy.ID]*use
	bySet       map[string]policy.ID // what a set of specs compiles to

	dirty   map[*local]bool
	moved   []string        // attachments that have come, gone or changed who they are
	changed map[*local]bool // the writer does not know their program
	left    []string
	touched map[*use]bool        // not in the table of programs as they are
	refresh bool                 // a refusal has come or gone
	lacking map[policy.ID]string // why programs in force say nothing of some peers, as shown
}

// spec is a policy in use or not.
type spec struct {
	*policy.Policy
	number uint64 // its name in sets
}

// local is a pod's attachment to this node, or the node itself.
type local struct {
	key             string // of the attachment; empty: the node
	rehearsal       bool   // the agent's own sandbox
	namespace, name string
	uid             string
	addrs           []netip.Addr
	pod             *state.Pod // what was last known of it; nil: nothing
	peer            policy.Peer
	selected        []*spec
	want            *use // nil: nothing is enforced
	have            *use // as the writer knows
	sent            bool // the writer knows have
	refused         error
	failed          *use // what was refused
}

// use is a program that some local has or is to have.
type use struct {
	id      policy.ID
	program *policy.Program
	refs    []policy.Ref
	sets    []string // signatures in bySet
	ends    map[*local]bool
	told    bool   // the writer has all its answers
	indexed bool   // its selectors tell peers apart
	weight  weight // when it was last counted
}

func newSubjects(st *state.State, own string, cfg config.Policy) *subjects {
	s := &subjects{
		state: st, own: own, cfg: cfg, objects: map[string][]*spec{}, byNamespace: map[string]map[*spec]bool{}, elsewhere: map[*spec]bool{},
		ofNodes: map[*spec]bool{}, locals: map[string]*local{}, byPod: map[string]map[string]*local{}, node: &local{sent: true},
		uses: map[policy.ID]*use{}, bySet: map[string]policy.ID{}, dirty: map[*local]bool{}, changed: map[*local]bool{}, touched: map[*use]bool{},
	}
	s.node.peer = policy.Peer{Kind: policy.HostPeer}
	return s
}

// attached takes in what has been attached and detached.
func (s *subjects) attached(changes []table.Change[state.Endpoint]) {
	for _, c := range changes {
		row := c.Row
		key := row.Key()
		l := s.locals[key]
		switch {
		case c.Deleted:
			if l != nil {
				s.leave(l)
			}
		case l != nil:
			if !slices.Equal(l.addrs, row.Addresses) {
				l.addrs = row.Addresses
				s.moved = append(s.moved, key)
			}
		case row.Phase != state.EndpointAdding && row.NetNS != "": // one that is being added comes by admission, one without a record is nobody's
			s.join(localOf(&row), nil)
		}
	}
}

// admit takes in pods that are being attached and answered later.
func (s *subjects) admit(waiting []*admission) {
	endpoints := s.state.Endpoints.Snapshot()
	for _, w := range waiting {
		if _, _, there := endpoints.Get(w.Key()); !there {
			continue // given up meanwhile
		}
		if before := s.locals[w.Key()]; before != nil { // detached and attached again before anybody looked
			s.leave(before)
		}
		s.join(localOf(&w.Endpoint), w.pod)
	}
}

func localOf(e *state.Endpoint) *local {
	return &local{
		key: e.Key(), rehearsal: e.ContainerID == state.RehearsalContainer, namespace: e.Namespace, name: e.Pod, uid: e.PodUID, addrs: e.Addresses,
	}
}

// admitted returns why an attachment may not be used.
func (s *subjects) admitted(attachment string) error {
	switch l := s.locals[attachment]; {
	case l == nil:
		return errors.New("pod was detached while its policy was made")
	case !l.sent:
		return fmt.Errorf("policy of pod %s/%s: %w", l.namespace, l.name, l.refused)
	}
	return nil
}

// join makes an attachment a local pod; known is what is known of the pod in advance of the table.
func (s *subjects) join(l *local, known *state.Pod) {
	s.locals[l.key] = l
	pod := l.podKey()
	if s.byPod[pod] == nil {
		s.byPod[pod] = map[string]*local{}
	}
	s.byPod[pod][l.key] = l
	l.pod = known
	if row, _, ok := s.state.Pods.Snapshot().Get(pod); ok && samePod(row.UID, l.uid) {
		l.pod = &row
	}
	s.describe(l)
	s.dirty[l], s.changed[l] = true, true
}

func (l *local) podKey() string { return l.namespace + "/" + l.name }

func (s *subjects) leave(l *local) {
	s.assign(l, nil)
	delete(s.locals, l.key)
	delete(s.dirty, l)
	delete(s.changed, l)
	if of := s.byPod[l.podKey()]; of != nil {
		if delete(of, l.key); len(of) == 0 {
			delete(s.byPod, l.podKey())
		}
	}
	s.left = append(s.left, l.key)
	s.moved = append(s.moved, l.key)
	if l.failed != nil {
		s.touched[l.failed] = true
	}
}

// describe makes a local the peer that it is.
func (s *subjects) describe(l *local) {
	pod := state.Pod{Namespace: l.namespace, Name: l.name}
	if l.pod != nil {
		pod = *l.pod
	}
	l.peer = podPeer(&pod, s.state.Namespaces.Snapshot())
	s.moved = append(s.moved, l.key)
}

// changedPods takes in what Kubernetes says about local pods. What it does not know any more stays what it was until it is detached.
func (s *subjects) changedPods(changes []table.Change[state.Pod]) {
	for _, c := range changes {
		for _, l := range s.byPod[c.Row.Key()] {
			if !c.Deleted && samePod(c.Row.UID, l.uid) {
				row := c.Row
				l.pod = &row
				s.describe(l)
				s.dirty[l] = true
			}
		}
	}
}

func (s *subjects) changedNamespaces(changes []table.Change[state.Namespace]) {
	for _, c := range changes {
		for _, l := range s.locals {
			if l.namespace == c.Row.Name {
				s.describe(l)
				s.dirty[l] = true
			}
		}
	}
}

// changedNodes takes in the labels of this node.
func (s *subjects) changedNodes(changes []table.Change[state.Node]) {
	for _, c := range changes {
		if c.Row.Name == s.own && !c.Deleted && !slices.Equal(s.node.peer.NodeLabels, c.Row.Labels) {
			s.node.peer.NodeLabels = c.Row.Labels
			s.dirty[s.node] = true
		}
	}
}

// changedPolicies takes in policies, and marks the pods that they have selected or select now.
func (s *subjects) changedPolicies(changes []table.Change[state.Policy]) {
	if len(changes) == 0 {
		return
	}
	gone := map[*spec]bool{}
	var come []*spec
	for _, c := range changes {
		key := c.Row.Key()
		for _, old := range s.objects[key] {
			gone[old] = true
			s.forget(old)
		}
		delete(s.objects, key)
		if c.Deleted {
			continue
		}
		list := make([]*spec, 0, len(c.Row.Specs))
		for i := range c.Row.Specs {
			s.last++
			list = append(list, &spec{&c.Row.Specs[i], s.last})
			s.learn(list[i])
		}
		s.objects[key] = list
		come = append(come, list...)
	}
	for l := range s.everyone() {
		if !s.dirty[l] && (slices.ContainsFunc(l.selected, func(x *spec) bool { return gone[x] }) ||
			slices.ContainsFunc(come, func(x *spec) bool { return l.selectedBy(x) })) {
			s.dirty[l] = true
		}
	}
}

// everyone yields all local pods, and the node.
func (s *subjects) everyone() func(yield func(*local) bool) {
	return func(yield func(*local) bool) {
		if !yield(s.node) {
			return
		}
		for _, l := range s.locals {
			if !yield(l) {
				return
			}
		}
	}
}

func (s *subjects) learn(x *spec) {
	switch within := namespacesOf(x.Subject); {
	case x.Node:
		s.ofNodes[x] = true
	case len(within) == 1:
		if s.byNamespace[within[0]] == nil {
			s.byNamespace[within[0]] = map[*spec]bool{}
		}
		s.byNamespace[within[0]][x] = true
	default:
		s.elsewhere[x] = true
	}
}

func (s *subjects) forget(x *spec) {
	delete(s.ofNodes, x)
	delete(s.elsewhere, x)
	if within := namespacesOf(x.Subject); len(within) == 1 {
		if of := s.byNamespace[within[0]]; of != nil {
			if delete(of, x); len(of) == 0 {
				delete(s.byNamespace, within[0])
			}
		}
	}
}

func (l *local) selectedBy(x *spec) bool {
	return x.Node == (l.key == "") && x.Subject.Matches(&l.peer)
}

// again makes refused programs be tried once more.
func (s *subjects) again() {
	for l := range s.everyone() {
		if l.refused != nil {
			s.dirty[l] = true
		}
	}
}

// choose finds the program of every local that may have another one now. refused says why a program is not to be tried.
func (s *subjects) choose(refused func(policy.ID) error) {
	for l := range s.dirty {
		s.selectPolicies(l)
		want := s.useOf(l)
		var err error
		if want != nil {
			err = refused(want.id)
		}
		s.refresh = s.refresh || err != nil || l.refused != nil
		if l.failed != nil {
			s.touched[l.failed] = true
		}
		l.refused, l.failed = err, nil
		if err != nil {
			l.failed = want
			s.touched[want] = true
			want = l.have
		}
		s.assign(l, want)
	}
	clear(s.dirty)
}

func (s *subjects) selectPolicies(l *local) {
	l.selected = l.selected[:0]
	ask := func(of map[*spec]bool) {
		for x := range of {
			if l.selectedBy(x) {
				l.selected = append(l.selected, x)
			}
		}
	}
	if l.key == "" {
		ask(s.ofNodes)
	} else {
		ask(s.byNamespace[l.namespace])
		ask(s.elsewhere)
	}
	slices.SortFunc(l.selected, func(a, b *spec) int { return policy.Compare(a.Policy, b.Policy) })
}

// setOf returns what selects a local.
func (s *subjects) setOf(l *local) policy.Set {
	set := policy.Set{Policies: make([]*policy.Policy, len(l.selected)), Mode: modeOf(s.cfg.Enforcement), Audit: s.cfg.Audit, Ports: l.peer.Ports}
	for i, x := range l.selected {
		set.Policies[i] = x.Policy
	}
	if l.key == "" {
		if set.Ports = nil; set.Mode == policy.ModeAlways {
			set.Mode = policy.ModeDefault // that is about pods
		}
		return set
	}
	if l.rehearsal {
		set.Mode = policy.ModeNever
		return set
	}
	if ns, _, ok := s.state.Namespaces.Snapshot().Get(l.namespace); ok {
		set.Audit = set.Audit || ns.Audit
		if ns.Mode != nil {
			set.Mode = *ns.Mode
		}
	}
	set.Audit = set.Audit || l.pod != nil && l.pod.Audit
	return set
}

func modeOf(m config.PolicyMode) policy.Mode {
	switch m {
	case config.PolicyAlways:
		return policy.ModeAlways
	case config.PolicyNever:
		return policy.ModeNever
	}
	return policy.ModeDefault
}

// useOf returns the program of a local, nil when nothing is enforced.
func (s *subjects) useOf(l *local) *use {
	set := s.setOf(l)
	if set.Mode == policy.ModeNever || set.Mode == policy.ModeDefault && len(set.Policies) == 0 {
		return nil
	}
	name := signature(l.selected, set)
	if id, known := s.bySet[name]; known {
		return s.uses[id]
	}
	id := set.ID()
	u := s.uses[id]
	if u == nil {
		u = &use{id: id, program: policy.NewProgram(set), refs: refsOf(set.Policies), ends: map[*local]bool{}}
		for _, of := range set.Policies {
			u.weight.rules += len(of.Ingress.Rules) + len(of.Egress.Rules)
		}
		s.uses[id] = u
	}
	s.bySet[name] = id
	if u.sets = append(u.sets, name); len(u.sets) > setsKept {
		delete(s.bySet, u.sets[0])
		u.sets = u.sets[1:]
	}
	return u
}

// setsKept is how many sets that compile to one program are remembered: pods differ in ports that no rule asks for.
const setsKept = 64

// signature names a set by the numbers of its specs and all else that is in it: cheaper than its ID when there are many policies.
func signature(selected []*spec, set policy.Set) string {
	b := make([]byte, 0, 8*len(selected)+16)
	for _, x := range selected {
		b = binary.BigEndian.AppendUint64(b, x.number)
	}
	b = append(b, byte(set.Mode), 0)
	if set.Audit {
		b[len(b)-1] = 1
	}
	for _, port := range set.Ports {
		b = append(b, port.Name...)
		b = append(b, 0, byte(port.Protocol), byte(port.Port>>8), byte(port.Port))
	}
	return string(b)
}

func refsOf(policies []*policy.Policy) []policy.Ref {
	refs := make([]policy.Ref, 0, len(policies))
	for _, p := range policies {
		refs = append(refs, p.Ref)
	}
	slices.SortFunc(refs, policy.Ref.Compare)
	return slices.Compact(refs)
}

// assign gives a local a program.
func (s *subjects) assign(l *local, u *use) {
	if l.want == u {
		return
	}
	if l.want != nil {
		delete(l.want.ends, l)
		s.touched[l.want] = true
	}
	if l.want = u; u != nil {
		u.ends[l] = true
		s.touched[u] = true
	}
	s.changed[l] = true
}

// place makes the selectors of programs that are to be used tell peers apart.
func (s *subjects) place(p *peers) {
	for u := range s.touched {
		if len(u.ends) > 0 && !u.indexed {
			p.use(u.program.Selectors())
			u.indexed = true
		}
	}
}

// change returns what differs from what the writer knows, apart from peers.
func (s *subjects) change() policy.Change {
	c := policy.Change{Pods: map[string]policy.ID{}, Left: s.left}
	for l := range s.changed {
		if l.key != "" && (l.refused == nil || l.sent) {
			c.Pods[l.key] = idOf(l.want)
		}
	}
	c.Node = idOf(s.node.want)
	return c
}

func idOf(u *use) policy.ID {
	if u == nil {
		return 0
	}
	return u.id
}

// accepted notes that the writer knows everything.
func (s *subjects) accepted() {
	for l := range s.changed {
		if l.key == "" || l.refused == nil || l.sent {
			l.have, l.sent = l.want, true
			delete(s.changed, l) // others have nothing yet, and go on waiting for it
		}
	}
	s.left = nil
	for u := range s.touched {
		u.told = u.told || len(u.ends) > 0
	}
}

// settled notes that everything the writer knows is in force.
func (s *subjects) settled(p *peers) {
	for u := range s.touched {
		if len(u.ends) == 0 {
			s.drop(u, p)
		}
	}
}

// drop forgets a program that nobody has.
func (s *subjects) drop(u *use, p *peers) {
	if u.indexed {
		p.release(u.program.Selectors())
		u.indexed = false
	}
	u.program = nil // what was refused goes on being shown, and may weigh much
	if s.uses[u.id] != u {
		return // it was forgotten, and has come back as another one
	}
	delete(s.uses, u.id)
	for _, name := range u.sets {
		delete(s.bySet, name)
	}
}

// refuse gives the pods of a program back what they had.
func (s *subjects) refuse(u *use, why error, p *peers) {
	for l := range u.ends {
		l.refused, l.failed = why, u
		s.assign(l, l.have)
	}
	s.refresh = true
	s.drop(u, p)
	p.forgetReleased()
}

// text names the policies that make a program differ from what its pods had.
func (u *use) text() string {
	refs := u.refs
	for l := range u.ends {
		if l.have != nil {
			if more := slices.DeleteFunc(slices.Clone(refs), func(r policy.Ref) bool { return slices.Contains(l.have.refs, r) }); len(more) > 0 {
				refs = more
			}
		}
	}
	names := make([]string, 0, 3)
	for _, r := range refs {
		if len(names) == 3 {
			names = append(names, fmt.Sprintf("and %d more", len(refs)-3))
			break
		}
		names = append(names, r.String())
	}
	return "policy " + strings.Join(names, ", ")
}
