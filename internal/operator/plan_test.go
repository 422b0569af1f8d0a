package operator

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/state"
)

// node reads "b 192.168.0.2 | 10.244.1.0/24"; the age is the name's first letter.
func node(text string) state.Node {
	before, after, _ := strings.Cut(text, "|")
	words := strings.Fields(before)
	n := state.Node{Name: words[0], UID: "uid-" + words[0], Created: time.Unix(int64(words[0][0]), 0)}
	for _, w := range words[1:] {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(w))
	}
	for _, w := range strings.Fields(after) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(w))
	}
	return n
}

func settings(yaml string) config.Config {
	c, err := config.Parse([]byte(yaml))
	if err != nil {
		panic(err)
	}
	return c
}

func nodes(list ...string) []state.Node {
	var out []state.Node
	for _, text := range list {
		out = append(out, node(text))
	}
	return out
}

func dump(p plan) string {
	var lines []string
	for _, a := range p.assign {
		lines = append(lines, fmt.Sprintf("%s <- %v", a.node, a.cidrs))
	}
	for _, f := range p.findings {
		lines = append(lines, fmt.Sprintf("%s %s: %s", f.node, f.reason, f.text))
	}
	return strings.Join(lines, "\n")
}

const small = "ipam: {podCIDRv4: 10.244.0.0/22}\n"

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name, cfg string
		nodes     []state.Node
		want      []string // parts of each line, in order
	}{
		{"the oldest first, sticky", small, nodes("c", "a", "b | 10.244.1.0/24"), []string{"a <- [10.244.0.0/24]", "c <- [10.244.2.0/24]"}},
		{"dual-stack pair", small + "ipv6: true", nodes("a"), []string{"a <- [10.244.0.0/24 fd00:10:244::/64]"}},
		{"IPv6 only", "ipv4: false\nipv6: true", nodes("a"), []string{"a <- [fd00:10:244::/64]"}},
		{"services and nodes are left out", small + "serviceCIDRs: [10.96.0.0/16]", nodes("a 10.244.0.7", "b 10.244.1.9"),
			[]string{"a <- [10.244.2.0/24]", "b <- [10.244.3.0/24]"}},
		{"another mask than before", "ipam: {podCIDRv4: 10.244.0.0/22, nodeMaskV4: 25}", nodes("a | 10.244.0.0/24", "b | 10.244.1.128/26", "c", "d"),
			[]string{"c <- [10.244.1.0/25]", "d <- [10.244.2.0/25]"}},
		{"exhausted", small, nodes("a | 10.244.0.0/24", "b | 10.244.1.0/24", "c | 10.244.2.0/24", "d", "e"),
			[]string{"d <- [10.244.3.0/24]", "e PodCIDRPoolExhausted: no pod CIDR is left (IPv4, ipam.podCIDRv4: all 4"}},
		{"exhausted in one family gives neither", "ipv6: true\nipam: {podCIDRv6: \"fd00::/64\"}", nodes("a", "b"),
			[]string{"a <- [10.244.0.0/24 fd00::/64]", "b PodCIDRPoolExhausted: no pod CIDR is left (IPv6"}},
		{"outside the pool", small, nodes("a | 10.9.0.0/24", "b | 10.244.0.0/16"), []string{
			"a PodCIDROutsidePool: pod CIDR 10.9.0.0/24 lies outside ipam.podCIDRv4 10.244.0.0/22", "b PodCIDROutsidePool: pod CIDR 10.244.0.0/16"}},
		{"family missing", small + "ipv6: true", nodes("a | 10.244.0.0/24"), []string{"a PodCIDRFamilyMissing: spec.podCIDRs [10.244.0.0/24] has no IPv6"}},
		{"collision: the younger is told", small, nodes("b | 10.244.0.0/24", "a | 10.244.0.128/25"), []string{
			"b PodCIDRCollision: pod CIDR 10.244.0.0/24 overlaps 10.244.0.128/25 of node a"}},
		{"over a service range", small + "serviceCIDRs: [10.96.0.0/16]", nodes("a | 10.96.3.0/24"), []string{
			"a PodCIDROutsidePool", "a PodCIDROverlap: pod CIDR 10.96.3.0/24 overlaps service range 10.96.0.0/16"}},
		{"over a node", small, nodes("a | 10.244.0.0/24", "b 10.244.0.9 | 10.244.1.0/24"), []string{
			"a PodCIDROverlap: pod CIDR 10.244.0.0/24 overlaps address 10.244.0.9 of node b"}},
		{"kubernetes: only checks", "ipam: {mode: kubernetes}", nodes("a", "b | 10.9.0.0/24", "c | 10.9.0.0/25"), []string{
			"a PodCIDRMissing: spec.podCIDRs is empty", "c PodCIDRCollision: pod CIDR 10.9.0.0/25 overlaps 10.9.0.0/24 of node b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := dump(makePlan(input{cfg: settings(c.cfg), nodes: c.nodes, now: time.Unix(10000, 0)}))
			lines := strings.Split(got, "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("got\n%s\nwant\n%s", got, strings.Join(c.want, "\n"))
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got\n%s\nwant\n%s", lines[i], want)
				}
			}
		})
	}
}

func TestPendingIsKept(t *testing.T) {
	in := input{cfg: settings(small), nodes: nodes("a", "b"), pending: map[string][]netip.Prefix{"uid-b": {netip.MustParsePrefix("10.244.0.0/24")}}}
	if got, want := dump(makePlan(in)), "a <- [10.244.1.0/24]\nb <- [10.244.0.0/24]"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// Another writer gave it to a third node meanwhile.
	in.nodes = append(in.nodes, node("c | 10.244.0.0/24"))
	if got, want := dump(makePlan(in)), "a <- [10.244.1.0/24]\nb <- [10.244.2.0/24]"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestGrace(t *testing.T) {
	n := node("a")
	in := input{cfg: settings("ipam: {mode: kubernetes}"), nodes: []state.Node{n}, now: n.Created.Add(grace / 2)}
	if got := dump(makePlan(in)); got != "" {
		t.Errorf("a node that has just come: %s", got)
	}
}

// A cluster in which nodes come, go and are given CIDRs by others, the operator restarts and answers get lost: whatever
// strait-operator gives lies in the pool, is complete, and never has an address in common with what another node has.
func TestAssignmentsNeverCollide(t *testing.T) {
	cfg := settings("ipv6: true\nipam: {podCIDRv4: 10.244.0.0/19, podCIDRv6: \"fd00::/58\"}\nserviceCIDRs: [10.96.0.0/16]")
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		cluster := map[string]state.Node{}
		pending := map[string][]netip.Prefix{}
		var cursors [2]uint64
		born := int64(0)
		for range 80 {
			name := fmt.Sprintf("n%02d", r.IntN(40))
			switch r.IntN(8) {
			case 0:
				delete(cluster, name)
			case 1:
				pending, cursors = map[string][]netip.Prefix{}, [2]uint64{} // restart
			default:
				if _, there := cluster[name]; !there {
					born++
					cluster[name] = state.Node{Name: name, UID: fmt.Sprint(born), Created: time.Unix(born, 0)}
				}
			}
			var list []state.Node
			for _, n := range cluster {
				list = append(list, n)
			}
			p := makePlan(input{cfg: cfg, nodes: list, pending: pending, cursors: cursors, now: time.Unix(1e6, 0)})
			cursors = p.cursors
			for _, a := range p.assign {
				pending[a.uid] = a.cidrs
				if r.IntN(3) == 0 {
					continue // not carried out yet
				}
				n := cluster[a.node]
				if len(n.PodCIDRs) > 0 {
					t.Fatalf("seed %d: node %s has %v and was to get %v", seed, n.Name, n.PodCIDRs, a.cidrs)
				}
				n.PodCIDRs = a.cidrs
				cluster[a.node] = n
				delete(pending, a.uid)
			}
			check(t, seed, cfg, cluster)
			if len(p.findings) > 0 && len(cluster) <= 32 {
				t.Fatalf("seed %d: %s", seed, dump(p))
			}
		}
	}
}

func check(t *testing.T, seed uint64, cfg config.Config, cluster map[string]state.Node) {
	t.Helper()
	var all []netip.Prefix
	for _, n := range cluster {
		if len(n.PodCIDRs) == 0 {
			continue
		}
		if len(n.PodCIDRs) != 2 || !cfg.PodCIDR(false).Contains(n.PodCIDRs[0].Addr()) || n.PodCIDRs[0].Bits() != 24 ||
			!cfg.PodCIDR(true).Contains(n.PodCIDRs[1].Addr()) || n.PodCIDRs[1].Bits() != 64 {
			t.Fatalf("seed %d: node %s got %v", seed, n.Name, n.PodCIDRs)
		}
		for _, p := range n.PodCIDRs {
			if slices.ContainsFunc(all, p.Overlaps) {
				t.Fatalf("seed %d: %s of node %s was given before", seed, p, n.Name)
			}
		}
		all = append(all, n.PodCIDRs...)
	}
}

func BenchmarkPlan5000Nodes(b *testing.B) {
	cfg := settings("ipam: {podCIDRv4: 10.0.0.0/8}")
	var list []state.Node
	for i := range 5000 {
		n := node(fmt.Sprintf("n%d 172.16.%d.%d", i, i>>8, i&255))
		if i%2 == 0 {
			n.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
		}
		list = append(list, n)
	}
	for b.Loop() {
		if p := makePlan(input{cfg: cfg, nodes: list}); len(p.assign) != 2500 {
			b.Fatal(len(p.assign))
		}
	}
}
