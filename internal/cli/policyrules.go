package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// askRules returns what the rules of all policies have counted, of every node asked.
func (a *app) askRules(ctx context.Context, filter policyFilter) (answers[localapi.Rules], error) {
	return ask(ctx, a, question[localapi.Rules]{
		args: append([]string{"policy", "rules"}, filter.args()...),
		local: func(ctx context.Context, c *localapi.Client) (localapi.Rules, error) {
			rules, err := c.Rules(ctx, false)
			rules.Rules = slices.DeleteFunc(rules.Rules, func(r localapi.Rule) bool { return filter.rejects(r.PolicyName) })
			return rules, err
		},
	})
}

// justRules drops when the rules were read.
func justRules(all answers[localapi.Rules]) answers[[]localapi.Rule] {
	out := answers[[]localapi.Rule]{one: all.one}
	for _, n := range all.nodes {
		out.nodes = append(out.nodes, answer[[]localapi.Rule]{n.Node, n.Value.Rules, n.Err})
	}
	return out
}

func (a *app) policyRulesCmd() *cobra.Command {
	var filter policyFilter
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List the rules of all policies with what they have counted",
		Long: `Lists the rules of all policies in use, each with the packets and bytes it has let pass or stopped since the age in SINCE. With -o json
also those that no pod of the node is judged by.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := filter.checked()
			if err != nil {
				return err
			}
			all, err := a.askRules(cmd.Context(), filter)
			if err != nil {
				return err
			}
			return deliver(a, all, func() string {
				used := slices.DeleteFunc(joinRules(justRules(all)), func(r *localapi.Rule) bool { return !r.InUse })
				return a.renderOr(a.ruleGrid(used, true), filter.nothing("rules in use"))
			})
		},
	}
	a.addPolicyFilter(cmd, &filter)
	return cmd
}

// topOptions are the flags of strait policy top.
type topOptions struct {
	policyFilter
	denied   bool
	count    int
	interval time.Duration
}

func (a *app) policyTopCmd() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show the rules that decide most packets right now",
		Long: `Looks at the counters of all rules twice and shows those that have decided most packets in between. From outside a node the rates of
all nodes are summed.`,
		Example: `  strait policy top
  strait policy top --denied --interval 10s   what is being denied
  strait policy top -n shop --count 50`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.count < 1:
				return usage("--count %d: want a number of rules, 1 or more", o.count)
			case o.interval < 100*time.Millisecond:
				return usage("--interval %v: want 100ms or more", o.interval)
			}
			var err error
			if o.policyFilter, err = o.checked(); err != nil {
				return err
			}
			return a.policyTop(cmd.Context(), o)
		},
	}
	a.addPolicyFilter(cmd, &o.policyFilter)
	f := cmd.Flags()
	f.BoolVar(&o.denied, "denied", false, "only what is denied")
	f.IntVar(&o.count, "count", 20, "show at most so many rules")
	f.DurationVar(&o.interval, "interval", 2*time.Second, "time between the two looks")
	return cmd
}

// ruleRate is how much a rule decides.
type ruleRate struct {
	localapi.Rule
	PacketsPerSecond float64 `json:"packetsPerSecond"`
	BytesPerSecond   float64 `json:"bytesPerSecond"`
}

func (a *app) policyTop(ctx context.Context, o topOptions) error {
	before, err := a.askRules(ctx, o.policyFilter)
	if err != nil {
		return err
	}
	timer := time.NewTimer(o.interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	after, err := a.askRules(ctx, o.policyFilter)
	if err != nil {
		return err
	}
	all := answers[[]ruleRate]{one: after.one}
	for _, n := range after.nodes {
		i := slices.IndexFunc(before.nodes, func(b answer[localapi.Rules]) bool { return b.Node == n.Node && b.Err == nil })
		switch {
		case n.Err != nil:
			all.nodes = append(all.nodes, answer[[]ruleRate]{n.Node, nil, n.Err})
		case i < 0:
			all.nodes = append(all.nodes, answer[[]ruleRate]{n.Node, nil, fmt.Errorf("no first look: %w", firstError(before, n.Node))})
		default:
			all.nodes = append(all.nodes, answer[[]ruleRate]{n.Node, o.rates(before.nodes[i].Value, n.Value), nil})
		}
	}
	return deliver(a, all, func() string {
		nothing := "no packet was judged by a rule in " + o.interval.String()
		if o.denied {
			nothing = "nothing was denied in " + o.interval.String()
		}
		return a.renderOr(o.grid(all), nothing)
	})
}

func firstError(all answers[localapi.Rules], node string) error {
	for _, n := range all.nodes {
		if n.Node == node {
			return n.Err
		}
	}
	return fmt.Errorf("the node is new")
}

// rates returns the rules that have decided anything between two looks at a node, the busiest first.
func (o topOptions) rates(before, after localapi.Rules) []ruleRate {
	took := after.At.Sub(before.At).Seconds()
	old := map[localapi.RuleName]localapi.Rule{}
	for _, r := range before.Rules {
		old[r.RuleName] = r
	}
	out := []ruleRate{}
	for _, r := range after.Rules {
		b := old[r.RuleName]
		if !b.Since.Equal(r.Since) {
			b = localapi.Rule{} // it began to count in between
		}
		if took <= 0 || r.Count.Packets <= b.Count.Packets || o.denied && r.Action != "deny" {
			continue
		}
		out = append(out, ruleRate{r, float64(r.Count.Packets-b.Count.Packets) / took, float64(r.Count.Bytes-b.Count.Bytes) / took})
	}
	slices.SortStableFunc(out, busier)
	return out[:min(len(out), o.count)]
}

func busier(x, y ruleRate) int { return cmp.Compare(y.PacketsPerSecond, x.PacketsPerSecond) }

func (o topOptions) grid(all answers[[]ruleRate]) *grid {
	at := map[localapi.RuleName]int{}
	var sums []ruleRate
	on := map[localapi.RuleName][]string{}
	for _, n := range all.nodes {
		for _, r := range n.Value {
			i, known := at[r.RuleName]
			if !known {
				i = len(sums)
				at[r.RuleName] = i
				sums = append(sums, ruleRate{Rule: r.Rule})
			}
			sums[i].PacketsPerSecond += r.PacketsPerSecond
			sums[i].BytesPerSecond += r.BytesPerSecond
			on[r.RuleName] = append(on[r.RuleName], n.Node)
		}
	}
	slices.SortStableFunc(sums, busier)
	g := &grid{columns: columns("PACKETS/S#", "BYTES/S#", "ACTION", "RULE", "ON", "PORTS", "+PEERS")}
	for _, r := range sums[:min(len(sums), o.count)] {
		where := ""
		if !all.one {
			where = strings.Join(on[r.RuleName], ",")
			if len(on[r.RuleName]) > 3 {
				where = plural(len(on[r.RuleName]), "node")
			}
		}
		g.add(rate(r.PacketsPerSecond), rate(r.BytesPerSecond), actionCell(r.Rule), rulePlace(r.RuleName, true), where, strings.Join(r.Ports, listGap), strings.Join(r.Peers, ", "))
	}
	return g
}

// rate prints numbers below ten with a decimal.
func rate(perSecond float64) string {
	if perSecond < 10 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64)
	}
	return short(uint64(perSecond + 0.5))
}

func (a *app) policyUnusedCmd() *cobra.Command {
	var filter policyFilter
	var least time.Duration
	cmd := &cobra.Command{
		Use:   "unused",
		Short: "List rules that no packet has needed",
		Long: `Lists the rules that pods are judged by and that have decided about no packet since the age in SINCE. From outside a node: on no node.
Rules that are only audited, that pass decisions on, and what isolation denies are left out: that they count nothing says nothing.`,
		Example: "  strait policy unused --for 720h   candidates for removal: of no use for 30 days",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := filter.checked()
			if err != nil {
				return err
			}
			return a.policyUnused(cmd.Context(), filter, least)
		},
	}
	a.addPolicyFilter(cmd, &filter)
	cmd.Flags().DurationVar(&least, "for", 0, "only rules that have been counting for so long")
	return cmd
}

func (a *app) policyUnused(ctx context.Context, filter policyFilter, least time.Duration) error {
	all, err := a.askRules(ctx, filter)
	if err != nil {
		return err
	}
	var unused []*localapi.Rule
	for _, r := range joinRules(justRules(all)) {
		counts := r.Action == "allow" || r.Action == "deny"
		if r.InUse && counts && !r.Audit && r.Path != "" && !r.Since.IsZero() && r.Count.Packets == 0 && a.Now().Sub(r.Since) >= least {
			unused = append(unused, r)
		}
	}
	return a.deliverRules(all, unused, func() string {
		g := &grid{columns: columns("RULE", "ACTION", "SINCE", "PORTS", "PEERS")}
		for _, r := range unused {
			g.add(rulePlace(r.RuleName, true)+titled(r.Title), actionCell(*r), a.since(r.Since), strings.Join(r.Ports, listGap), strings.Join(r.Peers, ", "))
		}
		return a.renderOr(g, "every rule in use has decided about packets")
	})
}

// deliverRules prints rules that all nodes together have made of their answers: for programs one list.
func (a *app) deliverRules(all answers[localapi.Rules], rules []*localapi.Rule, lay func() string) error {
	list := []localapi.Rule{}
	for _, r := range rules {
		list = append(list, *r)
	}
	failed := answers[[]localapi.Rule]{one: true, nodes: []answer[[]localapi.Rule]{{Value: list}}}
	for _, n := range all.nodes {
		if n.Err != nil {
			failed.nodes = append(failed.nodes, answer[[]localapi.Rule]{Node: n.Node, Err: n.Err})
		}
	}
	return deliver(a, failed, lay)
}

func (a *app) policyShadowedCmd() *cobra.Command {
	var filter policyFilter
	cmd := &cobra.Command{
		Use:   "shadowed",
		Short: "List rules that can never decide, and what decides in their place",
		Long: `Lists rules that change nothing wherever they are in use: one that is asked before them, or that wins over them, matches everything
they match; or, in the baseline tier, a policy isolates all that they are about. Each rule is compared with one other at a time: not
all such rules are found, and none is listed that could decide.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := filter.checked()
			if err != nil {
				return err
			}
			return a.policyShadowed(cmd.Context(), filter)
		},
	}
	a.addPolicyFilter(cmd, &filter)
	return cmd
}

func (a *app) policyShadowed(ctx context.Context, filter policyFilter) error {
	all, err := ask(ctx, a, question[[]localapi.Rule]{
		args: append([]string{"policy", "shadowed"}, filter.args()...),
		local: func(ctx context.Context, c *localapi.Client) ([]localapi.Rule, error) {
			rules, err := c.Rules(ctx, true)
			return slices.DeleteFunc(rules.Rules, func(r localapi.Rule) bool { return r.Shadowed == nil || filter.rejects(r.PolicyName) }), err
		},
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string {
		g := &grid{columns: columns("RULE", "ACTION", "SHADOWED BY", "PORTS", "PEERS")}
		for _, r := range joinRules(all) {
			g.add(rulePlace(r.RuleName, true)+titled(r.Title), actionCell(*r), rulePlace(*r.Shadowed, r.Shadowed.PolicyName != r.PolicyName),
				strings.Join(r.Ports, listGap), strings.Join(r.Peers, ", "))
		}
		return a.renderOr(g, "every rule can decide, as far as comparing them in pairs shows")
	})
}
