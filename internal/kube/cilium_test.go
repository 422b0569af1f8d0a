package kube

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

var update = flag.Bool("update", false, "write testdata")

// homeCluster is the name of the cluster that the manifests of the tests are read in.
const homeCluster = "home"

// readCilium reads an object as the sources do.
func readCilium(t testing.TB, o metav1.Object) (state.Policy, error) {
	t.Helper()
	switch o := o.(type) {
	case *ciliumv2.CiliumNetworkPolicy:
		row, ok, err := ciliumPolicies(Tables{Cluster: homeCluster}).convert(o)
		if !ok {
			t.Fatalf("%s: there is no row", o.Name)
		}
		return row, err
	case *ciliumv2.CiliumClusterwideNetworkPolicy:
		row, ok, err := ciliumClusterwidePolicies(Tables{Cluster: homeCluster}).convert(o)
		if !ok {
			t.Fatalf("%s: there is no row", o.Name)
		}
		return row, err
	}
	t.Fatalf("%T is no policy of cilium.io", o)
	return state.Policy{}, nil
}

// showCilium prints all of a policy: selectors by their keys, of which different ones have different ones.
func showCilium(p policy.Policy) string {
	var b strings.Builder
	what := "for"
	if p.Node {
		what = "host firewall of"
	}
	fmt.Fprintf(&b, "%s %s\n", what, p.Subject.Key())
	for _, way := range []policy.Way{policy.Ingress, policy.Egress} {
		d := p.Ingress
		if way == policy.Egress {
			d = p.Egress
		}
		switch {
		case d.Isolates:
			fmt.Fprintf(&b, "%s isolated\n", way)
		case len(d.Rules) > 0:
			fmt.Fprintf(&b, "%s\n", way)
		}
		for _, r := range d.Rules {
			fmt.Fprintf(&b, "  %s: %s %s; %s\n", r.Path, r.Action, either(r.Peers, "everybody", "nobody", policy.Selector.Key), either(r.Ports, "every port", "no port", policy.Port.String))
		}
	}
	if p.Tier != policy.Normal || p.Priority != 0 || p.Audit {
		fmt.Fprintf(&b, "but %s %d %t\n", p.Tier, p.Priority, p.Audit)
	}
	return b.String()
}

func either[T any](list []T, ifNil, ifEmpty string, show func(T) string) string {
	if list == nil {
		return ifNil
	}
	if len(list) == 0 {
		return ifEmpty
	}
	var out []string
	for _, item := range list {
		out = append(out, show(item))
	}
	return strings.Join(out, " or ")
}

// showCiliumRow prints an object: its policies, or why it is refused.
func showCiliumRow(row state.Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", row.Ref)
	if row.Refused != "" {
		fmt.Fprintf(&b, "refused: %s\n", strings.ReplaceAll(row.Refused, "; spec", ";\n  spec"))
	}
	for _, p := range row.Specs {
		b.WriteString(showCilium(p))
	}
	return b.String() + "\n"
}

// TestCiliumExamples reads what Cilium's documentation has as examples, written anew.
func TestCiliumExamples(t *testing.T) {
	files, err := filepath.Glob("testdata/cilium/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := ParseObjects(raw)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var b strings.Builder
		for _, o := range objects {
			row, _ := readCilium(t, o)
			b.WriteString(showCiliumRow(row))
		}
		golden := strings.TrimSuffix(file, ".yaml") + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatalf("%v (run go test -update)", err)
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", golden, diff)
		}
	}
}
