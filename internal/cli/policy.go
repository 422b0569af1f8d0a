package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// policyKinds are the kinds of objects with policies in them; those of cluster scope have no namespace.
var policyKinds = []string{"NetworkPolicy", "ClusterNetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"}

func (a *app) policyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Policies as the kernel enforces them, and what they decide",
		Example: `  strait policy list                               what is enforced, what is refused and why
  strait policy show shop/db                       one policy: its rules, and what they have let pass or stopped
  strait policy verdict shop/web-1 shop/db-0:5432  may they talk, and which rule says so
  strait policy top --denied                       what is being denied right now
  strait policy unused                             rules that no packet needs`,
	}
	cmd.AddCommand(a.policyListCmd(), a.policyShowCmd(), a.policyRulesCmd(), a.policyTopCmd(), a.policyUnusedCmd(), a.policyShadowedCmd(),
		a.policyVerdictCmd())
	return cmd
}

// policyFilter chooses rows of a list of policies. Zero values choose everything.
type policyFilter struct{ namespace, kind string }

func (f policyFilter) args() (out []string) {
	if f.namespace != "" {
		out = append(out, "--namespace="+f.namespace)
	}
	if f.kind != "" {
		out = append(out, "--kind="+f.kind)
	}
	return out
}

func (f policyFilter) rejects(n localapi.PolicyName) bool {
	return f.namespace != "" && n.Namespace != f.namespace || f.kind != "" && n.Kind != f.kind
}

// nothing says that there is nothing of what was asked for.
func (f policyFilter) nothing(what string) string {
	if f == (policyFilter{}) {
		return "no " + what
	}
	return "no " + what + " that are " + strings.ReplaceAll(strings.Join(f.args(), " "), "--", "")
}

func (a *app) addPolicyFilter(cmd *cobra.Command, f *policyFilter) {
	flags := cmd.Flags()
	flags.StringVarP(&f.namespace, "namespace", "n", "", "only policies of this namespace")
	flags.StringVar(&f.kind, "kind", "", "only this kind: "+strings.Join(policyKinds, ", "))
	a.complete(cmd, "kind", fixed(policyKinds...))
}

// checked replaces the kind by how it is written.
func (f policyFilter) checked() (policyFilter, error) {
	if f.kind == "" {
		return f, nil
	}
	kinds := kindsCalled(f.kind)
	if len(kinds) == 1 {
		f.kind = kinds[0]
		return f, nil
	}
	if len(kinds) > 1 {
		return f, usage("--kind %q is short for %s: say which", f.kind, strings.Join(kinds, " and "))
	}
	return f, unknown("kind", f.kind, " of policy", policyKinds)
}

// kindsCalled returns the kinds that a word means: the kind in any case, its plural, or what kubectl calls it.
func kindsCalled(word string) []string {
	word = strings.ToLower(word)
	short := map[string][]string{"netpol": policyKinds[:1], "cnp": policyKinds[1:3], "ccnp": policyKinds[3:]}
	if kinds, ok := short[word]; ok {
		return kinds
	}
	for _, k := range policyKinds {
		lower := strings.ToLower(k)
		if word == lower || word == strings.TrimSuffix(lower, "y")+"ies" {
			return []string{k}
		}
	}
	return nil
}

func (a *app) policyListCmd() *cobra.Command {
	var filter policyFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List policies of all kinds, those that are refused first",
		Long: `Lists the policies of all kinds: those that are refused, or not in the kernel, first, then in the order in which they decide (admin by
priority, normal, baseline by priority). PODS are those that a policy selects on this node; ALLOWED and DENIED are the packets that its rules
have decided about, those of established connections included, since the rules are in the kernel. With audit, they are the packets that the
rules would have decided about where they differ from what is enforced.

From outside a node, pods and packets are summed over the nodes; a state that is not the same everywhere says where it is.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.policyList(cmd.Context(), filter) },
	}
	a.addPolicyFilter(cmd, &filter)
	return cmd
}

func (a *app) askPolicies(ctx context.Context, filter policyFilter) (answers[[]localapi.Policy], error) {
	return ask(ctx, a, question[[]localapi.Policy]{
		args: append([]string{"policy", "list"}, filter.args()...),
		local: func(ctx context.Context, c *localapi.Client) ([]localapi.Policy, error) {
			rows, err := c.Policies(ctx)
			return slices.DeleteFunc(rows, func(p localapi.Policy) bool { return filter.rejects(p.PolicyName) }), err
		},
	})
}

func (a *app) policyList(ctx context.Context, filter policyFilter) error {
	filter, err := filter.checked()
	if err != nil {
		return err
	}
	all, err := a.askPolicies(ctx, filter)
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.policiesText(all, filter.nothing("policies")) })
}

// policiesText names what is wrong first, as strait status does.
func (a *app) policiesText(all answers[[]localapi.Policy], nothing string) string {
	v := &screen{app: a}
	joined := joinPolicies(all)
	var problems []localapi.Problem
	for _, j := range joined {
		problems = append(problems, j.problems(j.String()+": ")...)
	}
	more := len(problems) - namedPolicies
	if more > 0 && a.output != formatWide {
		problems = problems[:namedPolicies]
	}
	v.problems(problems)
	if more > 0 && a.output != formatWide {
		fmt.Fprintf(&v.b, "  and %d more: see STATE below; -o wide tells of all of them\n\n", more)
	}
	return v.b.String() + a.renderOr(policyGrid(all, joined), nothing)
}

// namedPolicies is how many policies that are not in force are told of in front of a list.
const namedPolicies = 10

// problems says why a policy is not in force.
func (j *joinedPolicy) problems(subject string) (out []localapi.Problem) {
	for _, text := range j.errors {
		p := localapi.Problem{Severity: localapi.SeverityError, Text: text, Subject: subject + "not in the kernel",
			Action: "the pods concerned keep what they had; it is tried again by itself"}
		if j.State == localapi.PolicyRefused {
			p.Subject, p.Action = fmt.Sprintf("%sgeneration %d is refused", subject, j.Generation), j.inForce()+"; correct the object"
		}
		out = append(out, p)
	}
	return out
}

// joinedPolicy is a policy as all nodes together have it.
type joinedPolicy struct {
	localapi.Policy
	states map[string][]string // nodes by state
	errors []string            // each once
	uneven bool                // Enforced, the newest generation that a node has in force, is not that of all nodes
}

// joinPolicies sums what the nodes say, in the order of the first that has the worst to tell.
func joinPolicies(all answers[[]localapi.Policy]) []*joinedPolicy {
	var order []*joinedPolicy
	byName := map[localapi.PolicyName]*joinedPolicy{}
	for _, n := range all.nodes {
		for _, p := range n.Value {
			j := byName[p.PolicyName]
			if j == nil {
				j = &joinedPolicy{Policy: p, states: map[string][]string{}}
				byName[p.PolicyName] = j
				order = append(order, j)
			} else {
				j.Pods += p.Pods
				j.uneven = j.uneven || p.Enforced != j.Enforced
				j.Enforced = max(j.Enforced, p.Enforced)
				j.Allowed, j.Denied = j.Allowed.Add(p.Allowed), j.Denied.Add(p.Denied)
				if badState(p.State) > badState(j.State) {
					j.State = p.State
				}
			}
			j.states[p.State] = append(j.states[p.State], n.Node)
			if p.Error != "" && !slices.Contains(j.errors, p.Error) {
				j.errors = append(j.errors, p.Error)
			}
		}
	}
	slices.SortStableFunc(order, func(x, y *joinedPolicy) int {
		troubled := func(j *joinedPolicy) int { return max(badState(j.State), 1) }
		return cmp.Compare(troubled(y), troubled(x))
	})
	return order
}

// badState orders states by how much a person has to know of them.
func badState(state string) int {
	return slices.Index([]string{localapi.PolicyEnforced, localapi.PolicyAudited, localapi.PolicyOff, localapi.PolicyFailed, localapi.PolicyRefused}, state)
}

func policyGrid(all answers[[]localapi.Policy], joined []*joinedPolicy) *grid {
	g := &grid{columns: columns("KIND", "NAMESPACE", "NAME", "TIER", "PODS#", "RULES#", "ALLOWED#", "DENIED#", "+GENERATION#", "STATE")}
	for _, j := range joined {
		g.add(j.Kind, j.Namespace, j.Name, tierOf(j.Policy), strconv.Itoa(j.Pods), strconv.Itoa(j.Rules), some(j.Allowed.Packets), some(j.Denied.Packets),
			strconv.FormatInt(j.Generation, 10), j.state(all))
	}
	return g
}

// some prints a count, and nothing for 0: what has happened is to be seen at a glance.
func some(n uint64) string {
	if n == 0 {
		return ""
	}
	return short(n)
}

// tierOf is "admin 10", "normal", or nothing when nothing of the policy is enforced.
func tierOf(p localapi.Policy) string {
	if p.Priority == nil {
		return p.Tier
	}
	return p.Tier + " " + strconv.Itoa(int(*p.Priority))
}

// state says in a word how the policy is, and where if that is not the same everywhere.
func (j *joinedPolicy) state(all answers[[]localapi.Policy]) cell {
	where := ""
	if nodes := j.states[j.State]; !all.one && len(j.states) > 1 {
		where = " on " + strings.Join(nodes, ",")
		if len(nodes) > 3 {
			where = fmt.Sprintf(" on %s", plural(len(nodes), "node"))
		}
	}
	switch j.State {
	case localapi.PolicyRefused:
		return cell{text: "refused" + where, style: red}
	case localapi.PolicyFailed:
		return cell{text: "not in the kernel" + where, style: red}
	case localapi.PolicyOff:
		return cell{text: "off" + where + " (the mode is never)", style: yellow}
	case localapi.PolicyAudited:
		return cell{text: "audited" + where, style: yellow}
	}
	if j.Pods == 0 {
		what := "selects no pod"
		if j.Host {
			what = "selects no node"
			if all.one {
				what = "does not select this node"
			}
		} else if all.one {
			what += " here"
		}
		return cell{text: what, style: faint}
	}
	return cell{text: "enforced" + where, style: green}
}

// inForce says what holds in place of a refused generation.
func (j *joinedPolicy) inForce() string {
	switch {
	case j.Enforced == 0:
		return "nothing of it is enforced"
	case j.uneven:
		return fmt.Sprintf("generation %d stays in force, on some nodes an older one or none", j.Enforced)
	}
	return fmt.Sprintf("generation %d stays in force", j.Enforced)
}

// wantedPolicy is how a person names a policy: the kind may be left out, the namespace as well.
type wantedPolicy struct {
	text            string
	kinds           []string // empty: every kind
	namespace, name string
	free            bool // the namespace was not said: the default one, or none
}

// policyName reads KIND/NAMESPACE/NAME, KIND/NAME, NAMESPACE/NAME or NAME.
func policyName(text, flag string) (wantedPolicy, error) {
	w := wantedPolicy{text: text}
	parts := strings.Split(text, "/")
	if slices.Contains(parts, "") || len(parts) > 3 {
		return w, usage("policy %q: want [KIND/][NAMESPACE/]NAME", text)
	}
	if len(parts) == 3 || len(parts) == 2 && len(kindsCalled(parts[0])) > 0 {
		if w.kinds = kindsCalled(parts[0]); len(w.kinds) == 0 {
			return w, unknown("kind", parts[0], " of policy", policyKinds)
		}
		parts = parts[1:]
	}
	w.name = parts[len(parts)-1]
	switch {
	case len(parts) == 1:
		w.namespace, w.free = cmp.Or(flag, "default"), flag == ""
	case flag != "" && flag != parts[0]:
		return w, usage("policy %q is not in the namespace of --namespace %s", text, flag)
	default:
		w.namespace = parts[0]
	}
	return w, nil
}

func (w wantedPolicy) is(n localapi.PolicyName) bool {
	return n.Name == w.name && (n.Namespace == w.namespace || w.free && n.Namespace == "") && (len(w.kinds) == 0 || slices.Contains(w.kinds, n.Kind))
}

// among returns the one policy that is meant. Errors name those that are near, or all that are meant.
func (w wantedPolicy) among(rows []localapi.Policy) (localapi.PolicyName, error) {
	var found []localapi.PolicyName
	for _, p := range rows {
		if w.is(p.PolicyName) {
			found = append(found, p.PolicyName)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return localapi.PolicyName{}, w.missing(rows)
	}
	var texts []string
	for _, n := range found {
		texts = append(texts, pathOf(n))
	}
	return localapi.PolicyName{}, usage("policy %q is the name of several: %s", w.text, strings.Join(texts, ", "))
}

// missing names the policies that a person may have meant: of the same name elsewhere, or of a name that is near.
func (w wantedPolicy) missing(rows []localapi.Policy) error {
	var same, near, names []string
	for _, p := range rows {
		names = append(names, p.Name)
	}
	best := nearest(w.name, names)
	for _, p := range rows {
		switch p.Name {
		case w.name:
			same = append(same, pathOf(p.PolicyName))
		case best:
			near = append(near, pathOf(p.PolicyName))
		}
	}
	text := "no such policy"
	switch {
	case len(same) > 0:
		text += "; there is " + strings.Join(same, ", ")
	case len(near) > 0:
		text += "; did you mean " + strings.Join(near, ", ") + "?"
	case len(rows) == 0:
		text += "; there are no policies at all"
	default:
		text += "; see strait policy list"
	}
	return usage("policy %q: %s", w.text, text)
}

// pathOf is how a policy is named on the command line.
func pathOf(n localapi.PolicyName) string {
	if n.Namespace == "" {
		return n.Kind + "/" + n.Name
	}
	return n.Kind + "/" + n.Namespace + "/" + n.Name
}

// completePolicy offers the policies of the first node that answers.
func (a *app) completePolicy(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.timeout = completionLimit
	all, err := a.askPolicies(cmd.Context(), policyFilter{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, j := range joinPolicies(all) {
		out = append(out, pathOf(j.PolicyName))
	}
	slices.Sort(out)
	return out, cobra.ShellCompDirectiveNoFileComp
}
