// Package deploy proves what the Helm chart renders: with the library of Helm 3, because that is what users install with (the
// lab renders the same chart with Helm 4's), and with the agent's own parser of config.yaml.
package deploy

import (
	"flag"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/internal/config"
)

var update = flag.Bool("update", false, "write testdata and docs/reference/values.md")

const chartDir = "helm/strait"

// rendered is what one set of values becomes.
type rendered struct {
	objects []runtime.Object
	config  string // config.yaml
	notes   string
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render renders with values given as to helm's --set.
func render(t *testing.T, sets ...string) (rendered, error) {
	t.Helper()
	values := map[string]any{}
	for _, s := range sets {
		if err := strvals.ParseInto(s, values); err != nil {
			t.Fatalf("--set %s: %v", s, err)
		}
	}
	c := load(t)
	options := chartutil.ReleaseOptions{Name: "strait", Namespace: "kube-system", Revision: 1, IsInstall: true}
	full, err := chartutil.ToRenderValues(c, values, options, chartutil.DefaultCapabilities)
	if err != nil {
		return rendered{}, err
	}
	files, err := engine.Render(c, full)
	if err != nil {
		return rendered{}, err
	}
	var out rendered
	for _, name := range slices.Sorted(mapKeys(files)) {
		switch base := path.Base(name); {
		case base == "NOTES.txt":
			out.notes = files[name]
		case strings.HasPrefix(base, "_"):
		default:
			out.objects = append(out.objects, decode(t, name, files[name])...)
		}
	}
	out.config = get[*corev1.ConfigMap](t, out, "strait-config").Data["config.yaml"]
	return out, nil
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func mustRender(t *testing.T, sets ...string) rendered {
	t.Helper()
	out, err := render(t, sets...)
	if err != nil {
		t.Fatalf("render with %q: %v", sets, err)
	}
	return out
}

// decode reads objects as the API server does with strict field validation.
func decode(t *testing.T, name, text string) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme, policyv1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, document := range strings.Split(text, "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		if strings.Contains(document, "apiVersion: monitoring.coreos.com/") { // whose types are the Prometheus operator's
			other := &unstructured.Unstructured{}
			if err := yaml.UnmarshalStrict([]byte(document), other); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, document)
			}
			out = append(out, other)
			continue
		}
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, document)
		}
		out = append(out, object)
	}
	return out
}

type named interface {
	runtime.Object
	GetName() string
}

func get[O named](t *testing.T, r rendered, name string) O {
	t.Helper()
	for _, object := range r.objects {
		if o, ok := object.(O); ok && o.GetName() == name {
			return o
		}
	}
	var none O
	t.Fatalf("no %T named %s", none, name)
	return none
}

func parse(t *testing.T, r rendered) config.Config {
	t.Helper()
	c, err := config.Parse([]byte(r.config))
	if err != nil {
		t.Fatalf("config.yaml is refused: %v\n%s", err, r.config)
	}
	return c
}

func asYAML(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// golden compares with a file below testdata, or writes it with -update.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(path.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run go test -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is old, run go test -update (-file +now):\n%s", file, diff)
	}
}

// The chart's defaults are the program's: whoever reads either knows both.
func TestDefaults(t *testing.T) {
	out := mustRender(t)
	if diff := cmp.Diff(asYAML(t, config.Default()), asYAML(t, withoutEmptyLists(parse(t, out)))); diff != "" {
		t.Errorf("chart's defaults differ from config.Default (-program +chart):\n%s", diff)
	}
	if keys := asMap(t, out.config); len(keys) != len(asMap(t, asYAML(t, config.Default()))) {
		t.Errorf("config.yaml has %d keys, the program %d: a value is missing in the chart", len(keys), len(asMap(t, asYAML(t, config.Default()))))
	}
}

func withoutEmptyLists(c config.Config) config.Config {
	if len(c.Devices) == 0 {
		c.Devices = nil
	}
	if len(c.ServiceCIDRs) == 0 {
		c.ServiceCIDRs = nil
	}
	return c
}

func asMap(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// RBAC is reviewed as a whole: the golden file is every rule there is.
func TestRBAC(t *testing.T) {
	var b strings.Builder
	for _, object := range mustRender(t, "hubble.relay.enabled=true").objects {
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			writeRules(&b, "ClusterRole "+o.Name, o.Rules)
		case *rbacv1.Role:
			writeRules(&b, "Role "+o.Namespace+"/"+o.Name, o.Rules)
		case *rbacv1.ClusterRoleBinding:
			writeBinding(&b, "ClusterRoleBinding "+o.Name, o.RoleRef, o.Subjects)
		case *rbacv1.RoleBinding:
			writeBinding(&b, "RoleBinding "+o.Namespace+"/"+o.Name, o.RoleRef, o.Subjects)
		}
	}
	golden(t, "testdata/rbac.txt", b.String())

	// Without certificates to make nobody reads or writes a Secret.
	for _, sets := range [][]string{nil, {"hubble.relay.enabled=true", "hubble.tls.auto.enabled=false"}} {
		for _, object := range mustRender(t, sets...).objects {
			var rules []rbacv1.PolicyRule
			switch o := object.(type) {
			case *rbacv1.ClusterRole:
				rules = o.Rules
			case *rbacv1.Role:
				rules = o.Rules
			}
			for _, rule := range rules {
				if slices.Contains(rule.Resources, "secrets") {
					t.Errorf("with %q somebody may %v secrets", sets, rule.Verbs)
				}
			}
		}
	}

	// In kubernetes mode nobody but the controller-manager gives nodes their CIDRs.
	for _, rule := range get[*rbacv1.ClusterRole](t, mustRender(t, "ipam.mode=kubernetes"), "strait-operator").Rules {
		if slices.Contains(rule.Resources, "nodes") && slices.Contains(rule.Verbs, "patch") {
			t.Errorf("operator may patch %v in ipam.mode kubernetes", rule.Resources)
		}
	}
}

func writeRules(b *strings.Builder, title string, rules []rbacv1.PolicyRule) {
	b.WriteString(title + "\n")
	for _, r := range rules {
		group := strings.Join(r.APIGroups, ",")
		if group == "" {
			group = "core"
		}
		b.WriteString("  " + group + " " + strings.Join(r.Resources, ","))
		if len(r.ResourceNames) > 0 {
			b.WriteString(" named " + strings.Join(r.ResourceNames, ","))
		}
		b.WriteString(": " + strings.Join(r.Verbs, " ") + "\n")
	}
}

func writeBinding(b *strings.Builder, title string, role rbacv1.RoleRef, subjects []rbacv1.Subject) {
	b.WriteString(title + ": " + role.Kind + " " + role.Name + " to")
	for _, s := range subjects {
		b.WriteString(" " + s.Namespace + "/" + s.Name)
	}
	b.WriteString("\n")
}
