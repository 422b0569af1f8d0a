package policy

import "net/netip"

// SelectorKind says which peers a selector is about.
type SelectorKind uint8

// The kinds of selectors.
const (
	SelectPods    SelectorKind = iota // pods of which every Requirement holds; none: every pod
	SelectNodes                       // nodes, the own one included, of which every Requirement holds
	SelectCIDR                        // addresses in CIDR and not in Except
	SelectEntity                      // Entity
	SelectService                     // addresses of the endpoints of Service
)

// Selector says which peers, or which pods or nodes of its own, a policy means. Equal selectors have an equal Key.
type Selector struct {
	Kind         SelectorKind
	Requirements []Requirement
	CIDR         netip.Prefix // masked
	Except       []netip.Prefix
	// Everyone: the CIDR matches pods and nodes as well (NetworkPolicy, ClusterNetworkPolicy); else only what is outside the cluster.
	Everyone bool
	Entity   Entity
	Service  string // namespace/name
}

// Source is where a requirement looks.
type Source uint8

// The sources.
const (
	PodLabel       Source = iota
	NamespaceLabel        // of the pod's namespace
	NamespaceName
	ServiceAccount
	NodeLabel
	ClusterName // every peer known here is of this cluster: matched against Config.Cluster when policies are read
)

// Operator compares.
type Operator uint8

// The operators, as in Kubernetes: NotIn and DoesNotExist hold where there is no such key.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// Requirement is one condition on labels or names. Key is empty for sources that are a name.
type Requirement struct {
	Source Source
	Key    string
	Op     Operator
	Values []string // sorted, without doubles; empty for Exists and DoesNotExist
}

// Entity is a set of peers that has a name.
type Entity string

// The entities.
const (
	EntityAll        Entity = "all"
	EntityWorld      Entity = "world"
	EntityWorldIPv4  Entity = "world-ipv4"
	EntityWorldIPv6  Entity = "world-ipv6"
	EntityCluster    Entity = "cluster" // pods, nodes, and addresses of the cluster that are nobody's yet
	EntityHost       Entity = "host"
	EntityRemoteNode Entity = "remote-node"
	EntityAPIServer  Entity = "kube-apiserver"
	EntityUnmanaged  Entity = "unmanaged" // addresses of the cluster that no known pod or node has
	EntityNone       Entity = "none"
)
