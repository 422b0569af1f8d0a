package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

const (
	system      = "kube-system" // where Strait is installed
	observerAt  = "unix:///run/strait/hubble.sock"
	relayLocal  = 4245
	relayName   = "relay.strait.dev"
	clientFiles = "strait-hubble-client" // Secret
)

// client returns the program of a client that was made by others, as it is.
func (r *rig) client(t *testing.T, name string) string {
	t.Helper()
	out, err := r.run(t.Context(), "client", "--where", name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// asker asks with one program in one way, by flags that come last; what it prints besides the answer is in the error only.
type asker func(ctx context.Context, args ...string) (string, error)

// onNode asks from within a node, where its socket is.
func (r *rig) onNode(node, program string, always ...string) asker {
	return func(ctx context.Context, args ...string) (string, error) {
		return r.run(ctx, slices.Concat([]string{"shell", node, "--", program}, args, always)...)
	}
}

// here asks from this machine, which reaches the cluster by its API server only.
func here(program string, always ...string) asker {
	return func(ctx context.Context, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, slices.Concat(args, always)...)
		var out, trouble bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &trouble
		if err := cmd.Run(); err != nil {
			return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, trouble.String())
		}
		return out.String(), nil
	}
}

// forward forwards a port of this machine to one of a pod, as kubectl port-forward does, until the test ends.
func (r *rig) forward(t *testing.T, namespace, pod string, port int) netip.AddrPort {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(r.config)
	if err != nil {
		t.Fatal(err)
	}
	url := r.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stop, ready := make(chan struct{}), make(chan struct{})
	forward, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- forward.ForwardPorts() }()
	t.Cleanup(func() { close(stop) })
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	}
	ports, err := forward.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ports[0].Local)
}

func needRelay(t *testing.T) {
	t.Helper()
	needStrait(t)
	if len(shared.nodes) < 2 {
		t.Skip("needs flows of two nodes")
	}
}

// relayPod is the pod of a relay that is ready.
func (r *rig) relayPod(t *testing.T) corev1.Pod {
	t.Helper()
	var found corev1.Pod
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		pods, err := r.kube.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=strait-relay"})
		if err != nil {
			return err
		}
		for _, found = range pods.Items {
			if found.DeletionTimestamp == nil && slices.ContainsFunc(found.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}) {
				return nil
			}
		}
		return fmt.Errorf("no relay of %d is ready", len(pods.Items))
	})
	return found
}

// allConnected waits until the relay asks every node: after an installation the kubelets take a while to give agents their certificates.
func allConnected(t *testing.T, hubble asker) {
	t.Helper()
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		states, err := nodeStates(ctx, hubble)
		if err != nil {
			return err
		}
		for _, n := range shared.nodes {
			if states[n.name] != "NODE_CONNECTED" {
				return fmt.Errorf("%s is %q: %v", n.name, states[n.name], states)
			}
		}
		return nil
	})
}

// nodeStates is what hubble list nodes says, by the name of the node without the cluster's.
func nodeStates(ctx context.Context, hubble asker) (map[string]string, error) {
	out, err := hubble(ctx, "list", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var nodes []struct{ Name, State string }
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return nil, fmt.Errorf("%w in %s", err, out)
	}
	states := map[string]string{}
	for _, n := range nodes {
		states[withoutCluster(n.Name)] = n.State
	}
	return states, nil
}

func withoutCluster(node string) string { return node[strings.LastIndexByte(node, '/')+1:] }

// seenFlow is what is looked at of a line of hubble observe -o jsonpb.
type seenFlow struct {
	Time             time.Time
	UUID             string
	Verdict          string
	NodeName         string             `json:"node_name"`
	Reason           string             `json:"drop_reason_desc"`
	Direction        string             `json:"traffic_direction"`
	Source           seenEnd            `json:"source"`
	Destination      seenEnd            `json:"destination"`
	Service          seenRef            `json:"destination_service"`
	EventType        struct{ Type int } `json:"event_type"`
	L4               struct{ TCP seenPorts }
	EgressAllowedBy  []seenRef `json:"egress_allowed_by"`
	IngressAllowedBy []seenRef `json:"ingress_allowed_by"`
	IngressDeniedBy  []seenRef `json:"ingress_denied_by"`
	Summary          string
}

type seenEnd struct {
	Namespace string
	Pod       string `json:"pod_name"`
	Labels    []string
}

type seenPorts struct {
	From int `json:"source_port"`
	To   int `json:"destination_port"`
}

type seenRef struct{ Kind, Namespace, Name string }

// answer is a flow, or what became of nodes.
type answer struct {
	Flow       *seenFlow
	NodeStatus *struct {
		State   string   `json:"state_change"`
		Nodes   []string `json:"node_names"`
		Message string
	} `json:"node_status"`
}

func readFlows(out string) ([]seenFlow, error) {
	var flows []seenFlow
	for text := range strings.Lines(out) {
		var a answer
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			return nil, fmt.Errorf("%w in %s", err, text)
		}
		if a.Flow != nil {
			flows = append(flows, *a.Flow)
		}
	}
	return flows, nil
}

// shop is a namespace with flows that are known: web asks the database by its service, which policies on both sides allow, and curl asks it by its
// address, which none does.
type shop struct {
	*stage
	node, other string // of the database and of curl; of web
	database    netip.Addr
}

const shopPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
`

func openShop(t *testing.T, name string) *shop {
	t.Helper()
	s := &shop{stage: newStage(t, name), other: shared.nodes[0].name, node: shared.nodes[len(shared.nodes)-1].name}
	var pods []*corev1.Pod
	for app, node := range map[string]string{"web": s.other, "db": s.node, "curl": s.node} {
		p := pod(app, node, "netexec", fmt.Sprintf("--http-port=%d", postgresPort))
		p.Labels = map[string]string{"app": app}
		pods = append(pods, p)
	}
	s.start(pods...)
	s.service("db", postgresPort)
	s.database = s.addresses("db")[0]
	s.apply(shopPolicies)
	s.expect(propagation, timedOut, "curl", s.target())
	s.expect(20*time.Second, reached, "web", s.byService())
	return s
}

// target is the database by its address, byService by that of its service.
func (s *shop) target() string { return netip.AddrPortFrom(s.database, postgresPort).String() }

func (s *shop) byService() string {
	s.Helper()
	service, err := shared.kube.CoreV1().Services(s.namespace).Get(s.Context(), "db", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), postgresPort).String()
}

// trade makes the flows once more.
func (s *shop) trade(ctx context.Context) error {
	if got, err := s.try(ctx, "web", s.byService()); err != nil || got != reached {
		return fmt.Errorf("web asks the database: curl exits with %s: %w", got, err)
	}
	if got, err := s.try(ctx, "curl", s.target()); err != nil || got != timedOut {
		return fmt.Errorf("curl asks the database: curl exits with %s: %w", got, err)
	}
	return nil
}

// follower reads the answers of a client that follows, as they come.
type follower struct {
	mu      sync.Mutex
	answers []answer // guarded by mu
	said    []string // guarded by mu: what was no answer
}

// follow starts a client on this machine; it is ended with the test.
func follow(t *testing.T, program string, env []string, args ...string) *follower {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	f := &follower{}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write // hubble tells of nodes on the second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.read(read)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-ended
		if f.mu.Lock(); t.Failed() {
			t.Logf("%s %s said:\n%s", filepath.Base(program), strings.Join(args, " "), strings.Join(f.said, "\n"))
		}
		f.mu.Unlock()
	})
	return f
}

func (f *follower) read(from io.ReadCloser) {
	defer from.Close()
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a answer
		err := json.Unmarshal(lines.Bytes(), &a)
		f.mu.Lock()
		if err == nil && (a.Flow != nil || a.NodeStatus != nil) {
			f.answers = append(f.answers, a)
		}
		if err != nil || a.Flow == nil {
			f.said = append(f.said, lines.Text())
		}
		f.mu.Unlock()
	}
}

// mark is how many answers there are now.
func (f *follower) mark() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.answers)
}

// since finds an answer after a mark.
func (f *follower) since(mark int, want func(answer) bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.answers[mark:], want)
}
