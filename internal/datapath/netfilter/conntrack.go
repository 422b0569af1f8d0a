// Package netfilter is the node's own connection tracking and address translation: its connections, and whether it goes on with them
// when nobody has rules any more.
package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/takeover"
)

// Bits of CTA_STATUS and states of CTA_PROTOINFO that the library does not name (linux/netfilter/nf_conntrack_common.h,
// nf_conntrack_tcp.h, nf_conntrack_sctp.h, nfnetlink_conntrack.h).
const (
	statusSeenReply = 1 << 1
	statusDestNAT   = 1 << 5
	statusDying     = 1 << 9

	protoInfoTCP  = 1
	protoInfoSCTP = 3
	protoState    = 1 // in either
	sctpClosed    = 1

	attrType = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	subsys   = 1      // NFNL_SUBSYS_CTNETLINK
)

// Redirected returns the TCP, UDP and SCTP connections of this network namespace that the kernel sends elsewhere than their senders
// think. A kernel without connection tracking has none.
func Redirected() ([]takeover.Flow, error) {
	var flows []takeover.Flow
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(subsys<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			if f, ok := parse(msg); ok {
				flows = append(flows, f)
			}
			return true
		})
		if absent(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list connections of the kernel: %w", err)
		}
	}
	return flows, nil
}

// absent reports whether the kernel has no such subsystem.
func absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Forget makes the kernel no longer translate connections. One that has ended meanwhile is no error.
func Forget(flows []takeover.Flow) error {
	var errs []error
	for _, f := range flows {
		req := nl.NewNetlinkRequest(subsys<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family(f), Version: nl.NFNETLINK_V0})
		req.AddData(tuple(f))
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete connection %s to %s: %w", f.Source, f.Destination, err))
		}
	}
	return errors.Join(errs...)
}

// Answered reports whether connection tracking of this network namespace takes a packet of TCP, UDP or SCTP for one of a connection that has
// been answered. It does not know those that are older than the rules that need it, nor those that pass it by: their packets are new to it.
func Answered(protocol uint8, source, target netip.AddrPort) (bool, error) {
	f := takeover.Flow{Protocol: protocol, Source: source, Destination: target}
	req := nl.NewNetlinkRequest(subsys<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family(f), Version: nl.NFNETLINK_V0})
	req.AddData(tuple(f))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, os.ErrNotExist) || absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look connection %s to %s up: %w", source, target, err)
	}
	for _, msg := range msgs {
		if len(msg) < nl.SizeofNfgenmsg {
			continue
		}
		attrs := attributes(msg[nl.SizeofNfgenmsg:])
		status, _ := number(attrs[nl.CTA_STATUS])
		_, began, _, ok := parseTuple(attrs[nl.CTA_TUPLE_ORIG])
		return ok && (began != source || status&statusSeenReply != 0), nil
	}
	return false, nil
}

func family(f takeover.Flow) uint8 {
	if f.Source.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func tuple(f takeover.Flow) *nl.RtAttr {
	src, dst := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if f.Source.Addr().Is6() {
		src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	orig := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	ip := orig.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(src, f.Source.Addr().AsSlice())
	ip.AddRtAttr(dst, f.Destination.Addr().AsSlice())
	proto := orig.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{f.Protocol})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(f.Source.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(f.Destination.Port()))
	return orig
}

// parse reads a message of a dump; not ok: it is of no connection that is redirected.
func parse(msg []byte) (f takeover.Flow, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return f, false
	}
	attrs := attributes(msg[nl.SizeofNfgenmsg:])
	status, _ := number(attrs[nl.CTA_STATUS])
	if status&statusDestNAT == 0 || status&statusDying != 0 {
		return f, false
	}
	if zone, ok := attrs[nl.CTA_ZONE]; ok && len(zone) == 2 && binary.BigEndian.Uint16(zone) != 0 {
		return f, false // of somebody who keeps connections apart; kube-proxy does not
	}
	var protocol uint8
	if f.Protocol, f.Source, f.Destination, ok = parseTuple(attrs[nl.CTA_TUPLE_ORIG]); !ok {
		return f, false
	}
	if protocol, f.ReplySource, f.ReplyDestination, ok = parseTuple(attrs[nl.CTA_TUPLE_REPLY]); !ok || protocol != f.Protocol {
		return f, false
	}
	f.Replied = status&statusSeenReply != 0
	f.Closed = closed(f.Protocol, attributes(attrs[nl.CTA_PROTOINFO]))
	return f, f.Redirected()
}

func parseTuple(b []byte) (protocol uint8, src, dst netip.AddrPort, ok bool) {
	attrs := attributes(b)
	ip, proto := attributes(attrs[nl.CTA_TUPLE_IP]), attributes(attrs[nl.CTA_TUPLE_PROTO])
	number := proto[nl.CTA_PROTO_NUM]
	if len(number) != 1 {
		return 0, src, dst, false
	}
	switch protocol = number[0]; protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
	default:
		return 0, src, dst, false
	}
	address := func(v4, v6, port uint16) (netip.AddrPort, bool) {
		raw, ok := ip[v4]
		if !ok {
			raw = ip[v6]
		}
		a, ok := netip.AddrFromSlice(raw)
		if p := proto[port]; ok && len(p) == 2 {
			return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(p)), true
		}
		return netip.AddrPort{}, false
	}
	src, ok = address(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC, nl.CTA_PROTO_SRC_PORT)
	if !ok {
		return 0, src, dst, false
	}
	dst, ok = address(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST, nl.CTA_PROTO_DST_PORT)
	return protocol, src, dst, ok
}

func closed(protocol uint8, info map[uint16][]byte) bool {
	state := func(of uint16) uint8 {
		if b := attributes(info[of])[protoState]; len(b) == 1 {
			return b[0]
		}
		return 0
	}
	switch protocol {
	case unix.IPPROTO_TCP:
		s := state(protoInfoTCP)
		return s == nl.TCP_CONNTRACK_TIME_WAIT || s == nl.TCP_CONNTRACK_CLOSE
	case unix.IPPROTO_SCTP:
		return state(protoInfoSCTP) == sctpClosed
	}
	return false
}

// attributes indexes a list of attributes by type. What is cut short is left out.
func attributes(b []byte) map[uint16][]byte {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	return index(list)
}

func index(list []syscall.NetlinkRouteAttr) map[uint16][]byte {
	out := make(map[uint16][]byte, len(list))
	for _, a := range list {
		out[a.Attr.Type&attrType] = a.Value
	}
	return out
}

func number(b []byte) (uint32, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}
