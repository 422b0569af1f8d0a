package state

import (
	"iter"
	"net/netip"
	"reflect"
	"slices"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/table"
)

// Pod is what Kubernetes says about a pod that has not ended. Intent; owner: kube.
type Pod struct {
	Namespace string
	Name      string
	UID       string
	Node      string       // empty: not scheduled
	Addresses []netip.Addr // status.podIPs or, before the kubelet has written them, what the agent of its node has published at ADD
	// Claimed: the addresses are published, not reported. Whoever may write the pod can say so of any address: only who knows what is to be
	// believed (control) may use them.
	Claimed        bool
	HostNetwork    bool // its addresses are its node's
	Audit          bool // annotation policy.strait.dev/audit: "true"
	ServiceAccount string
	Labels         policy.Labels
	Ports          []policy.NamedPort // of all containers, those with a name
	Workload       string             // kind/name of what made it: "Deployment/web"; empty: a person did, or a kubelet
}

// Key returns namespace/name.
func (p Pod) Key() string { return p.Namespace + "/" + p.Name }

// PodsByAddress finds pods with an address of their own that a kubelet has reported.
var PodsByAddress = table.Index[Pod]{
	Name: "address",
	Keys: func(p Pod) []string {
		if p.HostNetwork || p.Claimed {
			return nil
		}
		keys := make([]string, len(p.Addresses))
		for i, a := range p.Addresses {
			keys[i] = a.String()
		}
		return keys
	},
}

// PodsOf yields the pods of a namespace, in order of their names.
func PodsOf(pods table.Snapshot[Pod], namespace string) iter.Seq[Pod] {
	return pods.WithPrefix(namespace + "/")
}

// NewPods returns the table of pods, keyed by Pod.Key.
func NewPods() *table.Table[Pod] {
	return table.New("pods", Pod.Key, PodsByAddress)
}

// Namespace is what Kubernetes says about a namespace. Intent; owner: kube.
type Namespace struct {
	Name   string
	Labels policy.Labels
	Mode   *policy.Mode // annotation policy.strait.dev/enforcement: default, always or never; nil: the cluster's
	Audit  bool         // annotation policy.strait.dev/audit: "true"
}

// NewNamespaces returns the table of namespaces, keyed by name.
func NewNamespaces() *table.Table[Namespace] {
	return table.New("namespaces", func(n Namespace) string { return n.Name })
}

// Policy is an object with policies in it. Intent; owner: kube.
type Policy struct {
	policy.Ref
	UID        string
	Generation int64
	// Specs are what is enforced: of an object whose newest generation is refused, what it said before; nothing if it never was right.
	Specs []policy.Policy
	// Enforced is the generation that Specs are of; 0: none.
	Enforced int64
	// Refused says why the newest generation is not enforced: field and value; empty: it is.
	Refused string
}

// Key returns kind/namespace/name.
func (p Policy) Key() string { return string(p.Kind) + "/" + p.Namespace + "/" + p.Name }

// NewPolicies returns the table of policies of all kinds, keyed by Policy.Key.
func NewPolicies() *table.Table[Policy] {
	return table.New("policies", Policy.Key)
}

// Identity is who has a prefix, as far as policy in use on this node can tell. Desired; owner: control.
type Identity struct {
	Prefix  netip.Prefix
	ID      identity.ID
	Kind    policy.PeerKind
	Pod     string         // namespace/name, of pods
	Matches policy.Matches // selectors in use that it matches
}

// NewIdentities returns the table of identities, keyed by prefix.
func NewIdentities() *table.Table[Identity] {
	return table.New("identities", func(i Identity) string { return i.Prefix.String() })
}

// Program is a set of policies in use on this node, compiled. Desired; owner: control.
type Program struct {
	ID       policy.ID
	Policies []policy.Ref // sorted
	Pods     []string     // namespace/name of the local pods it is for; "" is the node itself
	Entries  int          // rows in the kernel
	Error    string       // why the kernel does not have it; the pods keep what they had
}

// NewPrograms returns the table of programs, keyed by ID.
func NewPrograms() *table.Table[Program] {
	return table.New("programs", func(p Program) string { return identity.ID(p.ID).String() })
}

// Equal reports whether two pods say the same.
func (p Pod) Equal(o Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.Node == o.Node && p.HostNetwork == o.HostNetwork &&
		p.Claimed == o.Claimed && p.ServiceAccount == o.ServiceAccount && p.Audit == o.Audit && p.Workload == o.Workload &&
		slices.Equal(p.Addresses, o.Addresses) && slices.Equal(p.Labels, o.Labels) && slices.Equal(p.Ports, o.Ports)
}

// Equal reports whether two namespaces say the same.
func (n Namespace) Equal(o Namespace) bool {
	return n.Name == o.Name && n.Audit == o.Audit && slices.Equal(n.Labels, o.Labels) &&
		(n.Mode == o.Mode || n.Mode != nil && o.Mode != nil && *n.Mode == *o.Mode)
}

// Equal reports whether two policies say the same.
func (p Policy) Equal(o Policy) bool { return reflect.DeepEqual(p, o) }
