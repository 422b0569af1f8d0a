package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/protobuf/types/known/structpb"
	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/internal/observer"
	"github.com/strait-net/strait/internal/policy"
)

// flowFormat is how flows are printed; it is the value of the flag --output of observe.
type flowFormat string

const (
	flowCompact flowFormat = "compact"
	flowTable   flowFormat = "table"
	flowWide    flowFormat = "wide"
	flowDict    flowFormat = "dict"
	flowJSON    flowFormat = "json"
	flowJSONPB  flowFormat = "jsonpb" // the same: what Hubble's client calls it
	flowYAML    flowFormat = "yaml"
)

func flowFormats() []string {
	return []string{string(flowCompact), string(flowTable), string(flowWide), string(flowDict), string(flowJSON), string(flowJSONPB), string(flowYAML)}
}

func (f *flowFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *flowFormat) Type() string { return "format" }

// Set implements pflag.Value.
func (f *flowFormat) Set(s string) error {
	for _, known := range flowFormats() {
		if s == known {
			*f = flowFormat(s)
			return nil
		}
	}
	return errors.New("unknown output format; there are: " + strings.Join(flowFormats(), ", "))
}

// needsAll reports whether nothing can be printed before the last flow is known.
func (f flowFormat) needsAll() bool { return f == flowTable || f == flowWide }

const dictSeparator = "------------\n"

// flowPrinter prints what observers say, one answer after the other.
type flowPrinter struct {
	*app
	output  flowFormat
	nodes   bool // say which node saw it
	numeric bool
	beats   bool // nodes are a program's business: they are printed as flows are
	table   *grid
	printed int
	met     bool            // it is known which nodes answer
	away    map[string]bool // nodes that do not answer
	failed  bool            // one of them did not at some time
}

func (o *observation) printer(nodes bool) *flowPrinter {
	p := &flowPrinter{app: o.app, output: o.output, nodes: nodes || o.output == flowWide, numeric: o.numeric, beats: o.beats, away: map[string]bool{}}
	if o.output.needsAll() {
		p.table = &grid{columns: columns("TIME", "NODE", "SOURCE", "+SOURCE IDENTITY#", "DESTINATION", "+DESTINATION IDENTITY#", "PROTOCOL", "VERDICT", "BECAUSE")}
	}
	return p
}

// add prints an answer, or keeps it for the table.
func (p *flowPrinter) add(r *observerpb.GetFlowsResponse) error {
	if n := r.GetNodeStatus(); n != nil && !p.beats {
		p.nodeStatus(n)
		return nil
	}
	switch p.output {
	case flowJSON, flowJSONPB, flowYAML:
		return p.machine(r)
	}
	if l := r.GetLostEvents(); l != nil {
		return p.lost(r, l)
	}
	f := r.GetFlow()
	if f == nil {
		return nil
	}
	x := lineOf(f, p.numeric)
	defer func() { p.printed++ }()
	when := p.stamp(f.GetTime().AsTime())
	switch p.output {
	case flowDict:
		return p.write(p.dict(f, x, when))
	case flowTable, flowWide:
		node := ""
		if p.nodes {
			node = f.NodeName
		}
		p.table.add(when, node, x.source, fmt.Sprint(f.GetSource().GetIdentity()), x.target, fmt.Sprint(f.GetDestination().GetIdentity()), x.protocol,
			cell{text: x.verdict, style: x.style}, x.because)
		return nil
	}
	node := ""
	if p.nodes {
		node = " [" + f.NodeName + "]"
	}
	text := p.paint(faint, when+node+":") + " " + x.source + " " + x.arrow + " " + x.target + " " + x.protocol + " " + p.paint(x.style, x.verdict)
	if x.because != "" {
		text += x.joint + x.because
	}
	return p.write(text + "\n")
}

// finish prints the table.
func (p *flowPrinter) finish() error {
	if p.table == nil {
		return nil
	}
	p.app.output = formatTable
	if p.output == flowWide {
		p.app.output = formatWide
	}
	return p.write(p.renderOr(p.table, "no flows"))
}

func (p *flowPrinter) stamp(t time.Time) string {
	return t.In(p.Now().Location()).Format(time.StampMilli)
}

// machine prints the answer as Hubble's protocol has it in JSON, a line each, or as a YAML document.
func (p *flowPrinter) machine(r *observerpb.GetFlowsResponse) error {
	text, err := r.MarshalJSON()
	if err != nil {
		return fmt.Errorf("print flow: %w", err)
	}
	if p.output == flowYAML {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return fmt.Errorf("print flow: %w", err)
		}
		return p.write("---\n" + string(text))
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil { // the blanks of this JSON differ from program to program
		return fmt.Errorf("print flow: %w", err)
	}
	return p.write(line.String() + "\n")
}

// nodeStatus names nodes that do not answer, and those that answer later. Of those that answer at the beginning nobody has to be told.
func (p *flowPrinter) nodeStatus(n *relaypb.NodeStatusEvent) {
	for _, name := range n.GetNodeNames() {
		text := ""
		switch n.GetStateChange() {
		case relaypb.NodeState_NODE_UNAVAILABLE, relaypb.NodeState_NODE_ERROR:
			p.away[name], p.failed = true, true
			text = "does not answer: " + n.GetMessage()
		case relaypb.NodeState_NODE_GONE:
			delete(p.away, name)
			text = "has left"
		case relaypb.NodeState_NODE_CONNECTED:
			switch {
			case p.away[name]:
				delete(p.away, name)
				text = "answers now"
			case p.met:
				text = "has joined"
			}
		}
		if text != "" {
			_, _ = fmt.Fprintf(p.Err, "node %s %s\n", name, text) // nobody left to tell
		}
	}
	p.met = p.met || n.GetStateChange() == relaypb.NodeState_NODE_CONNECTED
}

// lost says that flows are missing here.
func (p *flowPrinter) lost(r *observerpb.GetFlowsResponse, l *flowpb.LostEvent) error {
	why := "overwritten before they could be read: choose less with filters, or raise flows.keep"
	if l.GetSource() == flowpb.LostEventSource_PERF_EVENT_RING_BUFFER {
		why = "for which the kernel's buffer had no room; their packets are counted"
	}
	text := fmt.Sprintf("%s [%s]: %d flows LOST, %s", p.stamp(r.GetTime().AsTime()), r.GetNodeName(), l.GetNumEventsLost(), why)
	if p.table != nil {
		_, _ = fmt.Fprintln(p.Err, p.paint(yellow, text)) // nobody left to tell
		return nil
	}
	return p.write(p.paint(yellow, text) + "\n")
}

func (p *flowPrinter) dict(f *flowpb.Flow, x flowLine, when string) string {
	var b strings.Builder
	if p.printed > 0 {
		b.WriteString(dictSeparator)
	}
	for _, row := range [][2]string{
		{"TIMESTAMP", when}, {"NODE", f.GetNodeName()}, {"SOURCE", x.source}, {"DESTINATION", x.target}, {"PROTOCOL", x.protocol},
		{"VERDICT", p.paint(x.style, x.verdict)}, {"BECAUSE", x.because}, {"SUMMARY", f.GetSummary()}, //nolint:staticcheck // it is what Hubble prints
		{"UUID", f.GetUuid()},
	} {
		if row[1] != "" {
			fmt.Fprintf(&b, "%11s: %s\n", row[0], row[1])
		}
	}
	return b.String()
}

// flowLine is a flow in words.
type flowLine struct {
	source, arrow, target, protocol, verdict, because string
	joint                                             string // between verdict and because
	style                                             style
}

// lineOf puts a flow into words, from any server of Hubble's protocol.
func lineOf(f *flowpb.Flow, numeric bool) flowLine {
	x := extra{}
	if s := (&structpb.Struct{}); f.GetExtensions().UnmarshalTo(s) == nil {
		x = s.GetFields()
	}
	source, target := portsOf(f.GetL4())
	l := flowLine{
		source: endName(f.GetSource(), f.GetIP().GetSource(), source, numeric), target: endName(f.GetDestination(), f.GetIP().GetDestination(), target, numeric),
		arrow: "->", protocol: protocolOf(f), joint: " ",
	}
	if front := x.text(observer.FieldFrontend); front != "" || f.GetDestinationService() != nil {
		l.target += " (" + serviceText(f.GetDestinationService(), front, numeric) + ")"
	}
	if f.GetIsReply().GetValue() {
		l.source, l.target, l.arrow = l.target, l.source, "<-"
	}
	l.judge(f, x)
	return l
}

// judge says what became of it, and why.
func (l *flowLine) judge(f *flowpb.Flow, x extra) {
	const verdictEvent = 5
	direction := ""
	if f.GetEventType().GetType() == verdictEvent {
		direction = strings.ToLower(f.GetTrafficDirection().String()) + " "
	}
	rule := cmp.Or(x.text(observer.FieldRule), policyNames(f))
	switch f.GetVerdict() {
	case flowpb.Verdict_DROPPED, flowpb.Verdict_ERROR:
		l.verdict, l.style, l.joint = "DROPPED", red, ": "
		l.because = cmp.Or(x.text(observer.FieldReasonText), strings.ToLower(strings.ReplaceAll(f.GetDropReasonDesc().String(), "_", " ")))
		if direction != "" {
			l.verdict, l.because = "DENIED", cmp.Or(x.text(observer.FieldExplanation), rule, l.because)
		}
		if n := x.number(observer.FieldPackets); n > 1 {
			l.because += fmt.Sprintf(" (%d packets)", n)
		}
	case flowpb.Verdict_AUDIT:
		l.verdict, l.style, l.joint = "AUDITED", yellow, ": "
		l.because = cmp.Or(x.text(observer.FieldAudited), policyNames(f)) + " would deny it"
	case flowpb.Verdict_FORWARDED, flowpb.Verdict_REDIRECTED:
		l.verdict, l.style = f.GetVerdict().String(), green
		if direction != "" {
			l.verdict, l.because, l.joint = "ALLOWED", rule, " by "
		}
		if rule == policy.DefaultAllow {
			l.because, l.joint = "no policy isolates it", ": "
		}
	default:
		l.verdict = f.GetVerdict().String()
	}
	switch x.text(observer.FieldEvent) {
	case "ended":
		l.verdict, l.style, l.joint = "ENDED", faint, ": "
		l.because = fmt.Sprintf("%s sent, %s back", volume(x, observer.FieldPackets, observer.FieldBytes), volume(x, observer.FieldAnswered, observer.FieldAnsweredB))
		if x.text(observer.FieldHook) == "sweep" {
			l.because += "; silent for too long"
		}
	case "judged":
		l.verdict += " NOW"
	}
	l.verdict = direction + l.verdict
}

func volume(x extra, packets, bytes string) string {
	return fmt.Sprintf("%d packets %s", x.number(packets), sizeText(x.number(bytes)))
}

// sizeText prints bytes with three digits or so.
func sizeText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	v, i := float64(n), 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1000
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// extra are the fields that only Strait has.
type extra map[string]*structpb.Value

func (x extra) text(name string) string   { return x[name].GetStringValue() }
func (x extra) number(name string) uint64 { return uint64(x[name].GetNumberValue()) }

// policyNames are the policies that Hubble's own fields name.
func policyNames(f *flowpb.Flow) string {
	var out []string
	for _, list := range [][]*flowpb.Policy{f.GetEgressDeniedBy(), f.GetIngressDeniedBy(), f.GetEgressAllowedBy(), f.GetIngressAllowedBy()} {
		for _, p := range list {
			out = append(out, p.GetKind()+" "+strings.TrimPrefix(p.GetNamespace()+"/"+p.GetName(), "/"))
		}
		if len(out) > 0 {
			break
		}
	}
	return strings.Join(out, ", ")
}

// endName is a pod, or an address with what is known of it.
func endName(e *flowpb.Endpoint, address, port string, numeric bool) string {
	at := func(host string) string {
		if port == "" {
			return host
		}
		return net.JoinHostPort(host, port)
	}
	if e.GetPodName() != "" && !numeric {
		return at(e.GetNamespace() + "/" + e.GetPodName())
	}
	if len(e.GetLabels()) == 1 && !numeric {
		if what, is := strings.CutPrefix(e.GetLabels()[0], "reserved:"); is {
			return at(address) + " (" + what + ")"
		}
	}
	return at(address)
}

func serviceText(s *flowpb.Service, front string, numeric bool) string {
	if s == nil || numeric {
		return "service " + front
	}
	text := "service " + s.GetNamespace() + "/" + s.GetName()
	if _, port, err := net.SplitHostPort(front); err == nil {
		text += ":" + port
	}
	return text
}

func portsOf(l4 *flowpb.Layer4) (source, target string) {
	text := func(a, b uint32) (string, string) { return strconv.Itoa(int(a)), strconv.Itoa(int(b)) }
	switch p := l4.GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return text(p.TCP.GetSourcePort(), p.TCP.GetDestinationPort())
	case *flowpb.Layer4_UDP:
		return text(p.UDP.GetSourcePort(), p.UDP.GetDestinationPort())
	case *flowpb.Layer4_SCTP:
		return text(p.SCTP.GetSourcePort(), p.SCTP.GetDestinationPort())
	}
	return "", ""
}

func protocolOf(f *flowpb.Flow) string {
	switch p := f.GetL4().GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		return "TCP"
	case *flowpb.Layer4_UDP:
		return "UDP"
	case *flowpb.Layer4_SCTP:
		return "SCTP"
	case *flowpb.Layer4_ICMPv4:
		return icmpName("ICMP", p.ICMPv4.GetType(), p.ICMPv4.GetCode(), 8, 0)
	case *flowpb.Layer4_ICMPv6:
		return icmpName("ICMPv6", p.ICMPv6.GetType(), p.ICMPv6.GetCode(), 128, 129)
	case *flowpb.Layer4_VRRP:
		return "VRRP"
	case *flowpb.Layer4_IGMP:
		return "IGMP"
	}
	before, _, _ := strings.Cut(f.GetSummary(), ";") //nolint:staticcheck // of other protocols nothing else says which
	return cmp.Or(before, "IP")
}

func icmpName(protocol string, kind, code, request, reply uint32) string {
	switch kind {
	case request:
		return protocol + " echo"
	case reply:
		return protocol + " echo reply"
	}
	return fmt.Sprintf("%s %d/%d", protocol, kind, code)
}
