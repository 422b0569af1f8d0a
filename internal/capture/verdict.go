package capture

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Outcome is what became of a packet, in a word.
type Outcome string

// The outcomes.
const (
	Allowed     Outcome = "allowed"
	WasDenied   Outcome = "denied"
	WasDropped  Outcome = "dropped"
	NotKnown    Outcome = "no verdict"
	defaultRule         = "default allow" // policy.DefaultAllow
)

// Verdict is what became of a packet, for people.
type Verdict struct {
	Outcome Outcome `json:"outcome"`
	Text    string  `json:"text"`              // begins with the outcome, or with that the connection was known
	Service string  `json:"service,omitempty"` // what was translated
}

// Comments are those of the packet in a file.
func (v Verdict) Comments() []string {
	if v.Service == "" {
		return []string{v.Text}
	}
	return []string{v.Text, v.Service}
}

// witness is all that is known about the surroundings of a packet.
type witness struct {
	place   *Place
	own     *book
	others  []*book
	arrived bool // it was seen where it was to go
	lost    bool // the capture has lost packets of the station
}

// judge says what became of a packet; end is when another one of the same direction came, far when the last event about it may have come.
func (w *witness) judge(h *Header, data []byte, at, end, far time.Time) Verdict {
	if !h.IP {
		return Verdict{Outcome: NotKnown, Text: "no verdict: " + etherName(h.EtherType) + " is not judged"}
	}
	if q, ok := h.quoted(data); ok {
		v := w.judgeOne(&q, at, end, far)
		v.Text = fmt.Sprintf("ICMP error about %s -> %s: %s", q.end(q.Source), q.end(q.Target), v.Text)
		return v
	}
	return w.judgeOne(h, at, end, far)
}

func (w *witness) judgeOne(h *Header, at, end, far time.Time) Verdict {
	own := w.own.find(h, at, end, w.arrived, w.place)
	if own.Event == nil { // programs may be behind the tap when packets follow each other closely
		own = w.own.find(h, at, far, w.arrived, w.place)
	}
	found := []finding{own}
	for _, b := range w.others {
		f := b.find(h, at, far, w.arrived, w.place)
		if f.Event == nil {
			continue
		}
		if f.stops() && (own.Event == nil || !own.stops()) {
			return w.stopped(f, " at "+b.node)
		}
		f.fresh = f.fresh && own.Event == nil
		found = append(found, f)
	}
	found = slices.DeleteFunc(found, func(f finding) bool { return f.Event == nil })
	switch {
	case len(found) == 0:
		return w.silence(h, at)
	case own.Event != nil && own.stops():
		return w.stopped(own, w.here())
	case w.place.Kind == OnTheWay && !w.arrived:
		why := "nobody tells why"
		if w.lost {
			why = "the capture has lost packets there"
		}
		return Verdict{NotKnown, "no verdict: not seen at " + w.place.Pod + ", " + why + "; " + w.allowed(found), translation(found)}
	}
	return Verdict{Allowed, w.allowed(found), translation(found)}
}

// here names the node where more than one is looked at.
func (w *witness) here() string {
	if len(w.others) == 0 {
		return ""
	}
	return " at " + w.own.node
}

func (w *witness) stopped(f finding, where string) Verdict {
	v := Verdict{Outcome: WasDenied, Service: translation([]finding{f})}
	if f.What == Dropped {
		v.Outcome = WasDropped
	}
	v.Text = string(v.Outcome) + where + ": " + f.Why
	if !f.fresh {
		v.Text += " (repeated: told once a second)"
	}
	return v
}

// silence says why there is no verdict.
func (w *witness) silence(h *Header, at time.Time) Verdict {
	lost := w.own.lost(at)
	text := "no flow tells of it"
	switch {
	case lost > 0:
		text = fmt.Sprintf("%s has lost %d records of that time", w.own.node, lost)
	case h.Target.Addr().IsMulticast() || h.Target.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		text = "multicast is not judged"
	case !w.own.told:
		text = w.own.node + " tells of no flows"
	case h.Later && !h.Ports:
		text = "a later fragment, whose first one was not seen"
	case w.place.Kind == OnTheWay && !w.arrived:
		text = "not seen at " + w.place.Pod + ", and no flow tells of it"
	case w.arrived:
		text = "it arrived, and no flow tells by which rule"
	case h.TCPFlags&RST != 0:
		text = "a reset that belongs to no known connection is not told of"
	}
	return Verdict{Outcome: NotKnown, Text: "no verdict: " + text}
}

// allowed names the rules of all nodes that judged, each once.
func (w *witness) allowed(found []finding) string {
	var rules []string
	judged, fresh, audited := false, false, ""
	var known *Event
	for _, f := range found {
		if f.What == Known {
			known = f.Event
			continue
		}
		fresh = fresh || f.fresh && f.What == Began
		for _, rule := range []string{f.Egress, f.Ingress} {
			judged = judged || rule != ""
			if rule != "" && rule != defaultRule && !slices.Contains(rules, rule) {
				rules = append(rules, rule)
			}
		}
		if f.Audited != "" {
			audited = "; audited: " + f.Audited + " would deny it"
		}
	}
	text := "allowed: "
	if !fresh {
		text = "known connection, allowed: "
	}
	switch {
	case len(rules) > 0:
		return text + strings.Join(rules, "; ") + audited
	case judged:
		return text + "no policy isolates it" + audited
	case known != nil && len(found) == 1:
		return fmt.Sprintf("known connection, allowed: begun %s before the capture, by which rule is not remembered", known.Age)
	}
	if len(w.others) == 0 { // the other end's node may say otherwise
		return text + "no policy on " + w.own.node + " judges it" + audited
	}
	return text + "no policy judges it" + audited
}

// translation says what stands for what.
func translation(found []finding) string {
	var out []string
	for _, f := range found {
		if f.Front.IsValid() {
			text := strings.TrimSpace("service "+f.Service) + " " + portless(f.Front) + " -> " + portless(f.Target)
			if !slices.Contains(out, text) {
				out = append(out, text)
			}
		}
	}
	for _, f := range found {
		if f.NAT.IsValid() {
			text := portless(f.Source) + " is masqueraded as " + portless(f.NAT)
			if !slices.Contains(out, text) {
				out = append(out, text)
			}
		}
	}
	return strings.Join(out, "; ")
}

// portless leaves out a port that there is none of.
func portless(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

func (h *Header) end(a netip.AddrPort) string {
	if !h.Ports {
		return a.Addr().String()
	}
	return a.String()
}

// EndName is an end of the packet with a name in place of the address.
func (h *Header) EndName(a netip.AddrPort, names map[netip.Addr]string) string {
	name := names[a.Addr()]
	switch {
	case name == "":
		return h.end(a)
	case !h.Ports:
		return name
	}
	return net.JoinHostPort(name, strconv.Itoa(int(a.Port())))
}

// etherName is what a frame without IP carries.
func etherName(t uint16) string {
	switch t {
	case etherARP:
		return "ARP"
	case 0, etherIPv4, etherIPv6:
		return "what cannot be read"
	}
	return fmt.Sprintf("EtherType 0x%04x", t)
}
