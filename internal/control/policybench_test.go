package control

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/state"
)

// region is a cluster of n pods on other nodes in groups of ten, and some here.
func region(n, here int) *policyScale {
	s := &policyScale{cluster: &eval.Cluster{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Nodes: []eval.Node{{Name: self, Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.1")}}},
	}}
	for i := range 100 {
		s.cluster.Namespaces = append(s.cluster.Namespaces, eval.Namespace{Name: fmt.Sprint("ns", i), Labels: policy.NewLabels(map[string]string{"team": fmt.Sprint(i % 10)})})
	}
	for i := range here {
		s.cluster.Pods = append(s.cluster.Pods, eval.Pod{
			Namespace: "ns0", Name: fmt.Sprint("here", i), Node: self, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})},
			Labels: policy.NewLabels(map[string]string{"app": "here", "number": fmt.Sprint(i)}),
		})
	}
	for i := range n {
		s.cluster.Pods = append(s.cluster.Pods, eval.Pod{
			Namespace: fmt.Sprint("ns", i%100), Name: fmt.Sprint("pod", i), Node: "n2", ServiceAccount: "default",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)})},
			Labels:    policy.NewLabels(map[string]string{"app": fmt.Sprint("app", i/10), "tier": fmt.Sprint("tier", i%7), "pod-template-hash": "6d4cf56db6"}),
		})
	}
	return s
}

type policyScale struct{ cluster *eval.Cluster }

// distinguish makes the local pods allow n groups, each of which is an identity then.
func (s *policyScale) distinguish(n int) {
	p := policy.Policy{
		Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "wide"}, Tier: policy.Admin, Subject: labels1("app", "here"),
	}
	for i := range n {
		p.Ingress.Rules = append(p.Ingress.Rules, policy.Rule{Path: fmt.Sprintf("spec.ingress[%d]", i), Peers: []policy.Selector{labels1("app", fmt.Sprint("app", i))}})
	}
	s.cluster.Policies = append(s.cluster.Policies, p)
}

func labels1(key, value string) policy.Selector {
	return policy.Selector{Requirements: []policy.Requirement{{Source: policy.PodLabel, Key: key, Op: policy.In, Values: []string{value}}}}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkPropagation takes from the change of a row of intent to the revision that makes it count, with remote pods and identities, without
// the kernel's own time: 1 to 3 microseconds per row.
func BenchmarkPropagation(b *testing.B) {
	for _, c := range []struct{ pods, identities int }{{10_000, 1000}, {100_000, 1000}, {100_000, 10_000}} {
		b.Run(fmt.Sprintf("pods=%d/identities=%d", c.pods, c.identities), func(b *testing.B) {
			s := region(c.pods, 30)
			s.distinguish(c.identities)
			begin := time.Now()
			r := newKernelRig(b, s.cluster, roomy)
			filled := time.Since(begin)
			r.kernel.blind = true
			begin = time.Now()
			r.settle()
			b.ReportMetric(float64(filled.Milliseconds()), "ms-fill")
			b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms-first")
			addPolicy := func(peer policy.Selector) func(int) {
				return func(i int) {
					key := state.Policy{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "ns0", Name: "more"}}
					if i%2 == 1 {
						r.st.Policies.Delete(key.Key())
						return
					}
					key.Specs = []policy.Policy{onlyFrom("more", "x", "y")}
					key.Specs[0].Subject = labels1("number", "3")
					key.Specs[0].Ingress.Rules[0].Peers = []policy.Selector{peer}
					r.st.Policies.Insert(key)
				}
			}
			changes := map[string]func(i int){
				"policy":               addPolicy(labels1("app", "app777")),
				"policy-for-a-seventh": addPolicy(labels1("tier", "tier3")),
				"pod-label": func(i int) {
					pod, _, _ := r.st.Pods.Snapshot().Get("ns1/pod101")
					pod.Labels = policy.NewLabels(map[string]string{"app": fmt.Sprint("app", i%c.identities)})
					r.st.Pods.Insert(pod)
				},
				"namespace-label": func(i int) {
					ns, _, _ := r.st.Namespaces.Snapshot().Get("ns7")
					ns.Labels = policy.NewLabels(map[string]string{"team": fmt.Sprint(i)})
					r.st.Namespaces.Insert(ns)
				},
				"new-pod": func(i int) {
					r.st.Pods.Insert(state.Pod{Namespace: "ns1", Name: fmt.Sprint("new", i), Node: "n2", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})},
						Labels: policy.NewLabels(map[string]string{"app": fmt.Sprint("app", i%c.identities)})})
				},
			}
			for _, name := range []string{"policy", "policy-for-a-seventh", "pod-label", "namespace-label", "new-pod"} {
				b.Run(name, func(b *testing.B) {
					var took []time.Duration
					for i := 0; b.Loop(); i++ {
						changes[name](i)
						begin := time.Now()
						r.loop.step(context.Background(), r.feeds)
						took = append(took, time.Since(begin))
						r.now = r.now.Add(time.Second)
					}
					slices.Sort(took)
					b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-p50")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "us-p99")
				})
			}
		})
	}
}

// OPS-4: what a remote pod costs in memory, its row in the table of pods included.
func TestMemoryOfRemotePods(t *testing.T) {
	const pods = 100_000
	s := region(pods, 30)
	s.distinguish(1000) // every tenth pod is told apart
	before := heap()
	r := newKernelRig(t, s.cluster, roomy)
	r.kernel.blind = true
	table := heap()
	r.settle()
	after := heap()
	each := func(a, b uint64) uint64 { return (max(a, b) - b) / pods }
	t.Logf("bytes per remote pod: tables of intent %d, policy %d", each(table, before), each(after, table))
	if all := each(after, before); all > 1500 {
		t.Errorf("%d bytes per remote pod, labels of the test not counted", all)
	}
	runtime.KeepAlive(r)
	runtime.KeepAlive(s)
}
