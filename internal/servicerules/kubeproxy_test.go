package servicerules_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
	"github.com/strait-net/strait/internal/service"
	"github.com/strait-net/strait/internal/servicerules"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

const insideEnv = "STRAIT_RULES_NETNS" // set in the child that has a network namespace of its own

// TestAgainstKubeProxy compares with what the real kube-proxy makes of the same objects: its rules go into a network namespace of a child.
func TestAgainstKubeProxy(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		compareWithKubeProxy(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, program := range []string{"iptables-save", "ip6tables-save", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s", program)
		}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAgainstKubeProxy$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	}
}

func compareWithKubeProxy(t *testing.T) {
	for _, args := range []string{"link set lo up", "link add eth0 type veth peer name other", "address add 10.0.0.1/24 dev eth0", "address add fd00::1/64 dev eth0 nodad",
		"link set eth0 up", "link set other up", "route add default via 10.0.0.254"} { // the API server wants a default route
		run(t, "ip", strings.Fields(args)...)
	}
	server := kubetest.Start(t, nil)
	objects := readObjects(t, "testdata/shop.yaml")
	load(t, server, objects)
	proxyLog := startKubeProxy(t, server)
	want := ours(t, objects)
	for _, family := range []struct{ program, head, last string }{
		{"iptables-save", "# iptables-save", "KUBE-SVC-"}, {"ip6tables-save", "# ip6tables-save", "KUBE-SVC-"},
	} {
		var theirs map[string][]string
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			text := run(t, family.program)
			if theirs = chains(strings.Split(text, "\n")); strings.Contains(text, family.last) && strings.Contains(text, "default/web") {
				break
			}
			if time.Now().After(end) {
				log, _ := os.ReadFile(proxyLog)
				t.Fatalf("kube-proxy wrote nothing:\n%s\n%s", text, log)
			}
		}
		if diff := cmp.Diff(theirs, want[family.head]); diff != "" {
			t.Errorf("%s (-kube-proxy +strait):\n%s", family.program, diff)
		}
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

func readObjects(t *testing.T, path string) []metav1.Object {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := kube.ParseObjects(raw)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// load writes the objects to the API server, a node first: kube-proxy wants to know its addresses.
func load(t *testing.T, server *kubetest.Server, objects []metav1.Object) {
	t.Helper()
	client, err := rest.HTTPClientFor(server.Config(kubetest.AdminToken))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	send := func(method, path string, o any) {
		body, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(context.Background(), method, server.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if method == http.MethodPatch {
			req.Header.Set("Content-Type", "application/merge-patch+json")
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			var text bytes.Buffer
			_, _ = text.ReadFrom(resp.Body)
			t.Fatalf("%s %s: %s\n%s", method, path, resp.Status, text.String())
		}
	}
	addresses := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00::1"}}
	send(http.MethodPost, "/api/v1/nodes", &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	send(http.MethodPatch, "/api/v1/nodes/n1/status", map[string]any{"status": map[string]any{"addresses": addresses}})
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			send(http.MethodPost, "/api/v1/namespaces/default/services", o)
			send(http.MethodPatch, "/api/v1/namespaces/default/services/"+o.Name+"/status", map[string]any{"status": o.Status})
		case *discoveryv1.EndpointSlice:
			send(http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", o)
		}
	}
}

// startKubeProxy leaves the machine-wide conntrack limits alone.
func startKubeProxy(t *testing.T, server *kubetest.Server) (log string) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(kubetest.Binaries(t), "kube-proxy"))
	if len(found) == 0 {
		t.Skip("no kube-proxy among the lab's binaries")
	}
	dir := t.TempDir()
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, server.URL, kubetest.AdminToken)
	settings := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: n1
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: st}
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, filepath.Join(dir, "kubeconfig"))
	for name, text := range map[string]string{"kubeconfig": kubeconfig, "config": settings} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log = filepath.Join(dir, "log")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(found[0], "--config", filepath.Join(dir, "config"))
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = file, file, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return log
}

// ours are the chains of each family that Strait prints for the objects on n1.
func ours(t *testing.T, objects []metav1.Object) map[string]map[string][]string {
	t.Helper()
	st := state.New()
	byService := map[state.ServiceName][]state.EndpointSlice{}
	for _, o := range objects {
		if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
			row, _, err := kube.ToEndpointSlice(slice)
			if err != nil {
				t.Fatal(err)
			}
			byService[row.Service] = append(byService[row.Service], row)
		}
	}
	for _, o := range objects {
		if object, ok := o.(*corev1.Service); ok {
			svc, err := kube.ToService(object)
			if err != nil {
				t.Fatal(err)
			}
			st.Services.Insert(svc)
			st.Frontends.Insert(service.Frontends(svc, byService[svc.ServiceName], service.Local{Node: "n1", Algorithm: state.Random, Forwarding: state.SNAT})...)
		}
	}
	rows, err := status.Provider(status.Sources{State: st, Node: "n1"}).Services(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	lines := servicerules.IPTables(rows)
	second := slices.Index(lines, "# ip6tables-save")
	return map[string]map[string][]string{"# iptables-save": chains(lines[:second]), "# ip6tables-save": chains(lines[second:])}
}

// chains returns the rules of services by table and chain. In the chains that all services share their order says nothing.
func chains(lines []string) map[string][]string {
	service := regexp.MustCompile(`^-A (KUBE-(SVC|SVL|SEP|EXT|FW)-\w+|KUBE-SERVICES|KUBE-EXTERNAL-SERVICES|KUBE-NODEPORTS|KUBE-PROXY-FIREWALL|KUBE-MARK-MASQ|KUBE-POSTROUTING) `)
	out := map[string][]string{}
	table := ""
	for _, line := range lines {
		line = strings.Replace(strings.TrimSpace(line), " ! -d ::1/128", "", 1) // Strait serves node ports to the node itself at ::1 as well
		if strings.HasPrefix(line, "*") {
			table = line
		}
		m := service.FindStringSubmatch(line)
		switch {
		case m == nil, strings.Contains(line, "default/kubernetes"), strings.Contains(line, "nfacct"):
		case strings.Contains(line, "! -i st+"): // clients outside that route cluster addresses to the node: Strait does not let them in
		default:
			out[table+" "+m[1]] = append(out[table+" "+m[1]], line)
		}
	}
	for chain, rules := range out {
		if !regexp.MustCompile(`KUBE-(SVC|SVL|SEP|EXT|FW)-`).MatchString(chain) && !strings.Contains(chain, "POSTROUTING") {
			slices.Sort(rules)
		}
	}
	return out
}
