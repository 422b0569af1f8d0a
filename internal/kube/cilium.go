package kube

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// ToCiliumPolicy returns the policies of a CiliumNetworkPolicy of cilium.io/v2, one of each spec, or why the object cannot be enforced.
// Cluster is the name of this one: peers of others are nobody.
func ToCiliumPolicy(o *ciliumv2.CiliumNetworkPolicy, cluster string) (state.Policy, bool, error) {
	r := &ciliumReader{cluster: cluster, namespace: o.Namespace}
	return r.object(o.Spec, o.Specs)
}

// ToCiliumClusterwidePolicy is ToCiliumPolicy for a CiliumClusterwideNetworkPolicy: pods are of any namespace, and it may be for nodes.
func ToCiliumClusterwidePolicy(o *ciliumv2.CiliumClusterwideNetworkPolicy, cluster string) (state.Policy, bool, error) {
	r := &ciliumReader{cluster: cluster, clusterwide: true}
	return r.object(o.Spec, o.Specs)
}

func ciliumPolicies(t Tables) kind[*ciliumv2.CiliumNetworkPolicy, state.Policy] {
	return policies(t, policy.CiliumNetworkPolicy, func(o *ciliumv2.CiliumNetworkPolicy) (state.Policy, bool, error) {
		return ToCiliumPolicy(o, t.Cluster)
	})
}

func ciliumClusterwidePolicies(t Tables) kind[*ciliumv2.CiliumClusterwideNetworkPolicy, state.Policy] {
	return policies(t, policy.CiliumClusterwideNetworkPolicy, func(o *ciliumv2.CiliumClusterwideNetworkPolicy) (state.Policy, bool, error) {
		return ToCiliumClusterwidePolicy(o, t.Cluster)
	})
}

// ciliumReader reads one object.
type ciliumReader struct {
	policyReader
	cluster     string
	clusterwide bool
	namespace   string // empty if clusterwide
}

// unsupported refuses a field because of what it asks for, not because of its value.
func (r *ciliumReader) unsupported(path *field.Path, used bool, why string) {
	if used {
		r.reasons = append(r.reasons, path.String()+": is not supported yet: "+why)
	}
}

func (r *ciliumReader) object(spec *ciliumv2.RawRule, specs []ciliumv2.RawRule) (state.Policy, bool, error) {
	var row state.Policy
	if spec != nil {
		row.Specs = append(row.Specs, r.spec(field.NewPath("spec"), *spec))
	}
	for i, raw := range specs {
		row.Specs = append(row.Specs, r.spec(field.NewPath("specs").Index(i), raw))
	}
	if len(row.Specs) == 0 {
		r.reasons = append(r.reasons, "spec: is missing: want spec or specs")
	}
	if err := r.error(); err != nil {
		return state.Policy{}, true, err
	}
	return row, true, nil
}

// spec reads one spec. What it returns counts only if nothing has been refused.
func (r *ciliumReader) spec(path *field.Path, raw ciliumv2.RawRule) policy.Policy {
	p := policy.Policy{Tier: policy.Normal}
	spec, err := raw.Decode(path.String())
	if err != nil {
		r.reasons = append(r.reasons, strings.Split(err.Error(), "\n")...)
		return p
	}
	p.Subject, p.Node = r.subject(path, spec)
	p.Ingress = policy.Direction{Isolates: isolates(spec.EnableDefaultDeny.Ingress, len(spec.Ingress)+len(spec.IngressDeny)), Rules: r.ingress(path, spec)}
	p.Egress = policy.Direction{Isolates: isolates(spec.EnableDefaultDeny.Egress, len(spec.Egress)+len(spec.EgressDeny)), Rules: r.egress(path, spec)}
	if len(p.Ingress.Rules)+len(p.Egress.Rules) == 0 && !p.Ingress.Isolates && !p.Egress.Isolates {
		r.reasons = append(r.reasons, path.String()+": has no rules: want ingress, ingressDeny, egress or egressDeny with a rule in it; one that is {} allows nothing")
	}
	return p
}

// isolates reports whether what no policy allows is denied: as the spec says or, if it says nothing, when it has rules.
func isolates(said *bool, rules int) bool { return deref(said, rules > 0) }

// ingress reads the rules of both sections of ingress. Deny wins, wherever it stands.
func (r *ciliumReader) ingress(path *field.Path, spec *ciliumv2.Rule) []policy.Rule {
	var out []policy.Rule
	for i, rule := range spec.IngressDeny {
		path := path.Child("ingressDeny").Index(i)
		ports := each(path.Child("toPorts"), rule.ToPorts, r.denyPorts)
		out = append(out, r.rule(path, policy.Deny, r.ingressPeers(path, rule.IngressPeers), ports, rule.ICMPs))
	}
	for i, rule := range spec.Ingress {
		path := path.Child("ingress").Index(i)
		r.authentication(path.Child("authentication"), rule.Authentication)
		ports := each(path.Child("toPorts"), rule.ToPorts, r.allowPorts)
		out = append(out, r.rule(path, policy.Allow, r.ingressPeers(path, rule.IngressPeers), ports, rule.ICMPs))
	}
	return out
}

func (r *ciliumReader) egress(path *field.Path, spec *ciliumv2.Rule) []policy.Rule {
	var out []policy.Rule
	for i, rule := range spec.EgressDeny {
		path := path.Child("egressDeny").Index(i)
		ports := each(path.Child("toPorts"), rule.ToPorts, r.denyPorts)
		out = append(out, r.rule(path, policy.Deny, r.egressPeers(path, rule.EgressPeers), ports, rule.ICMPs))
	}
	for i, rule := range spec.Egress {
		path := path.Child("egress").Index(i)
		r.unsupported(path.Child("toFQDNs"), rule.ToFQDNs != nil, "answers of DNS are not followed")
		r.authentication(path.Child("authentication"), rule.Authentication)
		ports := each(path.Child("toPorts"), rule.ToPorts, r.allowPorts)
		out = append(out, r.rule(path, policy.Allow, r.egressPeers(path, rule.EgressPeers), ports, rule.ICMPs))
	}
	return out
}

func (r *ciliumReader) authentication(path *field.Path, a *ciliumv2.Authentication) {
	if a != nil && a.Mode != "disabled" {
		r.refuse(path.Child("mode"), a.Mode, "is not supported yet: accepted: disabled")
	}
}

// rule puts a rule together. One with neither peers nor ports is there to isolate: it means nobody.
func (r *ciliumReader) rule(path *field.Path, action policy.Action, peers []policy.Selector, ports [][]policy.Port, icmps []ciliumv2.ICMPRule) policy.Rule {
	out := policy.Rule{Path: path.String(), Action: action, Peers: peers}
	for _, p := range ports {
		out.Ports = append(out.Ports, p...)
	}
	for _, p := range each(path.Child("icmps"), icmps, r.icmp) {
		out.Ports = append(out.Ports, p...)
	}
	if len(ports) > 0 && len(icmps) > 0 {
		r.reasons = append(r.reasons, path.Child("icmps").String()+": beside toPorts: want one of them in a rule; write two rules")
	}
	if out.Peers == nil && out.Ports == nil {
		out.Peers = []policy.Selector{}
	}
	return out
}

// each reads every item of a list; nil stays nil, and empty stays empty.
func each[T, R any](path *field.Path, list []T, read func(*field.Path, T) R) []R {
	if list == nil {
		return nil
	}
	out := make([]R, len(list))
	for i, item := range list {
		out[i] = read(path.Index(i), item)
	}
	return out
}
