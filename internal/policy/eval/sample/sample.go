// Package sample makes small clusters, policies and connections at random, such that rules, addresses and ports meet often and at their edges.
package sample

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Options says what to make.
type Options struct {
	Policies    int  // at most; 0: 6
	Pods        int  // at most; 0: 8
	HostPolicy  bool // policies of nodes as well
	OneFamily   bool // IPv4 only
	NoAudit     bool
	DefaultMode bool // no namespace and no cluster has another
}

// maker throws the dice.
type maker struct {
	*rand.Rand
	Options
	cluster *eval.Cluster
}

// The few words everything is made of.
var (
	namespaces = []string{"a", "b", "c"}
	keys       = []string{"app", "tier", "env"}
	values     = []string{"x", "y", "z"}
	portNames  = []string{"web", "sql"}
	accounts   = []string{"default", "robot"}
	services   = []string{"a/web", "b/sql"}
	protocols  = []policy.Protocol{policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.SCTP}
	ports      = []uint16{1, 79, 80, 81, 443, 1023, 1024, 5432, 8080, 8191, 8192, 32767, 32768, 65534, 65535}
)

// Where things are. Some outside addresses lie between those of the cluster, and the other way round.
var (
	podCIDRs    = []string{"10.244.0.0/16", "fd00:10:244::/48"}
	nodeCIDRs   = []string{"172.18.0.0/24", "fd00:172:18::/64"}
	outside     = []string{"203.0.113.7", "203.0.113.255", "10.0.0.1", "10.243.255.255", "10.245.0.0", "172.18.1.1", "8.8.8.8", "2001:db8::7", "2001:db8:ffff::1", "fd00:10:243::1", "::1:0:0:1"}
	nobodys     = []string{"10.244.0.0", "10.244.9.9", "10.244.255.255", "fd00:10:244:9::9"}
	apiServers  = []string{"198.51.100.1", "2001:db8:a::1", "172.18.0.1", "10.244.1.1"}
	commonCIDRs = []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "172.18.0.0/16", "203.0.113.0/24", "fd00::/8", "fd00:10:244::/48", "2001:db8::/32", "::/8", "0.0.0.0/1"}
)

// Cluster makes a cluster with its policies.
func Cluster(r *rand.Rand, o Options) *eval.Cluster {
	o.Policies = maker{Options: o}.most()
	if o.Pods == 0 {
		o.Pods = 8
	}
	m := maker{r, o, &eval.Cluster{}}
	c := m.cluster
	for _, text := range m.families(podCIDRs) {
		c.CIDRs = append(c.CIDRs, netip.MustParsePrefix(text))
	}
	for i := range 1 + m.IntN(3) {
		c.Nodes = append(c.Nodes, eval.Node{Name: fmt.Sprintf("n%d", i+1), Addresses: m.addresses(nodeCIDRs, i+1), Labels: m.labels()})
	}
	for _, name := range namespaces {
		c.Namespaces = append(c.Namespaces, m.namespace(name))
	}
	for i := range 2 + m.IntN(o.Pods-1) {
		c.Pods = append(c.Pods, m.pod(i))
	}
	for _, a := range m.families(apiServers) {
		if m.chance(40) {
			c.APIServers = append(c.APIServers, netip.MustParseAddr(a))
		}
	}
	for _, name := range services {
		s := eval.Service{Name: name}
		for range m.IntN(4) {
			s.Endpoints = append(s.Endpoints, m.anyAddress())
		}
		c.Services = append(c.Services, s)
	}
	c.Mode = m.mode()
	c.Audit = !o.NoAudit && m.chance(4)
	for range o.Policies - m.IntN(1+o.Policies/2) {
		m.addPolicy()
	}
	return c
}

// most returns how many policies there are to be at most.
func (m maker) most() int {
	if m.Policies == 0 {
		return 6
	}
	return m.Policies
}

func (m maker) chance(percent int) bool { return m.IntN(100) < percent }

func pick[T any](m maker, from []T) T { return from[m.IntN(len(from))] }

// families drops IPv6 texts when only one family is wanted.
func (m maker) families(texts []string) []string {
	if !m.OneFamily {
		return texts
	}
	var out []string
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil && p.Addr().Is4() {
			out = append(out, t)
		} else if a, err := netip.ParseAddr(t); err == nil && a.Is4() {
			out = append(out, t)
		}
	}
	return out
}

// addresses gives number i of each of the prefixes.
func (m maker) addresses(in []string, i int) []netip.Addr {
	var out []netip.Addr
	for _, text := range m.families(in) {
		a := netip.MustParsePrefix(text).Addr()
		for range i {
			a = a.Next()
		}
		out = append(out, a)
	}
	return out
}

func (m maker) mode() policy.Mode {
	if m.DefaultMode || m.chance(94) {
		return policy.ModeDefault
	}
	return pick(m, []policy.Mode{policy.ModeAlways, policy.ModeNever})
}

func (m maker) namespace(name string) eval.Namespace {
	n := eval.Namespace{Name: name, Labels: m.labels(), Audit: !m.NoAudit && m.chance(5)}
	if !m.DefaultMode && m.chance(8) {
		mode := pick(m, []policy.Mode{policy.ModeDefault, policy.ModeAlways, policy.ModeNever})
		n.Mode = &mode
	}
	return n
}

func (m maker) pod(i int) eval.Pod {
	node := m.IntN(len(m.cluster.Nodes))
	p := eval.Pod{
		Namespace: pick(m, namespaces), Name: fmt.Sprintf("p%d", i), Node: m.cluster.Nodes[node].Name,
		ServiceAccount: pick(m, accounts), Labels: m.labels(), Audit: !m.NoAudit && m.chance(5), HostNetwork: m.chance(8),
	}
	if p.HostNetwork {
		p.Addresses = m.cluster.Nodes[node].Addresses
	} else {
		for _, a := range m.addresses(podCIDRs, i) {
			b := a.AsSlice()
			b[len(b)-2] = byte(node + 1)
			moved, _ := netip.AddrFromSlice(b)
			p.Addresses = append(p.Addresses, moved)
		}
	}
	for _, name := range portNames {
		for m.chance(55) {
			p.Ports = append(p.Ports, policy.NamedPort{Name: name, Protocol: pick(m, protocols), Port: pick(m, ports[:5])})
		}
	}
	return p
}

func (m maker) labels() policy.Labels {
	out := map[string]string{}
	for _, k := range keys {
		if m.chance(50) {
			out[k] = pick(m, values)
		}
	}
	return policy.NewLabels(out)
}

// Relabel changes one thing of a cluster that is not a policy. The cluster given is kept.
func Relabel(r *rand.Rand, o Options, c *eval.Cluster) *eval.Cluster {
	next := Clone(c)
	m := maker{r, o, next}
	switch r.IntN(12) {
	case 0, 1, 2:
		next.Pods[r.IntN(len(next.Pods))].Labels = m.labels()
	case 3, 4:
		next.Namespaces[r.IntN(len(next.Namespaces))].Labels = m.labels()
	case 5:
		next.Nodes[r.IntN(len(next.Nodes))].Labels = m.labels()
	case 6:
		next.Pods[r.IntN(len(next.Pods))].Ports = m.pod(0).Ports
	case 7:
		m.moveService(&next.Services[r.IntN(len(next.Services))])
	case 8:
		// Its labels and name stay: how it is enforced differs.
		n := &next.Namespaces[r.IntN(len(next.Namespaces))]
		other := m.namespace(n.Name)
		n.Mode, n.Audit = other.Mode, other.Audit
	case 9:
		next.Pods[r.IntN(len(next.Pods))].Audit = !o.NoAudit && m.chance(50)
	case 10:
		if len(next.Pods) > 2 {
			i := r.IntN(len(next.Pods))
			next.Pods = append(next.Pods[:i], next.Pods[i+1:]...)
		}
	case 11:
		if p := m.pod(m.IntN(200)); !slices.ContainsFunc(next.Pods, func(q eval.Pod) bool { return q.Name == p.Name }) {
			next.Pods = append(next.Pods, p)
		}
	}
	return next
}

func (m maker) moveService(s *eval.Service) {
	if len(s.Endpoints) > 0 && m.chance(50) {
		s.Endpoints = s.Endpoints[1:]
		return
	}
	s.Endpoints = append(s.Endpoints, m.anyAddress())
}

// Repolicy adds a policy, removes one or replaces one. The cluster given is kept.
func Repolicy(r *rand.Rand, o Options, c *eval.Cluster) *eval.Cluster {
	next := Clone(c)
	m := maker{r, o, next}
	n := len(next.Policies)
	if n == 0 || n < m.most() && m.chance(50) {
		m.addPolicy()
		return next
	}
	i := r.IntN(n)
	if m.chance(40) {
		m.edit(&next.Policies[i])
		return next
	}
	next.Policies = append(next.Policies[:i], next.Policies[i+1:]...)
	if m.chance(50) {
		m.addPolicy()
	}
	return next
}
