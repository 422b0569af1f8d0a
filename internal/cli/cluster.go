package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	agentSelector  = "app.kubernetes.io/name=strait-agent"
	agentContainer = "agent"
)

// cluster reaches the agents of a cluster through its API server.
type cluster struct {
	config    *rest.Config
	core      *rest.RESTClient // of the core group only: the typed clients bring every API with them, 11 MB
	parameter runtime.ParameterCodec
	namespace string
}

// target is the agent of a node, or why there is none to ask.
type target struct {
	node      string
	pod       string
	container string
	err       error
}

// cluster returns the connection that flags and surroundings lead to; nothing is dialled yet.
func (a *app) cluster() (*cluster, error) {
	config, err := a.restConfig()
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 200 // one request per node, at once
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register core types: %w", err)
	}
	core := rest.CopyConfig(config)
	core.APIPath, core.GroupVersion = "/api", &corev1.SchemeGroupVersion
	core.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(core)
	if err != nil {
		return nil, unreachable(fmt.Errorf("use kubeconfig: %w", err))
	}
	return &cluster{config, client, runtime.NewParameterCodec(scheme), a.namespace}, nil
}

func (a *app) restConfig() (*rest.Config, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.kubeconfig}
	if a.kubeconfig == "" {
		rules.Precedence = filepath.SplitList(a.Getenv("KUBECONFIG"))
		if home := a.Getenv("HOME"); len(rules.Precedence) == 0 && home != "" {
			rules.Precedence = []string{filepath.Join(home, ".kube", "config")}
		}
		exists := slices.ContainsFunc(rules.Precedence, func(p string) bool { _, err := os.Stat(p); return err == nil })
		if !exists && a.Getenv("KUBERNETES_SERVICE_HOST") != "" {
			config, err := rest.InClusterConfig()
			if err != nil {
				return nil, unreachable(fmt.Errorf("use in-cluster configuration: %w", err))
			}
			return config, nil
		}
		if !exists {
			where := ""
			if len(rules.Precedence) > 0 {
				where = ", no " + strings.Join(rules.Precedence, ", ")
			}
			return nil, unreachable(fmt.Errorf("found neither an agent nor a cluster to ask: no %s%s; use --socket or --kubeconfig", a.socketName(), where))
		}
	}
	overrides := &clientcmd.ConfigOverrides{CurrentContext: a.context}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return nil, usage("read kubeconfig: %w", err)
	}
	return config, nil
}

// agents returns one target per node, those without a running agent included, in order of node names.
func (c *cluster) agents(ctx context.Context, timeout time.Duration) ([]target, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pods, err := c.pods(ctx, agentSelector)
	if err != nil {
		return nil, err
	}
	byNode := map[string]target{}
	for i := range pods {
		t := targetOf(&pods[i])
		if old, ok := byNode[t.node]; t.node != "" && (!ok || old.err != nil) { // during an update a node may have two
			byNode[t.node] = t
		}
	}
	// Reading nodes needs more rights than reading the pods of a namespace; without them the pods' nodes have to do.
	var nodes corev1.NodeList
	if err := c.core.Get().Resource("nodes").Do(ctx).Into(&nodes); err == nil {
		for _, n := range nodes.Items {
			if _, ok := byNode[n.Name]; !ok {
				byNode[n.Name] = target{node: n.Name, err: errors.New("no strait-agent pod on this node")}
			}
		}
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("no strait-agent pods in namespace %s at %s: is Strait installed there? See --agent-namespace", c.namespace, c.config.Host)
	}
	var out []target
	for _, t := range byNode {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b target) int { return strings.Compare(a.node, b.node) })
	return out, nil
}

// pods lists Strait's own pods that match a selector of labels.
func (c *cluster) pods(ctx context.Context, selector string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.core.Get().Namespace(c.namespace).Resource("pods").
		VersionedParams(&metav1.ListOptions{LabelSelector: selector}, c.parameter).Do(ctx).Into(&pods)
	if err != nil {
		return nil, fmt.Errorf("list pods with %s at %s: %w", selector, c.config.Host, unwrapURL(err))
	}
	return pods.Items, nil
}

func targetOf(p *corev1.Pod) target {
	t := target{node: p.Spec.NodeName, pod: p.Name}
	if slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == agentContainer }) {
		t.container = agentContainer
	}
	for _, s := range p.Status.ContainerStatuses {
		if t.container != "" && s.Name != t.container || s.State.Running != nil {
			continue
		}
		why := "not running"
		switch {
		case s.State.Waiting != nil:
			why = strings.TrimSuffix(s.State.Waiting.Reason+": "+s.State.Waiting.Message, ": ")
		case s.State.Terminated != nil:
			why = fmt.Sprintf("ended with exit code %d", s.State.Terminated.ExitCode)
		}
		if last := s.LastTerminationState.Terminated; last != nil && last.Message != "" {
			why += " (" + strings.TrimSpace(last.Message) + ")"
		}
		t.err = fmt.Errorf("container %s of %s: %s", s.Name, p.Name, why)
	}
	if t.err == nil && p.Status.Phase != corev1.PodRunning {
		t.err = fmt.Errorf("%s is %s", p.Name, p.Status.Phase)
	}
	return t
}

// exec runs a command in the agent's container. An exit code other than 0 is an error; the output is returned with it.
func (c *cluster) exec(ctx context.Context, t target, command []string) (stdout, stderr []byte, err error) {
	var out, errout bytes.Buffer
	err = c.stream(ctx, t, command, &out, &errout)
	return out.Bytes(), errout.Bytes(), err
}

// stream is exec whose output is written as it comes; who writes slowly slows the command down.
func (c *cluster) stream(ctx context.Context, t target, command []string, stdout, stderr io.Writer) error {
	url := c.core.Post().Resource("pods").Namespace(c.namespace).Name(t.pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: t.container, Command: command, Stdout: true, Stderr: true}, c.parameter).URL()
	websocket, err := remotecommand.NewWebSocketExecutor(c.config, "GET", url.String())
	if err != nil {
		return fmt.Errorf("prepare exec: %w", err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", url)
	if err != nil {
		return fmt.Errorf("prepare exec: %w", err)
	}
	// Old API servers and some proxies between us and them know no websockets.
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fmt.Errorf("prepare exec: %w", err)
	}
	return executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
}

// unwrapURL drops the request's URL from an error of net/http: the host has been named already.
func unwrapURL(err error) error {
	type timeout interface{ Timeout() bool }
	var t timeout
	if errors.As(err, &t) && t.Timeout() {
		return errors.New("no answer")
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if strings.HasPrefix(inner.Error(), "dial ") {
			return inner
		}
	}
	return err
}
