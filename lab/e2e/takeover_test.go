package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/lab/internal/topology"
)

// held is what probe hold prints of one connection.
type held struct {
	Target    string
	Exchanges int
	Lost      int
	Slowest   time.Duration
	Broken    string
	Servers   map[string]int
}

// perNode makes a NodePort service for each node's server alone, and returns them by node.
func perNode(t *testing.T) map[string]*corev1.Service {
	t.Helper()
	out := map[string]*corev1.Service{}
	for _, n := range shared.nodes {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"on":%q}}}`, n.name)
		pods := shared.kube.CoreV1().Pods(shared.namespace)
		if _, err := pods.Patch(t.Context(), n.server, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		s := service(false)
		s.Name, s.Spec.Type, s.Spec.Selector = "on-"+n.name, corev1.ServiceTypeNodePort, map[string]string{"on": n.name}
		made, err := shared.kube.CoreV1().Services(shared.namespace).Create(t.Context(), s, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = shared.kube.CoreV1().Services(shared.namespace).Delete(context.Background(), made.Name, metav1.DeleteOptions{})
		})
		out[n.name] = made
	}
	return out
}

// targets are both ports of services at an address of each family: of the service itself, or of a node by node port.
func targets(s *corev1.Service, nodePortAt []netip.Addr) (out []string) {
	for _, ip := range s.Spec.ClusterIPs {
		address := netip.MustParseAddr(ip)
		for i, network := range []string{"tcp", "udp"} {
			port := s.Spec.Ports[i].Port
			at := address
			if nodePortAt != nil {
				port, at = s.Spec.Ports[i].NodePort, same(nodePortAt, address)
			}
			out = append(out, fmt.Sprintf("%s:%s", network, netip.AddrPortFrom(at, uint16(port))))
		}
	}
	return out
}

// client is somebody who holds connections while a test goes on.
type holder struct {
	name    string
	targets []string
	run     func(ctx context.Context, script string) (string, error)
	probe   string // the program
}

func holders(t *testing.T, services map[string]*corev1.Service) []holder {
	t.Helper()
	first := shared.nodes[0]
	var inside, outside []string
	for _, n := range shared.nodes {
		inside = append(inside, targets(services[n.name], nil)...)
		outside = append(outside, targets(services[n.name], first.addrs)...)
	}
	inPod := func(name string) func(context.Context, string) (string, error) {
		return func(ctx context.Context, script string) (string, error) {
			return shared.inPod(ctx, shared.namespace, name, script)
		}
	}
	return []holder{
		{"pod " + first.server, append(slices.Clone(inside), outside...), inPod(first.server), "probe"},
		{"host network pod " + first.host, inside, inPod(first.host), "probe"},
		{"outside", outside, func(ctx context.Context, script string) (string, error) {
			return shared.onMachine(ctx, topology.Outside, script)
		}, filepath.Join(shared.state.Bin, "probe")},
	}
}

// hold starts the connections; the returned function waits for them and tells which broke.
func hold(t *testing.T, all []holder, lasting time.Duration) (wait func()) {
	t.Helper()
	type result struct {
		who string
		out string
		err error
	}
	results := make(chan result)
	for _, h := range all {
		go func() {
			out, err := h.run(t.Context(), fmt.Sprintf("%s hold %s %s", h.probe, lasting, strings.Join(h.targets, " ")))
			results <- result{h.name, out, err}
		}()
	}
	return func() {
		t.Helper()
		connections, exchanges, broken := 0, 0, 0
		for range all {
			r := <-results
			if r.err != nil {
				t.Errorf("%s: %v", r.who, r.err)
			}
			for line := range strings.Lines(r.out) {
				var h held
				if err := json.Unmarshal([]byte(line), &h); err != nil {
					t.Errorf("%s: %v: %s", r.who, err, line)
					continue
				}
				connections++
				exchanges += h.Exchanges
				// A datagram may be lost by the network; an answer from another server means that the connection was.
				if h.Broken != "" || len(h.Servers) != 1 || h.Lost > 2 {
					broken++
					t.Errorf("%s to %s: broken %q, %d of %d lost, servers %v", r.who, h.Target, h.Broken, h.Lost, h.Exchanges, h.Servers)
				}
			}
		}
		t.Logf("%d connections, %d exchanges, %d broken", connections, exchanges, broken)
		if connections == 0 {
			t.Error("no connection was held")
		}
	}
}

// strait runs the command from outside the cluster, for one node.
func strait(t *testing.T, node string, args ...string) (string, error) {
	t.Helper()
	path, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(shared.lab), "strait"), append(args, "--node", node)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+strings.TrimSpace(path))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// kubeProxy stops or starts kube-proxy on every node, and waits until that can be seen.
func kubeProxy(t *testing.T, word string) {
	t.Helper()
	for _, n := range shared.nodes {
		if _, err := shared.run(t.Context(), "node", "kube-proxy", n.name, word); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range shared.nodes {
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			out, _ := shared.onMachine(ctx, n.name, "curl -s --max-time 1 http://127.0.0.1:10256/healthz; nft list ruleset")
			runs := strings.Contains(out, "lastUpdated")
			rules := strings.Contains(out, "KUBE-SVC-") || strings.Contains(out, "table ip kube-proxy")
			if runs != (word == "on") || word == "on" && !rules {
				return fmt.Errorf("kube-proxy of %s is not %s: answers %v, has rules %v", n.name, word, runs, rules)
			}
			return nil
		})
	}
}

// reachable makes new connections from everywhere to everything.
func reachable(t *testing.T, all []holder) {
	t.Helper()
	hold(t, all, 500*time.Millisecond)()
}

// SVC-7: nodes move from the real kube-proxy to Strait and back, and no connection breaks.
func TestTakeover(t *testing.T) {
	if shared.spec().KubeProxy() == "" {
		t.Skip("this lab has no kube-proxy: start one with --kube-proxy iptables or nftables")
	}
	all := holders(t, perNode(t))
	eventually(t, 20*time.Second, func(ctx context.Context) error {
		for _, h := range all {
			out, err := h.run(ctx, fmt.Sprintf("%s hold 100ms %s", h.probe, strings.Join(h.targets, " ")))
			if err != nil || strings.Count(out, `"Broken":""`) != len(h.targets) || strings.Contains(out, `"Servers":{}`) {
				return fmt.Errorf("%s: %w: %s", h.name, err, out)
			}
		}
		return nil
	})
	if out, err := strait(t, shared.nodes[0].name, "takeover", "kube-proxy", "--yes"); err == nil || !strings.Contains(out, "kube-proxy runs") {
		t.Errorf("taken over while kube-proxy runs: %v\n%s", err, out)
	}
	t.Run("takeover", func(t *testing.T) {
		wait := hold(t, all, 40*time.Second)
		time.Sleep(3 * time.Second)
		kubeProxy(t, "off")
		for _, n := range shared.nodes {
			out, err := strait(t, n.name, "takeover", "kube-proxy", "--yes")
			t.Logf("%s:\n%s", n.name, out)
			if err != nil || !strings.Contains(out, "clean") {
				t.Errorf("%s: %v", n.name, err)
			}
			rules, err := shared.onMachine(t.Context(), n.name, "nft list ruleset; iptables-legacy-save 2>/dev/null || true")
			if err != nil || strings.Contains(rules, "KUBE-SVC-") || strings.Contains(rules, "KUBE-SERVICES") || strings.Contains(rules, "table ip kube-proxy") {
				t.Errorf("%s: %v: left:\n%s", n.name, err, rules)
			}
		}
		reachable(t, all)
		wait()
	})
	t.Run("undo", func(t *testing.T) {
		wait := hold(t, all, 40*time.Second)
		time.Sleep(3 * time.Second)
		kubeProxy(t, "on")
		for _, n := range shared.nodes {
			out, err := strait(t, n.name, "takeover", "undo")
			t.Logf("%s:\n%s", n.name, out)
			if err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		}
		reachable(t, all)
		wait()
	})
}
