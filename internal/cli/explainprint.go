package cli

import (
	"fmt"
	"strings"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/verdict"
)

const (
	wideHops  = 110 // columns from which places stand in a column of their own,
	mostPlace = 40  // which is at most so wide
)

// looks of what becomes of a packet.
func outcomeLook(o localapi.HopOutcome) (label string, s style) {
	switch o {
	case localapi.HopOn:
		return "", plain
	case localapi.HopDelivered:
		return "DELIVERED", green
	case localapi.HopDropped:
		return "DROPPED", red
	case localapi.HopRefused:
		return "REFUSED", red
	case localapi.HopWarning:
		return "WARNING", yellow
	}
	return "NOT KNOWN", yellow
}

func verdictLook(v explain.Verdict) style {
	switch v {
	case explain.Delivered:
		return green
	case explain.Unknown:
		return yellow
	}
	return red
}

// pathText lays a path out for people: who to whom, the way there, the way back, and what it comes to.
func (a *app) pathText(out explained, verbose bool) string {
	s := &pathScreen{screen: screen{app: a}, verbose: verbose, path: out}
	s.text(bold, headText(out), "", "  ")
	if len(out.Backends) > 1 {
		s.text(plain, fmt.Sprintf("One of %d backends is followed, --backend chooses another: %s", len(out.Backends), joined(out.Backends)), "", "  ")
	}
	s.way("There", out.There)
	s.way("Back", out.Back)
	s.b.WriteString("\n")
	s.text(verdictLook(out.Conclusion.Verdict), concluded(out.Conclusion), "", "")
	return s.b.String()
}

// concluded is the last line.
func concluded(c explain.Conclusion) string {
	text := strings.ToUpper(c.Text[:min(1, len(c.Text))]) + c.Text[min(1, len(c.Text)):]
	if n := len(c.Warnings); n > 0 {
		text += fmt.Sprintf(" (%s above)", plural(n, "warning"))
	}
	return text
}

// headText is who sends what to whom.
func headText(out explained) string {
	what := out.Protocol
	switch {
	case out.Protocol == "ICMP":
		what = "an echo request"
	case out.Destination.Port != 0:
		what = fmt.Sprintf("%s port %d", out.Protocol, out.Destination.Port)
	}
	return fmt.Sprintf("%s -> %s, %s", endLine(out.Source), endLine(out.Destination), what)
}

func endLine(e explainEnd) string {
	where := ""
	if e.Node != "" && e.Kind != endNode {
		where = " on node " + e.Node
	}
	switch {
	case e.Name == "":
		return "outside address " + e.Address.String()
	case e.Kind == endOutside:
		return fmt.Sprintf("the world outside (%s stands for it)", e.Address)
	case e.hostNetwork:
		return fmt.Sprintf("%s (hostNetwork: %s%s)", e, e.Address, where)
	}
	return fmt.Sprintf("%s (%s%s)", e, e.Address, where)
}

func joined[T fmt.Stringer](all []T) string {
	var out []string
	for _, x := range all {
		out = append(out, x.String())
	}
	return strings.Join(out, ", ")
}

// pathScreen is a path as it is printed.
type pathScreen struct {
	screen
	verbose bool
	path    explained
	place   int // width of the column of places, 0: none
}

// text writes a paragraph; first and rest stand before its first and its other lines.
func (s *pathScreen) text(look style, text, first, rest string) {
	width := s.width()
	if width > 0 {
		width = max(20, width-len(rest))
	}
	for i, line := range strings.Split(wrap(text, width, ""), "\n") {
		indent := rest
		if i == 0 {
			indent = first
		}
		s.b.WriteString(indent + s.paint(look, line) + "\n")
	}
}

// way writes one direction.
func (s *pathScreen) way(title string, legs []explain.Leg) {
	if len(legs) == 0 {
		return
	}
	s.place = 0
	if s.Width >= wideHops {
		for _, l := range legs {
			for _, h := range hopsOf(l) {
				s.place = min(mostPlace, max(s.place, len(h.Place)))
			}
		}
	}
	s.b.WriteString("\n" + s.paint(bold, title) + "\n")
	number := 0
	for _, l := range legs {
		s.b.WriteString("  " + s.paint(bold, "node "+l.Node) + s.paint(faint, cameBy(l.Asked)) + "\n")
		if l.Part == nil {
			s.text(yellow, "NOT KNOWN: "+l.Error, "      ", "        ")
			if !strings.Contains(l.Error, "strait ") {
				s.text(plain, "-> what is wrong there: strait status", "      ", "         ")
			}
			continue
		}
		for _, h := range l.Part.Hops {
			number++
			s.hop(number, l, h)
		}
		if l.Part.Next != nil && l.Part.Next.Node == "" {
			s.b.WriteString("  " + s.paint(bold, "outside the cluster") + "\n")
		}
	}
}

func hopsOf(l explain.Leg) []localapi.Hop {
	if l.Part == nil {
		return nil
	}
	return l.Part.Hops
}

// cameBy says how a packet has come to a node.
func cameBy(q localapi.ExplainQuestion) string {
	switch q.Entry {
	case localapi.EntryTunnel:
		return ", by the tunnel"
	case localapi.EntryNet:
		return ", by the network"
	}
	return ""
}

const hopIndent = "      " // of what stands below a hop's first line

func (s *pathScreen) hop(number int, l explain.Leg, h localapi.Hop) {
	label, look := outcomeLook(h.Outcome)
	first := fmt.Sprintf("%4d  ", number)
	below := hopIndent
	if s.place > 0 {
		below += strings.Repeat(" ", s.place+2)
		place := h.Place
		if len(place) > s.place {
			s.b.WriteString(first + place + "\n")
			first = below
		} else {
			first += place + below[len(hopIndent)+len(place):]
		}
		s.text(plain, h.Text, first, below)
	} else {
		s.text(plain, h.Place+": "+h.Text, first, below)
	}
	if h.Entry != "" {
		s.text(faint, "= "+h.Entry, below, below+"  ")
	}
	for _, f := range h.Facts {
		if s.verbose || s.decided(l, h, f) {
			s.text(faint, f.Name+": "+f.Value, below+"- ", below+"  ")
		}
	}
	if label != "" && h.Outcome != localapi.HopDelivered {
		text := label
		if h.Reason != "" && h.Reason != h.Text && h.Reason != h.Text+" ("+h.Entry+")" { // which stands above
			text += ": " + h.Reason
		}
		s.text(look, text, below, below+"  ")
	}
	if why, command := s.advice(l, h); command != "" {
		s.text(plain, "-> "+why+":", below, below+"   ")
		s.b.WriteString(below + "   " + command + "\n") // whole, to be copied
	}
}

// decided reports whether a fact is the rule by which a new connection goes on, which stands nowhere else.
func (s *pathScreen) decided(l explain.Leg, h localapi.Hop, f localapi.Fact) bool {
	return f.Name == "policy" && !l.Asked.Packet.Answer && h.Outcome == localapi.HopOn
}

// advice is what to type about a packet that does not go on, and what for.
func (s *pathScreen) advice(l explain.Leg, h localapi.Hop) (why, command string) {
	if h.Outcome != localapi.HopDropped && h.Outcome != localapi.HopRefused {
		return "", ""
	}
	denied := []verdict.Reason{verdict.PolicyEgress, verdict.PolicyIngress, verdict.PolicyMissing}
	for _, r := range denied {
		if strings.HasPrefix(h.Reason, r.Text()) {
			if judged := s.judged(l); judged != "" {
				return "which rules nearly allow it", "strait policy verdict " + judged
			}
		}
	}
	to := l.Part.Arrived
	if h.Outcome == localapi.HopRefused && to != nil && to.Pod != "" && (s.path.Protocol == "TCP" || s.path.Protocol == "UDP") {
		return "what listens there, typed on node " + l.Node, "strait enter " + to.Pod + " -- ss -lntu"
	}
	return "", ""
}

// judged are the ends as policy judges them: the backend in place of its service. Empty: the backend is not known.
func (s *pathScreen) judged(l explain.Leg) string {
	from, to := s.path.Source.Name, s.path.Destination.Name
	if s.path.Source.Kind != endPod {
		from = s.path.Source.Address.String()
	}
	port := s.path.Destination.Port
	if s.path.Destination.Kind != endPod {
		to = s.path.Destination.Address.String()
	}
	came, sent := l.Asked.Packet, s.path.sent()
	switch changed := came.Target.Addr() != s.path.Destination.Address || came.Target.Port() != s.path.Destination.Port; {
	case s.path.Source.Kind == endOutside && !changed && s.path.Destination.Kind != endPod: // a service, whose backend is chosen where the packet ends
		return ""
	case s.path.Source.Kind == endOutside && changed:
		from, to, port = came.Source.Addr().String(), came.Target.Addr().String(), came.Target.Port()
	case s.path.Destination.Kind == endService && sent != nil:
		to, port = sent.Target.Addr().String(), sent.Target.Port()
	}
	if strings.Contains(to, ":") {
		to = "[" + to + "]"
	}
	if s.path.Protocol == "ICMP" {
		return from + " " + strings.Trim(to, "[]") + "/icmp"
	}
	text := fmt.Sprintf("%s %s:%d", from, to, port)
	if s.path.Protocol != "TCP" {
		text += "/" + strings.ToLower(s.path.Protocol)
	}
	return text
}

// sent is the packet as its sender made it; nil: not known.
func (e explained) sent() *localapi.ExplainPacket {
	if len(e.There) == 0 || e.There[0].Part == nil {
		return nil
	}
	return e.There[0].Part.Sent
}
