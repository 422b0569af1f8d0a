package explain_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

// What a person reads: who decided, by which entry; and nothing in the kernel has changed by asking.
func TestWhatExplainSays(t *testing.T) {
	r := newRig(t, testkit.Options{})
	one, two := r.c.Nodes[0], r.c.Nodes[1]
	a, far := one.AddPodAs("a", testkit.PodSpec{Labels: map[string]string{"app": "a"}}), two.AddPodAs("far", testkit.PodSpec{Labels: map[string]string{"app": "far"}})
	far.Echo(port)
	r.c.ApplyNamespace("default", nil, nil)
	r.c.Serve(testkit.Service{Name: "shop", Port: frontPort, TargetPort: port, ClusterIPs: clusterIPs(1), Endpoints: far.Endpoints()})
	r.c.Serve(testkit.Service{Name: "none", Port: frontPort, TargetPort: port, ClusterIPs: clusterIPs(9)})
	r.c.ApplyText("policy-far", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: far, namespace: default}
spec: {podSelector: {matchLabels: {app: far}}, ingress: [{ports: [{protocol: TCP, port: 8080}]}]}
`)
	for _, c := range []struct {
		name, network string
		to            netip.AddrPort
		verdict       explain.Verdict
		want          []string // in what is printed
	}{
		{"service", "tcp", netip.AddrPortFrom(clusterIPs(1)[0], frontPort), explain.Delivered,
			[]string{"default/shop", "is given backend " + far.IPv4.String() + ":8080 (pod default/far)", "strait_service", "by tunnel to " + two.IPv4.String(), "ingress of pod default/far allowed from pod default/a by NetworkPolicy default/far spec.ingress[0]"}},
		{"service without backends", "tcp", netip.AddrPortFrom(clusterIPs(9)[1], frontPort), explain.Dropped, []string{"refused here because service default/none has no backends", "ECONNREFUSED"}},
		{"policy", "udp", netip.AddrPortFrom(far.IPv6, port), explain.Dropped,
			[]string{"dropped here because the receiver's policy does not allow it (NetworkPolicy default/far ingress (no rule matches)): strait_from_vx on strait_vxlan on node node-2"}},
		{"echo", "icmp", netip.AddrPortFrom(one.IPv4, 0), explain.Delivered, []string{"an echo request", "its stack answers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var text string
			for range 50 { // until policies and services are in the kernel
				before := one.CLI("bpf", "dump", "strait_ct") + two.CLI("bpf", "dump", "strait_ct")
				p := r.explain(ofPod(one, a), c.network, c.to)
				if after := one.CLI("bpf", "dump", "strait_ct") + two.CLI("bpf", "dump", "strait_ct"); strings.Count(after, "\n") != strings.Count(before, "\n") {
					t.Errorf("connections before and after:\n%s\n%s", before, after)
				}
				text = show(p)
				missing := ""
				for _, want := range c.want {
					if !strings.Contains(text, want) {
						missing = want
					}
				}
				if p.Conclusion.Verdict == c.verdict && missing == "" {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("want %s with %q, got\n%s", c.verdict, c.want, text)
		})
	}
	t.Run("verb for programs", func(t *testing.T) {
		q, _ := json.Marshal(localapi.ExplainQuestion{
			Session: "verb", Entry: localapi.EntryPod, Pod: a.String(), Packet: localapi.ExplainPacket{Target: netip.AddrPortFrom(far.IPv4, port), Protocol: "TCP"},
		})
		var part localapi.ExplainPart
		if err := json.Unmarshal([]byte(one.CLI("explain-part", string(q), "-o", "json")), &part); err != nil || part.Next == nil || part.Next.Node != two.Name {
			t.Errorf("part %+v, %v", part, err)
		}
		if out, err := one.TryCLI("explain-part", "{}"); err == nil || !strings.Contains(out, "session is missing") {
			t.Errorf("question without session: %v\n%s", err, out)
		}
	})
	_, err := r.ask(context.Background(), one.Name, localapi.ExplainQuestion{
		Session: "x", Entry: localapi.EntryPod, Pod: "default/nobody", Packet: localapi.ExplainPacket{Target: netip.AddrPortFrom(far.IPv4, port), Protocol: "TCP"},
	})
	if !errors.Is(err, localapi.ErrNotFound) || !strings.Contains(err.Error(), "default/nobody") {
		t.Errorf("a pod that is not there: %v", err)
	}
}

// With direct server return the answer comes from the backend's node, by the address that the packet has carried there.
func TestDirectReturn(t *testing.T) {
	r := newRig(t, testkit.Options{Config: map[string]any{"services": map[string]any{"forwarding": "dsr"}}})
	one, two := r.c.Nodes[0], r.c.Nodes[1]
	far := two.AddPodAs("far", testkit.PodSpec{})
	far.Echo(port)
	r.c.Serve(testkit.Service{Name: "shop", Type: "NodePort", Port: frontPort, TargetPort: port, NodePort: nodePort, ClusterIPs: clusterIPs(1), Endpoints: far.Endpoints()})
	w := &world{rig: r, random: rand.New(rand.NewPCG(1, 1))}
	for _, v6 := range []bool{false, true} {
		for _, network := range networks {
			to := one.IPv4
			if v6 {
				to = one.IPv6
			}
			j := journey{from: sender{ns: r.c.Outside, node: one.Name}, source: testkit.OutsideAddr(v6), network: network, to: netip.AddrPortFrom(to, nodePort), size: 1, v6: v6}
			p, text := w.compare(j)
			for range 20 { // until the service is in the kernel
				if text == "" && p.Conclusion.Verdict == explain.Delivered {
					break
				}
				time.Sleep(100 * time.Millisecond)
				p, text = w.compare(j)
			}
			if text != "" || p.Conclusion.Verdict != explain.Delivered || !strings.Contains(show(p), "carries service address") || p.Back[0].Node != two.Name || len(p.Back) != 1 {
				t.Errorf("%s to %s: %s\n%s", network, to, text, show(p))
			}
		}
	}
}

// A route may lead into the tunnel although the row that says where to is missing: then the program there drops the packet. Found by the
// property test on connections that exist.
func TestRouteIntoTheTunnelWithoutRow(t *testing.T) {
	w := newWorld(t, 1, "vxlan")
	one, m := w.c.Nodes[0], w.maps[w.c.Nodes[0].Name]
	j := journey{
		from: sender{ns: w.c.Outside, node: one.Name}, source: testkit.OutsideAddr(false), network: "tcp", about: "outside to node port", size: 1,
		to: netip.AddrPortFrom(one.IPv4, nodePort+1), // whose backend is on the other node
	}
	if w.begin(&j); j.conn == nil {
		t.Fatal("no connection to the node port")
	}
	defer func() { _ = j.conn.Close() }()
	if p, text := w.compare(j); text != "" || p.Conclusion.Verdict != explain.Delivered {
		t.Fatalf("%s\n%s", text, show(p))
	}
	rows, err := m.Remotes()
	w.must(err)
	for _, r := range rows {
		if r.Prefix.Contains(w.pods[2].IPv4) {
			w.must(m.DeleteRemote(r.Prefix))
			defer func() { w.must(m.PutRemote(r)) }()
		}
	}
	if p, text := w.compare(j); text != "" || p.Conclusion.Verdict != explain.Dropped {
		t.Errorf("%s\n%s", text, show(p))
	}
}
