package events

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

// decode reads a record. Its time is that of the clock.
func decode(sample []byte, c clock) (flow.Event, error) {
	var r bpf.Event
	if len(sample) != int(unsafe.Sizeof(r)) {
		return flow.Event{}, fmt.Errorf("record of %d bytes, want %d: of programs of another version", len(sample), unsafe.Sizeof(r))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)), sample)
	if r.Kind < bpf.EventNew || r.Kind > bpf.EventDropped {
		return flow.Event{}, fmt.Errorf("record of kind %d, which this version does not know", r.Kind)
	}
	e := flow.Event{
		Time: c.time(r.Time), Kind: flow.Kind(r.Kind), Hook: flow.Hook(r.Hook), Protocol: policy.Protocol(r.Proto), Device: r.Ifindex,
		Source: addrPort(r.Src, r.Sport), Target: addrPort(r.Dst, r.Dport), Front: addrPort(r.Front, r.FrontPort), NAT: addrPort(r.Nat, r.NatPort),
		Answer: r.Flags&bpf.EventAnswer != 0, Egress: r.RuleOut, Ingress: r.RuleIn,
		Sent: flow.Traffic{Packets: r.Packets[0], Bytes: r.Bytes[0]},
	}
	switch r.Proto {
	case unix.IPPROTO_TCP:
		e.TCPFlags = r.TcpFlags
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		e.ICMP = r.Icmp
	}
	if r.Flags&bpf.EventAudit != 0 {
		e.Audited = r.Audit
	}
	switch e.Kind {
	case flow.Ended:
		e.Answered = flow.Traffic{Packets: r.Packets[1], Bytes: r.Bytes[1]}
	case flow.Denied, flow.Dropped:
		e.Reason = verdict.Reason(r.Reason)
	}
	return e, nil
}

// addrPort is the zero AddrPort when there is no address.
func addrPort(a bpf.Addr, port uint16) netip.AddrPort {
	ip := a.Netip()
	if !ip.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, bpf.NetPort(port))
}
