package status

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
)

// PolicyOf sums up what the tables say of policy.
func PolicyOf(st *state.State, p PolicySources) localapi.PolicyStatus {
	s := Sources{State: st, Policy: p}
	out := localapi.PolicyStatus{
		Enforcement: p.Mode.String(), Audit: p.Audit, Objects: []localapi.PolicyCount{}, Packets: []localapi.VerdictCount{},
		Identities: st.Identities.Snapshot().Len(), Programs: st.Programs.Snapshot().Len(),
	}
	where := placementOf(st.Programs.Snapshot())
	counts := map[localapi.PolicyCount]int{}
	for row := range st.Policies.Snapshot().All() {
		word, _ := s.stateOf(row, where)
		counts[localapi.PolicyCount{Kind: string(row.Kind), State: word}]++
		if where.pods[row.Ref] == 0 {
			continue
		}
		for i := range row.Specs {
			out.Rules += len(row.Specs[i].Ingress.Rules) + len(row.Specs[i].Egress.Rules)
		}
	}
	for c, n := range counts {
		c.Count = n
		out.Objects = append(out.Objects, c)
	}
	slices.SortFunc(out.Objects, func(a, b localapi.PolicyCount) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.State, b.State))
	})
	selected := map[string]bool{}
	for program := range st.Programs.Snapshot().All() {
		for _, pod := range program.Pods {
			selected[pod] = selected[pod] || len(program.Policies) > 0
		}
	}
	for _, pod := range localPods(st) {
		out.Pods++
		if selected[pod] {
			out.Selected++
		}
	}
	return out
}

// localPods returns the pods that are attached, sorted, each once.
func localPods(st *state.State) (out []string) {
	for e := range st.Endpoints.Snapshot().All() {
		if e.Pod != "" {
			out = append(out, e.Namespace+"/"+e.Pod)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// VerdictsOf returns what packets that a rule has counted met: allowed, denied, audited, or nothing for a rule that is gone.
func VerdictsOf(st *state.State, p PolicySources) func(policy.RuleRef) string {
	type known struct {
		action policy.Action
		audit  bool
	}
	rules := map[policy.RuleRef]known{}
	for row := range st.Policies.Snapshot().All() {
		for i := range row.Specs {
			spec := &row.Specs[i]
			audit := spec.Audit || p.Audit
			for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
				if spec.Of(way).Isolates {
					rules[policy.RuleRef{Ref: row.Ref, Way: way}] = known{policy.Deny, audit}
				}
				for _, r := range spec.Of(way).Rules {
					rules[policy.RuleRef{Ref: row.Ref, Way: way, Path: r.Path}] = known{r.Action, audit}
				}
			}
		}
	}
	return func(ref policy.RuleRef) string {
		if ref.Kind == policy.Builtin {
			if ref.Name == policy.ModeAlwaysOn || ref.Name == policy.NoRoomForWho {
				return localapi.VerdictDenied
			}
			return localapi.VerdictAllowed
		}
		r, ok := rules[ref]
		switch {
		case !ok:
			return ""
		case r.audit:
			return localapi.VerdictAudited
		case r.action == policy.Deny:
			return localapi.VerdictDenied
		}
		return localapi.VerdictAllowed
	}
}

// settling is how long the model may be behind the API before that is a difference.
const settling = 500 * time.Millisecond

// CheckModel adds how the policies that select local pods differ from those they are judged by. What differs is looked at again after a while:
// it may be on its way.
func CheckModel(ctx context.Context, out *localapi.Check, st *state.State, p PolicySources) error {
	s := Sources{State: st, Policy: p}
	pods := localPods(st)
	found := s.misjudged(pods)
	if len(found) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settling):
		}
		again := s.misjudged(pods)
		for pod := range found {
			if again[pod] == "" {
				delete(found, pod)
			} else {
				found[pod] = again[pod]
			}
		}
	}
	out.Tables = append(out.Tables, localapi.CheckTable{Name: "programs", Rows: len(pods), Differences: len(found)})
	for _, pod := range slices.Sorted(maps.Keys(found)) {
		out.Differences = append(out.Differences, localapi.Difference{Table: "programs", Key: pod, Text: found[pod]})
	}
	return nil
}

// misjudged says of pods that are not judged by the policies that select them what is wrong.
func (s Sources) misjudged(pods []string) map[string]string {
	judges, failed := map[string][]policy.Ref{}, map[string]string{}
	for program := range s.State.Programs.Snapshot().All() {
		for _, pod := range program.Pods {
			if program.Error != "" {
				failed[pod] = program.Error
			} else {
				judges[pod] = program.Policies
			}
		}
	}
	out := map[string]string{}
	for _, name := range pods {
		if _, _, known := s.State.Pods.Snapshot().Get(name); !known || s.modeOf(name) == policy.ModeNever {
			continue
		}
		peer := s.peerOfPod(name)
		var want []policy.Ref
		for row := range s.State.Policies.Snapshot().All() {
			if slices.ContainsFunc(row.Specs, func(spec policy.Policy) bool { return !spec.Node && spec.Subject.Matches(&peer) }) {
				want = append(want, row.Ref)
			}
		}
		slices.SortFunc(want, policy.Ref.Compare)
		switch have := judges[name]; {
		case failed[name] != "":
			out[name] = "keeps what it had: " + failed[name]
		case !slices.Equal(want, have):
			out[name] = "is judged by " + refsText(have) + ", selected by " + refsText(want)
		}
	}
	return out
}

func refsText(refs []policy.Ref) string {
	var names []string
	for _, r := range refs {
		names = append(names, r.String())
	}
	return cmp.Or(strings.Join(names, ", "), "nothing")
}

// CheckAddresses adds what strait ipam check has found.
func CheckAddresses(out *localapi.Check, c localapi.IPAMCheck) {
	out.Tables = append(out.Tables, localapi.CheckTable{Name: "addresses", Rows: c.Checked, Differences: len(c.Findings)})
	for _, f := range c.Findings {
		key := f.Address
		if f.Owner != "" {
			key += " of " + f.Owner
		}
		out.Differences = append(out.Differences, localapi.Difference{Table: "addresses", Key: key, Text: f.Text, Repaired: f.Fixed})
	}
}

// CheckReconciler adds what the controller of a table has found when it last compared.
func CheckReconciler(out *localapi.Check, h reconcile.Health) {
	out.Tables = append(out.Tables, localapi.CheckTable{Name: h.Table, Rows: h.Rows, Differences: h.Failing, Compared: h.Pruned})
	if h.Failing > 0 || h.LastError != "" {
		out.Differences = append(out.Differences, localapi.Difference{
			Table: h.Table, Key: fmt.Sprintf("%d of %d rows", h.Failing, h.Rows), Text: "not in the kernel, the last: " + h.LastError,
		})
	}
}

// FinishCheck counts rows and puts what was not repaired first.
func FinishCheck(out *localapi.Check) {
	out.Rows = 0
	for _, t := range out.Tables {
		out.Rows += t.Rows
	}
	slices.SortStableFunc(out.Differences, func(a, b localapi.Difference) int {
		switch {
		case a.Repaired == b.Repaired:
			return 0
		case a.Repaired:
			return 1
		}
		return -1
	})
}
