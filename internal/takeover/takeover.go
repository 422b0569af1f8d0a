// Package takeover decides what becomes of the connections another proxy has made when Strait takes over: which of them Strait
// goes on with, and which the node's stack has to go on translating.
package takeover

import (
	"cmp"
	"net/netip"
	"slices"
)

// Flow is a connection as the kernel's connection tracking knows it: how its first packet looked, and how its answers look before the
// kernel translates them back. Addresses are never v4-mapped.
type Flow struct {
	Protocol         uint8 // IPPROTO_*
	Source           netip.AddrPort
	Destination      netip.AddrPort
	ReplySource      netip.AddrPort
	ReplyDestination netip.AddrPort
	Replied          bool // the other end has answered
	Closed           bool // TCP or SCTP: both ends have finished
}

// Redirected reports whether the kernel sends the packets elsewhere than their sender thinks.
func (f Flow) Redirected() bool { return f.Destination != f.ReplySource }

// Masqueraded reports whether the kernel gives the packets another source.
func (f Flow) Masqueraded() bool { return f.Source != f.ReplyDestination }

// View is what has to be known of the node to judge its connections.
type View struct {
	// Service reports whether services answer on an address of this node or of the cluster.
	Service func(front netip.AddrPort, protocol uint8) bool
	// Backend returns the id and generation by which the programs know a backend; not ok: they do not.
	Backend func(address netip.AddrPort, protocol uint8) (id, generation uint32, ok bool)
	// Pod reports whether an address is that of a pod of this node, Node whether it is one of the node itself.
	Pod  func(netip.Addr) bool
	Node func(netip.Addr) bool
}

// Connection is one that the programs can go on with.
type Connection struct {
	Protocol   uint8
	Client     netip.AddrPort
	Front      netip.AddrPort // what the client calls the other end
	Backend    netip.AddrPort
	ID         uint32 // of the backend
	Generation uint32
	// Masquerade is what the backend calls the client; invalid: by its own address.
	Masquerade netip.AddrPort
	// Ends says that client or backend live on this node and both know each other's address: answers of the backend get the front's.
	Ends    bool
	Replied bool
}

// Plan is what is to become of the kernel's translated connections.
type Plan struct {
	Import []Connection
	// Held have an end in a socket of this node, which packets of the programs never meet: the stack goes on translating them.
	Held []Flow
	// Lost lead to a backend that is in no EndpointSlice any more: nobody can go on with them after the rules have gone.
	Lost []Flow
}

// Make judges connections. The result is sorted and does not depend on the order of flows.
func Make(flows []Flow, v View) Plan {
	var p Plan
	for _, f := range flows {
		if f.Closed || !f.Redirected() || !v.Service(f.Destination, f.Protocol) {
			continue // ended, or another's
		}
		if v.Node(f.Source.Addr()) || f.Source.Addr().IsLoopback() {
			p.Held = append(p.Held, f)
			continue
		}
		id, generation, ok := v.Backend(f.ReplySource, f.Protocol)
		if !ok {
			p.Lost = append(p.Lost, f)
			continue
		}
		c := Connection{
			Protocol: f.Protocol, Client: f.Source, Front: f.Destination, Backend: f.ReplySource, ID: id, Generation: generation,
			Replied: f.Replied,
		}
		if f.Masqueraded() {
			c.Masquerade = f.ReplyDestination
		} else {
			c.Ends = v.Pod(c.Client.Addr()) || v.Pod(c.Backend.Addr()) || v.Node(c.Backend.Addr())
		}
		p.Import = append(p.Import, c)
	}
	slices.SortFunc(p.Import, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Client.Compare(b.Client), a.Front.Compare(b.Front))
	})
	slices.SortFunc(p.Held, compareFlows)
	slices.SortFunc(p.Lost, compareFlows)
	return p
}

func compareFlows(a, b Flow) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
}

// Imported reports whether a flow is one of those in Import.
func (p Plan) Imported(f Flow) bool {
	_, found := slices.BinarySearchFunc(p.Import, f, func(c Connection, f Flow) int {
		return cmp.Or(cmp.Compare(c.Protocol, f.Protocol), c.Client.Compare(f.Source), c.Front.Compare(f.Destination))
	})
	return found
}
