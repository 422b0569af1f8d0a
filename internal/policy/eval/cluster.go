package eval

import (
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/policy"
)

// Cluster is all that a decision depends on.
type Cluster struct {
	Namespaces []Namespace
	Pods       []Pod
	Nodes      []Node
	APIServers []netip.Addr   // of API servers, be they nodes, pods or neither
	CIDRs      []netip.Prefix // that pods get their addresses from
	Services   []Service
	Policies   []policy.Policy
	Mode       policy.Mode // of namespaces that say nothing else
	Audit      bool        // nothing is enforced anywhere
}

// Namespace is a namespace.
type Namespace struct {
	Name   string
	Labels policy.Labels
	Mode   *policy.Mode // nil: the cluster's
	Audit  bool         // nothing is enforced at its pods
}

// Pod is a pod.
type Pod struct {
	Namespace      string
	Name           string
	Node           string
	Addresses      []netip.Addr
	HostNetwork    bool // Addresses are its node's
	ServiceAccount string
	Labels         policy.Labels
	Ports          []policy.NamedPort
	Audit          bool // nothing is enforced at it
}

// Node is a node.
type Node struct {
	Name      string
	Addresses []netip.Addr
	Labels    policy.Labels
}

// Service is a service as far as policy asks for it: which addresses its endpoints have.
type Service struct {
	Name      string // namespace/name
	Endpoints []netip.Addr
}

// peer is who has an address, as seen from a node: exactly one of pod and node is set, or neither.
type peer struct {
	address   netip.Addr
	pod       *Pod
	node      *Node
	host      bool // node is the one that looks
	apiServer bool
	inside    bool // of the cluster
}

// peerAt says who has address, as seen from the node of that name.
//
// A host-networked pod is its node. NP, "hostNetwork pods", second possibility: the plugin "ignores hostNetwork pods when matching podSelector and
// namespaceSelector. Traffic to/from hostNetwork pods is treated the same as all other traffic to/from the node IP." CNP: "host-networked
// pods are not included in this type of peer". Cilium: host "also includes all containers running in host networking mode".
func (c *Cluster) peerAt(address netip.Addr, from string) peer {
	p := peer{address: address, apiServer: slices.Contains(c.APIServers, address)}
	for i := range c.Pods {
		if pod := &c.Pods[i]; !pod.HostNetwork && slices.Contains(pod.Addresses, address) {
			p.pod, p.inside = pod, true
			return p
		}
	}
	for i := range c.Nodes {
		if node := &c.Nodes[i]; slices.Contains(node.Addresses, address) {
			p.node, p.host, p.inside = node, node.Name == from, true
			return p
		}
	}
	for _, cidr := range c.CIDRs {
		// An API server that is neither node nor pod is outside, wherever its address lies.
		if cidr.Contains(address) && !p.apiServer {
			p.inside = true
		}
	}
	return p
}

// namespace returns the namespace of that name; one that is not known has no labels and says nothing.
func (c *Cluster) namespace(name string) Namespace {
	for _, n := range c.Namespaces {
		if n.Name == name {
			return n
		}
	}
	return Namespace{Name: name}
}

// serves reports whether a service has an endpoint at address.
func (c *Cluster) serves(service string, address netip.Addr) bool {
	for _, s := range c.Services {
		if s.Name == service && slices.Contains(s.Endpoints, address) {
			return true
		}
	}
	return false
}

// NodeOf returns the name of the node that the pod or node with an address is on; empty: nobody of the cluster has it.
func (c *Cluster) NodeOf(address netip.Addr) string {
	at := c.peerAt(address, "")
	switch {
	case at.pod != nil:
		return at.pod.Node
	case at.node != nil:
		return at.node.Name
	}
	return ""
}

// SameEnd reports whether two addresses are of one pod, or of one node.
func (c *Cluster) SameEnd(a, b netip.Addr) bool {
	x, y := c.peerAt(a, ""), c.peerAt(b, "")
	return a == b || x.pod != nil && x.pod == y.pod || x.node != nil && x.node == y.node
}
