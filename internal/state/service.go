package state

import (
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/table"
)

// Protocol is an IP protocol number, as in the kernel's keys.
type Protocol uint8

// The protocols a service can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the name Kubernetes uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// ServiceName identifies a Service object.
type ServiceName struct{ Namespace, Name string }

// String returns namespace/name.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// ServiceType is the type of a Service as Kubernetes spells it, and the kind of a frontend.
type ServiceType string

// The types of services, and two kinds of frontend that are no types of their own.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
	ExternalIP   ServiceType = "ExternalIP" // an address of spec.externalIPs
	HostPort     ServiceType = "HostPort"   // a container's hostPort; its service is the pod
)

// Algorithm chooses a backend for a new connection.
type Algorithm string

// The algorithms: see docs/load-balancing.md.
const (
	Random Algorithm = "random"
	Maglev Algorithm = "maglev"
	RR     Algorithm = "rr"  // round robin
	LC     Algorithm = "lc"  // least connections
	DH     Algorithm = "dh"  // hash of the destination address
	SH     Algorithm = "sh"  // hash of the source address
	SED    Algorithm = "sed" // shortest expected delay
	NQ     Algorithm = "nq"  // never queue
	P2C    Algorithm = "p2c" // the less loaded of two chosen by chance
)

// Forwarding is how packets reach a backend on another node, and how the answer goes back.
type Forwarding string

// The ways of forwarding.
const (
	SNAT Forwarding = "snat" // with this node's address; the answer comes back through it
	DSR  Forwarding = "dsr"  // direct server return: the backend's node answers the client itself
)

// TrafficPolicy says which backends a kind of traffic may use.
type TrafficPolicy string

// The traffic policies of Kubernetes.
const (
	PolicyCluster TrafficPolicy = "Cluster"
	PolicyLocal   TrafficPolicy = "Local"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Port     uint16
	Protocol Protocol
	NodePort uint16
}

// Weight is what an annotation says about some endpoints: how many times as many connections as others they are to get.
type Weight struct {
	// Of is "ADDRESS", "node:NAME" or "zone:NAME"; the most exact one that fits counts, in this order.
	Of    string
	Value uint16 // 0: no new connections
}

// Service is what Kubernetes says about a Service. Intent; owner: kube.
type Service struct {
	ServiceName
	Type        ServiceType
	ClusterIPs  []netip.Addr // empty when headless
	ExternalIPs []netip.Addr // spec.externalIPs
	Ingress     []netip.Addr // status.loadBalancer.ingress whose ipMode is VIP
	Headless    bool
	Ports       []ServicePort
	// PublishNotReady makes endpoints count as ready whatever their state.
	PublishNotReady bool
	// Proxy is the label service.kubernetes.io/service-proxy-name: not empty, another proxy serves it.
	Proxy string
	// Target is spec.externalName.
	Target string
	// Class is spec.loadBalancerClass.
	Class string
	// Families are spec.ipFamilies in order: true for IPv6.
	Families []bool
	// RequestedIPs are the LoadBalancer addresses asked for: spec.loadBalancerIP and the annotation.
	RequestedIPs []netip.Addr
	Labels       map[string]string // only of type LoadBalancer, for the selectors of pools
	// Allocation is what became of its LoadBalancer addresses.
	Allocation Allocation

	ExternalPolicy      TrafficPolicy
	InternalPolicy      TrafficPolicy
	HealthCheckNodePort uint16
	SourceRanges        []netip.Prefix // loadBalancerSourceRanges; empty: everybody
	Affinity            time.Duration  // session affinity ClientIP; 0: none
	Distribution        string         // spec.trafficDistribution

	// From annotations; empty: what the configuration says.
	Algorithm  Algorithm
	Forwarding Forwarding
	Weights    []Weight

	UID string
	// Created decides who keeps an address that two services claim: the older one.
	Created time.Time
}

// Equal reports whether two services say the same.
func (s Service) Equal(o Service) bool { return reflect.DeepEqual(s, o) }

// NewServices returns the table of services, keyed by namespace/name.
func NewServices() *table.Table[Service] {
	return table.New("services", func(s Service) string { return s.String() })
}

// EndpointPort is one port of an EndpointSlice; Name ties it to the ServicePort of the same name.
type EndpointPort struct {
	Name     string
	Port     uint16
	Protocol Protocol
}

// SliceEndpoint is one endpoint of an EndpointSlice.
type SliceEndpoint struct {
	Address     netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	Node        string
	Zone        string
	Pod         string   // namespace/name, empty when it is none; backends share its memory
	ForZones    []string // hints.forZones
	ForNodes    []string // hints.forNodes
}

// Equal reports whether two endpoints say the same.
func (e SliceEndpoint) Equal(o SliceEndpoint) bool {
	return e.Address == o.Address && e.Ready == o.Ready && e.Serving == o.Serving && e.Terminating == o.Terminating && e.Node == o.Node &&
		e.Zone == o.Zone && e.Pod == o.Pod && slices.Equal(e.ForZones, o.ForZones) && slices.Equal(e.ForNodes, o.ForNodes)
}

// EndpointSlice is what Kubernetes says about a part of a Service's endpoints. Intent; owner: kube.
type EndpointSlice struct {
	Namespace string
	Name      string
	Service   ServiceName
	Headless  bool // of a service without an address of its own: only policies look at it
	Ports     []EndpointPort
	Endpoints []SliceEndpoint
	// Trigger is when what the slice says now became true of a pod or the service, by the clock of the control plane; zero when unknown.
	// It is no part of what a slice says: Equal does not look at it.
	Trigger time.Time
}

// Equal reports whether two slices say the same.
func (s EndpointSlice) Equal(o EndpointSlice) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Service == o.Service && s.Headless == o.Headless &&
		slices.Equal(s.Ports, o.Ports) && slices.EqualFunc(s.Endpoints, o.Endpoints, SliceEndpoint.Equal)
}

// APIServerService is the namespace/name of the service whose endpoints are the API servers.
const APIServerService = "default/kubernetes"

// SlicesByService finds the slices of a service by its namespace/name.
var SlicesByService = table.Index[EndpointSlice]{
	Name: "service",
	Keys: func(s EndpointSlice) []string { return []string{s.Service.String()} },
}

// NewEndpointSlices returns the table of slices, keyed by namespace/name.
func NewEndpointSlices() *table.Table[EndpointSlice] {
	return table.New("endpointslices", func(s EndpointSlice) string { return s.Namespace + "/" + s.Name }, SlicesByService)
}

// Backend is one target of a frontend.
type Backend struct {
	Address     netip.Addr
	Port        uint16
	Weight      uint16 // at least 1
	Terminating bool
	Pod         string // namespace/name, empty when it is none
}

// SetKey names a backend set: the frontends of one service port and family share it, so that affinity, turns and tables are one.
type SetKey struct {
	Service  ServiceName
	Port     string // name of the service port; of a host port, its address and number, which no port has as its name
	Protocol Protocol
	V6       bool
	Local    bool // only backends on this node, because of a traffic policy
}

// Frontend is an address and port a service answers on, with the backends in use now. Desired; owner: control.
//
// An unspecified address (0.0.0.0, ::) stands for every address of this node: node ports, which are also served for the addresses of
// other nodes, and host ports.
type Frontend struct {
	Address  netip.Addr
	Port     uint16
	Protocol Protocol
	Type     ServiceType
	Service  ServiceName
	PortName string
	Backends []Backend // for clients inside the cluster: active, sorted by address and port; empty: connections are refused
	// InnerLocal: Backends are only those on this node, because of internalTrafficPolicy. Only of a ClusterIP.
	InnerLocal bool
	// OuterLocal: clients outside get only backends on this node, OuterBackends. Else they get Backends.
	OuterLocal    bool
	OuterBackends []Backend
	Algorithm     Algorithm
	Forwarding    Forwarding
	Affinity      time.Duration
	SourceRanges  []netip.Prefix // of a LoadBalancer frontend; empty: everybody
	reconcile.Status
}

// Set returns the key of the set that Backends (or, with outer, OuterBackends) are.
func (f Frontend) Set(outer bool) SetKey {
	k := SetKey{Service: f.Service, Port: f.PortName, Protocol: f.Protocol, V6: f.Address.Is6(), Local: f.InnerLocal || outer && f.OuterLocal}
	if f.Type == HostPort {
		k.Port = netip.AddrPortFrom(f.Address, f.Port).String()
	}
	return k
}

// SameIntent reports whether two rows want the same of the kernel, whatever became of them.
func (f Frontend) SameIntent(o Frontend) bool {
	return f.Address == o.Address && f.Port == o.Port && f.Protocol == o.Protocol && f.Type == o.Type &&
		f.Service == o.Service && f.PortName == o.PortName && f.InnerLocal == o.InnerLocal && f.OuterLocal == o.OuterLocal &&
		f.Algorithm == o.Algorithm && f.Forwarding == o.Forwarding && f.Affinity == o.Affinity && slices.Equal(f.SourceRanges, o.SourceRanges) &&
		slices.Equal(f.Backends, o.Backends) && slices.Equal(f.OuterBackends, o.OuterBackends)
}

// WithStatus returns the row with the reconciler's result.
func (f Frontend) WithStatus(s reconcile.Status) Frontend { f.Status = s; return f }

// Key returns address:port/protocol.
func (f Frontend) Key() string {
	return netip.AddrPortFrom(f.Address, f.Port).String() + "/" + f.Protocol.String()
}

// FrontendsByService finds the frontends of a service by its namespace/name.
var FrontendsByService = table.Index[Frontend]{
	Name: "service",
	Keys: func(f Frontend) []string { return []string{f.Service.String()} },
}

// NewFrontends returns the table of frontends, keyed by Frontend.Key.
func NewFrontends() *table.Table[Frontend] {
	return table.New("frontends", Frontend.Key, FrontendsByService)
}
