package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

const (
	policyProblems = "policy" // source of the problems the policy loop reports

	tidyAfter  = 500 * time.Millisecond // how long a selector that nobody uses goes on telling peers apart
	retryFirst = 50 * time.Millisecond  // after a write that failed
	retryLast  = 30 * time.Second
	refuseFor  = 15 * time.Second // how long what did not fit is not tried again
)

// PolicyWriter brings changes into the kernel in the order of docs/design/0006. *sync.Policies of datapath is one.
type PolicyWriter interface {
	// Forecast returns a function that counts answers of a change to come. A *policy.NoRoom says that these would never fit next to those counted
	// before; they are not counted then. inUse: they are of programs that somebody has, for which there is less room.
	Forecast(inUse bool) func([]policy.Answer) *policy.NoRoom
	// Accept takes a change in. A *policy.NoRoom says that it does not fit; then nothing was taken in.
	Accept(c *policy.Change) error
	// Flush writes what was accepted. After an error it is to be called again.
	Flush(ctx context.Context) error
	// Retire removes what has been unused for long enough and returns when there will be more of it, or the zero time.
	Retire(ctx context.Context) (next time.Time, err error)
	// Entries returns how many rows a program has.
	Entries(program policy.ID) int
}

// PoliciesConfig is what NewPolicies needs. Fetch and Applied may be nil.
type PoliciesConfig struct {
	Node   string // own name
	Config config.Config
	State  *state.State
	Writer PolicyWriter
	Log    *slog.Logger
	// Fetch asks the API server for a pod that the watch has not shown yet. nil: what the table of pods has is all there is, and a pod that is
	// not in it has no labels.
	Fetch func(ctx context.Context, namespace, name string) (state.Pod, error)
	// Applied is told of each change that has come into force, and of how long it took since it was seen.
	Applied func(took time.Duration)
}

// Policies keeps the kernel's policy as policies, pods, namespaces and nodes want it. What a change costs does not depend on how many pods
// and policies there are that have nothing to do with it.
type Policies struct {
	PoliciesConfig
	admissions chan *admission
	checks     chan *policyCheck
	ready      chan struct{}
	done       []func()

	// Owned by Run.
	peers     *peers
	subjects  *subjects
	unsettled bool // the writer has accepted what it has not written yet
	waiting   []*admission
	retry     time.Duration
	retryAt   time.Time
	retireAt  time.Time
	refusals  map[policy.ID]refusal
	reported  bool
	checking  []*policyCheck
	ownCheck  policyCheck
	repair    bool      // a check has marked what to compute again
	began     time.Time // when the oldest change that is not in force was seen
}

// refusal is why a program is not in the kernel.
type refusal struct {
	err   error
	until time.Time
}

// admission is a pod that is being attached.
type admission struct {
	state.Endpoint
	pod  *state.Pod // nil: nobody knows it
	done chan error
}

// NewPolicies returns the loop. It registers with the tables it writes.
func NewPolicies(c PoliciesConfig) *Policies {
	p := &Policies{
		PoliciesConfig: c, admissions: make(chan *admission), checks: make(chan *policyCheck), ready: make(chan struct{}),
		peers: newPeers(c.State, c.Node, c.Config), refusals: map[policy.ID]refusal{},
		done: []func(){c.State.Identities.Register(policyProblems), c.State.Programs.Register(policyProblems)},
	}
	p.subjects = newSubjects(c.State, c.Node, c.Config.Policy)
	return p
}

// Ready is closed when everything that is known is in force.
func (p *Policies) Ready() <-chan struct{} { return p.ready }

// ErrUnknownPod is matched by Admit's error when nobody knows the pod.
var ErrUnknownPod = errors.New("pod is not known")

// Admit returns when the policy of a pod that is being attached, and who it is, are in the kernel, so that its first packet is judged as all
// others: its addresses may be written then. Its row is in the table of endpoints already.
func (p *Policies) Admit(ctx context.Context, a state.Endpoint) error {
	pod, err := p.podOf(ctx, a)
	if err != nil {
		return err
	}
	wait := &admission{Endpoint: a, pod: pod, done: make(chan error, 1)}
	select {
	case p.admissions <- wait:
	case <-ctx.Done():
		return fmt.Errorf("policy of pod %s/%s: %w", a.Namespace, a.Pod, ctx.Err())
	}
	select {
	case err := <-wait.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("policy of pod %s/%s: %w", a.Namespace, a.Pod, ctx.Err())
	}
}

// podOf finds the pod's object in the table or, if the watch is behind, at the API server.
func (p *Policies) podOf(ctx context.Context, a state.Endpoint) (*state.Pod, error) {
	row, _, ok := p.State.Pods.Snapshot().Get(a.Namespace + "/" + a.Pod)
	if ok && samePod(row.UID, a.PodUID) {
		return &row, nil
	}
	if p.Fetch == nil || a.Pod == "" {
		return nil, nil
	}
	row, err := p.Fetch(ctx, a.Namespace, a.Pod)
	if err != nil {
		return nil, fmt.Errorf("%w: %s/%s: %w", ErrUnknownPod, a.Namespace, a.Pod, err)
	}
	if !samePod(row.UID, a.PodUID) {
		return nil, fmt.Errorf("%w: %s/%s has UID %s at the API server, want %s", ErrUnknownPod, a.Namespace, a.Pod, row.UID, a.PodUID)
	}
	return &row, nil
}

func samePod(a, b string) bool { return a == b || a == "" || b == "" }

// policyFeeds are the loop's positions in the tables it follows.
type policyFeeds struct {
	pods       *table.Changes[state.Pod]
	namespaces *table.Changes[state.Namespace]
	policies   *table.Changes[state.Policy]
	endpoints  *table.Changes[state.Endpoint]
	nodes      *table.Changes[state.Node]
	remotes    *table.Changes[state.Remote]
	slices     *table.Changes[state.EndpointSlice]
}

func (p *Policies) follow() *policyFeeds {
	s := p.State
	return &policyFeeds{
		s.Pods.Changes(), s.Namespaces.Changes(), s.Policies.Changes(), s.Endpoints.Changes(), s.Nodes.Changes(), s.Remotes.Changes(),
		s.EndpointSlices.Changes(),
	}
}

func (f *policyFeeds) close() {
	f.pods.Close()
	f.namespaces.Close()
	f.policies.Close()
	f.endpoints.Close()
	f.nodes.Close()
	f.remotes.Close()
	f.slices.Close()
}

// Run applies changes until ctx ends. It begins when all that policies and peers come from is known whole: what an earlier agent has written
// stays in force until then. Local pods are known before any loop runs.
func (p *Policies) Run(ctx context.Context) error {
	s := p.State
	if err := all(ctx, s.Pods.Initialized(), s.Namespaces.Initialized(), s.Policies.Initialized(), s.Nodes.Initialized(),
		s.Remotes.Initialized(), s.EndpointSlices.Initialized()); err != nil {
		return err
	}
	f := p.follow()
	defer f.close()
	defer p.turnAway(ctx)
	for {
		more := p.step(ctx, f)
		if err := p.wait(ctx, more); err != nil {
			return err
		}
	}
}

// turnAway answers who still waits.
func (p *Policies) turnAway(ctx context.Context) {
	for _, w := range p.waiting {
		w.done <- ctx.Err()
	}
}

// wait returns when there is something to do.
func (p *Policies) wait(ctx context.Context, more [7]<-chan struct{}) error {
	alarm := time.NewTimer(p.sleep())
	defer alarm.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-p.admissions:
		p.waiting = append(p.waiting, a)
	case c := <-p.checks:
		p.checking = append(p.checking, c)
	case <-alarm.C:
	case <-more[0]:
	case <-more[1]:
	case <-more[2]:
	case <-more[3]:
	case <-more[4]:
	case <-more[5]:
	case <-more[6]:
	}
	for { // others that came with the first
		select {
		case a := <-p.admissions:
			p.waiting = append(p.waiting, a)
		default:
			return nil
		}
	}
}

// sleep returns how long nothing is to be done if nothing happens.
func (p *Policies) sleep() time.Duration {
	next := time.Now().Add(time.Hour)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	earlier(p.retryAt)
	earlier(p.peers.short.until)
	for _, r := range p.refusals {
		earlier(r.until)
	}
	if p.unsettled {
		return max(time.Until(next), 0) // the rest waits until that is in force
	}
	earlier(p.retireAt)
	earlier(p.peers.tidyAt)
	earlier(p.ownCheck.at)
	for _, c := range p.checking {
		earlier(c.at)
	}
	return max(time.Until(next), 0)
}

// step takes in everything that has changed, brings it into force as far as that is possible, and returns channels of which one is closed
// when there is more.
func (p *Policies) step(ctx context.Context, f *policyFeeds) (more [7]<-chan struct{}) {
	now := time.Now()
	endpoints, moreEndpoints := f.endpoints.Next()
	remotes, moreRemotes := f.remotes.Next()
	nodes, moreNodes := f.nodes.Next()
	sliceChanges, moreSlices := f.slices.Next()
	namespaces, moreNamespaces := f.namespaces.Next()
	pods, morePods := f.pods.Next()
	policies, morePolicies := f.policies.Next()

	s := p.subjects
	s.attached(endpoints)
	s.admit(p.waiting)
	s.changedPods(pods)
	s.changedNamespaces(namespaces)
	s.changedPolicies(policies)
	s.changedNodes(nodes)
	p.retryRefused(now)
	p.peers.retryHeld(now)
	p.peers.changedPods(pods, s)
	p.peers.changedNamespaces(namespaces)
	p.peers.changedAreas(len(nodes)+len(remotes) > 0, sliceChanges)
	p.peers.changedLocals(s.moved)
	s.moved = nil
	if p.began.IsZero() && (len(s.dirty) > 0 || p.peers.dirty()) {
		p.began = now
	}
	p.settle(ctx, now)
	if p.check(now); p.repair {
		p.repair = false
		p.settle(ctx, now)
	}
	return [...]<-chan struct{}{moreEndpoints, moreRemotes, moreNodes, moreSlices, moreNamespaces, morePods, morePolicies}
}

// settle computes what follows from what has changed and gives it to the writer.
func (p *Policies) settle(ctx context.Context, now time.Time) {
	if now.Before(p.retryAt) && len(p.waiting) == 0 && p.unsettled {
		return // changes go on being collected
	}
	p.subjects.choose(p.refused)
	p.peers.tidy(now)
	err := errors.Join(p.propose(), p.Writer.Flush(ctx)) // also when something is to wait for what goes away with that
	if p.unsettled = err != nil; p.unsettled {
		p.retry = min(max(2*p.retry, retryFirst), retryLast)
		p.retryAt = now.Add(p.retry)
		state.Raise(p.State.Problems, state.Problem{Source: policyProblems, Subject: "policy", Text: err.Error()}, now)
		p.reported = true
		p.Log.Warn("policy is not in force as it should be", "error", err, "again", p.retry)
		p.retire(ctx)
		return
	}
	p.retry, p.retryAt = 0, time.Time{}
	p.subjects.settled(p.peers)
	p.report(now)
	p.answer()
	for _, done := range p.done {
		done()
	}
	if p.done != nil {
		p.done = nil
		close(p.ready)
	}
	if !p.began.IsZero() && p.Applied != nil {
		p.Applied(time.Since(p.began))
	}
	p.began = time.Time{}
	p.retire(ctx)
}

func (p *Policies) retire(ctx context.Context) {
	var err error
	if p.retireAt, err = p.Writer.Retire(ctx); err != nil {
		p.Log.Warn("remove what policy does not use any more", "error", err)
	}
}

// refused returns why a program is not to be tried now.
func (p *Policies) refused(id policy.ID) error { return p.refusals[id].err }

// retryRefused lets what was refused be tried again.
func (p *Policies) retryRefused(now time.Time) {
	for id, r := range p.refusals {
		if now.After(r.until) {
			delete(p.refusals, id)
			p.subjects.again()
		}
	}
}

// answer tells who waits that its pod may send and receive.
func (p *Policies) answer() {
	for _, w := range p.waiting {
		w.done <- p.subjects.admitted(w.Key())
	}
	p.waiting = nil
}

// report shows programs and identities, and what is wrong.
func (p *Policies) report(now time.Time) {
	lacking, wrong := p.shortages()
	p.subjects.publish(p.State.Programs, p.Writer.Entries, lacking)
	p.peers.publish(p.State.Identities)
	wrong = append(wrong, p.subjects.problems()...)
	if len(wrong) > 0 || p.reported {
		state.Report(p.State.Problems, policyProblems, now, wrong)
		p.reported = len(wrong) > 0
	}
}
