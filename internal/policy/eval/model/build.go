package model

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// View is a cluster as one of its nodes sees it: what control would make of it.
type View struct {
	Programs   map[policy.ID]*policy.Program
	Endpoints  map[netip.Addr]policy.ID
	Node       policy.ID
	Identities map[Prefix]policy.Identity // of every prefix that has a row
	index      *policy.Index
	stands     map[identity.ID]policy.Identity // what each identity stands for
	clash      error
}

// NewView compiles what the node of that name needs. Its identities tell apart what its programs tell apart, and what those in also do: when
// those give way to its own, both understand every identity.
func NewView(c *eval.Cluster, node string, also ...*policy.Program) *View {
	v := &View{
		Programs:   map[policy.ID]*policy.Program{},
		Endpoints:  map[netip.Addr]policy.ID{},
		Identities: map[Prefix]policy.Identity{},
		index:      policy.NewIndex(),
		stands:     map[identity.ID]policy.Identity{},
	}
	for i := range c.Pods {
		if pod := &c.Pods[i]; pod.Node == node && !pod.HostNetwork {
			id := v.compile(setOfPod(c, pod))
			for _, a := range pod.Addresses {
				v.Endpoints[a] = id
			}
		}
	}
	for i := range c.Nodes {
		if c.Nodes[i].Name == node {
			if set := setOfNode(c, &c.Nodes[i]); len(set.Policies) > 0 {
				v.Node = v.compile(set)
			}
		}
	}
	for _, p := range slices.Concat(slices.Collect(maps.Values(v.Programs)), also) {
		for _, w := range p.Selectors() {
			v.index.Add(w)
		}
	}
	v.identify(c, node)
	return v
}

// compile returns the program of a set, which may be there already.
func (v *View) compile(set policy.Set) policy.ID {
	id := set.ID()
	if v.Programs[id] == nil {
		v.Programs[id] = policy.NewProgram(set)
	}
	return id
}

func setOfPod(c *eval.Cluster, pod *eval.Pod) policy.Set {
	ns := namespace(c, pod.Namespace)
	set := policy.Set{Mode: c.Mode, Audit: c.Audit || ns.Audit || pod.Audit, Ports: pod.Ports}
	if ns.Mode != nil {
		set.Mode = *ns.Mode
	}
	self := podPeer(c, pod)
	for i := range c.Policies {
		if p := &c.Policies[i]; !p.Node && p.Subject.Matches(&self) {
			set.Policies = append(set.Policies, p)
		}
	}
	return set
}

// setOfNode returns the host firewall's. Only mode never concerns a node.
func setOfNode(c *eval.Cluster, node *eval.Node) policy.Set {
	set := policy.Set{Audit: c.Audit}
	if c.Mode == policy.ModeNever {
		set.Mode = policy.ModeNever
	}
	self := policy.Peer{Kind: policy.HostPeer, NodeLabels: node.Labels}
	for i := range c.Policies {
		if p := &c.Policies[i]; p.Node && p.Subject.Matches(&self) {
			set.Policies = append(set.Policies, p)
		}
	}
	return set
}

func namespace(c *eval.Cluster, name string) eval.Namespace {
	for _, n := range c.Namespaces {
		if n.Name == name {
			return n
		}
	}
	return eval.Namespace{Name: name}
}

func podPeer(c *eval.Cluster, pod *eval.Pod) policy.Peer {
	return policy.Peer{Kind: policy.PodPeer, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Labels: pod.Labels,
		NamespaceLabels: namespace(c, pod.Namespace).Labels, Ports: pod.Ports}
}

// identify makes the rows: pods, nodes, API servers, endpoints of services that are asked for, the pods' CIDRs, and wherever the answer of a
// selector changes with the address.
func (v *View) identify(c *eval.Cluster, node string) {
	for i := range c.Pods {
		if pod := &c.Pods[i]; !pod.HostNetwork {
			for _, a := range pod.Addresses {
				v.row(c, single(a), podPeer(c, pod))
			}
		}
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		kind := policy.NodePeer
		if n.Name == node {
			kind = policy.HostPeer
		}
		for _, a := range n.Addresses {
			v.row(c, single(a), policy.Peer{Kind: kind, NodeLabels: n.Labels})
		}
	}
	for _, a := range c.APIServers {
		v.row(c, single(a), policy.Peer{Kind: policy.APIServerPeer})
	}
	for _, name := range v.index.Services() {
		for _, s := range c.Services {
			if s.Name == name {
				for _, a := range s.Endpoints {
					v.anonymous(c, single(a))
				}
			}
		}
	}
	for _, p := range c.CIDRs {
		v.anonymous(c, p)
	}
	for _, p := range v.index.Prefixes() {
		v.anonymous(c, p)
	}
	// In the kernel IPv4 lies within IPv6: a short prefix of IPv6 must not speak for it.
	v.anonymous(c, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
}

// anonymous makes a row for addresses that nobody in particular has.
func (v *View) anonymous(c *eval.Cluster, p netip.Prefix) {
	kind := policy.WorldPeer
	for _, cidr := range c.CIDRs {
		if cidr.Bits() <= p.Bits() && cidr.Contains(p.Addr()) {
			kind = policy.UnknownPeer
		}
	}
	v.row(c, p, policy.Peer{Kind: kind})
}

// row makes a row for a peer unless the prefix has one: who comes first knows best.
func (v *View) row(c *eval.Cluster, p netip.Prefix, peer policy.Peer) {
	key := PrefixOf(p)
	if _, ok := v.Identities[key]; ok {
		return
	}
	peer.Prefix = p
	if p.IsSingleIP() {
		peer.APIServer = slices.Contains(c.APIServers, p.Addr())
		for _, s := range c.Services {
			if slices.Contains(s.Endpoints, p.Addr()) {
				peer.Services = append(peer.Services, s.Name)
			}
		}
	}
	ms := v.index.Match(&peer)
	who := policy.Identity{ID: policy.Identify(peer.Kind, ms), Kind: peer.Kind, Matches: ms}
	if same, ok := v.stands[who.ID]; ok && (same.Kind != who.Kind || !slices.Equal(same.Matches, who.Matches)) {
		v.clash = fmt.Errorf("identity %s stands for %s %v and for %s %v", who.ID, who.Kind, who.Matches, same.Kind, same.Matches)
	}
	v.stands[who.ID], v.Identities[key] = who, who
}

// Known returns all identities, each once.
func (v *View) Known() []policy.Identity {
	return slices.Collect(maps.Values(v.stands))
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Tables returns what the kernel holds when all is written.
func (v *View) Tables() (*Tables, error) {
	if v.clash != nil {
		return nil, v.clash
	}
	t := NewTables()
	for p, i := range v.Identities {
		t.Identities[p] = i.ID
	}
	identities := v.Known()
	for _, p := range v.Programs {
		if err := t.AddProgram(p, identities); err != nil {
			return nil, err
		}
	}
	for a, id := range v.Endpoints {
		t.Endpoints[a] = id
	}
	t.Node = v.Node
	return t, nil
}
