package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// serviceTypes are what a row of strait service list can be.
var serviceTypes = []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort", "ExternalName", "Headless"}

func (a *app) serviceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Services as the kernel balances them",
		Example: `  strait service list -n shop --type NodePort   frontends, and who answers on them
  strait service show shop/web                  one service: who is behind it, who is not and why
  strait service rules shop/web --as iptables   the same as kube-proxy would have written it`,
	}
	cmd.AddCommand(a.serviceListCmd(), a.serviceShowCmd(), a.serviceRulesCmd())
	return cmd
}

// serviceFilter chooses rows of a list of services. Zero values choose everything.
type serviceFilter struct {
	namespace, kind, name string
	port                  uint16
}

func (a *app) serviceListCmd() *cobra.Command {
	var filter serviceFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List frontends with their backends",
		Long: `Lists each address and port services answer on, and the backends a new connection can get. 0.0.0.0 and [::] stand for every
address of the node; the rows below them, with the same id, are this node's addresses one by one. Services without a frontend are
listed with what serves them instead. With -o wide also how a backend is chosen, policies, and the kernel's backend set.

From outside a node, frontends that are the same on all nodes are printed once; ids are a node's own and then left out, as are the rows
of single node addresses.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serviceList(cmd.Context(), filter) },
	}
	f := cmd.Flags()
	f.StringVarP(&filter.namespace, "namespace", "n", "", "only services of this namespace")
	f.StringVar(&filter.kind, "type", "", "only this type: "+strings.Join(serviceTypes, ", "))
	f.StringVar(&filter.name, "name", "", "only services of this name")
	f.Uint16Var(&filter.port, "port", 0, "only frontends with this port")
	a.complete(cmd, "type", fixed(serviceTypes...))
	return cmd
}

func (f serviceFilter) args() (out []string) {
	for flag, value := range map[string]string{"--namespace": f.namespace, "--type": f.kind, "--name": f.name} {
		if value != "" {
			out = append(out, flag+"="+value)
		}
	}
	slices.Sort(out)
	if f.port != 0 {
		out = append(out, "--port="+strconv.Itoa(int(f.port)))
	}
	return out
}

func (f serviceFilter) rejects(s localapi.Service) bool {
	return f.namespace != "" && s.Namespace != f.namespace || f.name != "" && s.Name != f.name || f.kind != "" && s.Type != f.kind ||
		f.port != 0 && s.Frontend.Port() != f.port
}

// askServices returns the rows the filter lets through, of every node asked.
func (a *app) askServices(ctx context.Context, filter serviceFilter) (answers[[]localapi.Service], error) {
	if i := slices.IndexFunc(serviceTypes, func(t string) bool { return strings.EqualFold(t, filter.kind) }); i >= 0 {
		filter.kind = serviceTypes[i]
	} else if filter.kind != "" {
		return answers[[]localapi.Service]{}, unknown("type", filter.kind, " of service", serviceTypes)
	}
	return ask(ctx, a, question[[]localapi.Service]{
		args: append([]string{"service", "list"}, filter.args()...),
		local: func(ctx context.Context, c *localapi.Client) ([]localapi.Service, error) {
			rows, err := c.Services(ctx)
			return slices.DeleteFunc(rows, filter.rejects), err
		},
	})
}

func (a *app) serviceList(ctx context.Context, filter serviceFilter) error {
	all, err := a.askServices(ctx, filter)
	if err != nil {
		return err
	}
	nothing := "no services"
	if filter != (serviceFilter{}) {
		nothing = "no services that are " + strings.ReplaceAll(strings.Join(filter.args(), " "), "--", "")
	}
	return deliver(a, all, func() string { return a.renderOr(frontends(all), nothing) })
}

// common takes away what only one node knows: its numbers, its connections, its addresses.
func common(all answers[[]localapi.Service]) answers[[]localapi.Service] {
	if all.one {
		return all
	}
	out := answers[[]localapi.Service]{nodes: slices.Clone(all.nodes)}
	for i, n := range out.nodes {
		out.nodes[i].Value = nil
		for _, s := range n.Value {
			if s.Of != nil {
				continue
			}
			s.ID, s.Set, s.OuterSet = 0, 0, 0
			s.Backends, s.Outer = withoutLoad(s.Backends), withoutLoad(s.Outer)
			out.nodes[i].Value = append(out.nodes[i].Value, s)
		}
	}
	return out
}

func withoutLoad(all []localapi.Backend) []localapi.Backend {
	all = slices.Clone(all)
	for i := range all {
		all[i].Open = 0
	}
	return all
}

func frontends(all answers[[]localapi.Service]) *grid {
	rows := merge(common(all))
	if !all.one {
		slices.SortStableFunc(rows, func(x, y row[localapi.Service]) int { return compareServices(x.value, y.value) })
	}
	g := &grid{columns: columns("ID#", "FRONTEND", "SERVICE TYPE", "BACKEND", "SERVICE", "+ALGORITHM", "+POLICIES", "+SET#", "ON", "STATE", "ERROR")}
	for _, r := range rows {
		s := r.value
		state := worst(map[string]bool{s.Status: true})
		if state.style == green {
			state = cell{} // said only when it is not so
		}
		name := s.Namespace + "/" + s.Name
		if s.Note != "" {
			g.add("", "", s.Type, s.Note, name, "", "", "", r.on, state, cell{text: s.Error, style: red})
			continue
		}
		g.add(id(s.ID), s.Frontend.String()+"/"+s.Protocol, s.Type, targets(s), name, s.Algorithm, policies(s), id(s.Set), r.on, state,
			cell{text: s.Error, style: red})
	}
	return g
}

// compareServices puts frontends in order of addresses, and services without one behind them.
func compareServices(x, y localapi.Service) int {
	if (x.Note == "") != (y.Note == "") {
		if x.Note == "" {
			return -1
		}
		return 1
	}
	if x.Note != "" {
		return strings.Compare(x.Namespace+"/"+x.Name, y.Namespace+"/"+y.Name)
	}
	return x.Frontend.Compare(y.Frontend)
}

// targets prints "1 => ip:port (active)", a line each; those of clients outside apart where they are others.
func targets(s localapi.Service) string {
	lines := backends(s.Backends)
	switch {
	case len(lines) > 0:
	case s.InternalLocal:
		lines = []string{"none on this node (policy Local): refused"}
	default:
		lines = []string{"none: connections are refused"}
	}
	if s.ExternalLocal && !sameBackends(s.Backends, s.Outer) {
		lines = append(lines, "from outside (policy Local):")
		if len(s.Outer) == 0 {
			lines = append(lines, "none on this node: dropped")
		}
		lines = append(lines, backends(s.Outer)...)
	}
	return strings.Join(lines, "\n")
}

func sameBackends(x, y []localapi.Backend) bool { return slices.Equal(withoutLoad(x), withoutLoad(y)) }

func backends(all []localapi.Backend) (lines []string) {
	for i, b := range all {
		weight := ""
		if b.Weight > 1 {
			weight = fmt.Sprintf(", weight %d", b.Weight)
		}
		lines = append(lines, fmt.Sprintf("%d => %s (%s%s)", i+1, b.Address, b.State, weight))
	}
	return lines
}

// policies prints what is not as it is by default.
func policies(s localapi.Service) string {
	var out []string
	if s.InternalLocal {
		out = append(out, "internal:Local")
	}
	if s.ExternalLocal {
		out = append(out, "external:Local")
	}
	if s.AffinitySeconds > 0 {
		out = append(out, "affinity:"+span(s.AffinitySeconds))
	}
	if s.Forwarding == "dsr" {
		out = append(out, s.Forwarding)
	}
	if len(s.SourceRanges) > 0 {
		out = append(out, "sources:"+plural(len(s.SourceRanges), "range"))
	}
	return strings.Join(out, listGap)
}

// span prints seconds with the units that are not zero: "3h", "1h30m".
func span(seconds uint32) string {
	text := (time.Duration(seconds) * time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// completeService offers the services of the first node that answers, as NAMESPACE/NAME.
func (a *app) completeService(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.timeout = completionLimit
	all, err := a.askServices(cmd.Context(), serviceFilter{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, n := range all.nodes {
		for _, s := range n.Value {
			out = append(out, s.Namespace+"/"+s.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
}
