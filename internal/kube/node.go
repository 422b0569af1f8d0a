package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// NodeWriter writes what an agent has to say about its own node. Each call may be repeated.
type NodeWriter struct {
	client *Client
	node   string
	events *Events
}

// NewNodeWriter returns a writer for one node, which sends events until ctx ends. component names the writer in
// events: "strait-agent".
func NewNodeWriter(ctx context.Context, client *Client, node, component string, log *slog.Logger) *NodeWriter {
	return &NodeWriter{client: client, node: node, events: NewEvents(ctx, client, component, node, log)}
}

// Event says something about the node, visible in kubectl describe. It does not block; repetitions are counted, not repeated.
func (w *NodeWriter) Event(severity Severity, reason, message string) {
	w.events.Node(w.node, "", severity, reason, message)
}

// Taint adds or removes the not-ready taint. The list of taints is replaced whole, so the patch names the version it was read at.
func (w *NodeWriter) Taint(ctx context.Context, on bool) error {
	taint := corev1.Taint{Key: NotReadyTaint, Effect: corev1.TaintEffectNoSchedule}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		node, err := w.get(ctx)
		if err != nil {
			return err
		}
		isOurs := func(t corev1.Taint) bool { return t.Key == taint.Key }
		if slices.ContainsFunc(node.Spec.Taints, isOurs) == on {
			return nil
		}
		taints := slices.DeleteFunc(slices.Clone(node.Spec.Taints), isOurs)
		if on {
			taints = append(taints, taint)
		}
		return w.client.patchNode(ctx, w.node, types.MergePatchType, "", map[string]any{
			"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
			"spec":     map[string]any{"taints": taints},
		})
	})
	if err != nil {
		return fmt.Errorf("set taint %s of node %s to %t: %w", NotReadyTaint, w.node, on, err)
	}
	return nil
}

// NetworkAvailable reports whether the condition NetworkUnavailable of a node says that there is a network.
func NetworkAvailable(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return c.Status == corev1.ConditionFalse
		}
	}
	return false
}

// SetNetworkAvailable sets the condition NetworkUnavailable; the scheduler keeps pods away while it is true.
func (w *NodeWriter) SetNetworkAvailable(ctx context.Context, available bool, reason, message string) error {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	condition := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now,
	}
	if available {
		condition.Status = corev1.ConditionFalse
	}
	node, err := w.get(ctx)
	if err != nil {
		return fmt.Errorf("set condition NetworkUnavailable of node %s: %w", w.node, err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type != condition.Type {
			continue
		}
		if c.Status == condition.Status && c.Reason == reason && c.Message == message {
			return nil
		}
		if c.Status == condition.Status {
			condition.LastTransitionTime = c.LastTransitionTime
		}
	}
	// The strategic patch merges conditions by type: those of others are not touched.
	err = w.client.patchNode(ctx, w.node, types.StrategicMergePatchType, "status", map[string]any{
		"status": map[string]any{"conditions": []corev1.NodeCondition{condition}},
	})
	if err != nil {
		return fmt.Errorf("set condition NetworkUnavailable of node %s: %w", w.node, err)
	}
	return nil
}

// Annotate sets annotations of the node; an empty value removes one.
func (w *NodeWriter) Annotate(ctx context.Context, annotations map[string]string) error {
	patch := make(map[string]any, len(annotations))
	for k, v := range annotations {
		if patch[k] = v; v == "" {
			patch[k] = nil
		}
	}
	err := w.client.patchNode(ctx, w.node, types.MergePatchType, "", map[string]any{"metadata": map[string]any{"annotations": patch}})
	if err != nil {
		return fmt.Errorf("annotate node %s: %w", w.node, err)
	}
	return nil
}

func (w *NodeWriter) get(ctx context.Context) (*corev1.Node, error) {
	return w.client.Node(ctx, w.node)
}

// Node reads one Node object.
func (c *Client) Node(ctx context.Context, name string) (*corev1.Node, error) {
	var node corev1.Node
	if err := c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(&node); err != nil {
		return nil, fmt.Errorf("get node %s: %w", name, err)
	}
	return &node, nil
}

// ErrRefused is returned by SetPodCIDRs when the node has other pod CIDRs already, or is not the one with that uid any more.
var ErrRefused = errors.New("refused by the API server")

// SetPodCIDRs gives a node its pod CIDRs. The API server accepts that once, while the field is empty: of two writers the
// second gets ErrRefused.
func (c *Client) SetPodCIDRs(ctx context.Context, name, uid string, cidrs []netip.Prefix) error {
	texts := make([]string, len(cidrs))
	for i, p := range cidrs {
		texts[i] = p.String()
	}
	if len(texts) == 0 {
		return nil
	}
	// Not the strategic patch: it would merge the lists of two writers.
	err := c.patchNode(ctx, name, types.MergePatchType, "", map[string]any{
		"metadata": map[string]any{"uid": uid},
		"spec":     map[string]any{"podCIDR": texts[0], "podCIDRs": texts},
	})
	if apierrors.IsInvalid(err) {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return fmt.Errorf("set pod CIDRs %v of node %s: %w", texts, name, err)
	}
	return nil
}

func (c *Client) patchNode(ctx context.Context, name string, kind types.PatchType, subresource string, patch any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return c.core.Patch(kind).Resource("nodes").Name(name).SubResource(subresource).Body(body).Do(ctx).Error()
}

// IsNotFound reports whether the API server said that the object does not exist.
func IsNotFound(err error) bool { return apierrors.IsNotFound(err) }
