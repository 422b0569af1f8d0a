package observer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
)

// The fields of the Struct in a flow's extensions: what Hubble has no field for. Each is there only if it says something.
const (
	FieldEvent       = "event"       // new, judged, ended, denied, dropped
	FieldReason      = "reason"      // of what was dropped or denied, as in docs/reference/drop-reasons.md
	FieldReasonText  = "reasonText"  // for people
	FieldRule        = "rule"        // the rule that decided: object, direction and path
	FieldAudited     = "audited"     // the rule that would have denied it
	FieldExplanation = "explanation" // why it was denied, a sentence
	FieldMisses      = "misses"      // rules that almost allowed it, and what is missing
	FieldServicePort = "servicePort" // its name
	FieldFrontend    = "frontend"    // address and port of the service, as the sender knows it
	FieldMasquerade  = "masquerade"  // address and port that stood for the sender
	FieldPackets     = "packets"     // from the beginner of what ended; of what did not arrive, what this flow stands for
	FieldBytes       = "bytes"
	FieldAnswered    = "answeredPackets" // to the beginner, of what ended
	FieldAnsweredB   = "answeredBytes"
	FieldHook        = "hook"   // the program that saw it, or "sweep": the connection was silent for too long
	FieldByAnswer    = "answer" // true: seen with a packet of the end that did not begin
)

// describe adds the text, and what only Strait says.
func (s *Server) describe(out *flowpb.Flow, p *part) {
	x := map[string]*structpb.Value{}
	put := func(name, value string) {
		if value != "" {
			x[name] = structpb.NewStringValue(value)
		}
	}
	number := func(name string, n uint64) {
		if n > 0 {
			x[name] = structpb.NewNumberValue(float64(n))
		}
	}
	put(FieldEvent, p.Kind.String())
	put(FieldHook, p.Hook.String())
	put(FieldServicePort, p.ServicePort)
	put(FieldFrontend, textOf(p.Front))
	put(FieldMasquerade, textOf(p.NAT))
	if p.Answer {
		x[FieldByAnswer] = structpb.NewBoolValue(true)
	}
	number(FieldPackets, p.Sent.Packets)
	number(FieldBytes, p.Sent.Bytes)
	number(FieldAnswered, p.Answered.Packets)
	number(FieldAnsweredB, p.Answered.Bytes)
	summary := []string{wireText(p.Flow)}
	if p.verdict == flowpb.Verdict_DROPPED {
		put(FieldReason, p.Reason.String())
		put(FieldReasonText, p.Reason.Text())
	}
	switch {
	case p.kind == typeVerdict:
		_, rule := ruleOf(p.Flow, p.way())
		if rule != nil {
			put(FieldRule, ruleText(rule))
		}
		if p.verdict == flowpb.Verdict_AUDIT && p.AuditedRule != nil {
			put(FieldAudited, ruleText(p.AuditedRule))
		}
		text := decision(p, rule)
		if p.verdict == flowpb.Verdict_DROPPED {
			var misses []string
			text, misses = s.denial(p, rule)
			put(FieldExplanation, text)
			if len(misses) > 0 {
				x[FieldMisses] = listOf(misses)
			}
		}
		summary = append(summary, text)
	case p.kind == typeDrop:
		summary = append(summary, p.Reason.Text())
	case p.Kind == flow.Ended:
		summary = append(summary, endText(p.Flow))
	}
	out.Summary = strings.Join(slices.DeleteFunc(summary, func(s string) bool { return s == "" }), "; ") //nolint:staticcheck // clients print this one
	if any, err := anypb.New(&structpb.Struct{Fields: x}); err == nil {
		out.Extensions = any
	}
}

func listOf(texts []string) *structpb.Value {
	list := &structpb.ListValue{}
	for _, t := range texts {
		list.Values = append(list.Values, structpb.NewStringValue(t))
	}
	return structpb.NewListValue(list)
}

// textOf leaves out a port that there is none of.
func textOf(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// ruleText names a rule; one that stands in no object by what it is.
func ruleText(r *policy.RuleRef) string {
	if r.Kind == policy.Builtin {
		return r.Name
	}
	return r.String()
}

// wireText is what Hubble says of the packet: "TCP Flags: SYN".
func wireText(f *flow.Flow) string {
	switch f.Protocol {
	case policy.TCP:
		if flags := flagNames(f.TCPFlags); flags != "" {
			return "TCP Flags: " + flags
		}
		return "TCP"
	case policy.ICMP, policy.ICMPv6:
		return f.Protocol.String() + " " + icmpText(f.Protocol, f.ICMP)
	}
	return f.Protocol.String()
}

func flagNames(b uint8) string {
	var out []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if b&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

func icmpText(protocol policy.Protocol, typeAndCode uint16) string {
	kind, code := typeAndCode>>8, typeAndCode&0xff
	switch {
	case protocol == policy.ICMP && kind == 8, protocol == policy.ICMPv6 && kind == 128:
		return "EchoRequest"
	case protocol == policy.ICMP && kind == 0, protocol == policy.ICMPv6 && kind == 129:
		return "EchoReply"
	}
	return fmt.Sprintf("type %d code %d", kind, code)
}

// decision says what allowed a connection.
func decision(p *part, rule *policy.RuleRef) string {
	var text string
	switch {
	case rule == nil:
		text = "allowed by a rule that is gone"
	case rule.Kind != policy.Builtin:
		text = "allowed by " + rule.String()
	case rule.Name == policy.DefaultAllow:
		text = "no policy isolates it"
	default:
		text = "allowed: " + ruleText(rule)
	}
	if p.verdict == flowpb.Verdict_AUDIT && p.AuditedRule != nil {
		text += "; audited: " + ruleText(p.AuditedRule) + " would deny it"
	}
	return text
}

func endText(f *flow.Flow) string {
	how := "ended"
	switch {
	case f.Hook == flow.Userland:
		how = "ended by silence"
	case f.Protocol == policy.TCP && f.TCPFlags&tcpRST != 0:
		how = "ended by RST"
	case f.Protocol == policy.TCP && f.TCPFlags&tcpFIN != 0:
		how = "ended by FIN"
	}
	return fmt.Sprintf("%s after %d packets with %d bytes, %d with %d back", how, f.Sent.Packets, f.Sent.Bytes, f.Answered.Packets, f.Answered.Bytes)
}

// denial says why policy does not allow something, and which rules almost did.
func (s *Server) denial(p *part, rule *policy.RuleRef) (text string, misses []string) {
	switch {
	case rule == nil:
		return "denied by a rule that is gone", nil
	case rule.Kind == policy.Builtin && rule.Name == policy.ModeAlwaysOn:
		text = "no policy allowed it, and the mode is always"
	case rule.Kind == policy.Builtin || rule.Path != "":
		return "denied by " + ruleText(rule), nil
	default:
		text = "no rule of " + rule.Ref.String() + " allowed it"
	}
	if s.c.Explain == nil || !s.explanations.Allow() {
		return text, nil
	}
	e, ok := s.c.Explain(p.Flow, p.way())
	if !ok {
		return text, nil
	}
	if e.Allow {
		return text + "; now it is allowed: " + ruleText(&e.Rule), nil
	}
	var isolating []string
	for _, p := range e.Policies {
		if name := p.String(); p.Isolates && !p.Audit && !slices.Contains(isolating, name) {
			isolating = append(isolating, name)
		}
	}
	if len(isolating) > 0 && rule.Kind != policy.Builtin {
		text = "no rule of " + strings.Join(isolating, ", ") + " allowed it"
	}
	for _, m := range e.Misses {
		misses = append(misses, m.String())
	}
	if len(misses) > 0 {
		text += "; nearest miss " + misses[0]
	}
	return text, misses
}
