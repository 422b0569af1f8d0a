package status_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/status"
)

// What strait observe calls the nearest miss is what strait policy verdict lists first.
func TestDenialSaysWhatVerdictSays(t *testing.T) {
	st := shopWithServers()
	end := func(name string, local bool) flow.End {
		pod, _, ok := st.Pods.Snapshot().Get(name)
		if !ok {
			return flow.End{Kind: policy.WorldPeer}
		}
		return flow.End{Kind: policy.PodPeer, Pod: &pod, Node: pod.Node, Local: local}
	}
	for _, tc := range []struct {
		name, from, to, source, target string
		way                            policy.Way
	}{
		{name: "from a pod elsewhere", from: "shop/web-1", to: "shop/db-0", source: "10.2.0.5:40000", target: "10.1.0.5:5433", way: policy.Ingress},
		{name: "over IPv6", from: "shop/web-1", to: "shop/db-0", source: "[fd00::2:5]:40000", target: "[fd00::5]:5433", way: policy.Ingress},
		{name: "to API servers", from: "shop/db-2", to: "10.9.9.9", source: "10.1.0.7:40000", target: "10.9.9.9:443", way: policy.Egress},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source, target := netip.MustParseAddrPort(tc.source), netip.MustParseAddrPort(tc.target)
			denied := flow.Flow{
				Event: flow.Event{Kind: flow.Denied, Protocol: policy.TCP, Source: source, Target: target},
				From:  end(tc.from, tc.way == policy.Egress), To: end(tc.to, tc.way == policy.Ingress),
			}
			e, ok := status.Sources{State: st, Node: "n1"}.Denial(&denied, tc.way)
			if !ok || e.Allow || len(e.Misses) == 0 {
				t.Fatalf("denial: %+v, %t", e, ok)
			}
			var said []string
			for _, m := range e.Misses {
				said = append(said, m.String())
			}
			var asked []status.Connection
			v, err := provider(st, status.PolicySources{Judge: judged(&asked)}).Verdict(context.Background(),
				localapi.VerdictQuestion{Source: source.Addr().String(), Destination: target.Addr().String(), Protocol: 6, Port: target.Port()})
			if err != nil || len(v.Sides) != 1 {
				t.Fatalf("verdict: %+v, %v", v, err)
			}
			if diff := cmp.Diff(v.Sides[0].Misses, said); diff != "" {
				t.Errorf("verdict and denial differ (-verdict +denial):\n%s", diff)
			}
		})
	}
}

// Ends are taken as they were when the flow was denied: a label that the pod has got since does not count.
func TestDenialTakesEndsAsTheyWere(t *testing.T) {
	st := guardedShop()
	pod, _, _ := st.Pods.Snapshot().Get("shop/web-1")
	then := pod
	then.Labels = policy.NewLabels(map[string]string{"app": "old"})
	to, _, _ := st.Pods.Snapshot().Get("shop/db-0")
	f := flow.Flow{
		Event: flow.Event{Kind: flow.Denied, Protocol: policy.TCP, Source: netip.MustParseAddrPort("10.2.0.5:40000"), Target: netip.MustParseAddrPort("10.1.0.5:5432")},
		From:  flow.End{Kind: policy.PodPeer, Pod: &then, Node: "n2"}, To: flow.End{Kind: policy.PodPeer, Pod: &to, Node: "n1", Local: true},
	}
	sources := status.Sources{State: st, Node: "n1"}
	e, ok := sources.Denial(&f, policy.Ingress)
	if want := "NetworkPolicy shop/db spec.ingress[0]: peer label app=old, want app=web"; !ok || e.Allow || len(e.Misses) == 0 || e.Misses[0].String() != want {
		t.Errorf("got %v %+v, want %s", ok, e, want)
	}
	f.From.Pod = &pod
	if e, ok := sources.Denial(&f, policy.Ingress); !ok || !e.Allow {
		t.Errorf("with the label: %v %+v", ok, e)
	}
	if _, ok := sources.Denial(&f, policy.Egress); ok {
		t.Error("the egress of a pod of another node is judged there")
	}
	if _, ok := sources.Denial(&flow.Flow{From: flow.End{Kind: policy.PodPeer, Local: true}}, policy.Egress); ok {
		t.Error("a pod that is not known is explained")
	}
}
