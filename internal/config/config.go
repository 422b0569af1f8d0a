// Package config is the configuration of the agent and the operator: its keys, defaults and checks.
package config

import (
	"net/netip"
	"time"
)

// Config is the content of config.yaml. Keys are the json names; an unknown key is an error.
type Config struct {
	ClusterName string      `json:"clusterName"`
	RoutingMode RoutingMode `json:"routingMode"`
	Network     Network     `json:"network"`
	IPv4        bool        `json:"ipv4"`
	IPv6        bool        `json:"ipv6"`
	IPAM        IPAM        `json:"ipam"`
	// ServiceCIDRs are the API server's service ranges, at most one per family; only for checks, may be empty.
	ServiceCIDRs []Prefix `json:"serviceCIDRs"`
	// Devices carry cluster and outside traffic; empty: those with a node address or a default route.
	Devices []string `json:"devices"`
	// MTU of the devices; 0: detected, continuously.
	MTU   int   `json:"mtu"`
	VXLAN VXLAN `json:"vxlan"`
	// MasqueradePorts is "min-max", inclusive; must not overlap net.ipv4.ip_local_port_range.
	MasqueradePorts string   `json:"masqueradePorts"`
	SocketLB        SocketLB `json:"socketLB"`
	Services        Services `json:"services"`
	Policy          Policy   `json:"policy"`
	Flows           Flows    `json:"flows"`
	Maps            Maps     `json:"maps"`
	// CgroupRoot is the cgroup v2 directory whose sockets are load balanced; empty: found by itself.
	CgroupRoot string `json:"cgroupRoot"`
	// BPFRoot is the bpffs mount under which strait/v1 is kept.
	BPFRoot  string `json:"bpfRoot"`
	RunDir   string `json:"runDir"`   // sockets and lock
	StateDir string `json:"stateDir"` // records and queued deletes
	CNI      CNI    `json:"cni"`
	// API reaches the API server when services do not work yet; empty: in-cluster configuration.
	API API `json:"api"`
	// MetricsAddress serves /metrics, /healthz and /readyz; empty: off.
	MetricsAddress string `json:"metricsAddress"`
	LogLevel       string `json:"logLevel"`
	// Operator holds what only strait-operator reads, Relay what only strait-relay does.
	Operator Operator `json:"operator"`
	Relay    Relay    `json:"relay"`
}

// RoutingMode is how packets reach pods on other nodes.
type RoutingMode string

// The routing modes.
const (
	VXLANMode  RoutingMode = "vxlan"
	NativeMode RoutingMode = "native"
)

// Network is the cluster's design towards the outside.
type Network string

// The designs of product.md NET-3.
const (
	Island   Network = "island"
	Flat     Network = "flat"
	Isolated Network = "isolated"
)

// IPAMMode says who gives nodes their pod CIDRs.
type IPAMMode string

// The IPAM modes.
const (
	ClusterPool    IPAMMode = "cluster-pool"
	KubernetesIPAM IPAMMode = "kubernetes"
)

// IPAM configures pod addresses.
type IPAM struct {
	Mode       IPAMMode `json:"mode"`
	PodCIDRv4  Prefix   `json:"podCIDRv4"` // cluster-pool: the pool; kubernetes: the whole, for masquerading decisions
	PodCIDRv6  Prefix   `json:"podCIDRv6"`
	NodeMaskV4 int      `json:"nodeMaskV4"`
	NodeMaskV6 int      `json:"nodeMaskV6"`
	CoolDown   Duration `json:"coolDown"`
}

// VXLAN configures the tunnel.
type VXLAN struct {
	Port uint16 `json:"port"`
}

// SocketLB configures load balancing in connect() and sendmsg().
type SocketLB struct {
	Enabled bool `json:"enabled"`
}

// Services configures the replacement of kube-proxy.
type Services struct {
	// Mode: on, off (kube-proxy serves them) or drain (connections that are ours go on, new ones are kube-proxy's).
	Mode ServiceMode `json:"mode"`
	// Algorithm and Forwarding are for services that do not choose by annotation.
	Algorithm  string `json:"algorithm"`  // random, maglev, rr, lc, dh, sh, sed, nq, p2c
	Forwarding string `json:"forwarding"` // snat, dsr
	// XDP attaches the XDP program to native devices: off, native, generic. native on a device that cannot is an error.
	XDP XDPMode `json:"xdp"`
	// NodePorts is "min-max", inclusive, as the API server's --service-node-port-range: no other program may bind to them.
	NodePorts string `json:"nodePorts"`
	// MaglevSize is the number of entries of a maglev table, a prime.
	MaglevSize uint32 `json:"maglevSize"`
	// Announce answers ARP and neighbour discovery for LoadBalancer addresses and external IPs.
	Announce bool `json:"announce"`
}

// Policy configures what is enforced where no policy says so.
type Policy struct {
	// Enforcement: default (allowed until a policy selects the pod), always (what no policy allows is denied) or never (no policy is
	// enforced). The annotation policy.strait.dev/enforcement of a namespace overrides it there.
	Enforcement PolicyMode `json:"enforcement"`
	// Audit: all policies are computed, counted and shown, none is enforced.
	Audit bool `json:"audit"`
}

// Flows configures what is told about connections.
type Flows struct {
	Enabled bool `json:"enabled"`
	// Ring is the size of the kernel's buffer of records in bytes, a power of two.
	Ring uint32 `json:"ring"`
	// Keep is how many flows the agent remembers.
	Keep uint32 `json:"keep"`
	// Listen serves Hubble's API over mTLS with the certificates in TLSDir: host:port; empty: only on the socket in runDir.
	Listen string `json:"listen"`
	// TLSDir holds ca.crt, tls.crt and tls.key; they are read again when they change.
	TLSDir string `json:"tlsDir"`
}

// PolicyMode is what happens to pods by default.
type PolicyMode string

// The modes of Policy.
const (
	PolicyDefault PolicyMode = "default"
	PolicyAlways  PolicyMode = "always"
	PolicyNever   PolicyMode = "never"
)

// ServiceMode says who serves Services.
type ServiceMode string

// The modes of Services.
const (
	ServicesOn    ServiceMode = "on"
	ServicesOff   ServiceMode = "off"
	ServicesDrain ServiceMode = "drain"
)

// XDPMode says where services are handled first.
type XDPMode string

// The modes of XDP.
const (
	XDPOff     XDPMode = "off"
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

// Maps are the sizes of the kernel's tables, in entries.
type Maps struct {
	Conntrack uint32 `json:"conntrack"`
	NAT       uint32 `json:"nat"`
	Services  uint32 `json:"services"`
	Backends  uint32 `json:"backends"`
	IPCache   uint32 `json:"ipcache"`
	// Identities are addresses and prefixes that policies in use tell apart; Policies pairs of a local policy and a peer's identity; Ports
	// ranges of ports of such a pair; Rules the rules in use.
	Identities uint32 `json:"identities"`
	Policies   uint32 `json:"policies"`
	Ports      uint32 `json:"ports"`
	Rules      uint32 `json:"rules"`
}

// CNI says where the plugin is installed.
type CNI struct {
	BinDir  string `json:"binDir"`
	ConfDir string `json:"confDir"`
	// Install copies the plugin and writes the conflist; off when something else does.
	Install bool `json:"install"`
	// Exclusive renames other CNI configurations so that the runtime cannot choose them.
	Exclusive bool `json:"exclusive"`
}

// API is how to reach the Kubernetes API server.
type API struct {
	Server     string `json:"server"`     // https://host:port, overrides the in-cluster address
	Kubeconfig string `json:"kubeconfig"` // path, for agents outside pods
}

// Operator configures strait-operator.
type Operator struct {
	// MetricsAddress serves /metrics, /healthz and /readyz of the operator; empty: off.
	MetricsAddress string `json:"metricsAddress"`
	// Lease is the name of the Lease by which replicas elect the active one.
	Lease string `json:"lease"`
	// Certificates lets the operator make the certificates by which agents and relay know each other.
	Certificates Certificates `json:"certificates"`
}

// Certificates configures Strait's own authority.
type Certificates struct {
	Enabled bool `json:"enabled"`
	// Validity is how long a certificate is good; it is made anew after two thirds of that.
	Validity Duration `json:"validity"`
}

// Relay configures the one stream of all nodes' flows.
type Relay struct {
	// Peer is the agent that is asked which nodes there are, host:port by mTLS; a Service of all agents does.
	Peer string `json:"peer"`
	// Listen serves Hubble's API over mTLS: host:port; empty: not.
	Listen string `json:"listen"`
	// Local serves it without TLS to who may forward a port to the relay's pod: a loopback address and port; empty: not.
	Local string `json:"local"`
	// TLSDir holds ca.crt, tls.crt and tls.key, for asking agents and for Listen; they are read again when they change.
	TLSDir string `json:"tlsDir"`
	// MetricsAddress serves /metrics, /healthz and /readyz of the relay; empty: off.
	MetricsAddress string `json:"metricsAddress"`
}

// Prefix is a netip.Prefix that reads and prints as CIDR text; zero is the empty string.
type Prefix struct{ netip.Prefix }

// Duration is a time.Duration that reads and prints as Go duration text ("30s").
type Duration struct{ time.Duration }
