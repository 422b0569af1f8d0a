package kube

import (
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// The limits of the API.
const (
	maxPriority     = 1000
	maxRules        = 25 // of each way, and of peers, protocols and networks of each rule
	maxRuleNameSize = 100
)

// ToClusterNetworkPolicy returns the policy of a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2, or why the object cannot be
// enforced. Pods of the host's network are neither its subjects nor its peers, as the API says; they are nodes.
func ToClusterNetworkPolicy(o *policyv1alpha2.ClusterNetworkPolicy) (state.Policy, bool, error) {
	r := &clusterPolicyReader{}
	spec := field.NewPath("spec")
	p := policy.Policy{Priority: o.Spec.Priority, Subject: r.subject(spec.Child("subject"), o.Spec.Subject)}
	switch o.Spec.Tier {
	case policyv1alpha2.AdminTier:
		p.Tier = policy.Admin
	case policyv1alpha2.BaselineTier:
		p.Tier = policy.Baseline
	default:
		r.refuse(spec.Child("tier"), o.Spec.Tier, "unknown; accepted: Admin, Baseline")
	}
	if o.Spec.Priority < 0 || o.Spec.Priority > maxPriority {
		r.refuse(spec.Child("priority"), o.Spec.Priority, "want 0 to %d", maxPriority)
	}
	r.count(spec.Child("ingress"), len(o.Spec.Ingress), 0)
	for i, rule := range o.Spec.Ingress {
		p.Ingress.Rules = append(p.Ingress.Rules, r.ingress(spec.Child("ingress").Index(i), rule))
	}
	r.count(spec.Child("egress"), len(o.Spec.Egress), 0)
	for i, rule := range o.Spec.Egress {
		p.Egress.Rules = append(p.Egress.Rules, r.egress(spec.Child("egress").Index(i), rule))
	}
	if err := r.error(); err != nil {
		return state.Policy{}, true, err
	}
	return state.Policy{Specs: []policy.Policy{p}}, true, nil
}

type clusterPolicyReader struct{ policyReader }

func (r *clusterPolicyReader) count(path *field.Path, n, least int) {
	if n < least || n > maxRules {
		r.refuse(path, int32(n), "items: want %d to %d", least, maxRules)
	}
}

func (r *clusterPolicyReader) subject(path *field.Path, s policyv1alpha2.ClusterNetworkPolicySubject) policy.Selector {
	if (s.Namespaces == nil) == (s.Pods == nil) {
		r.refuse(path, "", "want one of namespaces, pods")
	}
	return r.pods(path, s.Namespaces, s.Pods)
}

// pods reads the two fields with which pods are selected, of which one is set.
func (r *clusterPolicyReader) pods(path *field.Path, namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod) policy.Selector {
	if pods == nil {
		return podSelector(r.labels(path.Child("namespaces"), policy.NamespaceLabel, namespaces))
	}
	path = path.Child("pods")
	return podSelector(
		r.labels(path.Child("namespaceSelector"), policy.NamespaceLabel, &pods.NamespaceSelector),
		r.labels(path.Child("podSelector"), policy.PodLabel, &pods.PodSelector))
}

func (r *clusterPolicyReader) ingress(path *field.Path, rule policyv1alpha2.ClusterNetworkPolicyIngressRule) policy.Rule {
	out := r.rule(path, rule.Name, rule.Action)
	r.count(path.Child("from"), len(rule.From), 1)
	for i, peer := range rule.From {
		path := path.Child("from").Index(i)
		if (peer.Namespaces == nil) == (peer.Pods == nil) {
			r.refuse(path, "", "want one of namespaces, pods")
		}
		out.Peers = append(out.Peers, r.pods(path, peer.Namespaces, peer.Pods))
	}
	out.Ports = r.protocols(path.Child("protocols"), rule.Protocols)
	return out
}

func (r *clusterPolicyReader) egress(path *field.Path, rule policyv1alpha2.ClusterNetworkPolicyEgressRule) policy.Rule {
	out := r.rule(path, rule.Name, rule.Action)
	r.count(path.Child("to"), len(rule.To), 1)
	portless := false
	for i, peer := range rule.To {
		out.Peers = append(out.Peers, r.to(path.Child("to").Index(i), peer)...)
		portless = portless || peer.Nodes != nil || len(peer.Networks) > 0
	}
	out.Ports = r.protocols(path.Child("protocols"), rule.Protocols)
	for i, p := range rule.Protocols {
		if portless && p.DestinationNamedPort != "" {
			r.refuse(path.Child("protocols").Index(i).Child("destinationNamedPort"), p.DestinationNamedPort,
				"nodes and networks have no named ports: want a number, or pods and namespaces as peers")
		}
	}
	return out
}

func (r *clusterPolicyReader) to(path *field.Path, peer policyv1alpha2.ClusterNetworkPolicyEgressPeer) []policy.Selector {
	set := 0
	for _, is := range []bool{peer.Namespaces != nil, peer.Pods != nil, peer.Nodes != nil, peer.Networks != nil, peer.DomainNames != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		r.refuse(path, "", "%d kinds of peers: want one of namespaces, pods, nodes, networks", set)
		return nil
	}
	switch {
	case peer.Nodes != nil:
		return []policy.Selector{{Kind: policy.SelectNodes, Requirements: r.labels(path.Child("nodes"), policy.NodeLabel, peer.Nodes)}}
	case peer.Networks != nil:
		path := path.Child("networks")
		r.count(path, len(peer.Networks), 1)
		var out []policy.Selector
		for i, text := range peer.Networks {
			out = append(out, policy.Selector{Kind: policy.SelectCIDR, CIDR: r.cidr(path.Index(i), string(text)), Everyone: true})
		}
		return out
	case peer.DomainNames != nil:
		r.refuse(path.Child("domainNames"), strings.Join(texts(peer.DomainNames), ", "), "not supported: want namespaces, pods, nodes or networks")
		return nil
	}
	return []policy.Selector{r.pods(path, peer.Namespaces, peer.Pods)}
}

func texts[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

func (r *clusterPolicyReader) rule(path *field.Path, name string, action policyv1alpha2.ClusterNetworkPolicyRuleAction) policy.Rule {
	out := policy.Rule{Path: path.String(), Name: name}
	if utf8.RuneCountInString(name) > maxRuleNameSize || !utf8.ValidString(name) {
		r.refuse(path.Child("name"), name, "want at most %d characters", maxRuleNameSize)
	}
	switch action {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		out.Action = policy.Allow
	case policyv1alpha2.ClusterNetworkPolicyRuleActionDeny:
		out.Action = policy.Deny
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		out.Action = policy.Pass
	default:
		r.refuse(path.Child("action"), action, "unknown; accepted: Accept, Deny, Pass")
	}
	return out
}

// protocols returns nil for every protocol and port: no list.
func (r *clusterPolicyReader) protocols(path *field.Path, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol) []policy.Port {
	if protocols == nil {
		return nil
	}
	r.count(path, len(protocols), 1)
	var out []policy.Port
	for i, p := range protocols {
		path, set := path.Index(i), 0
		if p.TCP != nil {
			set++
			out = append(out, r.port(path.Child("tcp", "destinationPort"), policy.TCP, p.TCP.DestinationPort))
		}
		if p.UDP != nil {
			set++
			out = append(out, r.port(path.Child("udp", "destinationPort"), policy.UDP, p.UDP.DestinationPort))
		}
		if p.SCTP != nil {
			set++
			out = append(out, r.port(path.Child("sctp", "destinationPort"), policy.SCTP, p.SCTP.DestinationPort))
		}
		if p.DestinationNamedPort != "" {
			set++
			if errs := utilvalidation.IsValidPortName(p.DestinationNamedPort); len(errs) > 0 {
				r.refuse(path.Child("destinationNamedPort"), p.DestinationNamedPort, "%s", strings.Join(errs, ", "))
			}
			// A name says nothing of the protocol: it is the container port's.
			out = append(out, policy.Port{Protocol: policy.AnyProtocol, Name: intern(p.DestinationNamedPort)})
		}
		if set != 1 {
			r.refuse(path, "", "%d of the fields are set: want one of tcp, udp, sctp, destinationNamedPort", set)
		}
	}
	return out
}

func (r *clusterPolicyReader) port(path *field.Path, protocol policy.Protocol, p *policyv1alpha2.Port) policy.Port {
	switch {
	case p == nil, (p.Number == 0) == (p.Range == nil):
		r.refuse(path, "", "want number or range")
		return policy.Port{}
	case p.Range == nil:
		return r.ports(path.Child("number"), protocol, p.Number, p.Number)
	case p.Range.End <= p.Range.Start || p.Range.End > 65535:
		r.refuse(path.Child("range", "end"), p.Range.End, "want a port behind start, %d, up to 65535", p.Range.Start)
		return policy.Port{}
	}
	return r.ports(path.Child("range", "start"), protocol, p.Range.Start, p.Range.End)
}
