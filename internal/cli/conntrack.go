package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// connectionMap is the table of connections.
const connectionMap = "strait_ct"

func (a *app) conntrackCmd() *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use:   "conntrack [POD|ADDRESS[:PORT]]",
		Short: "List connections as the kernel tracks them, with the names of their pods",
		Long: `Lists the connections that the kernel tracks (the map strait_ct), all of them or those of one pod or address. POD is [NAMESPACE/]NAME, default
namespace "default"; addresses of pods are printed as their names, strait bpf dump strait_ct prints them as they are.

A service is no end of a connection: FRONT is the service address that the beginner knows the other end by, NAT the address that stands for the
beginner outside.`,
		Example: "  strait conntrack shop/web-1\n  strait conntrack 10.96.0.10:53\n  strait conntrack --limit 100 -o json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeEnds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.conntrack(cmd.Context(), strings.Join(args, ""), limit)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "print at most so many connections per node, 0 for all")
	return cmd
}

func (a *app) conntrack(ctx context.Context, end string, limit int) error {
	if limit < 0 {
		return usage("--limit %d: want a number of connections, 0 or more", limit)
	}
	args := []string{"conntrack", fmt.Sprintf("--limit=%d", limit)}
	if end != "" {
		args = append(args, end)
	}
	all, err := ask(ctx, a, question[localapi.MapDump]{
		args: args,
		local: func(ctx context.Context, c *localapi.Client) (localapi.MapDump, error) {
			return connections(ctx, c, end, limit)
		},
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string {
		g, omitted := entries(all)
		text := a.renderOr(g, "no connections")
		if omitted > 0 {
			text += fmt.Sprintf("and %d more\n", omitted)
		}
		return text
	})
}

// connections are those of an end, with the names of pods.
func connections(ctx context.Context, c *localapi.Client, end string, limit int) (localapi.MapDump, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return localapi.MapDump{}, err
	}
	match, err := addressesOf(end, pods)
	if err != nil {
		return localapi.MapDump{}, err
	}
	dump, err := c.DumpMap(ctx, connectionMap, limit, match...)
	if err != nil {
		return dump, err
	}
	names := map[netip.Addr]string{}
	for _, p := range pods {
		for _, addr := range p.Addresses {
			if !p.HostNetwork {
				names[addr] = p.Namespace + "/" + p.Name
			}
		}
	}
	for _, row := range dump.Rows {
		for i, cell := range row {
			if at, err := netip.ParseAddrPort(cell); err == nil && names[at.Addr()] != "" {
				row[i] = fmt.Sprintf("%s:%d", names[at.Addr()], at.Port())
			}
		}
	}
	return dump, nil
}

// addressesOf are the words a row has to have one of; none: every row will do.
func addressesOf(end string, pods []localapi.PodRow) ([]string, error) {
	if end == "" {
		return nil, nil
	}
	if at, err := netip.ParseAddrPort(end); err == nil {
		return []string{at.String()}, nil
	}
	if addr, err := netip.ParseAddr(end); err == nil {
		return []string{addr.String()}, nil
	}
	var names []string
	for _, p := range pods {
		name := p.Namespace + "/" + p.Name
		if name != qualified(end) {
			names = append(names, name)
			continue
		}
		if p.HostNetwork || len(p.Addresses) == 0 {
			return nil, usage("pod %q has no address of its own: name its node's address", name)
		}
		var out []string
		for _, addr := range p.Addresses {
			out = append(out, addr.String())
		}
		return out, nil
	}
	slices.Sort(names)
	return nil, unknown("pod", qualified(end), "", names)
}
