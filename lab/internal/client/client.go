// Package client applies manifests to a cluster and waits for what they start.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Client talks to one cluster.
type Client struct {
	Typed   kubernetes.Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// fieldOwner is the name under which the lab applies.
const fieldOwner = "strait-lab"

// New reads a kubeconfig.
func New(kubeconfig string) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 200, 400
	return forConfig(config)
}

func forConfig(config *rest.Config) (*Client, error) {
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(typed.Discovery()))
	return &Client{Typed: typed, dynamic: dyn, mapper: mapper}, nil
}

// Apply applies every document of a YAML stream, as kubectl apply --server-side --force-conflicts does: namespaces and
// definitions first, the rest in order.
func (c *Client) Apply(ctx context.Context, manifests []byte) error {
	objects, err := Decode(manifests)
	if err != nil {
		return err
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	for _, o := range objects {
		err := c.applyOne(ctx, o)
		// A pod in a new namespace is refused until the namespace has its default account, an instant later.
		for deadline := time.Now().Add(20 * time.Second); apierrors.IsForbidden(err) && o.GetKind() == "Pod" && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			err = c.applyOne(ctx, o)
		}
		if err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
	}
	return nil
}

func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace", "CustomResourceDefinition":
		return 0
	case "ServiceAccount", "ConfigMap", "Secret":
		return 1
	}
	return 2
}

// Decode splits a YAML stream into objects.
func Decode(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		var content map[string]any
		err := decoder.Decode(&content)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode manifest %d: %w", len(objects)+1, err)
		}
		if len(content) > 0 {
			objects = append(objects, &unstructured.Unstructured{Object: content})
		}
	}
}

func (c *Client) applyOne(ctx context.Context, o *unstructured.Unstructured) error {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	var resource dynamic.ResourceInterface = c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == "namespace" {
		namespace := o.GetNamespace()
		if namespace == "" {
			namespace = "default"
		}
		resource = c.dynamic.Resource(mapping.Resource).Namespace(namespace)
	}
	content, err := json.Marshal(o)
	if err != nil {
		return err
	}
	force := true
	_, err = resource.Patch(ctx, o.GetName(), types.ApplyPatchType, content, metav1.PatchOptions{FieldManager: fieldOwner, Force: &force})
	return err
}

// Restart rolls the pods of the daemon sets and deployments with a label, as kubectl rollout restart does.
func (c *Client) Restart(ctx context.Context, namespace, selector string) error {
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339))
	list := metav1.ListOptions{LabelSelector: selector}
	options := metav1.PatchOptions{FieldManager: fieldOwner}
	sets, err := c.Typed.AppsV1().DaemonSets(namespace).List(ctx, list)
	if err != nil {
		return err
	}
	for _, d := range sets.Items {
		if _, err := c.Typed.AppsV1().DaemonSets(namespace).Patch(ctx, d.Name, types.StrategicMergePatchType, patch, options); err != nil {
			return fmt.Errorf("restart daemon set %s: %w", d.Name, err)
		}
	}
	deployments, err := c.Typed.AppsV1().Deployments(namespace).List(ctx, list)
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if _, err := c.Typed.AppsV1().Deployments(namespace).Patch(ctx, d.Name, types.StrategicMergePatchType, patch, options); err != nil {
			return fmt.Errorf("restart deployment %s: %w", d.Name, err)
		}
	}
	return nil
}

// WaitNodes returns once at least want nodes are Ready.
func (c *Client) WaitNodes(ctx context.Context, want int) error {
	return poll(ctx, func() (string, error) {
		list, err := c.Typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		ready, reason := 0, "no node has registered"
		for _, n := range list.Items {
			for _, condition := range n.Status.Conditions {
				if condition.Type != corev1.NodeReady {
					continue
				}
				if condition.Status == corev1.ConditionTrue {
					ready++
				} else {
					reason = n.Name + ": " + condition.Message
				}
			}
		}
		if ready >= want {
			return "", nil
		}
		return fmt.Sprintf("%d of %d nodes are ready; %s", ready, want, reason), nil
	})
}

// WaitPods returns once every pod of a namespace is Ready and each deployment has all its replicas.
func (c *Client) WaitPods(ctx context.Context, namespace string) error {
	return poll(ctx, func() (string, error) {
		deployments, err := c.Typed.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, d := range deployments.Items {
			if !complete(d) {
				return c.explain(ctx, namespace, fmt.Sprintf("deployment %s has %d of %d replicas", d.Name, d.Status.ReadyReplicas, *d.Spec.Replicas)), nil
			}
		}
		sets, err := c.Typed.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, d := range sets.Items {
			s := d.Status
			if s.ObservedGeneration != d.Generation || s.NumberReady < s.DesiredNumberScheduled || s.UpdatedNumberScheduled < s.DesiredNumberScheduled {
				return c.explain(ctx, namespace, fmt.Sprintf("daemon set %s has %d of %d pods", d.Name, s.NumberReady, s.DesiredNumberScheduled)), nil
			}
		}
		pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && !podReady(p) {
				return podTrouble(p), nil
			}
		}
		return "", nil
	})
}

func complete(d appsv1.Deployment) bool {
	return d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == *d.Spec.Replicas && d.Status.ReadyReplicas == *d.Spec.Replicas
}

// explain adds the first pod that is in trouble.
func (c *Client) explain(ctx context.Context, namespace, what string) string {
	pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return what
	}
	for _, p := range pods.Items {
		if !podReady(p) {
			return what + "; " + podTrouble(p)
		}
	}
	return what
}

func podReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podTrouble(p corev1.Pod) string {
	parts := []string{fmt.Sprintf("pod %s is %s", p.Name, p.Status.Phase)}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.State.Waiting != nil {
			parts = append(parts, s.Name+": "+s.State.Waiting.Reason+" "+s.State.Waiting.Message)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			parts = append(parts, c.Message)
		}
	}
	return strings.Join(parts, "; ")
}

// poll asks until the answer is empty; the last answer becomes the error when time runs out.
func poll(ctx context.Context, ask func() (string, error)) error {
	missing := "not asked yet"
	for {
		answer, err := ask()
		switch {
		case err == nil && answer == "":
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %s", context.Cause(ctx), missing)
		case err != nil:
			missing = err.Error()
		default:
			missing = answer
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), missing)
		case <-time.After(150 * time.Millisecond):
		}
	}
}
