package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/control"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/state"
)

// The userspace half of a cold start with 10,000 services: from nothing until every frontend is a row. Heap is what stays.
func BenchmarkColdStart10000Services(b *testing.B) {
	server := kubetest.Start(b, nil)
	cfg := server.Config(kubetest.AdminToken)
	cfg.QPS = -1
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		b.Fatal(err)
	}
	const services = 10000
	var group errgroup.Group
	group.SetLimit(32)
	for i := range services {
		group.Go(func() error { return createService(admin, i) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	client, err := kube.NewClientFor(server.Config(kubetest.AdminToken), "bench")
	if err != nil {
		b.Fatal(err)
	}
	admin = nil
	debug.FreeOSMemory()
	for b.Loop() {
		before := heap()
		st := state.New()
		ctx, cancel := context.WithCancel(context.Background())
		source := kube.NewAPIServer(client, kube.TablesOf(st), slog.New(slog.DiscardHandler))
		loop := control.NewServices(st, "node-1", config.Default().Services, slog.New(slog.DiscardHandler))
		begin := time.Now()
		var run errgroup.Group
		run.Go(func() error { return source.Run(ctx) })
		run.Go(func() error { return loop.Run(ctx) })
		<-st.Frontends.Initialized()
		took := time.Since(begin)
		if n := st.Frontends.Snapshot().Len(); n < services {
			b.Fatalf("%d frontends", n)
		}
		b.ReportMetric(took.Seconds(), "s/coldstart")
		b.ReportMetric(rss(), "MB-rss")
		b.ReportMetric(float64(heap()-before)/1e6, "MB-heap")
		cancel()
		_ = run.Wait()
		runtime.KeepAlive(st)
	}
}

func createService(admin *kubernetes.Clientset, i int) error {
	ctx, name := context.Background(), fmt.Sprintf("s%05d", i)
	_, err := admin.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name, "team": "bench"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(20 + i>>8), byte(i)}).String(),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	port, portName, ready := int32(8080), "http", true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for k := range 2 {
		node := fmt.Sprintf("node-%d", (i+k)%100)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, 244, byte(i >> 7), byte(i<<1 | k)}).String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: name + "-pod", UID: "0a1b2c3d"},
		})
	}
	_, err = admin.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
	return err
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// rss returns the resident memory of this process in MB.
func rss() float64 {
	raw, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(raw), "\n") {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			return kb / 1000
		}
	}
	return 0
}
