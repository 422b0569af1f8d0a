package cli

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
)

// explainFlags are what a person may add to the ends.
type explainFlags struct {
	backend     string
	established bool
	ipv6        bool
	size        int
	diagram     bool
	verbose     bool
}

func (a *app) explainCmd() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain SRC DST[:PORT][/PROTOCOL]",
		Short: "Follow a packet hop by hop without sending it, and say what becomes of it",
		Long: `Follows a packet from SRC to DST and its answer back, hop by hop on every node it comes by, and names the entry that decided at each:
backend of a service, routes, programs, policy with the rule, connection and masquerade, tunnel, neighbours, MTU, foreign rules of nftables. No
packet is sent and nothing is changed: the attached programs are run on the live maps with a packet that goes nowhere.

SRC and DST are pods ([NAMESPACE/]NAME, default namespace "default"), services (svc/[NAMESPACE/]NAME, or the name alone where no pod has it),
nodes, addresses, host (the node that is asked), or world (somebody outside). PORT is a number, the name of a container port or of a service
port; PROTOCOL is tcp (the default), udp, sctp or icmp. Without a port it is an echo request, as ping sends one. SRC:PORT chooses the source port.

From outside the cluster all nodes are asked. On a node only that node's part is known: it says where to ask for the rest.

Exit codes: 0 delivered and answered, 1 not, 2 not known (a word that is wrong, or a node that could not be asked), 3 no agent could be reached.`,
		Example: `  strait explain shop/web-1 shop/db-0:5432
  strait explain shop/web-1 svc/kube-system/kube-dns:53/udp
  strait explain shop/web-1 93.184.216.34:443 --diagram
  strait explain world n2:30080
  strait explain shop/web-1:41234 shop/db-0:5432 --established
  strait explain shop/web-1 shop/db-0 --size 1500`,
		Args:              exactArgs("SRC", "DST[:PORT]"),
		ValidArgsFunction: a.completeExplain,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.explain(cmd.Context(), args, f) },
	}
	cmd.Flags().StringVar(&f.backend, "backend", "", "follow the connection to this backend of the service, ADDRESS:PORT (default: the one the client stays with, or the first)")
	cmd.Flags().BoolVar(&f.established, "established", false, "a packet of a connection that exists, not of a new one; SRC needs its port")
	cmd.Flags().BoolVarP(&f.ipv6, "ipv6", "6", false, "by IPv6 where both ends have both families")
	cmd.Flags().IntVar(&f.size, "size", 0, "bytes of the packet with its IP header (default: as small as it can be)")
	cmd.Flags().BoolVar(&f.diagram, "diagram", false, "draw the way as a picture")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "all that is known of each hop")
	return cmd
}

// explained is the whole answer.
type explained struct {
	Source      explainEnd `json:"source"`
	Destination explainEnd `json:"destination"`
	Protocol    string     `json:"protocol"`
	// Backends are those that the service would choose from; the path is that to one of them.
	Backends []netip.AddrPort `json:"backends,omitempty"`
	explain.Path
}

func (a *app) explain(ctx context.Context, args []string, f explainFlags) error {
	q, backend, err := explainQuestion(args, &f)
	if err != nil {
		return err
	}
	from, err := a.informants(ctx)
	if err != nil {
		return err
	}
	all, err := from.who(ctx, endWords(q, from.self))
	if err != nil {
		return err
	}
	out, node, asked, err := all.start(q, f, backend)
	if errors.Is(err, errNobody) { // with all names it can be said which one is meant
		if all, err = from.everybody(ctx); err == nil {
			out, node, asked, err = all.start(q, f, backend)
		}
	}
	if err != nil {
		return err
	}
	asked.Session = "explain-" + strconv.FormatInt(a.Now().UnixNano(), 36)
	before := []explain.Leg{}
	if from.client != nil && node != all.self {
		before = append(before, explain.Leg{Node: node, Error: elsewhere("its beginning", node, args).Error(), Asked: asked})
		if node, err = all.join(args, node, out, f, &asked); err != nil {
			return err
		}
	}
	if out.Path, err = from.follow(ctx, args, node, asked); err != nil {
		return err
	}
	out.prepend(before)
	for _, l := range out.There {
		if l.Part != nil && len(l.Part.Backends) > 0 {
			out.Backends = l.Part.Backends
		}
	}
	return a.showPath(out, f)
}

// prepend puts legs before those of a path, which nobody was asked for.
func (e *explained) prepend(legs []explain.Leg) {
	e.There = append(legs, e.There...)
	if c := &e.Conclusion; !c.Back {
		c.Leg += len(legs)
	}
	if len(legs) > 0 && e.Conclusion.Verdict == explain.Delivered {
		e.Conclusion.Verdict = explain.Unknown
		e.Conclusion.Text = "cannot be told, because node " + legs[0].Node + ", where it begins, has not been asked"
	}
}

func (a *app) showPath(out explained, f explainFlags) error {
	var err error
	switch {
	case !a.output.forPeople():
		err = a.print(out)
	case f.diagram:
		err = a.write(a.diagram(out))
	default:
		err = a.write(a.pathText(out, f.verbose))
	}
	if err != nil {
		return err
	}
	switch out.Conclusion.Verdict {
	case explain.Delivered:
		return nil
	case explain.Unknown:
		return &exitError{ExitUsage, nil}
	}
	return &exitError{ExitProblems, nil}
}

// explainQuestion reads the command line.
func explainQuestion(args []string, f *explainFlags) (q localapi.VerdictQuestion, backend netip.AddrPort, err error) {
	q, port, err := readEnds(args[0], args[1])
	if err != nil {
		return q, backend, err
	}
	named := strings.HasSuffix(args[1], "/"+strings.ToLower(askedProtocol(q)))
	switch {
	case askedProtocol(q) == "ICMP" && port != "":
		return q, backend, usage("%q: what is followed of ICMP is an echo request: write %s/icmp", args[1], q.Destination)
	case port == "" && named && askedProtocol(q) != "ICMP":
		return q, backend, usage("%q: a port is missing: write %s:PORT/%s", args[1], q.Destination, strings.ToLower(askedProtocol(q)))
	case port == "":
		q.Protocol = protocols["icmp"]
	}
	if err := readPort(&q, args[1], port); err != nil {
		return q, backend, err
	}
	if f.backend != "" {
		if backend, err = netip.ParseAddrPort(f.backend); err != nil {
			return q, backend, usage("--backend %q: want ADDRESS:PORT", f.backend)
		}
	}
	const largest = 65535
	if f.size < 0 || f.size > largest {
		return q, backend, usage("--size %d: want a number of bytes, at most %d", f.size, largest)
	}
	return q, backend, nil
}

// start finds the ends, and where the path begins.
func (e everybody) start(q localapi.VerdictQuestion, f explainFlags, backend netip.AddrPort) (out explained, node string, asked localapi.ExplainQuestion, err error) {
	from, portText := splitPort(q.Source)
	var sourcePort uint64
	if portText != "" {
		if sourcePort, err = strconv.ParseUint(portText, 10, 16); err != nil || sourcePort == 0 {
			return out, "", asked, usage("SRC %q: port %q: want 1 to 65535", q.Source, portText)
		}
	}
	if f.established && sourcePort == 0 && askedProtocol(q) != "ICMP" {
		return out, "", asked, usage("--established: which connection? Write %s:PORT; strait conntrack %s lists those there are", from, from)
	}
	src, err := e.find("SRC", from)
	if err != nil {
		return out, "", asked, err
	}
	dst, err := e.find("DST", q.Destination)
	if err != nil {
		return out, "", asked, err
	}
	if src, dst, err = meet(src, dst, q, f.ipv6); err != nil {
		return out, "", asked, err
	}
	src.Port = uint16(sourcePort)
	out = explained{Source: src, Destination: dst, Protocol: askedProtocol(q)}
	asked = localapi.ExplainQuestion{
		Entry: localapi.EntryNode, Established: f.established, Backend: backend,
		Packet: localapi.ExplainPacket{Source: netip.AddrPortFrom(src.Address, src.Port), Target: netip.AddrPortFrom(dst.Address, dst.Port), Protocol: out.Protocol, Size: f.size},
	}
	if dst.Kind == endService {
		asked.Service = asked.Packet.Target
	}
	switch {
	case src.Kind == endPod && !src.hostNetwork:
		asked.Entry, asked.Pod = localapi.EntryPod, src.Name
	case src.Kind == endOutside:
		asked.Entry = localapi.EntryNet
		return out, e.entrance(dst), asked, nil
	}
	return out, src.Node, asked, nil
}

// entrance is the node that a packet from outside comes in at: the one it is for, or any.
func (e everybody) entrance(dst explainEnd) string {
	if dst.Node != "" {
		return dst.Node
	}
	if len(e.entrances) == 0 {
		return ""
	}
	return e.entrances[0]
}

// join takes the path up on this node, when its beginning is on another that cannot be asked from here.
func (e everybody) join(args []string, begins string, out explained, f explainFlags, asked *localapi.ExplainQuestion) (string, error) {
	same := strings.Join(append([]string{"strait", "explain"}, args...), " ")
	if out.Destination.Node != e.self {
		return "", usage("the path begins on node %s, and this is node %s: ask from outside the cluster, or there: %s", begins, e.self, same)
	}
	if f.backend != "" || out.Destination.Kind == endService {
		return "", usage("the backend is chosen on node %s, and this is node %s: ask from outside the cluster, or there: %s", begins, e.self, same)
	}
	asked.Entry, asked.Pod = localapi.EntryNet, ""
	for _, n := range e.nodes {
		via, tunnelled := strings.CutPrefix(n.Via, "tunnel ")
		if sender, err := netip.ParseAddr(via); err == nil && n.Name == begins && tunnelled && out.Destination.Kind == endPod && !out.Destination.hostNetwork {
			asked.Entry, asked.Sender = localapi.EntryTunnel, sender
		}
	}
	return e.self, nil
}

// completeExplain offers pods, services and nodes of the first node that answers, and the words.
func (a *app) completeExplain(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 1 {
		return nil, directive
	}
	a.timeout = completionLimit
	from, err := a.informants(cmd.Context())
	if err != nil {
		return nil, directive
	}
	all, err := from.everybody(cmd.Context())
	if err != nil {
		return nil, directive
	}
	out := append(all.nodeNames(), "host", "world")
	for _, p := range all.pods {
		out = append(out, p.Namespace+"/"+p.Name)
	}
	for _, s := range all.services {
		if len(args) == 1 && s.Frontend.IsValid() && s.Type != "HostPort" {
			out = append(out, "svc/"+s.Namespace+"/"+s.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), directive | cobra.ShellCompDirectiveNoSpace
}
