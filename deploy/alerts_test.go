package deploy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// rules is what is looked at of a file of rules, which is the spec of a PrometheusRule as well.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert       string
			Expr        string
			For         string
			Labels      map[string]string
			Annotations map[string]string
		}
	}
}

// An alert on what no agent serves never fires, and one by a label that its metric has not says nothing.
func TestAlertsAskForWhatThereIs(t *testing.T) {
	r := mustRender(t, "prometheus.rules.enabled=true", "prometheus.rules.namespace=monitoring", "prometheus.rules.labels.release=kps")
	object := get[*unstructured.Unstructured](t, r, "strait")
	if object.GetKind() != "PrometheusRule" || object.GetNamespace() != "monitoring" || object.GetLabels()["release"] != "kps" {
		t.Errorf("got %s in %s with %v", object.GetKind(), object.GetNamespace(), object.GetLabels())
	}
	text, err := yaml.Marshal(object.Object["spec"])
	if err != nil {
		t.Fatal(err)
	}
	var all rules
	if err := yaml.UnmarshalStrict(text, &all); err != nil || len(all.Groups) != 1 {
		t.Fatalf("%d groups, %v", len(all.Groups), err)
	}
	metrics := documented(t)
	var (
		metric   = regexp.MustCompile(`strait_[a-z_]+`)
		selector = regexp.MustCompile(`(strait_[a-z_]+)\{([^}]*)\}`)
		label    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
		grouping = regexp.MustCompile(`(?:by|without|ignoring) ?\(([a-z_, ]+)\)`)
		shown    = regexp.MustCompile(`\$labels\.([a-z_]+)`)
		seen     []string
	)
	for _, rule := range all.Groups[0].Rules {
		if slices.Contains(seen, rule.Alert) || !strings.HasPrefix(rule.Alert, "Strait") {
			t.Errorf("alert %q: want a name of its own that begins with Strait", rule.Alert)
		}
		seen = append(seen, rule.Alert)
		if s := rule.Labels["severity"]; s != "critical" && s != "warning" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: severity %q, summary %q, description %q", rule.Alert, s, rule.Annotations["summary"], rule.Annotations["description"])
		}
		known := []string{"instance", "job"} // Prometheus' own
		names := metric.FindAllString(rule.Expr, -1)
		if len(names) == 0 {
			t.Errorf("%s asks for nothing: %s", rule.Alert, rule.Expr)
		}
		for _, name := range names {
			labels, there := metrics[name]
			if !there {
				t.Errorf("%s asks for %s, which no agent serves", rule.Alert, name)
			}
			known = append(known, labels...)
		}
		for _, m := range selector.FindAllStringSubmatch(rule.Expr, -1) {
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(metrics[m[1]], l[1]) {
					t.Errorf("%s: %s has no label %s", rule.Alert, m[1], l[1])
				}
			}
		}
		for _, m := range grouping.FindAllStringSubmatch(rule.Expr, -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				if !slices.Contains(known, strings.TrimSpace(l)) {
					t.Errorf("%s groups by %s, which %s has not", rule.Alert, l, rule.Expr)
				}
			}
		}
		for _, text := range rule.Annotations {
			for _, m := range shown.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(known, m[1]) {
					t.Errorf("%s shows %s, which %s has not", rule.Alert, m[1], rule.Expr)
				}
			}
		}
	}
	if len(seen) < 15 {
		t.Errorf("%d alerts", len(seen))
	}
}

// What drops are not alerted on by their reasons are reasons that there are.
func TestAlertsKnowReasons(t *testing.T) {
	r := mustRender(t, "prometheus.rules.enabled=true")
	text, err := yaml.Marshal(get[*unstructured.Unstructured](t, r, "strait").Object)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`reason!~"([a-z|-]+)"`).FindStringSubmatch(string(text))
	if found == nil {
		t.Fatal("no reasons are left out")
	}
	reasons, err := os.ReadFile("../docs/reference/drop-reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason := range strings.SplitSeq(found[1], "|") {
		if !strings.Contains(string(reasons), "| `"+reason+"` |") {
			t.Errorf("there is no reason %q", reason)
		}
	}
}

func TestAlertsAreOnlyForWhoWantsThem(t *testing.T) {
	if slices.ContainsFunc(mustRender(t).objects, func(o runtime.Object) bool {
		_, is := o.(*unstructured.Unstructured)
		return is
	}) {
		t.Error("there although nobody wants it")
	}
}
