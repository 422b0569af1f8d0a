package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

func (a *app) ipamCmd() *cobra.Command {
	fix := false
	check := &cobra.Command{
		Use:   "check",
		Short: "Compare address records with live sandboxes",
		Long: `Compares the addresses the agent has given out with the sandboxes that live on the node. With --fix the addresses nobody
uses any more are taken back. Exit code 1 when something differs and was not repaired.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ipamCheck(cmd.Context(), fix) },
	}
	check.Flags().BoolVar(&fix, "fix", false, "repair what differs")
	cmd := &cobra.Command{Use: "ipam", Short: "Pods' addresses"}
	cmd.AddCommand(check)
	return cmd
}

func (a *app) ipamCheck(ctx context.Context, fix bool) error {
	args := []string{"ipam", "check"}
	if fix {
		args = append(args, "--fix")
	}
	all, err := ask(ctx, a, question[localapi.IPAMCheck]{
		args: args,
		local: func(ctx context.Context, c *localapi.Client) (localapi.IPAMCheck, error) {
			return c.CheckIPAM(ctx, fix)
		},
	})
	if err != nil {
		return err
	}
	if err := deliver(a, all, func() string { return a.findings(all) }); err != nil {
		return err
	}
	for _, n := range all.nodes {
		if count(n.Value.Findings, func(f localapi.IPAMFinding) bool { return !f.Fixed }) > 0 {
			return &exitError{ExitProblems, nil}
		}
	}
	return nil
}

func (a *app) findings(all answers[localapi.IPAMCheck]) string {
	g := &grid{columns: columns("ON", "ADDRESS", "OWNER", "FINDING", "FIXED")}
	checked := 0
	for _, n := range all.nodes {
		checked += n.Value.Checked
		for _, f := range n.Value.Findings {
			fixed := cell{text: yes(f.Fixed), style: green}
			if !f.Fixed {
				fixed.style = red
			}
			g.add(n.Node, f.Address, f.Owner, f.Text, fixed)
		}
	}
	return a.renderOr(g, a.paint(green, "ok")+": "+plural(checked, "address record")+", each of a live sandbox")
}
