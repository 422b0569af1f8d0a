package part

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

// fromPod is a packet that a pod of this node sends.
func (w *walk) fromPod() error {
	e, ok := w.podAt(w.q.Pod, w.packet.Source.Addr())
	if !ok {
		if w.q.Pod == "" {
			return fmt.Errorf("%w: no pod of this node has address %s", localapi.ErrNotFound, w.packet.Source.Addr())
		}
		return fmt.Errorf("%w: no pod %s is on this node", localapi.ErrNotFound, w.q.Pod)
	}
	s, err := w.inPod(e)
	if err != nil {
		w.drop("pod "+podName(e), "its network namespace cannot be entered", "", "the pod is gone: "+err.Error())
		return nil
	}
	defer s.Close()
	on, err := w.chooseBackend(e.NetNSCookie, e.Addresses)
	if err != nil || !on {
		return err
	}
	if err := w.setSource(e.Addresses); err != nil {
		return err
	}
	sent := w.told(w.packet)
	w.part.Sent = &sent
	on, err = w.podSends(s, e)
	if err != nil || !on {
		return err
	}
	node, err := w.Net.LinkAt(e.DeviceIndex)
	if missing(err) {
		w.drop(e.Device, "the node's end of the pod's pair is gone", "", "device "+e.Device+" does not exist")
		return nil
	}
	if err != nil {
		return err
	}
	if !w.linkUp(w.nodeSpace(), node) {
		return nil
	}
	if size := w.packet.Length(); size > node.MTU+vlanSlack {
		w.drop(node.Name, fmt.Sprintf("%d bytes are more than the %d of %s, the node's end of the pair", size, node.MTU, node.Name), "",
			fmt.Sprintf("larger than the MTU %d of %s, and nobody is told", node.MTU, node.Name))
		return nil
	}
	return w.program(bpf.DatapathProgStraitFromPod, node, 0, netip.Addr{})
}

// setSource gives a packet without source one of its sender's.
func (w *walk) setSource(addresses []netip.Addr) error {
	target := w.packet.Target.Addr()
	if !target.IsValid() {
		return localapi.BadQuestion("packet without target")
	}
	if !w.packet.Source.Addr().IsValid() {
		for _, a := range addresses {
			if a.Is6() == target.Is6() {
				w.packet.Source = netip.AddrPortFrom(a, max(w.q.Packet.Source.Port(), defaultPort))
			}
		}
	}
	if w.packet.Protocol == unix.IPPROTO_ICMP || w.packet.Protocol == unix.IPPROTO_ICMPV6 {
		w.packet = echo(w.packet)
	}
	if source := w.packet.Source.Addr(); source.Is6() != target.Is6() || !source.IsValid() {
		return localapi.BadQuestion("target %s: the sender has no address of its family", target)
	}
	return nil
}

// podSends is the way through the pod's own stack; false: it ends there.
func (w *walk) podSends(s space, e state.Endpoint) (bool, error) {
	source, target := w.packet.Source.Addr(), w.packet.Target.Addr()
	way, err := w.way(s, netdev.RouteQuestion{Target: target, Source: source})
	if err != nil {
		return false, err
	}
	if way.Refused != "" {
		w.drop(s.name, "the pod's own stack has no way to "+target.String(), "", "in the pod: "+way.Refused)
		return false, nil
	}
	if way.Local {
		return false, w.takes(s, 0)
	}
	l, err := s.LinkAt(way.Device)
	if err != nil {
		return false, err
	}
	hop := way.Gateway
	if !hop.IsValid() {
		hop = target
	}
	next, known, err := s.Neighbour(l.Index, hop)
	if err != nil {
		return false, err
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Output, Out: l.Name, OutIdx: l.Index}, w.packet); err != nil || !on {
		return false, err
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Postrouting, Out: l.Name, OutIdx: l.Index}, w.packet); err != nil || !on {
		return false, err
	}
	if !w.linkUp(s, l) {
		return false, nil
	}
	if !known || next.MAC == nil {
		w.drop(s.name, fmt.Sprintf("nobody knows the hardware address of next hop %s", hop), "",
			fmt.Sprintf("the pod has no neighbour entry for %s, and the node answers no ARP there: attach the pod again", hop))
		return false, nil
	}
	if w.packet.Length() > l.MTU {
		w.splits(s, l)
	}
	w.packet.To, w.packet.From = next.MAC, l.MAC
	w.stranger = !equal(next.MAC, e.HostMAC)
	w.on(s.name, fmt.Sprintf("sends %s by %s to %s", w.what(), l.Name, hop), way.Entry,
		fact("source", source), fact("mtu", l.MTU), fact("next hop", fmt.Sprintf("%s is %s (%s)", hop, next.MAC, next.State)), fact("namespace", e.NetNS))
	return true, nil
}

// what is a packet in a few words.
func (w *walk) what() string {
	p := w.packet
	switch {
	case p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6:
		kind := "an echo request"
		if p.Answer {
			kind = "an echo reply"
		}
		return fmt.Sprintf("%s from %s to %s", kind, p.Source.Addr(), p.Target.Addr())
	case p.Answer:
		return fmt.Sprintf("the answer %s %s to %s", protocolName(p.Protocol), p.Source, p.Target)
	}
	return fmt.Sprintf("%s %s to %s", protocolName(p.Protocol), p.Source, p.Target)
}

// behind opens the pod behind the node's end of a pair, to be closed by who gets it; nil when the packet ends here.
func (w *walk) behind(node netdev.Link) (*space, netdev.Link, error) {
	e, ok := w.podOn(node.Index)
	if !ok {
		w.unknown(node.Name, "a device that belongs to no pod the agent knows", "no pod is attached to "+node.Name)
		return nil, netdev.Link{}, nil
	}
	s := w.alive(e)
	if s == nil {
		return nil, netdev.Link{}, nil
	}
	inside, err := s.LinkAt(node.Peer)
	if err == nil && inside.Up {
		return s, inside, nil
	}
	s.Close()
	if err == nil {
		w.drop(inside.Name+" of "+s.name, "the device is down", "", "device "+inside.Name+" of "+s.name+" is down")
	}
	return nil, inside, err
}

// alive opens the namespace of a pod, to be closed by who gets it; nil when the packet ends here, because the pod is gone.
func (w *walk) alive(e state.Endpoint) *space {
	s, err := w.inPod(e)
	if err != nil {
		w.drop("pod "+podName(e), "its network namespace cannot be entered", "", "the pod is gone: "+err.Error())
		return nil
	}
	return &s
}

// intoPod hands the packet to the inside of a pod, past the node's stack.
func (w *walk) intoPod(ep maps.Endpoint) error {
	node, err := w.Net.LinkAt(int(ep.Index))
	if missing(err) {
		w.drop("strait_endpoint "+ep.Address.String(), "the device of the pod is gone", "", fmt.Sprintf("device with index %d does not exist", ep.Index))
		return nil
	}
	if err != nil {
		return err
	}
	s, inside, err := w.behind(node)
	if s == nil {
		return err
	}
	defer s.Close()
	if w.stranger { // newer kernels make a redirected packet the pod's whatever its frame says: seen on Linux 6.18
		w.warn(s.name, "the frame was addressed to somebody else", fmt.Sprintf("the sender's neighbour entry %s of its gateway is wrong: older kernels drop the packet here", w.packet.To))
		w.stranger = false
	}
	return w.takes(*s, inside.Index)
}

// loopback is the index of lo in every namespace.
const loopback = 1

// takes is the way from a device into a namespace's stack, to who listens there. device 0: from its own loopback.
func (w *walk) takes(s space, device int) error {
	in, index := "lo", loopback
	if device != 0 {
		l, err := s.LinkAt(device)
		if err != nil {
			return err
		}
		in, index = l.Name, device
	} else {
		for _, hook := range []netfilter.Hook{netfilter.Output, netfilter.Postrouting} {
			if on, err := w.filter(s, netfilter.Passing{Hook: hook, Out: in, OutIdx: index}, w.packet); err != nil || !on {
				return err
			}
		}
	}
	if w.stranger {
		w.drop(s.name, "the frame is addressed to somebody else", "", fmt.Sprintf("hardware address %s is not that of %s", w.packet.To, s.name))
		return nil
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Prerouting, In: in, InIndex: index}, w.packet); err != nil || !on {
		return err
	}
	if device != 0 {
		way, err := w.way(s, netdev.RouteQuestion{Target: w.packet.Target.Addr(), Source: w.packet.Source.Addr(), From: device})
		if err != nil {
			return err
		}
		if way.Refused != "" || !way.Local {
			why := way.Refused
			if why == "" {
				why = "it does not have the address " + w.packet.Target.Addr().String()
			}
			w.drop(s.name, "its stack does not take the packet", way.Entry, s.name+": "+why)
			return nil
		}
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Input, In: in, InIndex: index}, w.packet); err != nil || !on {
		return err
	}
	w.part.Arrived = &localapi.ExplainArrived{Entry: localapi.EntryPod, Pod: s.pod}
	if s.pod == "" {
		w.part.Arrived.Entry = localapi.EntryNode
	}
	return w.heard(s, device)
}

// heard asks for who takes the packet out of the stack.
func (w *walk) heard(s space, device int) error {
	p := w.packet
	if p.Answer {
		w.add(localapi.Hop{Place: s.name, Text: "takes " + w.what(), Outcome: localapi.HopDelivered})
		return nil
	}
	if p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6 {
		name := "net/ipv4/icmp_echo_ignore_all"
		if p.IPv6() {
			name = "net/ipv6/icmp/echo_ignore_all"
		}
		ignored, err := s.Sysctl(name)
		if err != nil {
			return err
		}
		if ignored == "1" {
			w.drop(s.name, "its stack is told to ignore echo requests", name+" = 1", name+" is 1")
			return nil
		}
		w.add(localapi.Hop{Place: s.name, Text: "its stack answers " + w.what(), Outcome: localapi.HopDelivered})
		return nil
	}
	if p.Protocol == unix.IPPROTO_SCTP {
		w.warn(s.name, "sockets of SCTP are not looked at", fmt.Sprintf("whether somebody listens on SCTP port %d is not known", p.Target.Port()))
		w.add(localapi.Hop{Place: s.name, Text: "its stack takes " + w.what(), Outcome: localapi.HopDelivered})
		return nil
	}
	by, ok, err := s.Listens(p.Protocol, p.Target, p.Source, device)
	if err != nil {
		return err
	}
	if !ok {
		w.refuse(s.name, "its stack refuses "+w.what(), "", fmt.Sprintf("nobody listens on %s port %d", protocolName(p.Protocol), p.Target.Port()))
		return nil
	}
	w.add(localapi.Hop{Place: s.name, Text: "a socket takes " + w.what(), Entry: "socket bound to " + by.String(), Outcome: localapi.HopDelivered})
	return nil
}
