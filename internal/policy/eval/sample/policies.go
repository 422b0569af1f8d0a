package sample

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/policy"
)

// addPolicy makes a policy as one of the kinds would be read. Names collide between namespaces and kinds, never within.
func (m maker) addPolicy() {
	p := policy.Policy{Ref: policy.Ref{Name: pick(m, []string{"p", "q", "r", "s"})}, Audit: !m.NoAudit && m.chance(15)}
	prefix := "spec."
	actions := []policy.Action{policy.Allow}
	switch roll := m.IntN(100); {
	case roll < 40:
		p.Ref.Kind, p.Tier = policy.ClusterNetworkPolicy, pick(m, []policy.Tier{policy.Admin, policy.Admin, policy.Baseline})
		p.Priority = pick(m, []int32{0, 1, 1, 10, 1000})
		p.Subject = m.subject("")
		actions = []policy.Action{policy.Allow, policy.Deny, policy.Pass}
	case roll < 75:
		p.Ref.Kind, p.Tier, p.Ref.Namespace = policy.NetworkPolicy, policy.Normal, pick(m, namespaces)
		p.Subject = m.subject(p.Ref.Namespace)
	default:
		p.Ref.Kind, p.Tier, p.Ref.Namespace = policy.CiliumNetworkPolicy, policy.Normal, pick(m, namespaces)
		p.Subject = m.subject(p.Ref.Namespace)
		if m.chance(40) {
			p.Ref.Kind, p.Ref.Namespace = policy.CiliumClusterwideNetworkPolicy, ""
			p.Subject = m.subject("")
			if m.HostPolicy && m.chance(60) {
				p.Node, p.Subject = true, m.nodeSelector()
			}
		}
		if m.chance(30) {
			p.Spec = m.IntN(3)
			prefix = fmt.Sprintf("specs[%d].", p.Spec)
		}
		actions = []policy.Action{policy.Allow, policy.Allow, policy.Deny}
	}
	for _, q := range m.cluster.Policies {
		if q.Ref == p.Ref && q.Spec == p.Spec {
			return
		}
	}
	p.Ingress, p.Egress = m.direction(p, prefix, policy.Ingress, actions), m.direction(p, prefix, policy.Egress, actions)
	m.cluster.Policies = append(m.cluster.Policies, p)
}

// edit changes one thing of a policy: all that makes a program another one does so at some time.
func (m maker) edit(p *policy.Policy) {
	d := &p.Ingress
	if m.chance(50) {
		d = &p.Egress
	}
	switch m.IntN(6) {
	case 0:
		p.Audit = !m.NoAudit && !p.Audit
	case 1:
		p.Priority = pick(m, []int32{0, 1, 10, 1000})
	case 2:
		if p.Tier != policy.Normal {
			p.Tier = policy.Admin + policy.Baseline - p.Tier
		}
	case 3:
		if p.Ref.Kind != policy.NetworkPolicy && p.Tier == policy.Normal {
			d.Isolates = !d.Isolates
		}
	case 4:
		if len(d.Rules) > 0 {
			r := &d.Rules[m.IntN(len(d.Rules))]
			r.Peers = []policy.Selector{m.peer(p.Ref)}
		}
	case 5:
		if len(d.Rules) > 0 {
			r := &d.Rules[m.IntN(len(d.Rules))]
			r.Ports = []policy.Port{m.port()}
		}
	}
}

func (m maker) direction(p policy.Policy, prefix string, way policy.Way, actions []policy.Action) policy.Direction {
	var d policy.Direction
	if m.chance(15) {
		return d
	}
	d.Isolates = p.Ref.Kind == policy.NetworkPolicy || p.Tier == policy.Normal && m.chance(75)
	rules := m.IntN(5)
	if rules == 0 {
		rules = m.IntN(2)
	}
	for i := range rules {
		r := policy.Rule{Path: fmt.Sprintf("%s%s[%d]", prefix, way, i), Action: pick(m, actions)}
		switch roll := m.IntN(100); {
		case roll < 12: // everybody
		case roll < 16:
			r.Peers = []policy.Selector{}
		default:
			for range 1 + m.IntN(3) {
				r.Peers = append(r.Peers, m.peer(p.Ref))
			}
		}
		switch roll := m.IntN(100); {
		case roll < 22: // all
		case roll < 24:
			r.Ports = []policy.Port{}
		default:
			for range 1 + m.IntN(3) {
				r.Ports = append(r.Ports, m.port())
			}
		}
		d.Rules = append(d.Rules, r)
	}
	return d
}

func (m maker) peer(of policy.Ref) policy.Selector {
	switch roll := m.IntN(100); {
	case roll < 45:
		return m.podSelector(pick(m, []string{"", of.Namespace}))
	case roll < 52:
		return m.nodeSelector()
	case roll < 78:
		return m.block()
	case roll < 94:
		return policy.Selector{Kind: policy.SelectEntity, Entity: pick(m, []policy.Entity{
			policy.EntityAll, policy.EntityWorld, policy.EntityWorld, policy.EntityWorldIPv4, policy.EntityWorldIPv6, policy.EntityCluster,
			policy.EntityHost, policy.EntityRemoteNode, policy.EntityAPIServer, policy.EntityUnmanaged, policy.EntityNone})}
	}
	return policy.Selector{Kind: policy.SelectService, Service: pick(m, services)}
}

// subject selects the pods a policy is for: many, so that policies meet.
func (m maker) subject(namespace string) policy.Selector {
	s := m.podSelector(namespace)
	keep := len(s.Requirements)
	for keep > 0 && m.chance(60) {
		keep--
	}
	if namespace != "" {
		keep = max(keep, 1)
	}
	s.Requirements = s.Requirements[:keep]
	return s
}

// podSelector selects pods of a namespace, or of any when it is empty.
func (m maker) podSelector(namespace string) policy.Selector {
	s := policy.Selector{Kind: policy.SelectPods}
	if namespace != "" {
		s.Requirements = append(s.Requirements, policy.Requirement{Source: policy.NamespaceName, Op: policy.In, Values: []string{namespace}})
	} else if m.chance(40) {
		s.Requirements = append(s.Requirements, m.requirement(policy.NamespaceLabel))
	}
	for m.chance(45) {
		s.Requirements = append(s.Requirements, m.requirement(policy.PodLabel))
	}
	if m.chance(5) {
		s.Requirements = append(s.Requirements, policy.Requirement{Source: policy.ServiceAccount, Op: policy.In, Values: []string{pick(m, accounts)}})
	}
	if namespace == "" && m.chance(15) {
		s.Requirements = append(s.Requirements, policy.Requirement{Source: policy.NamespaceName, Op: policy.NotIn, Values: []string{pick(m, namespaces)}})
	}
	return s
}

func (m maker) nodeSelector() policy.Selector {
	s := policy.Selector{Kind: policy.SelectNodes}
	for m.chance(50) {
		s.Requirements = append(s.Requirements, m.requirement(policy.NodeLabel))
	}
	return s
}

func (m maker) requirement(source policy.Source) policy.Requirement {
	r := policy.Requirement{Source: source, Key: pick(m, keys), Op: pick(m, []policy.Operator{policy.In, policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist})}
	if r.Op == policy.In || r.Op == policy.NotIn {
		r.Values = []string{pick(m, values)}
		if m.chance(30) {
			r.Values = append(r.Values, pick(m, values))
		}
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
	}
	return r
}

// block makes a CIDR around something that is there, with exceptions inside.
func (m maker) block() policy.Selector {
	s := policy.Selector{Kind: policy.SelectCIDR, Everyone: m.chance(60)}
	if m.chance(50) {
		s.CIDR = netip.MustParsePrefix(pick(m, m.families(commonCIDRs)))
	} else {
		a := m.anyAddress()
		s.CIDR, _ = a.Prefix(a.BitLen() - pick(m, []int{0, 0, 1, 3, 8, 8, 12, 16, 24}))
	}
	for m.chance(35) {
		s.Except = append(s.Except, m.inside(s.CIDR))
	}
	return s
}

// inside makes a prefix within another: around something that is there, if that is in it.
func (m maker) inside(outer netip.Prefix) netip.Prefix {
	a := outer.Addr()
	for range 6 {
		if b := m.anyAddress(); outer.Contains(b) {
			a = b
			break
		}
	}
	p, _ := a.Prefix(outer.Bits() + m.IntN(a.BitLen()-outer.Bits()+1))
	return p
}

func (m maker) anyAddress() netip.Addr {
	switch roll := m.IntN(100); {
	case roll < 40:
		return pick(m, pick(m, m.cluster.Pods).Addresses)
	case roll < 55:
		return pick(m, pick(m, m.cluster.Nodes).Addresses)
	case roll < 62:
		return netip.MustParseAddr(pick(m, m.families(apiServers)))
	case roll < 72:
		return netip.MustParseAddr(pick(m, m.families(nobodys)))
	}
	return netip.MustParseAddr(pick(m, m.families(outside)))
}

func (m maker) port() policy.Port {
	switch roll := m.IntN(100); {
	case roll < 28:
		return policy.Port{Protocol: pick(m, []policy.Protocol{policy.TCP, policy.TCP, policy.UDP, policy.SCTP, policy.AnyProtocol}), Name: pick(m, portNames)}
	case roll < 38: // all of a protocol, or of every one
		return policy.Port{Protocol: pick(m, []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6, policy.AnyProtocol})}
	case roll < 46: // a type of ICMP with all its codes
		kind := uint16(pick(m, []int{0, 8, 128, 129, 255})) << 8
		return policy.Port{Protocol: pick(m, []policy.Protocol{policy.ICMP, policy.ICMPv6}), First: kind, Last: kind | 255}
	}
	p := policy.Port{Protocol: pick(m, protocols), First: pick(m, ports)}
	if m.chance(15) {
		p.Protocol = policy.AnyProtocol
	}
	p.Last = p.First
	if m.chance(50) {
		p.Last = max(p.First, pick(m, ports))
	}
	if m.chance(5) {
		p.First = 0
	}
	return p
}
