// Package e2e proves in a running lab that real kubelets, containerd, an API server and clients agree with Strait.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/strait-net/strait/lab/internal/client"
	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

// rig is the lab under test with one server pod and one host network pod on each node.
type rig struct {
	lab       string // binary
	name      string
	state     wire.State
	config    *rest.Config
	kube      kubernetes.Interface
	waiter    *client.Client
	namespace string
	nodes     []nodeRig
}

// nodeRig is one node's share.
type nodeRig struct {
	name   string
	addrs  []netip.Addr
	server string // pod in the cluster's network
	host   string // pod in the node's network
	pods   []netip.Addr
}

// Ports of the pods.
const (
	serverPort = 8080
	serverUDP  = 8081
	hostPort   = 18080
)

// shared is set once by TestMain, before any test, and only read after.
var shared *rig

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("skipping all: a lab needs root")
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, stop, err := open(ctx)
	defer stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		return 1
	}
	shared = r
	return m.Run()
}

// open uses the lab named by STRAIT_LAB, "default" if unset; one that does not run is started and stopped again.
func open(ctx context.Context) (*rig, func(), error) {
	nothing := func() {}
	binary, err := filepath.Abs("../../bin/lab")
	if err != nil {
		return nil, nothing, err
	}
	r := &rig{lab: binary, name: os.Getenv("STRAIT_LAB"), namespace: fmt.Sprintf("e2e-%d", os.Getpid())}
	if r.name == "" {
		r.name = "default"
	}
	stop := nothing
	if _, err := r.run(ctx, "kubeconfig"); err != nil {
		fmt.Printf("lab %s does not run: starting it\n", r.name)
		stop = func() { _, _ = r.run(context.Background(), "down") }
		if out, err := r.run(ctx, "up"); err != nil {
			return nil, stop, fmt.Errorf("%w: %s", err, out)
		}
	}
	if err := r.connect(ctx); err != nil {
		return nil, stop, err
	}
	clean := func() {
		background := context.Background()
		_ = r.kube.CoreV1().Namespaces().Delete(background, r.namespace, metav1.DeleteOptions{})
		stop()
	}
	return r, clean, r.deploy(ctx)
}

func (r *rig) connect(ctx context.Context) error {
	path, err := r.run(ctx, "kubeconfig")
	if err != nil {
		return err
	}
	path = strings.TrimSpace(path)
	if r.state, err = wire.NewClient(filepath.Dir(path)).State(ctx); err != nil {
		return err
	}
	if r.config, err = clientcmd.BuildConfigFromFlags("", path); err != nil {
		return err
	}
	r.config.QPS, r.config.Burst = 200, 400
	if r.kube, err = kubernetes.NewForConfig(r.config); err != nil {
		return err
	}
	r.waiter, err = client.New(path)
	return err
}

// run runs the lab command for this lab and returns what it prints.
func (r *rig) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, r.lab, append([]string{"--name", r.name}, args...)...)
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lab %s: %w: %s", strings.Join(args, " "), err, trouble.String())
	}
	return out.String(), nil
}

// deploy starts the pods and services that most tests share.
func (r *rig) deploy(ctx context.Context) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.namespace}}
	if _, err := r.kube.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	for _, m := range r.state.Machines {
		if m.Node == nil || !m.Node.Running {
			continue
		}
		n := nodeRig{name: m.Name, server: "server-" + m.Name, host: "host-" + m.Name}
		for _, a := range m.Addrs {
			p, err := netip.ParsePrefix(a)
			if err != nil {
				return err
			}
			n.addrs = append(n.addrs, p.Addr())
		}
		server := pod(n.server, n.name, "netexec", fmt.Sprintf("--http-port=%d", serverPort), fmt.Sprintf("--udp-port=%d", serverUDP))
		server.Labels = map[string]string{"app": "server"}
		host := pod(n.host, n.name, "netexec", fmt.Sprintf("--http-port=%d", hostPort), fmt.Sprintf("--udp-port=%d", hostPort))
		host.Spec.HostNetwork = true
		host.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
		for _, p := range []*corev1.Pod{server, host} {
			if err := r.create(ctx, p); err != nil {
				return err
			}
		}
		r.nodes = append(r.nodes, n)
	}
	for _, headless := range []bool{false, true} {
		if _, err := r.kube.CoreV1().Services(r.namespace).Create(ctx, service(headless), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := r.waiter.WaitPods(ctx, r.namespace); err != nil {
		return err
	}
	return r.readAddresses(ctx)
}

func (r *rig) create(ctx context.Context, p *corev1.Pod) error {
	return r.createIn(ctx, r.namespace, p)
}

// createIn retries while a new namespace has no service account yet.
func (r *rig) createIn(ctx context.Context, namespace string, p *corev1.Pod) error {
	for {
		_, err := r.kube.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "serviceaccount") {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r *rig) readAddresses(ctx context.Context) error {
	for i := range r.nodes {
		n := &r.nodes[i]
		p, err := r.kube.CoreV1().Pods(r.namespace).Get(ctx, n.server, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.pods = nil
		for _, ip := range p.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return err
			}
			n.pods = append(n.pods, a)
		}
	}
	return nil
}

func pod(name, node string, args ...string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"kubernetes.io/hostname": node},
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: image.Agnhost, ImagePullPolicy: corev1.PullNever, Args: args,
			}},
		},
	}
}

// service is "web", or "pods" without an address of its own.
func service(headless bool) *corev1.Service {
	policy := corev1.IPFamilyPolicyPreferDualStack
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector:       map[string]string{"app": "server"},
			IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(serverPort)},
				{Name: "udp", Port: 81, TargetPort: intstr.FromInt32(serverUDP), Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if headless {
		s.Name, s.Spec.ClusterIP = "pods", corev1.ClusterIPNone
	}
	return s
}

// inPod runs a shell script in a pod.
func (r *rig) inPod(ctx context.Context, namespace, name, script string) (string, error) {
	return r.exec(ctx, namespace, name, "sh", "-c", script)
}

// exec runs a program in a pod.
func (r *rig) exec(ctx context.Context, namespace, name string, command ...string) (string, error) {
	request := r.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(r.config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var out, trouble bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &trouble}); err != nil {
		return out.String(), fmt.Errorf("in pod %s: %s: %w: %s", name, command[len(command)-1], err, trouble.String())
	}
	return out.String(), nil
}

// onMachine runs a shell script on a node, the router or outside.
func (r *rig) onMachine(ctx context.Context, machine, script string) (string, error) {
	return r.run(ctx, "shell", machine, "--", "sh", "-c", script)
}

// ask is a script that asks agnhost for the address it sees the caller at.
func ask(a netip.Addr, port int) string {
	return fmt.Sprintf("curl -sS --max-time 5 http://%s/clientip", netip.AddrPortFrom(a, uint16(port)))
}

// seen parses the answer of ask.
func seen(t *testing.T, out string, err error) netip.Addr {
	t.Helper()
	if err != nil {
		t.Error(err)
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(strings.TrimSpace(out))
	if err != nil {
		t.Errorf("the server answers %q", out)
	}
	return ap.Addr().Unmap()
}

// same finds the address of a family in a list; the zero address when there is none.
func same(list []netip.Addr, as netip.Addr) netip.Addr {
	for _, a := range list {
		if a.Is4() == as.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (r *rig) spec() topology.Spec { return r.state.Spec }
