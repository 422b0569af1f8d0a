package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

func (a *app) policyShowCmd() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "show [KIND/][NAMESPACE/]NAME",
		Short: "Show everything of one policy",
		Long: `Shows what a policy selects, its rules in words with their place in the object, and what each has let pass or stopped: packets and
bytes, those of established connections included, since the age in SINCE. "nothing else" is what becomes of packets that no rule of a policy
that isolates matches; of several such policies the first one counts them. Rules of a policy that is only audited count what they would have
decided where it differs from what is enforced.

KIND may be left out where a name is that of one policy only: NetworkPolicy (netpol), ClusterNetworkPolicy, CiliumNetworkPolicy,
CiliumClusterwideNetworkPolicy (ccnp). From outside a node, packets are summed over the nodes.`,
		Example: `  strait policy show shop/db
  strait policy show clusternetworkpolicy/tenants
  strait policy show ccnp/host-firewall -o yaml`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completePolicy,
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := policyName(args[0], namespace)
			if err != nil {
				return err
			}
			return a.policyShow(cmd.Context(), w)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", `namespace of the policy (default "default")`)
	return cmd
}

func (a *app) policyShow(ctx context.Context, w wantedPolicy) error {
	args := []string{"policy", "show", w.text}
	if !w.free && !strings.Contains(w.text, "/") {
		args = append(args, "--namespace="+w.namespace)
	}
	all, err := ask(ctx, a, question[localapi.PolicyDetail]{
		args: args,
		local: func(ctx context.Context, c *localapi.Client) (localapi.PolicyDetail, error) {
			rows, err := c.Policies(ctx)
			if err != nil {
				return localapi.PolicyDetail{}, err
			}
			name, err := w.among(rows)
			if err != nil {
				return localapi.PolicyDetail{}, err
			}
			return c.Policy(ctx, name)
		},
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.policyText(all) })
}

func (a *app) policyText(all answers[localapi.PolicyDetail]) string {
	rows := answers[[]localapi.Policy]{one: all.one}
	rules := answers[[]localapi.Rule]{one: all.one}
	var first *localapi.PolicyDetail
	for i, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		if first == nil {
			first = &all.nodes[i].Value
		}
		rows.nodes = append(rows.nodes, answer[[]localapi.Policy]{Node: n.Node, Value: []localapi.Policy{n.Value.Policy}})
		rules.nodes = append(rules.nodes, answer[[]localapi.Rule]{Node: n.Node, Value: n.Value.RuleRows})
	}
	j := joinPolicies(rows)[0] // ask gives at least one answer
	v := &screen{app: a}
	v.policyHead(j, rows)
	tier := "normal: a denial anywhere wins over any allowance"
	switch first.Tier {
	case "admin":
		tier = fmt.Sprintf("admin, priority %d: its rules decide in their order, before all namespaced policies", *first.Priority)
	case "baseline":
		tier = fmt.Sprintf("baseline, priority %d: asked where no namespaced policy isolates", *first.Priority)
	case "":
		tier = "-"
	}
	v.line("Tier", tier)
	v.line("Selects", cmp.Or(strings.Join(first.Subjects, "; "), "-"))
	isolates := "nothing: what no rule matches is left to other policies"
	if len(first.Isolates) > 0 {
		isolates = strings.Join(first.Isolates, " and ") + ": what no policy allows is denied"
	}
	if first.Tier == "normal" {
		v.line("Isolates", isolates)
	}
	v.selectedPods(all)
	if len(first.RuleRows) > 0 {
		v.b.WriteString("\n" + a.render(a.ruleGrid(joinRules(rules), false)))
	} else {
		v.b.WriteString("\nno rules\n")
	}
	return v.b.String()
}

func (v *screen) policyHead(j *joinedPolicy, all answers[[]localapi.Policy]) {
	state := j.state(all)
	fmt.Fprintf(&v.b, "%s: %s\n\n", v.paint(bold, j.String()), v.paint(state.style, state.text))
	v.problems(j.problems(""))
}

// selectedPods says which pods are judged by the policy: on one node all of them by name, else how many on each.
func (v *screen) selectedPods(all answers[localapi.PolicyDetail]) {
	if !all.one {
		var parts []string
		pods := 0
		for _, n := range all.nodes {
			if k := len(n.Value.Selected); k > 0 {
				pods += k
				parts = append(parts, fmt.Sprintf("%s (%d)", n.Node, k))
			}
		}
		if pods == 0 {
			v.line("Pods", "none")
			return
		}
		v.line("Pods", fmt.Sprintf("%d, on %s", pods, strings.Join(parts, ", ")))
		return
	}
	d := all.nodes[0].Value
	if len(d.Selected) == 0 {
		v.line("Pods here", "none")
		return
	}
	var names []string
	programs := map[string]int{}
	for _, s := range d.Selected {
		name := strings.TrimPrefix(s.Pod, d.Namespace+"/")
		if s.Pod == "" {
			name = "node " + d.Node
		}
		var notes []string
		if s.Audit {
			notes = append(notes, "audited")
		}
		if s.Mode != "" {
			notes = append(notes, "mode "+s.Mode)
		}
		if s.Error != "" {
			notes = append(notes, "not in the kernel: "+s.Error)
		}
		if len(notes) > 0 {
			name += " (" + strings.Join(notes, ", ") + ")"
		}
		names = append(names, name)
		programs[s.Program] = s.Entries
	}
	v.line("Pods here", strings.Join(names, ", "))
	var texts []string
	for id, entries := range programs {
		texts = append(texts, id+" ("+plural(entries, "row")+")")
	}
	slices.Sort(texts)
	v.line("Programs", strings.Join(texts, ", "))
}

// joinRules sums what the nodes have counted, in order of their first appearance. Since is when the last of them began to count.
func joinRules(all answers[[]localapi.Rule]) []*localapi.Rule {
	var order []*localapi.Rule
	at := map[localapi.RuleName]*localapi.Rule{}
	for _, n := range all.nodes {
		for _, r := range n.Value {
			j := at[r.RuleName]
			if j == nil {
				at[r.RuleName] = &r
				order = append(order, &r)
				continue
			}
			j.Count = j.Count.Add(r.Count)
			j.InUse = j.InUse || r.InUse
			if r.Since.After(j.Since) {
				j.Since = r.Since
			}
		}
	}
	return order
}

// ruleGrid lays out rules; those of several policies are named in full.
func (a *app) ruleGrid(rules []*localapi.Rule, full bool) *grid {
	g := &grid{columns: columns("RULE", "ACTION", "PACKETS#", "BYTES#", "SINCE", "PORTS", "PEERS")}
	for _, r := range rules {
		g.add(rulePlace(r.RuleName, full)+titled(r.Title), actionCell(*r), some(r.Count.Packets), some(r.Count.Bytes), a.since(r.Since),
			strings.Join(r.Ports, listGap), strings.Join(r.Peers, ", "))
	}
	return g
}

// since is the age of a counter.
func (a *app) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return a.age(t)
}

// rulePlace is where a rule stands, in front of it the policy when that is not clear.
func rulePlace(n localapi.RuleName, full bool) string {
	if full {
		return n.String()
	}
	return n.Place()
}

func titled(title string) string {
	if title == "" {
		return ""
	}
	return " (" + title + ")"
}

func actionCell(r localapi.Rule) cell {
	c := cell{text: r.Action, style: green}
	switch r.Action {
	case "deny":
		c.style = red
	case "pass":
		c.style = plain
	}
	if r.Audit {
		c = cell{text: "would " + r.Action, style: yellow}
	}
	return c
}
