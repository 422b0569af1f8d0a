package kube

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/strait-net/strait/internal/state"
)

// What a remote pod costs an agent in intent tables, of 100,000 in 10,000 deployments. The list comes as a Reflector brings it: each pod is
// decoded, and all are there before the first is a row. "held" is what the heap cannot give back, with holes between rows where garbage was.
func BenchmarkPodMemory(b *testing.B) {
	const pods100k = 100_000
	made := podMaker(b)
	for b.Loop() {
		liveBefore, heldBefore := heapOf()
		st := state.New()
		s := newStore(st, pods(TablesOf(st)))
		arriving := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.WithTransformer(s.Transformer()))
		for i := range pods100k {
			if err := arriving.Add(made(i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Replace(arriving.List(), ""); err != nil {
			b.Fatal(err)
		}
		arriving = nil // the rows are the table's alone now
		live, held := heapOf()
		n := float64(st.Pods.Snapshot().Len())
		runtime.KeepAlive(st)
		runtime.KeepAlive(s)
		b.ReportMetric(float64(live-liveBefore)/n, "B/pod")
		b.ReportMetric(float64(held-heldBefore)/n, "held-B/pod")
	}
}

// deploymentPod is what the pods of a Deployment say beside what tells them apart.
func deploymentPod() *corev1.Pod {
	controller := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "server-7d4b9c8f6d-", Annotations: map[string]string{"checksum/config": "1f3a9c8e7b6d5f4a3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a190817263"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "server-7d4b9c8f6d", UID: "2e1c3d4f-0000-4000-8000-000000000000", Controller: &controller}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(strings.Repeat("f", 1024))}},
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: "default", DNSPolicy: "ClusterFirst", SchedulerName: "default-scheduler", RestartPolicy: "Always",
			Containers: []corev1.Container{{
				Name: "c", Image: "registry.example/team/server:v1.2.3",
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: "TCP"}, {Name: "metrics", ContainerPort: 9090, Protocol: "TCP"}},
				Env:   []corev1.EnvVar{{Name: "LOG_LEVEL", Value: "info"}, {Name: "DATABASE", Value: "postgres.data.svc.cluster.local:5432"}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{"cpu": quantity.MustParse("100m"), "memory": quantity.MustParse("128Mi")},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/server"}, {Name: "kube-api-access-x2x7q", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
			}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists"}, {Key: "node.kubernetes.io/unreachable", Operator: "Exists"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, QOSClass: "Burstable",
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Image: "registry.example/team/server:v1.2.3", ContainerID: "containerd://9f86d081884c7d659a2feaa0c55ad015"}},
		},
	}
	for _, kind := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: "True"})
	}
	return p
}

// podMaker returns pods as Deployments make them, ten of each, as they come from the API server.
func podMaker(t testing.TB) func(i int) *corev1.Pod {
	encode, decoder := podCodec(t)
	raw := encode(deploymentPod())
	return func(i int) *corev1.Pod {
		o, _, err := decoder.Decode(raw, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		p := o.(*corev1.Pod)
		tellApart(p, i)
		return p
	}
}

// tellApart makes a pod that of number i.
func tellApart(p *corev1.Pod, i int) {
	app := fmt.Sprintf("app-%05d", i/10)
	hash := fmt.Sprintf("%010x", i/10*2654435761)[:10]
	v4, v6 := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	p.Namespace, p.Name, p.ResourceVersion = fmt.Sprintf("team-%03d", i/10%200), fmt.Sprintf("%s-%s-%05x", app, hash, i), fmt.Sprint(1000+i)
	p.UID = types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i))
	p.Labels = map[string]string{"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": hash, "tier": "front", "version": "v1"}
	p.OwnerReferences[0].Name = app + "-" + hash
	p.Spec.NodeName = fmt.Sprintf("node-%04d", i%5000)
	p.Status.PodIPs = []corev1.PodIP{{IP: v4.String()}, {IP: v6.String()}}
}

// heapOf returns the bytes of the heap that are in use, and those that it keeps from the system because of them.
func heapOf() (live, held uint64) {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(samples)
	live = samples[0].Value.Uint64()
	return live, live + samples[1].Value.Uint64()
}
