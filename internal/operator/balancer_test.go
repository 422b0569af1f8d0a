package operator

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
)

// lbRig is an API server with the chart's CRD.
type lbRig struct {
	rig
	server *kubetest.Server
	pools  rest.Interface
}

func newLBRig(t *testing.T) lbRig {
	t.Helper()
	server := kubetest.Start(t, nil)
	cfg := server.Config(kubetest.AdminToken)
	cfg.QPS, cfg.Burst = 1000, 1000
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClientFor(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	crd, err := os.ReadFile("../../deploy/helm/strait/templates/crds/strait.dev_loadbalancerpools.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	if err := admin.RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/yaml").Body(crd).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	group := v1alpha1.GroupVersion()
	c := rest.CopyConfig(cfg)
	c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &group, "/apis", serializer.NewCodecFactory(scheme).WithoutConversion()
	pools, err := rest.RESTClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	r := lbRig{rig{t, admin, client}, server, pools}
	r.eventually("CRD served", func() bool {
		return pools.Get().Resource("loadbalancerpools").Do(context.Background()).Error() == nil
	})
	return r
}

// addPool makes a pool of texts such as "192.0.2.0/28" and "192.0.2.1-192.0.2.9".
func (r lbRig) addPool(name string, change func(*v1alpha1.LoadBalancerPoolSpec), blocks ...string) error {
	p := &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, text := range blocks {
		var b v1alpha1.AddressBlock
		if first, last, isRange := strings.Cut(text, "-"); isRange {
			b.Start, b.Stop = first, last
		} else {
			b.CIDR = text
		}
		p.Spec.Blocks = append(p.Spec.Blocks, b)
	}
	if change != nil {
		change(&p.Spec)
	}
	return r.pools.Post().Resource("loadbalancerpools").Body(p).Do(context.Background()).Error()
}

func (r lbRig) mustAddPool(name string, blocks ...string) {
	r.t.Helper()
	if err := r.addPool(name, nil, blocks...); err != nil {
		r.t.Fatal(err)
	}
}

func (r lbRig) pool(name string) v1alpha1.LoadBalancerPool {
	r.t.Helper()
	var p v1alpha1.LoadBalancerPool
	if err := r.pools.Get().Resource("loadbalancerpools").Name(name).Do(context.Background()).Into(&p); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// poolSays returns "True InUse" and so on, with the message.
func (r lbRig) poolSays(name string) string {
	p := r.pool(name)
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PoolReady)
	if c == nil {
		return ""
	}
	return strings.TrimSpace(string(c.Status) + " " + c.Reason + " " + c.Message)
}

func (r lbRig) addService(name string, change func(*corev1.Service)) {
	r.t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	if change != nil {
		change(s)
	}
	if _, err := r.admin.CoreV1().Services("default").Create(context.Background(), s, metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r lbRig) service(name string) *corev1.Service {
	r.t.Helper()
	s, err := r.admin.CoreV1().Services("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r lbRig) change(name string, change func(*corev1.Service)) {
	r.t.Helper()
	r.eventually("change of "+name, func() bool {
		s := r.service(name)
		change(s)
		_, err := r.admin.CoreV1().Services("default").Update(context.Background(), s, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsConflict(err) {
			r.t.Fatal(err)
		}
		return err == nil
	})
}

// says returns the addresses of a service, then the reason of its condition.
func (r lbRig) says(name string) string {
	r.t.Helper()
	s := r.service(name)
	var words []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IPMode == nil || *i.IPMode != corev1.LoadBalancerIPModeVIP {
			r.t.Errorf("%s: ingress %s without ipMode VIP", name, i.IP)
		}
		words = append(words, i.IP)
	}
	if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.AddressAllocated); c != nil {
		if words = append(words, c.Reason); (c.Status == metav1.ConditionTrue) != (c.Reason == v1alpha1.ReasonAllocated) {
			r.t.Errorf("%s: condition %+v", name, c)
		}
	}
	return strings.Join(words, " ")
}

func (r lbRig) expect(service, want string) {
	r.t.Helper()
	last := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = r.says(service); last == want {
			return
		}
	}
	r.t.Fatalf("%s: %q, want %q; status %+v", service, last, want, r.service(service).Status)
}

func (r lbRig) serviceEvent(name, reason string) bool {
	list, err := r.admin.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
		return e.InvolvedObject.Kind == "Service" && e.InvolvedObject.Name == name && e.Reason == reason
	})
}

const dualBalancer = "ipv6: true\nserviceCIDRs: [10.96.0.0/16]\nipam: {podCIDRv4: 10.244.0.0/16, podCIDRv6: \"fd00:44::/48\"}\n"

func dual(s *corev1.Service) {
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &policy, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
}

func annotate(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { metav1.SetMetaDataAnnotation(&s.ObjectMeta, key, value) }
}

// SVC-8 on a real API server: allocation, refusal, release, restart.
func TestLoadBalancerAddresses(t *testing.T) {
	r := newLBRig(t)
	r.addNode("n")
	// A cloud's: nothing is said about it before there is a pool.
	r.addService("cloud", nil)
	r.addService("named", func(s *corev1.Service) { class := v1alpha1.LoadBalancerClass; s.Spec.LoadBalancerClass = &class })
	r.addService("foreign", func(s *corev1.Service) { class := "metallb.io/metallb"; s.Spec.LoadBalancerClass = &class })
	stop := r.run(dualBalancer, "one")
	r.expect("named", "NoPool")
	if got := r.says("cloud"); got != "" {
		t.Errorf("service without a class before there is a pool: %q", got)
	}
	r.mustAddPool("a", "192.0.2.0/30", "2001:db8::10-2001:db8::1f")
	r.expect("cloud", "192.0.2.0 Allocated")
	r.expect("named", "192.0.2.1 Allocated")
	r.addService("both", dual)
	r.expect("both", "192.0.2.2 2001:db8::10 Allocated")
	r.addService("taken", annotate("strait.dev/addresses", "192.0.2.1"))
	r.expect("taken", "Conflict")
	r.eventually("event about a conflict", func() bool { return r.serviceEvent("taken", "AddressConflict") })
	r.addService("asks", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.3" })
	r.expect("asks", "192.0.2.3 Allocated")
	r.addService("late", nil)
	r.expect("late", "Exhausted")
	r.eventually("event about exhaustion", func() bool { return r.serviceEvent("late", "AddressExhausted") })
	r.eventually("counts", func() bool {
		s := r.pool("a").Status
		return s.IPv4 == v1alpha1.AddressCount{Total: 4, Allocated: 4} && s.IPv6 == v1alpha1.AddressCount{Total: 16, Allocated: 1, Free: 15} && r.poolSays("a") == "True InUse"
	})

	// Released by deletion and by another type.
	if err := r.admin.CoreV1().Services("default").Delete(t.Context(), "cloud", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.expect("late", "192.0.2.0 Allocated")
	r.eventually("event about an address at last", func() bool { return r.serviceEvent("late", "AddressAllocated") })
	r.change("named", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil })
	r.expect("named", "")
	r.expect("taken", "192.0.2.1 Allocated")

	// Sharing.
	for i, name := range []string{"share-1", "share-2"} {
		r.addService(name, func(s *corev1.Service) {
			annotate(v1alpha1.SharingKeyAnnotation, "web")(s)
			annotate("strait.dev/addresses", "2001:db8::1e")(s)
			s.Spec.IPFamilies, s.Spec.Ports[0].Port = []corev1.IPFamily{corev1.IPv6Protocol}, int32(80+i)
		})
		r.expect(name, "2001:db8::1e Allocated")
	}

	// A restart changes nothing and writes nothing.
	before := map[string]string{}
	for _, name := range []string{"both", "taken", "asks", "late", "share-1", "foreign"} {
		before[name] = r.service(name).ResourceVersion
	}
	poolBefore := func() string { return r.pool("a").ResourceVersion }
	r.eventually("counts settle", func() bool { return r.pool("a").Status.IPv6.Allocated == 2 })
	was := poolBefore()
	if err := stop(); err != nil && !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Fatal(err)
	}
	r.run(dualBalancer, "two")
	r.addService("after", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} })
	r.expect("after", "2001:db8::11 Allocated")
	for name, version := range before {
		if got := r.service(name); got.ResourceVersion != version {
			t.Errorf("%s was written after a restart: %+v", name, got.Status)
		}
	}
	r.eventually("the counts are written", func() bool { return r.pool("a").Status.IPv6.Allocated == 3 && poolBefore() != was })
	if got := r.says("foreign"); got != "" {
		t.Errorf("service of another class: %q", got)
	}
}

// Bad input: what the schema refuses, and what the operator refuses.
func TestLoadBalancerPoolsThatAreRefused(t *testing.T) {
	r := newLBRig(t)
	for _, c := range []struct{ block, want string }{
		{"192.0.2.0", "cidr: want a CIDR"},
		{"300.0.2.0/24", "cidr: want a CIDR"},
		{"192.0.2.1-x", "stop: want an address"},
		{"192.0.2.1-2001:db8::1", "want addresses of one family"},
	} {
		if err := r.addPool("bad", nil, c.block); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("block %q: %v, want %q", c.block, err, c.want)
		}
	}
	if err := r.addPool("bad", nil); err == nil {
		t.Error("a pool without blocks was accepted")
	}
	if err := r.addPool("bad", func(s *v1alpha1.LoadBalancerPoolSpec) { s.Blocks[0].Start = "192.0.2.1" }, "192.0.2.0/24"); err == nil {
		t.Error("a block with both cidr and start was accepted")
	}

	r.addNode("n", "10.10.0.0/24", "fd10::/64")
	node, err := r.admin.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.18.0.7"}}
	if _, err := r.admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.addService("web", nil)
	r.mustAddPool("good", "192.0.2.16/28")
	time.Sleep(1100 * time.Millisecond) // creation times are whole seconds
	r.mustAddPool("nodes", "172.18.0.1-172.18.0.9")
	r.mustAddPool("pods", "10.244.7.0/24")
	r.mustAddPool("node-pods", "10.10.0.128-10.10.1.1")
	r.mustAddPool("services", "10.96.200.0/24")
	r.mustAddPool("twice", "192.0.2.31-192.0.2.40")
	r.mustAddPool("backwards", "198.51.100.9-198.51.100.1")
	r.mustAddPool("itself", "198.51.100.0/28", "198.51.100.9-198.51.100.20")
	r.run(dualBalancer, "one")
	for pool, want := range map[string]string{
		"good":      "True InUse",
		"nodes":     "False Overlap block 172.18.0.1-172.18.0.9 of LoadBalancerPool nodes overlaps address 172.18.0.7 of node n;",
		"pods":      "False Overlap block 10.244.7.0-10.244.7.255 of LoadBalancerPool pods overlaps ipam.podCIDRv4 10.244.0.0/16, the addresses of pods;",
		"node-pods": "False Overlap block 10.10.0.128-10.10.1.1 of LoadBalancerPool node-pods overlaps pod CIDR 10.10.0.0/24 of node n;",
		"services":  "False Overlap block 10.96.200.0-10.96.200.255 of LoadBalancerPool services overlaps serviceCIDRs 10.96.0.0/16, the addresses of services;",
		"twice": "False Overlap block 192.0.2.31-192.0.2.40 of LoadBalancerPool twice overlaps block 192.0.2.16-192.0.2.31 of LoadBalancerPool good, " +
			"which is older;",
		"backwards": "False Invalid spec.blocks[0].stop: 198.51.100.1: want an address of the family of start, 198.51.100.9, and not before it",
		"itself":    "False Invalid spec.blocks: 198.51.100.9-198.51.100.15 is in two of them",
	} {
		got := ""
		r.eventually("condition of "+pool, func() bool { got = r.poolSays(pool); return got != "" })
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s\nwant %s", pool, got, want)
		}
	}
	r.expect("web", "192.0.2.16 Allocated")
	r.eventually("event about a pool", func() bool {
		list, err := r.admin.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Kind == "LoadBalancerPool" && e.InvolvedObject.Name == "twice" && e.Reason == "PoolOverlap"
		})
	})

	// A node that comes into the range later: nothing new, but what was given stays.
	if node, err = r.admin.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses[0].Address = "192.0.2.20"
	if _, err := r.admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the pool is not used", func() bool { return strings.HasPrefix(r.poolSays("good"), "False Overlap") })
	// Without it the younger one may have its block.
	r.eventually("the younger pool is", func() bool { return r.poolSays("twice") == "True InUse" })
	r.addService("more", annotate("strait.dev/addresses", "192.0.2.17"))
	r.expect("more", "NoPool")
	r.expect("web", "192.0.2.16 Allocated")
}

// An outage of the API server and another writer: nothing is lost, nothing is given twice.
func TestLoadBalancerAddressesThroughAnOutage(t *testing.T) {
	r := newLBRig(t)
	r.mustAddPool("a", "192.0.2.0/24")
	r.run(dualBalancer, "one")
	r.addService("first", nil)
	r.expect("first", "192.0.2.0 Allocated")
	r.server.Stop()
	time.Sleep(500 * time.Millisecond)
	r.server.Resume()
	r.addService("second", nil)
	r.expect("second", "192.0.2.1 Allocated")
	// Somebody takes the address away: it comes back.
	s := r.service("first")
	s.Status.LoadBalancer.Ingress = nil
	if _, err := r.admin.CoreV1().Services("default").UpdateStatus(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.expect("first", "192.0.2.0 Allocated")
	// Conditions of others stay.
	patch := []byte(`{"status":{"conditions":[{"type":"example.com/X","status":"True","reason":"R","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	if _, err := r.admin.CoreV1().Services("default").Patch(t.Context(), "first", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	r.change("first", annotate("strait.dev/addresses", "192.0.2.9"))
	r.expect("first", "192.0.2.9 Allocated")
	if got := r.service("first").Status.Conditions; len(got) != 2 {
		t.Errorf("conditions %+v", got)
	}
	// The pool goes: so does the address.
	if err := r.pools.Delete().Resource("loadbalancerpools").Name("a").Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	r.expect("second", "NoPool")
}

// Services that have waited for a pool have their addresses within seconds of it, each a different one. STRAIT_SCALE makes them 5,000,
// which takes two minutes to set up.
func TestManyServices(t *testing.T) {
	services := 500
	if os.Getenv("STRAIT_SCALE") != "" {
		services = 5000
	}
	r := newLBRig(t)
	r.run(dualBalancer, "one")
	// The range for ClusterIPs has 65,000.
	work := make(chan int)
	done := make(chan error)
	for range 16 {
		go func() {
			var failed error
			for i := range work {
				no := false
				s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)}, Spec: corev1.ServiceSpec{
					Type: corev1.ServiceTypeLoadBalancer, AllocateLoadBalancerNodePorts: &no, Ports: []corev1.ServicePort{{Port: 80}},
				}}
				if _, err := r.admin.CoreV1().Services("default").Create(context.Background(), s, metav1.CreateOptions{}); err != nil {
					failed = err
				}
			}
			done <- failed
		}()
	}
	for i := range services {
		work <- i
	}
	close(work)
	for range 16 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	r.mustAddPool("a", "10.0.0.0/16")
	given := map[netip.Addr]string{}
	for {
		list, err := r.admin.CoreV1().Services("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		clear(given)
		for _, s := range list.Items {
			for _, i := range s.Status.LoadBalancer.Ingress {
				a := netip.MustParseAddr(i.IP)
				if other := given[a]; other != "" {
					t.Fatalf("%s was given to %s and %s", a, other, s.Name)
				}
				given[a] = s.Name
			}
		}
		if len(given) == services {
			break
		}
		if time.Since(began) > 60*time.Second {
			t.Fatalf("%d of %d have addresses after a minute", len(given), services)
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Logf("%d services had addresses after %s", services, time.Since(began).Round(100*time.Millisecond))
	r.eventually("counts", func() bool { return r.pool("a").Status.IPv4.Allocated == int64(services) })
}
