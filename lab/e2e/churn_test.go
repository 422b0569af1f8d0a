package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// inventory is everything on a node that belongs to pods: devices, routes, neighbours, namespaces, records, map entries.
func (r *rig) inventory(ctx context.Context, node string) (string, error) {
	return r.onMachine(ctx, node, `
		echo devices $(ip -o link show | grep -c ': st[0-9a-f]')
		echo routes4 $(ip -4 route | grep -c 'dev st[0-9a-f]')
		echo routes6 $(ip -6 route | grep -c 'dev st[0-9a-f]')
		echo neighbours $(ip neigh show nud permanent | grep -c 'dev st[0-9a-f]')
		echo namespaces $(ls /run/netns | wc -l)
		echo records $(ls /var/lib/strait/endpoints 2>/dev/null | wc -l)
		echo deletes $(ls /var/lib/strait/cni/deletes 2>/dev/null | wc -l)
		echo pins $(ls /sys/fs/bpf/strait/v1/links 2>/dev/null | wc -l)`)
}

// CNI-1, IPAM-2: after pods came and went, in bulk and with the agent killed in between, nothing of them is left.
func TestIPAM2_ChurnLeavesNothing(t *testing.T) {
	needStrait(t)
	settle(t)
	before := map[string]string{}
	for _, n := range shared.nodes {
		out, err := shared.inventory(t.Context(), n.name)
		if err != nil {
			t.Fatal(err)
		}
		before[n.name] = out
	}
	const perNode = 8
	for round := range 2 {
		var names []string
		for _, n := range shared.nodes {
			for i := range perNode {
				name := fmt.Sprintf("churn-%s-%d", n.name, i)
				names = append(names, name)
				if err := shared.create(t.Context(), pod(name, n.name, "pause")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if round == 1 {
			for _, n := range shared.nodes { // in the middle of their ADDs
				if err := shared.killAgent(t.Context(), n.name); err != nil {
					t.Fatal(err)
				}
			}
		}
		addresses := map[string]string{}
		for _, name := range names {
			for _, ip := range shared.wait(t, name).Status.PodIPs {
				if other, taken := addresses[ip.IP]; taken {
					t.Errorf("%s and %s both have %s", name, other, ip.IP)
				}
				addresses[ip.IP] = name
			}
		}
		if round == 1 {
			for _, n := range shared.nodes { // in the middle of their DELs
				if _, err := shared.onMachine(t.Context(), n.name, "(sleep 0.5; pkill -9 -x strait-agent) >/dev/null 2>&1 &"); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, name := range names {
			shared.remove(t, name)
		}
		for _, name := range names {
			shared.waitGone(t, name)
		}
		settle(t)
	}
	for _, n := range shared.nodes {
		eventually(t, 60*time.Second, func(ctx context.Context) error {
			after, err := shared.inventory(ctx, n.name)
			if err == nil && after != before[n.name] {
				err = fmt.Errorf("%s had\n%sand now has\n%s", n.name, before[n.name], after)
			}
			return err
		})
	}
}

// wait returns a pod once it is ready.
func (r *rig) wait(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		p, err := r.kube.CoreV1().Pods(r.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		found = p
		if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			return nil
		}
		return fmt.Errorf("pod %s is %s: %s", name, p.Status.Phase, r.events(ctx, name))
	})
	return found
}

func (r *rig) events(ctx context.Context, name string) string {
	list, err := r.kube.CoreV1().Events(r.namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, e.Reason+" "+e.Message)
	}
	return strings.Join(out, "; ")
}

func (r *rig) remove(t *testing.T, name string) {
	t.Helper()
	// The test's own context may be over when this runs deferred.
	if err := r.kube.CoreV1().Pods(r.namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

func (r *rig) waitGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		_, err := r.kube.CoreV1().Pods(r.namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("pod %s is still there", name))
	})
}
