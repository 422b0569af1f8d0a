package explain_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const port = 8080

// rig asks the agents of a cluster, each over its own socket.
type rig struct {
	t       *testing.T
	c       *testkit.Cluster
	clients map[string]*localapi.Client
	asked   int
	took    time.Duration
}

func newRig(t *testing.T, o testkit.Options) *rig {
	testkit.RequireRoot(t)
	r := &rig{t: t, c: testkit.NewCluster(t, o), clients: map[string]*localapi.Client{}}
	for _, n := range r.c.Nodes {
		root := strings.TrimSuffix(n.Path(), "ns/net") + "root" // the node's own /run
		r.clients[n.Name] = localapi.NewClient(root + localapi.DefaultSocket)
	}
	return r
}

func (r *rig) ask(ctx context.Context, node string, q localapi.ExplainQuestion) (localapi.ExplainPart, error) {
	c, ok := r.clients[node]
	if !ok {
		return localapi.ExplainPart{}, fmt.Errorf("no node %s", node)
	}
	began := time.Now()
	defer func() { r.asked++; r.took += time.Since(began) }()
	return c.Explain(ctx, q)
}

// sender is who a packet is from.
type sender struct {
	ns   *testkit.Namespace
	node string
	pod  string // empty: the node itself
}

func ofPod(n *testkit.Node, p *testkit.Pod) sender { return sender{p.Namespace, n.Name, p.String()} }
func ofNode(n *testkit.Node) sender                { return sender{n.Namespace, n.Name, ""} }

func (r *rig) explain(from sender, network string, to netip.AddrPort) explain.Path {
	r.t.Helper()
	q := localapi.ExplainQuestion{
		Session: fmt.Sprintf("test-%d", time.Now().UnixNano()), Entry: localapi.EntryNode, Pod: from.pod,
		Packet: localapi.ExplainPacket{Target: to, Protocol: strings.ToUpper(network)},
	}
	if from.pod != "" {
		q.Entry = localapi.EntryPod
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return explain.Follow(ctx, r.ask, from.node, q)
}

// real makes the exchange that was explained.
func (r *rig) real(from sender, network string, to netip.AddrPort, limit time.Duration) (bool, string) {
	r.t.Helper()
	got := from.ns.Probe(testkit.Probe{Network: network, Address: to.String(), Timeout: limit, Size: 1})
	return got.OK == 1, fmt.Sprint(got.Errors)
}

func show(p explain.Path) string {
	var b strings.Builder
	legs := func(title string, legs []explain.Leg) {
		for _, l := range legs {
			fmt.Fprintf(&b, "%s, node %s: %s\n", title, l.Node, l.Error)
			if l.Part == nil {
				continue
			}
			for _, h := range l.Part.Hops {
				fmt.Fprintf(&b, "  %-9s %s: %s [%s] %s\n", h.Outcome, h.Place, h.Text, h.Entry, h.Reason)
				for _, f := range h.Facts {
					fmt.Fprintf(&b, "            %s: %s\n", f.Name, f.Value)
				}
			}
			next, _ := json.Marshal(l.Part.Next)
			fmt.Fprintf(&b, "  next %s\n", next)
		}
	}
	legs("there", p.There)
	legs("back", p.Back)
	fmt.Fprintf(&b, "%s: %s\n", p.Conclusion.Verdict, p.Conclusion.Text)
	for _, w := range p.Conclusion.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// agree compares explain with a real exchange.
func (r *rig) agree(what string, from sender, network string, to netip.AddrPort) explain.Path {
	r.t.Helper()
	p := r.explain(from, network, to)
	limit := time.Second
	if p.Conclusion.Verdict != explain.Delivered {
		limit = 300 * time.Millisecond
	}
	ok, errs := r.real(from, network, to, limit)
	if ok != (p.Conclusion.Verdict == explain.Delivered) {
		r.t.Errorf("%s: %s %s to %s: explain says %s, the exchange: %v %s\n%s", what, from.ns.Name, network, to, p.Conclusion.Verdict, ok, errs, show(p))
	}
	return p
}

var networks = []string{"tcp", "udp"}

// CLI-4: from everybody to everybody, in both modes and families.
func TestEverybody(t *testing.T) {
	for _, mode := range []string{"vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, testkit.Options{Config: map[string]any{"routingMode": mode}})
			one, two := r.c.Nodes[0], r.c.Nodes[1]
			a, b, far := one.AddPodAs("a", testkit.PodSpec{}), one.AddPodAs("b", testkit.PodSpec{}), two.AddPodAs("far", testkit.PodSpec{})
			for _, n := range []*testkit.Namespace{a.Namespace, b.Namespace, far.Namespace, one.Namespace, two.Namespace, r.c.Outside} {
				n.Echo(port)
			}
			shown := false
			for _, v6 := range []bool{false, true} {
				at := func(n *testkit.Node) netip.Addr {
					if v6 {
						return n.IPv6
					}
					return n.IPv4
				}
				for _, network := range networks {
					for _, to := range []netip.Addr{a.Address(v6), b.Address(v6), far.Address(v6), at(one), at(two), testkit.OutsideAddr(v6)} {
						for _, from := range []sender{ofPod(one, a), ofPod(two, far), ofNode(one)} {
							p := r.agree("reach", from, network, netip.AddrPortFrom(to, port))
							if !shown && to == far.Address(v6) && p.Conclusion.Verdict == explain.Delivered {
								shown = true
								t.Logf("for example:\n%s", show(p))
							}
						}
					}
					if p := r.agree("no listener", ofPod(one, a), network, netip.AddrPortFrom(far.Address(v6), 9)); p.Conclusion.Verdict != explain.But {
						t.Errorf("nobody listens: %s", show(p))
					}
				}
			}
			t.Logf("%d parts, %v each", r.asked, r.took/time.Duration(max(r.asked, 1)))
		})
	}
}
