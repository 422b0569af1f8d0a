package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// api is the part of the API server that a test needs.
type api struct {
	host   string
	core   rest.Interface
	apps   rest.Interface
	cilium rest.Interface
}

const (
	agentSet       = "strait-agent" // the DaemonSet and
	agentContainer = "agent"        // its container
	every          = 200 * time.Millisecond
	queries, burst = 50, 100 // requests per second, of each group
)

func newAPI(config *rest.Config) (*api, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	a := &api{host: config.Host}
	for _, open := range []struct {
		client *rest.Interface
		group  schema.GroupVersion
		path   string
	}{
		{&a.core, corev1.SchemeGroupVersion, "/api"},
		{&a.apps, appsv1.SchemeGroupVersion, "/apis"},
		{&a.cilium, schema.GroupVersion{Group: "cilium.io", Version: "v2"}, "/apis"},
	} {
		c := rest.CopyConfig(config)
		c.QPS, c.Burst = queries, burst
		c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &open.group, open.path, codecs.WithoutConversion()
		client, err := rest.RESTClientFor(c)
		if err != nil {
			return nil, fmt.Errorf("use kubeconfig: %w", err)
		}
		*open.client = client
	}
	return a, nil
}

// usable are the nodes that are ready, bear any pod and have a running agent, by name, and why others are not.
func (a *api) usable(ctx context.Context, agents []string) (out, why []string, err error) {
	var nodes corev1.NodeList
	if err := a.core.Get().Resource("nodes").Do(ctx).Into(&nodes); err != nil {
		return nil, nil, a.refused("list nodes", err)
	}
	for _, n := range nodes.Items {
		switch reason := unusable(n); {
		case reason != "":
			why = append(why, n.Name+" "+reason)
		case !slices.Contains(agents, n.Name):
			why = append(why, n.Name+" has no running strait-agent")
		default:
			out = append(out, n.Name)
		}
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("no node can be tested: %s", strings.Join(why, ", "))
	}
	slices.Sort(out)
	return out, why, nil
}

func unusable(n corev1.Node) string {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	taint := slices.IndexFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
	switch {
	case !ready:
		return "is not ready"
	case n.Spec.Unschedulable:
		return "is cordoned"
	case taint >= 0:
		return "has the taint " + n.Spec.Taints[taint].Key
	}
	return ""
}

// agentImage is what the agents of the cluster run.
func (a *api) agentImage(ctx context.Context, namespace string) (string, corev1.PullPolicy, error) {
	var set appsv1.DaemonSet
	err := a.apps.Get().Namespace(namespace).Resource("daemonsets").Name(agentSet).Do(ctx).Into(&set)
	if apierrors.IsNotFound(err) {
		return "", "", fmt.Errorf("there is no DaemonSet %s in namespace %s to take the image from; say where Strait is with --agent-namespace, or name an image with --image", agentSet, namespace)
	}
	if err != nil {
		return "", "", a.refused("read DaemonSet "+agentSet, err)
	}
	for _, c := range set.Spec.Template.Spec.Containers {
		if c.Name != agentContainer {
			continue
		}
		if c.ImagePullPolicy == corev1.PullNever {
			return c.Image, corev1.PullNever, nil
		}
		return c.Image, corev1.PullIfNotPresent, nil // the agent's start has brought it to the node already
	}
	return "", "", fmt.Errorf("DaemonSet %s has no container %s to take the image from: name one with --image", agentSet, agentContainer)
}

// refused says what to do about an error of the API server.
func (a *api) refused(what string, err error) error {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w; the test makes a namespace with deployments, services and policies and runs programs in their pods: use a kubeconfig of somebody who may", what, err)
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s at %s: %w", what, a.host, err)
}

func (a *api) namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	var n corev1.Namespace
	err := a.core.Get().Resource("namespaces").Name(name).Do(ctx).Into(&n)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, a.refused("read namespace "+name, err)
	}
	return &n, nil
}

func (a *api) createNamespace(ctx context.Context, n *corev1.Namespace) (types.UID, error) {
	var made corev1.Namespace
	if err := a.core.Post().Resource("namespaces").Body(n).Do(ctx).Into(&made); err != nil {
		return "", a.refused("create namespace "+n.Name, err)
	}
	return made.UID, nil
}

// markKept lets a later test take the namespace away.
func (a *api) markKept(ctx context.Context, name string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{runLabel: runKept}}})
	if err != nil {
		return fmt.Errorf("write patch: %w", err)
	}
	if err := a.core.Patch(types.MergePatchType).Resource("namespaces").Name(name).Body(patch).Do(ctx).Error(); err != nil {
		return a.refused("label namespace "+name, err)
	}
	return nil
}

// removeNamespace deletes the very namespace that was made, with all in it, and returns once it is gone.
func (a *api) removeNamespace(ctx context.Context, name string, uid types.UID) error {
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	err := a.core.Delete().Resource("namespaces").Name(name).Body(&options).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone; or gone, and another has its name
		return nil
	}
	if err != nil {
		return a.refused("delete namespace "+name, err)
	}
	return a.awaitGone(ctx, name, uid)
}

func (a *api) awaitGone(ctx context.Context, name string, uid types.UID) error {
	return poll(ctx, "namespace "+name+" to be gone", func() error {
		n, err := a.namespace(ctx, name)
		if err != nil || n == nil || n.UID != uid {
			return err // an error may be gone the next time
		}
		waits := []string{"it is being deleted"}
		for _, c := range n.Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				waits = append(waits, c.Message)
			}
		}
		return errors.New(strings.Join(waits, "; "))
	})
}

// createPolicy creates a policy from its manifest. known is false when the cluster does not have the kind.
func (a *api) createPolicy(ctx context.Context, namespace, name, manifest string) (known bool, err error) {
	err = a.cilium.Post().Namespace(namespace).Resource("ciliumnetworkpolicies").
		SetHeader("Content-Type", "application/yaml").Body([]byte(manifest)).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, a.refused("create CiliumNetworkPolicy "+name, err)
	}
	return true, nil
}

func (a *api) createRestPolicy(ctx context.Context, namespace, manifest string) error {
	if err := a.core.Post().AbsPath("/apis/networking.k8s.io/v1/namespaces", namespace, "networkpolicies").
		SetHeader("Content-Type", "application/yaml").Body([]byte(manifest)).Do(ctx).Error(); err != nil {
		return a.refused("create NetworkPolicy "+restPolicy, err)
	}
	return nil
}

func (a *api) createService(ctx context.Context, s *corev1.Service) (service, error) {
	var made corev1.Service
	if err := a.core.Post().Namespace(s.Namespace).Resource("services").Body(s).Do(ctx).Into(&made); err != nil {
		return service{}, a.refused("create service "+s.Name, err)
	}
	out := service{nodePorts: map[string]int32{}}
	for _, ip := range made.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil { // "None" of headless ones
			out.addrs = append(out.addrs, addr)
		}
	}
	slices.SortFunc(out.addrs, netip.Addr.Compare)
	for _, p := range made.Spec.Ports {
		out.nodePorts[p.Name] = p.NodePort
	}
	return out, nil
}

func (a *api) createDeployment(ctx context.Context, d *appsv1.Deployment) error {
	if err := a.apps.Post().Namespace(d.Namespace).Resource("deployments").Body(d).Do(ctx).Error(); err != nil {
		return a.refused("create deployment "+d.Name, err)
	}
	return nil
}

func (a *api) deployments(ctx context.Context, namespace string) ([]appsv1.Deployment, error) {
	var list appsv1.DeploymentList
	if err := a.apps.Get().Namespace(namespace).Resource("deployments").Do(ctx).Into(&list); err != nil {
		return nil, a.refused("list deployments", err)
	}
	return list.Items, nil
}

func (a *api) pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := a.core.Get().Namespace(namespace).Resource("pods").Do(ctx).Into(&list); err != nil {
		return nil, a.refused("list pods", err)
	}
	return list.Items, nil
}

// final ends a wait: waiting does not help against it.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// poll looks until nothing is wrong, or what is wrong is final.
func poll(ctx context.Context, what string, look func() error) error {
	for {
		err := look()
		var end final
		switch {
		case err == nil:
			return nil
		case errors.As(err, &end):
			return end.error
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("wait for %s: %w", what, err)
			}
			return ctx.Err()
		case <-time.After(every):
		}
	}
}
