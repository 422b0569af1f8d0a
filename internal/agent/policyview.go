package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	stdsync "sync"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// policyTables are the kernel's tables as a packet is looked up in them. *maps.Maps are some.
type policyTables interface {
	Endpoint(netip.Addr) (maps.Endpoint, bool, error)
	NodeState() (maps.NodeState, error)
	Identity(netip.Prefix) (uint64, bool, error)
	Policy(maps.PolicyKey) (maps.PolicyEntry, bool, error)
	Port(maps.Port) (maps.PolicyVerdict, bool, error)
}

// policyRules knows whose the numbers of rules are. *sync.Policies is one.
type policyRules interface {
	Rules() ([]sync.Rule, error)
	Ref(number uint32) (policy.RuleRef, bool)
	Revision() uint32
	Drift() uint64 // rows that were not as written and were repaired
}

// policyView answers questions about policy from tables and the live kernel.
type policyView struct {
	state  *state.State
	cfg    config.Policy
	tables policyTables
	rules  policyRules

	mu      stdsync.Mutex // guards everything below
	changed time.Time     // when the last change was in force
	took    time.Duration
	seen    map[policy.RuleRef]localapi.Count // what rules had counted at the last look
	sums    map[verdictKind]localapi.Count    // since the first look; rules that are gone included
}

// verdictKind is what a packet's verdict is counted under.
type verdictKind struct {
	way     policy.Way
	verdict string
}

func newPolicyView(st *state.State, cfg config.Policy, tables policyTables, rules policyRules) *policyView {
	return &policyView{
		state: st, cfg: cfg, tables: tables, rules: rules,
		seen: map[policy.RuleRef]localapi.Count{}, sums: map[verdictKind]localapi.Count{},
	}
}

// applied notes that a change has come into force.
func (v *policyView) applied(took time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed, v.took = time.Now(), took
}

func (v *policyView) mode() policy.Mode {
	switch v.cfg.Enforcement {
	case config.PolicyAlways:
		return policy.ModeAlways
	case config.PolicyNever:
		return policy.ModeNever
	}
	return policy.ModeDefault
}

// sources is what the rows of the API are made of.
func (v *policyView) sources() status.PolicySources {
	return status.PolicySources{Mode: v.mode(), Audit: v.cfg.Audit, Rules: v.counts, Judge: v.judge}
}

func (v *policyView) counts() ([]status.RuleCount, error) {
	all, err := v.rules.Rules()
	if err != nil {
		return nil, fmt.Errorf("read counters of rules: %w", err)
	}
	out := make([]status.RuleCount, 0, len(all))
	for _, r := range all {
		out = append(out, status.RuleCount{Rule: r.Ref, Count: localapi.Count{Packets: r.Packets, Bytes: r.Bytes}, Since: r.Since})
	}
	return out, nil
}

// judge looks a connection up as bpf/lib/policy.h does.
func (v *policyView) judge(c status.Connection) (status.Judgement, error) {
	program, err := v.program(c.Local)
	if err != nil || program == 0 {
		return status.Judgement{}, err
	}
	j := status.Judgement{Program: policy.ID(program), Identity: identity.World}
	id, known, err := v.tables.Identity(netip.PrefixFrom(c.Peer, c.Peer.BitLen()))
	if err != nil {
		return j, err
	}
	if known {
		j.Identity = identity.ID(id)
	}
	row, err := v.lookup(program, c, j.Identity)
	if err != nil {
		return j, err
	}
	j.Allow, j.Rule = row.Flags&bpf.PolicyAllow != 0, v.ref(row.Rule)
	if row.Flags&bpf.PolicyAudit != 0 {
		j.Audit, j.AuditAllow, j.AuditRule = true, row.Flags&bpf.PolicyAuditDeny == 0, v.ref(row.AuditRule)
	}
	return j, nil
}

// program is what judges an address of a local pod, or for the zero address the node itself; 0: nothing does.
func (v *policyView) program(local netip.Addr) (uint64, error) {
	if !local.IsValid() {
		s, err := v.tables.NodeState()
		return s.Policy, err
	}
	e, known, err := v.tables.Endpoint(local)
	if err == nil && !known {
		err = fmt.Errorf("no pod with address %s is in the kernel of this node", local)
	}
	return e.Policy, err
}

func (v *policyView) lookup(program uint64, c status.Connection, id identity.ID) (maps.PolicyVerdict, error) {
	key := maps.PolicyKey{Policy: program, Direction: bpf.PolicyDirection(c.Way), Identity: uint64(id)}
	entry, known, err := v.tables.Policy(key)
	if err == nil && !known {
		key.Identity = uint64(identity.Other)
		entry, known, err = v.tables.Policy(key)
	}
	switch {
	case err != nil:
		return maps.PolicyVerdict{}, err
	case !known:
		return maps.PolicyVerdict{}, fmt.Errorf("program %s is not in the kernel: every packet is denied", identity.ID(program))
	case entry.Table == 0:
		return entry.Verdict, nil
	}
	row, known, err := v.tables.Port(maps.Port{Table: entry.Table, Protocol: uint8(c.Protocol), Port: c.Port, Bits: 16})
	if err == nil && !known {
		err = fmt.Errorf("table %s of program %s is not in the kernel: every packet is denied", identity.ID(entry.Table), identity.ID(program))
	}
	return row, err
}

// ref names the rule that has a number.
func (v *policyView) ref(number uint32) policy.RuleRef {
	if ref, known := v.rules.Ref(number); known {
		return ref
	}
	return policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: fmt.Sprintf("rule %d, which nobody knows", number)}}
}

// status sums policy up. The agent's own trouble with it is in the table of problems.
func (v *policyView) status() (localapi.PolicyStatus, error) {
	s := status.PolicyOf(v.state, v.sources())
	s.Revision, s.Drift = v.rules.Revision(), v.rules.Drift()
	all, err := v.counts()
	v.mu.Lock()
	defer v.mu.Unlock()
	s.Changed, s.Took = v.changed, v.took
	if err == nil {
		v.sumLocked(all)
	}
	for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
		for _, verdict := range []string{localapi.VerdictAllowed, localapi.VerdictDenied, localapi.VerdictAudited} {
			c := v.sums[verdictKind{way, verdict}]
			s.Packets = append(s.Packets, localapi.VerdictCount{Direction: way.String(), Verdict: verdict, Packets: c.Packets, Bytes: c.Bytes})
		}
	}
	return s, err
}

// sumLocked adds what rules have counted since the last look. A rule that counts less than before has begun anew.
func (v *policyView) sumLocked(all []status.RuleCount) {
	verdicts := status.VerdictsOf(v.state, v.sources())
	seen := make(map[policy.RuleRef]localapi.Count, len(all))
	for _, c := range all {
		more := c.Count
		if old := v.seen[c.Rule]; old.Packets <= more.Packets && old.Bytes <= more.Bytes {
			more = localapi.Count{Packets: more.Packets - old.Packets, Bytes: more.Bytes - old.Bytes}
		}
		seen[c.Rule] = c.Count
		if verdict := verdicts(c.Rule); verdict != "" && more.Packets > 0 {
			k := verdictKind{c.Rule.Way, verdict}
			v.sums[k] = v.sums[k].Add(more)
		}
	}
	v.seen = seen
}

// check compares API, model and kernel: policies and their tables now, addresses now, and what reconcilers have found when they last compared.
func (a *agent) check(ctx context.Context, repair bool) (localapi.Check, error) {
	begun := time.Now()
	out := localapi.Check{Node: a.Node, Policies: a.state.Policies.Snapshot().Len(), Differences: []localapi.Difference{}}
	if err := status.CheckModel(ctx, &out, a.state, a.policies.view.sources()); err != nil {
		return out, err
	}
	if err := a.checkScratch(ctx, &out); err != nil {
		return out, err
	}
	tables, differences, err := a.policies.writer.Check(ctx, repair)
	if err != nil {
		return out, err
	}
	a.policies.view.compared(&out, tables, differences)
	addresses, err := a.checkIPAM(ctx, repair)
	if err != nil {
		return out, err
	}
	status.CheckAddresses(&out, addresses)
	for _, r := range a.reconcilers {
		status.CheckReconciler(&out, r.Health())
	}
	status.FinishCheck(&out)
	out.Pods, out.Took = a.state.Endpoints.Snapshot().Len(), time.Since(begun)
	return out, nil
}

// checkScratch adds what the loop has computed step by step and does not follow from what Kubernetes says: it is computed anew at once.
func (a *agent) checkScratch(ctx context.Context, out *localapi.Check) error {
	select {
	case <-a.policies.loop.Ready():
	default:
		return nil // nothing is in force yet
	}
	rows, found, err := a.policies.loop.Check(ctx)
	out.Tables = append(out.Tables, localapi.CheckTable{Name: "model", Rows: rows, Differences: len(found)})
	for _, d := range found {
		out.Differences = append(out.Differences, localapi.Difference{Table: d.Table, Key: d.Key, Text: d.Text, Repaired: true})
	}
	return err
}

// compared adds what has been found in the tables of policy, with programs and rules as people know them.
func (v *policyView) compared(out *localapi.Check, tables []sync.Checked, differences []sync.Difference) {
	counts := map[string]int{}
	for _, d := range differences {
		counts[d.Table]++
		out.Differences = append(out.Differences, localapi.Difference{Table: d.Table, Key: v.whose(d.Key), Text: v.named(d.Text), Repaired: d.Repaired})
	}
	for _, t := range tables {
		out.Tables = append(out.Tables, localapi.CheckTable{Name: t.Table, Rows: t.Rows, Differences: counts[t.Table]})
	}
}

// whose adds to a key that begins with a program the pods it is for.
func (v *policyView) whose(key string) string {
	id, _, _ := strings.Cut(key, " ")
	p, _, known := v.state.Programs.Snapshot().Get(id)
	switch {
	case !known || len(p.Pods) == 0:
		return key
	case len(p.Pods) == 1:
		return key + " of " + cmp.Or(p.Pods[0], "the node")
	}
	return fmt.Sprintf("%s of %s and %d more", key, cmp.Or(p.Pods[0], "the node"), len(p.Pods)-1)
}

// named puts rules in the place of their numbers.
func (v *policyView) named(text string) string {
	words := strings.Split(text, " ")
	for i := 1; i < len(words); i++ {
		number, err := strconv.ParseUint(strings.TrimSuffix(words[i], ","), 10, 32)
		if words[i-1] != "rule" || err != nil {
			continue
		}
		if ref, known := v.rules.Ref(uint32(number)); known {
			words[i] += " (" + ref.String() + ")"
		}
	}
	return strings.Join(words, " ")
}

// watchPolicy compares the tables of policy with what was written into them all the time, and repairs them.
func (a *agent) watchPolicy(ctx context.Context) error {
	const subject = "tables of policy"
	return a.policies.writer.Watch(ctx, func(found []sync.Difference, err error) {
		for _, d := range found {
			a.log.Warn("the kernel's policy was not as written", "table", d.Table, "key", a.policies.view.whose(d.Key), "difference", a.policies.view.named(d.Text), "repaired", d.Repaired)
		}
		if err != nil {
			a.report(subject, err)
			return
		}
		state.Clear(a.state.Problems, agentProblems, subject)
	})
}
