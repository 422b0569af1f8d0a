package kube

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/internal/state"
)

// What a remote pod costs an agent in intent tables, of 100,000 in 10,000 deployments: the list comes as a Reflector brings it.
func BenchmarkPodMemory(b *testing.B) {
	const pods100k = 100_000
	for b.Loop() {
		st := state.New()
		s := newStore(st, pods(TablesOf(st)))
		transform := s.Transformer()
		list := make([]any, pods100k)
		for i := range list {
			o, err := transform(benchmarkPod(i))
			if err != nil {
				b.Fatal(err)
			}
			list[i] = o
		}
		if err := s.Replace(list, ""); err != nil {
			b.Fatal(err)
		}
		clear(list) // the rows are the table's alone now
		with := heapInUse()
		n := st.Pods.Snapshot().Len()
		runtime.KeepAlive(st)
		*st, *s = state.State{}, store[*corev1.Pod, state.Pod]{}
		b.ReportMetric(float64(with-heapInUse())/float64(n), "B/pod")
	}
}

// benchmarkPod is a pod as a Deployment makes them, ten of each.
func benchmarkPod(i int) *corev1.Pod {
	app := fmt.Sprintf("app-%05d", i/10)
	hash := fmt.Sprintf("%010x", i/10*2654435761)[:10]
	v4, v6 := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%03d", i/10%200), Name: fmt.Sprintf("%s-%s-%05x", app, hash, i), ResourceVersion: fmt.Sprint(1000 + i),
			UID:    types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i)),
			Labels: map[string]string{"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": hash, "tier": "front", "version": "v1"},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%04d", i%5000), ServiceAccountName: "default",
			Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: v4.String()}, {IP: v6.String()}}},
	}
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
