package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strait-net/strait/lab/internal/namespace"
)

// talk makes one connection from a node's server pod to the node itself, and returns the port by which its flow is known.
func talk(ctx context.Context, n nodeRig, port int) error {
	_, err := shared.inPod(ctx, shared.namespace, n.server, fmt.Sprintf("curl -sS --max-time 3 --local-port %d -o /dev/null http://%s/clientip",
		port, netip.AddrPortFrom(n.addrs[0], hostPort)))
	return err
}

// told makes a connection at a node and waits until its flow is there.
func (f *follower) told(t *testing.T, n nodeRig, patience time.Duration, ports *int) {
	t.Helper()
	eventually(t, patience, func(ctx context.Context) error {
		*ports++
		port, mark := *ports, f.mark()
		if err := talk(ctx, n, port); err != nil {
			return err
		}
		for range 20 { // the merge may hold it back for as long as it waits for a silent node
			if f.since(mark, flowOf(n, port)) {
				return nil
			}
			time.Sleep(200 * time.Millisecond)
		}
		return fmt.Errorf("nothing is told of the connection from port %d of %s", port, n.server)
	})
}

func flowOf(n nodeRig, port int) func(answer) bool {
	return func(a answer) bool {
		return a.Flow != nil && a.Flow.Source.Pod == n.server && a.Flow.L4.TCP.From == port && withoutCluster(a.Flow.NodeName) == n.name
	}
}

// lost says that a node's flows are missing.
func lost(n nodeRig) func(answer) bool {
	return func(a answer) bool {
		return a.NodeStatus != nil && slices.ContainsFunc(a.NodeStatus.Nodes, func(name string) bool { return withoutCluster(name) == n.name }) &&
			slices.Contains([]string{"NODE_ERROR", "NODE_UNAVAILABLE", "NODE_GONE"}, a.NodeStatus.State)
	}
}

// OBS-2: while a node's agent, and then the whole node, is away, who follows gets the flows of the others and is told which are missing; when it is
// back its flows come again, also those of the time without an agent.
func TestOBS2_RelayWithoutANode(t *testing.T) {
	needRelay(t)
	program := shared.client(t, "hubble")
	relay := shared.relayPod(t)
	at := shared.forward(t, system, relay.Name, relayLocal).String()
	hubble := here(program, "--server", at)
	allConnected(t, hubble)
	i := slices.IndexFunc(shared.nodes, func(n nodeRig) bool { return n.name != relay.Spec.NodeName })
	victim := &shared.nodes[i]
	other := shared.nodes[slices.IndexFunc(shared.nodes, func(n nodeRig) bool { return n.name == relay.Spec.NodeName })]
	f := follow(t, program, nil, "observe", "-D", "--follow", "-o", "jsonpb", "--from-pod", shared.namespace+"/server-", "--server", at)
	ports := 41000
	for _, n := range shared.nodes {
		f.told(t, n, 20*time.Second, &ports)
	}

	mark := f.mark()
	if err := shared.killAgent(t.Context(), victim.name); err != nil {
		t.Fatal(err)
	}
	ports++
	unseen := ports // the kernel keeps it for the next agent
	if err := talk(t.Context(), *victim, unseen); err != nil {
		t.Error(err)
	}
	f.told(t, other, 15*time.Second, &ports)
	eventually(t, 20*time.Second, func(context.Context) error { return f.want(mark, "word that a node is missing", lost(*victim)) })
	eventually(t, 90*time.Second, func(context.Context) error {
		return f.want(mark, "the flow from when there was no agent", flowOf(*victim, unseen))
	})
	f.told(t, *victim, 20*time.Second, &ports)
	settle(t)

	mark = f.mark()
	if _, err := shared.run(t.Context(), "node", "kill", victim.name); err != nil {
		t.Fatal(err)
	}
	f.told(t, other, 15*time.Second, &ports)
	eventually(t, time.Minute, func(context.Context) error { return f.want(mark, "word that a node is missing", lost(*victim)) })
	f.told(t, other, 15*time.Second, &ports)
	states, err := nodeStates(t.Context(), hubble)
	if err != nil || states[victim.name] == "NODE_CONNECTED" || states[other.name] != "NODE_CONNECTED" {
		t.Errorf("without %s list nodes says %v, %v", victim.name, states, err)
	}
	reboot(t, victim)
	allConnected(t, hubble)
	f.told(t, *victim, time.Minute, &ports)
}

func (f *follower) want(mark int, what string, is func(answer) bool) error {
	if f.since(mark, is) {
		return nil
	}
	return errors.New("missing: " + what)
}

// certificates: what somebody deletes the operator makes again, agents take it without a restart, and the relay goes on meanwhile.
func certificates(t *testing.T) {
	const name = "strait-hubble-server"
	secrets := shared.kube.CoreV1().Secrets(system)
	before, err := secrets.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hubble := here(shared.client(t, "hubble"), "--server", shared.forward(t, system, shared.relayPod(t).Name, relayLocal).String())
	allConnected(t, hubble)
	agents := runningAgents(t)
	if err := secrets.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var after *corev1.Secret
	eventually(t, 90*time.Second, func(ctx context.Context) error {
		after, err = secrets.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return err
		case err == nil && bytes.Equal(after.Data["tls.crt"], before.Data["tls.crt"]):
			return errors.New("it is the old one")
		}
		return err
	})
	t.Logf("made again after %v", time.Since(begin).Round(time.Second))
	want, _ := pem.Decode(after.Data["tls.crt"])
	// A kubelet looks at the Secrets of a pod once a minute, or a little later, and at once when the pod changes.
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"strait.dev/certificate":%q}}}`, after.ResourceVersion)
	for _, agent := range agents {
		pod, _, _ := strings.Cut(agent, "/")
		if _, err := shared.kube.CoreV1().Pods(system).Patch(t.Context(), pod, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range shared.nodes {
		eventually(t, 2*time.Minute, func(ctx context.Context) error {
			if _, err := hubble(ctx, "list", "nodes"); err != nil {
				t.Errorf("the relay: %v", err)
			}
			shown, err := certificateOf(ctx, n, after)
			if err == nil && !bytes.Equal(shown, want.Bytes) {
				err = fmt.Errorf("%s shows another certificate", n.name)
			}
			return err
		})
	}
	t.Logf("shown by every agent after %v", time.Since(begin).Round(time.Second))
	allConnected(t, hubble)
	if now := runningAgents(t); !slices.Equal(now, agents) {
		t.Errorf("agents were %v, are %v", agents, now)
	}
}

// runningAgents are the agents' containers; each start has another name.
func runningAgents(t *testing.T) (out []string) {
	t.Helper()
	pods, err := shared.kube.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=strait-agent"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			out = append(out, p.Name+"/"+c.ContainerID)
		}
	}
	slices.Sort(out)
	return out
}

// certificateOf is what a node's agent shows to who has a certificate of the same authority.
func certificateOf(ctx context.Context, n nodeRig, authority *corev1.Secret) ([]byte, error) {
	secret, err := shared.kube.CoreV1().Secrets(system).Get(ctx, clientFiles, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	own, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Data["ca.crt"])
	machine, err := shared.state.Machine("router")
	if err != nil {
		return nil, err
	}
	net, err := namespace.OpenNet(machine.Name, machine.Net)
	if err != nil {
		return nil, err
	}
	defer net.Close()
	raw, err := net.Dial(ctx, "tcp", netip.AddrPortFrom(n.addrs[0], 4244).String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{ServerName: "observer.strait.dev", RootCAs: roots, Certificates: []tls.Certificate{own}, NextProtos: []string{"h2"}})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	return conn.ConnectionState().PeerCertificates[0].Raw, nil
}

// CLI-7: strait observe with nothing but a kubeconfig: filters, and following across the death of an agent.
func TestCLI7_ObserveFromOutside(t *testing.T) {
	needStrait(t)
	s := openShop(t, "observe")
	if err := s.trade(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args       string
		want, lack []string
	}{
		{"--verdict dropped", []string{s.namespace + "/curl:", "DENIED: no rule of NetworkPolicy " + s.namespace + "/db allowed it; nearest miss", "app=curl, want app=web"}, []string{"/web:"}},
		{"--from-pod " + s.namespace + "/web", []string{"egress ALLOWED by NetworkPolicy " + s.namespace + "/web", "ingress ALLOWED by NetworkPolicy " + s.namespace + "/db"}, []string{"DENIED"}},
		{"--to-service " + s.namespace + "/db", []string{"(service " + s.namespace + "/db:5432)"}, []string{"-> " + s.namespace + "/web"}},
		{"--not --from-pod " + s.namespace + "/curl", []string{"/web:"}, []string{"/curl:"}},
		{"--to-port 1", nil, []string{"->"}},
	} {
		eventually(t, propagation, func(context.Context) error {
			out := shared.strait(t, append([]string{"observe", "-n", s.namespace, "--all"}, strings.Fields(c.args)...)...)
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					return fmt.Errorf("strait observe %s lacks %q:\n%s", c.args, want, out)
				}
			}
			for _, lack := range c.lack {
				if strings.Contains(out, lack) {
					t.Fatalf("strait observe %s shows %q:\n%s", c.args, lack, out)
				}
			}
			return nil
		})
	}
	if len(shared.nodes) > 1 {
		at := shared.forward(t, system, shared.relayPod(t).Name, relayLocal).String()
		out := shared.strait(t, "observe", "-n", s.namespace, "--all", "--verdict", "dropped", "--server", at)
		if !strings.Contains(out, s.namespace+"/curl:") || !strings.Contains(out, "DENIED: no rule of NetworkPolicy "+s.namespace+"/db allowed it") {
			t.Errorf("by the relay strait observe says:\n%s", out)
		}
	}
	path, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	n := shared.nodes[len(shared.nodes)-1]
	f := follow(t, filepath.Join(filepath.Dir(shared.lab), "strait"), []string{"KUBECONFIG=" + strings.TrimSpace(path)},
		"observe", "--follow", "-o", "jsonpb", "--from-pod", shared.namespace+"/server-")
	ports := 42000
	f.told(t, n, 20*time.Second, &ports)
	if err := shared.killAgent(t.Context(), n.name); err != nil {
		t.Fatal(err)
	}
	f.told(t, n, 90*time.Second, &ports)
	settle(t)
}
