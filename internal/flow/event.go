// Package flow is what happens to connections, with names: the events of the kernel joined with who had the addresses at that time. It is
// pure; docs/design/0007-flows.md says what is told and what may be lost.
package flow

import (
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

// Kind says what happened. Values are the kernel's.
type Kind uint8

// The kinds.
const (
	New     Kind = 1 // a connection began
	Judged  Kind = 2 // a known one was judged again, and something else decides
	Ended   Kind = 3 // closed, or silent for too long
	Denied  Kind = 4 // policy does not allow it
	Dropped Kind = 5 // lost for any other reason
	Lost    Kind = 6 // records were lost: LostRecords says how many, of kind LostKind
	Kinds        = 7 // of arrays with an element for each kind
)

// String returns the word for people and metrics.
func (k Kind) String() string {
	switch k {
	case New:
		return "new"
	case Judged:
		return "judged"
	case Ended:
		return "ended"
	case Denied:
		return "denied"
	case Dropped:
		return "dropped"
	case Lost:
		return "lost"
	}
	return "unknown"
}

// Stops reports whether packets were stopped.
func (k Kind) Stops() bool { return k == Denied || k == Dropped }

// Hook is the program that told. Values are the kernel's.
type Hook uint8

// The hooks.
const (
	FromPod  Hook = 1
	ToPod    Hook = 2
	FromNet  Hook = 3
	ToNet    Hook = 4
	FromVX   Hook = 5
	ToVX     Hook = 6
	XDP      Hook = 7
	Userland Hook = 8 // the sweep of idle connections
)

// String returns the name of the program without "strait_".
func (h Hook) String() string {
	switch h {
	case FromPod:
		return "from_pod"
	case ToPod:
		return "to_pod"
	case FromNet:
		return "from_net"
	case ToNet:
		return "to_net"
	case FromVX:
		return "from_vx"
	case ToVX:
		return "to_vx"
	case XDP:
		return "xdp"
	case Userland:
		return "sweep"
	}
	return "unknown"
}

// Traffic is a number of packets and their bytes from L3 on.
type Traffic struct{ Packets, Bytes uint64 }

// Add returns the sum.
func (t Traffic) Add(o Traffic) Traffic { return Traffic{t.Packets + o.Packets, t.Bytes + o.Bytes} }

// Event is a record of the kernel. Addresses are never v4-mapped; a zero AddrPort means there is none.
type Event struct {
	Time     time.Time
	Kind     Kind
	Hook     Hook
	Reason   verdict.Reason // of Denied and Dropped
	Protocol policy.Protocol
	TCPFlags uint8  // of the packet that was seen
	ICMP     uint16 // type << 8 | code
	Device   uint32 // ifindex where it was seen; 0: not known
	// Source is who began the connection and Target the real other end; of Dropped: what the packet says.
	Source, Target netip.AddrPort
	// Front is the service address that Source knows Target by; NAT stands for Source towards Target.
	Front, NAT netip.AddrPort
	// Answer: the packet was of the end that did not begin.
	Answer bool
	// Egress and Ingress are the numbers of the rules that decided, 0: nothing judged this direction here. Audited is the rule that would have
	// denied if it were not only audited.
	Egress, Ingress, Audited uint32
	// Sent and Answered are what the connection carried, of Ended. Of Denied and Dropped Sent is what this record stands for, at least 1 packet. Of
	// Lost it is what the lost records stood for.
	Sent, Answered Traffic
	LostKind       Kind
	LostRecords    uint64
}

// Way is the direction of what was stopped, as the pods of this node see it.
func (e *Event) Way() policy.Way {
	if e.Reason == verdict.PolicyEgress || e.Reason != verdict.PolicyIngress && e.Hook == FromPod {
		return policy.Egress
	}
	return policy.Ingress
}
