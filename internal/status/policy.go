package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// PolicySources is what is known of policy beside the tables of state. Functions that are nil: not known.
type PolicySources struct {
	Mode  policy.Mode // of the cluster
	Audit bool        // of the cluster
	// Rules reads what rules have counted.
	Rules func() ([]RuleCount, error)
	// Judge looks a connection up in the kernel's tables.
	Judge func(Connection) (Judgement, error)
}

// RuleCount is what a rule has let pass or stopped, established connections included.
type RuleCount struct {
	Rule  policy.RuleRef
	Count localapi.Count
	Since time.Time
}

// ruleCounts returns the counts by rule.
func (s Sources) ruleCounts() (map[policy.RuleRef]RuleCount, error) {
	out := map[policy.RuleRef]RuleCount{}
	if s.Policy.Rules == nil {
		return out, nil
	}
	all, err := s.Policy.Rules()
	for _, c := range all {
		out[c.Rule] = c
	}
	return out, err
}

// placement is where policies are in use on this node.
type placement struct {
	programs map[policy.Ref][]state.Program
	pods     map[policy.Ref]int // local pods, the node itself included
}

func placementOf(programs table.Snapshot[state.Program]) placement {
	out := placement{map[policy.Ref][]state.Program{}, map[policy.Ref]int{}}
	type selected struct {
		policy policy.Ref
		pod    string
	}
	known := map[selected]bool{}
	for p := range programs.All() {
		for _, ref := range p.Policies {
			out.programs[ref] = append(out.programs[ref], p)
			for _, pod := range p.Pods { // one that keeps an old program while a new one does not fit is in both
				if s := (selected{ref, pod}); !known[s] {
					known[s] = true
					out.pods[ref]++
				}
			}
		}
	}
	return out
}

// failure is why the kernel does not have the policy for some pod, empty when it does.
func (w placement) failure(ref policy.Ref) string {
	for _, p := range w.programs[ref] {
		if p.Error != "" {
			return p.Error
		}
	}
	return ""
}

// policies returns a row per object, those that are not as they should be first, then in the order in which they decide.
func (s Sources) policies() ([]localapi.Policy, error) {
	counts, err := s.ruleCounts()
	if err != nil {
		return nil, err
	}
	byRef := map[policy.Ref][]RuleCount{}
	for _, c := range counts {
		byRef[c.Rule.Ref] = append(byRef[c.Rule.Ref], c)
	}
	where := placementOf(s.State.Programs.Snapshot())
	rows := []localapi.Policy{}
	for p := range s.State.Policies.Snapshot().All() {
		rows = append(rows, s.policyRow(p, where, byRef[p.Ref]))
	}
	slices.SortStableFunc(rows, comparePolicies)
	return rows, nil
}

// comparePolicies puts what needs a person first, then follows the order of decision.
func comparePolicies(a, b localapi.Policy) int {
	bad := func(p localapi.Policy) int {
		return slices.Index([]string{localapi.PolicyFailed, localapi.PolicyRefused}, p.State)
	}
	tier := func(p localapi.Policy) int { return slices.Index([]string{"admin", "normal", "baseline"}, p.Tier) }
	priority := func(p localapi.Policy) int32 {
		if p.Priority == nil {
			return 0
		}
		return *p.Priority
	}
	return cmp.Or(cmp.Compare(bad(b), bad(a)), cmp.Compare(tier(a), tier(b)), cmp.Compare(priority(a), priority(b)),
		strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Kind, b.Kind))
}

func (s Sources) policyRow(p state.Policy, where placement, counts []RuleCount) localapi.Policy {
	row := localapi.Policy{
		PolicyName: nameOf(p.Ref), Generation: p.Generation, Enforced: p.Enforced, Pods: where.pods[p.Ref],
	}
	actions := map[policy.RuleRef]policy.Action{}
	for i := range p.Specs {
		spec := &p.Specs[i]
		if i == 0 {
			row.Tier, row.Host = spec.Tier.String(), spec.Node
			if spec.Tier != policy.Normal {
				row.Priority = &spec.Priority
			}
		}
		for _, way := range []policy.Way{policy.Ingress, policy.Egress} {
			for _, r := range spec.Of(way).Rules {
				row.Rules++
				actions[policy.RuleRef{Ref: p.Ref, Way: way, Path: r.Path}] = r.Action
			}
		}
	}
	for _, c := range counts {
		if action, known := actions[c.Rule]; known && action == policy.Allow {
			row.Allowed = row.Allowed.Add(c.Count)
		} else {
			row.Denied = row.Denied.Add(c.Count)
		}
	}
	row.State, row.Error = s.stateOf(p, where)
	return row
}

// stateOf says how a policy is on this node, and why if it is not enforced as it is written.
func (s Sources) stateOf(p state.Policy, where placement) (word, why string) {
	failed := where.failure(p.Ref)
	audited := len(p.Specs) > 0 && !slices.ContainsFunc(p.Specs, func(spec policy.Policy) bool { return !spec.Audit })
	switch {
	case p.Refused != "":
		return localapi.PolicyRefused, p.Refused
	case failed != "":
		return localapi.PolicyFailed, failed
	case s.Policy.Mode == policy.ModeNever:
		return localapi.PolicyOff, ""
	case audited || s.Policy.Audit:
		return localapi.PolicyAudited, ""
	}
	return localapi.PolicyEnforced, ""
}

func nameOf(r policy.Ref) localapi.PolicyName {
	return localapi.PolicyName{Kind: string(r.Kind), Namespace: r.Namespace, Name: r.Name}
}

func refOf(n localapi.PolicyName) policy.Ref {
	return policy.Ref{Kind: policy.Kind(n.Kind), Namespace: n.Namespace, Name: n.Name}
}

func ruleName(r policy.RuleRef) *localapi.RuleName {
	return &localapi.RuleName{PolicyName: nameOf(r.Ref), Direction: r.Way.String(), Path: r.Path}
}

// policy tells everything of one policy as this node has it.
func (s Sources) policy(name localapi.PolicyName) (localapi.PolicyDetail, error) {
	p, _, ok := s.State.Policies.Snapshot().Get(state.Policy{Ref: refOf(name)}.Key())
	if !ok {
		return localapi.PolicyDetail{}, fmt.Errorf("%s: %w", name, localapi.ErrNotFound)
	}
	counts, err := s.ruleCounts()
	if err != nil {
		return localapi.PolicyDetail{}, err
	}
	var own []RuleCount
	for _, c := range counts {
		if c.Rule.Ref == p.Ref {
			own = append(own, c)
		}
	}
	where := placementOf(s.State.Programs.Snapshot())
	d := localapi.PolicyDetail{
		Node: s.Node, Policy: s.policyRow(p, where, own), Subjects: []string{}, Isolates: []string{}, Selected: s.selected(where.programs[p.Ref]),
		RuleRows: s.rulesOf(p, where, counts),
	}
	for i := range p.Specs {
		spec := &p.Specs[i]
		if key := spec.Subject.Key(); !slices.Contains(d.Subjects, key) {
			d.Subjects = append(d.Subjects, key)
		}
		for _, way := range []policy.Way{policy.Ingress, policy.Egress} {
			if spec.Of(way).Isolates && !slices.Contains(d.Isolates, way.String()) {
				d.Isolates = append(d.Isolates, way.String())
			}
		}
	}
	return d, nil
}

// selected lists the local pods of programs in order of their names: with the program they have, and why not another if that does not fit.
func (s Sources) selected(programs []state.Program) []localapi.SelectedPod {
	pods, namespaces := s.State.Pods.Snapshot(), s.State.Namespaces.Snapshot()
	rows := []localapi.SelectedPod{}
	for _, p := range programs {
		for _, name := range p.Pods {
			row := localapi.SelectedPod{Pod: name, Program: identity.ID(p.ID).String(), Entries: p.Entries, Error: p.Error, Audit: s.Policy.Audit}
			pod, _, _ := pods.Get(name)
			ns, _, _ := namespaces.Get(pod.Namespace)
			row.Audit = row.Audit || pod.Audit || ns.Audit
			if mode := s.modeOf(name); mode != policy.ModeDefault {
				row.Mode = mode.String()
			}
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b localapi.SelectedPod) int {
		return cmp.Or(strings.Compare(a.Pod, b.Pod), strings.Compare(a.Error, b.Error))
	})
	for i := len(rows) - 1; i > 0; i-- {
		if rows[i].Pod == rows[i-1].Pod {
			rows[i-1].Error = rows[i].Error
			rows = slices.Delete(rows, i, i+1)
		}
	}
	return rows
}

// rules lists the rules of all policies, in the order of policies.
func (s Sources) rules(shadowed bool) (localapi.Rules, error) {
	out := localapi.Rules{At: time.Now(), Rules: []localapi.Rule{}}
	counts, err := s.ruleCounts()
	if err != nil {
		return out, err
	}
	where := placementOf(s.State.Programs.Snapshot())
	var specs []*policy.Policy
	for p := range s.State.Policies.Snapshot().All() {
		out.Rules = append(out.Rules, s.rulesOf(p, where, counts)...)
		for i := range p.Specs {
			specs = append(specs, &p.Specs[i])
		}
	}
	if !shadowed {
		return out, nil
	}
	by := map[localapi.RuleName]policy.RuleRef{}
	for _, hidden := range policy.Shadowed(specs) {
		by[*ruleName(hidden.Rule)] = hidden.By
	}
	for i := range out.Rules {
		if ref, hidden := by[out.Rules[i].RuleName]; hidden {
			out.Rules[i].Shadowed = ruleName(ref)
		}
	}
	return out, nil
}

// rulesOf lists the rules of a policy by direction, and after those of an isolated direction what becomes of everything else.
func (s Sources) rulesOf(p state.Policy, where placement, counts map[policy.RuleRef]RuleCount) []localapi.Rule {
	rows := []localapi.Rule{}
	for _, way := range []policy.Way{policy.Ingress, policy.Egress} {
		for i := range p.Specs {
			spec := &p.Specs[i]
			inUse := s.inUse(p, spec, where)
			for _, r := range spec.Of(way).Rules {
				row := s.ruleRow(policy.RuleRef{Ref: p.Ref, Way: way, Path: r.Path}, spec, counts)
				row.Title, row.Action, row.InUse = r.Name, r.Action.String(), inUse
				row.Peers, row.Ports = peersOf(r), portsOf(r)
				rows = append(rows, row)
			}
		}
		isolating := slices.IndexFunc(p.Specs, func(spec policy.Policy) bool { return spec.Of(way).Isolates })
		if isolating < 0 {
			continue
		}
		spec := &p.Specs[isolating]
		row := s.ruleRow(policy.RuleRef{Ref: p.Ref, Way: way}, spec, counts)
		row.Action, row.InUse, row.Peers, row.Ports = policy.Deny.String(), s.inUse(p, spec, where), []string{everybody}, []string{everyPort}
		rows = append(rows, row)
	}
	return rows
}

func (s Sources) ruleRow(ref policy.RuleRef, spec *policy.Policy, counts map[policy.RuleRef]RuleCount) localapi.Rule {
	c := counts[ref]
	return localapi.Rule{RuleName: *ruleName(ref), Audit: spec.Audit || s.Policy.Audit, Count: c.Count, Since: c.Since}
}

// inUse reports whether a spec is in a program of some local pod.
func (s Sources) inUse(p state.Policy, spec *policy.Policy, where placement) bool {
	if where.pods[p.Ref] == 0 || len(p.Specs) == 1 {
		return where.pods[p.Ref] > 0
	}
	for _, program := range where.programs[p.Ref] {
		for _, name := range program.Pods {
			peer := s.peerOfPod(name)
			if spec.Subject.Matches(&peer) {
				return true
			}
		}
	}
	return false
}

// peerOfPod is a local pod, or for "" this node, as selectors see it.
func (s Sources) peerOfPod(name string) policy.Peer {
	if name == "" {
		node, _, _ := s.State.Nodes.Snapshot().Get(s.Node)
		return policy.Peer{Kind: policy.HostPeer, NodeLabels: node.Labels}
	}
	pod, _, _ := s.State.Pods.Snapshot().Get(name)
	ns, _, _ := s.State.Namespaces.Snapshot().Get(pod.Namespace)
	return policy.Peer{
		Kind: policy.PodPeer, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Labels: pod.Labels, NamespaceLabels: ns.Labels, Ports: pod.Ports,
	}
}

const (
	everybody = "everybody"
	everyPort = "every port"
)

// peersOf says in words whom a rule is about.
func peersOf(r policy.Rule) []string {
	if r.Peers == nil {
		return []string{everybody}
	}
	out := []string{}
	for _, p := range r.Peers {
		out = append(out, p.Key())
	}
	return out
}

// portsOf says in words which protocols and ports a rule is about.
func portsOf(r policy.Rule) []string {
	if r.Ports == nil {
		return []string{everyPort}
	}
	out := []string{}
	for _, p := range r.Ports {
		out = append(out, p.String())
	}
	return out
}
