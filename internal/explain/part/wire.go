package part

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/datapath/trial"
	"github.com/strait-net/strait/internal/localapi"
)

// What the tunnel adds to a packet: Ethernet of the inner one, VXLAN, UDP, IP.
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// carrierPort stands for the tunnel's source port, which is a hash of what it carries.
const carrierPort = 50000

// encapsulate sends the packet through the tunnel.
func (w *walk) encapsulate(tunnel netdev.Link, row maps.Remote) error {
	if !tunnel.Up {
		w.drop(tunnel.Name, "the tunnel's device is down", row.Text(), "device "+tunnel.Name+" is down")
		return nil
	}
	way, err := w.way(w.nodeSpace(), netdev.RouteQuestion{Target: row.Node})
	if err != nil {
		return err
	}
	if way.Refused != "" || way.Local {
		why := way.Refused
		if why == "" {
			why = "it is an address of this node itself"
		}
		w.drop("route", "the tunnel has no way to "+row.Node.String(), row.Text(), "no way to tunnel endpoint "+row.Node.String()+": "+why)
		return nil
	}
	out, err := w.Net.LinkAt(way.Device)
	if err != nil {
		return err
	}
	outer := w.carrier(way.Source, row.Node)
	size, limit := w.packet.Length()+overhead4, out.MTU
	if row.Node.Is6() {
		size = w.packet.Length() + overhead6
	}
	if way.MTU != 0 {
		limit = min(limit, way.MTU)
	}
	w.on(tunnel.Name, fmt.Sprintf("wrapped for %s (node %s), leaves by %s", row.Node, w.nodeOf(row.Node), out.Name), way.Entry,
		fact("outer source", way.Source), fact("port", w.loaded.VXLANPort), fact("outer size", size), fact("mtu", limit))
	if size > limit {
		w.warn(tunnel.Name, fmt.Sprintf("%d bytes with the tunnel's headers are more than the %d of %s: they travel in pieces", size, limit, out.Name), fmt.Sprintf("larger than the MTU %d of %s", limit, out.Name))
	}
	for _, hook := range []netfilter.Hook{netfilter.Output, netfilter.Postrouting} {
		if on, err := w.filter(w.nodeSpace(), netfilter.Passing{Hook: hook, Out: out.Name, OutIdx: out.Index}, outer); err != nil || !on {
			return err
		}
	}
	hop := way.Gateway
	if !hop.IsValid() {
		hop = row.Node
	}
	mac, on, err := w.transmit(out, hop)
	if err != nil || !on {
		return err
	}
	node := w.nodeOf(row.Node)
	if node == "" {
		w.unknown(row.Text(), "no node that the agent knows has the tunnel endpoint", "no node has address "+row.Node.String())
		return nil
	}
	w.part.Next = &localapi.ExplainNext{Node: node, Entry: localapi.EntryTunnel, Sender: way.Source, MAC: mac}
	if way.Gateway.IsValid() && w.nodeOf(way.Gateway) != node { // a router is in between, which gives it another
		w.part.Next.MAC = ""
	}
	return nil
}

// carrier is the tunnel's own packet.
func (w *walk) carrier(from, to netip.Addr) trial.Packet {
	return trial.Packet{
		Source: netip.AddrPortFrom(from, carrierPort), Target: netip.AddrPortFrom(to, w.loaded.VXLANPort), Protocol: unix.IPPROTO_UDP,
		Size: min(w.packet.Length()+overhead4, trial.MaxSize),
	}
}

// leave sends the packet out of one of the node's devices to a next hop.
func (w *walk) leave(out netdev.Link, hop netip.Addr) error {
	mac, on, err := w.transmit(out, hop)
	if err != nil || !on {
		return err
	}
	if size := w.packet.Length(); size > out.MTU {
		w.drop(out.Name, fmt.Sprintf("%d bytes are more than the %d of %s", size, out.MTU, out.Name), "", fmt.Sprintf("larger than the MTU %d of %s, and nobody is told", out.MTU, out.Name))
		return nil
	}
	node := w.nodeOf(hop)
	if node == "" {
		lost, err := w.stray(out)
		if err != nil || lost {
			return err
		}
	}
	w.part.Next = &localapi.ExplainNext{Node: node, Entry: localapi.EntryNet, MAC: mac}
	return nil
}

// stray notes a packet that leaves the cluster though it should not: what becomes of it outside is not known here.
func (w *walk) stray(out netdev.Link) (bool, error) {
	const inside = bpf.RemotePod | bpf.RemoteNode | bpf.RemoteHost
	source, target := w.packet.Source.Addr(), w.packet.Target.Addr()
	row, known, err := w.Maps.Remote(target)
	if err != nil {
		return false, err
	}
	if known && row.Flags&inside != 0 {
		w.unknown(out.Name, "leaves the cluster, to which its target belongs", "whether anybody outside brings it to "+w.whose(target)+" is not known here: the route that should lead there is missing")
		return true, nil
	}
	row, known, err = w.Maps.Remote(source)
	if err != nil {
		return false, err
	}
	if known && row.Flags&bpf.RemotePod != 0 && w.loaded.Network != config.Flat {
		w.unknown(out.Name, "leaves the cluster with the pod's own address", "whether anybody outside knows the way back to "+source.String()+" is not known here")
		return true, nil
	}
	return false, nil
}

// transmit is the last step out of a device: carrier and neighbour. The hardware address is empty while nobody knows it.
func (w *walk) transmit(out netdev.Link, hop netip.Addr) (mac string, on bool, err error) {
	if !w.linkUp(w.nodeSpace(), out) {
		return "", false, nil
	}
	if err := w.beside(out); err != nil {
		return "", false, err
	}
	next, known, err := w.Net.Neighbour(out.Index, hop)
	if err != nil {
		return "", false, err
	}
	switch {
	case known && next.MAC != nil:
		w.on(out.Name, fmt.Sprintf("to %s, whose hardware address is %s", hop, next.MAC), fmt.Sprintf("neighbour %s %s (%s)", hop, next.MAC, next.State))
		return next.MAC.String(), true, nil
	case known && next.State == "failed":
		w.warn(out.Name, fmt.Sprintf("%s has not answered when it was last asked for its hardware address; it is asked again", hop), fmt.Sprintf("neighbour %s is failed", hop))
	default:
		w.on(out.Name, fmt.Sprintf("to %s, whose hardware address has still to be asked for", hop), "")
	}
	on, err = w.discovers(out, hop)
	return "", on, err
}

// Types of neighbour discovery (RFC 4861 4.3, 4.4), and where a frame has them.
const (
	solicitation  = 135
	advertisement = 136
	typeOffset    = 14 + 40
)

// discovers asks whether neighbour discovery gets through the rules of this node: it passes them as any packet of IPv6 does, and ARP does not.
// false: the packet ends here.
func (w *walk) discovers(l netdev.Link, other netip.Addr) (bool, error) {
	own := w.ownAddress(true)
	if other.Is4() || !own.IsValid() {
		return true, nil
	}
	r, err := w.rulesOf(w.nodeSpace())
	if err != nil || r.Empty() {
		return err == nil, err
	}
	frame, err := trial.Packet{Source: netip.AddrPortFrom(other, 1), Target: netip.AddrPortFrom(own, 1), Protocol: unix.IPPROTO_ICMPV6}.Frame()
	if err != nil {
		return false, err
	}
	for _, kind := range []byte{solicitation, advertisement} {
		frame[typeOffset] = kind
		for _, p := range []netfilter.Passing{
			{Hook: netfilter.Prerouting, In: l.Name, InIndex: l.Index}, {Hook: netfilter.Input, In: l.Name, InIndex: l.Index}, {Hook: netfilter.Output, Out: l.Name, OutIdx: l.Index},
		} {
			p.Frame, p.Untracked = frame, true
			if found := r.Pass(p); found.Stopped() {
				w.drop(l.Name, "nobody learns the hardware address: a rule stops neighbour discovery", found.Rule, "neighbour discovery is stopped by "+found.Rule)
				return false, nil
			}
		}
	}
	return true, nil
}

// arrival is the device that a packet from the network comes by; false: there is none for it.
func (w *walk) arrival() (netdev.Link, bool, error) {
	if w.q.MAC != "" {
		mac, err := net.ParseMAC(w.q.MAC)
		if err != nil {
			return netdev.Link{}, false, localapi.BadQuestion("mac %q: %v", w.q.MAC, err)
		}
		l, ok, err := w.Net.LinkWithMAC(mac)
		if err != nil {
			return l, false, err
		}
		if !ok {
			w.drop("node "+w.Node, "the frame is addressed to nobody here", "", fmt.Sprintf("hardware address %s is none of node %s: the sender's neighbour entry is wrong", mac, w.Node))
			return l, false, nil
		}
		return l, w.arrives(l), nil
	}
	devices, err := w.Maps.Devices()
	if err != nil {
		return netdev.Link{}, false, err
	}
	if len(devices) == 0 {
		w.unknown("node "+w.Node, "no device carries cluster traffic", "strait_device has no rows")
		return netdev.Link{}, false, nil
	}
	index := int(devices[0].Index)
	if way, err := w.Net.Way(netdev.RouteQuestion{Target: w.neighbourly()}); err == nil && way.Refused == "" && !way.Local {
		for _, d := range devices {
			if int(d.Index) == way.Device {
				index = way.Device
			}
		}
	}
	l, err := w.Net.LinkAt(index)
	if missing(err) {
		w.drop("node "+w.Node, "the device is gone", "", fmt.Sprintf("device with index %d does not exist", index))
		return l, false, nil
	}
	if err != nil || !w.arrives(l) {
		return l, false, err
	}
	other := w.neighbourly()
	row, known, err := w.Maps.Remote(other)
	if err != nil || !known || row.Flags&(bpf.RemotePod|bpf.RemoteNode) == 0 { // a router outside has its neighbours from before
		return l, err == nil, err
	}
	on, err := w.discovers(l, other) // the sender had still to ask
	return l, on, err
}

// neighbourly is who the packet comes from, as far as the underlay goes.
func (w *walk) neighbourly() netip.Addr {
	if w.q.Sender.IsValid() {
		return w.q.Sender
	}
	return w.packet.Source.Addr()
}

func (w *walk) arrives(l netdev.Link) bool {
	if !l.Up {
		w.drop(l.Name+" of node "+w.Node, "the device is down", "", "device "+l.Name+" is down")
	}
	return l.Up
}

// fromNet is a packet that comes by one of the node's devices.
func (w *walk) fromNet() error {
	l, ok, err := w.arrival()
	if err != nil || !ok {
		return err
	}
	if err := w.setSource(nil); err != nil {
		return err
	}
	w.packet.To, w.packet.From = l.MAC, nil
	w.on(l.Name, "comes in: "+w.what(), "")
	if err := w.beside(l); err != nil {
		return err
	}
	if gone, err := w.express(l); err != nil || gone {
		return err
	}
	return w.program(bpf.DatapathProgStraitFromNet, l, 0, netip.Addr{})
}

// fromTunnel is a packet that another node has sent through the tunnel: first the tunnel's own, then what it carries.
func (w *walk) fromTunnel() error {
	if !w.q.Sender.IsValid() {
		return localapi.BadQuestion("packet of the tunnel without sender")
	}
	l, ok, err := w.arrival()
	if err != nil || !ok {
		return err
	}
	if err := w.beside(l); err != nil {
		return err
	}
	if _, _, err := w.firstProgram(l); err != nil { // ours passes what is for the node itself
		return err
	}
	outer := w.carrier(w.q.Sender, w.ownAddress(w.q.Sender.Is6()))
	outer.To, outer.Size = l.MAC, 0
	r, attached, err := w.try(bpf.DatapathProgStraitFromNet, l, 0, netip.Addr{}, outer)
	if err != nil {
		return err
	}
	if attached && r.Action != trial.Pass {
		w.drop(placeOf(bpf.DatapathProgStraitFromNet, l), "the tunnel's packet does not get to the stack", "", r.Reason.Text())
		return nil
	}
	s := w.nodeSpace()
	for _, hook := range []netfilter.Hook{netfilter.Prerouting, netfilter.Input} {
		if on, err := w.filter(s, netfilter.Passing{Hook: hook, In: l.Name, InIndex: l.Index}, outer); err != nil || !on {
			return err
		}
		if hook == netfilter.Input {
			break
		}
		way, err := w.way(s, netdev.RouteQuestion{Target: outer.Target.Addr(), Source: outer.Source.Addr(), From: l.Index})
		if err != nil {
			return err
		}
		if way.Refused != "" || !way.Local {
			w.drop(s.name, "its stack does not take the tunnel's packet", way.Entry, fmt.Sprintf("tunnel packet from %s: %s", w.q.Sender, orText(way.Refused, outer.Target.Addr().String()+" is no address of the node")))
			return nil
		}
	}
	tunnel, err := w.Net.LinkOf(netdev.VXLANDevice)
	if missing(err) {
		w.drop(netdev.VXLANDevice, "there is no such device", "", "device "+netdev.VXLANDevice+" does not exist")
		return nil
	}
	if err != nil {
		return err
	}
	if !tunnel.Up {
		w.drop(tunnel.Name, "the tunnel's device is down", "", "device "+tunnel.Name+" is down")
		return nil
	}
	w.on(tunnel.Name, fmt.Sprintf("comes out of the tunnel of %s (%s): %s", w.q.Sender, w.whose(w.q.Sender), w.what()), "", fact("device", l.Name))
	w.packet.To, w.packet.From = tunnel.MAC, tunnel.MAC
	return w.program(bpf.DatapathProgStraitFromVx, tunnel, 0, w.q.Sender)
}

func orText(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
