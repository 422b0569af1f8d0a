package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
