package kube

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// POL-3 on a real server: manifests go in as they are, strictly validated, and come out as they do from files.
func testReflectCilium(t *testing.T, client *Client) {
	ctx, cancel := context.WithCancel(context.Background())
	for _, plural := range ciliumPlurals() {
		crd, err := os.ReadFile("../../deploy/helm/strait/files/crds/cilium.io_" + plural + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if err := client.core.Post().AbsPath(crdPath).SetHeader("Content-Type", "application/yaml").Body(crd).Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "CRD served", func() bool { return client.cilium.Get().Resource(plural).Do(ctx).Error() == nil })
	}
	st := state.New()
	tables := Tables{Policies: st.Policies, Problems: st.Problems, Cluster: homeCluster}
	source := NewAPIServer(client, tables, quiet())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	for _, name := range []string{"shop", "web", "ns1", "public"} {
		create(t, client.core, "namespaces", "", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	var want []string
	files, err := filepath.Glob("testdata/cilium/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		golden, err := os.ReadFile(strings.TrimSuffix(file, ".yaml") + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, strings.SplitAfter(strings.TrimSuffix(string(golden), "\n\n"), "\n\n")...)
		for i, document := range strings.Split(string(raw), "\n---\n") {
			if err := postCilium(ctx, client, document); err != nil {
				t.Errorf("%s, document %d: %v", file, i+1, err)
			}
		}
	}
	for _, text := range want {
		text = strings.TrimSpace(text)
		head, _, _ := strings.Cut(text, "\n")
		key := strings.Replace(head, " ", "/", 1) // "Kind namespace/name" or "Kind name"
		if strings.HasPrefix(head, "CiliumClusterwide") {
			key = strings.Replace(head, " ", "//", 1)
		}
		got := ""
		eventually(t, "row of "+head, func() bool {
			row, _, ok := st.Policies.Snapshot().Get(key)
			got = strings.TrimSpace(showCiliumRow(row))
			return ok
		})
		if got != text {
			t.Errorf("from the server:\n%s\nfrom a file:\n%s", got, text)
		}
	}

	// What the server cannot check keeps nothing else from being read, and what an object said before stays in force.
	const wrong = `{"spec": {"ingress": [{"toPorts": [{"ports": [{"port": 5432}]}]}]}}`
	if err := client.cilium.Patch(types.MergePatchType).Namespace("web").Resource("ciliumnetworkpolicies").Name("postgres").Body([]byte(wrong)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refused, the first generation stays", func() bool {
		p, _, _ := st.Policies.Snapshot().Get("CiliumNetworkPolicy/web/postgres")
		return p.Generation == 2 && p.Enforced == 1 && len(p.Specs) == 1 &&
			p.Refused == "spec.ingress[0].toPorts[0].ports[0].port: 5432: want a string: put it in quotes"
	})
	if err := postCilium(ctx, client, "kind: CiliumNetworkPolicy\nmetadata: {name: later, namespace: web}\nspec: {endpointSelector: {}, ingress: [{}]}"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a policy beside it", func() bool {
		p, _, _ := st.Policies.Snapshot().Get("CiliumNetworkPolicy/web/later")
		return p.Enforced == 1
	})
	if err := postCilium(ctx, client, "kind: CiliumNetworkPolicy\nmetadata: {name: none, namespace: web}"); err == nil || !strings.Contains(err.Error(), "want spec or specs") {
		t.Errorf("without a spec: %v", err)
	}
	for _, plural := range ciliumPlurals() {
		if err := client.core.Delete().AbsPath(crdPath, plural+".cilium.io").Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "policies gone with their CRDs", func() bool {
		for p := range st.Policies.Snapshot().All() {
			if p.Kind == policy.CiliumNetworkPolicy || p.Kind == policy.CiliumClusterwideNetworkPolicy {
				return false
			}
		}
		return names(st.Problems) == ""
	})
}

func ciliumPlurals() []string {
	return []string{"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"}
}

// postCilium creates an object from its manifest as kubectl does: fields that the schema does not know are errors.
func postCilium(ctx context.Context, client *Client, manifest string) error {
	if !strings.Contains(manifest, "apiVersion:") {
		manifest = "apiVersion: cilium.io/v2\n" + manifest
	}
	objects, err := ParseObjects([]byte(manifest))
	if err != nil {
		return err
	}
	resource := "ciliumclusterwidenetworkpolicies"
	namespace := objects[0].GetNamespace()
	if namespace != "" {
		resource = "ciliumnetworkpolicies"
	}
	return client.cilium.Post().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Param("fieldValidation", "Strict").
		SetHeader("Content-Type", "application/yaml").Body([]byte(manifest)).Do(ctx).Error()
}
