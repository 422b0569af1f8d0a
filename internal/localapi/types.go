// Package localapi is the agent's HTTP/JSON API on a unix socket of the node: its types, the server's side and a client.
package localapi

import (
	"net/netip"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/verdict"
)

// Status is the answer of /v1/status: what is wrong first, then the state of every part of the agent.
type Status struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Cluster string    `json:"cluster,omitempty"`
	Since   time.Time `json:"since"` // start of the agent
	State   State     `json:"state"`
	// Problems are everything that needs a person, the most serious first.
	Problems []Problem `json:"problems"`

	Kubernetes  Kubernetes         `json:"kubernetes"`
	Routing     Routing            `json:"routing"`
	Masquerade  Masquerade         `json:"masquerade"`
	KubeProxy   KubeProxy          `json:"kubeProxyReplacement"`
	Policy      PolicyStatus       `json:"policy"`
	Flows       FlowStatus         `json:"flows"`
	IPAM        IPAM               `json:"ipam"`
	MTU         MTU                `json:"mtu"`
	CNI         CNI                `json:"cni"`
	Endpoints   EndpointCount      `json:"endpoints"`
	Reconcilers []reconcile.Health `json:"reconcilers"`
	Programs    []Program          `json:"programs"`
	Maps        []Map              `json:"maps"`
	Counters    []Counter          `json:"counters"`
	Health      ClusterHealth      `json:"clusterHealth"`
	// Leftovers are traces of another CNI or of kube-proxy on this node.
	Leftovers []Leftover `json:"leftovers,omitempty"`
	// Features are the parts of the product that are off or have no state of their own above (encryption, proxy).
	Features []Feature `json:"features,omitempty"`
}

// State sums up a Status.
type State string

// The states: starting -> ok <-> degraded.
const (
	Starting State = "starting" // the datapath is not complete yet
	OK       State = "ok"
	Degraded State = "degraded" // at least one Problem of severity Error
)

// Severity says how much a Problem matters.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"   // something does not work
	SeverityWarning Severity = "warning" // something will not work soon, or is not as it should be
)

// Problem is one thing that is wrong, for a person who has to repair it.
type Problem struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"`          // what it is about: "endpoint default/web-1", "map strait_ct"
	Text     string   `json:"text"`             // what is wrong
	Action   string   `json:"action,omitempty"` // what to do, or the command that tells more
}

// Kubernetes is the connection to the API server.
type Kubernetes struct {
	Server    string       `json:"server,omitempty"`  // URL
	Version   string       `json:"version,omitempty"` // of the server
	Connected bool         `json:"connected"`
	Error     string       `json:"error,omitempty"` // why not connected
	Tables    []WatchTable `json:"tables"`
}

// WatchTable is one table of intent fed from Kubernetes.
type WatchTable struct {
	Name    string   `json:"name"`
	Rows    int      `json:"rows"`
	Synced  bool     `json:"synced"`            // everything that existed at start has arrived
	Pending []string `json:"pending,omitempty"` // sources that have not delivered yet
}

// Routing is how packets reach other nodes and the outside.
type Routing struct {
	Mode    string `json:"mode"`    // vxlan, native
	Network string `json:"network"` // island, flat, isolated
	// Host says who forwards packets of pods: "bpf" past the node's stack, or "stack".
	Host         string   `json:"host"`
	Attach       string   `json:"attach,omitempty"` // tcx, clsact
	TunnelDevice string   `json:"tunnelDevice,omitempty"`
	TunnelPort   uint16   `json:"tunnelPort,omitempty"`
	Devices      []string `json:"devices"` // carry cluster and outside traffic
}

// Masquerade is what replaces pods' addresses on their way out.
type Masquerade struct {
	Enabled  bool     `json:"enabled"`
	Families []string `json:"families,omitempty"` // IPv4, IPv6
	Ports    string   `json:"ports,omitempty"`    // "min-max", inclusive
	Devices  []string `json:"devices,omitempty"`
}

// IPAM is where pods' addresses come from.
type IPAM struct {
	Mode  string `json:"mode"`
	Pools []Pool `json:"pools"`
}

// Pool is a pod CIDR of this node.
type Pool struct {
	Family      string `json:"family"` // IPv4, IPv6
	CIDR        string `json:"cidr"`
	Allocated   uint64 `json:"allocated"`
	CoolingDown uint64 `json:"coolingDown"` // freed, not given out again yet
	Capacity    uint64 `json:"capacity"`    // addresses that can be given to pods; the largest uint64 when there are more
}

// MTU is the largest packet, in bytes, of the devices and of pods.
type MTU struct {
	Device int `json:"device"`
	Pod    int `json:"pod"`
}

// CNI is the state of the path from the container runtime to the agent.
type CNI struct {
	Ready     bool      `json:"ready"` // the plugin answered a probe sandbox
	Conflist  string    `json:"conflist,omitempty"`
	LastAdd   time.Time `json:"lastAdd,omitzero"`
	LastError string    `json:"lastError,omitempty"` // of the last request, empty when it succeeded
	Queued    int       `json:"queued"`              // deletes waiting on disk
	Exclusive bool      `json:"exclusive"`
}

// EndpointCount counts local endpoints by phase.
type EndpointCount struct {
	Adding   int `json:"adding"`
	Ready    int `json:"ready"`
	Degraded int `json:"degraded"`
}

// Program is one attached program.
type Program struct {
	Name   string `json:"name"`
	Hook   string `json:"hook"`             // "tcx ingress", "cgroup connect4"
	Target string `json:"target"`           // device or cgroup
	ID     uint32 `json:"id,omitempty"`     // the kernel's id of the program
	LinkID uint32 `json:"linkID,omitempty"` // the kernel's id of the link
	Pin    string `json:"pin,omitempty"`
}

// Uncounted is Map.Entries of a map whose entries cannot be counted.
const Uncounted = -1

// Map is one map of the kernel.
type Map struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Entries int    `json:"entries"` // or Uncounted
	Max     int    `json:"max"`     // 0: no limit of its own
	Bytes   uint64 `json:"bytes,omitempty"`
}

// Fills reports whether entries come and go, so that their number says how full the map is: an array has all of them from the beginning.
func (m Map) Fills() bool {
	return m.Entries >= 0 && m.Max > 0 && !strings.Contains(strings.ToLower(m.Type), "array")
}

// MapDump is the content of a map as a table of text: keys first, then values.
type MapDump struct {
	Name    string     `json:"name"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
	// Omitted counts entries left out because the dump was limited.
	Omitted int `json:"omitted,omitempty"`
}

// Counter is what became of packets for one reason since the maps were created.
type Counter struct {
	Reason  uint32       `json:"reason"`
	Name    string       `json:"name"` // as in the list of reasons, lower case
	Text    string       `json:"text"`
	Verdict verdict.Kind `json:"verdict"`
	Packets uint64       `json:"packets"`
	Bytes   uint64       `json:"bytes"`
}

// ClusterHealth is what this node sees of the agents of the others.
type ClusterHealth struct {
	Nodes     int    `json:"nodes"`     // this one included
	Reachable int    `json:"reachable"` // this one included
	Peers     []Peer `json:"peers"`
}

// Peer is the agent of another node.
type Peer struct {
	Node      string        `json:"node"`
	Address   string        `json:"address"`
	Reachable bool          `json:"reachable"`
	Error     string        `json:"error,omitempty"`
	RTT       time.Duration `json:"rttNanoseconds,omitempty"`
	Checked   time.Time     `json:"checked,omitzero"`
}

// Leftover is a trace of other software that may disturb.
type Leftover struct {
	Kind string `json:"kind"` // device, conflist, rules, process
	Name string `json:"name"`
	Of   string `json:"of"` // flannel, Calico, kube-proxy
	// Effect is what it does to Strait, empty when it only takes room.
	Effect string `json:"effect,omitempty"`
}

// Feature is a part of the product with one line of state.
type Feature struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Node is a row of /v1/nodes.
type Node struct {
	Name      string         `json:"name"`
	Self      bool           `json:"self,omitempty"` // the node that answers
	Addresses []netip.Addr   `json:"addresses"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Tainted   bool           `json:"tainted"`          // still carries the not-ready taint
	Via       string         `json:"via,omitempty"`    // "tunnel 10.0.0.2", "10.0.0.2 dev eth0"
	Health    string         `json:"health,omitempty"` // reachable, unreachable, or empty when not probed
	Error     string         `json:"error,omitempty"`
}

// Endpoint is a row of /v1/endpoints: one interface of one local pod.
type Endpoint struct {
	Namespace   string       `json:"namespace"`
	Pod         string       `json:"pod"`
	PodUID      string       `json:"podUID,omitempty"`
	Addresses   []netip.Addr `json:"addresses"`
	Phase       string       `json:"phase"`
	Error       string       `json:"error,omitempty"`
	IfName      string       `json:"ifName"` // in the pod
	Device      string       `json:"device"` // node's end
	DeviceIndex int          `json:"deviceIndex"`
	PodMAC      string       `json:"podMAC,omitempty"`
	HostMAC     string       `json:"hostMAC,omitempty"`
	MTU         int          `json:"mtu"`
	ContainerID string       `json:"containerID"`
	NetNS       string       `json:"netns,omitempty"`
	Since       time.Time    `json:"since"`
}

// Remote is a row of /v1/remotes: who has a prefix, and the way there.
type Remote struct {
	Prefix  netip.Prefix `json:"prefix"`
	Kind    string       `json:"kind"` // host, node, pods, apiserver
	Node    string       `json:"node,omitempty"`
	Tunnel  bool         `json:"tunnel"`
	NextHop string       `json:"nextHop,omitempty"` // tunnel endpoint or next hop
	Device  string       `json:"device,omitempty"`
	Status  string       `json:"status"`
	Error   string       `json:"error,omitempty"`
}

// Route is a row of /v1/routes: a route of the node's own stack that Strait keeps.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Kind   string       `json:"kind"` // unicast, unreachable
	Device string       `json:"device,omitempty"`
	Via    string       `json:"via,omitempty"`
	Source string       `json:"source,omitempty"`
	MTU    int          `json:"mtu,omitempty"`
	Status string       `json:"status"`
	Error  string       `json:"error,omitempty"`
}

// Device is a row of /v1/devices: a device of the node that carries cluster or outside traffic.
type Device struct {
	Name      string         `json:"name"`
	Index     int            `json:"index"`
	MTU       int            `json:"mtu"`
	Up        bool           `json:"up"`
	Native    bool           `json:"native"` // a program of ours is attached
	Addresses []netip.Prefix `json:"addresses"`
}

// IPAMCheck is the answer of /v1/ipam/check: how address records and live sandboxes differ.
type IPAMCheck struct {
	Checked  int           `json:"checked"` // addresses looked at
	Findings []IPAMFinding `json:"findings"`
}

// IPAMFinding is one difference.
type IPAMFinding struct {
	Address string `json:"address"`
	Owner   string `json:"owner,omitempty"` // sandbox, and pod when known
	Text    string `json:"text"`
	Fixed   bool   `json:"fixed"`
}
