package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// resource is a kind of row that strait get prints.
type resource struct {
	name  string
	short string
	run   func(ctx context.Context, a *app) error
}

func (a *app) resources() []resource {
	return append([]resource{
		{"nodes", "nodes of the cluster and the way to their pods", func(ctx context.Context, a *app) error {
			return show(ctx, a, "nodes", (*localapi.Client).Nodes, a.nodesGrid)
		}},
		{"endpoints", "interfaces of the pods of a node", func(ctx context.Context, a *app) error {
			return show(ctx, a, "endpoints", (*localapi.Client).Endpoints, a.endpointsGrid)
		}},
		{"services", "services and how many backends answer", func(ctx context.Context, a *app) error {
			return show(ctx, a, "services", (*localapi.Client).Services, a.servicesGrid)
		}},
		{"remotes", "who has which prefix, and the way there (the ipcache)", func(ctx context.Context, a *app) error {
			return show(ctx, a, "remotes", (*localapi.Client).Remotes, a.remotesGrid)
		}},
		{"routes", "routes Strait keeps in the node's stack", func(ctx context.Context, a *app) error {
			return show(ctx, a, "routes", (*localapi.Client).Routes, a.routesGrid)
		}},
		{"devices", "devices that carry cluster and outside traffic", func(ctx context.Context, a *app) error {
			return show(ctx, a, "devices", (*localapi.Client).Devices, a.devicesGrid)
		}},
	}, a.policyResources()...)
}

func (a *app) getCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get",
		Short: "List nodes, pods, policies, services, routes and so on as the agents have them",
		Long: `Lists what the agents have. From outside a node the rows of all nodes are merged: rows that are the same everywhere are
printed once, ON says on which nodes a row is.`,
	}
	for _, r := range a.resources() {
		cmd.AddCommand(&cobra.Command{
			Use:     r.name,
			Aliases: []string{singular(r.name)},
			Short:   "List " + r.short,
			Args:    exactArgs(),
			RunE:    func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context(), a) },
		})
	}
	return cmd
}

func singular(word string) string {
	if stem, ok := strings.CutSuffix(word, "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(word, "s")
}

// row is one line of several nodes' answers: which of them have it.
type row[T any] struct {
	value T
	on    string
}

// show asks for rows and prints them.
func show[T any](ctx context.Context, a *app, name string, get func(*localapi.Client, context.Context) ([]T, error), lay func([]row[T]) *grid) error {
	all, err := ask(ctx, a, question[[]T]{
		args:  []string{"get", name},
		local: func(ctx context.Context, c *localapi.Client) ([]T, error) { return get(c, ctx) },
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.renderOr(lay(merge(all)), "no "+name) })
}

// merge makes one row of equal rows of different nodes, in order of their first appearance.
func merge[T any](all answers[[]T]) []row[T] {
	type found struct {
		at    int
		nodes []string
	}
	seen := map[string]*found{}
	var rows []row[T]
	answered := 0
	for _, n := range all.nodes {
		if n.Err != nil {
			continue
		}
		answered++
		for _, v := range n.Value {
			key, err := json.Marshal(v)
			if err != nil {
				key = fmt.Appendf(nil, "%+v", v)
			}
			if f := seen[string(key)]; f != nil {
				f.nodes = append(f.nodes, n.Node)
				continue
			}
			seen[string(key)] = &found{len(rows), []string{n.Node}}
			rows = append(rows, row[T]{value: v})
		}
	}
	for _, f := range seen {
		switch {
		case all.one:
		case len(f.nodes) == answered && answered > 1:
			rows[f.at].on = "all"
		case len(f.nodes) > 3:
			rows[f.at].on = fmt.Sprintf("%d/%d", len(f.nodes), answered)
		default:
			rows[f.at].on = strings.Join(f.nodes, ",")
		}
	}
	return rows
}

func words[T fmt.Stringer](all []T) string {
	var out []string
	for _, x := range all {
		out = append(out, x.String())
	}
	return strings.Join(out, listGap)
}

// nodesGrid merges what the nodes say of a node: health is each one's own view.
func (a *app) nodesGrid(rows []row[localapi.Node]) *grid {
	type view struct {
		localapi.Node
		reached, asked int
		errors         []string
		via            []string
	}
	var order []string
	views := map[string]*view{}
	for _, r := range rows {
		n := r.value
		v := views[n.Name]
		if v == nil {
			v = &view{Node: n}
			views[n.Name] = v
			order = append(order, n.Name)
		}
		switch n.Health {
		case "reachable":
			v.reached++
			v.asked++
		case "unreachable":
			v.asked++
		}
		if n.Error != "" && !slices.Contains(v.errors, n.Error) {
			v.errors = append(v.errors, n.Error)
		}
		if n.Via != "" && !slices.Contains(v.via, n.Via) {
			v.via = append(v.via, n.Via)
		}
	}
	slices.Sort(order)
	g := &grid{columns: columns("NODE", "ADDRESSES", "POD CIDRS", "VIA", "HEALTH", "TAINT", "ERROR")}
	for _, name := range order {
		v := views[name]
		health := cell{text: v.Health, style: plain}
		switch {
		case v.asked == 0:
		case v.asked == 1 && v.reached == 0:
			health = cell{text: "unreachable", style: red}
		case v.reached < v.asked:
			health = cell{text: fmt.Sprintf("reached by %d/%d", v.reached, v.asked), style: red}
		default:
			health = cell{text: "reachable", style: green}
		}
		taint := cell{}
		if v.Tainted {
			taint = cell{text: "not-ready", style: yellow}
		}
		g.add(name, words(v.Addresses), words(v.PodCIDRs), strings.Join(v.via, "\n"), health, taint, cell{text: strings.Join(v.errors, "\n"), style: red})
	}
	return g
}

func (a *app) endpointsGrid(rows []row[localapi.Endpoint]) *grid {
	g := &grid{columns: columns("ON", "NAMESPACE", "POD", "ADDRESSES", "PHASE", "DEVICE", "+MTU#", "+MAC", "+CONTAINER", "AGE", "ERROR")}
	for _, r := range rows {
		e := r.value
		look := green
		switch e.Phase {
		case "degraded":
			look = red
		case "adding":
			look = yellow
		}
		g.add(r.on, e.Namespace, e.Pod, words(e.Addresses), cell{text: e.Phase, style: look}, e.Device, number(e.MTU), e.PodMAC, cut(e.ContainerID, 12),
			a.age(e.Since), cell{text: e.Error, style: red})
	}
	return g
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// servicesGrid has a line per service; its frontends are what strait service list prints.
func (a *app) servicesGrid(rows []row[localapi.Service]) *grid {
	type service struct {
		namespace, name, kind string
		addresses             []netip.Addr
		ports                 []string
		backends              map[netip.AddrPort]bool
		states                map[string]bool
		errors                []string
	}
	var order []*service
	byName := map[string]*service{}
	for _, r := range rows {
		f := r.value
		if f.Of != nil {
			continue // said by the row that stands for all addresses
		}
		s := byName[f.Namespace+"/"+f.Name]
		if s == nil {
			s = &service{namespace: f.Namespace, name: f.Name, kind: f.Type, backends: map[netip.AddrPort]bool{}, states: map[string]bool{}}
			byName[f.Namespace+"/"+f.Name] = s
			order = append(order, s)
		}
		if typeOrder(f.Type) > typeOrder(s.kind) {
			s.kind = f.Type
		}
		s.states[f.Status] = true
		if f.Note != "" {
			continue
		}
		if !f.Frontend.Addr().IsUnspecified() && !slices.Contains(s.addresses, f.Frontend.Addr()) {
			s.addresses = append(s.addresses, f.Frontend.Addr())
		}
		if port := fmt.Sprintf("%d/%s", f.Frontend.Port(), f.Protocol); !slices.Contains(s.ports, port) {
			s.ports = append(s.ports, port)
		}
		for _, b := range f.Backends {
			s.backends[b.Address] = true
		}
		if f.Error != "" && !slices.Contains(s.errors, f.Error) {
			s.errors = append(s.errors, f.Error)
		}
	}
	slices.SortFunc(order, func(x, y *service) int {
		return strings.Compare(x.namespace+"\x00"+x.name, y.namespace+"\x00"+y.name)
	})
	g := &grid{columns: columns("NAMESPACE", "NAME", "TYPE", "ADDRESSES", "PORTS", "BACKENDS#", "STATE", "ERROR")}
	for _, s := range order {
		n := pods(s.backends)
		backends := cell{text: strconv.Itoa(n), style: plain}
		switch {
		case len(s.ports) == 0:
			backends = cell{} // DNS or another proxy knows
		case n == 0:
			backends.style = yellow
		}
		slices.SortFunc(s.addresses, netip.Addr.Compare)
		g.add(s.namespace, s.name, s.kind, words(s.addresses), strings.Join(s.ports, listGap), backends, worst(s.states), cell{text: strings.Join(s.errors, "; "), style: red})
	}
	return g
}

// typeOrder orders the kinds of a service's frontends by how much they say of its type.
func typeOrder(kind string) int {
	return slices.Index([]string{"ClusterIP", "ExternalIP", "NodePort", "LoadBalancer"}, kind)
}

// pods counts what is behind backends: one with several ports, or an address of each family, counts once.
func pods(backends map[netip.AddrPort]bool) int {
	v4, v6 := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for b := range backends {
		if b.Addr().Is4() {
			v4[b.Addr()] = true
		} else {
			v6[b.Addr()] = true
		}
	}
	return max(len(v4), len(v6))
}

// worst is the state a person has to know of.
func worst(states map[string]bool) cell {
	switch {
	case states["error"]:
		return cell{text: "error", style: red}
	case states["pending"]:
		return cell{text: "pending", style: yellow}
	}
	return cell{text: "done", style: green}
}

func (a *app) remotesGrid(rows []row[localapi.Remote]) *grid {
	slices.SortStableFunc(rows, func(x, y row[localapi.Remote]) int { return x.value.Prefix.Compare(y.value.Prefix) })
	g := &grid{columns: columns("ON", "PREFIX", "KIND", "NODE", "WAY", "STATE", "ERROR")}
	for _, r := range rows {
		m := r.value
		way := strings.TrimSpace(m.NextHop + " dev " + m.Device)
		switch {
		case m.Tunnel:
			way = "tunnel " + m.NextHop
		case m.NextHop == "":
			way = strings.TrimPrefix(way, "dev ")
			if way == "dev" {
				way = ""
			}
		}
		g.add(r.on, m.Prefix.String(), m.Kind, m.Node, way, worst(map[string]bool{m.Status: true}), cell{text: m.Error, style: red})
	}
	return g
}

func (a *app) routesGrid(rows []row[localapi.Route]) *grid {
	slices.SortStableFunc(rows, func(x, y row[localapi.Route]) int { return x.value.Prefix.Compare(y.value.Prefix) })
	g := &grid{columns: columns("ON", "PREFIX", "KIND", "DEVICE", "VIA", "SOURCE", "MTU#", "STATE", "ERROR")}
	for _, r := range rows {
		x := r.value
		g.add(r.on, x.Prefix.String(), x.Kind, x.Device, x.Via, x.Source, number(x.MTU), worst(map[string]bool{x.Status: true}), cell{text: x.Error, style: red})
	}
	return g
}

func (a *app) devicesGrid(rows []row[localapi.Device]) *grid {
	g := &grid{columns: columns("ON", "DEVICE", "UP", "MTU#", "PROGRAMS", "ADDRESSES", "+INDEX#")}
	for _, r := range rows {
		d := r.value
		up := cell{text: "up", style: green}
		if !d.Up {
			up = cell{text: "down", style: red}
		}
		attached := ""
		if d.Native {
			attached = "attached"
		}
		g.add(r.on, d.Name, up, number(d.MTU), attached, words(d.Addresses), number(d.Index))
	}
	return g
}
