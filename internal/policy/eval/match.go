package eval

import (
	"slices"

	"github.com/strait-net/strait/internal/policy"
)

// matches reports whether a rule is about the connection.
//
// NP: "The traffic must match both ports and from." Of either list "items are combined using a logical OR"; one that is missing matches
// everything. An empty list is what remains of one that said something no peer or port can be: it matches nothing.
func (q question) matches(r policy.Rule) bool {
	return q.matchesPeer(r.Peers) && q.matchesPort(r.Ports)
}

func (q question) matchesPeer(peers []policy.Selector) bool {
	if peers == nil {
		return true
	}
	for _, s := range peers {
		if q.cluster.selects(s, q.other) {
			return true
		}
	}
	return false
}

func (q question) matchesPort(ports []policy.Port) bool {
	if ports == nil {
		return true
	}
	for _, p := range ports {
		if p.Name != "" && q.isNamed(p) || p.Name == "" && q.inRange(p) {
			return true
		}
	}
	return false
}

// inRange: NP: "endPort indicates that the range of ports from port to endPort if set, inclusive, should be allowed"; "If [port] is not
// provided, this matches all port names and numbers." Cilium: "Protocol is the L4 protocol. If omitted or empty, any protocol matches":
// any that has ports, that is, when there is a port.
func (q question) inRange(p policy.Port) bool {
	all := p.First == 0 && p.Last == 0
	if p.Protocol == policy.AnyProtocol {
		return all || hasPorts(q.conn.Protocol) && p.First <= q.conn.Port && q.conn.Port <= p.Last
	}
	return p.Protocol == q.conn.Protocol && (all || p.First <= q.conn.Port && q.conn.Port <= p.Last)
}

func hasPorts(p policy.Protocol) bool {
	return p == policy.TCP || p == policy.UDP || p == policy.SCTP
}

// isNamed: NP: "a numerical or named port on a pod". CNP: "selects a destination port on a pod based on the ContainerPort name. You can't use
// this in a rule that targets resources without named ports": it is the pod connected to that has it, and nobody else does.
func (q question) isNamed(p policy.Port) bool {
	owner := q.subject.pod
	if q.way == policy.Egress {
		owner = q.other.pod
	}
	if owner == nil {
		return false
	}
	for _, named := range owner.Ports {
		if named.Name == p.Name && named.Protocol == q.conn.Protocol && named.Port == q.conn.Port &&
			(p.Protocol == policy.AnyProtocol || p.Protocol == q.conn.Protocol) {
			return true
		}
	}
	return false
}

// selects reports whether a selector is about a peer.
func (c *Cluster) selects(s policy.Selector, p peer) bool {
	switch s.Kind {
	case policy.SelectPods:
		// NP, podSelector: "if present but empty, it selects all pods".
		return p.pod != nil && c.allHold(s.Requirements, p)
	case policy.SelectNodes:
		// CNP, nodes: "if present but empty, it selects all Nodes". 0006: the own one included.
		return p.node != nil && c.allHold(s.Requirements, p)
	case policy.SelectCIDR:
		return c.inBlock(s, p)
	case policy.SelectEntity:
		return isEntity(s.Entity, p)
	case policy.SelectService:
		// Cilium: traffic "to services running in your cluster can be allowed via toServices", which stands for their endpoints.
		return c.serves(s.Service, p.address)
	}
	return false
}

// inBlock: NP: "The except entry describes CIDRs that should not be included within this rule." CNP, networks: "note that cluster-internal
// traffic will be checked against the rule as well". Cilium: "CIDR rules do not apply to traffic where both sides of the connection are
// either managed by Cilium or use an IP belonging to a node in the cluster": those are Selectors without Everyone.
func (c *Cluster) inBlock(s policy.Selector, p peer) bool {
	if p.inside && !s.Everyone || !s.CIDR.Contains(p.address) {
		return false
	}
	for _, except := range s.Except {
		if except.Contains(p.address) {
			return false
		}
	}
	return true
}

// isEntity: Cilium, "Entities based".
func isEntity(e policy.Entity, p peer) bool {
	switch e {
	case policy.EntityAll: // "the combination of all known clusters as well world"
		return true
	case policy.EntityWorld: // "all endpoints outside of the cluster"
		return !p.inside
	case policy.EntityWorldIPv4:
		return !p.inside && p.address.Is4()
	case policy.EntityWorldIPv6:
		return !p.inside && p.address.Is6()
	case policy.EntityCluster: // "all Cilium-managed endpoints of the local cluster, unmanaged endpoints ..., the host, remote-node"
		return p.inside
	case policy.EntityHost: // "the local host"
		return p.node != nil && p.host
	case policy.EntityRemoteNode: // "Any node in any of the connected clusters other than the local host"
		return p.node != nil && !p.host
	case policy.EntityAPIServer: // "both deployments of the kube-apiserver: within the cluster and outside of the cluster"
		return p.apiServer
	case policy.EntityUnmanaged: // "endpoints not managed by Cilium ... considered part of the cluster"
		return p.inside && p.pod == nil && p.node == nil
	}
	return false // EntityNone
}

func (c *Cluster) allHold(requirements []policy.Requirement, p peer) bool {
	for _, r := range requirements {
		if !c.holds(r, p) {
			return false
		}
	}
	return true
}

// holds: Kubernetes, Labels and Selectors: "In, NotIn, Exists and DoesNotExist"; NotIn selects also "resources with no labels with the ... key".
func (c *Cluster) holds(r policy.Requirement, p peer) bool {
	value, has := c.value(r, p)
	switch r.Op {
	case policy.In:
		return has && slices.Contains(r.Values, value)
	case policy.NotIn:
		return !has || !slices.Contains(r.Values, value)
	case policy.Exists:
		return has
	case policy.DoesNotExist:
		return !has
	}
	return false
}

// value is what a requirement is about.
func (c *Cluster) value(r policy.Requirement, p peer) (string, bool) {
	switch {
	case r.Source == policy.PodLabel && p.pod != nil:
		return find(p.pod.Labels, r.Key)
	case r.Source == policy.NamespaceLabel && p.pod != nil:
		return find(c.namespace(p.pod.Namespace).Labels, r.Key)
	case r.Source == policy.NamespaceName && p.pod != nil:
		return p.pod.Namespace, true
	case r.Source == policy.ServiceAccount && p.pod != nil:
		return p.pod.ServiceAccount, true
	case r.Source == policy.NodeLabel && p.node != nil:
		return find(p.node.Labels, r.Key)
	}
	return "", false
}

func find(labels policy.Labels, key string) (string, bool) {
	for _, l := range labels {
		if l.Key == key {
			return l.Value, true
		}
	}
	return "", false
}
