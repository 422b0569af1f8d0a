package kube

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
)

// Labels that Cilium gives pods beside their own.
const (
	namespaceKey       = "io.kubernetes.pod.namespace"
	namespaceLabelsKey = "io.cilium.k8s.namespace.labels."
	serviceAccountKey  = "io.cilium.k8s.policy.serviceaccount"
	clusterKey         = "io.cilium.k8s.policy.cluster"
)

// reservedSource is the source of labels that stand for entities.
const reservedSource = "reserved"

// ciliumTerm is a condition of a selector, a matchLabel or a matchExpression.
type ciliumTerm struct {
	path   *field.Path
	source string // k8s, any, node or reserved
	key    string
	op     policy.Operator
	values []string // sorted, without doubles
}

// positive reports whether the label has to be there.
func (t *ciliumTerm) positive() bool { return t.op == policy.In || t.op == policy.Exists }

// holds compares with a value that is the same for every peer.
func (t *ciliumTerm) holds(value string) bool {
	switch t.op {
	case policy.In:
		return slices.Contains(t.values, value)
	case policy.NotIn:
		return !slices.Contains(t.values, value)
	}
	return t.op == policy.Exists
}

// terms reads the conditions of a selector, each with the source of its label, which is one of sources.
func (r *ciliumReader) terms(path *field.Path, s ciliumv2.Selector, sources ...string) []ciliumTerm {
	var out []ciliumTerm
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		path := path.Child("matchLabels").Key(k)
		out = append(out, r.term(path, path, ciliumv2.Requirement{Key: k, Operator: "In", Values: []string{s.MatchLabels[k]}}, sources))
	}
	for i, e := range s.MatchExpressions {
		path := path.Child("matchExpressions").Index(i)
		out = append(out, r.term(path, path.Child("key"), e, sources))
	}
	return out
}

func (r *ciliumReader) term(path, keyPath *field.Path, e ciliumv2.Requirement, sources []string) ciliumTerm {
	t := ciliumTerm{path: path, source: "any", key: intern(e.Key)}
	if source, key, found := strings.Cut(e.Key, ":"); found {
		t.source, t.key = source, intern(key)
		if !slices.Contains(sources, source) {
			r.refuse(keyPath, e.Key, "labels of this source do not exist here; accepted before the colon: %s", strings.Join(sources, ", "))
			return t
		}
	}
	if errs := validation.IsQualifiedName(strings.TrimPrefix(t.key, namespaceLabelsKey)); len(errs) > 0 {
		r.refuse(keyPath, e.Key, "no key of a label: %s", errs[0])
	}
	t.values = slices.Clone(e.Values)
	slices.Sort(t.values)
	t.values = slices.Compact(t.values)
	for _, v := range t.values {
		if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
			r.refuse(path, v, "no value of a label: %s", errs[0])
		}
	}
	switch e.Operator {
	case "In":
		t.op = policy.In
	case "NotIn":
		t.op = policy.NotIn
	case "Exists":
		t.op = policy.Exists
	case "DoesNotExist":
		t.op = policy.DoesNotExist
	default:
		r.refuse(path.Child("operator"), e.Operator, "unknown; accepted: In, NotIn, Exists, DoesNotExist")
	}
	if wantsValues := t.op == policy.In || t.op == policy.NotIn; wantsValues != (len(t.values) > 0) {
		if wantsValues {
			r.reasons = append(r.reasons, path.Child("values").String()+": is empty: "+e.Operator+" wants values")
		} else {
			r.refuse(path.Child("values"), strings.Join(e.Values, ", "), "%s wants no values", e.Operator)
		}
	}
	return t
}

// subject reads what a spec is for: pods, or nodes.
func (r *ciliumReader) subject(path *field.Path, spec *ciliumv2.Rule) (subject policy.Selector, isNode bool) {
	nodes := path.Child("nodeSelector")
	switch {
	case spec.EndpointSelector != nil && spec.NodeSelector != nil:
		r.reasons = append(r.reasons, nodes.String()+": beside endpointSelector: want one of them")
	case spec.NodeSelector != nil && !r.clusterwide:
		r.reasons = append(r.reasons, nodes.String()+": in a CiliumNetworkPolicy: only a CiliumClusterwideNetworkPolicy is for nodes")
	case spec.NodeSelector != nil:
		return r.nodes(nodes, r.terms(nodes, *spec.NodeSelector, "any", "k8s", "node", reservedSource)), true
	case spec.EndpointSelector == nil:
		r.reasons = append(r.reasons, path.Child("endpointSelector").String()+": is missing: want endpointSelector, or nodeSelector")
	default:
		return r.subjectPods(path.Child("endpointSelector"), *spec.EndpointSelector), false
	}
	return policy.Selector{}, false
}

// subjectPods reads an endpointSelector. In a CiliumNetworkPolicy it is about pods of the policy's own namespace, whatever it says.
func (r *ciliumReader) subjectPods(path *field.Path, s ciliumv2.Selector) policy.Selector {
	var own []policy.Requirement
	if !r.clusterwide {
		own = inNamespace(r.namespace)
	}
	var kept []ciliumTerm
	never := false
	for _, t := range r.terms(path, s, "any", "k8s", reservedSource) {
		switch {
		case t.source == reservedSource && !t.positive():
			// No pod has such a label.
		case t.source == reservedSource && entities()[t.key] == policy.EntityNone:
			never = true
		case t.source == reservedSource:
			r.refuse(t.path, "reserved:"+t.key, "selects no pod: want labels of pods; nodes are selected by nodeSelector")
		case t.key == namespaceKey && !r.clusterwide && t.op == policy.In && !slices.Contains(t.values, r.namespace):
			r.refuse(t.path, strings.Join(t.values, ", "), "a CiliumNetworkPolicy is for pods of its own namespace, %s", r.namespace)
		default:
			kept = append(kept, t)
		}
	}
	if never {
		return nobody()
	}
	return r.pods(own, kept)
}

// endpoint reads a member of fromEndpoints: pods or, if it asks for a reserved label, an entity. Pods of a CiliumNetworkPolicy are those of
// its own namespace unless the selector says something about namespaces.
func (r *ciliumReader) endpoint(path *field.Path, s ciliumv2.Selector) policy.Selector {
	terms := r.terms(path, s, "any", "k8s", reservedSource)
	var own []policy.Requirement
	if !r.clusterwide {
		own = inNamespace(r.namespace)
	}
	for _, t := range terms {
		switch {
		case t.source == reservedSource && len(terms) > 1:
			r.refuse(t.path, "reserved:"+t.key, "is not supported yet beside other conditions: want it alone")
			return policy.Selector{}
		case t.source == reservedSource && !t.positive():
			r.refuse(t.path, "reserved:"+t.key, "is not supported yet as what a peer is not: list the entities that are meant")
			return policy.Selector{}
		case t.source == reservedSource:
			return r.entity(t.path, t.key)
		case t.key == namespaceKey || strings.HasPrefix(t.key, namespaceLabelsKey):
			own = nil
		}
	}
	return r.pods(own, terms)
}

// nobody selects no pod: every pod is in a namespace.
func nobody() policy.Selector {
	return policy.Selector{Kind: policy.SelectPods, Requirements: []policy.Requirement{{Source: policy.NamespaceName, Op: policy.DoesNotExist}}}
}

// pods selects pods by conditions. Those about the cluster are settled here.
func (r *ciliumReader) pods(own []policy.Requirement, terms []ciliumTerm) policy.Selector {
	requirements := slices.Clone(own)
	for _, t := range terms {
		q := policy.Requirement{Source: policy.PodLabel, Key: t.key, Op: t.op, Values: t.values}
		switch {
		case t.key == clusterKey || t.key == namespaceKey && len(t.values) == 0:
			if !t.holds(r.cluster) {
				return nobody()
			}
			continue
		case t.key == namespaceKey:
			q.Source, q.Key = policy.NamespaceName, ""
		case t.key == serviceAccountKey:
			q.Source, q.Key = policy.ServiceAccount, ""
		case strings.HasPrefix(t.key, namespaceLabelsKey):
			q.Source, q.Key = policy.NamespaceLabel, intern(strings.TrimPrefix(t.key, namespaceLabelsKey))
		}
		requirements = append(requirements, q)
	}
	return podSelector(requirements)
}

// node reads a member of fromNodes.
func (r *ciliumReader) node(path *field.Path, s ciliumv2.Selector) policy.Selector {
	return r.nodes(path, r.terms(path, s, "any", "k8s", "node"))
}

// nodes selects nodes by conditions. Those about the cluster are settled here.
func (r *ciliumReader) nodes(path *field.Path, terms []ciliumTerm) policy.Selector {
	var requirements []policy.Requirement
	for _, t := range terms {
		switch {
		case t.source == reservedSource && (t.key != "host" || !t.positive()):
			r.refuse(t.path, "reserved:"+t.key, "selects no node: want labels of nodes")
		case t.source == reservedSource:
			// Every node is its own host.
		case t.key == clusterKey && t.holds(r.cluster):
		case t.key == clusterKey:
			return policy.Selector{Kind: policy.SelectNodes, Requirements: []policy.Requirement{
				{Source: policy.NodeLabel, Key: clusterKey, Op: policy.Exists}, {Source: policy.NodeLabel, Key: clusterKey, Op: policy.DoesNotExist},
			}}
		default:
			requirements = append(requirements, policy.Requirement{Source: policy.NodeLabel, Key: t.key, Op: t.op, Values: t.values})
		}
	}
	return policy.Selector{Kind: policy.SelectNodes, Requirements: sortRequirements(requirements)}
}
