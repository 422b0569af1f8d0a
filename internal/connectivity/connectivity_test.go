package connectivity

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/echo"
	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/localapi"
)

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string // names, or part of the error
	}{
		{nil, strings.Join(names(Scenarios()), " ")},
		{[]string{"pod-to-a"}, "pod-to-a"}, // a whole name is not taken for an expression
		{[]string{"^pod-to-a"}, "pod-to-a pod-to-a-denied-cnp pod-to-a-allowed-cnp"},
		{[]string{"headless", "pod-to-external"}, "pod-to-external pod-to-b-intra-node-headless pod-to-b-multi-node-headless host-to-b-multi-node-headless"},
		{[]string{"pod-to-c"}, `"pod-to-c" finds no scenario; there are: pod-to-a, `},
		{[]string{"("}, `"(" is neither a scenario nor a regular expression: `},
	} {
		got, err := Select(c.words)
		text := strings.Join(names(got), " ")
		if err != nil {
			text = err.Error()
		}
		if text != c.want && (err == nil || !strings.Contains(text, c.want)) {
			t.Errorf("%q: %s\nwant %s", c.words, text, c.want)
		}
	}
}

// CLI-3 names them.
func TestEveryScenarioOfTheContract(t *testing.T) {
	want := "pod-to-a pod-to-external pod-to-a-denied-cnp pod-to-a-allowed-cnp pod-to-external-fqdn-allow-cnp"
	for _, place := range []string{"intra", "multi"} {
		for _, way := range []string{"clusterip", "headless", "nodeport"} {
			want += " pod-to-b-" + place + "-node-" + way
		}
	}
	want += " host-to-b-multi-node-clusterip host-to-b-multi-node-headless"
	if diff := cmp.Diff(strings.Fields(want), names(Scenarios())); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsLacking(t *testing.T) {
	outside, _ := ParseExternal("example.org")
	byAddress, _ := ParseExternal("https://192.0.2.7/x")
	for _, c := range []struct {
		scenario string
		nodes    int
		external *url.URL
		want     string
	}{
		{"pod-to-a", 1, nil, ""},
		{"pod-to-b-multi-node-headless", 1, nil, "two nodes"},
		{"pod-to-b-multi-node-headless", 2, nil, ""},
		{"pod-to-external", 2, nil, "--external"},
		{"pod-to-external", 1, byAddress, ""},
		{"pod-to-external-fqdn-allow-cnp", 1, byAddress, "192.0.2.7 is an address"},
		{"pod-to-external-fqdn-allow-cnp", 1, outside, ""},
	} {
		s, err := Select([]string{c.scenario})
		if err != nil {
			t.Fatal(err)
		}
		if got := s[0].lacks(c.nodes, c.external); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s with %d nodes: %q, want %q", c.scenario, c.nodes, got, c.want)
		}
	}
	for _, wrong := range []string{"", "ftp://a", "http://", "://", "http://a b", "//x"} {
		if u, err := ParseExternal(wrong); err == nil {
			t.Errorf("%q: %v", wrong, u)
		}
	}
}

// cluster is a real API server; what is written there by a kubelet and by the controllers of deployments, the test writes.
type cluster struct {
	*testing.T
	server *kubetest.Server
	kube   kubernetes.Interface

	mu      sync.Mutex
	wrong   map[string]echo.Answer // by URL: answered in place of what is right
	asked   map[string]int         // by workload
	counts  uint64                 // packets of every policy
	waiting *corev1.ContainerStateWaiting
}

const stranger = "stranger-token"

func newCluster(t *testing.T) *cluster {
	c := &cluster{T: t, server: kubetest.Start(t, map[string]string{stranger: "stranger"}), asked: map[string]int{}}
	config := c.server.Config(kubetest.AdminToken)
	config.QPS, config.Burst = 500, 1000
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c.kube = kube
	crd, err := os.ReadFile("../../deploy/helm/strait/files/crds/cilium.io_ciliumnetworkpolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := kube.CoreV1().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		SetHeader("Content-Type", "application/yaml").Body(crd).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if name == "n2" {
			n.Spec.Taints = []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}}
		}
		made, err := kube.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Spec.Taints = n.Spec.Taints // the server adds that it is not ready
		if made, err = kube.CoreV1().Nodes().Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		if _, err := kube.CoreV1().Nodes().UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	labels := map[string]string{"app": "agent"}
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: agentSet, Namespace: "kube-system"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: agentContainer, Image: "registry.example/strait:1"}}}},
	}}
	if _, err := kube.AppsV1().DaemonSets("kube-system").Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.work(t.Context())
	return c
}

// work makes pods of deployments ready and finishes namespaces that are deleted, until ctx ends.
func (c *cluster) work(ctx context.Context) {
	var working sync.WaitGroup
	working.Go(func() {
		for ctx.Err() == nil {
			if err := c.round(ctx); err != nil && ctx.Err() == nil {
				c.Logf("the cluster's work: %v", err) // an object changed in between; the next round
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	c.Cleanup(working.Wait)
}

func (c *cluster) round(ctx context.Context) error {
	spaces, err := c.kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: runLabel})
	if err != nil {
		return err
	}
	for i := range spaces.Items {
		n := &spaces.Items[i]
		if n.DeletionTimestamp != nil {
			grace := int64(0)
			now := metav1.DeleteOptions{GracePeriodSeconds: &grace}
			if err := c.kube.CoreV1().Pods(n.Name).DeleteCollection(ctx, now, metav1.ListOptions{}); err != nil {
				return err
			}
			if err := c.kube.AppsV1().Deployments(n.Name).DeleteCollection(ctx, now, metav1.ListOptions{}); err != nil {
				return err
			}
			services, err := c.kube.CoreV1().Services(n.Name).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, s := range services.Items {
				if err := c.kube.CoreV1().Services(n.Name).Delete(ctx, s.Name, now); err != nil {
					return err
				}
			}
			if err := c.kube.CoreV1().RESTClient().Delete().AbsPath("/apis/cilium.io/v2/namespaces/" + n.Name + "/ciliumnetworkpolicies").Do(ctx).Error(); err != nil {
				return err
			}
			n.Spec.Finalizers = nil
			if _, err := c.kube.CoreV1().Namespaces().Finalize(ctx, n, metav1.UpdateOptions{}); err != nil {
				return err
			}
			continue
		}
		if err := c.start(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) start(ctx context.Context, namespace string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	_, _ = c.kube.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	deployments, err := c.kube.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i, d := range deployments.Items {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: d.Name + "-x", Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
		p.Spec.NodeName = nodeOf(d)
		made, err := c.kube.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
		if err != nil {
			continue // there
		}
		made.Status = corev1.PodStatus{
			Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", i+1)}}, PodIP: fmt.Sprintf("10.244.0.%d", i+1),
			HostIPs:    []corev1.HostIP{{IP: "192.0.2." + strings.TrimPrefix(p.Spec.NodeName, "n")}},
			HostIP:     "192.0.2." + strings.TrimPrefix(p.Spec.NodeName, "n"),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		}
		if p.Spec.HostNetwork {
			made.Status.PodIPs = []corev1.PodIP{{IP: made.Status.HostIP}}
			made.Status.PodIP = made.Status.HostIP
		}
		c.mu.Lock()
		if c.waiting != nil {
			made.Status.Conditions[0].Status = corev1.ConditionFalse
			made.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Waiting: c.waiting}}}
		}
		c.mu.Unlock()
		if _, err := c.kube.CoreV1().Pods(namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func nodeOf(d appsv1.Deployment) string {
	return d.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
}

// config is a test of the cluster; what strait ask would print comes from answer.
func (c *cluster) config(only ...string) Config {
	scenarios, err := Select(only)
	if err != nil {
		c.Fatal(err)
	}
	return Config{
		API: c.server.Config(kubetest.AdminToken), Namespace: "strait-test", AgentNamespace: "kube-system", Agents: []string{"n1", "n2", "n3"},
		Scenarios: scenarios, Wait: 20 * time.Second, Timeout: 2 * time.Second,
		Exec: c.exec,
		Policy: func(_ context.Context, node, name string) (localapi.PolicyDetail, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			d := localapi.PolicyDetail{Node: node, Selected: []localapi.SelectedPod{{Pod: "strait-test/" + name + "-x"}}}
			d.State, d.Allowed.Packets, d.Denied.Packets = localapi.PolicyEnforced, c.counts, c.counts
			if name == clientFQDN {
				d.State, d.Error = localapi.PolicyRefused, "spec.egress[1].toFQDNs: is not supported yet"
			}
			return d, nil
		},
		Diagnose: func(_ context.Context, p Path) []string {
			return []string{fmt.Sprintf("%s on %s to %s on %s:%d/%s, asked as %s", p.Client, p.ClientNode, p.Server, p.ServerNode, p.Port, p.Protocol, p.Address)}
		},
		Closed: func(context.Context, string) (bool, error) { return false, nil },
		Say:    func(line string) { c.Log(line) },
		Done:   func(int, Result) {},
	}
}

// exec answers as the pods would, but for what is said to be wrong.
func (c *cluster) exec(ctx context.Context, pod, in string, command []string) (stdout, stderr []byte, err error) {
	if !slices.Equal(command[:3], []string{"strait", "ask", "--output=json"}) || in != container {
		return nil, nil, fmt.Errorf("exec of %q in %s", command, in)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[pod]++
	c.counts++
	self, err := c.kube.CoreV1().Pods("strait-test").Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	from := netip.AddrPortFrom(netip.MustParseAddr(self.Status.PodIP), 4711)
	service, err := c.kube.CoreV1().Services("strait-test").Get(ctx, echoA, metav1.GetOptions{})
	if err != nil {
		service = &corev1.Service{} // not every test has it
	}
	var out []echo.Answer
	for _, u := range command[4:] {
		parsed, err := url.Parse(u)
		if err != nil {
			return nil, nil, err
		}
		ips := []string{parsed.Hostname()}
		if _, err := netip.ParseAddr(ips[0]); err != nil {
			if ips, err = c.lookup(ctx, ips[0]); err != nil {
				return nil, nil, err
			}
		}
		for _, ip := range ips {
			a := echo.Answer{URL: u, Reply: &echo.Reply{Pod: echoB + "-x", From: from}}
			if slices.Contains(service.Spec.ClusterIPs, ip) {
				a.Reply.Pod = echoA + "-x"
			}
			if strings.HasPrefix(pod, clientDenied) {
				a.Reply, a.Silent, a.Error, a.Step = nil, true, "nothing came", echo.Connect
			}
			if w, ok := c.wrong[u]; ok {
				a = w
				a.URL = u
			}
			if a.Step != echo.Resolve {
				a.Address = netip.AddrPortFrom(netip.MustParseAddr(ip), 1)
			}
			out = append(out, a)
		}
	}
	stdout, err = json.Marshal(out)
	return stdout, nil, errors.Join(err, errors.New("exit code 1"))
}

// lookup returns IPv4 first, as the order of addresses is.
func (c *cluster) lookup(ctx context.Context, name string) ([]string, error) {
	s, err := c.kube.CoreV1().Services("strait-test").Get(ctx, name, metav1.GetOptions{})
	if err != nil || s.Spec.ClusterIP != corev1.ClusterIPNone {
		return s.Spec.ClusterIPs, err
	}
	p, err := c.kube.CoreV1().Pods("strait-test").Get(ctx, s.Spec.Selector[nameLabel]+"-x", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return []string{p.Status.PodIP}, nil
}

func (c *cluster) leftover() string {
	n, err := c.kube.CoreV1().Namespaces().Get(context.Background(), "strait-test", metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return n.Labels[runLabel]
}

func outcomes(r Report) string {
	var out []string
	for _, s := range r.Results {
		out = append(out, fmt.Sprintf("%s %s %s", s.Outcome, s.Scenario, s.Why))
	}
	return strings.Join(out, "\n")
}

// One API server for all: it takes seconds to start.
func TestRun(t *testing.T) {
	c := newCluster(t)
	t.Run("all is well", func(t *testing.T) { testAllIsWell(t, c) })
	t.Run("what is wrong is found", func(t *testing.T) { testWrong(t, c) })
	t.Run("namespaces", func(t *testing.T) { testNamespaces(t, c) })
	t.Run("it cannot be run", func(t *testing.T) { testCannotRun(t, c) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, c) })
}

func testAllIsWell(t *testing.T, c *cluster) {
	config := c.config()
	var said []string
	config.Say = func(line string) { said = append(said, line) }
	report, err := Run(t.Context(), config)
	if len(said) == 0 || said[0] != "not tested: n2 has the taint dedicated" {
		t.Errorf("said was %q", said)
	}
	if err != nil || report.Count(Failed) > 0 || report.Count(Passed) != 11 || report.Count(Skipped) != 2 {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
	if report.Image != "registry.example/strait:1" || !slices.Equal(report.Nodes, []string{"n1", "n3"}) { // n2 bears a taint
		t.Errorf("image %s on %v", report.Image, report.Nodes)
	}
	if left := c.leftover(); left != "" {
		t.Errorf("the namespace is still there, and is %s", left)
	}
	config.External, _ = ParseExternal("example.org")
	config.Scenarios = config.Scenarios[4:5]
	report, err = Run(t.Context(), config)
	if want := "skipped pod-to-external-fqdn-allow-cnp the policy is refused: spec.egress[1].toFQDNs: is not supported yet"; err != nil || outcomes(report) != want {
		t.Errorf("%v\n%s\nwant %s", err, outcomes(report), want)
	}
	config.Nodes = []string{"n3"}
	config.Scenarios, _ = Select([]string{"pod-to-b-(intra|multi)-node-clusterip"})
	report, err = Run(t.Context(), config)
	if err != nil || report.Count(Passed) != 1 || report.Count(Skipped) != 1 || !slices.Equal(report.Nodes, []string{"n3"}) {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
}

func testWrong(t *testing.T, c *cluster) {
	right := netip.MustParseAddrPort("203.0.113.1:1")
	for _, w := range []struct {
		name, scenario, url string
		answer              echo.Answer
		want                string
	}{
		{"nobody answers", "pod-to-a", "http://echo-a:8080/", echo.Answer{Error: "nothing came", Silent: true, Step: echo.Connect, Took: 3 * time.Second}, "does not answer: nothing came within 3s (2 of 4 answers are right)"},
		{"no name", "pod-to-a", "udp://echo-a:8081/", echo.Answer{Error: "the name echo-a does not exist", Step: echo.Resolve}, "udp://echo-a:8081/: the name echo-a does not exist"},
		{"another pod", "pod-to-b-intra-node-clusterip", "http://echo-b:8080/", echo.Answer{Reply: &echo.Reply{Pod: "echo-z", From: right}}, "is answered by echo-z, want echo-b-x"},
		{"somebody else", "pod-to-b-intra-node-clusterip", "http://echo-b:8080/", echo.Answer{Status: 200, Text: "nginx"}, `is answered by somebody else: "nginx"`},
		{"translated", "pod-to-b-intra-node-clusterip", "http://echo-b:8080/", echo.Answer{Reply: &echo.Reply{Pod: "echo-b-x", From: right}}, "the server sees 203.0.113.1, want the client's own address, 10.244.0."},
		{"status", "pod-to-b-intra-node-clusterip", "http://echo-b:8080/", echo.Answer{Status: 503, Reply: &echo.Reply{Pod: "echo-b-x", From: right}}, "answers 503"},
	} {
		t.Run(w.name, func(t *testing.T) {
			c.mu.Lock()
			c.wrong = map[string]echo.Answer{w.url: w.answer}
			c.mu.Unlock()
			defer func() { c.wrong = nil }()
			config := c.config(w.scenario)
			config.Timeout = 300 * time.Millisecond
			report, err := Run(t.Context(), config)
			if err != nil || report.Count(Failed) != 1 || !strings.Contains(report.Results[0].Why, w.want) {
				t.Fatalf("%v\n%s\nwant %s", err, outcomes(report), w.want)
			}
			// The last attempt is cut short by the time that is over; what is diagnosed is the path that was found wrong before.
			found := strings.Join(report.Results[0].Findings, "")
			if address := strings.Contains(found, ", asked as 10.96."); !strings.HasPrefix(found, "client-1-x on n1 to echo-") || address == (w.answer.Step == echo.Resolve) {
				t.Errorf("diagnosed was %q", found)
			}
			var text bytes.Buffer
			if err := report.WriteJUnit(&text); err != nil {
				t.Fatal(err)
			}
			var suites junitSuites
			if err := xml.Unmarshal(text.Bytes(), &suites); err != nil || suites.Suite.Failures != 1 || suites.Suite.Cases[0].Failure.Message != report.Results[0].Why {
				t.Errorf("%v in %s", err, text.String())
			}
		})
	}
	testPatience(t, c)
	testDenial(t, c)
	testClosed(t, c)
}

// Names and services need a moment until they are known everywhere: that is no failure, and is told.
func testPatience(t *testing.T, c *cluster) {
	config := c.config("pod-to-a")
	config.Timeout = 20 * time.Second
	exec, asked := config.Exec, 0
	config.Exec = func(ctx context.Context, pod, in string, command []string) ([]byte, []byte, error) {
		if asked++; asked == 1 {
			return []byte(`[{"url":"http://echo-a:8080/","step":"resolve","error":"the name echo-a does not exist"}]`), nil, nil
		}
		return exec(ctx, pod, in, command)
	}
	report, err := Run(t.Context(), config)
	if err != nil || outcomes(report) != "passed pod-to-a at attempt 2" {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
}

// Silence alone is no denial, and an answer is none at all.
func testDenial(t *testing.T, c *cluster) {
	config := c.config(clientDenied, clientAllowed)
	policy := config.Policy
	config.Policy = func(ctx context.Context, node, name string) (localapi.PolicyDetail, error) {
		d, err := policy(ctx, node, name)
		d.Allowed.Packets, d.Denied.Packets = 7, 7
		return d, err
	}
	report, err := Run(t.Context(), config)
	want := "failed pod-to-a-denied-cnp nothing came back, but it was not the policy: wait for the policy to have counted it: CiliumNetworkPolicy pod-to-a-denied-cnp has denied 7 packets, as many as before\n" +
		"failed pod-to-a-allowed-cnp it passed, but not by the policy: wait for the policy to have counted it: CiliumNetworkPolicy pod-to-a-allowed-cnp has allowed 7 packets, as many as before"
	if err != nil || outcomes(report) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, outcomes(report), want)
	}

	config = c.config(clientDenied)
	exec := config.Exec
	config.Exec = func(ctx context.Context, pod, in string, command []string) ([]byte, []byte, error) {
		out, errout, err := exec(ctx, pod, in, command)
		return bytes.ReplaceAll(out, []byte(`"silent":true`), []byte(`"silent":false`)), errout, err
	}
	report, err = Run(t.Context(), config)
	if err != nil || report.Count(Failed) != 1 || !strings.Contains(outcomes(report), "the policy does not allow it, but") {
		t.Errorf("%v\n%s", err, outcomes(report))
	}

	config.Policy = func(context.Context, string, string) (localapi.PolicyDetail, error) {
		return localapi.PolicyDetail{Policy: localapi.Policy{State: localapi.PolicyRefused, Error: "spec.egress: no"}}, nil
	}
	if report, err = Run(t.Context(), config); err != nil || outcomes(report) != "failed pod-to-a-denied-cnp the policy is refused: spec.egress: no" {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
	config.Policy = func(context.Context, string, string) (localapi.PolicyDetail, error) {
		return localapi.PolicyDetail{Policy: localapi.Policy{State: localapi.PolicyAudited}}, nil
	}
	if report, err = Run(t.Context(), config); err != nil || outcomes(report) != "skipped pod-to-a-denied-cnp policies are only audited here" {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
}

// Where what no policy allows is denied, a policy is made for the pods that no scenario's policy is about, and a person is told.
func testClosed(t *testing.T, c *cluster) {
	config := c.config("pod-to-a", clientDenied)
	config.Keep = true
	config.Closed = func(_ context.Context, node string) (bool, error) { return node == "n3", nil } // one that is upgraded already
	said := ""
	config.Say = func(line string) { said += line + "\n" }
	report, err := Run(t.Context(), config)
	if err != nil || report.Count(Passed) != 2 || !strings.Contains(said, "NetworkPolicy "+restPolicy+" is made for the test's pods; name servers need a policy of their own") {
		t.Errorf("%v\n%s\n%s", err, outcomes(report), said)
	}
	policies, err := c.kube.NetworkingV1().NetworkPolicies("strait-test").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(policies.Items) != 1 {
		t.Fatalf("policies: %v, %v", policies, err)
	}
	spec := policies.Items[0].Spec
	selector, err := metav1.LabelSelectorAsSelector(&spec.PodSelector)
	if err != nil || len(spec.Ingress) != 1 || len(spec.Egress) != 1 || len(spec.PolicyTypes) != 2 {
		t.Fatalf("%v: %+v", err, spec)
	}
	for name, want := range map[string]bool{echoA: true, client1: true, clientDenied: false, clientAllowed: false, clientFQDN: false} {
		if got := selector.Matches(labels.Set{nameLabel: name}); got != want {
			t.Errorf("the policy selects %s: %t", name, got)
		}
	}
	config.Closed = func(context.Context, string) (bool, error) { return false, errors.New("no answer from agent-x in 10s") }
	if _, err := Run(t.Context(), config); err == nil || err.Error() != "ask the agent of n1: no answer from agent-x in 10s" {
		t.Errorf("an agent that does not answer: %v", err)
	}
}

func testNamespaces(t *testing.T, c *cluster) {
	spaces := c.kube.CoreV1().Namespaces()
	config := c.config("pod-to-a")
	config.Keep = true
	for range 2 { // the second removes what the first has kept
		if report, err := Run(t.Context(), config); err != nil || report.Count(Passed) != 1 {
			t.Fatalf("%v\n%s", err, outcomes(report))
		}
		if left := c.leftover(); left != runKept {
			t.Errorf("the namespace is %q, want it kept", left)
		}
	}
	config.Keep = false
	if _, err := Run(t.Context(), config); err != nil || c.leftover() != "" {
		t.Errorf("%v, left is %q", err, c.leftover())
	}

	running := (plan{namespace: "strait-test"}).namespaceObject()
	if _, err := spaces.Create(t.Context(), running, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "has not ended") || !strings.Contains(err.Error(), "kubectl delete namespace strait-test") {
		t.Errorf("%v", err)
	}
	if c.leftover() != runOn {
		t.Error("a test that runs was removed")
	}
	if err := spaces.Delete(t.Context(), "strait-test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), config); err != nil { // waits until it is gone
		t.Error(err)
	}

	config.Namespace = "kube-system"
	if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "namespace kube-system exists and is not of this test") {
		t.Errorf("%v", err)
	}
	if n, err := spaces.Get(t.Context(), "kube-system", metav1.GetOptions{}); err != nil || n.DeletionTimestamp != nil {
		t.Errorf("somebody's namespace was touched: %+v, %v", n, err)
	}
}

func testCannotRun(t *testing.T, c *cluster) {
	for _, w := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no permission", func(config *Config) { config.API = c.server.Config(stranger) }, "use a kubeconfig of somebody who may"},
		{"no agent's image", func(config *Config) { config.AgentNamespace = "default" }, "there is no DaemonSet strait-agent in namespace default"},
		{"no such node", func(config *Config) { config.Nodes = []string{"n2"} }, `node "n2" cannot be tested; those that can: n1, n3`},
		{"no agent", func(config *Config) { config.Agents = nil }, "no node can be tested: n1 has no running strait-agent, n2 has the taint dedicated, n3 has no running"},
		{"no image", func(config *Config) {
			c.waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "not found"}
		}, "node n1 does not get the image registry.example/strait:1 (ImagePullBackOff: not found): name one that it gets with --image"},
		{"another image", func(config *Config) {
			config.Image = "nginx"
			c.waiting = &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: `exec: "strait": not found`}
		}, "strait echo of the image nginx does not run on node n1"},
		{"too slow", func(config *Config) {
			config.Wait = 2 * time.Second
			c.waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
		}, "wait for the pods in namespace strait-test: echo-a: echo-a-x is running, ContainerCreating"},
	} {
		t.Run(w.name, func(t *testing.T) {
			config := c.config("pod-to-a")
			config.Nodes = []string{"n1"}
			c.mu.Lock()
			w.change(&config)
			c.mu.Unlock()
			report, err := Run(t.Context(), config)
			c.mu.Lock()
			c.waiting = nil
			c.mu.Unlock()
			if err == nil || !strings.Contains(err.Error(), w.want) || len(report.Results) > 0 {
				t.Errorf("%v\n%s\nwant %s", err, outcomes(report), w.want)
			}
			if c.leftover() != "" {
				t.Error("the namespace is still there")
			}
		})
	}
}

func testInterrupted(t *testing.T, c *cluster) {
	ctx, cancel := context.WithCancel(t.Context())
	config := c.config("pod-to-a", "pod-to-b-intra-node-clusterip")
	config.Done = func(int, Result) { cancel() }
	report, err := Run(ctx, config)
	if !errors.Is(err, context.Canceled) || len(report.Results) != 1 || report.Results[0].Outcome != Passed {
		t.Errorf("%v\n%s", err, outcomes(report))
	}
	if c.leftover() != "" {
		t.Error("the namespace is still there")
	}
}
