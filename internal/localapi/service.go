package localapi

import (
	"net/netip"
	"time"
)

// KubeProxy is the replacement of kube-proxy.
type KubeProxy struct {
	// Mode: on; off, kube-proxy serves Services; drain, only connections that are ours already.
	Mode string `json:"mode,omitempty"`
	// Decided is when a person has decided so against the configuration: strait takeover.
	Decided   *time.Time `json:"decided,omitempty"`
	SocketLB  bool       `json:"socketLB"`
	Cgroup    string     `json:"cgroup,omitempty"`    // directory whose sockets are load balanced
	Protocols []string   `json:"protocols,omitempty"` // TCP, UDP, SCTP
	Devices   []string   `json:"devices,omitempty"`   // where services are answered for packets from outside

	Forwarding string `json:"forwarding,omitempty"` // snat or dsr: of services that do not choose
	Algorithm  string `json:"algorithm,omitempty"`  // of services that do not choose
	XDP        string `json:"xdp,omitempty"`        // off, native, generic
	NodePorts  string `json:"nodePorts,omitempty"`  // "min-max", inclusive
	Announce   bool   `json:"announce,omitempty"`   // ARP and neighbour discovery are answered for service addresses

	Frontends int `json:"frontends"`
	// ByType counts frontends: ClusterIP, NodePort, LoadBalancer, ExternalIP, HostPort.
	ByType       map[string]int `json:"frontendsByType,omitempty"`
	Backends     int            `json:"backends,omitempty"`     // known to the kernel
	Leaving      int            `json:"leaving,omitempty"`      // of them in no service any more, kept for their connections
	MaglevTables int            `json:"maglevTables,omitempty"` // in the kernel
	Problems     int            `json:"problems,omitempty"`     // services that have any
}

// The states of a backend.
const (
	BackendActive      = "active"      // gets new connections
	BackendTerminating = "terminating" // gets new connections because nobody else is there
	BackendLeaving     = "leaving"     // keeps the connections it has
	BackendOut         = "out"         // gets nothing
)

// Service is a row of /v1/services: a frontend, or a service that has none (Note says why).
type Service struct {
	ID       uint32         `json:"id,omitempty"` // of the kernel's table, 0 when not there
	Frontend netip.AddrPort `json:"frontend"`     // 0.0.0.0 and :: stand for every address of the node; empty when there is none
	// Of is the row of the kernel's table that answers here, where Frontend is one address of this node out of all of them.
	Of        *netip.AddrPort `json:"of,omitempty"`
	Protocol  string          `json:"protocol,omitempty"`
	Type      string          `json:"type"` // ClusterIP, NodePort, LoadBalancer, ExternalIP, HostPort; Headless and ExternalName have no frontend
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Port      string          `json:"port,omitempty"` // name of the service port
	// Note says what serves this one when no frontend does.
	Note string `json:"note,omitempty"`

	Algorithm       string         `json:"algorithm,omitempty"`
	Forwarding      string         `json:"forwarding,omitempty"` // snat, dsr
	AffinitySeconds uint32         `json:"affinitySeconds,omitempty"`
	SourceRanges    []netip.Prefix `json:"sourceRanges,omitempty"` // clients that may use it; empty: everybody
	// InternalLocal and ExternalLocal are traffic policies of Local: clients inside, or outside, get only backends of this node.
	InternalLocal bool   `json:"internalLocal,omitempty"`
	ExternalLocal bool   `json:"externalLocal,omitempty"`
	HealthCheck   uint16 `json:"healthCheckNodePort,omitempty"`
	Set           uint32 `json:"set,omitempty"`      // of the kernel's slots, 0 when not there
	OuterSet      uint32 `json:"outerSet,omitempty"` // for clients outside, where it is another

	Backends []Backend `json:"backends"`
	// Outer are the backends of clients outside, where they are others (ExternalLocal).
	Outer  []Backend `json:"outerBackends,omitempty"`
	Status string    `json:"status"` // pending, done, error
	Error  string    `json:"error,omitempty"`
}

// Backend is one target of a frontend.
type Backend struct {
	Address netip.AddrPort `json:"address"`
	State   string         `json:"state"`            // active, terminating
	Weight  uint16         `json:"weight,omitempty"` // 0 counts as 1
	Pod     string         `json:"pod,omitempty"`    // namespace/name
	// Open are connections under way from this node, by sockets and by packets.
	Open uint32 `json:"open,omitempty"`
}

// ServiceDetail is the answer of /v1/services/NAMESPACE/NAME.
type ServiceDetail struct {
	Node      string    `json:"node"` // who says it
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Type      string    `json:"type"`
	Created   time.Time `json:"created,omitzero"`
	Note      string    `json:"note,omitempty"`   // what serves it when no frontend does
	Target    string    `json:"target,omitempty"` // of type ExternalName

	Algorithm           string         `json:"algorithm,omitempty"`
	Forwarding          string         `json:"forwarding,omitempty"`
	InternalPolicy      string         `json:"internalTrafficPolicy,omitempty"`
	ExternalPolicy      string         `json:"externalTrafficPolicy,omitempty"`
	AffinitySeconds     uint32         `json:"affinitySeconds,omitempty"`
	AffinityClients     int            `json:"affinityClients,omitempty"` // that stay with a backend of theirs, on this node
	SourceRanges        []netip.Prefix `json:"sourceRanges,omitempty"`
	HealthCheckNodePort uint16         `json:"healthCheckNodePort,omitempty"`
	Distribution        string         `json:"trafficDistribution,omitempty"`
	PublishNotReady     bool           `json:"publishNotReadyAddresses,omitempty"`

	Frontends []Service         `json:"frontends"`
	Endpoints []ServiceEndpoint `json:"endpoints"`
	Problems  []string          `json:"problems,omitempty"`
}

// ServiceEndpoint is one address and port behind a service, in use or not.
type ServiceEndpoint struct {
	Port     string         `json:"port,omitempty"` // name of the service port
	Protocol string         `json:"protocol"`
	Address  netip.AddrPort `json:"address"`
	Pod      string         `json:"pod,omitempty"` // namespace/name
	Node     string         `json:"node,omitempty"`
	Zone     string         `json:"zone,omitempty"`
	State    string         `json:"state"`         // active, terminating, leaving, out
	Why      string         `json:"why,omitempty"` // it is not active
	Weight   uint16         `json:"weight,omitempty"`
	ID       uint32         `json:"id,omitempty"`              // of the kernel's table
	Open     uint32         `json:"open"`                      // connections under way, made on this node
	Ever     uint64         `json:"ever"`                      // connections made on this node since the backend is known
	Clients  int            `json:"affinityClients,omitempty"` // that stay with it, on this node
	Traffic  Traffic        `json:"traffic"`
}

// Traffic is what this node's connection table has counted between others and one address and port.
type Traffic struct {
	Connections int    `json:"connections"` // entries
	ToPackets   uint64 `json:"toPackets"`
	ToBytes     uint64 `json:"toBytes"` // layer 3
	FromPackets uint64 `json:"fromPackets"`
	FromBytes   uint64 `json:"fromBytes"`
}
