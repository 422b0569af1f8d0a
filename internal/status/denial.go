package status

import (
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
)

// Denial explains what policies say of now to a direction of a flow. Both ends are taken as they were then; false: it is not judged here.
func (s Sources) Denial(f *flow.Flow, way policy.Way) (policy.Explanation, bool) {
	own, other, c := &f.From, &f.To, Connection{Way: way, Peer: f.Target.Addr(), Protocol: f.Protocol, Port: f.Target.Port()}
	if way == policy.Ingress {
		own, other, c.Peer = other, own, f.Source.Addr()
	}
	if f.Protocol == policy.ICMP || f.Protocol == policy.ICMPv6 {
		c.Port = f.ICMP
	}
	if !own.Local || own.Kind == policy.PodPeer && own.Pod == nil {
		return policy.Explanation{}, false
	}
	name, subject := "", s.peerOfPod("")
	if own.Pod != nil {
		name, subject = own.Pod.Key(), s.asThen(own)
	}
	peer := s.peerAt(c.Peer)
	if other.Pod != nil {
		then := s.asThen(other)
		then.Prefix, then.APIServer, then.Services = peer.Prefix, peer.APIServer, peer.Services
		peer = then
	}
	return s.explanation(name, subject, peer, c), true
}

// explanation is what policies say of now to a connection of a local pod, or for the name "" of this node, with a peer.
func (s Sources) explanation(name string, subject, peer policy.Peer, c Connection) policy.Explanation {
	set := policy.Set{Mode: s.modeOf(name), Ports: subject.Ports}
	for p := range s.State.Policies.Snapshot().All() {
		for i := range p.Specs {
			if spec := &p.Specs[i]; spec.Node == (name == "") && spec.Subject.Matches(&subject) {
				set.Policies = append(set.Policies, spec)
			}
		}
	}
	return policy.Explain(set, c.Way, &peer, c.Protocol, c.Port)
}

// asThen is the pod of an end as selectors saw it; its namespace's labels are those of now.
func (s Sources) asThen(e *flow.End) policy.Peer {
	ns, _, _ := s.State.Namespaces.Snapshot().Get(e.Pod.Namespace)
	return policy.Peer{
		Kind: policy.PodPeer, Namespace: e.Pod.Namespace, ServiceAccount: e.Pod.ServiceAccount, Labels: e.Pod.Labels, NamespaceLabels: ns.Labels, Ports: e.Pod.Ports,
	}
}
