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

func (a *app) serviceShowCmd() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "show [NAMESPACE/]NAME",
		Short: "Show everything of one service",
		Long: `Shows where a service answers, by which rules a backend is chosen, and every endpoint of it: the state, why it gets no connections
if it gets none, the connections it has and had, and what has been sent to it and come back. A pod with host ports is a service of the
pod's name.

OPEN and EVER are connections that clients of the node have made, or that came in from outside there, since the node knows the backend.
PACKETS and BYTES are to the backend / from it, summed over the connections in the node's table now: with backends of other nodes, those
that pass this node.

From outside a node the answers of all nodes become one: OPEN and EVER are summed over the nodes; PACKETS and BYTES are those of the
backend's own node, where all of them pass.`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			ns, name, err := serviceName(args[0], namespace)
			if err != nil {
				return err
			}
			return a.serviceShow(cmd.Context(), ns, name)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", `namespace of the service (default "default")`)
	return cmd
}

// serviceName reads NAME or NAMESPACE/NAME; a namespace given twice has to be the same.
func serviceName(text, flag string) (namespace, name string, err error) {
	namespace, name, found := strings.Cut(text, "/")
	if !found {
		return cmp.Or(flag, "default"), text, nil
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", usage("service %q: want NAME or NAMESPACE/NAME", text)
	}
	if flag != "" && flag != namespace {
		return "", "", usage("service %q is not in the namespace of --namespace %s", text, flag)
	}
	return namespace, name, nil
}

func (a *app) serviceShow(ctx context.Context, namespace, name string) error {
	all, err := ask(ctx, a, question[localapi.ServiceDetail]{
		args: []string{"service", "show", namespace + "/" + name},
		local: func(ctx context.Context, c *localapi.Client) (localapi.ServiceDetail, error) {
			return c.Service(ctx, namespace, name)
		},
	})
	if err != nil {
		return err
	}
	return deliver(a, all, func() string { return a.serviceText(all) })
}

func (a *app) serviceText(all answers[localapi.ServiceDetail]) string {
	d := joinDetails(all)
	v := &screen{app: a}
	v.serviceHead(d)
	v.serviceRules(d)
	if !all.one {
		v.line("Seen by", plural(d.nodes, "node")+"; OPEN and EVER are summed over them, PACKETS and BYTES are counted by the backend's own node")
	}
	if len(d.frontends) > 0 {
		g := &grid{columns: columns("FRONTEND", "TYPE", "PORT", "ID#", "BACKENDS#", "ON", "STATE", "ERROR")}
		slices.SortStableFunc(d.frontends, func(x, y row[localapi.Service]) int {
			return cmp.Or(cmp.Compare(x.value.Port, y.value.Port), cmp.Compare(typeRank(x.value.Type), typeRank(y.value.Type)),
				x.value.Frontend.Compare(y.value.Frontend))
		})
		for _, r := range d.frontends {
			s := r.value
			if s.Of != nil {
				continue // the row that stands for all addresses of the node is enough here
			}
			count := strconv.Itoa(len(s.Backends))
			if s.ExternalLocal {
				count += ", outside " + strconv.Itoa(len(s.Outer))
			}
			g.add(s.Frontend.String()+"/"+s.Protocol, s.Type, s.Port, id(s.ID), count, r.on, worst(map[string]bool{s.Status: true}),
				cell{text: s.Error, style: red})
		}
		v.b.WriteString("\n" + a.render(g))
	}
	nothing := "no endpoints: no EndpointSlice of this service has an address"
	switch {
	case d.Target != "":
		return v.b.String()
	case d.Note != "":
		nothing = "its endpoints are not followed: kubectl get endpointslices -n " + d.Namespace + " -l kubernetes.io/service-name=" + d.Name
	}
	v.b.WriteString("\n" + a.renderOr(endpointsOf(d), nothing))
	return v.b.String()
}

func (v *screen) serviceHead(d joinedDetail) {
	active := count(d.endpoints, func(e joinedEndpoint) bool { return e.active > 0 })
	verdict := fmt.Sprintf("%d of %d backends in use", active, len(d.endpoints))
	look := green
	switch {
	case d.Note != "":
		verdict, look = "not balanced", plain
	case active == 0:
		look = red
	case active < len(d.endpoints):
		look = yellow
	}
	age := ""
	if !d.Created.IsZero() {
		age = ", " + v.age(d.Created) + " old"
	}
	fmt.Fprintf(&v.b, "%s, %s%s: %s\n\n", v.paint(bold, "Service "+d.Namespace+"/"+d.Name), d.Type, age, v.paint(look, verdict))
	var problems []localapi.Problem
	for _, text := range d.Problems {
		problems = append(problems, localapi.Problem{Severity: localapi.SeverityError, Subject: "service " + d.Namespace + "/" + d.Name, Text: text})
	}
	v.problems(problems)
}

func (v *screen) serviceRules(d joinedDetail) {
	if d.Note != "" {
		v.line("Frontends", d.Note)
		return
	}
	v.line("Algorithm", cmp.Or(d.Algorithm, "-"))
	v.line("Forwarding", cmp.Or(d.Forwarding, "-"))
	if d.InternalPolicy != "" || d.ExternalPolicy != "" {
		text := "internal " + cmp.Or(d.InternalPolicy, "Cluster")
		if d.ExternalPolicy != "" {
			text += ", external " + d.ExternalPolicy
		}
		v.line("Traffic policy", text)
	}
	if d.AffinitySeconds > 0 {
		v.line("Affinity", fmt.Sprintf("ClientIP for %s; %s held to a backend now", span(d.AffinitySeconds), plural(d.AffinityClients, "client")))
	} else {
		v.line("Affinity", "none")
	}
	if len(d.SourceRanges) > 0 {
		v.line("Source ranges", strings.ReplaceAll(words(d.SourceRanges), listGap, ", "))
	}
	if d.HealthCheckNodePort != 0 {
		v.line("Health check", fmt.Sprintf("node port %d", d.HealthCheckNodePort))
	}
	if d.Distribution != "" {
		v.line("Distribution", d.Distribution)
	}
	if d.PublishNotReady {
		v.line("Not ready", "endpoints that are not ready are used as well (publishNotReadyAddresses)")
	}
}

func typeRank(kind string) int { return slices.Index(serviceTypes, kind) }

// joinedDetail is a service as all nodes together have it.
type joinedDetail struct {
	localapi.ServiceDetail
	nodes     int
	frontends []row[localapi.Service]
	endpoints []joinedEndpoint
}

// joinedEndpoint is an endpoint with what the nodes say of it.
type joinedEndpoint struct {
	localapi.ServiceEndpoint
	nodes, active int      // that know it, that send to it
	own           bool     // the backend's own node has been heard
	fully         bool     // some node sends everybody to it: what keeps others from it is policy, nothing is wrong with it
	whys          []string // each once
}

func joinDetails(all answers[localapi.ServiceDetail]) joinedDetail {
	var d joinedDetail
	rows := answers[[]localapi.Service]{one: all.one}
	at := map[string]int{}
	for _, n := range all.nodes {
		rows.nodes = append(rows.nodes, answer[[]localapi.Service]{n.Node, n.Value.Frontends, n.Err})
		if n.Err != nil {
			continue
		}
		if d.nodes++; d.nodes == 1 {
			d.ServiceDetail = n.Value
		} else {
			d.AffinityClients += n.Value.AffinityClients
		}
		for _, text := range n.Value.Problems {
			if !slices.Contains(d.Problems, text) {
				d.Problems = append(d.Problems, text)
			}
		}
		for _, e := range n.Value.Endpoints {
			key := e.Address.String() + e.Protocol + e.Port
			i, known := at[key]
			if !known {
				i = len(d.endpoints)
				at[key] = i
				d.endpoints = append(d.endpoints, joinedEndpoint{ServiceEndpoint: e})
			}
			d.endpoints[i].join(e, n.Value.Node, !known)
		}
	}
	d.frontends = merge(common(rows))
	return d
}

// join adds what one more node says. Of the traffic the backend's own node knows all; without it, who knows most.
func (j *joinedEndpoint) join(e localapi.ServiceEndpoint, node string, first bool) {
	j.nodes++
	if e.State == localapi.BackendActive || e.State == localapi.BackendTerminating {
		if j.active++; j.State == localapi.BackendOut || j.State == localapi.BackendLeaving {
			j.State = e.State
		}
	}
	switch {
	case e.Why == "":
		j.fully = true
	case !slices.Contains(j.whys, e.Why):
		j.whys = append(j.whys, e.Why)
	}
	own := e.Node == node
	if own || !j.own && e.Traffic.ToPackets+e.Traffic.FromPackets > j.Traffic.ToPackets+j.Traffic.FromPackets {
		j.Traffic = e.Traffic
	}
	j.own = j.own || own
	if !first {
		j.Open, j.Ever, j.Clients = j.Open+e.Open, j.Ever+e.Ever, j.Clients+e.Clients
	}
}

func endpointsOf(d joinedDetail) *grid {
	g := &grid{columns: columns("BACKEND", "PORT", "STATE", "POD", "NODE", "+ZONE", "WEIGHT#", "OPEN#", "EVER#", "+CLIENTS#", "PACKETS#", "BYTES#", "WHY")}
	for _, e := range d.endpoints {
		state := cell{text: e.State, style: green}
		switch {
		case e.State == localapi.BackendOut:
			state.style = red
		case e.State != localapi.BackendActive:
			state.style = yellow
		case e.active < e.nodes:
			state = cell{text: fmt.Sprintf("active on %d/%d", e.active, e.nodes), style: yellow}
		}
		address := e.Address.String()
		if e.Address.Port() == 0 {
			address = e.Address.Addr().String()
		}
		weight, open, ever, clients := "", "", "", ""
		if d.Note == "" {
			weight = strconv.Itoa(int(e.Weight))
			open, ever = strconv.FormatUint(uint64(e.Open), 10), short(e.Ever)
		}
		if d.AffinitySeconds > 0 {
			clients = strconv.Itoa(e.Clients)
		}
		if e.fully {
			e.whys = nil
		}
		g.add(address+"/"+e.Protocol, e.Port, state, strings.TrimPrefix(e.Pod, d.Namespace+"/"), e.Node, e.Zone, weight, open, ever, clients,
			pair(e.Traffic.ToPackets, e.Traffic.FromPackets), pair(e.Traffic.ToBytes, e.Traffic.FromBytes), strings.Join(e.whys, "; "))
	}
	return g
}

// pair prints what went to a backend and what came from it: "1.2M/987".
func pair(to, from uint64) string {
	if to+from == 0 {
		return ""
	}
	return short(to) + "/" + short(from)
}
