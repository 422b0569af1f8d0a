package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/verdict"
)

const (
	labelWidth = 16
	maxWidth   = 120 // longer lines are hard to read
)

// screen is one node's status on its way to a person.
type screen struct {
	*app
	b strings.Builder
}

// nodeStatus lays out the status of one node, what is wrong first.
func (a *app) nodeStatus(s localapi.Status, verbose bool) string {
	v := &screen{app: a}
	v.head(s)
	v.problems(s.Problems)
	v.kubernetes(s.Kubernetes)
	v.forwarding(s)
	v.kubeProxy(s.KubeProxy)
	v.policy(s.Policy)
	v.flows(s.Flows)
	v.pods(s)
	v.datapath(s)
	v.controllers(s)
	v.health(s.Health)
	for _, f := range s.Features {
		v.line(f.Name, f.Text)
	}
	if verbose {
		v.verbose(s)
	}
	return v.b.String()
}

func (v *screen) width() int {
	if v.Width == 0 {
		return 0
	}
	return min(v.Width, maxWidth)
}

// line prints a label and its text, continued below itself.
func (v *screen) line(label, text string) {
	room := v.width()
	if room > 0 {
		text = wrap(text, room-labelWidth, strings.Repeat(" ", labelWidth))
	}
	fmt.Fprintf(&v.b, "%s%s%s\n", v.paint(bold, label), strings.Repeat(" ", max(1, labelWidth-len(label))), text)
}

func (v *screen) head(s localapi.Status) {
	verdict, look := string(s.State), green
	switch s.State {
	case localapi.Degraded:
		verdict, look = tally(s.Problems), red
	case localapi.Starting:
		look = yellow
	case localapi.OK:
		if len(s.Problems) > 0 {
			verdict, look = "ok, "+tally(s.Problems), yellow
		}
	}
	of := ""
	if s.Cluster != "" {
		of = " of cluster " + s.Cluster
	}
	fmt.Fprintf(&v.b, "%s%s, agent %s, up %s: %s\n\n", v.paint(bold, "Node "+s.Node), of, s.Version, v.age(s.Since), v.paint(look, verdict))
}

// tally is "1 error, 2 warnings".
func tally(problems []localapi.Problem) string {
	errors, warnings := 0, 0
	for _, p := range problems {
		if p.Severity == localapi.SeverityError {
			errors++
		} else {
			warnings++
		}
	}
	var parts []string
	if errors > 0 {
		parts = append(parts, plural(errors, "error"))
	}
	if warnings > 0 {
		parts = append(parts, plural(warnings, "warning"))
	}
	return strings.Join(parts, ", ")
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}

func (v *screen) problems(problems []localapi.Problem) {
	const indent = "           "
	for _, p := range problems {
		label, look := "  ERROR    ", red
		if p.Severity == localapi.SeverityWarning {
			label, look = "  WARNING  ", yellow
		}
		room := max(0, v.width()-len(indent))
		v.b.WriteString(v.paint(look, label) + wrap(p.Subject+": "+p.Text, room, indent) + "\n")
		if p.Action != "" {
			v.b.WriteString(indent + v.paint(faint, wrap("-> "+p.Action, room, indent+"   ")) + "\n")
		}
	}
	if len(problems) > 0 {
		v.b.WriteString("\n")
	}
}

func (v *screen) kubernetes(k localapi.Kubernetes) {
	text := v.paint(green, "connected")
	if !k.Connected {
		text = v.paint(red, "not connected")
	}
	if k.Version != "" {
		text += ", " + k.Version
	}
	if k.Server != "" {
		text += " at " + k.Server
	}
	synced := 0
	for _, t := range k.Tables {
		if t.Synced {
			synced++
		}
	}
	v.line("Kubernetes", text+fmt.Sprintf("; %s tables synced", v.of(synced, len(k.Tables))))
}

// of is "n/m", red when n is less.
func (v *screen) of(n, m int) string {
	text := fmt.Sprintf("%d/%d", n, m)
	if n < m {
		return v.paint(red, text)
	}
	return text
}

func (v *screen) forwarding(s localapi.Status) {
	r := s.Routing
	text := r.Mode
	if r.Mode == "vxlan" && r.TunnelDevice != "" { // in other modes it only serves nodes that are still in this one
		text += fmt.Sprintf(" (device %s, UDP port %d)", r.TunnelDevice, r.TunnelPort)
	}
	v.line("Routing", fmt.Sprintf("%s, devices %s; network %s", text, list(r.Devices), r.Network))
	host := r.Host
	if host == "bpf" {
		host = "BPF, past the node's stack"
	}
	if r.Attach != "" {
		host += "; attached by " + r.Attach
	}
	v.line("Host routing", host)
	m := s.Masquerade
	if m.Enabled {
		v.line("Masquerading", fmt.Sprintf("BPF, %s on %s, ports %s", list(m.Families), list(m.Devices), m.Ports))
	} else {
		v.line("Masquerading", "off")
	}
}

func (v *screen) pods(s localapi.Status) {
	var pools []string
	for _, p := range s.IPAM.Pools {
		text := fmt.Sprintf("%s %s of %s", p.Family, ratio(p.Allocated, p.Capacity), p.CIDR)
		if p.CoolingDown > 0 {
			text += fmt.Sprintf(" (%d cooling down)", p.CoolingDown)
		}
		pools = append(pools, text)
	}
	v.line("IPAM", s.IPAM.Mode+": "+cmp.Or(strings.Join(pools, ", "), v.paint(red, "no pod CIDR")))
	v.line("MTU", fmt.Sprintf("%d on devices, %d in pods", s.MTU.Device, s.MTU.Pod))
	cni := v.paint(green, "ready")
	if !s.CNI.Ready {
		cni = v.paint(red, "not ready")
	}
	if s.CNI.Conflist != "" {
		cni += ", " + s.CNI.Conflist
	}
	if !s.CNI.LastAdd.IsZero() {
		cni += ", last ADD " + v.age(s.CNI.LastAdd) + " ago"
	}
	if s.CNI.Queued > 0 {
		cni += fmt.Sprintf(", %d deletes queued", s.CNI.Queued)
	}
	v.line("CNI", cni)
	e := s.Endpoints
	text := v.of(e.Ready, e.Ready+e.Adding+e.Degraded) + " ready"
	if e.Adding > 0 {
		text += fmt.Sprintf(", %d being added", e.Adding)
	}
	if e.Degraded > 0 {
		text += ", " + v.paint(red, fmt.Sprintf("%d degraded", e.Degraded))
	}
	v.line("Endpoints", text)
}

// ratio is n/m; an IPv6 range that nobody can count is named by its size.
func ratio(n, m uint64) string {
	if m > 1<<32 {
		return fmt.Sprintf("%d/2^%d", n, int(math.Round(math.Log2(float64(m)))))
	}
	return fmt.Sprintf("%d/%d", n, m)
}

func (v *screen) datapath(s localapi.Status) {
	var passed, dropped uint64
	var worst localapi.Counter
	for _, c := range s.Counters {
		switch c.Verdict {
		case verdict.Forwarded:
			passed += c.Packets
			continue
		case verdict.Ignored:
			continue
		}
		dropped += c.Packets
		if c.Packets > worst.Packets {
			worst = c
		}
	}
	text := fmt.Sprintf("%s; packets: %s forwarded, %s dropped", plural(len(s.Programs), "program"), short(passed), short(dropped))
	if dropped > 0 {
		text += fmt.Sprintf(" (most: %s, %s)", worst.Text, short(worst.Packets))
	}
	v.line("Datapath", text)
	fullest, fill := localapi.Map{}, -1.0
	for _, m := range s.Maps {
		if m.Fills() {
			if f := float64(m.Entries) / float64(m.Max); f > fill {
				fullest, fill = m, f
			}
		}
	}
	if fill >= 0 {
		v.line("Maps", fmt.Sprintf("%d; fullest %s with %d of %d (%s)", len(s.Maps), fullest.Name, fullest.Entries, fullest.Max, percent(fullest)))
	}
}

func percent(m localapi.Map) string {
	if !m.Fills() {
		return ""
	}
	return fmt.Sprintf("%.0f %%", 100*float64(m.Entries)/float64(m.Max))
}

func (v *screen) controllers(s localapi.Status) {
	healthy, rows := 0, 0
	var drift uint64
	for _, r := range s.Reconcilers {
		if r.LastError == "" {
			healthy++
		}
		rows += r.Rows
		drift += r.Drift
	}
	text := fmt.Sprintf("%s healthy, %s in the kernel", v.of(healthy, len(s.Reconcilers)), plural(rows, "row"))
	if drift > 0 {
		text += fmt.Sprintf(", %s repaired since the start", plural(int(drift), "difference"))
	}
	v.line("Controllers", text)
}

func (v *screen) health(h localapi.ClusterHealth) {
	v.line("Cluster health", fmt.Sprintf("%s nodes reachable", v.of(h.Reachable, h.Nodes)))
}

func list(words []string) string { return cmp.Or(strings.Join(words, " "), "none") }

// short prints large numbers with three or four digits and a letter.
func short(n uint64) string {
	units := []struct {
		from, size uint64
		name       string
	}{{1e12, 1e12, "T"}, {1e9, 1e9, "G"}, {1e6, 1e6, "M"}, {1e4, 1e3, "k"}}
	for _, u := range units {
		if n >= u.from {
			return strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatUint(n, 10)
}

func (v *screen) section(title string, g *grid) {
	if len(g.rows) == 0 {
		return
	}
	g.indent = "  "
	v.b.WriteString("\n" + v.paint(bold, title) + "\n" + v.render(g))
}

func (v *screen) verbose(s localapi.Status) {
	v.services(s.KubeProxy)
	v.policies(s)

	g := &grid{columns: columns("TABLE", "ROWS#", "FAILING#", "REPAIRED#", "LAST CHECK", "LAST ERROR")}
	for _, r := range s.Reconcilers {
		look := plain
		if r.LastError != "" {
			look = red
		}
		g.add(cell{text: r.Table, style: look}, strconv.Itoa(r.Rows), strconv.Itoa(r.Failing), strconv.FormatUint(r.Drift, 10), v.age(r.Pruned), r.LastError)
	}
	v.section("Controllers", g)

	g = &grid{columns: columns("TABLE", "ROWS#", "SYNCED", "WAITING FOR")}
	for _, t := range s.Kubernetes.Tables {
		g.add(t.Name, strconv.Itoa(t.Rows), yes(t.Synced), strings.Join(t.Pending, " "))
	}
	v.section("From Kubernetes", g)

	v.section("Packets since the maps were made", counterGrid(s.Counters))
	v.section("Programs", programGrid(s.Programs))
	v.section("Maps", mapGrid(s.Maps))

	g = &grid{columns: columns("NODE", "ADDRESS", "ANSWERS", "RTT#", "CHECKED", "ERROR")}
	for _, p := range s.Health.Peers {
		look, rtt := green, p.RTT.Round(10*time.Microsecond).String()
		if !p.Reachable {
			look, rtt = red, ""
		}
		g.add(p.Node, p.Address, cell{text: yes(p.Reachable), style: look}, rtt, v.age(p.Checked), p.Error)
	}
	v.section("Peers", g)

	g = &grid{columns: columns("OF", "KIND", "NAME", "EFFECT")}
	for _, l := range s.Leftovers {
		g.add(l.Of, l.Kind, l.Name, l.Effect)
	}
	v.section("Leftovers of other networks", g)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// counterGrid lists what packets met, drops first; what never happened is left out.
func counterGrid(all []localapi.Counter) *grid {
	g := &grid{columns: columns("VERDICT", "PACKETS#", "BYTES#", "REASON", "+ID")}
	order := map[verdict.Kind]int{verdict.Dropped: 0, verdict.Forwarded: 1, verdict.Ignored: 2}
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(x, y localapi.Counter) int {
		return cmp.Or(cmp.Compare(order[x.Verdict], order[y.Verdict]), cmp.Compare(y.Packets, x.Packets))
	})
	for _, c := range sorted {
		kind := cell{text: string(c.Verdict), style: plain}
		if c.Verdict == verdict.Dropped {
			kind.style = red
		}
		if c.Packets > 0 {
			g.add(kind, strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.Bytes, 10), c.Text, c.Name)
		}
	}
	return g
}

func programGrid(all []localapi.Program) *grid {
	g := &grid{columns: columns("PROGRAM", "HOOK", "TARGET", "ID#", "+LINK#", "+PIN")}
	for _, p := range all {
		g.add(p.Name, p.Hook, p.Target, id(p.ID), id(p.LinkID), p.Pin)
	}
	return g
}

func id(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10)
}

func mapGrid(all []localapi.Map) *grid {
	g := &grid{columns: columns("MAP", "TYPE", "ENTRIES#", "MAX#", "FILL#", "+BYTES#")}
	for _, m := range all {
		entries, most, bytes := "", "", ""
		if m.Entries >= 0 {
			entries = strconv.Itoa(m.Entries)
		}
		if m.Max > 0 {
			most = strconv.Itoa(m.Max)
		}
		if m.Bytes > 0 {
			bytes = strconv.FormatUint(m.Bytes, 10)
		}
		look := plain
		if m.Fills() && m.Entries >= m.Max {
			look = yellow
		}
		g.add(cell{text: m.Name, style: look}, m.Type, entries, most, percent(m), bytes)
	}
	return g
}
