package state

import (
	"net"
	"net/netip"
	"time"

	"github.com/strait-net/strait/internal/table"
)

// EndpointPhase is where a local pod attachment is in its life.
type EndpointPhase string

// The phases: adding -> ready -> (degraded) -> gone.
const (
	EndpointAdding   EndpointPhase = "adding"
	EndpointReady    EndpointPhase = "ready"
	EndpointDegraded EndpointPhase = "degraded" // Error says what is wrong; repaired when possible
)

// PortMapping is a port of the node that leads to a port of a local pod: CNI's portMappings.
type PortMapping struct {
	Address  netip.Addr // hostIP; not valid or unspecified: every address of the node
	Port     uint16     // on the node
	Target   uint16     // in the pod
	Protocol Protocol
}

// Endpoint is a pod attachment on this node: one sandbox, one interface. Owner: endpoint.
type Endpoint struct {
	ContainerID string
	IfName      string // in the pod
	Namespace   string
	Pod         string
	PodUID      string
	NetNS       string
	NetNSCookie uint64 // the kernel's name of it, SO_NETNS_COOKIE; 0: not known
	Device      string // node's end
	DeviceIndex int    // node's end
	Addresses   []netip.Addr
	PodMAC      net.HardwareAddr
	HostMAC     net.HardwareAddr
	MTU         int
	HostPorts   []PortMapping
	Phase       EndpointPhase
	Error       string
	Since       time.Time
}

// RehearsalContainer is the ContainerID of the sandbox by which an agent proves that pods can be started. No policy is about it, or the node would
// not be opened where policies deny by default.
const RehearsalContainer = "strait-rehearsal"

// Key returns containerID/ifname.
func (e Endpoint) Key() string { return e.ContainerID + "/" + e.IfName }

// EndpointsByPod finds the attachments of a pod by namespace/name.
var EndpointsByPod = table.Index[Endpoint]{
	Name: "pod",
	Keys: func(e Endpoint) []string { return []string{e.Namespace + "/" + e.Pod} },
}

// NewEndpoints returns the table of local endpoints, keyed by Endpoint.Key.
func NewEndpoints() *table.Table[Endpoint] {
	return table.New("endpoints", Endpoint.Key, EndpointsByPod)
}
