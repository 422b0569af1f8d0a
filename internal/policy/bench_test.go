package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
)

// manyPolicies are n like those of a large cluster: each in one of n/20 namespaces, with three clients, two CIDRs and a few ports.
func manyPolicies(n int) []*Policy {
	out := make([]*Policy, n)
	for i := range out {
		ns := fmt.Sprintf("team-%d", i%max(1, n/20))
		app := func(k int) Selector { return pods(ns, "app.kubernetes.io/name", fmt.Sprintf("service-%d", i+k)) }
		out[i] = &Policy{
			Ref: Ref{NetworkPolicy, ns, fmt.Sprintf("policy-%d", i)}, Tier: Normal, Subject: app(0),
			Ingress: Direction{Isolates: true, Rules: []Rule{
				{Path: "spec.ingress[0]", Peers: []Selector{app(1), app(2), app(3)}, Ports: []Port{{Protocol: TCP, First: 8080, Last: 8080}, {Protocol: TCP, First: 9000, Last: 9100}}},
				{Path: "spec.ingress[1]", Peers: []Selector{pods("monitoring", "", "")}, Ports: []Port{{Protocol: TCP, Name: "metrics"}}},
			}},
			Egress: Direction{Isolates: true, Rules: []Rule{
				{Path: "spec.egress[0]", Peers: []Selector{app(4)}, Ports: []Port{{Protocol: TCP, Name: "http"}}},
				{Path: "spec.egress[1]", Peers: []Selector{{Kind: SelectCIDR, Everyone: true, CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24)}}},
				{Path: "spec.egress[2]", Peers: []Selector{pods("kube-system", "k8s-app", "kube-dns")}, Ports: []Port{{Protocol: UDP, First: 53, Last: 53}, {Protocol: TCP, First: 53, Last: 53}}},
			}},
		}
	}
	return out
}

// somePeer is a pod that manyPolicies(10000)[i-1] lets in.
func somePeer(i int) *Peer {
	return &Peer{
		Kind: PodPeer, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Namespace: fmt.Sprintf("team-%d", (i-1)%500),
		Labels: NewLabels(map[string]string{"app.kubernetes.io/name": fmt.Sprintf("service-%d", i), "app.kubernetes.io/instance": "a",
			"pod-template-hash": fmt.Sprintf("%08x", i/10), "tier": "backend", "team": "x"}),
		NamespaceLabels: Labels{{"kubernetes.io/metadata.name", "team"}},
		Ports:           []NamedPort{{"http", TCP, 8080}, {"metrics", TCP, 9090}},
	}
}

// All of 10,000 policies on this node, each selecting a pod of its own: programs, selectors in use, identities of a thousand peers, entries.
func BenchmarkTenThousandPolicies(b *testing.B) {
	policies := manyPolicies(10000)
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		index := NewIndex()
		programs := make([]*Program, len(policies))
		for i, p := range policies {
			programs[i] = NewProgram(Set{Policies: []*Policy{p}, Ports: []NamedPort{{"metrics", TCP, 9090}}})
			for _, w := range programs[i].Selectors() {
				index.Add(w)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10000, "B/policy")
		runtime.KeepAlive(programs)
		runtime.KeepAlive(index)
	}
}

// One pod that all of 10,000 policies select.
func BenchmarkTenThousandPoliciesOnOnePod(b *testing.B) {
	set := Set{Policies: manyPolicies(10000)}
	for b.Loop() {
		p := NewProgram(set)
		peer := somePeer(17)
		if e := p.Entry(Ingress, peer.Kind, p.match(peer)); e.Table == nil {
			b.Fatal("nothing matched")
		}
	}
}

func BenchmarkSetID(b *testing.B) {
	set := Set{Policies: manyPolicies(10)}
	for b.Loop() {
		set.ID()
	}
}

// Match of one pod with 60,000 selectors in use.
func BenchmarkMatch(b *testing.B) {
	index := NewIndex()
	for _, p := range manyPolicies(10000) {
		for _, w := range NewProgram(Set{Policies: []*Policy{p}}).Selectors() {
			index.Add(w)
		}
	}
	peers := make([]*Peer, 1000)
	for i := range peers {
		peers[i] = somePeer(1 + rand.IntN(9999))
	}
	b.ReportMetric(float64(index.Len()), "selectors")
	i := 0
	for b.Loop() {
		index.Match(peers[i%len(peers)])
		i++
	}
}

// An identity that one rule of a program matches, as it is asked of each program for each new identity.
func BenchmarkEntry(b *testing.B) {
	policies := manyPolicies(10000)
	p := NewProgram(Set{Policies: policies[10:11]})
	peer := somePeer(11)
	ms := p.match(peer)
	if len(ms) == 0 {
		b.Fatal("nothing matches")
	}
	b.Run("distinguished", func(b *testing.B) {
		for b.Loop() {
			p.Entry(Ingress, PodPeer, ms)
		}
	})
	b.Run("computed", func(b *testing.B) {
		w := &p.ways[Ingress]
		for b.Loop() {
			w.entry(w.matched(ms), ms)
		}
	})
	b.Run("other", func(b *testing.B) {
		other := Matches{{Selector: "pods app=a"}, {Selector: "pods app=b"}, {Selector: "pods app=c"}}
		for b.Loop() {
			p.Entry(Ingress, PodPeer, other)
		}
	})
}

// Ten thousand rules, each with a port of its own, for one peer.
func BenchmarkEntryOfManyPorts(b *testing.B) {
	p := &Policy{Tier: Normal, Ingress: Direction{Isolates: true}}
	for i := range 10000 {
		p.Ingress.Rules = append(p.Ingress.Rules, Rule{Path: fmt.Sprintf("spec.ingress[%d]", i), Peers: []Selector{pods("a", "", "")}, Ports: tcp(uint16(2*i + 1))})
	}
	program := NewProgram(Set{Policies: []*Policy{p}})
	ms := Matches{{Selector: "pods in namespace a"}}
	for b.Loop() {
		if e := program.ways[Ingress].entry(program.ways[Ingress].matched(ms), ms); len(e.Table.Rows) < 10000 {
			b.Fatal(len(e.Table.Rows))
		}
	}
}

func BenchmarkShadowed(b *testing.B) {
	policies := manyPolicies(10000)
	for b.Loop() {
		Shadowed(policies)
	}
}

func BenchmarkIdentify(b *testing.B) {
	ids := NewIdentities()
	ms := Matches{{Selector: "pods app=client in namespace a"}, {Selector: "pods in namespace a"}, {Selector: "pods in namespace a", Name: "http", Protocol: TCP, Port: 80}}
	for b.Loop() {
		ids.Of(PodPeer, ms)
	}
}
