package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

const poolResource = "loadbalancerpools"

// SetAllocation gives a Service of type LoadBalancer its addresses and says what became of them. It is ErrRefused when the object is
// not the one that was read any more: decide again.
func (c *Client) SetAllocation(ctx context.Context, claim state.Claim, addresses []netip.Addr, now state.Allocation) error {
	mode := corev1.LoadBalancerIPModeVIP
	ingress := make([]corev1.LoadBalancerIngress, len(addresses))
	for i, a := range addresses {
		ingress[i] = corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode}
	}
	return c.patchAllocation(ctx, claim, map[string]any{
		"loadBalancer": map[string]any{"ingress": ingress}, // an atomic list
		"conditions":   []any{allocationCondition(claim, now)},
	})
}

// ClearAllocation removes the condition from a Service that is not given addresses any more. The addresses are left to whoever serves
// it now; the API server has removed them if the type has changed.
func (c *Client) ClearAllocation(ctx context.Context, claim state.Claim) error {
	return c.patchAllocation(ctx, claim, map[string]any{
		"conditions": []any{map[string]any{"$patch": "delete", "type": v1alpha1.AddressAllocated}},
	})
}

// allocationCondition leaves out the time of the transition when there was none: the patch merges.
func allocationCondition(claim state.Claim, now state.Allocation) map[string]any {
	status := metav1.ConditionFalse
	if now.Done {
		status = metav1.ConditionTrue
	}
	out := map[string]any{"type": v1alpha1.AddressAllocated, "status": status, "reason": now.Reason, "message": now.Message}
	if before := claim.Allocation; before.Reason == "" || before.Done != now.Done {
		out["lastTransitionTime"] = metav1.NewTime(time.Now().Truncate(time.Second))
	}
	return out
}

// patchAllocation merges strategically: conditions of others are not touched.
func (c *Client) patchAllocation(ctx context.Context, claim state.Claim, status map[string]any) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.Version}, "status": status,
	})
	if err == nil {
		err = c.status.Patch(types.StrategicMergePatchType).Namespace(claim.Namespace).Resource("services").Name(claim.Name).
			SubResource("status").Body(body).Do(ctx).Error()
	}
	return refusal(err, "set status of service "+claim.String())
}

// SetPoolStatus writes the status of a LoadBalancerPool. It is ErrRefused when the object is not the one that was read any more.
func (c *Client) SetPoolStatus(ctx context.Context, pool state.Pool, now state.PoolStatus) error {
	condition := metav1.Condition{
		Type: v1alpha1.PoolReady, Status: metav1.ConditionFalse, Reason: now.Reason, Message: now.Message,
		ObservedGeneration: now.Generation, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
	}
	if now.Ready {
		condition.Status = metav1.ConditionTrue
	}
	if !pool.Since.IsZero() && pool.Shown.Ready == now.Ready {
		condition.LastTransitionTime = metav1.NewTime(pool.Since)
	}
	status := v1alpha1.LoadBalancerPoolStatus{
		Conditions: []metav1.Condition{condition},
		IPv4:       v1alpha1.AddressCount(now.Counts[0]), IPv6: v1alpha1.AddressCount(now.Counts[1]),
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pool.UID, "resourceVersion": pool.Version}, "status": status,
	})
	if err == nil {
		err = c.strait.Patch(types.MergePatchType).Resource(poolResource).Name(pool.Name).SubResource("status").Body(body).Do(ctx).Error()
	}
	return refusal(err, "set status of loadbalancerpool "+pool.Name)
}

// refusal tells answers that mean "this is not the object you know" from those after which the same may be tried again.
func refusal(err error, what string) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w: %w", what, ErrRefused, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
