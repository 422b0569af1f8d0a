// Package policy compiles policies of every kind into what the kernel looks up: for each direction and identity, which protocols and ports
// pass and which rule says so. It is pure: equal input, byte-equal output.
package policy

import (
	"net/netip"
)

// Kind is the kind of the object a policy comes from, as in its manifest.
type Kind string

// The kinds.
const (
	NetworkPolicy                  Kind = "NetworkPolicy"
	ClusterNetworkPolicy           Kind = "ClusterNetworkPolicy"
	CiliumNetworkPolicy            Kind = "CiliumNetworkPolicy"
	CiliumClusterwideNetworkPolicy Kind = "CiliumClusterwideNetworkPolicy"
	// Builtin are rules that no object says: the own node always reaches its pods, a mode denies or allows everything.
	Builtin Kind = "Builtin"
)

// Ref names the object a policy comes from. It prints as kind namespace/name.
type Ref struct {
	Kind      Kind
	Namespace string // empty: cluster scoped
	Name      string
}

// Tier is where a policy stands among all that select a pod.
type Tier uint8

// The tiers, in the order in which they decide.
//
//	admin:    policies by Priority, then name; the first rule that matches decides, Pass goes on with the normal tier
//	normal:   a Deny anywhere wins over any Allow; no match: denied if a policy isolates the direction, else on with baseline
//	baseline: as admin; Pass and no match: allowed
//
// A pod that any normal policy isolates in a direction never reaches the baseline tier with it.
const (
	Admin Tier = iota
	Normal
	Baseline
)

// Action is what a rule does with what it matches.
type Action uint8

// The actions.
const (
	Allow Action = iota
	Deny
	Pass // of the admin and baseline tiers only
)

// Way is a direction of traffic as the selected pod sees it. Values are bpf.PolicyDirection's.
type Way uint8

// The ways.
const (
	Egress  Way = 0
	Ingress Way = 1
)

// Mode says what happens to pods by default.
type Mode uint8

// The modes of product.md POL-4.
const (
	ModeDefault Mode = iota // allowed until a policy selects the pod
	ModeAlways              // as if a policy without rules isolated the pod in both directions
	ModeNever               // no policy is enforced
)

// Policy is one spec of an object: what is to be enforced at the pods, or the node, that Subject selects.
type Policy struct {
	Ref      Ref
	Spec     int // index of the spec in an object that has several, else 0
	Tier     Tier
	Priority int32 // within admin and baseline: lower decides first
	Subject  Selector
	Node     bool // Subject selects nodes: host firewall
	Audit    bool // computed and shown, not enforced
	Ingress  Direction
	Egress   Direction
}

// Direction is what a policy says about one way. Zero: nothing.
type Direction struct {
	Isolates bool // normal tier: what no rule allows is denied
	Rules    []Rule
}

// Rule matches a peer and a port.
type Rule struct {
	Path   string // where it is in the object: "spec.ingress[0]"
	Name   string // the name it has there, if any
	Action Action
	// Peers: any of them; nil: everybody, empty: nobody.
	Peers []Selector
	// Ports: any of them; nil: every protocol and port, empty: none.
	Ports []Port
}

// Protocol is an IP protocol number; 0: every protocol.
type Protocol uint8

// The protocols that have ports, or types and codes in their place.
const (
	AnyProtocol Protocol = 0
	ICMP        Protocol = 1
	TCP         Protocol = 6
	UDP         Protocol = 17
	ICMPv6      Protocol = 58
	SCTP        Protocol = 132
)

// Port is a protocol with a range of ports. AnyProtocol with ports means TCP, UDP and SCTP.
type Port struct {
	Protocol    Protocol
	First, Last uint16 // inclusive; both 0: all. ICMP: type << 8 | code
	// Name is a named port in place of the range: a container port of the pod that is connected to. A pod without it is not matched.
	Name string
}

// NamedPort is a container port of a pod.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// PeerKind says what an address belongs to.
type PeerKind uint8

// The kinds of peers.
const (
	UnknownPeer   PeerKind = iota // inside the cluster's CIDRs, whose is not known
	HostPeer                      // this node
	NodePeer                      // another node
	PodPeer                       // a pod with an address of its own
	APIServerPeer                 // an API server that is neither node nor pod
	WorldPeer                     // outside the cluster
)

// Peer is who has an address. Selectors match peers.
type Peer struct {
	Kind PeerKind
	// Prefix is the address, or a prefix all of whose addresses are the same to every CIDR selector in use.
	Prefix    netip.Prefix
	APIServer bool // an API server is at this address, whatever Kind it is
	// Of pods.
	Namespace       string
	ServiceAccount  string
	Labels          Labels
	NamespaceLabels Labels
	Ports           []NamedPort
	// Of nodes and the host.
	NodeLabels Labels
	// Services are the "namespace/name" of services with an endpoint at this address, as far as selectors in use ask for them.
	Services []string
}

// Label is a key and a value.
type Label struct{ Key, Value string }

// Labels are sorted by key, without doubles, and never changed.
type Labels []Label
