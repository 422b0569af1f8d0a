package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

func (a *app) checkCmd() *cobra.Command {
	repair := false
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare what Kubernetes says, what the agent believes and what the kernel holds",
		Long: `Compares API, model and kernel now: the tables of policy row by row, addresses with live sandboxes, and what the controllers of routes,
remotes and services have found when they last looked. Nothing is changed; the agent repairs such differences by itself within a minute. With
--repair they are repaired at once.

Exit code 1 when something differs and was not repaired.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.check(cmd.Context(), repair) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "repair what differs")
	return cmd
}

func (a *app) check(ctx context.Context, repair bool) error {
	args := []string{"check"}
	if repair {
		args = append(args, "--repair")
	}
	all, err := ask(ctx, a, question[localapi.Check]{
		args:  args,
		local: func(ctx context.Context, c *localapi.Client) (localapi.Check, error) { return c.Check(ctx, repair) },
	})
	if err != nil {
		return err
	}
	if err := deliver(a, all, func() string { return a.checkText(all, repair) }); err != nil {
		return err
	}
	for _, n := range all.nodes {
		if slices.ContainsFunc(n.Value.Differences, func(d localapi.Difference) bool { return !d.Repaired }) {
			return &exitError{ExitProblems, nil}
		}
	}
	return nil
}

func (a *app) checkText(all answers[localapi.Check], repair bool) string {
	g := &grid{columns: columns("ON", "TABLE", "KEY", "REPAIRED", "DIFFERENCE")}
	var pods, policies, rows, nodes, open int
	var took time.Duration
	for _, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		nodes++
		pods += n.Value.Pods
		policies = max(policies, n.Value.Policies)
		rows += n.Value.Rows
		took = max(took, n.Value.Took)
		for _, d := range n.Value.Differences {
			repaired := cell{text: yes(d.Repaired), style: green}
			if !d.Repaired {
				repaired.style = red
				open++
			}
			g.add(n.Node, d.Table, d.Key, repaired, d.Text)
		}
	}
	where := ""
	if !all.one {
		where = " on " + plural(nodes, "node")
	}
	what := fmt.Sprintf("%s, %s, %s compared%s in %v", plural(pods, "pod"), policyPlural(policies), plural(rows, "row"), where, took.Round(time.Millisecond))
	if len(g.rows) == 0 {
		return a.paint(green, "ok") + ": API, model and kernel agree: " + what + "\n" + a.checkedTables(all)
	}
	head, hint := a.paint(red, plural(open, "difference")), ""
	switch {
	case open == 0:
		head = a.paint(green, plural(len(g.rows), "difference")+", all repaired")
	case !repair:
		hint = "\nThe agent repairs such differences by itself within a minute; strait check --repair does at once.\n"
	default:
		head += " not repaired"
	}
	return head + "; " + what + "\n\n" + a.render(g) + hint + a.checkedTables(all)
}

// checkedTables lists with -o wide what has been compared.
func (a *app) checkedTables(all answers[localapi.Check]) string {
	if a.output != formatWide {
		return ""
	}
	g := &grid{columns: columns("ON", "TABLE", "ROWS#", "DIFFERENCES#", "COMPARED")}
	for _, n := range all.nodes {
		for _, t := range n.Value.Tables {
			when := "now"
			if !t.Compared.IsZero() {
				when = a.age(t.Compared) + " ago"
			}
			g.add(n.Node, t.Name, strconv.Itoa(t.Rows), strconv.Itoa(t.Differences), when)
		}
	}
	return "\n" + a.render(g)
}

func policyPlural(n int) string {
	if n == 1 {
		return "1 policy"
	}
	return strconv.Itoa(n) + " policies"
}
