package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
	pods, selected := map[string]bool{}, map[string]bool{}
	for program := range st.Programs.Snapshot().All() {
		for _, pod := range program.Pods {
			pods[pod] = true
			if len(program.Policies) > 0 {
				selected[pod] = true
			}
		}
	}
	delete(pods, "") // the node itself
	delete(selected, "")
	out.Pods, out.Selected = len(pods), len(selected)
	return out
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
			if ref.Name == policy.ModeAlwaysOn {
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
