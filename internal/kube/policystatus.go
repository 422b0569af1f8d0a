package kube

import (
	"context"
	"encoding/json"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// conditionOwner is the manager of our conditions: those of others are not touched.
const conditionOwner = "strait-operator"

// policyVersion is the apiVersion of a kind of object with policies.
func policyVersion(k policy.Kind) string {
	switch k {
	case policy.ClusterNetworkPolicy:
		return policyv1alpha2.GroupVersion.String()
	case policy.CiliumNetworkPolicy, policy.CiliumClusterwideNetworkPolicy:
		return ciliumv2.GroupVersion().String()
	}
	return networkingv1.SchemeGroupVersion.String()
}

// policyResource is where the server has a kind of object with policies.
func (c *Client) policyResource(k policy.Kind) (client rest.Interface, resource string) {
	switch k {
	case policy.ClusterNetworkPolicy:
		return c.cluster, "clusternetworkpolicies"
	case policy.CiliumNetworkPolicy:
		return c.cilium, "ciliumnetworkpolicies"
	case policy.CiliumClusterwideNetworkPolicy:
		return c.cilium, "ciliumclusterwidenetworkpolicies"
	}
	return c.network, "networkpolicies"
}

func addPolicyObjectReflectors(a *APIServer, client *Client) {
	at := func(k policy.Kind) resource {
		c, name := client.policyResource(k)
		return resource{client: c, name: name, optional: true}
	}
	t := a.tables
	addReflector(a, policyObjects(t, policies(t, policy.NetworkPolicy, ToNetworkPolicy), func(*networkingv1.NetworkPolicy) []metav1.Condition { return nil }),
		resource{client: client.network, name: "networkpolicies"}, &networkingv1.NetworkPolicy{})
	addReflector(a, policyObjects(t, policies(t, policy.ClusterNetworkPolicy, ToClusterNetworkPolicy),
		func(o *policyv1alpha2.ClusterNetworkPolicy) []metav1.Condition { return o.Status.Conditions }),
		at(policy.ClusterNetworkPolicy), &policyv1alpha2.ClusterNetworkPolicy{})
	addReflector(a, policyObjects(t, ciliumPolicies(t),
		func(o *ciliumv2.CiliumNetworkPolicy) []metav1.Condition { return ciliumConditions(o.Status) }),
		at(policy.CiliumNetworkPolicy), &ciliumv2.CiliumNetworkPolicy{})
	addReflector(a, policyObjects(t, ciliumClusterwidePolicies(t),
		func(o *ciliumv2.CiliumClusterwideNetworkPolicy) []metav1.Condition { return ciliumConditions(o.Status) }),
		at(policy.CiliumClusterwideNetworkPolicy), &ciliumv2.CiliumClusterwideNetworkPolicy{})
}

// policyObjects makes rows for the writer of conditions of a kind that k makes rows for those who enforce it.
func policyObjects[O metav1.Object](t Tables, k kind[O, state.Policy], conditions func(O) []metav1.Condition) kind[O, state.PolicyObject] {
	return kind[O, state.PolicyObject]{
		name: k.name, table: t.PolicyObjects, equal: state.PolicyObject.Equal,
		convert: func(o O) (state.PolicyObject, bool, error) {
			p, ok, err := k.convert(o)
			p.Specs = nil
			row := state.PolicyObject{Policy: p}
			for _, c := range conditions(o) {
				shown := state.PolicyCondition{True: c.Status == metav1.ConditionTrue, Reason: c.Reason, Message: c.Message, Generation: c.ObservedGeneration}
				switch c.Type {
				case ciliumv2.Valid:
					row.Shown.Valid, row.Since[0] = shown, c.LastTransitionTime.Time
				case ciliumv2.Enforced:
					row.Shown.Enforced, row.Since[1] = shown, c.LastTransitionTime.Time
				}
			}
			return row, ok, err
		},
		shared: &share[state.PolicyObject]{
			source: k.shared.source, key: k.shared.key,
			ours: func(o state.PolicyObject) bool { return k.shared.ours(o.Policy) },
			follow: func(old *state.PolicyObject, row state.PolicyObject) state.PolicyObject {
				if old != nil {
					row.Policy = followPolicy(&old.Policy, row.Policy)
				}
				return row
			},
		},
	}
}

func ciliumConditions(s ciliumv2.PolicyStatus) []metav1.Condition {
	out := make([]metav1.Condition, len(s.Conditions))
	for i, c := range s.Conditions {
		out[i] = metav1.Condition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message, LastTransitionTime: c.LastTransitionTime}
	}
	return out
}

// ShowsPolicyConditions reports whether objects of a kind have conditions, and returns them as such an object shows them.
func ShowsPolicyConditions(k policy.Kind, c state.PolicyConditions) (state.PolicyConditions, bool) {
	switch k {
	case policy.ClusterNetworkPolicy:
		return c, true
	case policy.CiliumNetworkPolicy, policy.CiliumClusterwideNetworkPolicy:
		// Clusters may have Cilium's own CRDs, whose conditions do not say which generation they observed.
		c.Valid.Generation, c.Enforced.Generation = 0, 0
		return c, true
	}
	return c, false
}

// SetPolicyConditions writes our conditions of an object with policies, as ShowsPolicyConditions returned them. It is ErrRefused when the
// object is gone or another one of the same name.
func (c *Client) SetPolicyConditions(ctx context.Context, o state.PolicyObject, now state.PolicyConditions) error {
	client, resource := c.policyResource(o.Kind)
	what := "set conditions of " + string(o.Kind) + " " + objectName(&metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name})
	metadata := map[string]any{"name": o.Name, "uid": o.UID}
	if o.Namespace != "" {
		metadata["namespace"] = o.Namespace
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": policyVersion(o.Kind), "kind": o.Kind, "metadata": metadata,
		"status": map[string]any{"conditions": []any{
			policyCondition(ciliumv2.Valid, now.Valid, o.Shown.Valid, o.Since[0]), policyCondition(ciliumv2.Enforced, now.Enforced, o.Shown.Enforced, o.Since[1]),
		}},
	})
	if err == nil {
		err = client.Patch(types.ApplyPatchType).NamespaceIfScoped(o.Namespace, o.Namespace != "").Resource(resource).Name(o.Name).SubResource("status").
			Param("fieldManager", conditionOwner).Param("force", "true").Body(body).Do(ctx).Error()
	}
	return refusal(err, what)
}

func policyCondition(name string, now, shown state.PolicyCondition, since time.Time) map[string]any {
	status := metav1.ConditionFalse
	if now.True {
		status = metav1.ConditionTrue
	}
	if since.IsZero() || shown.True != now.True {
		since = time.Now()
	}
	out := map[string]any{
		"type": name, "status": status, "reason": now.Reason, "message": now.Message, "lastTransitionTime": metav1.NewTime(since.Truncate(time.Second)),
	}
	if now.Generation != 0 {
		out["observedGeneration"] = now.Generation
	}
	return out
}
