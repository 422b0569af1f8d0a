package localapi

import (
	"encoding/json"
	"io"
	"net/netip"
)

// ExplainQuestion asks a node for its part of a path: what becomes of a packet that comes in here. docs/design/0008-explain.md.
type ExplainQuestion struct {
	// Session joins the questions about one path: what its packets left on this node is known to the next. Any text, unique; kept for a minute.
	Session string        `json:"session"`
	Entry   ExplainEntry  `json:"entry"`
	Packet  ExplainPacket `json:"packet"`
	// Pod is "namespace/name" of the pod that sends, for EntryPod; empty: the one with the packet's source address.
	Pod string `json:"pod,omitempty"`
	// Service is the address that the sender asked for; the packet is made of the backend that its socket is given, or of Backend.
	Service netip.AddrPort `json:"service,omitzero"`
	Backend netip.AddrPort `json:"backend,omitzero"`
	// Sender is the node's address that the tunnel's packet came from, for EntryTunnel.
	Sender netip.Addr `json:"sender,omitzero"`
	// MAC is the hardware address that the packet, or the tunnel's that carries it, was sent to; empty: the sender had still to ask for it.
	MAC string `json:"mac,omitempty"`
	// Established: entries of the connection that are in the kernel are taken as they are.
	Established bool `json:"established,omitempty"`
}

// ReadExplainQuestion reads a question from JSON. The error matches ErrBadQuestion and says what is wrong.
func ReadExplainQuestion(r io.Reader) (q ExplainQuestion, err error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, BadQuestion("question about a path: %v", err)
	}
	if q.Session == "" {
		return q, BadQuestion("question about a path: session is missing: any text that is not used for another path")
	}
	return q, nil
}

// ExplainEntry is where a packet comes into a node's part.
type ExplainEntry string

// The entries.
const (
	EntryPod    ExplainEntry = "pod"    // sent by a pod of this node
	EntryNode   ExplainEntry = "node"   // sent by a process in the node's own network namespace
	EntryNet    ExplainEntry = "net"    // from one of the node's devices
	EntryTunnel ExplainEntry = "tunnel" // carried by the tunnel
)

// ExplainPacket is a packet as far as it matters.
type ExplainPacket struct {
	Source   netip.AddrPort `json:"source"` // port 0: one that is free
	Target   netip.AddrPort `json:"target"`
	Protocol string         `json:"protocol"` // TCP, UDP, SCTP, ICMP
	// Answer: of the end that did not begin (SYN and ACK, an echo reply).
	Answer bool `json:"answer,omitempty"`
	Size   int  `json:"size,omitempty"` // bytes from L3 on; 0: as small as it can be
	// Front is the service address that it carries to the backend's node, with direct server return.
	Front netip.AddrPort `json:"front,omitzero"`
}

// ExplainPart is a node's part of a path.
type ExplainPart struct {
	Node    string        `json:"node"`
	Version string        `json:"version"`
	Hops    []Hop         `json:"hops"`
	Packet  ExplainPacket `json:"packet"` // as it leaves, or arrives
	// Sent is the packet as its sender made it, when the path begins here.
	Sent *ExplainPacket `json:"sent,omitempty"`
	// Next is where the packet goes on; nil: it ends here.
	Next *ExplainNext `json:"next,omitempty"`
	// Arrived says who has the packet, when it has come to where it was going; nil: nobody. It may have been refused there.
	Arrived *ExplainArrived `json:"arrived,omitempty"`
	// Backends are those a service has, with Service in the question.
	Backends []netip.AddrPort `json:"backends,omitempty"`
}

// ExplainNext is how a packet leaves a node.
type ExplainNext struct {
	Node   string       `json:"node,omitempty"` // empty: outside the cluster
	Entry  ExplainEntry `json:"entry"`
	Sender netip.Addr   `json:"sender,omitzero"` // the tunnel's
	MAC    string       `json:"mac,omitempty"`   // whom the frame is addressed to; empty: not known yet
}

// ExplainArrived is who has a packet. An answer begins there.
type ExplainArrived struct {
	Entry ExplainEntry `json:"entry"` // EntryPod or EntryNode
	Pod   string       `json:"pod,omitempty"`
}

// Hop is a step of a path.
type Hop struct {
	Place   string     `json:"place"`           // "pod shop/web-1", "strait_from_pod on st3f2a", "route", "eth0"
	Text    string     `json:"text"`            // what happens here, a sentence
	Entry   string     `json:"entry,omitempty"` // what decided: "strait_ipcache 10.244.1.0/24 -> tunnel to 172.18.0.3"
	Facts   []Fact     `json:"facts,omitempty"` // more for --verbose
	Outcome HopOutcome `json:"outcome"`
	Reason  string     `json:"reason,omitempty"` // of what is not on or delivered, and what to do about it
}

// Fact is a name and a value.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// HopOutcome is what becomes of the packet at a hop.
type HopOutcome string

// The outcomes.
const (
	HopOn        HopOutcome = "on"
	HopDelivered HopOutcome = "delivered"
	HopDropped   HopOutcome = "dropped"
	HopRefused   HopOutcome = "refused" // answered with a reset or an ICMP error
	HopWarning   HopOutcome = "warning" // goes on, but
	HopUnknown   HopOutcome = "unknown"
)
