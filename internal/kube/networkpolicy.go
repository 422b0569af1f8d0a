package kube

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// ToNetworkPolicy returns the policy of a NetworkPolicy of networking.k8s.io/v1, or why the object cannot be enforced.
func ToNetworkPolicy(o *networkingv1.NetworkPolicy) (state.Policy, bool, error) {
	r := &networkPolicyReader{namespace: o.Namespace}
	spec := field.NewPath("spec")
	p := policy.Policy{
		Tier:    policy.Normal,
		Subject: podSelector(inNamespace(o.Namespace), r.labels(spec.Child("podSelector"), policy.PodLabel, &o.Spec.PodSelector)),
	}
	p.Ingress.Isolates, p.Egress.Isolates = r.types(spec.Child("policyTypes"), &o.Spec)
	// Rules of a way that policyTypes does not name are ignored, and wrong all the same when they are wrong.
	for i, rule := range o.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		read := policy.Rule{Path: path.String(), Peers: r.peers(path.Child("from"), rule.From), Ports: r.portList(path.Child("ports"), rule.Ports)}
		if p.Ingress.Isolates {
			p.Ingress.Rules = append(p.Ingress.Rules, read)
		}
	}
	for i, rule := range o.Spec.Egress {
		path := spec.Child("egress").Index(i)
		read := policy.Rule{Path: path.String(), Peers: r.peers(path.Child("to"), rule.To), Ports: r.portList(path.Child("ports"), rule.Ports)}
		if p.Egress.Isolates {
			p.Egress.Rules = append(p.Egress.Rules, read)
		}
	}
	if err := r.error(); err != nil {
		return state.Policy{}, true, err
	}
	return state.Policy{Specs: []policy.Policy{p}}, true, nil
}

type networkPolicyReader struct {
	policyReader
	namespace string
}

// types returns which ways the policy isolates: those named; else ingress, and egress if it has rules.
func (r *networkPolicyReader) types(path *field.Path, spec *networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			r.refuse(path.Index(i), t, "unknown; accepted: Ingress, Egress")
		}
	}
	return ingress, egress
}

// peers returns nil for everybody: no list, or an empty one.
func (r *networkPolicyReader) peers(path *field.Path, peers []networkingv1.NetworkPolicyPeer) []policy.Selector {
	var out []policy.Selector
	for i, p := range peers {
		path := path.Index(i)
		switch selects := p.PodSelector != nil || p.NamespaceSelector != nil; {
		case p.IPBlock != nil && selects:
			r.refuse(path, p.IPBlock.CIDR, "ipBlock beside a selector: want one of them")
		case p.IPBlock != nil:
			out = append(out, r.ipBlock(path.Child("ipBlock"), p.IPBlock))
		case selects:
			namespaces := inNamespace(r.namespace)
			if p.NamespaceSelector != nil {
				namespaces = r.labels(path.Child("namespaceSelector"), policy.NamespaceLabel, p.NamespaceSelector)
			}
			out = append(out, podSelector(namespaces, r.labels(path.Child("podSelector"), policy.PodLabel, p.PodSelector)))
		default:
			r.refuse(path, "", "no peer: want podSelector, namespaceSelector or ipBlock")
		}
	}
	return out
}

// ipBlock matches whoever has an address: NetworkPolicy knows no address that it does not speak about.
func (r *networkPolicyReader) ipBlock(path *field.Path, b *networkingv1.IPBlock) policy.Selector {
	s := policy.Selector{Kind: policy.SelectCIDR, CIDR: r.cidr(path.Child("cidr"), b.CIDR), Everyone: true}
	for i, text := range b.Except {
		path := path.Child("except").Index(i)
		except := r.cidr(path, text)
		if except.IsValid() && s.CIDR.IsValid() && (!s.CIDR.Contains(except.Addr()) || except.Bits() <= s.CIDR.Bits()) {
			r.refuse(path, text, "want a CIDR that is a part of %s", s.CIDR)
		}
		if !slices.Contains(s.Except, except) {
			s.Except = append(s.Except, except)
		}
	}
	return s
}

// portList returns nil for every protocol and port: no list, or an empty one.
func (r *networkPolicyReader) portList(path *field.Path, ports []networkingv1.NetworkPolicyPort) []policy.Port {
	var out []policy.Port
	for i, p := range ports {
		path := path.Index(i)
		protocol, err := toProtocol(deref(p.Protocol, corev1.ProtocolTCP))
		if err != nil {
			r.refuse(path.Child("protocol"), *p.Protocol, "unknown; accepted: TCP, UDP, SCTP")
		}
		switch {
		case p.Port == nil:
			if p.EndPort != nil {
				r.refuse(path.Child("endPort"), *p.EndPort, "without port: want a port that the range begins with")
			}
			out = append(out, policy.Port{Protocol: protocol})
		case p.Port.Type == intstr.String:
			if errs := utilvalidation.IsValidPortName(p.Port.StrVal); len(errs) > 0 {
				r.refuse(path.Child("port"), p.Port.StrVal, "%s", strings.Join(errs, ", "))
			}
			if p.EndPort != nil {
				r.refuse(path.Child("endPort"), *p.EndPort, "with the name of a port: want a number in port")
			}
			out = append(out, policy.Port{Protocol: protocol, Name: intern(p.Port.StrVal)})
		case p.EndPort != nil && *p.EndPort < p.Port.IntVal, deref(p.EndPort, 1) > 65535:
			r.refuse(path.Child("endPort"), *p.EndPort, "want port, %d, to 65535", p.Port.IntVal)
		default:
			out = append(out, r.ports(path.Child("port"), protocol, p.Port.IntVal, deref(p.EndPort, p.Port.IntVal)))
		}
	}
	return out
}
