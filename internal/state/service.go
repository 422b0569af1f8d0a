package state

import (
	"net/netip"
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

// ServiceType is the type of a Service as Kubernetes spells it.
type ServiceType string

// The types of services.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
)

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Port     uint16
	Protocol Protocol
	NodePort uint16
}

// Service is what Kubernetes says about a Service. Intent; owner: kube.
type Service struct {
	ServiceName
	Type       ServiceType
	ClusterIPs []netip.Addr // empty when headless
	Headless   bool
	Ports      []ServicePort
	// PublishNotReady makes endpoints count as ready whatever their state.
	PublishNotReady bool
	// Proxy is the label service.kubernetes.io/service-proxy-name: not empty, another proxy serves it.
	Proxy string
	// Created decides who keeps an address that two services claim: the older one.
	Created time.Time
}

// Equal reports whether two services say the same.
func (s Service) Equal(o Service) bool {
	return s.ServiceName == o.ServiceName && s.Type == o.Type && s.Headless == o.Headless &&
		s.PublishNotReady == o.PublishNotReady && s.Proxy == o.Proxy && s.Created.Equal(o.Created) &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.Ports, o.Ports)
}

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
}

// EndpointSlice is what Kubernetes says about a part of a Service's endpoints. Intent; owner: kube.
type EndpointSlice struct {
	Namespace string
	Name      string
	Service   ServiceName
	Ports     []EndpointPort
	Endpoints []SliceEndpoint
}

// Equal reports whether two slices say the same.
func (s EndpointSlice) Equal(o EndpointSlice) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Service == o.Service &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Endpoints, o.Endpoints)
}

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
	Terminating bool
}

// Frontend is an address and port a service answers on, with the backends in use now. Desired; owner: control.
type Frontend struct {
	Address  netip.Addr
	Port     uint16
	Protocol Protocol
	Type     ServiceType // ClusterIP now; the kinds of frontend of the other types come with the services work
	Service  ServiceName
	PortName string
	Backends []Backend // active, sorted by address and port; empty: connections are refused
	reconcile.Status
}

// SameIntent reports whether two rows want the same of the kernel, whatever became of them.
func (f Frontend) SameIntent(o Frontend) bool {
	return f.Address == o.Address && f.Port == o.Port && f.Protocol == o.Protocol && f.Type == o.Type &&
		f.Service == o.Service && f.PortName == o.PortName && slices.Equal(f.Backends, o.Backends)
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
