package part

import (
	"fmt"
	"strings"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/datapath/trial"
)

// What this file adds to a path is what stands beside it: things that may decide as well, and are not looked at, are named once.

// note warns once.
func (w *walk) note(place, text, reason string) {
	if key := place + reason; !w.noted[key] {
		w.noted[key] = true
		w.warn(place, text, reason)
	}
}

// unread names rules of a namespace that are not evaluated.
func (w *walk) unread(s space, r *netfilter.Ruleset) {
	if len(r.Legacy) > 0 {
		w.note(s.name, "older iptables has tables here, whose rules cannot be read", "legacy iptables tables "+strings.Join(r.Legacy, ", ")+" may interfere")
	}
	if titles := r.Unread(false); len(titles) > 0 {
		w.note(s.name, "rules on devices are not looked at", strings.Join(titles, ", ")+" may interfere")
	}
}

// way asks a namespace's stack, and names rules that ask for more than is known of a packet.
func (w *walk) way(s space, q netdev.RouteQuestion) (netdev.Way, error) {
	rules, err := s.Conditions(q.Target.Is6())
	if err != nil {
		return netdev.Way{}, err
	}
	if len(rules) > 0 {
		w.note(s.name, "rules of policy routing ask for marks, ports or users, which are not followed", strings.Join(rules, "; ")+": may lead another way")
	}
	return s.Way(q)
}

// beside names what a device of the node is a part of, if what that decides is not looked at.
func (w *walk) beside(l netdev.Link) error {
	master := netdev.Link{}
	if l.Master != 0 {
		var err error
		if master, err = w.Net.LinkAt(l.Master); err != nil {
			return err
		}
	}
	switch {
	case l.Kind == "bridge", master.Kind == "bridge":
		name := l.Name
		if master.Kind == "bridge" {
			name = master.Name
		}
		reason := "what bridge " + name + " does with frames is not looked at: its ports, its table of addresses, ebtables"
		r, err := w.rulesOf(w.nodeSpace())
		if err != nil {
			return err
		}
		if titles := r.Unread(true); len(titles) > len(r.Unread(false)) {
			reason += ", " + strings.Join(titles, ", ")
		}
		w.note(l.Name, "frames pass bridge "+name, reason)
	case master.Kind == "vrf":
		w.note(l.Name, "belongs to VRF "+master.Name, "routes of VRF "+master.Name+" are asked, its sockets and rules are not looked at")
	}
	return nil
}

// express is XDP, which sees a frame before everybody else. It sends packets of known connections that services here have begun, and passes
// all others. true: the packet has gone from here.
func (w *walk) express(l netdev.Link) (bool, error) {
	place := placeOf(bpf.DatapathProgStraitXdp, l)
	seen, ours, err := w.firstProgram(l)
	if err != nil || !ours {
		return false, err
	}
	result, err := w.run(bpf.DatapathProgStraitXdp, seen.ID, trial.Run{Device: l.Index, Packet: w.packet}, place)
	if err != nil {
		return false, err
	}
	if result.Action == trial.Pass {
		w.on(place, "passes it on: it sends only packets of connections that it knows, to services with their backend on another node", "")
		return false, nil
	}
	before := w.packet
	w.packet = result.Packet
	if w.q.Packet.Size == 0 {
		w.packet.Size = 0
	}
	return true, w.decided(bpf.DatapathProgStraitXdp, l, 0, before, result)
}

// firstProgram finds the XDP program of a device, and names one that is not Strait's.
func (w *walk) firstProgram(l netdev.Link) (seen attach.Seen, ours bool, err error) {
	seen, there, err := attach.LookXDP(l)
	switch {
	case err != nil || !there:
		return seen, false, err
	case seen.Program == truncated(bpf.DatapathProgStraitXdp) && w.loaded.XDP:
		return seen, true, nil
	}
	w.note(l.Name, fmt.Sprintf("XDP program %q (id %d), which is not Strait's, sees packets first", seen.Program, seen.ID), fmt.Sprintf("XDP program %q may interfere", seen.Program))
	return seen, false, nil
}
