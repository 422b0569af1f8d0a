package kube

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strait-net/strait/internal/state"
)

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// POL-1, POL-2 on a real server: kinds that it does not have hold nothing up, and are found once it has them.
func testReflectPolicies(t *testing.T, client *Client) {
	st := state.New()
	source := NewAPIServer(client, TablesOf(st), quiet())
	source.absentEvery = absentEvery / 100
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-st.Policies.Initialized()
	<-st.Pods.Initialized()
	<-st.Namespaces.Initialized()
	if got := names(st.Problems); got != "" {
		t.Errorf("problems without the CRDs: %s", got)
	}
	row := func(key string) state.Policy { p, _, _ := st.Policies.Snapshot().Get(key); return p }
	create(t, client.network, "networkpolicies", "default", &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	eventually(t, "network policy", func() bool {
		p := row("NetworkPolicy/default/p")
		return p.Generation == 1 && p.Enforced == 1 && len(p.Specs) == 1 && p.UID != ""
	})
	if n, _, ok := st.Namespaces.Snapshot().Get("default"); !ok || len(n.Labels) != 1 {
		t.Errorf("namespace %+v", n)
	}

	crd, err := os.ReadFile("../../deploy/helm/strait/files/crds/policy.networking.k8s.io_clusternetworkpolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := client.core.Post().AbsPath(crdPath).SetHeader("Content-Type", "application/yaml").Body(crd).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	policies := client.cluster
	eventually(t, "CRD served", func() bool { return policies.Get().Resource("clusternetworkpolicies").Do(ctx).Error() == nil })
	o := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	o.Spec.Tier, o.Spec.Subject.Namespaces = policyv1alpha2.AdminTier, &metav1.LabelSelector{}
	create(t, policies, "clusternetworkpolicies", "", o)
	eventually(t, "policy of a kind that was not there", func() bool { return row("ClusterNetworkPolicy//p").Enforced == 1 })
	patch := `{"spec": {"egress": [{"action": "Accept", "to": [{"domainNames": ["example.org"]}]}]}}`
	if err := policies.Patch(types.MergePatchType).Resource("clusternetworkpolicies").Name("p").Body([]byte(patch)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refused, the first generation stays", func() bool {
		p := row("ClusterNetworkPolicy//p")
		return p.Generation == 2 && p.Enforced == 1 && len(p.Specs) == 1 && strings.HasPrefix(p.Refused, "spec.egress[0].to[0].domainNames: ")
	})
	if got := names(st.Problems); got != "kube/policy ClusterNetworkPolicy p" {
		t.Errorf("problems %q", got)
	}
	if err := client.core.Delete().AbsPath(crdPath, "clusternetworkpolicies.policy.networking.k8s.io").Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "policies gone with their CRD", func() bool { return row("ClusterNetworkPolicy//p").Name == "" && names(st.Problems) == "" })
	if row("NetworkPolicy/default/p").Enforced != 1 {
		t.Error("the rows of another kind are gone as well")
	}
}

// What an agent reads and says about a pod at ADD.
func testPodAtAdd(t *testing.T, client *Client) {
	ctx := t.Context()
	st := state.New()
	source := NewAPIServer(client, Tables{Pods: st.Pods, Problems: st.Problems}, quiet())
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- source.Run(running) }()
	defer func() { cancel(); <-ended }()
	<-st.Pods.Initialized()
	create(t, client.core, "pods", "default", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "new", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "web", Image: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}},
	})
	pod, err := client.Pod(ctx, "default", "new")
	if err != nil || len(pod.Labels) != 1 || len(pod.Ports) != 1 || len(pod.Addresses) != 0 || pod.UID == "" {
		t.Fatalf("%+v, %v", pod, err)
	}
	addresses := []netip.Addr{netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00:1::9")}
	if err := client.PublishAddresses(ctx, "default", "new", "another-uid", addresses); !errors.Is(err, ErrRefused) {
		t.Errorf("pod made anew under the same name: %v", err)
	}
	for range 2 {
		if err := client.PublishAddresses(ctx, "default", "new", pod.UID, addresses); err != nil {
			t.Fatal(err)
		}
	}
	row := func() state.Pod { p, _, _ := st.Pods.Snapshot().Get("default/new"); return p }
	eventually(t, "addresses known before the kubelet says them", func() bool { return slices.Equal(row().Addresses, addresses) && row().Claimed })
	status := `{"status": {"phase": "Succeeded"}}`
	if err := client.core.Patch(types.MergePatchType).Namespace("default").Resource("pods").Name("new").SubResource("status").Body([]byte(status)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "addresses of an ended pod are nobody's", func() bool { return len(row().Addresses) == 0 })
	if _, err := client.Pod(ctx, "default", "new"); !errors.Is(err, ErrEnded) {
		t.Errorf("ended: %v", err)
	}
	if _, err := client.Pod(ctx, "default", "nobody"); !IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
	if err := client.PublishAddresses(ctx, "default", "nobody", "u", addresses); !errors.Is(err, ErrRefused) {
		t.Errorf("nobody: %v", err)
	}
}
