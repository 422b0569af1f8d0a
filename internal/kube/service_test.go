package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/internal/state"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestToServiceReadsEveryField(t *testing.T) {
	got, err := ToService(parse[*corev1.Service](t, `
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  uid: u1
  creationTimestamp: "2026-01-02T03:04:05Z"
  labels: {team: a, service.kubernetes.io/service-proxy-name: mesh}
  annotations:
    strait.dev/algorithm: maglev
    strait.dev/forwarding: dsr
    strait.dev/weights: "10.0.0.1=3, node:big=4,zone:a=0,fd00:0::1=2"
    metallb.universe.tf/loadBalancerIPs: 203.0.113.1
    strait.dev/addresses: "203.0.113.7, 2001:db8::7"
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, "fd00:96::a"]
  ipFamilies: [IPv4, IPv6]
  externalIPs: [198.51.100.1, 198.51.100.1, "2001:db8::1"]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  healthCheckNodePort: 31000
  loadBalancerClass: strait.dev/l2
  loadBalancerIP: 203.0.113.6
  loadBalancerSourceRanges: [" 192.0.2.9/24 ", "2001:db8::/32"]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  trafficDistribution: PreferSameZone
  ports: [{name: http, port: 80, nodePort: 30080}]
status:
  loadBalancer:
    ingress: [{ip: 203.0.113.7, ipMode: VIP}, {ip: "2001:db8::7"}, {ip: 203.0.113.8, ipMode: Proxy}, {hostname: lb.example}]
`))
	want := state.Service{
		ServiceName: state.ServiceName{Namespace: "shop", Name: "web"}, Type: state.LoadBalancer, UID: "u1",
		ClusterIPs: addrs("10.96.0.10", "fd00:96::a"), ExternalIPs: addrs("198.51.100.1", "2001:db8::1"), Ingress: addrs("203.0.113.7", "2001:db8::7"),
		Ports: []state.ServicePort{{Name: "http", Port: 80, Protocol: state.TCP, NodePort: 30080}},
		Proxy: "mesh", Class: "strait.dev/l2", Families: []bool{false, true}, RequestedIPs: addrs("203.0.113.6", "203.0.113.7", "2001:db8::7"),
		Labels:         map[string]string{"team": "a", "service.kubernetes.io/service-proxy-name": "mesh"},
		ExternalPolicy: state.PolicyLocal, InternalPolicy: state.PolicyCluster, HealthCheckNodePort: 31000,
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Affinity:     time.Minute, Distribution: "PreferSameZone", Algorithm: state.Maglev, Forwarding: state.DSR,
		Weights: []state.Weight{{Of: "10.0.0.1", Value: 3}, {Of: "node:big", Value: 4}, {Of: "zone:a", Value: 0}, {Of: "fd00::1", Value: 2}},
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	got.Created = got.Created.UTC()
	if diff := cmp.Diff(want, got, comparable); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// What is wrong with one field is said, and the service is served with the default.
func TestToServicePartly(t *testing.T) {
	loadBalancer := "spec: {type: LoadBalancer, clusterIP: 10.96.0.10"
	for _, c := range []struct {
		name, yaml string
		ok         func(state.Service) bool
		want       []string // parts of the error; empty: none
	}{
		{"algorithm", "metadata: {name: s, annotations: {strait.dev/algorithm: fastest}}",
			func(s state.Service) bool { return s.Algorithm == "" },
			[]string{`metadata.annotations[strait.dev/algorithm]: "fastest"`, "accepted: random, maglev, rr, lc, dh, sh, sed, nq, p2c"}},
		{"forwarding", "metadata: {name: s, annotations: {strait.dev/forwarding: ipip, strait.dev/algorithm: rr}}",
			func(s state.Service) bool { return s.Forwarding == "" && s.Algorithm == state.RR },
			[]string{`metadata.annotations[strait.dev/forwarding]: "ipip"`, "accepted: snat, dsr"}},
		{"weight too large", "metadata: {name: s, annotations: {strait.dev/weights: 'zone:a=101'}}",
			func(s state.Service) bool { return s.Weights == nil },
			[]string{`metadata.annotations[strait.dev/weights]: "zone:a=101"`, "0 (no new connections) to 100"}},
		{"weight of nothing", "metadata: {name: s, annotations: {strait.dev/weights: 'node:=1'}}", nil, []string{"want node:NAME=WEIGHT"}},
		{"weight of what", "metadata: {name: s, annotations: {strait.dev/weights: 'web-0=1'}}", nil, []string{`"web-0": want an IPv4 or IPv6 address, node:NAME or zone:NAME`}},
		{"weight without value", "metadata: {name: s, annotations: {strait.dev/weights: '10.0.0.1'}}", nil, []string{"want ADDRESS=WEIGHT"}},
		{"weight twice", "metadata: {name: s, annotations: {strait.dev/weights: 'fd00::1=1,fd00:0::1=2'}}", nil, []string{"fd00::1 has two weights"}},
		{"empty annotations", "metadata: {name: s, annotations: {strait.dev/weights: '', strait.dev/algorithm: ''}}", nil, nil},
		{"address asked for", "metadata: {name: s, annotations: {lbipam.cilium.io/ips: '203.0.113.1,ten'}}\n" + loadBalancer + "}",
			func(s state.Service) bool { return slices.Equal(s.RequestedIPs, addrs("203.0.113.1")) },
			[]string{`metadata.annotations[lbipam.cilium.io/ips]: "ten": want an IPv4 or IPv6 address`}},
		{"old Cilium annotation", "metadata: {name: s, annotations: {io.cilium/lb-ipam-ips: '203.0.113.1'}}\n" + loadBalancer + "}",
			func(s state.Service) bool { return slices.Equal(s.RequestedIPs, addrs("203.0.113.1")) }, nil},
		{"MetalLB annotation", "metadata: {name: s, annotations: {metallb.io/loadBalancerIPs: '203.0.113.1'}}\n" + loadBalancer + "}",
			func(s state.Service) bool { return slices.Equal(s.RequestedIPs, addrs("203.0.113.1")) }, nil},
		{"asked for without being one", "metadata: {name: s, annotations: {strait.dev/addresses: ten}}",
			func(s state.Service) bool { return s.RequestedIPs == nil }, nil},
		{"one bad range", loadBalancer + ", loadBalancerSourceRanges: [192.0.2.0, 10.0.0.0/8]}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}",
			func(s state.Service) bool {
				return len(s.SourceRanges) == 1 && s.SourceRanges[0].String() == "10.0.0.0/8" && len(s.Ingress) == 1
			}, []string{`spec.loadBalancerSourceRanges[0]: "192.0.2.0": want a CIDR`}},
		{"only bad ranges open nothing", loadBalancer + ", loadBalancerSourceRanges: [all]}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}",
			func(s state.Service) bool { return s.SourceRanges == nil && s.Ingress == nil && len(s.ClusterIPs) == 1 },
			[]string{`spec.loadBalancerSourceRanges[0]: "all"`}},
		{"ranges of other types", "spec: {type: NodePort, loadBalancerSourceRanges: [10.0.0.0/8]}",
			func(s state.Service) bool { return s.SourceRanges == nil }, nil},
		{"affinity out of range", "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}",
			func(s state.Service) bool { return s.Affinity == 3*time.Hour },
			[]string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401: want 1 to 86400; 10800 is used"}},
		{"affinity zero", "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}", nil, []string{"want 1 to 86400"}},
		{"affinity default", "spec: {sessionAffinity: ClientIP}", func(s state.Service) bool { return s.Affinity == 3*time.Hour }, nil},
		{"no affinity", "spec: {sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}",
			func(s state.Service) bool { return s.Affinity == 0 }, nil},
		{"unknown affinity", "spec: {sessionAffinity: Cookie}", nil, []string{`spec.sessionAffinity: "Cookie"`, "None, ClientIP"}},
		{"unknown policy", "spec: {externalTrafficPolicy: Near}",
			func(s state.Service) bool { return s.ExternalPolicy == state.PolicyCluster },
			[]string{`spec.externalTrafficPolicy: "Near"`, "Cluster, Local"}},
		{"bad external IP", "spec: {externalIPs: [ten, 198.51.100.1]}",
			func(s state.Service) bool { return slices.Equal(s.ExternalIPs, addrs("198.51.100.1")) }, []string{`spec.externalIPs[0]: "ten"`}},
		{"bad ingress", loadBalancer + "}\nstatus: {loadBalancer: {ingress: [{ip: ten}]}}", nil, []string{`status.loadBalancer.ingress[0].ip: "ten"`}},
		{"bad requested", loadBalancer + ", loadBalancerIP: ten}", nil, []string{`spec.loadBalancerIP: "ten"`}},
		{"health check port", loadBalancer + ", healthCheckNodePort: 70000}", nil, []string{"spec.healthCheckNodePort: 70000"}},
		{"labels of others are not kept", "metadata: {name: s, labels: {a: b}}", func(s state.Service) bool { return s.Labels == nil }, nil},
		{"several", "metadata: {name: s, annotations: {strait.dev/algorithm: a, strait.dev/forwarding: b}}", nil, []string{`"a"`, `"b"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "apiVersion: v1\nkind: Service\n" + c.yaml
			if !strings.Contains(text, "metadata") {
				text += "\nmetadata: {name: s}"
			}
			got, err := ToService(parse[*corev1.Service](t, text))
			if c.ok != nil && !c.ok(got) {
				t.Errorf("row %+v", got)
			}
			var partial *Partial
			if len(c.want) == 0 != (err == nil) || err != nil && !errors.As(err, &partial) {
				t.Fatalf("error %v", err)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

// A wrong annotation is a problem of a service that is served; a wrong type leaves the previous row.
func TestPartialRowCounts(t *testing.T) {
	dir := t.TempDir()
	st := state.New()
	d := NewDirectory(dir, TablesOf(st), quiet())
	serve := func(service string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte("apiVersion: v1\nkind: Service\n"+service), 0o600); err != nil {
			t.Fatal(err)
		}
		d.read()
	}
	row := func() state.Service { s, _, _ := st.Services.Snapshot().Get("default/s"); return s }
	problem := func() string { p, _, _ := st.Problems.Snapshot().Get("kube/service default/s"); return p.Text }

	serve("metadata: {name: s, annotations: {strait.dev/algorithm: fastest, strait.dev/weights: x}}\nspec: {clusterIP: 10.96.0.1}")
	if len(row().ClusterIPs) != 1 || !strings.Contains(problem(), `"fastest": unknown`) || strings.Contains(problem(), "previous state") ||
		strings.Contains(problem(), "\n") {
		t.Errorf("row %+v, problem %q", row(), problem())
	}
	serve("metadata: {name: s, annotations: {strait.dev/algorithm: fastest}}\nspec: {clusterIP: 10.96.0.2, type: Magic}")
	if row().ClusterIPs[0].String() != "10.96.0.1" || !strings.HasSuffix(problem(), "the previous state stays") || !strings.Contains(problem(), "Magic") {
		t.Errorf("row %+v, problem %q", row(), problem())
	}
	serve("metadata: {name: s}\nspec: {clusterIP: 10.96.0.3}")
	if row().ClusterIPs[0].String() != "10.96.0.3" || problem() != "" {
		t.Errorf("row %+v, problem %q", row(), problem())
	}
}

// Whatever a Service says, it is refused with a reason or its row keeps what the rest of the agent relies on.
func FuzzToService(f *testing.F) {
	f.Add("maglev", "dsr", "10.0.0.1=3,node:big=4,zone:a=0", "203.0.113.7,2001:db8::7", "192.0.2.0/24", "198.51.100.1", "203.0.113.7", "Local", int32(60), int32(30080))
	f.Add("fast", "", "=1,,", ",", "x", "::ffff:10.0.0.1", "fe80::1%eth0", "Near", int32(-1), int32(-1))
	f.Add("", "", "node:=1", "", "::ffff:10.0.0.0/104", "", "0.0.0.0", "", int32(1<<30), int32(65536))
	f.Fuzz(func(t *testing.T, algorithm, forwarding, weights, asked, source, external, ingress, policy string, timeout, port int32) {
		kind := corev1.ServiceInternalTrafficPolicy(policy)
		row, err := ToService(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "n", Annotations: map[string]string{
				AlgorithmAnnotation: algorithm, ForwardingAnnotation: forwarding, WeightsAnnotation: weights, AddressesAnnotation: asked,
			}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{external}, LoadBalancerSourceRanges: []string{source},
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicy(policy), InternalTrafficPolicy: &kind,
				SessionAffinity: corev1.ServiceAffinityClientIP, HealthCheckNodePort: port, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}},
				SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}},
			},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: ingress}}}},
		})
		var partial *Partial
		if err != nil && !errors.As(err, &partial) {
			if port >= 0 && port <= 65535 {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if row.Affinity < time.Second || row.Affinity > 24*time.Hour {
			t.Errorf("affinity %v", row.Affinity)
		}
		if len(row.SourceRanges) == 0 && len(row.Ingress) > 0 {
			t.Error("open to everybody because its source range cannot be read")
		}
		for _, list := range [][]netip.Addr{row.ExternalIPs, row.Ingress, row.RequestedIPs} {
			for _, a := range list {
				if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
					t.Errorf("address %v", a)
				}
			}
		}
		if known := row.Algorithm == "" || slices.Contains(algorithms(), row.Algorithm); !known || string(row.Algorithm) != algorithm && err == nil {
			t.Errorf("algorithm %q of %q", row.Algorithm, algorithm)
		}
		var again []string
		for _, w := range row.Weights {
			if w.Value > maxWeight {
				t.Errorf("weight %+v", w)
			}
			again = append(again, fmt.Sprintf("%s=%d", w.Of, w.Value))
		}
		if len(again) > 0 {
			if same, err := parseWeights(strings.Join(again, ",")); err != nil || !slices.Equal(same, row.Weights) {
				t.Errorf("%v reads back as %v, %v", row.Weights, same, err)
			}
		}
	})
}

// Whatever a slice says, its endpoints have an address of one form, and a pod's name leads to its namespace.
func FuzzToEndpointSlice(f *testing.F) {
	f.Add("web", "10.0.0.1", "node", "zone", "Pod", "web-0", "zone", "node", byte(7), int32(80))
	f.Add("web", "::ffff:10.0.0.1", "", "", "Pod", "", "", "", byte(0), int32(-1))
	f.Fuzz(func(t *testing.T, service, address, node, zone, refKind, ref, forZone, forNode string, bits byte, port int32) {
		yes := func(i int) *bool { b := bits>>i&1 == 1; return &b }
		protocol := corev1.Protocol("TCP")
		row, ok, err := ToEndpointSlice(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "n", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			Ports:      []discoveryv1.EndpointPort{{Port: &port, Protocol: &protocol}},
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{address}, NodeName: &node, Zone: &zone, TargetRef: &corev1.ObjectReference{Kind: refKind, Name: ref},
				Conditions: discoveryv1.EndpointConditions{Ready: yes(0), Serving: yes(1), Terminating: yes(2)},
				Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: forZone}}, ForNodes: []discoveryv1.ForNode{{Name: forNode}}},
			}},
		})
		if !ok || err != nil {
			return
		}
		for _, e := range row.Endpoints {
			if !e.Address.IsValid() || e.Address.Is4In6() || e.Address.Zone() != "" {
				t.Errorf("address %v", e.Address)
			}
			if e.Pod != "" && e.Pod != "n/"+ref {
				t.Errorf("pod %q of %q", e.Pod, ref)
			}
		}
	})
}
