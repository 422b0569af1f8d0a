package kube

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
)

// allowPorts reads a member of toPorts of a rule that allows. What it says beyond ports is refused.
func (r *ciliumReader) allowPorts(path *field.Path, p ciliumv2.PortRule) []policy.Port {
	const requests, tls = "requests are not looked into", "TLS is not looked into"
	if rules := p.Rules; rules != nil {
		path := path.Child("rules")
		r.unsupported(path.Child("http"), rules.HTTP != nil, requests)
		r.unsupported(path.Child("kafka"), rules.Kafka != nil, requests)
		r.unsupported(path.Child("dns"), rules.DNS != nil, requests)
		r.unsupported(path.Child("l7proto"), rules.L7Proto != "", requests)
		r.unsupported(path.Child("l7"), rules.L7 != nil, requests)
	}
	r.unsupported(path.Child("serverNames"), p.ServerNames != nil, tls)
	r.unsupported(path.Child("terminatingTLS"), p.TerminatingTLS != nil, tls)
	r.unsupported(path.Child("originatingTLS"), p.OriginatingTLS != nil, tls)
	r.unsupported(path.Child("listener"), p.Listener != nil, "there is no Envoy")
	return r.portList(path.Child("ports"), p.Ports)
}

func (r *ciliumReader) denyPorts(path *field.Path, p ciliumv2.PortDenyRule) []policy.Port {
	return r.portList(path.Child("ports"), p.Ports)
}

func (r *ciliumReader) portList(path *field.Path, ports []ciliumv2.PortProtocol) []policy.Port {
	r.limit(path, len(ports))
	out := []policy.Port{}
	for i, p := range ports {
		out = append(out, r.port(path.Index(i), p)...)
	}
	return out
}

// limit refuses lists that are longer than the API allows, and empty ones, of which nothing says whether they are all or nothing.
func (r *ciliumReader) limit(path *field.Path, n int) {
	if n < 1 || n > ciliumv2.MaxPorts {
		r.refuse(path, int32(n), "items: want 1 to %d", ciliumv2.MaxPorts)
	}
}

// portless are protocols that have no ports.
func portless() map[string]policy.Protocol {
	return map[string]policy.Protocol{"VRRP": 112, "IGMP": 2, "GRE": 47, "IPIP": 4, "IPV6": 41, "ESP": 50}
}

// port reads a port, or ports. Port 0 is every port of the protocol.
func (r *ciliumReader) port(path *field.Path, p ciliumv2.PortProtocol) []policy.Port {
	name := strings.ToUpper(p.Protocol)
	if protocol, ok := portless()[name]; ok {
		if p.Port != "" && p.Port != "0" {
			r.refuse(path.Child("port"), p.Port, "%s has no ports: want 0, or nothing", name)
		}
		r.noRange(path, p, name+" has no ports")
		return []policy.Port{{Protocol: protocol}}
	}
	var out policy.Port
	switch name {
	case "", "ANY":
		out.Protocol = policy.AnyProtocol
	case "TCP":
		out.Protocol = policy.TCP
	case "UDP":
		out.Protocol = policy.UDP
	case "SCTP":
		out.Protocol = policy.SCTP
	case "ICMP":
		return r.icmpPort(path, policy.ICMP, p)
	case "ICMPV6":
		return r.icmpPort(path, policy.ICMPv6, p)
	default:
		r.refuse(path.Child("protocol"), p.Protocol, "unknown; accepted: TCP, UDP, SCTP, ANY, ICMP, ICMPv6, VRRP, IGMP, GRE, IPIP, IPV6, ESP")
		return nil
	}
	if lower := strings.ToLower(p.Port); len(validation.IsValidPortName(lower)) == 0 {
		out.Name = intern(lower) // endPort is ignored, as the API says
		return []policy.Port{out}
	}
	first, ok := r.number(path.Child("port"), p.Port, 65535, "a port, 0 for every one, or the name of a container's port")
	switch {
	case !ok:
	case first == 0:
		r.noRange(path, p, "port 0 is every port")
		if out.Protocol == policy.AnyProtocol {
			return []policy.Port{{Protocol: policy.TCP}, {Protocol: policy.UDP}, {Protocol: policy.SCTP}}
		}
	case p.EndPort != 0 && (p.EndPort < int32(first) || p.EndPort > 65535):
		r.refuse(path.Child("endPort"), p.EndPort, "want port, %d, to 65535", first)
	default:
		out.First, out.Last = first, max(first, uint16(p.EndPort))
	}
	return []policy.Port{out}
}

func (r *ciliumReader) noRange(path *field.Path, p ciliumv2.PortProtocol, why string) {
	if p.EndPort != 0 {
		r.refuse(path.Child("endPort"), p.EndPort, "%s: want none", why)
	}
}

// icmpPort reads ICMP given as a protocol of toPorts: its types stand for ports, and 0 for all of them.
func (r *ciliumReader) icmpPort(path *field.Path, protocol policy.Protocol, p ciliumv2.PortProtocol) []policy.Port {
	kind, ok := r.number(path.Child("port"), p.Port, 255, "a type of ICMP, or 0 for every one")
	if !ok || kind == 0 {
		r.noRange(path, p, "port 0 is every type")
		return []policy.Port{{Protocol: protocol}}
	}
	if p.EndPort != 0 && (p.EndPort < int32(kind) || p.EndPort > 255) {
		r.refuse(path.Child("endPort"), p.EndPort, "want port, %d, to 255", kind)
	}
	out := icmpType(protocol, kind)
	if p.EndPort != 0 {
		out.Last = icmpType(protocol, uint16(p.EndPort)).Last
	}
	return []policy.Port{out}
}

// icmpType is every code of a type.
func icmpType(protocol policy.Protocol, kind uint16) policy.Port {
	return policy.Port{Protocol: protocol, First: kind << 8, Last: kind<<8 | 0xff}
}

// number reads a decimal number. One with leading zeros may be meant as octal: it is refused.
func (r *ciliumReader) number(path *field.Path, text string, most uint64, accepted string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n > most || strconv.FormatUint(n, 10) != text {
		r.refuse(path, text, "want %s; the greatest is %d", accepted, most)
		return 0, false
	}
	return uint16(n), true
}

func (r *ciliumReader) icmp(path *field.Path, rule ciliumv2.ICMPRule) []policy.Port {
	path = path.Child("fields")
	r.limit(path, len(rule.Fields))
	return each(path, rule.Fields, r.icmpField)
}

func (r *ciliumReader) icmpField(path *field.Path, f ciliumv2.ICMPField) policy.Port {
	protocol, names := policy.ICMP, icmpNames()
	switch f.Family {
	case "", "IPv4":
	case "IPv6":
		protocol, names = policy.ICMPv6, icmpv6Names()
	default:
		r.refuse(path.Child("family"), f.Family, "unknown; accepted: IPv4, IPv6")
	}
	path = path.Child("type")
	if kind, ok := names[strings.ReplaceAll(string(f.Type), " ", "")]; ok {
		return icmpType(protocol, kind)
	}
	kind, _ := r.number(path, string(f.Type), 255, "a number or the name of a type of this family")
	return icmpType(protocol, kind)
}

// icmpNames are the names of types in the API. Numbers: IANA, "ICMP Type Numbers".
func icmpNames() map[string]uint16 {
	return map[string]uint16{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8, "RouterAdvertisement": 9,
		"RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14, "Photuris": 40,
		"ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	}
}

// icmpv6Names are those of IPv6. Numbers: IANA, "ICMPv6 \"type\" Numbers".
func icmpv6Names() map[string]uint16 {
	return map[string]uint16{
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128, "EchoReply": 129,
		"MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
		"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138,
		"ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140, "InverseNeighborDiscoverySolicitation": 141,
		"InverseNeighborDiscoveryAdvertisement": 142, "HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145,
		"MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
		"DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
	}
}
