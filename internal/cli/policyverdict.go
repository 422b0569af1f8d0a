package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// protocols are those that policy tells apart by name.
var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}

const (
	protocolICMP   = 1
	protocolICMPv6 = 58
	echoRequest4   = 8 << 8
	echoRequest6   = 128 << 8
)

func (a *app) policyVerdictCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "verdict SRC DST:PORT[/PROTOCOL]",
		Short: "Say whether a connection is allowed, and which rule says so",
		Long: `Looks a new connection up in the kernel's own tables, as a packet would be: egress of SRC by the node SRC is on, ingress of DST by the
node DST is on. No packet is sent. Of a denial it also says which rules almost allowed it, and what is missing.

SRC and DST are pods ([NAMESPACE/]NAME, default namespace "default"), addresses, names of nodes, host (the node that is asked), or world
(somebody outside whom no policy names). PORT is a number or the name of a container port of DST; PROTOCOL is tcp (the default), udp, sctp
or icmp; of icmp PORT is the type, without it an echo request. Policy judges the connection to the backend: ask for a pod, not for its service.

On a node, what another node judges is not known: it says which, and how to ask there. From outside, both nodes are asked.

Exit codes: 0 allowed, 1 denied, 2 not known (a word that is wrong, or a node that could not be asked), 3 no agent could be reached.`,
		Example: `  strait policy verdict shop/web-1 shop/db-0:5432
  strait policy verdict shop/web-1 10.0.0.7:53/udp
  strait policy verdict world shop/web-1:http
  strait policy verdict shop/web-1 [2001:db8::7]:443
  strait policy verdict shop/web-1 shop/db-0/icmp`,
		Args:              exactArgs("SRC", "DST:PORT"),
		ValidArgsFunction: a.completeEnds,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := verdictQuestion(args[0], args[1])
			if err != nil {
				return err
			}
			return a.policyVerdict(cmd.Context(), args, q)
		},
	}
}

// verdictQuestion reads the two ends.
func verdictQuestion(src, dst string) (localapi.VerdictQuestion, error) {
	q, port, err := readEnds(src, dst)
	if err != nil {
		return q, err
	}
	for _, end := range []string{q.Source, q.Destination} {
		if strings.Count(end, "/") > 1 {
			return q, usage("%q: want a pod as NAMESPACE/NAME, an address, world or host", end)
		}
	}
	return q, readPort(&q, dst, port)
}

// readEnds takes DST:PORT/PROTOCOL apart. The protocol is tcp when none is named.
func readEnds(src, dst string) (q localapi.VerdictQuestion, port string, err error) {
	q = localapi.VerdictQuestion{Source: src, Protocol: protocols["tcp"]}
	rest := dst
	if i := strings.LastIndexByte(dst, '/'); i >= 0 {
		if p, ok := protocols[strings.ToLower(dst[i+1:])]; ok {
			q.Protocol, rest = p, dst[:i]
		} else if strings.Contains(dst[:i], ":") {
			return q, "", unknown("protocol", dst[i+1:], " of "+strconv.Quote(dst), []string{"tcp", "udp", "sctp", "icmp"})
		}
	}
	q.Destination, port = splitPort(rest)
	if port == "" && strings.HasSuffix(rest, ":") && q.Destination != rest {
		return q, "", usage("%q: a port is missing after the colon", dst)
	}
	if q.Source == "" || q.Destination == "" {
		return q, "", usage("SRC %q and DST %q: want pods as NAMESPACE/NAME, addresses, world or host", src, dst)
	}
	return q, port, nil
}

// splitPort takes END:PORT apart; an address has its colons, and may stand in brackets.
func splitPort(text string) (end, port string) {
	if _, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return strings.Trim(text, "[]"), ""
	}
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		return strings.Trim(text[:i], "[]"), text[i+1:]
	}
	return text, ""
}

// readPort puts a port, the type of an ICMP message, or the name of a port into the question.
func readPort(q *localapi.VerdictQuestion, dst, port string) error {
	icmp := q.Protocol == protocolICMP || q.Protocol == protocolICMPv6
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case icmp && port == "" && q.Protocol == protocolICMP:
		q.Port = echoRequest4
	case icmp && port == "":
		q.Port = echoRequest6
	case icmp && (err != nil || n > 255):
		return usage("%q: ICMP type %q: want 0 to 255", dst, port)
	case icmp:
		q.Port = uint16(n) << 8
	case port == "":
		return usage("%q: a port is missing: policy depends on it; write %s:PORT", dst, q.Destination)
	case err == nil && n > 0:
		q.Port = uint16(n)
	case strings.Trim(port, "0123456789") == "":
		return usage("%q: port %s: want 1 to 65535, or the name of a container port", dst, port)
	default:
		q.PortName = port
	}
	return nil
}

func (a *app) policyVerdict(ctx context.Context, args []string, q localapi.VerdictQuestion) error {
	v, one, err := a.askVerdict(ctx, args, q)
	if err != nil {
		return err
	}
	if a.output.forPeople() {
		err = a.write(a.verdictText(v, one, args))
	} else {
		err = a.print(v)
	}
	if err != nil {
		return err
	}
	switch v.Verdict {
	case localapi.VerdictDenied:
		return &exitError{ExitProblems, nil}
	case localapi.VerdictUnknown:
		return &exitError{ExitUsage, nil}
	}
	return nil
}

// askVerdict asks the agent of this node, or from outside one agent and then those of the nodes that judge. one: nobody else could be asked.
func (a *app) askVerdict(ctx context.Context, args []string, q localapi.VerdictQuestion) (v localapi.PolicyVerdict, one bool, err error) {
	asked := question[localapi.PolicyVerdict]{
		args: append([]string{"policy", "verdict"}, args...),
		local: func(ctx context.Context, c *localapi.Client) (localapi.PolicyVerdict, error) {
			return c.Verdict(ctx, q)
		},
	}
	client, err := a.local(ctx)
	if err != nil {
		return v, true, err
	}
	if client != nil || a.node != "" {
		all, err := ask(ctx, a, asked)
		if err != nil {
			return v, true, err
		}
		return all.nodes[0].Value, true, nil
	}
	cluster, err := a.cluster()
	if err != nil {
		return v, false, err
	}
	agents, err := cluster.agents(ctx, a.timeout)
	if err != nil {
		return v, false, unreachable(err)
	}
	var failed []answer[localapi.PolicyVerdict]
	for _, t := range agents {
		first := askNode(ctx, a, cluster, t, asked)
		if errors.As(first.Err, new(*exitError)) {
			return v, false, first.Err
		}
		if first.Err != nil {
			failed = append(failed, first)
			continue
		}
		return a.askElsewhere(ctx, cluster, agents, asked, first.Value), false, nil
	}
	return v, false, allFailed(failed)
}

// askElsewhere completes an answer by what the other nodes judge.
func (a *app) askElsewhere(ctx context.Context, c *cluster, agents []target, q question[localapi.PolicyVerdict], v localapi.PolicyVerdict) localapi.PolicyVerdict {
	missing := v.Elsewhere
	v.Elsewhere = nil
	for _, e := range missing {
		i := slices.IndexFunc(agents, func(t target) bool { return t.node == e.Node })
		said := answer[localapi.PolicyVerdict]{Err: errors.New("no strait-agent pod on node " + e.Node)}
		if i >= 0 {
			said = askNode(ctx, a, c, agents[i], q)
		}
		found := false
		for _, s := range said.Value.Sides {
			if s.Direction == e.Direction {
				v.Sides = append(v.Sides, s)
				found = true
			}
		}
		switch {
		case said.Err != nil:
			v.Sides = append(v.Sides, localapi.VerdictSide{Direction: e.Direction, Subject: e.Subject, Node: e.Node, Error: said.Err.Error()})
		case !found:
			v.Elsewhere = append(v.Elsewhere, e)
		}
	}
	slices.SortStableFunc(v.Sides, func(x, y localapi.VerdictSide) int { return strings.Compare(x.Direction, y.Direction) })
	v.Verdict = v.Sum()
	return v
}

func (a *app) verdictText(v localapi.PolicyVerdict, one bool, args []string) string {
	looks := map[string]style{localapi.VerdictAllowed: green, localapi.VerdictDenied: red, localapi.VerdictUnknown: yellow}
	s := &screen{app: a}
	head := v.Verdict
	if head == localapi.VerdictUnknown {
		head = "not known"
		if len(v.Sides) > 0 && len(v.Elsewhere) > 0 && !slices.ContainsFunc(v.Sides, func(s localapi.VerdictSide) bool { return s.Error != "" }) {
			head = "allowed as far as this node judges"
		}
	}
	fmt.Fprintf(&s.b, "%s: %s to %s\n", a.paint(looks[v.Verdict], head), endText(v.Source, ""), endText(v.Destination, portText(v)))
	if v.Note != "" {
		s.b.WriteString(wrap(v.Note, s.width(), "") + "\n")
	}
	g := &grid{columns: columns("DIRECTION", "OF", "ON", "FAMILY", "VERDICT", "+PEER IDENTITY", "+PEER MATCHES", "+PROGRAM", "BECAUSE")}
	for _, side := range v.Sides {
		verdict, because := cell{text: side.Verdict, style: looks[side.Verdict]}, side.Text
		if side.Error != "" {
			verdict, because = cell{text: "not known", style: yellow}, side.Error
		}
		if side.Would != "" && side.WouldRule != nil {
			because += "; without audit: " + side.Would + " by " + rulePlace(*side.WouldRule, true)
		}
		g.add(side.Direction, side.Subject, side.Node, side.Family, verdict, side.Identity, strings.Join(side.Matches, ", "), side.Program, because)
	}
	for _, e := range v.Elsewhere {
		how := "judged there; ask with the same command on that node, or from outside the cluster"
		if !one {
			how = "it does not say"
		}
		g.add(e.Direction, e.Subject, e.Node, "", cell{text: "not asked", style: yellow}, "", "", "", how)
	}
	if len(g.rows) > 0 {
		s.b.WriteString("\n" + a.render(g))
	}
	for _, side := range v.Sides {
		if len(side.Misses) == 0 {
			continue
		}
		fmt.Fprintf(&s.b, "\n%s\n", a.paint(bold, "Nearest to allowing "+side.Direction+" of "+side.Subject+familyOf(side)))
		for _, m := range side.Misses {
			s.b.WriteString("  - " + wrap(m, max(0, s.width()-4), "    ") + "\n")
		}
	}
	return s.b.String()
}

func familyOf(s localapi.VerdictSide) string {
	if s.Family == "" {
		return ""
	}
	return " over " + s.Family
}

// endText names an end and, where that says more, its addresses and node.
func endText(e localapi.VerdictEnd, port string) string {
	var more []string
	text := e.Text
	if e.Pod != "" && e.Pod != text {
		more = append(more, "pod "+e.Pod)
	}
	if e.Pod != "" && e.Kind != "pod" {
		more = append(more, "hostNetwork: its node")
	}
	if e.Pod == "" && e.Kind != text {
		more = append(more, e.Kind)
	}
	for _, addr := range e.Addresses {
		if addr.String() != text {
			more = append(more, addr.String())
		}
	}
	if port != "" {
		text += " " + port
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, ", ") + ")"
	}
	return text
}

// portText is "5432/TCP", "ICMP type 8".
func portText(v localapi.PolicyVerdict) string {
	if strings.HasPrefix(v.Protocol, "ICMP") {
		return fmt.Sprintf("%s type %d", v.Protocol, v.Port>>8)
	}
	return fmt.Sprintf("%d/%s", v.Port, v.Protocol)
}

// completeEnds offers the pods of the first node that answers, and the words.
func (a *app) completeEnds(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.timeout = completionLimit
	all, err := ask(cmd.Context(), a, question[[]localapi.PodRow]{
		args:  []string{"get", "pods"},
		local: func(ctx context.Context, c *localapi.Client) ([]localapi.PodRow, error) { return c.Pods(ctx) },
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out := []string{"host", "world"}
	for _, n := range all.nodes {
		for _, p := range n.Value {
			out = append(out, cmp.Or(p.Namespace, "default")+"/"+p.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
