package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/capture"
	"github.com/strait-net/strait/internal/localapi"
)

// captureFlags are those of strait capture.
type captureFlags struct {
	file     string
	force    bool
	lasting  time.Duration
	count    uint64
	maxSize  string
	snap     int
	peer     string
	protocol string
	port     uint16
	every    bool

	most int64 // maxSize, read
}

const (
	// wholePacket is larger than any packet there is.
	wholePacket = 256 << 10
	// leastSnap keeps the headers: of less nothing could be said.
	leastSnap = 128
	// mostOthers is how many nodes besides those that are captured on are asked what they tell of the packets.
	mostOthers = 32
	// mostSilent is how many nodes that cannot be asked are named.
	mostSilent = 5
	// mostStations is how many pods are captured at.
	mostStations = 16
)

func (a *app) captureCmd() *cobra.Command {
	var f captureFlags
	cmd := &cobra.Command{
		Use:   "capture POD | SRC DST[:PORT][/PROTOCOL]",
		Short: "Capture the packets of a pod or between two ends, each with what became of it",
		Long: `Captures what a pod sends and gets, and what is lost on its way to the pod, each packet with its verdict: allowed by which rule, denied by which
policy or dropped why, also on the other end's node, and the service it belongs to. With two ends only what they say to each other, at both of them if both
are pods. Nothing is changed and nothing is sent.

Without --write a line is printed for each packet; with it a pcapng file is written that has the verdict as each packet's comment (in Wireshark the column
frame.comment), and an interface for each place where packets were seen. What has reached the pod is in it once; what has not is at the device where
it was last seen.

POD, SRC and DST are pods ([NAMESPACE/]NAME, default namespace "default"), services (svc/[NAMESPACE/]NAME), nodes, or addresses; one of them has to be a pod
or a node. Pods of hostNetwork have no interface of their own: their node's devices are captured, so name their port.

From outside the cluster the packets come through the API server, as with kubectl exec, and up to 32 more nodes are asked what they say of them. On a node
only pods of that node can be captured.

Exit codes: 0 captured, 1 a node failed meanwhile, 2 the command line is wrong, 3 no agent could be reached.`,
		Example: `  strait capture shop/web-1
  strait capture shop/web-1 -w web.pcapng --for 30s
  strait capture shop/web-1 svc/shop/db:5432 -w db.pcapng
  strait capture shop/web-1 shop/db-0:5432/tcp --count 100
  strait capture shop/web-1 --peer 10.0.0.7 --port 53 --protocol udp
  strait capture shop/web-1 -w - | wireshark -k -i -`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("POD is missing")
			case len(args) > 2:
				return fmt.Errorf("unexpected argument %q", args[2])
			}
			return nil
		},
		ValidArgsFunction: a.completeExplain,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.capture(cmd.Context(), args, f) },
	}
	c := cmd.Flags()
	c.StringVarP(&f.file, "write", "w", "", "write pcapng to this file (- for standard output) in place of lines")
	c.BoolVar(&f.force, "force", false, "overwrite the file")
	c.DurationVar(&f.lasting, "for", 0, "end after this time (default: when it is interrupted)")
	c.Uint64VarP(&f.count, "count", "c", 0, "end after so many packets")
	c.StringVar(&f.maxSize, "max-size", "1GiB", "end when the file has this size: bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
	c.IntVarP(&f.snap, "snaplen", "s", wholePacket, "bytes of each packet that are kept")
	c.StringVar(&f.peer, "peer", "", "only with this other end, captured at POD only: END[:PORT]")
	c.StringVar(&f.protocol, "protocol", "", "only this protocol: tcp, udp, sctp or icmp")
	c.Uint16Var(&f.port, "port", 0, "only with this port at either end")
	c.BoolVar(&f.every, "every-place", false, "also what has reached the pod wherever it was seen before: each packet more than once")
	a.complete(cmd, "protocol", fixed("tcp", "udp", "sctp", "icmp"))
	return cmd
}

func (f *captureFlags) check(args []string) (err error) {
	if f.most, err = sizeOf(f.maxSize); err != nil {
		return err
	}
	switch {
	case f.snap < leastSnap || f.snap > wholePacket:
		return usage("--snaplen %d: want %d to %d bytes", f.snap, leastSnap, wholePacket)
	case f.lasting < 0:
		return usage("--for %v: want a time, as 30s", f.lasting)
	case f.peer != "" && len(args) == 2:
		return usage("--peer %s: the other end is %s already", f.peer, args[1])
	case f.force && (f.file == "" || f.file == "-"):
		return usage("--force: there is no file to overwrite; see --write")
	}
	if _, known := protocols[f.protocol]; f.protocol != "" && !known {
		return unknown("protocol", f.protocol, "", []string{"tcp", "udp", "sctp", "icmp"})
	}
	return nil
}

// sizeOf reads a number of bytes.
func sizeOf(text string) (int64, error) {
	number := strings.TrimRight(text, "kKMGiB")
	factor, known := map[string]int64{
		"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[text[len(number):]]
	n, err := strconv.ParseInt(number, 10, 40)
	if err != nil || !known || n <= 0 {
		return 0, usage("--max-size %q: want a number of bytes, or one with kB, MB, GB, KiB, MiB or GiB", text)
	}
	return n * factor, nil
}

// plan is what is to be captured where.
type plan struct {
	nodes     []string // in the order of parts
	questions []capture.Question
	agents    []target // of a cluster, by part
	names     map[netip.Addr]string
	words     []string // for people: what is captured
	notes     []string
}

func (a *app) capture(ctx context.Context, args []string, f captureFlags) error {
	if err := f.check(args); err != nil {
		return err
	}
	from, err := a.informants(ctx)
	if err != nil {
		return err
	}
	all, err := from.everybody(ctx)
	if err != nil {
		return err
	}
	p, err := all.plan(args, f)
	if err != nil {
		return err
	}
	if from.client != nil {
		if err := p.only(from.self, args); err != nil {
			return err
		}
	} else {
		agents, err := from.cluster.agents(ctx, a.timeout)
		if err != nil {
			return unreachable(err)
		}
		if err := p.others(agents); err != nil {
			return err
		}
	}
	show, err := a.display(f, p)
	if err != nil {
		return err
	}
	for _, note := range p.notes {
		_, _ = fmt.Fprintln(a.Err, note) // nobody left to tell
	}
	return (&captureRun{app: a, from: from, plan: p, flags: f, show: show}).run(ctx)
}

// plan finds the ends, and makes of them what nodes are asked for.
func (e everybody) plan(args []string, f captureFlags) (p plan, err error) {
	p.names = map[netip.Addr]string{}
	for _, pod := range e.pods {
		for _, addr := range pod.Addresses {
			if !pod.HostNetwork {
				p.names[addr] = pod.Namespace + "/" + pod.Name
			}
		}
	}
	src, dst := args[0], f.peer
	if len(args) == 2 {
		dst = args[1]
	}
	base := capture.Filter{Port: f.port, Protocol: protocols[f.protocol]}
	if dst == "" {
		end, portText := splitPort(src)
		one, err := e.captured("POD", end)
		if err != nil {
			return p, err
		}
		if base.EndPort, err = one.capturedPort(portText, base.Protocol); err != nil {
			return p, err
		}
		p.at(one, base, f)
		return p, p.check(one)
	}
	q, portText, err := readEnds(src, dst)
	if err != nil {
		return p, err
	}
	if named := askedProtocol(q); strings.HasSuffix(dst, "/"+strings.ToLower(named)) {
		if base.Protocol != 0 && base.Protocol != q.Protocol {
			return p, usage("%s and --protocol %s: want one of them", dst, f.protocol)
		}
		base.Protocol = q.Protocol
	}
	srcText, srcPortText := splitPort(q.Source)
	one, err := e.captured("SRC", srcText)
	if err != nil {
		return p, err
	}
	two, err := e.captured("DST", q.Destination)
	if err != nil {
		return p, err
	}
	srcPort, err := one.capturedPort(srcPortText, base.Protocol)
	if err != nil {
		return p, err
	}
	return p, e.between(&p, one, two, base, srcPort, portText, f)
}

// between captures at each of two ends that is a pod or a node, or at the pods behind a service.
func (e everybody) between(p *plan, one, two explainEnd, base capture.Filter, srcPort uint16, portText string, f captureFlags) error {
	peers, behind, err := two.peers(portText, base.Protocol)
	if err != nil {
		return err
	}
	if one.Kind == endService {
		return usage("%s sends nothing: capture at one of the pods behind it, strait service show %s lists them", one, one.Name)
	}
	at := base
	at.EndPort, at.Peers = srcPort, peers
	p.at(one, at, f)
	if f.peer != "" {
		return p.check(one)
	}
	var sources []capture.Peer
	for _, addr := range one.addresses {
		sources = append(sources, capture.Peer{Address: addr, Port: srcPort})
	}
	if two.Kind == endService {
		if one.Kind == endOutside {
			for _, b := range behind {
				pod := e.at(b.Address)
				at := base
				at.EndPort, at.Peers = b.Port, sources
				p.at(pod, at, f)
			}
		}
		return p.check(one, two)
	}
	at = base
	at.Peers = sources
	if len(peers) > 0 {
		at.EndPort = peers[0].Port
	}
	p.at(two, at, f)
	return p.check(one, two)
}

// captured is an end, with all its addresses.
func (e everybody) captured(which, text string) (explainEnd, error) {
	end, err := e.find(which, text)
	if err != nil {
		return end, err
	}
	switch {
	case end.Name == "world":
		return end, usage("%s world: whose packets? Name an address, or leave it out", which)
	case end.Kind == endPod && end.Node == "":
		return end, usage("%s is on no node yet", end)
	case end.Kind != endService && len(end.addresses) == 0:
		return end, usage("%s has no address yet", end)
	}
	if end.Kind == endPod && !end.hostNetwork || end.Kind == endNode { // by whichever address it was named
		end.addresses = slices.Clone(end.addresses)
	}
	return end, nil
}

// capturedPort reads a port of a pod or an address, by number or by name.
func (e explainEnd) capturedPort(text string, protocol uint8) (uint16, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	switch {
	case err == nil && n > 0:
		return uint16(n), nil
	case err == nil || e.Kind != endPod:
		return 0, usage("%s: port %q: want 1 to 65535", e, text)
	}
	var first error
	for _, name := range []string{"tcp", "udp", "sctp"} {
		if protocol != 0 && protocol != protocols[name] {
			continue
		}
		port, err := e.namedPort(text, strings.ToUpper(name))
		if err == nil {
			return port, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = usage("%s: port %q: the protocol has no ports", e, text)
	}
	return 0, first
}

// peers are the addresses that packets to an end may have; of a service its own and those behind it, which are returned once more.
func (e explainEnd) peers(portText string, protocol uint8) (all, behind []capture.Peer, err error) {
	if e.Kind != endService || e.fronts == nil {
		port, err := e.capturedPort(portText, protocol)
		if err != nil {
			return nil, nil, err
		}
		for _, addr := range e.addresses {
			all = append(all, capture.Peer{Address: addr, Port: port})
		}
		return all, nil, nil
	}
	var have []string
	for _, s := range e.fronts {
		if !s.Frontend.IsValid() || s.Frontend.Addr().IsUnspecified() {
			continue
		}
		text := fmt.Sprintf("%d/%s", s.Frontend.Port(), s.Protocol)
		if !slices.Contains(have, text) {
			have = append(have, text)
		}
		number := strconv.Itoa(int(s.Frontend.Port()))
		if portText != "" && portText != number && portText != s.Port || protocol != 0 && s.Protocol != strings.ToUpper(capture.ProtocolName(protocol)) {
			continue
		}
		all = append(all, capture.Peer{Address: s.Frontend.Addr(), Port: s.Frontend.Port()})
		for _, list := range [][]localapi.Backend{s.Backends, s.Outer} {
			for _, b := range list {
				behind = append(behind, capture.Peer{Address: b.Address.Addr(), Port: b.Address.Port()})
			}
		}
	}
	if len(all) == 0 {
		if portText == "" {
			return nil, nil, usage("%s has no address of its own: capture at one of the pods behind it, strait service show %s lists them", e, e.Name)
		}
		slices.Sort(have)
		return nil, nil, usage("%s has no such port %s; it has %s", e, portText, strings.Join(have, ", "))
	}
	behind = unique(behind)
	return unique(append(all, behind...)), behind, nil
}

func unique(peers []capture.Peer) (out []capture.Peer) {
	for _, p := range peers {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// at adds an end to what its node is asked for, if it can be captured at.
func (p *plan) at(end explainEnd, filter capture.Filter, f captureFlags) {
	if end.Kind != endPod && end.Kind != endNode {
		return
	}
	filter.Ends = end.addresses
	s := capture.Station{Filter: filter}
	words := "node " + end.Node
	switch {
	case end.Kind == endPod && end.hostNetwork:
		note := end.String() + " has no interface of its own: capturing on all devices of node " + end.Node
		if filter.EndPort == 0 && filter.Port == 0 {
			note += ", whatever uses its addresses; name the pod's port with --port"
		}
		p.notes = append(p.notes, note)
	case end.Kind == endPod:
		s.Pod, words = end.Name, "pod "+end.Name+" on node "+end.Node
	}
	n := slices.Index(p.nodes, end.Node)
	if n < 0 {
		n = len(p.nodes)
		p.nodes = append(p.nodes, end.Node)
		p.questions = append(p.questions, capture.Question{Snap: f.snap, For: f.lasting})
	}
	p.questions[n].Stations = append(p.questions[n].Stations, s)
	p.words = append(p.words, words)
}

// check says why there is nothing to capture at, and makes all nodes tell of all that is captured.
func (p *plan) check(ends ...explainEnd) error {
	if len(p.nodes) == 0 {
		var names []string
		for _, e := range ends {
			names = append(names, e.String())
		}
		return usage("%s: nothing of this cluster to capture at: want a pod or a node as one of the ends", strings.Join(names, ", "))
	}
	var about []netip.Addr
	stations := 0
	for _, q := range p.questions {
		for _, s := range q.Stations {
			about = append(about, s.Filter.Ends...)
			stations++
		}
	}
	if stations > mostStations {
		return usage("%s: %d pods to capture at, at most %d at a time: name one of them", ends[len(ends)-1], stations, mostStations)
	}
	for i := range p.questions {
		p.questions[i].About = about
	}
	return nil
}

// only leaves what this node can capture.
func (p *plan) only(self string, args []string) error {
	n := slices.Index(p.nodes, self)
	if n < 0 {
		return usage("%s, and this is node %s: type it there, or ask from outside the cluster: strait capture %s",
			strings.Join(p.words, " and "), self, strings.Join(args, " "))
	}
	if len(p.nodes) > 1 {
		p.notes = append(p.notes, "only what is on this node is captured; from outside the cluster both ends are: "+strings.Join(p.words, ", "))
	}
	p.words = slices.DeleteFunc(p.words, func(w string) bool { return !strings.HasSuffix(w, "node "+self) })
	p.nodes, p.questions = []string{self}, p.questions[n:n+1]
	return nil
}

// others finds the agents to ask, and adds nodes that may have something to tell of the packets.
func (p *plan) others(agents []target) error {
	for _, n := range p.nodes {
		i := slices.IndexFunc(agents, func(t target) bool { return t.node == n })
		if i < 0 {
			return unreachable(fmt.Errorf("no strait-agent pod on node %s", n))
		}
		if agents[i].err != nil {
			return unreachable(fmt.Errorf("node %s: %w", n, agents[i].err))
		}
		p.agents = append(p.agents, agents[i])
	}
	var more []target
	var silent []string
	for _, t := range agents {
		switch {
		case slices.Contains(p.nodes, t.node):
		case t.err != nil:
			silent = append(silent, fmt.Sprintf("%s (%v)", t.node, t.err))
		default:
			more = append(more, t)
		}
	}
	if n := len(silent); n > 0 {
		if n > mostSilent {
			silent = append(silent[:mostSilent], fmt.Sprintf("and %d more", n-mostSilent))
		}
		p.notes = append(p.notes, "what these nodes deny is seen as packets without an answer, they cannot be asked: "+strings.Join(silent, ", "))
	}
	if len(more) > mostOthers {
		p.notes = append(p.notes, fmt.Sprintf("%d other nodes are too many to ask: what they deny is seen as packets without an answer; name the other end to capture there as well", len(more)))
		return nil
	}
	q := capture.Question{About: p.questions[0].About, For: p.questions[0].For}
	for _, t := range more {
		p.nodes, p.questions, p.agents = append(p.nodes, t.node), append(p.questions, q), append(p.agents, t)
	}
	return nil
}

// openFile makes the file of a capture: packets hold what only its owner should read.
func (f *captureFlags) openFile() (*os.File, error) {
	mode := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if f.force {
		mode = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	file, err := os.OpenFile(f.file, mode, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, usage("--write: %w; --force overwrites it", err)
	}
	if err != nil {
		return nil, usage("--write: %w", err)
	}
	return file, nil
}
