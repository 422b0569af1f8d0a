package control

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/reconcile"
	"github.com/strait-net/strait/internal/state"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// node reads "a 192.168.0.1 fd09::1 | 10.1.1.0/24 fd00:1::/64"; age is its name's first letter.
func node(text string) state.Node {
	before, after, _ := strings.Cut(text, "|")
	words := strings.Fields(before)
	n := state.Node{Name: words[0], Created: time.Unix(int64(words[0][0]), 0)}
	for _, w := range words[1:] {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(w))
	}
	for _, w := range strings.Fields(after) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(w).Masked())
	}
	return n
}

// device reads "eth0 192.168.0.1/24 fd09::1/64".
func device(text string) state.Device {
	words := strings.Fields(text)
	d := state.Device{Name: words[0], Index: 2, MTU: 1500, Up: true, Native: true}
	for _, w := range words[1:] {
		d.Addresses = append(d.Addresses, netip.MustParsePrefix(w))
	}
	return d
}

func held(rows ...state.Remote) func(netip.Prefix) (state.Remote, bool) {
	return func(p netip.Prefix) (state.Remote, bool) {
		for _, r := range rows {
			if r.Prefix == p {
				return r, true
			}
		}
		return state.Remote{}, false
	}
}

func cluster(mode config.RoutingMode, nodes ...string) Cluster {
	c := Cluster{
		Self: "a", Mode: mode, IPv4: true, IPv6: true, TunnelDevice: "strait_vxlan",
		Devices: []state.Device{device("eth0 192.168.0.1/24 fd09::1/64")}, Held: held(),
	}
	for _, n := range nodes {
		c.Nodes = append(c.Nodes, node(n))
	}
	return c
}

// dump has one line per row, sorted.
func dump(w Ways) string {
	var lines []string
	for _, r := range w.Remotes {
		line := fmt.Sprintf("remote %s %s", r.Prefix, r.Kind)
		if r.Node != "" {
			line += " of " + r.Node
		}
		if r.Tunnel {
			line += " tunnel"
		}
		if r.NextHop.IsValid() {
			line += " to " + r.NextHop.String()
		}
		if r.Device != "" {
			line += " dev " + r.Device
		}
		lines = append(lines, line)
	}
	for _, r := range w.Routes {
		line := fmt.Sprintf("route %s %s", r.Kind, r.Prefix)
		if r.Via.IsValid() {
			line += " via " + r.Via.String()
		}
		if r.Device != "" {
			line += " dev " + r.Device
		}
		if r.Source.IsValid() {
			line += " src " + r.Source.String()
		}
		lines = append(lines, line)
	}
	for _, p := range w.Problems {
		lines = append(lines, "problem "+p.Subject+": "+p.Text)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

const (
	nodeA = "a 192.168.0.1 fd09::1 | 10.1.1.0/24 fd00:1::/64"
	nodeB = "b 192.168.0.2 fd09::2 | 10.1.2.0/24 fd00:2::/64"
)

func own(lines ...string) string {
	all := append([]string{
		"remote 10.1.1.0/24 pods of a", "remote 192.168.0.1/32 host of a", "remote fd00:1::/64 pods of a", "remote fd09::1/128 host of a",
		"route unreachable 10.1.1.0/24", "route unreachable fd00:1::/64",
	}, lines...)
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func TestCompile(t *testing.T) {
	with := func(c Cluster, edit func(*Cluster)) Cluster { edit(&c); return c }
	for _, c := range []struct {
		name string
		in   Cluster
		want string
	}{
		{"vxlan", cluster(config.VXLANMode, nodeA, nodeB), own(
			"remote 10.1.2.0/24 pods of b tunnel to 192.168.0.2", "remote 192.168.0.2/32 node of b tunnel to 192.168.0.2",
			"remote fd00:2::/64 pods of b tunnel to 192.168.0.2", "remote fd09::2/128 node of b tunnel to 192.168.0.2",
			"route unicast 10.1.2.0/24 dev strait_vxlan src 192.168.0.1", "route unicast fd00:2::/64 dev strait_vxlan src fd09::1")},
		{"native", cluster(config.NativeMode, nodeA, nodeB), own(
			"remote 10.1.2.0/24 pods of b to 192.168.0.2 dev eth0", "remote 192.168.0.2/32 node of b to 192.168.0.2 dev eth0",
			"remote fd00:2::/64 pods of b to fd09::2 dev eth0", "remote fd09::2/128 node of b to fd09::2 dev eth0",
			"route unicast 10.1.2.0/24 via 192.168.0.2 dev eth0", "route unicast fd00:2::/64 via fd09::2 dev eth0")},
		{"native behind a router", cluster(config.NativeMode, nodeA, "b 192.168.7.2 | 10.1.2.0/24"), own(
			"problem node b: no native route to 192.168.7.2/32, 10.1.2.0/24: its addresses [192.168.7.2] are not in a subnet of this node " +
				"(192.168.0.0/24 on eth0, fd09::/64 on eth0); use routingMode vxlan, or connect the nodes to one L2 network")},
		{"native, one family only on the link", cluster(config.NativeMode, nodeA, "b 192.168.0.2 | 10.1.2.0/24 fd00:2::/64"), own(
			"problem node b: no native route to fd00:2::/64: its addresses [192.168.0.2] are not in a subnet of this node "+
				"(192.168.0.0/24 on eth0, fd09::/64 on eth0); use routingMode vxlan, or connect the nodes to one L2 network",
			"remote 10.1.2.0/24 pods of b to 192.168.0.2 dev eth0", "remote 192.168.0.2/32 node of b to 192.168.0.2 dev eth0",
			"route unicast 10.1.2.0/24 via 192.168.0.2 dev eth0")},
		{"vxlan over the only family in common", cluster(config.VXLANMode, nodeA, "b fd09::2 | 10.1.2.0/24"), own(
			"remote 10.1.2.0/24 pods of b tunnel to fd09::2", "remote fd09::2/128 node of b tunnel to fd09::2",
			"route unicast 10.1.2.0/24 dev strait_vxlan src 192.168.0.1")},
		{"vxlan without a family in common", cluster(config.VXLANMode, "a 192.168.0.1 | 10.1.1.0/24 fd00:1::/64", "b fd09::2 | 10.1.2.0/24"), own(
			"problem node b: no tunnel to fd09::2/128, 10.1.2.0/24: its addresses [fd09::2] and this node's [192.168.0.1] have no family in common")},
		{"IPv6 off", with(cluster(config.VXLANMode, nodeA, nodeB), func(c *Cluster) { c.IPv6 = false }), strings.Join([]string{
			"remote 10.1.1.0/24 pods of a", "remote 10.1.2.0/24 pods of b tunnel to 192.168.0.2", "remote 192.168.0.1/32 host of a",
			"remote 192.168.0.2/32 node of b tunnel to 192.168.0.2", "route unicast 10.1.2.0/24 dev strait_vxlan src 192.168.0.1",
			"route unreachable 10.1.1.0/24"}, "\n")},
		{"node without addresses", cluster(config.VXLANMode, nodeA, "b | 10.1.2.0/24"), own(
			"problem node b: has no InternalIP in status.addresses; there is no way to its pods")},
		{"node without CIDRs is reachable itself", cluster(config.VXLANMode, nodeA, "b 192.168.0.2"), own(
			"remote 192.168.0.2/32 node of b tunnel to 192.168.0.2")},
		{"own CIDR missing in one family", cluster(config.VXLANMode, "a 192.168.0.1 | 10.1.1.0/24"), strings.Join([]string{
			"problem node a: has no IPv6 pod CIDR in spec.podCIDRs; pods get no IPv6 address before strait-operator (ipam.mode cluster-pool) or " +
				"kube-controller-manager (ipam.mode kubernetes) has set it",
			"remote 10.1.1.0/24 pods of a", "remote 192.168.0.1/32 host of a", "remote fd09::1/128 host of a", "route unreachable 10.1.1.0/24"}, "\n")},
		{"every address of this node", with(cluster(config.VXLANMode, nodeA), func(c *Cluster) {
			for _, text := range []string{"eth1 172.20.0.1/24 172.20.0.9/24 fd20::1/64", "lo 203.0.113.1/32 2001:db8::1/128"} {
				d := device(text)
				d.Native, d.Up = false, false
				c.Devices = append(c.Devices, d)
			}
		}), own("remote 172.20.0.1/32 host of a", "remote 172.20.0.9/32 host of a", "remote fd20::1/128 host of a", "remote 203.0.113.1/32 host of a", "remote 2001:db8::1/128 host of a")},
		{"API servers that are no nodes", with(cluster(config.VXLANMode, nodeA), func(c *Cluster) {
			for _, a := range []string{"192.168.0.1", "10.1.1.7", "203.0.113.5", "203.0.113.5", "2001:db8::5"} {
				c.APIServers = append(c.APIServers, netip.MustParseAddr(a))
			}
		}), own("remote 2001:db8::5/128 apiserver", "remote 203.0.113.5/32 apiserver")},
		{"pod CIDRs overlap: the older has it", cluster(config.VXLANMode, nodeA, "c 192.168.0.3 | 10.1.3.128/25", "b 192.168.0.2 | 10.1.3.0/24"), own(
			"problem node c: pod CIDR 10.1.3.128/25 overlaps pod CIDR 10.1.3.0/24 of node b, which came first; it is not programmed until one of them changes",
			"remote 10.1.3.0/24 pods of b tunnel to 192.168.0.2", "remote 192.168.0.2/32 node of b tunnel to 192.168.0.2",
			"remote 192.168.0.3/32 node of c tunnel to 192.168.0.3", "route unicast 10.1.3.0/24 dev strait_vxlan src 192.168.0.1")},
		{"pod CIDRs overlap: the holder keeps it", with(cluster(config.VXLANMode, nodeA, "c 192.168.0.3 | 10.1.3.128/25", "b 192.168.0.2 | 10.1.3.0/24"), func(c *Cluster) {
			c.Held = held(state.Remote{Prefix: netip.MustParsePrefix("10.1.3.128/25"), Kind: state.RemotePods, Node: "c"})
		}), own(
			"problem node b: pod CIDR 10.1.3.0/24 overlaps pod CIDR 10.1.3.128/25 of node c, which came first; it is not programmed until one of them changes",
			"remote 10.1.3.128/25 pods of c tunnel to 192.168.0.3", "remote 192.168.0.2/32 node of b tunnel to 192.168.0.2",
			"remote 192.168.0.3/32 node of c tunnel to 192.168.0.3", "route unicast 10.1.3.128/25 dev strait_vxlan src 192.168.0.1")},
		{"pod CIDR over node addresses", cluster(config.VXLANMode, nodeA, "b 192.168.0.2 | 192.168.0.0/16"), own(
			"problem node b: pod CIDR 192.168.0.0/16 overlaps address 192.168.0.1 of node a, which came first; it is not programmed until one of them changes",
			"remote 192.168.0.2/32 node of b tunnel to 192.168.0.2")},
		{"address of another", cluster(config.VXLANMode, nodeA, "b 192.168.0.1"), own(
			"problem node b: address 192.168.0.1 overlaps address 192.168.0.1 of node a, which came first; it is not programmed until one of them changes")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := dump(Compile(c.in)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// What the kernel is told never contradicts itself, does not depend on the order of the input, and once programmed stays
// with its holder while the holder still claims it.
func TestCompileProperties(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		random := func() []string {
			list := []string{nodeA}
			for _, name := range []string{"b", "c", "d", "e", "f"}[:r.IntN(6)] {
				list = append(list, fmt.Sprintf("%s 192.168.%d.%d fd09::%d | 10.1.%d.0/%d fd00:%d::/64",
					name, r.IntN(2), r.IntN(6)+1, r.IntN(6)+1, r.IntN(8), 22+r.IntN(4), r.IntN(4)))
			}
			return list
		}
		mode := []config.RoutingMode{config.VXLANMode, config.NativeMode}[r.IntN(2)]
		first := cluster(mode, random()...)
		ways := Compile(first)
		checkWays(t, seed, ways)
		r.Shuffle(len(first.Nodes), func(i, j int) { first.Nodes[i], first.Nodes[j] = first.Nodes[j], first.Nodes[i] })
		if got, want := dump(Compile(first)), dump(ways); got != want {
			t.Fatalf("seed %d: order matters\n%s\n\n%s", seed, got, want)
		}
		second := cluster(mode, random()...)
		second.Nodes = append(first.Nodes, second.Nodes[1:]...) // newcomers replace or join
		slices.Reverse(second.Nodes)
		second.Nodes = uniqueNodes(second.Nodes)
		second.Held = held(ways.Remotes...)
		again := Compile(second)
		checkWays(t, seed, again)
		for _, old := range ways.Remotes {
			claimed := slices.ContainsFunc(second.Nodes, func(n state.Node) bool {
				return n.Name == old.Node && (slices.Contains(n.PodCIDRs, old.Prefix) || slices.Contains(n.Addresses, old.Prefix.Addr()))
			})
			kept := slices.ContainsFunc(again.Remotes, func(n state.Remote) bool { return n.Prefix == old.Prefix && n.Node == old.Node })
			if claimed && !kept && mode == config.VXLANMode {
				t.Fatalf("seed %d: %+v taken from its holder\n%s", seed, old, dump(again))
			}
		}
	}
}

func uniqueNodes(nodes []state.Node) []state.Node {
	seen := map[string]bool{}
	return slices.DeleteFunc(nodes, func(n state.Node) bool {
		twice := seen[n.Name]
		seen[n.Name] = true
		return twice
	})
}

func checkWays(t *testing.T, seed uint64, w Ways) {
	t.Helper()
	for i, a := range w.Remotes {
		for _, b := range w.Remotes[:i] {
			if a.Prefix.Overlaps(b.Prefix) {
				t.Fatalf("seed %d: %s of %s overlaps %s of %s", seed, a.Prefix, a.Node, b.Prefix, b.Node)
			}
		}
	}
	pods := 0
	for _, r := range w.Remotes {
		if r.Kind == state.RemotePods {
			pods++
			if !slices.ContainsFunc(w.Routes, func(route state.Route) bool { return route.Prefix == r.Prefix }) {
				t.Fatalf("seed %d: %s has no route", seed, r.Prefix)
			}
		}
	}
	if pods != len(w.Routes) {
		t.Fatalf("seed %d: %d pod CIDRs, %d routes", seed, pods, len(w.Routes))
	}
}

func start(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestNodesLoop(t *testing.T) {
	st := state.New()
	loop := NewNodes("a", config.Default(), "strait_vxlan", st, quiet())
	nodesDone, devicesDone, slicesDone := st.Nodes.Register("test"), st.Devices.Register("test"), st.EndpointSlices.Register("test")
	start(t, loop.Run)
	st.Devices.Insert(device("eth0 192.168.0.1/24"))
	st.Nodes.Insert(node("b 192.168.0.2 | 10.1.2.0/24"))
	devicesDone()
	slicesDone()
	time.Sleep(20 * time.Millisecond)
	if n := st.Remotes.Snapshot().Len(); n != 0 {
		t.Fatalf("%d rows before every source has delivered", n)
	}
	nodesDone()
	eventually(t, "own node is missed", func() bool { return st.Problems.Snapshot().Len() == 1 })
	if closed(st.Remotes.Initialized()) || st.Remotes.Snapshot().Len() != 0 {
		t.Fatal("rows are final although this node has no object")
	}
	st.Nodes.Insert(node("a 192.168.0.1 | 10.1.1.0/24"))
	<-st.Remotes.Initialized()
	<-st.Routes.Initialized()
	if n := st.Problems.Snapshot().Len(); n != 0 {
		t.Errorf("%d problems left", n)
	}
	key := "10.1.2.0/24"
	row, _, _ := st.Remotes.Snapshot().Get(key)
	st.Remotes.Insert(row.WithStatus(reconcile.Status{Kind: reconcile.Done}))
	st.Nodes.Insert(node("c 192.168.0.3 | 10.1.3.0/24"))
	eventually(t, "the new node", func() bool { _, _, ok := st.Remotes.Snapshot().Get("10.1.3.0/24"); return ok })
	if row, _, _ := st.Remotes.Snapshot().Get(key); row.Kind != state.RemotePods || row.Status.Kind != reconcile.Done {
		t.Errorf("unchanged row was written again: %+v", row)
	}
	st.EndpointSlices.Insert(state.EndpointSlice{
		Namespace: "default", Name: "kubernetes", Service: state.ServiceName{Namespace: "default", Name: "kubernetes"},
		Endpoints: []state.SliceEndpoint{{Address: netip.MustParseAddr("203.0.113.5")}},
	})
	eventually(t, "the API server", func() bool { _, _, ok := st.Remotes.Snapshot().Get("203.0.113.5/32"); return ok })
	st.Nodes.Delete("a")
	eventually(t, "own node is missed", func() bool { return st.Problems.Snapshot().Len() == 1 })
	if _, _, ok := st.Remotes.Snapshot().Get("10.1.1.0/24"); !ok {
		t.Error("own rows went with the Node object")
	}
	st.Nodes.Insert(node("a 192.168.0.1 | 10.1.1.0/24"))
	st.Nodes.Delete("c")
	eventually(t, "rows of the lost node go", func() bool { _, _, ok := st.Remotes.Snapshot().Get("10.1.3.0/24"); return !ok })
}

func BenchmarkCompile5000Nodes(b *testing.B) {
	c := cluster(config.VXLANMode, nodeA)
	for i := range 5000 {
		c.Nodes = append(c.Nodes, node(fmt.Sprintf("n%d 172.16.%d.%d fd08::%x | 10.%d.%d.0/24 fd02:%x::/64", i, i>>8, i&255, i+1, 16+i>>8, i&255, i+1)))
	}
	for b.Loop() {
		if w := Compile(c); len(w.Remotes) < 20000 {
			b.Fatal(len(w.Remotes), w.Problems[0])
		}
	}
}
