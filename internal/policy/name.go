package policy

import (
	"cmp"
	"strings"
)

// Names of what decides when no object does: the Ref of such a rule has Kind Builtin and one of these.
const (
	DefaultAllow = "default allow" // nothing isolates the pod in this direction
	ModeAlwaysOn = "mode always"
	ModeNeverOn  = "mode never"
	OwnNode      = "own node" // the node of a pod always reaches it
	NoRoomForWho = "no room"  // who the peer is does not fit into the kernel's tables, and some are denied
)

// String returns kind and name: "NetworkPolicy default/web".
func (r Ref) String() string {
	if r.Namespace == "" {
		return string(r.Kind) + " " + r.Name
	}
	return string(r.Kind) + " " + r.Namespace + "/" + r.Name
}

// String returns the policy, the direction and the place: "NetworkPolicy default/web ingress spec.ingress[0]".
func (r RuleRef) String() string {
	if r.Kind == Builtin {
		return r.Ref.String()
	}
	if r.Path == "" {
		return r.Ref.String() + " " + r.Way.String() + " (no rule matches)"
	}
	return r.Ref.String() + " " + r.Way.String() + " " + r.Path
}

// Compare orders RuleRefs by their fields.
func (r RuleRef) Compare(o RuleRef) int {
	return cmp.Or(r.Ref.Compare(o.Ref), cmp.Compare(r.Way, o.Way), strings.Compare(r.Path, o.Path))
}

// Compare orders Refs by kind, namespace and name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, o.Kind), cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Name, o.Name))
}

// Compare is the order in which policies are asked: tier, priority (admin and baseline only), name, namespace, kind, spec. Of two rules
// that decide the same thing the one of the earlier policy is named, and within a policy the earlier rule.
func Compare(a, b *Policy) int {
	if c := cmp.Compare(a.Tier, b.Tier); c != 0 {
		return c
	}
	if a.Tier != Normal {
		if c := cmp.Compare(a.Priority, b.Priority); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(a.Ref.Name, b.Ref.Name), cmp.Compare(a.Ref.Namespace, b.Ref.Namespace),
		cmp.Compare(a.Ref.Kind, b.Ref.Kind), cmp.Compare(a.Spec, b.Spec))
}

// String returns the word for people.
func (w Way) String() string {
	if w == Ingress {
		return "ingress"
	}
	return "egress"
}

// Of returns what the policy says about a way.
func (p *Policy) Of(w Way) *Direction {
	if w == Ingress {
		return &p.Ingress
	}
	return &p.Egress
}

// String returns the word for people.
func (t Tier) String() string {
	switch t {
	case Admin:
		return "admin"
	case Normal:
		return "normal"
	}
	return "baseline"
}

// String returns the word for people.
func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	}
	return "pass"
}

// String returns the word used in configuration.
func (m Mode) String() string {
	switch m {
	case ModeAlways:
		return "always"
	case ModeNever:
		return "never"
	}
	return "default"
}

// String returns the word for people.
func (k PeerKind) String() string {
	switch k {
	case HostPeer:
		return "own node"
	case NodePeer:
		return "node"
	case PodPeer:
		return "pod"
	case APIServerPeer:
		return "kube-apiserver"
	case WorldPeer:
		return "world"
	}
	return "unknown"
}

// String returns the protocol's usual name, or its number.
func (p Protocol) String() string {
	switch p {
	case AnyProtocol:
		return "ANY"
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	}
	return decimal(uint64(p))
}

// HasPorts reports whether "every protocol" with a port means this one.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// String returns "80/TCP", "8000-8080/UDP", "http/TCP", "TCP" for all of its ports, and "ICMP 8" or "ICMP 3/1" for types and codes.
func (p Port) String() string {
	switch {
	case p.Name != "":
		return word(p.Name) + "/" + p.Protocol.String()
	case p.First == 0 && p.Last == 0:
		return p.Protocol.String()
	case p.Protocol == ICMP || p.Protocol == ICMPv6:
		return p.Protocol.String() + " " + icmpRange(p.First, p.Last)
	case p.First == p.Last:
		return decimal(uint64(p.First)) + "/" + p.Protocol.String()
	}
	return decimal(uint64(p.First)) + "-" + decimal(uint64(p.Last)) + "/" + p.Protocol.String()
}

func icmpRange(first, last uint16) string {
	from := decimal(uint64(first >> 8))
	to := decimal(uint64(last >> 8))
	switch {
	case first == last:
		return from + "/" + decimal(uint64(first&255))
	case first&255 == 0 && last&255 == 255 && first>>8 == last>>8:
		return from
	case first&255 == 0 && last&255 == 255:
		return from + "-" + to
	}
	return from + "/" + decimal(uint64(first&255)) + "-" + to + "/" + decimal(uint64(last&255))
}
