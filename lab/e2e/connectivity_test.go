package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// connectivityReport is what strait connectivity test -o json prints, as far as it is looked at.
type connectivityReport struct {
	Nodes     []string
	Scenarios []struct {
		Scenario, Outcome, Why string
		Findings               []string
	}
}

// connectivity runs the test in a namespace of its own, and holds it to leaving nothing behind.
func connectivity(t *testing.T, args ...string) (connectivityReport, int) {
	t.Helper()
	path, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	namespace := shared.namespace + "-connectivity"
	args = append([]string{"connectivity", "test", "-o", "json", "--namespace", namespace}, args...)
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(shared.lab), "strait"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+strings.TrimSpace(path))
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	_ = cmd.Run() // the exit code is the caller's to judge
	t.Logf("%s", progress.String())
	var report connectivityReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("%v in %q: %s", err, out.String(), progress.String())
	}
	if _, err := shared.kube.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("namespace %s is still there: %v", namespace, err)
	}
	return report, cmd.ProcessState.ExitCode()
}

// CLI-3: in a cluster that is well everything passes that can be run in it.
func TestCLI3_ConnectivityOfAClusterThatIsWell(t *testing.T) {
	needStrait(t)
	junit := filepath.Join(t.TempDir(), "report.xml")
	args := []string{"--junit", junit}
	mayNot := map[string]bool{"pod-to-external-fqdn-allow-cnp": true} // as long as such a policy is refused
	if shared.spec().Network == "isolated" {
		mayNot["pod-to-external"] = true
	} else {
		args = append(args, "--external", "http://web.outside.test/hostname")
	}
	report, code := connectivity(t, args...)
	if code != 0 || len(report.Scenarios) != 13 {
		t.Errorf("exit code %d with %d scenarios", code, len(report.Scenarios))
	}
	for _, s := range report.Scenarios {
		if s.Outcome != "passed" && !mayNot[s.Scenario] && (len(shared.nodes) > 1 || !strings.Contains(s.Why, "two nodes")) || s.Outcome == "failed" {
			t.Errorf("%s: %s: %s\n%s", s.Scenario, s.Outcome, s.Why, strings.Join(s.Findings, "\n"))
		}
	}
	var suites struct {
		Suite struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
		} `xml:"testsuite"`
	}
	text, err := os.ReadFile(junit)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(text, &suites); err != nil || suites.Suite.Tests != len(report.Scenarios) || suites.Suite.Failures != 0 {
		t.Errorf("%v in %s", err, text)
	}
}

// CLI-3: what somebody has broken is found where it is broken and nowhere else, and the policy that did it is named.
func TestCLI3_ConnectivityFindsWhatIsBroken(t *testing.T) {
	needStrait(t)
	const name = "e2e-nobody-asks-echo-a"
	deny := fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata:
  name: %s
spec:
  endpointSelector:
    matchLabels:
      name: echo-a
      k8s:io.kubernetes.pod.namespace: %s-connectivity
  ingressDeny:
  - fromEntities: [all]
    toPorts:
    - ports:
      - port: "8080"
        protocol: TCP
`, name, shared.namespace)
	if err := shared.waiter.Apply(t.Context(), []byte(deny)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = shared.kube.Discovery().RESTClient().Delete().AbsPath("/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/" + name).
			Do(context.Background()).Error()
	})
	report, code := connectivity(t, "--only", "pod-to-a,pod-to-a-denied-cnp,pod-to-a-allowed-cnp,pod-to-b-intra-node-clusterip", "--timeout", "4s")
	want := map[string]string{"pod-to-a": "failed", "pod-to-a-denied-cnp": "passed", "pod-to-a-allowed-cnp": "failed", "pod-to-b-intra-node-clusterip": "passed"}
	if code != 1 || len(report.Scenarios) != len(want) {
		t.Errorf("exit code %d, %+v", code, report)
	}
	for _, s := range report.Scenarios {
		if s.Outcome != want[s.Scenario] {
			t.Errorf("%s %s: %s", s.Scenario, s.Outcome, s.Why)
		}
		found := strings.Join(s.Findings, "\n")
		if s.Outcome == "failed" && (!strings.Contains(s.Why, "nothing came") || !strings.Contains(found, name+" spec.ingressDeny[0]") ||
			!strings.Contains(found, "DENIED: denied by CiliumClusterwideNetworkPolicy "+name) || !strings.Contains(found, "Dropped here because")) {
			t.Errorf("%s failed: %s; want the policy that did it, the flow and the hop in\n%s", s.Scenario, s.Why, found)
		}
	}
}

// The tour of the README: ships of the empire land, those of the alliance do not, and one can see why.
func TestTour_StarWars(t *testing.T) {
	needStrait(t)
	starWars := shared.namespace + "-star-wars" // a person may be on the tour in this lab
	apply := func(file string) {
		t.Helper()
		manifest, err := os.ReadFile(filepath.Join("../../examples/star-wars", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := shared.waiter.Apply(t.Context(), bytes.ReplaceAll(manifest, []byte("star-wars"), []byte(starWars))); err != nil {
			t.Fatal(err)
		}
	}
	apply("star-wars.yaml")
	t.Cleanup(func() {
		_ = shared.kube.CoreV1().Namespaces().Delete(context.Background(), starWars, metav1.DeleteOptions{})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := shared.waiter.WaitPods(ctx, starWars); err != nil {
		t.Fatal(err)
	}
	land := func(ctx context.Context, ship string) (string, error) {
		return shared.exec(ctx, starWars, ship, "strait", "ask", "-X", "POST", "--timeout", "2s", "http://deathstar/v1/request-landing")
	}
	lands := func(ship string, patience time.Duration) {
		t.Helper()
		eventually(t, patience, func(ctx context.Context) error {
			out, err := land(ctx, ship)
			if err == nil && !strings.Contains(out, "answers 200 in") || err == nil && !strings.Contains(out, ": Ship landed") {
				return fmt.Errorf("%s: %q", ship, out)
			}
			return err
		})
	}
	for _, ship := range []string{"tiefighter", "xwing"} { // nothing is forbidden yet
		lands(ship, 20*time.Second)
	}
	apply("policy.yaml")
	eventually(t, propagation, func(ctx context.Context) error {
		out, err := land(ctx, "xwing")
		if err == nil {
			return fmt.Errorf("the xwing lands: %q", out)
		}
		if !strings.Contains(out, "nothing came within") {
			return fmt.Errorf("%q: %w", out, err)
		}
		return nil
	})
	lands("tiefighter", propagation)
	out := shared.strait(t, "policy", "show", starWars+"/landing", "-o", "json")
	var all struct {
		Nodes []struct {
			Result struct {
				Denied struct{ Packets int }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	denied := 0
	for _, n := range all.Nodes {
		denied += n.Result.Denied.Packets
	}
	if denied == 0 {
		t.Errorf("the policy has not counted what it denied: %s", out)
	}
	eventually(t, propagation, func(context.Context) error {
		out := shared.strait(t, "observe", "-n", starWars, "--verdict", "dropped", "--all")
		for line := range strings.Lines(out) {
			if strings.Contains(line, starWars+"/xwing:") && strings.Contains(line, "DENIED: no rule of CiliumNetworkPolicy "+starWars+"/landing allowed it") &&
				strings.Contains(line, "spec.ingress[0]: peer label org=alliance, want org=empire") {
				return nil
			}
		}
		return fmt.Errorf("strait observe does not say why the xwing may not land: %s", out)
	})
}

// strait runs the command from outside and returns what it prints; an exit code other than 0 is an error of the test.
func (r *rig) strait(t *testing.T, args ...string) string {
	t.Helper()
	path, err := r.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(r.lab), "strait"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+strings.TrimSpace(path))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("strait %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
