package part

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/localapi"
)

// fromNode is a packet that a process in the node's own network namespace sends.
func (w *walk) fromNode() error {
	s := w.nodeSpace()
	self, _, _ := w.State.Nodes.Snapshot().Get(w.Node)
	on, err := w.chooseBackend(w.loaded.NetnsCookie, self.Addresses)
	if err != nil || !on {
		return err
	}
	question := netdev.RouteQuestion{Target: w.packet.Target.Addr(), Source: w.packet.Source.Addr()}
	way, err := w.way(s, question)
	if err != nil {
		return err
	}
	if way.Refused != "" {
		w.drop(s.name, "the node has no way to "+question.Target.String(), "", way.Refused)
		return nil
	}
	if !w.packet.Source.Addr().IsValid() {
		w.packet.Source = netip.AddrPortFrom(way.Source, max(w.q.Packet.Source.Port(), defaultPort))
	}
	if err := w.setSource(self.Addresses); err != nil {
		return err
	}
	sent := w.told(w.packet)
	w.part.Sent = &sent
	if way.Local {
		w.on(s.name, "sends to itself: "+w.what(), way.Entry)
		return w.takes(s, 0)
	}
	return w.sends(s, way, 0)
}

// stackTakes is the node's stack with a packet that has come by a device: for the node itself, or to be forwarded.
func (w *walk) stackTakes(l netdev.Link) error {
	s := w.nodeSpace()
	in, err := w.Net.LinkAt(l.Index)
	if err != nil {
		return err
	}
	if w.stranger {
		return w.takes(s, in.Index)
	}
	way, err := w.way(s, netdev.RouteQuestion{Target: w.packet.Target.Addr(), Source: w.packet.Source.Addr(), From: in.Index})
	if err != nil {
		return err
	}
	if way.Refused == "" && way.Local {
		return w.takes(s, in.Index)
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Prerouting, In: in.Name, InIndex: in.Index}, w.packet); err != nil || !on {
		return err
	}
	if way.Refused != "" {
		text := "the node's stack has no way to " + w.packet.Target.Addr().String()
		if errors.Is(way.Code, unix.EXDEV) || errors.Is(way.Code, unix.EINVAL) {
			w.drop(s.name, text, "", "in the node's stack: "+way.Refused)
			return nil
		}
		if off, err := w.forwardingOff(s, in); err != nil || off {
			return err
		}
		w.refuse(s.name, text+", and says so", "", "in the node's stack: "+way.Refused)
		return nil
	}
	return w.forwards(s, in, way)
}

// forwardingOff notes that the node does not forward what comes by a device.
func (w *walk) forwardingOff(s space, in netdev.Link) (bool, error) {
	name := "net/ipv4/conf/" + in.Name + "/forwarding"
	if w.packet.IPv6() {
		name = "net/ipv6/conf/all/forwarding" // the others are for router advertisements
	}
	value, err := s.Sysctl(name)
	if err != nil || value != "0" {
		return false, err
	}
	w.drop(s.name, "the node does not forward packets that come by "+in.Name, name+" = 0", name+" is 0")
	return true, nil
}

func (w *walk) forwards(s space, in netdev.Link, way netdev.Way) error {
	if off, err := w.forwardingOff(s, in); err != nil || off {
		return err
	}
	out, err := s.LinkAt(way.Device)
	if err != nil {
		return err
	}
	if w.packet.TTL == 1 {
		w.refuse(s.name, "its time to live is used up: the sender is told", "", "time to live is used up")
		return nil
	}
	limit := out.MTU
	if way.MTU != 0 {
		limit = min(limit, way.MTU)
	}
	if size := w.packet.Length(); size > limit {
		w.refuse(s.name, fmt.Sprintf("%d bytes are more than the %d of %s: the sender is told", size, limit, out.Name), way.Entry, fmt.Sprintf("larger than the MTU %d of %s; the sender is told", limit, out.Name))
		return nil
	}
	if on, err := w.filter(s, netfilter.Passing{Hook: netfilter.Forward, In: in.Name, InIndex: in.Index, Out: out.Name, OutIdx: out.Index}, w.packet); err != nil || !on {
		return err
	}
	return w.sends(s, way, in.Index)
}

// sends is the way out of the node's stack. from is the device it came by, 0: it is the node's own.
func (w *walk) sends(s space, way netdev.Way, from int) error {
	out, err := s.LinkAt(way.Device)
	if err != nil {
		return err
	}
	hop := way.Gateway
	if !hop.IsValid() {
		hop = w.packet.Target.Addr()
	}
	doing := "sends"
	if from != 0 {
		doing = "forwards"
	}
	if size := w.packet.Length(); from == 0 && size > out.MTU {
		w.splits(s, out)
	}
	w.on(s.name, fmt.Sprintf("%s %s by %s", doing, w.what(), out.Name), way.Entry, fact("mtu", out.MTU), fact("next hop", hop))
	hooks := []netfilter.Hook{netfilter.Output, netfilter.Postrouting}
	inName := ""
	if from != 0 {
		hooks = hooks[1:]
	}
	for _, hook := range hooks {
		if on, err := w.filter(s, netfilter.Passing{Hook: hook, In: inName, Out: out.Name, OutIdx: out.Index}, w.packet); err != nil || !on {
			return err
		}
	}
	if _, ok := w.podOn(out.Index); ok {
		return w.toPod(s, out, hop, from)
	}
	if out.Name == netdev.VXLANDevice {
		return w.intoTunnel(out, from)
	}
	devices, err := w.Maps.Devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if int(d.Index) != out.Index {
			continue
		}
		hops := len(w.part.Hops)
		if err := w.program(bpf.DatapathProgStraitToNet, out, from, netip.Addr{}); err != nil {
			return err
		}
		if n := len(w.part.Hops); n > hops && (w.part.Hops[n-1].Outcome == localapi.HopDropped || w.part.Hops[n-1].Outcome == localapi.HopRefused) {
			return nil
		}
	}
	return w.leave(out, hop)
}

// intoTunnel is a packet that a route has led to the tunnel's device.
func (w *walk) intoTunnel(tunnel netdev.Link, from int) error {
	if !tunnel.Up {
		w.drop(tunnel.Name, "the tunnel's device is down", "", "device "+tunnel.Name+" is down")
		return nil
	}
	return w.program(bpf.DatapathProgStraitToVx, tunnel, from, netip.Addr{})
}

// toPod is a packet of the node's stack to a pod.
func (w *walk) toPod(s space, out netdev.Link, hop netip.Addr, from int) error {
	if !w.linkUp(s, out) {
		return nil
	}
	next, known, err := s.Neighbour(out.Index, hop)
	if err != nil {
		return err
	}
	if !known || next.MAC == nil {
		w.drop(out.Name, "nobody knows the pod's hardware address", "", fmt.Sprintf("the node has no neighbour entry for %s, and ARP is not carried on %s", hop, out.Name))
		return nil
	}
	w.packet.To, w.packet.From = next.MAC, out.MAC
	return w.program(bpf.DatapathProgStraitToPod, out, from, netip.Addr{})
}

// vlanSlack is how much more than its MTU the end of a pair takes: a VLAN tag (include/linux/netdevice.h, __is_skb_forwardable).
const vlanSlack = 4

// splits makes the packet as large as a sender's stack lets it be.
func (w *walk) splits(s space, l netdev.Link) {
	w.warn(s.name, fmt.Sprintf("%d bytes are more than the %d of %s: the sender's stack sends them in pieces, or tells the program", w.packet.Length(), l.MTU, l.Name),
		fmt.Sprintf("larger than the MTU %d of %s", l.MTU, l.Name))
	w.packet.Size, w.q.Packet.Size = l.MTU, l.MTU
}

// crossPair hands a packet that has left the node's end of a pod's pair to the other end.
func (w *walk) crossPair(out netdev.Link) error {
	s, inside, err := w.behind(out)
	if s == nil {
		return err
	}
	defer s.Close()
	if size := w.packet.Length(); size > inside.MTU+vlanSlack {
		w.drop(inside.Name+" of "+s.name, fmt.Sprintf("%d bytes are more than the %d of %s", size, inside.MTU, inside.Name), "", fmt.Sprintf("larger than the MTU %d of %s, and nobody is told", inside.MTU, inside.Name))
		return nil
	}
	w.stranger = !equal(w.packet.To, inside.MAC)
	return w.takes(*s, inside.Index)
}
