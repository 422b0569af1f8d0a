package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"
)

// value is one leaf of values.yaml.
type value struct{ path, byDefault, meaning string }

// TestReference keeps docs/reference/values.md equal to values.yaml; a value without a comment is an error.
func TestReference(t *testing.T) {
	values := leaves(t)
	var b strings.Builder
	b.WriteString("# Values of the Helm chart\n\nGenerated from `deploy/helm/strait/values.yaml` by `go test -update` in `deploy/`; do not edit. `null` is \"not said\": other\n" +
		"values or the default decide. A value that is not listed here, that contradicts another one or that asks for what Strait does not\ndo is refused with its name.\n\n" +
		"| value | default | meaning |\n|---|---|---|\n")
	for _, v := range values {
		if v.meaning == "" {
			t.Errorf("%s has no comment above it in values.yaml", v.path)
		}
		cell := strings.NewReplacer("|", "\\|")
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", v.path, cell.Replace(v.byDefault), cell.Replace(v.meaning))
	}
	golden(t, "../docs/reference/values.md", b.String())
}

// TestSchema: values.yaml and values.schema.json know the same keys.
func TestSchema(t *testing.T) {
	raw, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Properties           map[string]json.RawMessage `json:"properties"`
		AdditionalProperties any                        `json:"additionalProperties"`
	}
	var known []string
	var walk func(path string, raw json.RawMessage)
	walk = func(path string, raw json.RawMessage) {
		var o object
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		if len(o.Properties) == 0 {
			known = append(known, path)
			return
		}
		if o.AdditionalProperties != false {
			t.Errorf("%q accepts unknown keys", path)
		}
		for _, name := range slices.Sorted(maps.Keys(o.Properties)) {
			walk(strings.TrimPrefix(path+"."+name, "."), o.Properties[name])
		}
	}
	walk("", raw)
	have := map[string]bool{"global": true} // Helm's own
	for _, v := range leaves(t) {
		have[v.path] = true
		if !slices.Contains(known, v.path) {
			t.Errorf("%s is in values.yaml and not in the schema", v.path)
		}
	}
	for _, k := range known {
		if !have[k] {
			t.Errorf("%s is in the schema and not in values.yaml", k)
		}
	}
}

func leaves(t *testing.T) []value {
	t.Helper()
	raw, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(raw, &document); err != nil {
		t.Fatal(err)
	}
	var out []value
	var walk func(path string, node *yaml.Node)
	walk = func(path string, node *yaml.Node) {
		for i := 0; i+1 < len(node.Content); i += 2 {
			key, content := node.Content[i], node.Content[i+1]
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			// A group has keys of its own with comments; a map without them, such as resources, is one value.
			if content.Kind == yaml.MappingNode && len(content.Content) > 0 && content.Content[0].HeadComment != "" {
				walk(at, content)
				continue
			}
			out = append(out, value{at, inline(t, content), prose(key.HeadComment)})
		}
	}
	walk("", document.Content[0])
	return out
}

// inline writes a node as JSON, which is YAML on one line.
func inline(t *testing.T, node *yaml.Node) string {
	t.Helper()
	text, err := yaml.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	one, err := sigsyaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(one))
}

// prose joins the last paragraph of a comment: what stands above a blank line belongs to the file.
func prose(comment string) string {
	paragraphs := strings.Split(comment, "\n\n")
	lines := strings.Split(paragraphs[len(paragraphs)-1], "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(l, "#"))
	}
	return strings.Join(lines, " ")
}
