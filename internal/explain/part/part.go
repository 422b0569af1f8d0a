// Package part works out a node's part of a packet's path: what programs decide by trying them, and what the kernel does between them by asking it.
package part

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/datapath/trial"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// Sources are what a node's part is worked out from. All are required.
type Sources struct {
	Node, Version string
	State         *state.State
	Maps          *maps.Maps
	Net           *netdev.Net // the node's
	Bench         *trial.Bench
	// Loaded is what the attached programs were loaded with, and whether sockets are load balanced.
	Loaded func() (c load.Config, sockets bool)
	// Rule names a rule by its index into strait_rule.
	Rule func(uint32) policy.RuleRef
	// Judge says what the kernel's tables say to one end of a connection.
	Judge func(status.Connection) (status.Judgement, error)
}

// defaultPort is the source port of a packet whose sender has still to choose one: in the range that kernels choose from.
const defaultPort = 40000

// walk is one packet on its way through the node.
type walk struct {
	Sources
	q        localapi.ExplainQuestion
	part     localapi.ExplainPart
	loaded   load.Config
	sockets  bool
	packet   trial.Packet
	stranger bool // the frame is addressed to somebody else: stacks do not take it
	rules    map[string]*netfilter.Ruleset
	noted    map[string]bool // warnings that are given once
}

// Answer works out the node's part. The error matches localapi.ErrBadQuestion or ErrNotFound when it cannot be asked so; what cannot be told of
// a path is a hop of it.
func Answer(s Sources, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	w := &walk{Sources: s, q: q, rules: map[string]*netfilter.Ruleset{}, noted: map[string]bool{}}
	w.part = localapi.ExplainPart{Node: s.Node, Version: s.Version, Hops: []localapi.Hop{}}
	w.loaded, w.sockets = s.Loaded()
	var err error
	if w.packet, err = packetOf(q.Packet); err != nil {
		return w.part, err
	}
	switch q.Entry {
	case localapi.EntryPod:
		err = w.fromPod()
	case localapi.EntryNode:
		err = w.fromNode()
	case localapi.EntryNet:
		err = w.fromNet()
	case localapi.EntryTunnel:
		err = w.fromTunnel()
	default:
		err = localapi.BadQuestion("entry %q: want pod, node, net or tunnel", q.Entry)
	}
	w.part.Packet = w.told(w.packet)
	return w.part, err
}

// protocols are those that can be asked for.
func protocols() map[string]uint8 {
	return map[string]uint8{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP, "ICMP": unix.IPPROTO_ICMP}
}

func packetOf(q localapi.ExplainPacket) (trial.Packet, error) {
	protocol, ok := protocols()[strings.ToUpper(q.Protocol)]
	if !ok {
		return trial.Packet{}, localapi.BadQuestion("protocol %q: want TCP, UDP, SCTP or ICMP", q.Protocol)
	}
	if q.Size > trial.MaxSize {
		return trial.Packet{}, localapi.BadQuestion("size %d: want at most %d bytes", q.Size, trial.MaxSize)
	}
	p := trial.Packet{Source: unmapped(q.Source), Target: unmapped(q.Target), Protocol: protocol, Answer: q.Answer, Size: q.Size, Front: unmapped(q.Front)}
	if p.Source.Addr().IsValid() && p.Source.Port() == 0 {
		p.Source = netip.AddrPortFrom(p.Source.Addr(), defaultPort)
	}
	if p.Protocol == unix.IPPROTO_ICMP && p.Target.Addr().IsValid() {
		p = echo(p)
	}
	return p, nil
}

// echo gives an echo its family's protocol and one identifier.
func echo(p trial.Packet) trial.Packet {
	if p.IPv6() {
		p.Protocol = unix.IPPROTO_ICMPV6
	}
	id := p.Source.Port()
	if p.Answer || id == 0 {
		id = p.Target.Port()
	}
	if id == 0 {
		id = defaultPort
	}
	p.Source, p.Target = netip.AddrPortFrom(p.Source.Addr(), id), netip.AddrPortFrom(p.Target.Addr(), id)
	return p
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// told is a packet as the API knows it.
func (w *walk) told(p trial.Packet) localapi.ExplainPacket {
	return localapi.ExplainPacket{
		Source: p.Source, Target: p.Target, Protocol: protocolName(p.Protocol), Answer: p.Answer, Size: w.q.Packet.Size, Front: p.Front,
	}
}

func protocolName(n uint8) string {
	if n == unix.IPPROTO_ICMPV6 {
		return "ICMP"
	}
	for name, number := range protocols() {
		if number == n {
			return name
		}
	}
	return fmt.Sprint(n)
}

func (w *walk) add(h localapi.Hop) { w.part.Hops = append(w.part.Hops, h) }

// on adds a hop at which the packet goes on.
func (w *walk) on(place, text, entry string, facts ...localapi.Fact) {
	w.add(localapi.Hop{Place: place, Text: text, Entry: entry, Facts: facts, Outcome: localapi.HopOn})
}

// The following end the path here, or note what may be wrong.

func (w *walk) drop(place, text, entry, reason string) {
	w.add(localapi.Hop{Place: place, Text: text, Entry: entry, Outcome: localapi.HopDropped, Reason: reason})
}

func (w *walk) refuse(place, text, entry, reason string) {
	w.add(localapi.Hop{Place: place, Text: text, Entry: entry, Outcome: localapi.HopRefused, Reason: reason})
}

func (w *walk) warn(place, text, reason string) {
	w.add(localapi.Hop{Place: place, Text: text, Outcome: localapi.HopWarning, Reason: reason})
}

func (w *walk) unknown(place, text, reason string) {
	w.add(localapi.Hop{Place: place, Text: text, Outcome: localapi.HopUnknown, Reason: reason})
}

func fact(name string, value any) localapi.Fact {
	return localapi.Fact{Name: name, Value: fmt.Sprint(value)}
}

// podAt returns the attachment of a local pod by one of its addresses, or by the name of the pod.
func (w *walk) podAt(name string, a netip.Addr) (state.Endpoint, bool) {
	for e := range w.State.Endpoints.Snapshot().All() {
		if name != "" && e.Namespace+"/"+e.Pod == name || name == "" && slices.Contains(e.Addresses, a) {
			return e, true
		}
	}
	return state.Endpoint{}, false
}

func (w *walk) podOn(device int) (state.Endpoint, bool) {
	for e := range w.State.Endpoints.Snapshot().All() {
		if e.DeviceIndex == device {
			return e, true
		}
	}
	return state.Endpoint{}, false
}

func podName(e state.Endpoint) string { return e.Namespace + "/" + e.Pod }

// nodeOf returns the node that has an address.
func (w *walk) nodeOf(a netip.Addr) string {
	for n := range w.State.Nodes.Snapshot().All() {
		if slices.Contains(n.Addresses, a) {
			return n.Name
		}
	}
	return ""
}

// ownAddress is this node's first address of a family.
func (w *walk) ownAddress(v6 bool) netip.Addr {
	self, _, _ := w.State.Nodes.Snapshot().Get(w.Node)
	for _, a := range self.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// whose names an address for people.
func (w *walk) whose(a netip.Addr) string {
	if e, ok := w.podAt("", a); ok {
		return "pod " + podName(e)
	}
	for p := range w.State.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		return "pod " + p.Key()
	}
	if n := w.nodeOf(a); n != "" {
		return "node " + n
	}
	if row, known, err := w.Maps.Remote(a); err == nil && known && row.Flags&bpf.RemoteAPIServer != 0 {
		return "the API server"
	}
	return a.String()
}

// space is a network namespace on the packet's way.
type space struct {
	*netdev.Net
	name string // "pod shop/web", or "node n1"
	pod  string // empty: the node
}

func (w *walk) nodeSpace() space { return space{Net: w.Net, name: "node " + w.Node} }

// inPod opens a pod's namespace; close has to be called.
func (w *walk) inPod(e state.Endpoint) (space, error) {
	n, err := netdev.OpenAt(e.NetNS)
	if err != nil {
		return space{}, err
	}
	return space{Net: n, name: "pod " + podName(e), pod: podName(e)}, nil
}

// rulesOf reads the rules of a namespace, once.
func (w *walk) rulesOf(s space) (*netfilter.Ruleset, error) {
	if r, ok := w.rules[s.name]; ok {
		return r, nil
	}
	var r *netfilter.Ruleset
	err := s.Inside(func() (err error) {
		r, err = netfilter.ReadRules()
		return err
	})
	w.rules[s.name] = r
	return r, err
}

// filter asks the rules of a hook; false: the packet ends there.
func (w *walk) filter(s space, p netfilter.Passing, packet trial.Packet) (bool, error) {
	r, err := w.rulesOf(s)
	if err != nil {
		return false, err
	}
	if r.Empty() {
		return true, nil
	}
	if p.Frame, err = packet.Frame(); err != nil {
		return false, err
	}
	carrier := packet.Target.Port() == w.loaded.VXLANPort && packet.Source.Port() == carrierPort
	// The tunnel's packets are never answers: those have another source port.
	p.Known = !carrier && packet.Answer
	if w.q.Established && !carrier && !packet.Answer {
		p.Known = w.tracked(s, packet)
	}
	place := fmt.Sprintf("%s, %s rules", s.name, p.Hook)
	w.unread(s, r)
	found := r.Pass(p)
	if !found.Stopped() && !p.Known && packet.Protocol == unix.IPPROTO_TCP { // a connection is more than its first packet
		p.Known = true
		if later := r.Pass(p); later.Stopped() {
			later.Rule += " (not the first packet, but those that follow)"
			found = later
		}
	}
	for _, may := range found.May {
		w.warn(place, "a rule may interfere, depending on what is not known of a packet that is not sent", "may interfere: "+may)
	}
	switch {
	case found.Dropped:
		w.drop(place, "a rule that is not Strait's drops the packet", found.Rule, "it is dropped by "+found.Rule)
	case found.Refused:
		w.refuse(place, "a rule that is not Strait's refuses the packet", found.Rule, "it is refused by "+found.Rule)
	}
	return !found.Stopped(), nil
}

// tracked reports whether a namespace's connection tracking, which is not Strait's, knows the packet's connection too.
func (w *walk) tracked(s space, p trial.Packet) (known bool) {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
	default:
		return true
	}
	err := s.Inside(func() (err error) {
		known, err = netfilter.Answered(p.Protocol, p.Source, p.Target)
		return err
	})
	if err != nil {
		w.note(s.name, "the kernel does not tell which connections it tracks; this one is taken for one of them", err.Error())
		return true
	}
	return known
}

// linkUp asks whether a device can send; false: the packet ends there.
func (w *walk) linkUp(s space, l netdev.Link) bool {
	place := l.Name + " of " + s.name
	switch {
	case !l.Up:
		w.drop(place, "the device is down", "", "device "+l.Name+" is down")
	case !l.Carrier:
		w.drop(place, "the device has no carrier: its other end is down", "", "the other end of device "+l.Name+" is down")
	default:
		return true
	}
	return false
}

func missing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

func equal(a, b net.HardwareAddr) bool { return a.String() == b.String() }

// servicesOn reports whether this node serves Services itself.
func (w *walk) servicesOn() bool {
	return w.loaded.Services == config.ServicesOn || w.loaded.Services == ""
}
