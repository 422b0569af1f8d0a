package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/dynamic"
)

const postgresPort = 5432

// postgresPolicy is the manifest of the worked example, as users of Cilium have it.
const postgresPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: postgres
spec:
  description: only the web application may ask the database
  endpointSelector:
    matchLabels:
      app: postgres
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: app
    toPorts:
    - ports:
      - port: "5432"
        protocol: TCP
`

const defaultDeny = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: default-deny
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
`

// stage is a namespace of its own with pods in it.
type stage struct {
	*testing.T
	namespace string
}

func newStage(t *testing.T, name string) *stage {
	t.Helper()
	needStrait(t)
	s := &stage{t, shared.namespace + "-" + name}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
	if _, err := shared.kube.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = shared.kube.CoreV1().Namespaces().Delete(context.Background(), s.namespace, metav1.DeleteOptions{})
	})
	return s
}

// start starts pods and waits until they are ready.
func (s *stage) start(pods ...*corev1.Pod) {
	s.Helper()
	for _, p := range pods {
		if err := shared.createIn(s.Context(), s.namespace, p); err != nil {
			s.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	if err := shared.waiter.WaitPods(ctx, s.namespace); err != nil {
		s.Fatal(err)
	}
}

// apply applies manifests into the namespace.
func (s *stage) apply(manifest string) {
	s.Helper()
	text := strings.ReplaceAll(manifest, "metadata:\n", "metadata:\n  namespace: "+s.namespace+"\n")
	if err := shared.waiter.Apply(s.Context(), []byte(text)); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) addresses(pod string) []netip.Addr {
	s.Helper()
	p, err := shared.kube.CoreV1().Pods(s.namespace).Get(s.Context(), pod, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		out = append(out, netip.MustParseAddr(ip.IP))
	}
	return out
}

func (s *stage) relabel(pod, app string) {
	s.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, app)
	if _, err := shared.kube.CoreV1().Pods(s.namespace).Patch(s.Context(), pod, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		s.Fatal(err)
	}
}

// Exit codes of curl.
const (
	reached  = "0"
	timedOut = "28"
)

// try connects from a pod and returns curl's exit code.
func (s *stage) try(ctx context.Context, from, to string) (string, error) {
	out, err := shared.inPod(ctx, s.namespace, from, "curl -s -o /dev/null --max-time 1 http://"+to+"/hostname; echo $?")
	return strings.TrimSpace(out), err
}

// expect waits until every target answers as wanted; the verdict of a change may take a moment, never longer than patience.
func (s *stage) expect(patience time.Duration, want, from string, targets ...string) {
	s.Helper()
	for _, to := range targets {
		eventually(s.T, patience, func(ctx context.Context) error {
			got, err := s.try(ctx, from, to)
			if err == nil && got != want {
				err = fmt.Errorf("from %s to %s: curl exits with %s, want %s", from, to, got, want)
			}
			return err
		})
	}
}

// always is expect of what must hold without any waiting.
func (s *stage) always(want, from string, targets ...string) {
	s.Helper()
	for _, to := range targets {
		if got, err := s.try(s.Context(), from, to); err != nil || got != want {
			s.Errorf("from %s to %s: curl exits with %s, want %s (%v)", from, to, got, want, err)
		}
	}
}

// propagation is more than any change of policy may take on a machine that is busy with other work.
const propagation = 5 * time.Second

// labelled is a server that the kubelet asks every second whether it is alive and ready.
func labelled(name, node, app string, port int) *corev1.Pod {
	p := pod(name, node, "netexec", fmt.Sprintf("--http-port=%d", port))
	p.Labels = map[string]string{"app": app}
	probe := &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/hostname", Port: intstr.FromInt(port)}},
		PeriodSeconds: 1, FailureThreshold: 3, TimeoutSeconds: 2,
	}
	p.Spec.Containers[0].LivenessProbe, p.Spec.Containers[0].ReadinessProbe = probe, probe
	return p
}

// POL-3, POL-5, OPS-2: the worked example. Only pods with the label app=app reach the database, on whichever node they are and however they name it;
// another pod times out, until its label says otherwise; the kubelet's probes pass; an agent's death changes nothing.
func TestPOL3_WebApplicationAndPostgres(t *testing.T) {
	s := newStage(t, "web")
	here, there := shared.nodes[0].name, shared.nodes[len(shared.nodes)-1].name
	s.start(labelled("postgres", here, "postgres", postgresPort), labelled("app-here", here, "app", 8080), labelled("app-there", there, "app", 8080),
		labelled("other-here", here, "other", 8080), labelled("other-there", there, "other", 8080))
	s.service("postgres", postgresPort)
	targets := []string{fmt.Sprintf("postgres:%d", postgresPort)}
	for _, a := range s.addresses("postgres") {
		targets = append(targets, netip.AddrPortFrom(a, postgresPort).String())
	}
	apps, others := []string{"app-here", "app-there"}, []string{"other-here", "other-there"}
	for _, from := range append(apps, others...) {
		s.expect(20*time.Second, reached, from, targets...) // the name has to reach the DNS server first
	}

	s.apply(postgresPolicy)
	for _, from := range others {
		s.expect(propagation, timedOut, from, targets...)
	}
	for _, from := range apps {
		s.always(reached, from, targets...)
	}

	t.Run("a label is given and taken", func(t *testing.T) {
		s := &stage{t, s.namespace}
		for _, from := range others {
			s.relabel(from, "app")
			s.expect(propagation, reached, from, targets...)
			broken := s.hold(from, targets[len(targets)-1], 12*time.Second)
			s.relabel(from, "other")
			s.expect(propagation, timedOut, from, targets...)
			if why := <-broken; why == "" { // POL-5
				t.Errorf("the connection that %s had survived the loss of its label", from)
			}
		}
	})
	t.Run("agents die", func(t *testing.T) { (&stage{t, s.namespace}).dieUnderPolicy(apps, others, targets) })
	s.healthy("postgres", "app-here", "app-there", "other-here", "other-there")
}

func (s *stage) service(app string, port int32) {
	s.Helper()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: app}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Port: port}},
	}}
	if _, err := shared.kube.CoreV1().Services(s.namespace).Create(s.Context(), service, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
}

// hold keeps one connection to a server and says in the end why it broke; empty: it did not.
func (s *stage) hold(from, to string, lasting time.Duration) <-chan string {
	s.Helper()
	broken := make(chan string, 1)
	go func() {
		out, err := shared.inPod(s.Context(), s.namespace, from, fmt.Sprintf("probe hold %s tcp:%s", lasting, to))
		var h struct {
			Exchanges int
			Broken    string
		}
		if err = errors.Join(err, json.Unmarshal([]byte(out), &h)); err != nil {
			s.Errorf("hold a connection from %s: %v", from, err)
		} else if h.Exchanges == 0 {
			s.Errorf("%s never had a connection to %s: %s", from, to, h.Broken)
		}
		broken <- h.Broken
	}()
	time.Sleep(time.Second) // the connection is there
	return broken
}

// dieUnderPolicy kills all agents twice while allowed and denied pods connect all the time: no verdict may differ, not for one attempt.
func (s *stage) dieUnderPolicy(apps, others, targets []string) {
	s.Helper()
	const attempts = 40
	script := "for i in $(seq %d); do curl -s -o /dev/null --max-time %s http://%s/hostname; echo $?; sleep 0.1; done | sort | uniq -c"
	results := make(chan string)
	tries := func(from, to, limit string, count int, want string) {
		out, err := shared.inPod(s.Context(), s.namespace, from, fmt.Sprintf(script, count, limit, to))
		fields := strings.Fields(out)
		if err == nil && len(fields) == 2 && fields[0] == fmt.Sprint(count) && fields[1] == want {
			results <- ""
			return
		}
		results <- fmt.Sprintf("%d connections from %s to %s while agents died: want all to end with %s, got %q %v", count, from, to, want, out, err)
	}
	running := 0
	for _, to := range targets[1:] {
		for i := range apps {
			go tries(apps[i], to, "5", 2*attempts, reached)
			go tries(others[i], to, "0.2", attempts, timedOut)
			running += 2
		}
	}
	for round := range 2 {
		time.Sleep(2 * time.Second)
		for _, n := range shared.nodes {
			if err := shared.killAgent(s.Context(), n.name); err != nil && round == 0 { // the kubelet may wait before it starts what died lately
				s.Error(err)
			}
		}
	}
	for range running {
		if trouble := <-results; trouble != "" {
			s.Error(trouble)
		}
	}
	settle(s.T)
}

// healthy: the kubelet has been content with the pods from the first moment on.
func (s *stage) healthy(names ...string) {
	s.Helper()
	for _, name := range names {
		p, err := shared.kube.CoreV1().Pods(s.namespace).Get(s.Context(), name, metav1.GetOptions{})
		if err != nil {
			s.Fatal(err)
		}
		if c := p.Status.ContainerStatuses[0]; c.RestartCount > 0 || !c.Ready {
			s.Errorf("%s was restarted %d times and is ready: %t; %s", name, c.RestartCount, c.Ready, shared.events(s.Context(), name))
		}
	}
}

// POL-1, CNI-3: a namespace in which everything is denied. The kubelet's probes pass, pods that start in it become ready and are cut off at once, and
// when the policy goes all is as before.
func TestPOL1_DefaultDeny(t *testing.T) {
	s := newStage(t, "deny")
	here, there := shared.nodes[0].name, shared.nodes[len(shared.nodes)-1].name
	s.start(labelled("a", here, "a", 8080), labelled("b", there, "b", 8080))
	s.apply(defaultDeny)
	towards := func(pod string) (out []string) {
		for _, a := range s.addresses(pod) {
			out = append(out, netip.AddrPortFrom(a, 8080).String())
		}
		return out
	}
	s.expect(propagation, timedOut, "a", towards("b")...)
	s.expect(propagation, timedOut, "b", towards("a")...)
	s.always(reached, "a", towards("a")...) // a pod reaches itself

	s.start(labelled("late", there, "late", 8080))
	s.always(timedOut, "late", append(towards("a"), towards("b")...)...)
	s.always(timedOut, "b", towards("late")...)
	time.Sleep(4 * time.Second) // more than the failures the kubelet would forgive
	s.healthy("a", "b", "late")

	if err := shared.kube.NetworkingV1().NetworkPolicies(s.namespace).Delete(t.Context(), "default-deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.expect(propagation, reached, "a", towards("b")...)
	s.expect(propagation, reached, "late", towards("a")...)
}

// POL-3, POL-8: what cannot be enforced is refused whole, and the object says which field it was; what can be says so, too.
func TestPOL8_ConditionsOfPolicies(t *testing.T) {
	s := newStage(t, "status")
	s.apply(postgresPolicy)
	s.apply(strings.NewReplacer("name: postgres", "name: kafka", "        protocol: TCP\n",
		"        protocol: TCP\n      rules:\n        kafka:\n        - role: produce\n").Replace(postgresPolicy))
	dyn, err := dynamic.NewForConfig(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	policies := dyn.Resource(schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumnetworkpolicies"}).Namespace(s.namespace)
	for name, want := range map[string]struct{ status, message string }{"postgres": {"True", ""}, "kafka": {"False", "kafka"}} {
		eventually(t, 20*time.Second, func(ctx context.Context) error {
			o, err := policies.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
			if err != nil {
				return err
			}
			for _, c := range conditions {
				c, ok := c.(map[string]any)
				if ok && c["type"] == "Valid" && c["status"] == want.status && strings.Contains(fmt.Sprint(c["message"]), want.message) {
					return nil
				}
			}
			return fmt.Errorf("conditions of %s are %v; want Valid=%s naming %q", name, conditions, want.status, want.message)
		})
	}
}
