// Package capture makes a file of packets with what became of each as its comment: it decodes and filters packets, joins them with what nodes tell of
// connections, and writes pcapng. It is pure; docs/design/0010-capture.md says where packets are seen and what a verdict is made of.
package capture

import (
	"net/netip"
	"time"
)

// Kind is what a place is.
type Kind uint8

// The kinds of places.
const (
	AtPod    Kind = 1 // a pod's own interface
	OnTheWay Kind = 2 // a device of the node, for what is on its way to a pod
	AtNode   Kind = 3 // a device of the node, for what the node itself sends and gets
)

// Link types, by the numbers of pcapng.
const (
	LinkEthernet uint16 = 1
	LinkRaw      uint16 = 101 // begins with the IP header
)

// Place is somewhere that packets are seen at.
type Place struct {
	Number  int // of its part, from 0
	Node    string
	Pod     string // namespace/name; of OnTheWay the pod that packets are for
	Device  string
	Kind    Kind
	Link    uint16
	Snap    int
	Filter  string
	Station int          // the Question's
	Own     []netip.Addr // of AtPod and AtNode: the addresses of who sends here
}

// Packet is one that was seen.
type Packet struct {
	Place  int
	Time   time.Time
	Out    bool // sent by the pod, or the node
	Length int  // bytes there were; Data may be fewer
	Data   []byte
}

// What says what happened to a connection.
type What uint8

// What can happen.
const (
	Began   What = 1
	Judged  What = 2 // again, and something else decides
	Ended   What = 3
	Denied  What = 4 // by policy
	Dropped What = 5 // for any other reason
	Known   What = 6 // it was there before the capture
	Lost    What = 7 // records were lost: Packets says how many
)

// Event is what a node tells of a connection.
type Event struct {
	What           What
	Time           time.Time
	Protocol       uint8          // IPPROTO_*
	Source, Target netip.AddrPort // who began, and the other end; of Dropped what the packet said. Ports of ICMP are 0.
	Front, NAT     netip.AddrPort // the service address that Source knows Target by; what stands for Source
	From, To       string         // pods, "namespace/name"
	Service        string         // "namespace/name"
	Answer         bool           // seen with a packet of Target
	Egress         string         // the rule that decided; empty: nothing judges this direction there
	Ingress        string
	Audited        string // the rule that would have denied it
	Why            string // it was denied or dropped
	Packets        uint64 // that this stands for
	Age            time.Duration
}

// Stats is what the kernel has counted at one socket since it was opened.
type Stats struct {
	Seen uint64 // passed the filter, lost ones included
	Lost uint64 // there was no room
}

// Mark says that everything until a time has been told.
type Mark struct {
	Until time.Time
	Stats []Stats // by station, of all its sockets
	Flows bool    // the node tells of connections
	Last  bool    // there is no more
}

// Message is what a node's part says: one of its fields.
type Message struct {
	Place  *Place
	Packet *Packet
	Event  *Event
	Mark   *Mark
	Note   string // for people: something is not as it should be
}

// Station is an end that is captured at.
type Station struct {
	Pod    string `json:"pod,omitempty"` // namespace/name; empty: the node itself
	Filter Filter `json:"filter"`
}

// Question is what a node's part is asked for.
type Question struct {
	Stations []Station     `json:"stations,omitempty"` // none: only what the node tells is asked for
	About    []netip.Addr  `json:"about"`              // whose connections
	Snap     int           `json:"snap"`               // bytes of each packet that are kept
	For      time.Duration `json:"for,omitempty"`      // 0: until it is ended
}
