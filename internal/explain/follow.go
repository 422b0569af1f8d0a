// Package explain follows a packet from node to node and back, and says what becomes of it. A node's part of the way is worked out on that
// node, by the package part.
package explain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// ErrElsewhere is matched by the error of an Ask that knows only other nodes; its text says where to ask.
var ErrElsewhere = errors.New("is known only on node")

// Ask asks the agent of a node for its part.
type Ask func(ctx context.Context, node string, q localapi.ExplainQuestion) (localapi.ExplainPart, error)

// Leg is one node's part of a path, or that the node could not be asked.
type Leg struct {
	Node  string                   `json:"node"`
	Part  *localapi.ExplainPart    `json:"part,omitempty"`
	Error string                   `json:"error,omitempty"`
	Asked localapi.ExplainQuestion `json:"asked"`
}

// Verdict is what becomes of a packet and of its answer. A packet that is refused before it comes to who it is for counts as dropped.
type Verdict string

// The verdicts.
const (
	Delivered Verdict = "delivered"
	Dropped   Verdict = "dropped"
	But       Verdict = "but"     // the packet would be delivered, but
	Unknown   Verdict = "unknown" // cannot be told
)

// Conclusion is the last line of a path.
type Conclusion struct {
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"` // the line
	// Node, Back and Hop say which hop it is about: the node's Hop-th of the leg, on the way there or back.
	Node string `json:"node,omitempty"`
	Back bool   `json:"back,omitempty"`
	Leg  int    `json:"leg,omitempty"`
	Hop  int    `json:"hop,omitempty"`
	// Warnings are hops at which the packet goes on, but.
	Warnings []string `json:"warnings,omitempty"`
}

// Path is a packet's way and that of its answer.
type Path struct {
	There      []Leg      `json:"there"`
	Back       []Leg      `json:"back,omitempty"`
	Conclusion Conclusion `json:"conclusion"`
}

// mostLegs ends the walk of a packet that nodes hand to each other without end.
const mostLegs = 16

// way is one direction, as far as it came.
type way struct {
	legs []Leg
	stop stop
	hop  localapi.Hop          // the last one
	part *localapi.ExplainPart // the last one
}

// stop is why a direction ends.
type stop int

const (
	stopArrived stop = iota // with who it was for
	stopRefused             // by who it was for
	stopOutside
	stopDropped
	stopUnknown
)

// Follow asks node after node, from the first one on, and then for the answer. It never fails: what cannot be told is said so.
func Follow(ctx context.Context, ask Ask, node string, q localapi.ExplainQuestion) Path {
	there := follow(ctx, ask, node, q)
	p := Path{There: there.legs}
	var back *way
	if there.stop == stopArrived || there.stop == stopOutside {
		b := follow(ctx, ask, there.legs[len(there.legs)-1].Node, answer(q, there))
		back, p.Back = &b, b.legs
	}
	p.Conclusion = conclude(q, there, back)
	return p
}

// answer is the question about the way back.
func answer(q localapi.ExplainQuestion, there way) localapi.ExplainQuestion {
	a := localapi.ExplainQuestion{Session: q.Session, Entry: localapi.EntryNet, Packet: reverse(there.part.Packet), Established: q.Established}
	if to := there.part.Arrived; to != nil && there.stop == stopArrived {
		a.Entry, a.Pod = to.Entry, to.Pod
	}
	a.Packet.Answer, a.Packet.Size = !q.Packet.Answer, q.Packet.Size
	if q.Packet.Protocol == "TCP" { // both ends keep to the smaller of their segment sizes
		a.Packet.Size = there.part.Packet.Size
	}
	return a
}

func reverse(p localapi.ExplainPacket) localapi.ExplainPacket {
	p.Source, p.Target, p.Front = p.Target, p.Source, netip.AddrPort{}
	return p
}

func follow(ctx context.Context, ask Ask, node string, q localapi.ExplainQuestion) (w way) {
	for {
		part, err := ask(ctx, node, q)
		if err != nil {
			w.legs = append(w.legs, Leg{Node: node, Error: err.Error(), Asked: q})
			w.stop = stopUnknown
			w.hop = gap(node, err)
			return w
		}
		w.legs, w.part = append(w.legs, Leg{Node: node, Part: &part, Asked: q}), &part
		if n := len(part.Hops); n > 0 {
			w.hop = part.Hops[n-1]
		}
		switch {
		case part.Next == nil:
			w.stop = ended(&part, w.hop)
			return w
		case part.Next.Node == "":
			w.stop = stopOutside
			return w
		case len(w.legs) == mostLegs:
			w.stop = stopUnknown
			w.hop = localapi.Hop{Place: "node " + part.Next.Node, Outcome: localapi.HopUnknown, Reason: fmt.Sprintf("the packet has come by %d nodes and goes on", mostLegs)}
			return w
		}
		node = part.Next.Node
		q = localapi.ExplainQuestion{
			Session: q.Session, Entry: part.Next.Entry, Packet: part.Packet, Sender: part.Next.Sender, MAC: part.Next.MAC, Established: q.Established,
		}
	}
}

// gap stands for the hops on a node that was not asked.
func gap(node string, err error) localapi.Hop {
	h := localapi.Hop{Outcome: localapi.HopUnknown, Reason: fmt.Sprintf("node %s could not be asked: %v", node, err)}
	if errors.Is(err, ErrElsewhere) {
		h.Reason = err.Error()
	}
	return h
}

func ended(part *localapi.ExplainPart, last localapi.Hop) stop {
	switch last.Outcome {
	case localapi.HopDelivered:
		return stopArrived
	case localapi.HopRefused:
		if part.Arrived != nil {
			return stopRefused
		}
		return stopDropped
	case localapi.HopDropped:
		return stopDropped
	}
	return stopUnknown
}

// conclude says what the hops come to.
func conclude(q localapi.ExplainQuestion, there way, back *way) Conclusion {
	c := Conclusion{Warnings: append(warnings(there.legs), warningsOf(back)...)}
	at := func(w way, isBack bool) {
		c.Back, c.Leg = isBack, len(w.legs)-1
		last := w.legs[c.Leg]
		c.Node = last.Node
		if last.Part != nil {
			c.Hop = max(0, len(last.Part.Hops)-1)
		}
	}
	at(there, false)
	switch there.stop {
	case stopDropped:
		c.Verdict, c.Text = Dropped, fmt.Sprintf("%s here because %s", there.hop.Outcome, there.why())
		return c
	case stopRefused:
		c.Verdict, c.Text = But, "would be delivered, but "+there.why()
		return c
	case stopUnknown:
		c.Verdict, c.Text = Unknown, "cannot be told, because "+there.why()
		return c
	}
	end, answered := "delivered", ", and so is the answer"
	if there.stop == stopOutside {
		end, answered = "leaves the cluster"+as(q, there), ", and its answer would be delivered"
	}
	at(*back, true)
	switch back.stop {
	case stopDropped, stopRefused:
		c.Verdict, c.Text = But, fmt.Sprintf("%s, but the answer is %s because %s", end, back.hop.Outcome, back.why())
		return c
	case stopUnknown:
		c.Verdict, c.Text = Unknown, fmt.Sprintf("%s, but whether the answer comes back cannot be told, because %s", end, back.why())
		return c
	case stopOutside:
		if q.Entry != localapi.EntryNet {
			c.Verdict, c.Text = But, end+", but the answer leaves the cluster instead of coming back"+back.where()
			return c
		}
		answered = ", and the answer leaves the cluster"
	}
	if text := strange(q, there, back); text != "" {
		c.Verdict, c.Text = But, end+", but "+text
		return c
	}
	c.Verdict, c.Text = Delivered, end+answered
	return c
}

// why is the reason with the place.
func (w way) why() string { return reason(w.hop) + w.where() }

// where is the place of the last hop, if there is one: ": strait_from_vx on strait_vxlan on node n1".
func (w way) where() string {
	if w.hop.Place == "" { // the reason says it
		return ""
	}
	return ": " + onNode(w.hop.Place, w.legs[len(w.legs)-1].Node)
}

// onNode is a place with its node, which is said once.
func onNode(place, node string) string {
	node = "node " + node
	if place == node || strings.HasPrefix(place, node+",") || strings.HasSuffix(place, " "+node) {
		return place
	}
	return place + " on " + node
}

// as is the sender that the outside sees, if it is another than the one that has sent.
func as(q localapi.ExplainQuestion, there way) string {
	sent := q.Packet.Source
	if first := there.legs[0].Part; first != nil && first.Sent != nil {
		sent = first.Sent.Source
	}
	seen := there.part.Packet.Source
	switch {
	case seen.Addr() == sent.Addr():
		return ""
	case there.part.Packet.Protocol == "ICMP": // whose identifier is no port
		return " as " + seen.Addr().String()
	}
	return " as " + seen.String()
}

// strange says why the sender does not take the answer for one.
func strange(q localapi.ExplainQuestion, there way, back *way) string {
	sent := q.Packet
	if first := there.legs[0].Part; first != nil && first.Sent != nil {
		sent = *first.Sent
	}
	got := back.part.Packet
	if !same(got.Source, sent.Target) {
		return fmt.Sprintf("the answer comes from %s, and %s was asked", got.Source, sent.Target)
	}
	if !same(got.Target, sent.Source) {
		return fmt.Sprintf("the answer comes to %s, and %s has asked", got.Target, sent.Source)
	}
	return ""
}

func same(a, b netip.AddrPort) bool {
	return a.Addr() == b.Addr() && (a.Port() == b.Port() || b.Port() == 0)
}

func reason(h localapi.Hop) string {
	if h.Reason != "" {
		return h.Reason
	}
	return h.Text
}

func warnings(legs []Leg) (out []string) {
	for _, l := range legs {
		if l.Part == nil {
			continue
		}
		for _, h := range l.Part.Hops {
			if h.Outcome == localapi.HopWarning {
				out = append(out, onNode(h.Place, l.Node)+": "+reason(h))
			}
		}
	}
	return out
}

func warningsOf(w *way) []string {
	if w == nil {
		return nil
	}
	return warnings(w.legs)
}
