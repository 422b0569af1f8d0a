package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// objects is what strait bpf list prints.
type objects struct {
	Programs []localapi.Program `json:"programs"`
	Maps     []localapi.Map     `json:"maps"`
}

func (a *app) bpfCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "bpf", Short: "Programs and maps in the kernel"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List attached programs, and maps with how full they are",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.bpfList(cmd.Context()) },
	})
	limit, match := 0, []string(nil)
	dump := &cobra.Command{
		Use:     "dump MAP",
		Short:   "Print the entries of a map",
		Example: "  strait bpf dump strait_ipcache\n  strait bpf dump strait_ct --limit 100\n  strait bpf dump strait_nat --match 10.244.1.7",
		Args:    exactArgs("MAP"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.bpfDump(cmd.Context(), args[0], limit, match) },
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.mapNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
		},
	}
	dump.Flags().IntVar(&limit, "limit", 0, "print at most so many entries per node, 0 for all")
	dump.Flags().StringSliceVar(&match, "match", nil, "only entries with this address (with any port), or with a column of just this text")
	cmd.AddCommand(dump)
	return cmd
}

func (a *app) bpfList(ctx context.Context) error {
	all, err := ask(ctx, a, question[objects]{
		args:   []string{"bpf", "list"},
		local:  localObjects,
		kernel: kernelObjects,
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string {
		var b strings.Builder
		for _, n := range all.nodes {
			if n.Err != nil {
				continue
			}
			if b.Len() > 0 {
				b.WriteString("\n")
			}
			if !all.one {
				b.WriteString(a.paint(bold, "Node "+n.Node) + "\n")
			}
			b.WriteString(a.render(programGrid(n.Value.Programs)) + "\n" + a.render(mapGrid(n.Value.Maps)))
		}
		return b.String()
	})
}

func localObjects(ctx context.Context, c *localapi.Client) (objects, error) {
	s, err := c.Status(ctx)
	return objects{s.Programs, s.Maps}, err
}

func (a *app) bpfDump(ctx context.Context, name string, limit int, match []string) error {
	if limit < 0 {
		return usage("--limit %d: want a number of entries, 0 or more", limit)
	}
	all, err := ask(ctx, a, question[localapi.MapDump]{
		args: append([]string{"bpf", "dump", name, fmt.Sprintf("--limit=%d", limit)}, flagsOf("match", match)...),
		local: func(ctx context.Context, c *localapi.Client) (localapi.MapDump, error) {
			dump, err := c.DumpMap(ctx, name, limit, match...)
			if errors.Is(err, localapi.ErrNotFound) {
				err = unknownMap(ctx, c, name, err)
			}
			return dump, err
		},
		kernel: func() (localapi.MapDump, error) { return kernelDump(name, limit, match...) },
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string {
		g, omitted := entries(all)
		empty := name + " is empty"
		if len(match) > 0 {
			empty = "no entry of " + name + " matches"
		}
		text := a.renderOr(g, empty)
		if omitted > 0 {
			text += fmt.Sprintf("and %d more\n", omitted)
		}
		return text
	})
}

func entries(all answers[localapi.MapDump]) (g *grid, omitted int) {
	g = &grid{}
	for _, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		if g.columns == nil {
			g.columns = columns("ON")
			for _, title := range n.Value.Columns {
				g.columns = append(g.columns, column{title: strings.ToUpper(title)})
			}
		}
		on := n.Node
		if all.one {
			on = ""
		}
		for _, r := range n.Value.Rows {
			fields := []any{on}
			for _, f := range r {
				fields = append(fields, f)
			}
			g.add(fields[:min(len(fields), len(g.columns))]...)
		}
		omitted += n.Value.Omitted
	}
	return g, omitted
}

// unknownMap names the maps there are. When even those cannot be had, the agent's words have to do.
func unknownMap(ctx context.Context, c *localapi.Client, name string, why error) error {
	maps, err := c.Maps(ctx)
	if err != nil {
		return why
	}
	var exist []string
	for _, m := range maps {
		exist = append(exist, m.Name)
	}
	slices.Sort(exist)
	return unknown("map", name, "", exist)
}

// flagsOf writes a flag that may be given several times.
func flagsOf(name string, values []string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = "--" + name + "=" + v
	}
	return out
}
