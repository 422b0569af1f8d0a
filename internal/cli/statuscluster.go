package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/verdict"
)

// clusterStatus lays out a line per node, the worst first, then sums.
func (a *app) clusterStatus(nodes []answer[localapi.Status], verbose bool) string {
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(x, y answer[localapi.Status]) int { return badness(y) - badness(x) })
	ok := 0
	for _, n := range nodes {
		if n.Err == nil && n.Value.State == localapi.OK {
			ok++
		}
	}
	v := &screen{app: a}
	verdict := a.paint(green, "all ok")
	if ok < len(nodes) {
		verdict = a.paint(red, fmt.Sprintf("%d of %d not ok", len(nodes)-ok, len(nodes)))
	}
	v.b.WriteString(a.paint(bold, plural(len(nodes), "node")) + ": " + verdict + "\n\n")

	g := &grid{columns: columns("NODE", "STATE", "UP", "PODS#", "IPV4#", "+IPV6#", "PEERS#", "DROPPED#", "+VERSION", "PROBLEM")}
	for _, n := range sorted {
		if n.Err != nil {
			g.add(cell{text: n.Node, style: red}, cell{text: "no answer", style: red}, "", "", "", "", "", "", "", a.shorten(n.Err.Error()))
			continue
		}
		v.node(g, n.Value)
	}
	v.b.WriteString(a.render(g) + "\n")
	v.sums(nodes)
	if verbose {
		for _, n := range sorted {
			if n.Err == nil {
				v.b.WriteString("\n" + a.nodeStatus(n.Value, true))
			}
		}
	} else if ok < len(nodes) {
		v.b.WriteString("\n" + a.paint(faint, "strait status --node NODE tells what to do about it.") + "\n")
	}
	return v.b.String()
}

// badness orders nodes for people: those that do not answer, then by what is wrong.
func badness(n answer[localapi.Status]) int {
	switch {
	case n.Err != nil:
		return 4
	case n.Value.State == localapi.Degraded:
		return 3
	case n.Value.State == localapi.Starting:
		return 2
	case len(n.Value.Problems) > 0:
		return 1
	}
	return 0
}

func (v *screen) node(g *grid, s localapi.Status) {
	look := green
	switch s.State {
	case localapi.Degraded:
		look = red
	case localapi.Starting:
		look = yellow
	}
	problem := ""
	if len(s.Problems) > 0 {
		problem = v.shorten(s.Problems[0].Subject + ": " + s.Problems[0].Text)
		if more := len(s.Problems) - 1; more > 0 {
			problem += fmt.Sprintf(" (and %d more)", more)
		}
	}
	var dropped uint64
	for _, c := range s.Counters {
		if c.Verdict == verdict.Dropped {
			dropped += c.Packets
		}
	}
	e := s.Endpoints
	g.add(s.Node, cell{text: string(s.State), style: look}, v.age(s.Since), fmt.Sprintf("%d/%d", e.Ready, e.Ready+e.Adding+e.Degraded),
		pool(s.IPAM, "IPv4"), pool(s.IPAM, "IPv6"), fmt.Sprintf("%d/%d", s.Health.Reachable, s.Health.Nodes), short(dropped), s.Version, problem)
}

// shorten cuts the text of the last column so that a row stays one or two lines.
func (a *app) shorten(text string) string {
	const limit = 90
	text = strings.ReplaceAll(text, "\n", " ")
	if runes := []rune(text); len(runes) > limit && a.output != formatWide {
		return string(runes[:limit-3]) + "..."
	}
	return text
}

func pool(i localapi.IPAM, family string) string {
	var parts []string
	for _, p := range i.Pools {
		if p.Family == family {
			parts = append(parts, ratio(p.Allocated, p.Capacity))
		}
	}
	return strings.Join(parts, "+")
}

// sums prints n/m of everything that is counted on every node.
func (v *screen) sums(nodes []answer[localapi.Status]) {
	var answered, ready, pods, reached, peers, healthy, controllers int
	modes, services := map[string]int{}, map[string]int{}
	versions := map[string]int{}
	for _, n := range nodes {
		if n.Err != nil {
			continue
		}
		s := n.Value
		answered++
		ready += s.Endpoints.Ready
		pods += s.Endpoints.Ready + s.Endpoints.Adding + s.Endpoints.Degraded
		reached += s.Health.Reachable
		peers += s.Health.Nodes
		healthy += count(s.Reconcilers, func(r reconcile.Health) bool { return r.LastError == "" })
		controllers += len(s.Reconcilers)
		modes[s.Routing.Mode+", network "+s.Routing.Network]++
		versions[s.Version]++
		services[serviceMode(s.KubeProxy)]++
	}
	v.line("Agents", v.of(answered, len(nodes))+" answer, version "+tallyWords(versions))
	v.line("Pods", v.of(ready, pods)+" ready")
	v.line("Controllers", v.of(healthy, controllers)+" healthy")
	v.line("Cluster health", v.of(reached, peers)+" pairs of nodes reach each other")
	v.line("Routing", tallyWords(modes))
	v.line("kube-proxy", tallyWords(services))
	v.policySums(nodes)
}

func count[T any](all []T, is func(T) bool) (n int) {
	for _, x := range all {
		if is(x) {
			n++
		}
	}
	return n
}

// tallyWords prints the one word there is, or each word with how often there is it.
func tallyWords(words map[string]int) string {
	var parts []string
	for w, n := range words {
		if len(words) > 1 {
			w += " (" + strconv.Itoa(n) + ")"
		}
		parts = append(parts, w)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
