package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/tools/txtar"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/localapi"
)

var update = flag.Bool("update", false, "write the golden files and docs/reference/cli.md")

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard()) // as main does
	// The heartbeat of an exec ends at its next tick, not with the exec.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"),
		// An exec that is given up while its streams are being made leaves their readers.
		goleak.IgnoreAnyFunction("k8s.io/client-go/tools/remotecommand.(*stream).Read"))
}

// TestGolden runs the command of each section of testdata/*.txtar and compares what it prints. A section is named
// "WIDTH COMMAND"; $sick and $well are sockets of agents, $cluster is a kubeconfig. Width 0 is a pipe.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	cluster := threeNodes(t)
	cluster.nodes = append(cluster.nodes, "n4")
	words := map[string]string{
		"$sick": agent(t, nodeOf(1, true)), "$well": agent(t, nodeOf(2, false)), "$bare": agent(t, localapi.Provider{}),
		"$cluster": cluster.kubeconfig(t), "$none": filepath.Join(t.TempDir(), "none"),
	}
	for _, file := range files {
		golden, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, section := range golden.Files {
			got := runSection(t, section.Name, words)
			if *update {
				golden.Files[i].Data = []byte(got)
				continue
			}
			if diff := cmp.Diff(string(section.Data), got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", file, section.Name, diff)
			}
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(golden), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func runSection(t *testing.T, name string, words map[string]string) string {
	var width int
	var line string
	if _, err := fmt.Sscanf(name, "%d", &width); err != nil {
		t.Fatalf("section %q: want WIDTH COMMAND: %v", name, err)
	}
	_, line, _ = strings.Cut(name, " ")
	args := strings.Fields(line)
	for i, a := range args {
		if w, ok := words[a]; ok {
			args[i] = w
		}
	}
	stdout, stderr, code := terminal{width: width}.run(args...)
	got := stdout
	for l := range strings.Lines(stderr) {
		got += "stderr: " + l
	}
	got += fmt.Sprintf("exit code %d\n", code)
	for word, path := range words {
		got = strings.ReplaceAll(got, path, word)
	}
	return regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(got, "127.0.0.1:PORT")
}

func TestJSONAndYAMLSayTheSame(t *testing.T) {
	socket := agent(t, nodeOf(1, true))
	for _, args := range [][]string{{"status"}, {"get", "nodes"}, {"service", "list"}, {"service", "show", "shop"}, {"service", "rules"}, {"bpf", "list"}, {"bpf", "dump", "strait_ipcache"}, {"ipam", "check"}, {"version"}} {
		asJSON, _, _ := terminal{color: true, width: 80}.run(append(args, "--socket", socket, "-o", "json")...)
		asYAML, _, _ := terminal{color: true, width: 80}.run(append(args, "--socket", socket, "-o", "yaml")...)
		var x, y any
		if err := json.Unmarshal([]byte(asJSON), &x); err != nil {
			t.Errorf("%v: %v in %s", args, err, asJSON)
		}
		if err := yaml.Unmarshal([]byte(asYAML), &y); err != nil {
			t.Errorf("%v: %v in %s", args, err, asYAML)
		}
		if diff := cmp.Diff(x, y); diff != "" {
			t.Errorf("%v: JSON and YAML differ:\n%s", args, diff)
		}
	}
}

func TestJSONOfClusterHoldsThatOfItsNodes(t *testing.T) {
	s := threeNodes(t)
	config := s.kubeconfig(t)
	var all struct {
		Nodes []struct {
			Node   string
			Result json.RawMessage
		}
	}
	text, _, _ := terminal{}.run("get", "endpoints", "-o", "json", "--kubeconfig", config)
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	one, _, _ := terminal{}.run("get", "endpoints", "-o", "json", "--kubeconfig", config, "--node", "n2")
	onNode, _, _ := terminal{}.run("get", "endpoints", "-o", "json", "--socket", s.sockets["strait-agent-n2"])
	if one != onNode {
		t.Errorf("--node n2 from outside prints\n%s, the node itself\n%s", one, onNode)
	}
	var compact bytes.Buffer
	_ = json.Compact(&compact, []byte(one))
	var ofCluster bytes.Buffer
	_ = json.Compact(&ofCluster, all.Nodes[1].Result)
	if len(all.Nodes) != 3 || all.Nodes[1].Node != "n2" || compact.String() != ofCluster.String() {
		t.Errorf("cluster answer = %s", text)
	}
}

func TestColours(t *testing.T) {
	socket := agent(t, nodeOf(1, true))
	plain, _, _ := terminal{width: 80}.run("status", "--socket", socket)
	coloured, _, _ := terminal{width: 80, color: true}.run("status", "--socket", socket)
	if strings.Contains(plain, "\x1b") || !strings.Contains(coloured, "\x1b[31m") {
		t.Error("colours are not as the terminal wants them")
	}
	if stripped := regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(coloured, ""); stripped != plain {
		t.Errorf("colours move the text (-plain +coloured):\n%s", cmp.Diff(plain, stripped))
	}
}

func TestCompletion(t *testing.T) {
	socket := agent(t, nodeOf(1, false))
	config := threeNodes(t).kubeconfig(t)
	for _, tc := range []struct {
		line string
		want string
	}{
		{"bpf dump --socket " + socket + " strait_", "strait_ct strait_ipcache strait_service strait_sk"},
		{"bpf dump --kubeconfig " + config + " strait_", "strait_ct strait_ipcache strait_service strait_sk"},
		{"status --socket " + socket + " --node ", "n1 n2 n3"},
		{"status --kubeconfig " + config + " --node ", "n1 n2 n3"},
		{"status --socket /nowhere --node ", ""},
		{"status -o ", "table wide json yaml"},
		{"service show --socket " + socket + " default/", "default/cache default/db default/empty default/exporter-1 default/kubernetes default/shop default/web kube-system/kube-dns"},
		{"service list --type ", "ClusterIP NodePort LoadBalancer ExternalIP HostPort ExternalName Headless"},
		{"service rules --as ", "iptables ipvs"},
		{"completion ", "bash zsh fish powershell"},
		{"get nod", "nodes"},
	} {
		args := append([]string{"__complete"}, strings.Split(tc.line, " ")...)
		stdout, _, _ := terminal{}.run(args...)
		var got []string
		for l := range strings.Lines(stdout) {
			if word, _, _ := strings.Cut(strings.TrimSpace(l), "\t"); !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s<TAB> = %v, want %s", tc.line, got, tc.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if script, _, code := (terminal{}).run("completion", shell); code != 0 || !strings.Contains(script, "strait") {
			t.Errorf("completion %s = %d %s", shell, code, script)
		}
	}
}

func TestWait(t *testing.T) {
	sick := agent(t, nodeOf(1, true))
	_, stderr, code := terminal{}.run("status", "--wait", "--wait-timeout", "20ms", "--socket", sick)
	if code != cli.ExitProblems || !strings.Contains(stderr, "waiting: node n1: Kubernetes: not connected") || !strings.Contains(stderr, "not ok after 20ms") {
		t.Errorf("wait for a sick node = %d %s", code, stderr)
	}
	if _, stderr, code := (terminal{}).run("status", "--wait", "--socket", agent(t, nodeOf(1, false))); code != 0 || stderr != "" {
		t.Errorf("wait for a node that is well = %d %s", code, stderr)
	}
	if _, stderr, code := (terminal{}).run("status", "--wait", "--wait-timeout", "20ms", "--socket", "/nowhere"); code != cli.ExitUnreachable {
		t.Errorf("wait for nobody = %d %s", code, stderr)
	}
}

// A node whose agent never answers is named after the timeout, and does not hold up the others.
func TestSilentNode(t *testing.T) {
	s := threeNodes(t)
	s.sockets["strait-agent-n3"] = ""
	stdout, stderr, code := terminal{}.run("get", "endpoints", "--timeout", "2s", "--kubeconfig", s.kubeconfig(t))
	if code != cli.ExitProblems || !strings.Contains(stderr, "node n3 does not answer: no answer from strait-agent-n3 in 2s") || !strings.Contains(stdout, "web-2") {
		t.Errorf("= %d\n%s%s", code, stdout, stderr)
	}
}

func TestNodesMayNotBeListed(t *testing.T) {
	s := threeNodes(t)
	s.noNodes = true
	if stdout, stderr, code := (terminal{}).run("get", "endpoints", "--kubeconfig", s.kubeconfig(t)); code != 0 || !strings.Contains(stdout, "web-3") {
		t.Errorf("= %d\n%s%s", code, stdout, stderr)
	}
}

// The screen of a person whose agent has ended says why it did.
func TestAgentThatEnded(t *testing.T) {
	dir := t.TempDir()
	if err := localapi.WriteFailure(dir, errors.New("masqueradePorts overlap ip_local_port_range")); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := terminal{}.run("status", "--socket", filepath.Join(dir, "agent.sock"))
	if code != cli.ExitUnreachable || !strings.Contains(stderr, "no agent runs on this node") || !strings.Contains(stderr, "ago: masqueradePorts overlap") {
		t.Errorf("= %d %s", code, stderr)
	}
}
