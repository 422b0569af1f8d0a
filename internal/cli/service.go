package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

func (a *app) serviceCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Short: "Services as the kernel balances them"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List frontends with their backends",
		Long: `Lists each address and port services answer on, and the backends a new connection can get. From outside a node, frontends
that are the same on all nodes are printed once; ids are a node's own and then left out.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serviceList(cmd.Context()) },
	})
	return cmd
}

func (a *app) serviceList(ctx context.Context) error {
	all, err := ask(ctx, a, question[[]localapi.Service]{
		args:  []string{"service", "list"},
		local: func(ctx context.Context, c *localapi.Client) ([]localapi.Service, error) { return c.Services(ctx) },
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.renderOr(frontends(all), "no services") })
}

func frontends(all answers[[]localapi.Service]) *grid {
	if !all.one {
		for _, n := range all.nodes {
			for i := range n.Value {
				n.Value[i].ID = 0 // a node's own number: it would keep equal frontends apart
			}
		}
	}
	rows := merge(all)
	if !all.one {
		slices.SortStableFunc(rows, func(x, y row[localapi.Service]) int { return x.value.Frontend.Compare(y.value.Frontend) })
	}
	g := &grid{columns: columns("ID#", "FRONTEND", "SERVICE TYPE", "BACKEND", "+SERVICE", "ON", "STATE", "ERROR")}
	for _, r := range rows {
		s := r.value
		state := worst(map[string]bool{s.Status: true})
		if state.style == green {
			state = cell{} // said only when it is not so
		}
		g.add(id(s.ID), s.Frontend.String()+"/"+s.Protocol, s.Type, backends(s.Backends), s.Namespace+"/"+s.Name, r.on, state, cell{text: s.Error, style: red})
	}
	return g
}

// backends prints "1 => ip:port (active)", a line each.
func backends(all []localapi.Backend) string {
	var lines []string
	for i, b := range all {
		lines = append(lines, fmt.Sprintf("%d => %s (%s)", i+1, b.Address, b.State))
	}
	if len(lines) == 0 {
		return "none: connections are refused"
	}
	return strings.Join(lines, "\n")
}
