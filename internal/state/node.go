package state

import (
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/table"
)

// Node is what Kubernetes says about a node. Intent; owner: kube.
type Node struct {
	Name      string
	UID       string
	Addresses []netip.Addr   // InternalIP, in the order of the object
	PodCIDRs  []netip.Prefix // spec.podCIDRs, masked
	Tainted   bool           // carries our not-ready taint
	Zone      string         // label topology.kubernetes.io/zone
	Labels    policy.Labels
	// NoLoadBalancer is the label node.kubernetes.io/exclude-from-external-load-balancers: it announces no service addresses.
	NoLoadBalancer bool
	Created        time.Time // decides who keeps a prefix that two nodes claim: the older one
}

// Address returns the node's first address of the family, or the zero Addr.
func (n Node) Address(v6 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// PodCIDR returns the node's pod CIDR of the family, or the zero Prefix.
func (n Node) PodCIDR(v6 bool) netip.Prefix {
	for _, p := range n.PodCIDRs {
		if p.Addr().Is6() == v6 {
			return p
		}
	}
	return netip.Prefix{}
}

// NewNodes returns the table of nodes, keyed by name.
func NewNodes() *table.Table[Node] {
	return table.New("nodes", func(n Node) string { return n.Name })
}

// RemoteKind says what a prefix of the ipcache is.
type RemoteKind string

// The kinds of ipcache rows.
const (
	RemoteHost      RemoteKind = "host"      // an address of this node
	RemoteNode      RemoteKind = "node"      // an address of another node
	RemotePods      RemoteKind = "pods"      // a pod CIDR, of this node or another
	RemoteAPIServer RemoteKind = "apiserver" // an API server endpoint that is not a node
)

// Remote is one row of the kernel's ipcache: who has a prefix, and the way there. Desired; owner: control.
type Remote struct {
	Prefix  netip.Prefix
	Kind    RemoteKind
	Node    string     // name of the node it belongs to, if any
	Tunnel  bool       // reached by encapsulation to NextHop
	NextHop netip.Addr // tunnel endpoint, or next hop on Device; zero for this node's own rows
	Device  string     // egress device when not tunnelled and NextHop is set
	reconcile.Status
}

// SameIntent reports whether two rows want the same of the kernel, whatever became of them.
func (r Remote) SameIntent(o Remote) bool {
	return r.WithStatus(reconcile.Status{}) == o.WithStatus(reconcile.Status{})
}

// WithStatus returns the row with the reconciler's result.
func (r Remote) WithStatus(s reconcile.Status) Remote { r.Status = s; return r }

// NewRemotes returns the table of ipcache rows, keyed by prefix.
func NewRemotes() *table.Table[Remote] {
	return table.New("remotes", func(r Remote) string { return r.Prefix.String() })
}

// RouteKind says what the route does with a packet.
type RouteKind string

// The kinds of routes.
const (
	RouteUnicast     RouteKind = "unicast"
	RouteUnreachable RouteKind = "unreachable"
)

// Route is a route of the node's own stack. Desired; owner: control. Pods' own routes are not here: they belong to endpoint.
type Route struct {
	Prefix netip.Prefix
	Kind   RouteKind
	Device string     // empty for RouteUnreachable
	Via    netip.Addr // next hop, zero when the device reaches all of it
	Source netip.Addr // preferred source, zero for the kernel's choice
	MTU    int        // 0: the device's
	reconcile.Status
}

// SameIntent reports whether two rows want the same of the kernel, whatever became of them.
func (r Route) SameIntent(o Route) bool {
	return r.WithStatus(reconcile.Status{}) == o.WithStatus(reconcile.Status{})
}

// WithStatus returns the row with the reconciler's result.
func (r Route) WithStatus(s reconcile.Status) Route { r.Status = s; return r }

// NewRoutes returns the table of routes, keyed by prefix.
func NewRoutes() *table.Table[Route] {
	return table.New("routes", func(r Route) string { return r.Prefix.String() })
}

// Equal reports whether two nodes say the same.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.UID == o.UID && n.Tainted == o.Tainted && n.Zone == o.Zone && n.NoLoadBalancer == o.NoLoadBalancer &&
		n.Created.Equal(o.Created) &&
		slices.Equal(n.Labels, o.Labels) && slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}
