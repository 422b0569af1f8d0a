package part

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/load"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/trial"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/status"
	"github.com/strait-net/strait/internal/verdict"
)

// Programs are those that are tried, for who has the others attached.
func Programs(c load.Config) []string {
	all := []string{
		bpf.DatapathProgStraitFromPod, bpf.DatapathProgStraitFromNet, bpf.DatapathProgStraitFromVx,
		bpf.DatapathProgStraitToPod, bpf.DatapathProgStraitToNet, bpf.DatapathProgStraitToVx,
	}
	if c.XDP {
		all = append(all, bpf.DatapathProgStraitXdp)
	}
	return all
}

// place is a hook of a device with its program.
func placeOf(program string, l netdev.Link) string { return program + " on " + l.Name }

func isIngress(program string) bool { return strings.HasPrefix(program, "strait_from_") }

// program tries a program where it is attached and follows what it decides. from is the device that the node's stack has the packet from.
func (w *walk) program(name string, l netdev.Link, from int, sender netip.Addr) error {
	result, on, err := w.try(name, l, from, sender, w.packet)
	if err != nil {
		return err
	}
	if !on { // nobody guards the device: the kernel goes on by itself
		return w.passed(name, l, from)
	}
	before := w.packet
	w.packet = result.Packet
	if w.q.Packet.Size == 0 {
		w.packet.Size = 0
	}
	return w.decided(name, l, from, before, result)
}

// try runs a program that is attached; false: it is not.
func (w *walk) try(name string, l netdev.Link, from int, sender netip.Addr, p trial.Packet) (trial.Result, bool, error) {
	place := placeOf(name, l)
	seen, err := attach.Look(w.Net, l.Name, l.Index, isIngress(name))
	if err != nil {
		return trial.Result{}, false, err
	}
	attached := uint32(0)
	for _, s := range seen {
		if s.Program == truncated(name) || s.Program == name {
			attached = s.ID
			continue
		}
		w.warn(l.Name, fmt.Sprintf("program %q (id %d), which is not Strait's, runs on this device as well", s.Program, s.ID), fmt.Sprintf("program %q may interfere", s.Program))
	}
	if attached == 0 {
		w.warn(place, "the program is not attached", name+" is not attached to "+l.Name+": see strait check")
		return trial.Result{}, false, nil
	}
	out, err := w.run(name, attached, trial.Run{Device: l.Index, Ingress: from, Sender: sender, Packet: p}, place)
	return out, true, err
}

// run tries what is attached at a place, and says so when that is another program than the one that is tried.
func (w *walk) run(name string, attached uint32, r trial.Run, place string) (trial.Result, error) {
	differs, err := w.Bench.Compare(name, attached, w.loaded)
	if err != nil {
		return trial.Result{}, err
	}
	if differs != "" {
		w.warn(place, "another program than the one that is tried here is attached", differs)
	}
	r.Session, r.Program, r.Constants, r.Established = w.q.Session, name, w.loaded, w.q.Established
	out, err := w.Bench.Run(r)
	out.Packet.Answer = r.Packet.Answer // not every protocol says so
	return out, err
}

// truncated is a program's name as the kernel keeps it.
func truncated(name string) string { return name[:min(len(name), 15)] }

// decided tells what a program has decided and goes on with the packet.
func (w *walk) decided(name string, l netdev.Link, from int, before trial.Packet, r trial.Result) error {
	hop := localapi.Hop{Place: placeOf(name, l), Text: r.Reason.Text(), Outcome: localapi.HopOn, Facts: w.facts(before, r)}
	if r.Packet.Source != before.Source || r.Packet.Target != before.Target {
		hop.Text += fmt.Sprintf(", as %s to %s", end(r.Packet, r.Packet.Source), end(r.Packet, r.Packet.Target))
	}
	if r.Packet.Front.IsValid() {
		hop.Text += fmt.Sprintf(", and carries service address %s: who has the backend answers in its place", r.Packet.Front)
	}
	if !r.Counted {
		hop.Text = "lets it pass"
	}
	if err := w.entry(&hop, before, r); err != nil {
		return err
	}
	switch {
	case r.Reason == verdict.Refused:
		hop.Outcome, hop.Reason = localapi.HopRefused, "the service has no backends"
	case r.Reason == verdict.SenderTold:
		hop.Outcome, hop.Reason = localapi.HopRefused, "it is larger than the way: the sender is told"
	case r.Action == trial.Drop:
		hop.Outcome, hop.Reason = localapi.HopDropped, r.Reason.Text()
		if hop.Entry != "" && policyReason(r.Reason) {
			hop.Reason += " (" + hop.Entry + ")"
		}
	}
	w.add(hop)
	if hop.Outcome != localapi.HopOn {
		w.packet = before
		return nil
	}
	if r.Action == trial.Pass {
		return w.passed(name, l, from)
	}
	return w.redirected(name, l, before, r.Reason)
}

// end is an end of a packet in words: the identifier of an echo is no port.
func end(p trial.Packet, at netip.AddrPort) string {
	if p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6 {
		return at.Addr().String()
	}
	return at.String()
}

func policyReason(r verdict.Reason) bool {
	return r == verdict.PolicyEgress || r == verdict.PolicyIngress || r == verdict.PolicyMissing
}

// passed is the way on from a hook that the packet has passed.
func (w *walk) passed(program string, l netdev.Link, from int) error {
	switch program {
	case bpf.DatapathProgStraitToPod:
		return w.crossPair(l)
	case bpf.DatapathProgStraitToVx:
		row, ok, err := w.Maps.Remote(w.packet.Target.Addr())
		if err != nil {
			return err
		}
		if !ok || row.Flags&bpf.RemoteTunnel == 0 {
			w.drop(l.Name, "the tunnel does not know where to", "", "no row of strait_ipcache leads "+w.packet.Target.Addr().String()+" through the tunnel")
			return nil
		}
		return w.encapsulate(l, row)
	case bpf.DatapathProgStraitToNet:
		return nil // who has asked goes on
	}
	if from != 0 {
		l.Index = from
	}
	return w.stackTakes(l)
}

// redirected is the way on from a program that has sent the packet elsewhere itself.
func (w *walk) redirected(name string, l netdev.Link, before trial.Packet, reason verdict.Reason) error {
	target := w.packet.Target.Addr()
	ep, here, err := w.Maps.Endpoint(target)
	if err != nil {
		return err
	}
	row, known, err := w.Maps.Remote(target)
	if err != nil {
		return err
	}
	fromPod := name == bpf.DatapathProgStraitFromPod
	byRow := known && (reason == verdict.ToTunnel || reason == verdict.ToNeighbour || row.Flags&bpf.RemotePod != 0 ||
		fromPod && reason == verdict.ToBackend && row.Flags&bpf.RemoteNode != 0)
	switch {
	case here && reason != verdict.ToWorld && reason != verdict.ToWorldMasqueraded:
		return w.intoPod(ep)
	case byRow && row.Flags&bpf.RemoteTunnel != 0:
		tunnel, err := w.Net.LinkAt(w.loaded.VXLANIndex)
		if missing(err) {
			w.drop(netdev.VXLANDevice, "the tunnel's device is gone", "", "device "+netdev.VXLANDevice+" does not exist")
			return nil
		}
		if err != nil {
			return err
		}
		return w.encapsulate(tunnel, row)
	case byRow && row.Index != 0:
		out, err := w.Net.LinkAt(int(row.Index))
		if missing(err) {
			w.drop(maps.Remote.Text(row), "its device is gone", row.Text(), fmt.Sprintf("device with index %d does not exist", row.Index))
			return nil
		}
		if err != nil {
			return err
		}
		return w.leave(out, row.Node)
	}
	// As the program has asked (bpf/lib/fib.h): for the packet as it came, from its device, with no check of its source.
	way, err := w.way(w.nodeSpace(), netdev.RouteQuestion{Target: target, Source: before.Source.Addr(), From: l.Index})
	if err == nil && way.Refused != "" {
		way, err = w.way(w.nodeSpace(), netdev.RouteQuestion{Target: target})
	}
	if err != nil {
		return err
	}
	if way.Refused != "" {
		w.unknown("route", "the program has found a way that the kernel does not tell", way.Refused)
		return nil
	}
	out, err := w.Net.LinkAt(way.Device)
	if err != nil {
		return err
	}
	hop := way.Gateway
	if !hop.IsValid() {
		hop = target
	}
	w.on("route", "leaves by "+out.Name+" to "+hop.String(), way.Entry)
	// These have programs that look rows up again: a route may lead there although the row that should is missing.
	if _, ok := w.podOn(out.Index); ok {
		return w.toPod(w.nodeSpace(), out, hop, l.Index)
	}
	if out.Name == netdev.VXLANDevice {
		return w.intoTunnel(out, l.Index)
	}
	return w.leave(out, hop)
}

// facts are rows that a trial has made, and the ends that were looked up.
func (w *walk) facts(before trial.Packet, r trial.Result) (out []localapi.Fact) {
	for _, c := range r.Connections {
		out = append(out, fact("connection", maps.ConnectionText(c.Key, c.Value)))
	}
	for _, n := range r.Ways {
		out = append(out, fact("way back", maps.WayBackText(n.Key, n.Value)))
	}
	for _, c := range w.judged(before, r) {
		j, err := w.Judge(c)
		if err != nil || j.Program == 0 {
			continue
		}
		says := "denied"
		if j.Allow {
			says = "allowed"
		}
		from := map[policy.Way]string{policy.Egress: "to", policy.Ingress: "from"}[c.Way]
		peer := w.whose(c.Peer)
		text := fmt.Sprintf("%s of %s %s %s %s%s", c.Way, w.whose(c.Local), says, from, peer, by(j.Rule))
		if j.Rule.Kind == policy.Builtin && j.Rule.Name == policy.DefaultAllow {
			out = append(out, fact("no policy", fmt.Sprintf("%s of %s is isolated by none", c.Way, w.whose(c.Local))))
			continue
		}
		if j.Audit && j.AuditAllow != j.Allow {
			text += fmt.Sprintf(" (audit only: %s would decide otherwise)", ruleText(j.AuditRule))
		}
		out = append(out, fact("policy", text), fact("policy program", identity.ID(j.Program)), fact("identity of "+peer, j.Identity))
	}
	return out
}

// by says which rule, or else why.
func by(r policy.RuleRef) string {
	if r.Kind == policy.Builtin {
		return ": " + ruleText(r)
	}
	return " by " + ruleText(r)
}

// ruleText names a rule, whose direction its path says: "NetworkPolicy shop/db spec.ingress[0]".
func ruleText(r policy.RuleRef) string {
	switch {
	case r.Kind == policy.Builtin && r.Name == policy.OwnNode:
		return "a node always reaches its own pods"
	case r.Kind == policy.Builtin:
		return r.Name
	case r.Path == "":
		return r.String()
	}
	return r.Ref.String() + " " + r.Path
}

// judged are the ends of the packet's connection that a policy here may judge.
func (w *walk) judged(before trial.Packet, r trial.Result) (out []status.Connection) {
	p := r.Packet
	if r.Action == trial.Drop {
		p = before
	}
	from, to := before.Source.Addr(), p.Target.Addr()
	port := p.Target.Port()
	if p.Answer {
		from, to, port = p.Target.Addr(), before.Source.Addr(), before.Source.Port()
	}
	protocol := policy.Protocol(p.Protocol)
	switch protocol {
	case policy.ICMP:
		port = 8 << 8
	case policy.ICMPv6:
		port = 128 << 8
	}
	if _, ok := w.podAt("", from); ok {
		out = append(out, status.Connection{Local: from, Way: policy.Egress, Peer: to, Protocol: protocol, Port: port})
	}
	if _, ok := w.podAt("", to); ok {
		out = append(out, status.Connection{Local: to, Way: policy.Ingress, Peer: from, Protocol: protocol, Port: port})
	}
	return out
}

// entry names the row that decided.
func (w *walk) entry(h *localapi.Hop, before trial.Packet, r trial.Result) error {
	switch {
	case policyReason(r.Reason) && len(r.Rules) > 0:
		h.Entry = ruleText(w.Rule(r.Rules[len(r.Rules)-1]))
		return nil
	case r.Reason == verdict.SpoofedSource, r.Reason == verdict.NoEndpoint:
		a := before.Source.Addr()
		if r.Reason == verdict.NoEndpoint {
			a = before.Target.Addr()
		}
		return w.endpointEntry(h, a)
	case r.Reason == verdict.ToLocalPod:
		return w.endpointEntry(h, r.Packet.Target.Addr())
	}
	if svc, at, ok, err := w.refusing(before, r.Reason); err != nil || ok {
		h.Entry = w.serviceEntry(svc, at)
		return err
	}
	row, ok, err := w.Maps.Remote(r.Packet.Target.Addr())
	if err != nil {
		return err
	}
	if ok {
		h.Entry = row.Text()
	} else if r.Counted {
		h.Entry = bpf.DatapathMapStraitIpcache + " has no row for " + r.Packet.Target.Addr().String() + ": outside"
	}
	return nil
}

// refusing is the service on whose behalf a packet goes no further.
func (w *walk) refusing(before trial.Packet, r verdict.Reason) (svc maps.Service, at netip.AddrPort, ok bool, err error) {
	switch r {
	case verdict.Refused, verdict.ServiceInternal, verdict.SourceRange, verdict.NoLocalBackend, verdict.NoServicePort:
		return w.serviceAt(before.Target, false)
	}
	return svc, at, false, nil
}

func (w *walk) endpointEntry(h *localapi.Hop, a netip.Addr) error {
	ep, ok, err := w.Maps.Endpoint(a)
	switch {
	case err != nil:
		return err
	case !ok:
		h.Entry = fmt.Sprintf("%s has no row for %s", bpf.DatapathMapStraitEndpoint, a)
		return nil
	}
	device, err := w.Net.DeviceName(int(ep.Index))
	if err != nil && !missing(errors.Unwrap(err)) && !missing(err) {
		return err
	}
	h.Entry = fmt.Sprintf("%s %s -> %s (%s)", bpf.DatapathMapStraitEndpoint, a, device, w.whose(a))
	return nil
}
