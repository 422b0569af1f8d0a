package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/lab/internal/topology"
)

const outside = "outside"

// needServices skips where kube-proxy serves.
func needServices(t *testing.T) {
	t.Helper()
	needStrait(t)
	if shared.spec().KubeProxy() != "" {
		t.Skip("kube-proxy serves in this lab")
	}
}

// create makes a service like "web" with another name and whatever change says; the end of the test removes it.
func create(t *testing.T, name string, change func(*corev1.ServiceSpec)) *corev1.Service {
	t.Helper()
	s := service(false)
	s.Name, s.Spec.Type = name, corev1.ServiceTypeNodePort
	if change != nil {
		change(&s.Spec)
	}
	services := shared.kube.CoreV1().Services(shared.namespace)
	s, err := services.Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return s
}

// label marks a pod; without a value it takes the mark off.
func label(t *testing.T, pod, key, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	if value == "" {
		patch = fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, key)
	}
	_, err := shared.kube.CoreV1().Pods(shared.namespace).Patch(context.Background(), pod, "application/merge-patch+json", []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// nodePort is an address and port of a node.
func nodePort(s *corev1.Service, port int, a netip.Addr) string {
	return netip.AddrPortFrom(a, uint16(s.Spec.Ports[port].NodePort)).String()
}

// names asks a server its name again and again and returns who answered how often, as uniq prints it.
func names(times int, address string) string {
	return fmt.Sprintf("for i in $(seq %d); do curl -sS --max-time 3 http://%s/hostname || exit; echo; done | sort | uniq -c", times, address)
}

// SVC-1, SVC-3: a client outside reaches backends of all nodes at the port of each node. That of the node it asks sees its address.
func TestSVC3_NodePortFromOutside(t *testing.T) {
	needServices(t)
	s := create(t, "open", nil)
	here := shared.nodes[0]
	label(t, here.server, "only", "here")
	t.Cleanup(func() { label(t, here.server, "only", "") })
	near := create(t, "near", func(s *corev1.ServiceSpec) { s.Selector = map[string]string{"only": "here"} })
	for _, n := range shared.nodes {
		for _, a := range n.addrs {
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				out, err := shared.onMachine(ctx, outside, names(40, nodePort(s, 0, a)))
				for _, to := range shared.nodes {
					if err == nil && !strings.Contains(out, to.server) {
						err = fmt.Errorf("%s never answers: %s", to.server, out)
					}
				}
				return err
			})
		}
	}
	for _, client := range topology.Hosts(shared.spec().OutsideAddrs()) {
		for _, n := range shared.nodes {
			a := same(n.addrs, client)
			want := a // another node's backend answers to the node that was asked
			if n.name == here.name {
				want = client
			}
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				_, err := shared.onMachine(ctx, outside, names(1, nodePort(near, 0, a)))
				return err
			})
			out, err := shared.onMachine(t.Context(), outside, "curl -sS --max-time 5 http://"+nodePort(near, 0, a)+"/clientip")
			if got := seen(t, out, err); got != want {
				t.Errorf("by way of %s %s the server sees %s, want %s", n.name, a, got, want)
			}
			datagram := fmt.Sprintf("exec 3<>/dev/udp/%s/%d && echo hostname >&3 && timeout 3 head -c 9 <&3", a, near.Spec.Ports[1].NodePort)
			out, err = shared.run(t.Context(), "shell", outside, "--", "bash", "-c", datagram)
			if err != nil || !strings.HasPrefix(out, "server-") {
				t.Errorf("a datagram by way of %s %s: %q %v", n.name, a, out, err)
			}
		}
	}
}

// SVC-3: a client of a service with session affinity keeps its backend, whichever node it asks.
func TestSVC3_SessionAffinity(t *testing.T) {
	needServices(t)
	s := create(t, "sticky", func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP })
	for _, ip := range s.Spec.ClusterIPs {
		cluster := netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String()
		node := nodePort(s, 0, same(shared.nodes[0].addrs, netip.MustParseAddr(ip)))
		eventually(t, 20*time.Second, func(ctx context.Context) error { // its backends come one by one
			out, err := shared.inPod(ctx, shared.namespace, shared.nodes[0].server, names(15, cluster))
			if lines := strings.Count(out, "\n"); err == nil && lines != 1 {
				err = fmt.Errorf("a pod met %d backends:\n%s", lines, out)
			}
			return err
		})
		eventually(t, 20*time.Second, func(ctx context.Context) error {
			out, err := shared.onMachine(ctx, outside, names(15, node))
			if lines := strings.Count(out, "\n"); err == nil && lines != 1 {
				err = fmt.Errorf("outside met %d backends:\n%s", lines, out)
			}
			return err
		})
	}
}

// SVC-3: with externalTrafficPolicy Local a node answers for its own backends only, shows them the client, and says so on its health port.
func TestSVC3_ExternalTrafficPolicyLocal(t *testing.T) {
	needServices(t)
	here := shared.nodes[len(shared.nodes)-1]
	label(t, here.server, "only", "local")
	t.Cleanup(func() { label(t, here.server, "only", "") })
	class := "strait.dev/none" // nobody gives it an address: only its ports are wanted
	s := create(t, "local", func(s *corev1.ServiceSpec) {
		s.Type, s.LoadBalancerClass, s.Selector = corev1.ServiceTypeLoadBalancer, &class, map[string]string{"only": "local"}
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	for _, n := range shared.nodes {
		status := map[bool]string{true: "200", false: "503"}[n.name == here.name]
		for _, client := range topology.Hosts(shared.spec().OutsideAddrs()) {
			a := same(n.addrs, client)
			health := netip.AddrPortFrom(a, uint16(s.Spec.HealthCheckNodePort)).String()
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				out, _ := shared.onMachine(ctx, outside, "curl -sS -o /dev/null -w '%{http_code}' --max-time 3 http://"+health+"/ || true")
				if out != status {
					return fmt.Errorf("health port %s answers %q, want %s", health, out, status)
				}
				return nil
			})
			if n.name != here.name {
				out, _ := shared.onMachine(t.Context(), outside, "curl -sS --max-time 1 http://"+nodePort(s, 0, a)+"/hostname 2>&1; echo status $?")
				if !strings.Contains(out, "status 28") { // no answer in time
					t.Errorf("%s has no backend, but %s says %q, want silence", n.name, a, out)
				}
				continue
			}
			out, err := shared.onMachine(t.Context(), outside, "curl -sS --max-time 5 http://"+nodePort(s, 0, a)+"/clientip")
			if got := seen(t, out, err); got != client {
				t.Errorf("the server sees %s, want %s", got, client)
			}
		}
	}
}

// SVC-1: nobody behind a node port means a refusal for those outside, too.
func TestSVC1_NoBackendFromOutside(t *testing.T) {
	needServices(t)
	s := create(t, "nobody", func(s *corev1.ServiceSpec) { s.Selector = map[string]string{"app": "nobody"} })
	for _, a := range shared.nodes[0].addrs {
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			out, _ := shared.onMachine(ctx, outside, "curl -sS --max-time 3 http://"+nodePort(s, 0, a)+"/ 2>&1; echo status $?")
			if !strings.Contains(out, "status 7") {
				return fmt.Errorf("curl to %s says %q", a, out)
			}
			return nil
		})
	}
}

// NET-7: a host port leads to its pod, from outside, from other nodes and from pods.
func TestNET7_HostPort(t *testing.T) {
	needServices(t)
	n := shared.nodes[0]
	p := pod("hostport", n.name, "netexec", "--http-port=8080")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 18090}}
	if err := shared.create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shared.remove(t, p.Name) })
	shared.wait(t, p.Name)
	for _, a := range n.addrs {
		script := fmt.Sprintf("curl -sS --max-time 5 http://%s/hostname", netip.AddrPortFrom(a, 18090))
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			out, err := shared.onMachine(ctx, outside, script)
			if err == nil && out != p.Name {
				err = fmt.Errorf("outside hears %q", out)
			}
			return err
		})
		for _, from := range shared.nodes {
			if out, err := shared.onMachine(t.Context(), from.name, script); err != nil || out != p.Name {
				t.Errorf("%s hears %q %v", from.name, out, err)
			}
			if out, err := shared.inPod(t.Context(), shared.namespace, from.server, script); err != nil || out != p.Name {
				t.Errorf("%s hears %q %v", from.server, out, err)
			}
		}
	}
}
