package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/internal/state"
)

// PodLives reports whether a pod, namespace/name, exists, has not ended and has the address. One of the same name with another address is
// another pod.
func (c *Client) PodLives(ctx context.Context, pod string, address netip.Addr) (bool, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok {
		return false, fmt.Errorf("get pod %q: the name is not namespace/name", pod)
	}
	var p corev1.Pod
	err := c.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(&p)
	if IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get pod %s: %w", pod, err)
	}
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	return !ended && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool {
		have, err := netip.ParseAddr(ip.IP)
		return err == nil && have.Unmap() == address.Unmap()
	}), nil
}

// Pod reads a pod, for when the watch is behind. One that has ended is ErrEnded; of one that does not exist IsNotFound holds.
func (c *Client) Pod(ctx context.Context, namespace, name string) (state.Pod, error) {
	var p corev1.Pod
	if err := c.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(&p); err != nil {
		return state.Pod{}, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	row, ok, err := ToPod(&p)
	var partial *Partial
	switch {
	case err != nil && !errors.As(err, &partial):
		return state.Pod{}, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	case !ok:
		return state.Pod{}, fmt.Errorf("read pod %s/%s: %w", namespace, name, ErrEnded)
	}
	return row, nil
}

// ErrEnded is returned by Client.Pod for a pod that has succeeded or failed.
var ErrEnded = errors.New("the pod has ended")

// PublishAddresses says in an annotation of a pod which addresses it has, so that other nodes know before the kubelet writes its status.
// It is ErrRefused when the pod is gone or not the one with that uid.
func (c *Client) PublishAddresses(ctx context.Context, namespace, name, uid string, addresses []netip.Addr) error {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.Unmap().String()
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "annotations": map[string]string{AddressesAnnotation: strings.Join(texts, ",")},
	}})
	if err == nil {
		err = c.core.Patch(types.MergePatchType).Namespace(namespace).Resource("pods").Name(name).Body(body).Do(ctx).Error()
	}
	return refusal(err, "publish addresses of pod "+namespace+"/"+name)
}
