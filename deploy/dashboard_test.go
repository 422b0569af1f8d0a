package deploy

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// dashboard is what is looked at of Grafana's model.
type dashboard struct {
	Panels []struct {
		Type        string
		Title       string
		Description string
		Targets     []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name string }
	}
}

// documented returns the labels of every metric of docs/reference/metrics.md, which is what an agent serves.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile("`([a-z_]+)`")
	metrics := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.HasPrefix(cells[1], " `strait_") {
			continue
		}
		var labels []string
		for _, m := range words.FindAllStringSubmatch(cells[3], -1) {
			labels = append(labels, m[1])
		}
		name := strings.Trim(cells[1], " `")
		metrics[name] = labels
		if strings.Contains(cells[2], "histogram") {
			metrics[name+"_bucket"] = append(slices.Clone(labels), "le")
			metrics[name+"_count"], metrics[name+"_sum"] = labels, labels
		}
	}
	return metrics
}

// A panel that asks for what no agent serves stays empty, and nobody is told.
func TestDashboardAsksForWhatThereIs(t *testing.T) {
	r := mustRender(t, "dashboards.enabled=true")
	var d dashboard
	if err := json.Unmarshal([]byte(get[*corev1.ConfigMap](t, r, "strait-dashboard").Data["strait.json"]), &d); err != nil {
		t.Fatal(err)
	}
	metrics := documented(t)
	var (
		selector = regexp.MustCompile(`([a-z_]+)\{([^}]*)\}`)
		label    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!=|=)`)
		grouping = regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	)
	common := []string{"job", "instance"} // Prometheus' own
	panels := 0
	for _, p := range d.Panels {
		if p.Type == "row" {
			continue
		}
		panels++
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q has no description or no query", p.Title)
		}
		for _, target := range p.Targets {
			var known []string
			found := selector.FindAllStringSubmatch(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("panel %q asks for nothing: %s", p.Title, target.Expr)
			}
			for _, m := range found {
				labels, there := metrics[m[1]]
				if !there && !strings.HasPrefix(m[1], "process_") {
					t.Errorf("panel %q asks for %s, which no agent serves", p.Title, m[1])
				}
				known = append(append(known, labels...), common...)
				for _, l := range label.FindAllStringSubmatch(m[2], -1) {
					if !slices.Contains(known, l[1]) {
						t.Errorf("panel %q: %s has no label %s", p.Title, m[1], l[1])
					}
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(target.Expr, -1) {
				for l := range strings.SplitSeq(m[1], ",") {
					if !slices.Contains(known, strings.TrimSpace(l)) {
						t.Errorf("panel %q groups by %s, which %s has not", p.Title, l, target.Expr)
					}
				}
			}
		}
	}
	if panels < 15 {
		t.Errorf("%d panels", panels)
	}
}

func TestDashboardIsFoundByGrafana(t *testing.T) {
	if r := mustRender(t); slices.ContainsFunc(r.objects, func(o runtime.Object) bool {
		n, ok := o.(named)
		return ok && n.GetName() == "strait-dashboard"
	}) {
		t.Error("there although nobody wants it")
	}
	m := get[*corev1.ConfigMap](t, mustRender(t, "dashboards.enabled=true", "dashboards.namespace=monitoring", "dashboards.annotations.folder=Net"), "strait-dashboard")
	if m.Namespace != "monitoring" || m.Labels["grafana_dashboard"] != "1" || m.Annotations["folder"] != "Net" {
		t.Errorf("got %+v", m.ObjectMeta)
	}
}
