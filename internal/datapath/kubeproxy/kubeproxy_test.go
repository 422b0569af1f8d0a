package kubeproxy

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/kube/kubetest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// The rules that the real kube-proxy makes, in both modes, go; those of others stay.
func TestRemoveRulesOfTheRealOne(t *testing.T) {
	nstest.Root(t)
	proxy := program(t)
	uplink(t)
	server := kubetest.Start(t, nil)
	kubeconfig := prepare(t, server)
	foreign := []string{
		"iptables -N KUBE-MARK-DROP", "iptables -A KUBE-MARK-DROP -d 192.0.2.9 -j DROP", "iptables -I OUTPUT -j KUBE-MARK-DROP",
		"iptables -N KUBE-ROUTER-FORWARD", "iptables -A FORWARD -j KUBE-ROUTER-FORWARD", "iptables -A FORWARD -s 192.0.2.1 -m comment --comment mine -j DROP",
		"iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE", "ip6tables -A INPUT -s 2001:db8::1 -j DROP",
	}
	for _, f := range foreign {
		run(t, strings.Fields(f)...)
	}
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			before := rules(t)
			stop := start(t, proxy, kubeconfig, mode)
			running, err := Running()
			if err != nil || !has(running, Process) || !has(running, Port) {
				t.Errorf("while it runs: %v %v", running, err)
			}
			stop()
			if running, err = Running(); err != nil || len(running) != 0 {
				t.Errorf("after it has ended: %v %v", running, err)
			}
			kind := map[string]Kind{"iptables": Iptables, "nftables": Nftables}[mode]
			found, err := Find()
			check(t, err)
			t.Log(found)
			for _, family := range []string{"ip ", "ip6 "} {
				if !slices.ContainsFunc(found, func(x Trace) bool { return x.Kind == kind && strings.HasPrefix(x.Name, family) && x.Detail != "" }) {
					t.Errorf("nothing of %s found for %s: %v", mode, family, found)
				}
			}
			check(t, Remove())
			if found, err = Find(); err != nil || len(found) != 0 {
				t.Errorf("left: %v %v", found, err)
			}
			if after := rules(t); after != before {
				t.Errorf("rules of others differ.\nBefore:\n%s\nafter:\n%s", before, after)
			}
			check(t, Remove()) // of nothing
		})
	}
}

// uplink gives the namespace a loopback and a default route, which the API server wants to see.
func uplink(t *testing.T) {
	t.Helper()
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}))
	for _, name := range []string{"lo", "peer", "eth0"} {
		link, err := netlink.LinkByName(name)
		check(t, err)
		check(t, netlink.LinkSetUp(link))
		if name == "eth0" {
			a, err := netlink.ParseAddr("172.18.0.11/24")
			check(t, err)
			check(t, netlink.AddrAdd(link, a))
			check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(172, 18, 0, 1)}))
		}
	}
}

// rules are all rules but the built-in chains of iptables that kube-proxy was the first to need.
func rules(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(run(t, command)) {
			if strings.HasPrefix(line, "-") || strings.HasPrefix(line, ":KUBE") {
				out.WriteString(command + " " + line)
			}
		}
	}
	for line := range strings.Lines(run(t, "nft", "list", "tables")) {
		if !strings.Contains(line, "nat") && !strings.Contains(line, "mangle") && !strings.Contains(line, "filter") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func has(found []Trace, kind Kind) bool {
	return slices.ContainsFunc(found, func(x Trace) bool { return x.Kind == kind })
}

func program(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("STRAIT_CACHE")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, ".cache", "strait")
	}
	found, _ := filepath.Glob(filepath.Join(cache, "sets", "*", "kube-proxy"))
	if len(found) == 0 {
		t.Skipf("no kube-proxy under %s/sets: make up builds it", cache)
	}
	return found[0]
}

// prepare makes a node and services, and returns a kubeconfig.
func prepare(t *testing.T, server *kubetest.Server) string {
	t.Helper()
	config := server.Config(kubetest.AdminToken)
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	ctx := t.Context()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	node, err = client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	check(t, err)
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "::1"}}
	_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	check(t, err)
	policy := corev1.IPFamilyPolicyRequireDualStack
	for i, kind := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer} {
		name := fmt.Sprintf("s%d", i)
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec:       corev1.ServiceSpec{Type: kind, IPFamilyPolicy: &policy, Ports: []corev1.ServicePort{{Name: "p", Port: 80}}},
		}
		if kind == corev1.ServiceTypeLoadBalancer {
			s.Spec.ExternalTrafficPolicy, s.Spec.SessionAffinity = corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceAffinityClientIP
		}
		_, err := client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{})
		check(t, err)
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			port, portName := int32(8080), "p"
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{GenerateName: name + "-", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
				AddressType: family, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
			}
			for j := range 3 {
				address := fmt.Sprintf("10.244.1.%d", j+1)
				if family == discoveryv1.AddressTypeIPv6 {
					address = fmt.Sprintf("fd44::%d", j+1)
				}
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
			}
			_, err := client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
			check(t, err)
		}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, config.Host, config.BearerToken), 0o600))
	return path
}

// start runs kube-proxy until it has programmed the services.
func start(t *testing.T, path, kubeconfig, mode string) (stop func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	check(t, os.WriteFile(file, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: n1
clusterCIDR: 10.244.0.0/16,fd44::/48
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, mode, kubeconfig), 0o600))
	var log strings.Builder
	cmd := exec.Command(path, "--config="+file)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		all := run(t, "nft", "list", "ruleset")
		if strings.Count(all, "10.244.1.3") > 0 && strings.Count(all, "fd44::3") > 0 {
			return stop
		}
		if time.Now().After(end) {
			stop()
			t.Fatalf("kube-proxy has programmed nothing:\n%s\n%s", log.String(), all)
		}
	}
}

func run(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.Background(), command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return string(out)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhoseChains(t *testing.T) {
	for name, want := range map[string]bool{
		"KUBE-SERVICES": true, "KUBE-SVC-ABC": true, "KUBE-SEP-ABC": true, "KUBE-MARK-MASQ": true, "KUBE-PROXY-CANARY": true,
		"KUBE-FIREWALL": true, "KUBE-MARK-DROP": false, "KUBE-KUBELET-CANARY": false, "KUBE-IPTABLES-HINT": false, "KUBE-ROUTER-INPUT": false, "KUBE-NWPLCY-X": false,
		"FORWARD": false, "cali-FORWARD": false, "": false,
	} {
		if ownChain(name, false) != want {
			t.Errorf("%s: %v", name, !want)
		}
		if ownChain(name, true) != (want && name != "KUBE-FIREWALL") {
			t.Errorf("%s where the kubelet makes chains: %v", name, !want)
		}
	}
	for name, want := range map[string]bool{"KUBE-CLUSTER-IP": true, "KUBE-6-LOOP-BACK": true, "KUBE-DST-X": false, "mine": false} {
		if ownSet(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestLegacy(t *testing.T) {
	nstest.Root(t)
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip("needs iptables-legacy")
	}
	nstest.In(t, "", func() {
		if ran, err := RemoveLegacy(t.Context()); err != nil || len(ran) != 0 {
			t.Errorf("with no table: ran %v, %v", ran, err)
		}
		for _, line := range []string{
			"iptables-legacy -t nat -N KUBE-SERVICES", "iptables-legacy -t nat -N KUBE-SVC-X", "iptables-legacy -t nat -N KUBE-POSTROUTING",
			"iptables-legacy -t nat -A PREROUTING -j KUBE-SERVICES", "iptables-legacy -t nat -A KUBE-SERVICES -d 10.96.0.1 -j KUBE-SVC-X",
			"iptables-legacy -t nat -A POSTROUTING -j KUBE-POSTROUTING", "iptables-legacy -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE",
		} {
			words := strings.Fields(line)
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", line, err, out)
			}
		}
		found, err := Find()
		if err != nil || len(found) != 1 || found[0].Kind != Legacy || found[0].Name != "ip nat" {
			t.Errorf("found %v, %v", found, err)
		}
		ran, err := RemoveLegacy(t.Context())
		if err != nil || len(ran) != 2 {
			t.Errorf("ran %v, %v", ran, err)
		}
		if found, err = Find(); err != nil || len(found) != 0 {
			t.Errorf("left: %v %v", found, err)
		}
		out, err := exec.Command("iptables-legacy-save", "-t", "nat").Output()
		if text := string(out); err != nil || strings.Contains(text, "KUBE-") || !strings.Contains(text, "-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE") {
			t.Errorf("%v:\n%s", err, text)
		}
	})
}
