package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// clusterIPs are the addresses of the service "web".
func clusterIPs(t *testing.T) []netip.Addr {
	t.Helper()
	s, err := shared.kube.CoreV1().Services(shared.namespace).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Addr
	for _, ip := range s.Spec.ClusterIPs {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}

// SVC-1: a service's name and both of its addresses lead to every backend, from pods and from nodes.
func TestSVC1_EveryBackendAnswers(t *testing.T) {
	script := func(host string) string {
		return fmt.Sprintf("for i in $(seq 60); do curl -sS --max-time 5 http://%s/hostname; echo; done | sort | uniq -c", host)
	}
	check := func(t *testing.T, out string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range shared.nodes {
			if !strings.Contains(out, n.server) {
				t.Errorf("%s never answered in 60 requests:\n%s", n.server, out)
			}
		}
	}
	from := shared.nodes[0]
	t.Run("by name from a pod", func(t *testing.T) {
		out, err := shared.inPod(t.Context(), shared.namespace, from.server, script("web"))
		check(t, out, err)
	})
	for _, ip := range clusterIPs(t) {
		host := strings.TrimSuffix(netip.AddrPortFrom(ip, 80).String(), ":80")
		t.Run(host+" from a pod", func(t *testing.T) {
			out, err := shared.inPod(t.Context(), shared.namespace, from.server, script(host))
			check(t, out, err)
		})
		t.Run(host+" from a host network pod", func(t *testing.T) {
			out, err := shared.inPod(t.Context(), shared.namespace, from.host, script(host))
			check(t, out, err)
		})
		t.Run(host+" from a node", func(t *testing.T) {
			out, err := shared.onMachine(t.Context(), from.name, script(host))
			check(t, out, err)
		})
	}
}

func TestSVC1_UDP(t *testing.T) {
	from := shared.nodes[0]
	for _, ip := range clusterIPs(t) {
		out, err := shared.inPod(t.Context(), shared.namespace, from.server,
			fmt.Sprintf("for i in 1 2 3 4 5; do probe datagram %s hostname; done", netip.AddrPortFrom(ip, 81)))
		if err != nil || strings.Count(out, "server-") != 5 {
			t.Errorf("%s: five datagrams got %q %v", ip, out, err)
		}
	}
}

// SVC-1: the name of a headless service is its pods.
func TestSVC1_Headless(t *testing.T) {
	out, err := shared.inPod(t.Context(), shared.namespace, shared.nodes[0].server,
		"dig +search +short pods A; dig +search +short pods AAAA")
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Fields(out)
	for _, n := range shared.nodes {
		for _, a := range n.pods {
			found := false
			for _, answer := range answers {
				found = found || answer == a.String()
			}
			if !found {
				t.Errorf("the name lacks %s: %q", a, answers)
			}
		}
	}
}

// SVC-1: the service that every controller starts with.
func TestSVC1_APIServerByItsService(t *testing.T) {
	for _, n := range shared.nodes {
		out, err := shared.inPod(t.Context(), shared.namespace, n.server,
			"curl -sS --max-time 5 --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt https://kubernetes.default.svc/readyz")
		if err != nil || out != "ok" {
			t.Errorf("%s: %q %v", n.server, out, err)
		}
	}
}

// SVC-2: a client believes that it talks to the service, while its packets carry a backend's address from the first one on.
func TestSVC2_SocketTranslation(t *testing.T) {
	from := shared.nodes[0]
	for _, ip := range clusterIPs(t) {
		for _, target := range []struct {
			proto string
			port  uint16
		}{{"tcp", 80}, {"udp", 81}} {
			address := netip.AddrPortFrom(ip, target.port).String()
			out, err := shared.inPod(t.Context(), shared.namespace, from.server, "probe peer "+target.proto+" "+address)
			if err != nil || strings.TrimSpace(out) != address {
				t.Errorf("getpeername of a %s connection to %s says %q %v", target.proto, address, out, err)
			}
		}
		// ss reads the socket itself and not what getpeername is made to say.
		out, err := shared.inPod(t.Context(), shared.namespace, from.server,
			fmt.Sprintf("(sleep 2 | nc -w 3 %s 80) & sleep 0.7; ss -Htn state established", ip))
		if err != nil {
			t.Error(err)
			continue
		}
		backend := false
		for _, n := range shared.nodes {
			backend = backend || strings.Contains(out, netip.AddrPortFrom(same(n.pods, ip), serverPort).String())
		}
		if !backend || strings.Contains(out, netip.AddrPortFrom(ip, 80).String()) {
			t.Errorf("the socket of a connection to %s goes to:\n%s", ip, out)
		}
	}
}

// SVC-1: a service nobody backs refuses at once.
func TestSVC1_NoBackend(t *testing.T) {
	empty := service(false)
	empty.Name, empty.Spec.Selector = "empty", map[string]string{"app": "nobody"}
	s, err := shared.kube.CoreV1().Services(shared.namespace).Create(t.Context(), empty, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range s.Spec.ClusterIPs {
		address := netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String()
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			out, _ := shared.inPod(ctx, shared.namespace, shared.nodes[0].server,
				"curl -sS --max-time 3 http://"+address+"/ 2>&1; echo status $?")
			if !strings.Contains(out, "status 7") { // refused
				return fmt.Errorf("curl to %s says %q", address, out)
			}
			return nil
		})
	}
}

// SVC-5: a pod that is not ready gets no new connections.
func TestSVC5_ReadinessDecides(t *testing.T) {
	victim := shared.nodes[len(shared.nodes)-1]
	get := func(ctx context.Context) string {
		out, _ := shared.inPod(ctx, shared.namespace, shared.nodes[0].server,
			"for i in $(seq 40); do curl -sS --max-time 5 http://web/hostname; echo; done | sort -u")
		return out
	}
	relabel := func(app string) {
		t.Helper()
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, app)
		_, err := shared.kube.CoreV1().Pods(shared.namespace).Patch(t.Context(), victim.server, "application/merge-patch+json", patch, metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(shared.nodes) < 2 {
		t.Skip("needs two servers")
	}
	relabel("away")
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		if out := get(ctx); strings.Contains(out, victim.server) {
			return fmt.Errorf("%s still answers", victim.server)
		}
		return nil
	})
	relabel("server")
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		if out := get(ctx); !strings.Contains(out, victim.server) {
			return fmt.Errorf("%s does not answer again: %s", victim.server, out)
		}
		return nil
	})
}

// Without kube-proxy there is neither its process nor its rules.
func TestNoKubeProxy(t *testing.T) {
	if shared.spec().KubeProxy() != "" {
		t.Skip("this lab runs kube-proxy on purpose")
	}
	for _, n := range shared.nodes {
		out, err := shared.onMachine(t.Context(), n.name, "ps -eo comm; nft list ruleset")
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(out, "kube-proxy") || strings.Contains(out, "KUBE-") {
			t.Errorf("%s has something of kube-proxy:\n%s", n.name, out)
		}
	}
}

// Logs and port-forward go through the API server and the kubelet, as with any cluster.
func TestLogsAndPortForward(t *testing.T) {
	n := shared.nodes[0]
	logs, err := shared.kube.CoreV1().Pods(shared.namespace).GetLogs(n.server, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !bytes.Contains(logs, []byte("Started HTTP server")) {
		t.Errorf("logs: %q %v", logs, err)
	}
	response, err := http.Get(fmt.Sprintf("http://%s/hostname", shared.forward(t, shared.namespace, n.server, serverPort)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); string(body) != n.server {
		t.Errorf("the forwarded port answers %q", body)
	}
}

// CLI-1: the status is read from outside with nothing but a kubeconfig, and says that all is well.
func TestCLI1_Status(t *testing.T) {
	if shared.spec().CNI != "strait" {
		t.Skip("this lab runs without Strait")
	}
	path, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	strait := filepath.Join(filepath.Dir(shared.lab), "strait")
	eventually(t, 60*time.Second, func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, strait, "status", "-o", "json")
		cmd.Env = append(os.Environ(), "KUBECONFIG="+strings.TrimSpace(path))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if !json.Valid(out) {
			return fmt.Errorf("not JSON: %s", out)
		}
		return nil
	})
}

// eventually tries until it works or time is over.
func eventually(t *testing.T, patience time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for last := error(nil); ; {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil && last != nil {
			err = last // the last attempt was cut short: what it says is that
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		last = err
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
