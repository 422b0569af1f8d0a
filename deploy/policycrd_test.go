package deploy

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

const (
	clusterPolicies    = "clusternetworkpolicies.policy.networking.k8s.io"
	ciliumPolicies     = "ciliumnetworkpolicies.cilium.io"
	ciliumClusterwides = "ciliumclusterwidenetworkpolicies.cilium.io"
)

// crdsOf returns the names of the CRDs that are rendered for a cluster that has some already: name -> the release that has installed it,
// empty for none.
func crdsOf(t *testing.T, there map[string]string, values map[string]any) []string {
	t.Helper()
	c := load(t)
	options := chartutil.ReleaseOptions{Name: "strait", Namespace: "kube-system", Revision: 1, IsInstall: true}
	full, err := chartutil.ToRenderValues(c, values, options, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.RenderWithClientProvider(c, full, cluster(there))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name, text := range files {
		if strings.Contains(name, "/crds/") {
			for _, o := range decode(t, name, text) {
				out = append(out, o.(*apiextensionsv1.CustomResourceDefinition).Name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// cluster answers the chart's lookups.
type cluster map[string]string

func (c cluster) GetClientFor(_, _ string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return lookups{there: c}, false, nil
}

type lookups struct {
	dynamic.NamespaceableResourceInterface // of which only Get is called
	there                                  cluster
}

func (l lookups) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	release, ok := l.there[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "customresourcedefinitions"}, name)
	}
	out := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": name}}}
	if release != "" {
		out.SetAnnotations(map[string]string{"meta.helm.sh/release-name": release})
	}
	return out, nil
}

// CRDs that others have installed are theirs: Helm would refuse to install over them, and forced to would break what they are for.
func TestForeignCRDsAreLeftAlone(t *testing.T) {
	const pools = "loadbalancerpools.strait.dev"
	off := map[string]any{"policyCRDs": map[string]any{"install": false}}
	for _, c := range []struct {
		name   string
		there  map[string]string
		values map[string]any
		want   []string
	}{
		{"empty cluster", nil, nil, []string{ciliumClusterwides, ciliumPolicies, clusterPolicies, pools}},
		{"upgrade", map[string]string{ciliumPolicies: "strait", ciliumClusterwides: "strait", clusterPolicies: "strait", pools: "strait"}, nil,
			[]string{ciliumClusterwides, ciliumPolicies, clusterPolicies, pools}},
		{"Cilium's operator", map[string]string{ciliumPolicies: "", ciliumClusterwides: ""}, nil, []string{clusterPolicies, pools}},
		{"another release", map[string]string{clusterPolicies: "other"}, nil, []string{ciliumClusterwides, ciliumPolicies, pools}},
		{"off", nil, off, []string{pools}},
	} {
		if diff := cmp.Diff(c.want, crdsOf(t, c.there, c.values)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// The API server drops what a schema does not know: of the manifests that internal/kube is tested with it must drop nothing.
func TestCiliumCRDsDropNothing(t *testing.T) {
	out := mustRender(t)
	schemas := map[string]*structuralschema.Structural{}
	for kind, name := range map[string]string{"CiliumNetworkPolicy": ciliumPolicies, "CiliumClusterwideNetworkPolicy": ciliumClusterwides} {
		schemas[kind] = structural(t, get[*apiextensionsv1.CustomResourceDefinition](t, out, name))
	}
	files, err := filepath.Glob("../internal/kube/testdata/cilium/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, document := range strings.Split(string(raw), "\n---\n") {
			var o map[string]any
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				t.Fatal(err)
			}
			kind, _ := o["kind"].(string)
			schema := schemas[kind]
			if schema == nil {
				t.Errorf("%s, document %d: kind %q", file, i+1, kind)
				continue
			}
			before := asYAML(t, o)
			pruning.Prune(o, schema, true)
			if diff := cmp.Diff(before, asYAML(t, o)); diff != "" {
				t.Errorf("%s, document %d: the API server would drop (-sent +kept):\n%s", file, i+1, diff)
			}
		}
	}
}

// structural returns the schema of a CRD's only version as the API server uses it.
func structural(t *testing.T, crd *apiextensionsv1.CustomResourceDefinition) *structuralschema.Structural {
	t.Helper()
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != "v2" || crd.Spec.Versions[0].Subresources == nil || crd.Spec.Versions[0].Subresources.Status == nil {
		t.Fatalf("%s: want one version, v2, with a status subresource", crd.Name)
	}
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(crd.Spec.Versions[0].Schema.OpenAPIV3Schema, &internal, nil); err != nil {
		t.Fatal(err)
	}
	s, err := structuralschema.NewStructural(&internal)
	if err != nil {
		t.Fatal(err)
	}
	if errs := structuralschema.ValidateStructural(nil, s); len(errs) > 0 {
		t.Fatalf("%s: %v", crd.Name, errs.ToAggregate())
	}
	return s
}
