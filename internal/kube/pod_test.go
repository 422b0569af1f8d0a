package kube

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SVC-5: connections are closed only when the pod they lead to is gone.
func testPodLives(t *testing.T, client *Client) {
	ctx := t.Context()
	create(t, client.core, "serviceaccounts", "default", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	create(t, client.core, "pods", "default", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-0"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	})
	lives := func(when, pod, address string, want bool) {
		t.Helper()
		got, err := client.PodLives(ctx, pod, netip.MustParseAddr(address))
		if err != nil || got != want {
			t.Errorf("%s: %s with %s lives: %t, %v, want %t", when, pod, address, got, err, want)
		}
	}
	phase := func(phase corev1.PodPhase) {
		t.Helper()
		var p corev1.Pod
		if err := client.core.Get().Namespace("default").Resource("pods").Name("web-0").Do(ctx).Into(&p); err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = phase
		p.Status.PodIP, p.Status.PodIPs = "10.1.0.7", []corev1.PodIP{{IP: "10.1.0.7"}, {IP: "fd00:1::7"}}
		if err := client.core.Put().Namespace("default").Resource("pods").Name("web-0").SubResource("status").Body(&p).Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
	}
	lives("before it has an address", "default/web-0", "10.1.0.7", false)
	phase(corev1.PodRunning)
	lives("running", "default/web-0", "10.1.0.7", true)
	lives("running", "default/web-0", "fd00:1::7", true)
	lives("other address", "default/web-0", "10.1.0.8", false)
	lives("never was", "default/web-1", "10.1.0.7", false)
	lives("namespace never was", "other/web-0", "10.1.0.7", false)
	phase(corev1.PodSucceeded)
	lives("ended", "default/web-0", "10.1.0.7", false)
	if _, err := client.PodLives(ctx, "web-0", netip.MustParseAddr("10.1.0.7")); err == nil {
		t.Error("a name without a namespace is accepted")
	}
}
