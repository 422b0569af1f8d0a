package kube

import (
	"errors"
	"fmt"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// auditAnnotation has policies, pods and namespaces computed and shown, not enforced.
const auditAnnotation = "policy.strait.dev/audit"

func addPolicyReflectors(a *APIServer, client *Client) {
	addReflector(a, policies(a.tables, policy.NetworkPolicy, ToNetworkPolicy),
		resource{client: client.network, name: "networkpolicies"}, &networkingv1.NetworkPolicy{})
	addReflector(a, policies(a.tables, policy.ClusterNetworkPolicy, ToClusterNetworkPolicy),
		resource{client: client.cluster, name: "clusternetworkpolicies", optional: true}, &policyv1alpha2.ClusterNetworkPolicy{})
	addReflector(a, ciliumPolicies(a.tables),
		resource{client: client.cilium, name: "ciliumnetworkpolicies", optional: true}, &ciliumv2.CiliumNetworkPolicy{})
	addReflector(a, ciliumClusterwidePolicies(a.tables),
		resource{client: client.cilium, name: "ciliumclusterwidenetworkpolicies", optional: true}, &ciliumv2.CiliumClusterwideNetworkPolicy{})
}

func addPolicyStores(d *Directory) {
	addStore(d, policies(d.tables, policy.NetworkPolicy, ToNetworkPolicy))
	addStore(d, policies(d.tables, policy.ClusterNetworkPolicy, ToClusterNetworkPolicy))
	addStore(d, ciliumPolicies(d.tables))
	addStore(d, ciliumClusterwidePolicies(d.tables))
}

// policyStaticKinds returns new objects of every kind of policy.
func policyStaticKinds() []staticKind {
	return []staticKind{
		{"networking.k8s.io/v1", "NetworkPolicy", true, &networkingv1.NetworkPolicy{}},
		{"policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", false, &policyv1alpha2.ClusterNetworkPolicy{}},
		{"cilium.io/v2", "CiliumNetworkPolicy", true, &ciliumv2.CiliumNetworkPolicy{}},
		{"cilium.io/v2", "CiliumClusterwideNetworkPolicy", false, &ciliumv2.CiliumClusterwideNetworkPolicy{}},
	}
}

// policies returns a kind of object with policies in it. Of the row that convert returns only Specs count. An object that it returns
// an error for keeps what it said before, unless that is a *Partial one; ok is false for one that is none of our business.
func policies[O metav1.Object](t Tables, name policy.Kind, convert func(O) (row state.Policy, ok bool, err error)) kind[O, state.Policy] {
	note := func(err error) {
		const subject = "memory of policies"
		if err == nil {
			state.Clear(t.Problems, owner, subject)
			return
		}
		state.Raise(t.Problems, state.Problem{Source: owner, Subject: subject, Text: err.Error()}, time.Now())
	}
	return kind[O, state.Policy]{
		name: "policy " + string(name), table: t.Policies, equal: state.Policy.Equal,
		convert: func(o O) (state.Policy, bool, error) { return toPolicy(o, name, convert) },
		shared: &share[state.Policy]{
			source: owner + " " + string(name),
			key: func(o named) string {
				return state.Policy{Ref: policy.Ref{Kind: name, Namespace: o.GetNamespace(), Name: o.GetName()}}.Key()
			},
			ours: func(p state.Policy) bool { return p.Kind == name },
			follow: func(old *state.Policy, row state.Policy) state.Policy {
				if old == nil && row.Refused != "" {
					return t.Memory.recall(row)
				}
				return followPolicy(old, row)
			},
			wrote: func(row state.Policy) { note(t.Memory.note(row)) },
			kept:  func(there func(string) bool) { note(t.Memory.forget(name, there)) },
		},
	}
}

func toPolicy[O metav1.Object](o O, name policy.Kind, convert func(O) (state.Policy, bool, error)) (state.Policy, bool, error) {
	row := state.Policy{
		Ref: policy.Ref{Kind: name, Namespace: intern(o.GetNamespace()), Name: o.GetName()},
		UID: string(o.GetUID()), Generation: max(1, o.GetGeneration()), // files have none
	}
	read, ok, err := convert(o)
	var partial *Partial
	if err != nil && !errors.As(err, &partial) {
		row.Refused = strings.ReplaceAll(err.Error(), "\n", "; ")
		return row, true, &Partial{fmt.Errorf("%w; the whole object is refused, what it said before stays in force", err)}
	}
	if !ok {
		return row, false, err
	}
	row.Specs, row.Enforced = read.Specs, row.Generation
	audit, wrong := auditOf(o)
	for i := range row.Specs {
		row.Specs[i].Ref, row.Specs[i].Spec = row.Ref, i
		row.Specs[i].Audit = audit
	}
	if err := errors.Join(err, wrong); err != nil {
		return row, true, &Partial{err}
	}
	return row, true, nil
}

// followPolicy lets an object whose newest generation is refused keep what it said before. One of the same name that was made anew
// said nothing yet.
func followPolicy(old *state.Policy, row state.Policy) state.Policy {
	if row.Refused != "" && old != nil && old.UID == row.UID {
		row.Specs, row.Enforced = old.Specs, old.Enforced
	}
	return row
}

// auditOf reads the annotation; a wrong value counts as false.
func auditOf(o metav1.Object) (bool, error) {
	switch text := o.GetAnnotations()[auditAnnotation]; text {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	default:
		return false, fmt.Errorf("%s: %q: accepted: true, false; false is assumed", annotation(auditAnnotation), text)
	}
}
