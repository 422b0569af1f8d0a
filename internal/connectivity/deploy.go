package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// stage is what has been deployed.
type stage struct {
	plan
	uid      types.UID
	pods     map[string]pod // by workload
	services map[string]service
	unknown  bool // the cluster does not know CiliumNetworkPolicy
}

type pod struct {
	name, node string
	addrs      []netip.Addr // sorted, like all lists of addresses
	hostAddrs  []netip.Addr
}

type service struct {
	addrs     []netip.Addr
	nodePorts map[string]int32 // by name of the port
}

// claim makes the namespace. One that an earlier test was told to keep is removed first; any other that exists is not touched.
func (s *stage) claim(ctx context.Context, a *api, say func(string)) error {
	old, err := a.namespace(ctx, s.namespace)
	if err != nil {
		return err
	}
	if old != nil {
		if err := s.clear(ctx, a, old, say); err != nil {
			return err
		}
	}
	s.uid, err = a.createNamespace(ctx, s.namespaceObject())
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s was made by somebody else this very moment: use another with --namespace", s.namespace)
	}
	return err
}

func (s *stage) clear(ctx context.Context, a *api, old *corev1.Namespace, say func(string)) error {
	run, ours := old.Labels[runLabel]
	switch {
	case !ours:
		return fmt.Errorf("namespace %s exists and is not of this test: use another with --namespace", s.namespace)
	case old.DeletionTimestamp != nil:
		say("waiting until what an earlier test left in namespace " + s.namespace + " is gone")
		return a.awaitGone(ctx, s.namespace, old.UID)
	case run == runKept:
		say("removing namespace " + s.namespace + ", which an earlier test has kept")
		return a.removeNamespace(ctx, s.namespace, old.UID)
	}
	return fmt.Errorf("namespace %s is that of a test which began %s ago and has not ended: another may be running; use another with --namespace, or, if none is, kubectl delete namespace %s",
		s.namespace, time.Since(old.CreationTimestamp.Time).Round(time.Second), s.namespace)
}

// deploy puts everything into the namespace, policies before the pods that they judge.
func (s *stage) deploy(ctx context.Context, a *api) error {
	if s.closed {
		if err := a.createRestPolicy(ctx, s.namespace, s.rest()); err != nil {
			return err
		}
	}
	for name, manifest := range s.policies() {
		known, err := a.createPolicy(ctx, s.namespace, name, manifest)
		if err != nil {
			return err
		}
		s.unknown = s.unknown || !known
	}
	s.services = map[string]service{}
	for _, want := range s.plan.services() {
		made, err := a.createService(ctx, want)
		if err != nil {
			return err
		}
		s.services[want.Name] = made
	}
	for _, w := range s.workloads() {
		if err := a.createDeployment(ctx, s.deployment(w)); err != nil {
			return err
		}
	}
	return nil
}

// await returns once the pod of every workload is ready, or at once when one never will be.
func (s *stage) await(ctx context.Context, a *api, say func(string)) error {
	wanted := s.workloads()
	said := -1
	return poll(ctx, "the pods in namespace "+s.namespace, func() error {
		list, err := a.pods(ctx, s.namespace)
		if err != nil {
			return err
		}
		deployments, err := a.deployments(ctx, s.namespace)
		if err != nil {
			return err
		}
		for _, d := range deployments {
			if err := replicaFailure(d); err != nil {
				return final{err}
			}
		}
		s.pods = map[string]pod{}
		var waits []string
		for _, w := range wanted {
			why, err := s.look(w, list)
			if err != nil {
				return final{err}
			}
			if why != "" {
				waits = append(waits, why)
			}
		}
		if ready := len(s.pods); ready != said {
			said = ready
			say(fmt.Sprintf("%d of %d pods are ready", ready, len(wanted)))
		}
		if len(waits) > 0 {
			return errors.New(strings.Join(waits, "; "))
		}
		return nil
	})
}

// replicaFailure is why the pods of a deployment are not even created: a quota, an admission policy. The account that every pod needs comes an
// instant after the namespace; that is waited for.
func replicaFailure(d appsv1.Deployment) error {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue && !strings.Contains(c.Message, "serviceaccount") {
			return fmt.Errorf("the pod of %s cannot be created: %s", d.Name, c.Message)
		}
	}
	return nil
}

// look keeps the pod of a workload when it is ready and says why it is not. The error is one that waiting does not help.
func (s *stage) look(w workload, list []corev1.Pod) (waits string, err error) {
	waits = w.name + ": no pod yet"
	for _, p := range list {
		if p.Labels[nameLabel] != w.name || p.DeletionTimestamp != nil {
			continue
		}
		if p.Status.Phase == corev1.PodFailed {
			waits = fmt.Sprintf("%s: %s was refused by node %s: %s %s", w.name, p.Name, p.Spec.NodeName, p.Status.Reason, p.Status.Message)
			continue
		}
		if err := hopeless(p, s.image); err != nil {
			return "", err
		}
		if !ready(p) || len(p.Status.PodIPs) == 0 {
			waits = podTrouble(w.name, p)
			continue
		}
		s.pods[w.name] = pod{name: p.Name, node: p.Spec.NodeName, addrs: addresses(p.Status.PodIPs, func(ip corev1.PodIP) string { return ip.IP }),
			hostAddrs: addresses(p.Status.HostIPs, func(ip corev1.HostIP) string { return ip.IP })}
		return "", nil
	}
	return waits, nil
}

func addresses[T any](list []T, text func(T) string) []netip.Addr {
	var out []netip.Addr
	for _, ip := range list {
		if a, err := netip.ParseAddr(text(ip)); err == nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// hopeless is an error for a pod that will not start however long one waits.
func hopeless(p corev1.Pod, image string) error {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting == nil {
			continue
		}
		switch why, text := c.State.Waiting.Reason, c.State.Waiting.Message; why {
		case "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName":
			return fmt.Errorf("node %s does not get the image %s (%s: %s): name one that it gets with --image", p.Spec.NodeName, image, why, text)
		case "CrashLoopBackOff", "RunContainerError":
			if last := c.LastTerminationState.Terminated; last != nil {
				text = strings.TrimSpace(last.Message)
			}
			return fmt.Errorf("strait echo of the image %s does not run on node %s (%s): an image of this version of Strait is needed, see --image", image, p.Spec.NodeName, text)
		}
	}
	return nil
}

func podTrouble(workload string, p corev1.Pod) string {
	parts := []string{fmt.Sprintf("%s: %s is %s", workload, p.Name, strings.ToLower(string(p.Status.Phase)))}
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			parts = append(parts, strings.TrimSuffix(c.State.Waiting.Reason+": "+c.State.Waiting.Message, ": "))
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			parts = append(parts, c.Message)
		}
	}
	return strings.Join(parts, ", ")
}

// finish removes the namespace, or marks it as kept; it is done also when the test was interrupted.
func (s *stage) finish(ctx context.Context, a *api, keep bool, wait time.Duration) error {
	if s.uid == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if keep {
		return a.markKept(ctx, s.namespace)
	}
	err := a.removeNamespace(ctx, s.namespace, s.uid)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("delete namespace %s: no answer in %s", s.namespace, wait)
	}
	return err
}
