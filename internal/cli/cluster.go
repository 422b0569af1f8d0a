package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
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
	if nodes, err := c.nodeNames(ctx); err == nil {
		for _, n := range nodes {
			if _, ok := byNode[n]; !ok {
				byNode[n] = target{node: n, err: errNoAgent}
			}
		}
	}
	if len(pods) == 0 {
		return nil, c.notInstalled()
	}
	var out []target
	for _, t := range byNode {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b target) int { return strings.Compare(a.node, b.node) })
	return out, nil
}

// errNoAgent is the error of a target that is only a node.
var errNoAgent = errors.New("no strait-agent pod on this node")

// enoughAgents is how many agents are looked for where any would do.
const enoughAgents = 8

// someAgents returns the targets of a few nodes, those first that can be asked.
func (c *cluster) someAgents(ctx context.Context, timeout time.Duration) ([]target, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pods, err := c.podsWith(ctx, metav1.ListOptions{LabelSelector: agentSelector, Limit: enoughAgents})
	if err != nil {
		return nil, err
	}
	var out []target
	for i := range pods {
		out = append(out, targetOf(&pods[i]))
	}
	slices.SortFunc(out, func(a, b target) int {
		if (a.err == nil) != (b.err == nil) {
			if a.err == nil {
				return -1
			}
			return 1
		}
		return strings.Compare(a.node, b.node)
	})
	if len(out) == 0 {
		return nil, c.notInstalled()
	}
	return out, nil
}

func (c *cluster) notInstalled() error {
	return fmt.Errorf("no strait-agent pods in namespace %s at %s: is Strait installed there? See --agent-namespace", c.namespace, c.config.Host)
}

// agentOn returns the target of one node; known is false when there surely is no such node.
func (c *cluster) agentOn(ctx context.Context, timeout time.Duration, node string) (t target, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pods, err := c.podsWith(ctx, metav1.ListOptions{LabelSelector: agentSelector, FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return t, true, err
	}
	t = target{node: node, err: errNoAgent}
	for i := range pods {
		if p := targetOf(&pods[i]); p.node == node && t.err != nil { // during an update a node may have two
			t = p
		}
	}
	if len(pods) > 0 {
		return t, true, nil
	}
	err = c.core.Get().Resource("nodes").Name(node).Do(ctx).Error()
	return t, !apierrors.IsNotFound(err), nil
}

// nodeNames lists the nodes, and of each only what they all have.
func (c *cluster) nodeNames(ctx context.Context) (names []string, err error) {
	text, err := c.core.Get().Resource("nodes").SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "application/json").Do(ctx).Raw()
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var list metav1.PartialObjectMetadataList
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read list of nodes: %w", err)
	}
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, nil
}

// ended says that a pod has ended, which agents forget; empty: it has not, or nobody tells.
func (c *cluster) ended(ctx context.Context, timeout time.Duration, name string) string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	namespace, pod, _ := strings.Cut(name, "/")
	var p corev1.Pod
	if err := c.core.Get().Namespace(namespace).Resource("pods").Name(pod).Do(ctx).Into(&p); err != nil {
		return ""
	}
	if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		return ""
	}
	return fmt.Sprintf("pod %s has ended (%s): it has no address any more", name, p.Status.Phase)
}

// pods lists Strait's own pods that match a selector of labels.
func (c *cluster) pods(ctx context.Context, selector string) ([]corev1.Pod, error) {
	return c.podsWith(ctx, metav1.ListOptions{LabelSelector: selector})
}

func (c *cluster) podsWith(ctx context.Context, o metav1.ListOptions) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.core.Get().Namespace(c.namespace).Resource("pods").VersionedParams(&o, c.parameter).Do(ctx).Into(&pods)
	if err != nil {
		return nil, fmt.Errorf("list pods with %s at %s: %w", o.LabelSelector, c.config.Host, unwrapURL(err))
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

// listen is stream whose output read takes in as it comes; when read returns the command is ended. heard is read's error, failed the command's as of failure.
func (c *cluster) listen(ctx context.Context, t target, command []string, read func(io.Reader) error) (heard, failed error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said, write := io.Pipe()
	var stderr bytes.Buffer
	var err error
	var running sync.WaitGroup
	running.Go(func() {
		err = c.stream(ctx, t, command, write, &stderr)
		_ = write.Close() // of a pipe: never fails
	})
	heard = read(said)
	cancel()
	_ = said.CloseWithError(io.ErrClosedPipe) // of a pipe: never fails
	running.Wait()
	return heard, t.failure(stderr.Bytes(), err)
}

// failure is the error of a command in a pod: what it wrote to its standard error, or else why it was not run to its end. Nil: all is well.
func (t target) failure(stderr []byte, err error) error {
	text := strings.TrimPrefix(strings.TrimSpace(string(stderr)), "strait: ")
	var code exec.CodeExitError
	switch {
	case text == "" && err == nil:
		return nil
	case text == "":
		return fmt.Errorf("ask %s: %w", t.pod, err)
	case errors.As(err, &code) && code.Code == ExitUsage:
		return &exitError{ExitUsage, errors.New(text)}
	}
	return errors.New(text)
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
