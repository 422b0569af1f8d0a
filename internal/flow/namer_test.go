package flow_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func ends(from, to string) flow.Event {
	return flow.Event{Kind: flow.New, Time: epoch, Protocol: policy.TCP, Source: netip.MustParseAddrPort(from), Target: netip.MustParseAddrPort(to)}
}

// town is a cluster of two nodes as node a knows it.
func town() *state.State {
	st := state.New()
	prefix := netip.MustParsePrefix
	for _, r := range []state.Remote{
		{Prefix: prefix("10.0.0.1/32"), Kind: state.RemoteHost, Node: "a"}, {Prefix: prefix("10.0.0.2/32"), Kind: state.RemoteNode, Node: "b"},
		{Prefix: prefix("10.244.1.0/24"), Kind: state.RemotePods, Node: "a"}, {Prefix: prefix("10.244.2.0/24"), Kind: state.RemotePods, Node: "b"},
		{Prefix: prefix("fd00:2::/64"), Kind: state.RemotePods, Node: "b"}, {Prefix: prefix("10.9.9.9/32"), Kind: state.RemoteAPIServer},
	} {
		st.Remotes.Insert(r)
	}
	st.Devices.Insert(state.Device{Name: "eth0", Addresses: []netip.Prefix{prefix("10.0.0.1/24"), prefix("192.0.2.1/24")}})
	st.Pods.Insert(
		state.Pod{Namespace: "default", Name: "web", UID: "u1", Node: "a", Addresses: []netip.Addr{addr("10.244.1.5")}, Labels: policy.Labels{{Key: "app", Value: "web"}}},
		state.Pod{Namespace: "default", Name: "db", UID: "u2", Node: "b", Addresses: []netip.Addr{addr("10.244.2.5"), addr("fd00:2::5")}},
		state.Pod{Namespace: "default", Name: "new", UID: "u3", Node: "b", Addresses: []netip.Addr{addr("10.244.2.6")}, Claimed: true},
		state.Pod{Namespace: "default", Name: "agent", UID: "u4", Node: "b", Addresses: []netip.Addr{addr("10.0.0.2")}, HostNetwork: true},
	)
	st.Endpoints.Insert(
		state.Endpoint{ContainerID: "c1", IfName: "eth0", Namespace: "default", Pod: "web", PodUID: "u1", Addresses: []netip.Addr{addr("10.244.1.5")}},
		state.Endpoint{ContainerID: "c2", IfName: "eth0", Namespace: "default", Pod: "early", PodUID: "u9", Addresses: []netip.Addr{addr("10.244.1.6")}},
	)
	st.Identities.Insert(
		state.Identity{Prefix: prefix("0.0.0.0/0"), ID: identity.World, Kind: policy.WorldPeer},
		state.Identity{Prefix: prefix("10.244.2.5/32"), ID: 1000, Kind: policy.PodPeer, Pod: "default/db"},
		state.Identity{Prefix: prefix("10.244.2.6/32"), ID: 1001, Kind: policy.PodPeer, Pod: "default/new"},
		state.Identity{Prefix: prefix("203.0.113.0/24"), ID: 2000, Kind: policy.WorldPeer},
	)
	web := state.ServiceName{Namespace: "default", Name: "web"}
	st.Frontends.Insert(
		state.Frontend{Address: addr("10.96.0.10"), Port: 80, Protocol: state.TCP, Type: state.ClusterIP, Service: web, PortName: "http"},
		state.Frontend{Address: addr("0.0.0.0"), Port: 30080, Protocol: state.TCP, Type: state.NodePort, Service: web, PortName: "http"},
		state.Frontend{Address: addr("0.0.0.0"), Port: 8080, Protocol: state.TCP, Type: state.HostPort, Service: web},
	)
	return st
}

func namer(t testing.TB, st *state.State) *flow.Namer {
	rules := map[uint32]policy.RuleRef{}
	for number := range uint32(100) {
		rules[number] = policy.RuleRef{Ref: policy.Ref{Kind: policy.NetworkPolicy, Name: fmt.Sprint("rule", number)}}
	}
	n := flow.NewNamer(flow.NamerConfig{Node: "a", State: st, Rule: func(number uint32) (policy.RuleRef, bool) {
		ref, ok := rules[number]
		return ref, ok
	}})
	t.Cleanup(n.Close)
	return n
}

func TestNameEnds(t *testing.T) {
	n := namer(t, town())
	for _, c := range []struct {
		address string
		kind    policy.PeerKind
		id      identity.ID
		pod     string
		node    string
		local   bool
	}{
		{"10.244.1.5", policy.PodPeer, identity.Pod, "default/web", "a", true},
		{"10.244.1.6", policy.PodPeer, identity.Pod, "default/early", "a", true}, // attached, not reported yet
		{"10.244.2.5", policy.PodPeer, 1000, "default/db", "b", false},
		{"fd00:2::5", policy.PodPeer, identity.Pod, "default/db", "b", false},
		{"10.244.2.6", policy.PodPeer, 1001, "default/new", "b", false}, // believed by policy, not reported yet
		{"10.244.2.7", policy.UnknownPeer, identity.Unknown, "", "b", false},
		{"10.0.0.1", policy.HostPeer, identity.Host, "", "a", true},
		{"192.0.2.1", policy.HostPeer, identity.Host, "", "a", true},
		{"10.0.0.2", policy.NodePeer, identity.RemoteNode, "", "b", false},
		{"10.9.9.9", policy.APIServerPeer, identity.APIServer, "", "", false},
		{"203.0.113.7", policy.WorldPeer, 2000, "", "", false},
		{"198.51.100.1", policy.WorldPeer, identity.World, "", "", false},
		{"2001:db8::1", policy.WorldPeer, identity.World, "", "", false},
		{"fe80::1", policy.UnknownPeer, identity.Unknown, "", "", false},
	} {
		from := netip.AddrPortFrom(addr(c.address), 1234)
		f := n.Name(epoch, []flow.Event{{Kind: flow.New, Time: epoch, Source: from, Target: from}}, nil)[0]
		for _, e := range []flow.End{f.From, f.To} {
			pod := ""
			if e.Pod != nil {
				pod = e.Pod.Key()
			}
			if e.Kind != c.kind || e.Identity != c.id || pod != c.pod || e.Node != c.node || e.Local != c.local {
				t.Errorf("%s is %s %s pod %q node %q local %t", c.address, e.Kind, e.Identity, pod, e.Node, e.Local)
			}
		}
	}
	f := n.Name(epoch, []flow.Event{{Kind: flow.Dropped, Time: epoch}, {Kind: flow.Lost}}, nil)
	if f[0].From != (flow.End{}) || f[0].To != (flow.End{}) || f[1].From != (flow.End{}) {
		t.Errorf("ends of what has no addresses: %+v", f)
	}
}

func TestNameServicesAndRules(t *testing.T) {
	n := namer(t, town())
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		target, front string
		protocol      policy.Protocol
		want          string
	}{
		{"10.244.2.5:8080", "10.96.0.10:80", policy.TCP, "default/web http"},
		{"10.244.2.5:8080", "10.0.0.2:30080", policy.TCP, "default/web http"},
		{"10.244.2.5:8080", "10.0.0.1:30080", policy.TCP, "default/web http"},
		{"10.244.2.5:8080", "198.51.100.1:30080", policy.TCP, " "},
		{"10.244.2.5:8080", "10.0.0.1:8080", policy.TCP, " "}, // a host port is no service
		{"10.244.2.5:8080", "10.96.0.10:80", policy.UDP, " "},
		{"10.96.0.10:80", "", policy.TCP, "default/web http"}, // nothing stands behind it
		{"10.0.0.1:30080", "", policy.TCP, "default/web http"},
		{"10.244.2.5:8080", "", policy.TCP, " "},
	} {
		e := ends("10.244.1.5:1234", c.target)
		e.Protocol = c.protocol
		if c.front != "" {
			e.Front = at(c.front)
		}
		for range 2 { // the second time from memory
			if f := n.Name(epoch, []flow.Event{e}, nil)[0]; f.Service+" "+f.ServicePort != c.want {
				t.Errorf("%s %s by %s is %q port %q, want %q", c.protocol, c.target, c.front, f.Service, f.ServicePort, c.want)
			}
		}
	}
	e := ends("10.244.1.5:1", "10.244.2.5:2")
	e.Egress, e.Ingress, e.Audited = 7, 0, 100
	one, other := n.Name(epoch, []flow.Event{e}, nil)[0], n.Name(epoch, []flow.Event{e}, nil)[0]
	if one.EgressRule == nil || one.EgressRule.Name != "rule7" || one.IngressRule != nil || one.AuditedRule != nil {
		t.Errorf("rules %v %v %v", one.EgressRule, one.IngressRule, one.AuditedRule)
	}
	if one.EgressRule != other.EgressRule {
		t.Error("the same rule is kept twice")
	}
}

// A name is that of the time of the event: an address that is given to another pod has another name from then on, and one that nobody has
// any more keeps its last for a while.
func TestNamesFollowTables(t *testing.T) {
	st := town()
	n := namer(t, st)
	e := ends("10.244.2.5:1", "10.96.0.10:80")
	name := func(at time.Time) string {
		e.Time = at
		f := n.Name(at, []flow.Event{e}, nil)[0]
		if f.From.Pod == nil {
			return f.From.Kind.String() + " " + f.Service
		}
		return f.From.Pod.Name + " " + f.Service
	}
	step := func(what, want string, at time.Time) {
		t.Helper()
		if got := name(at); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	step("at first", "db default/web", epoch)
	st.Pods.Delete("default/db")
	st.Identities.Delete("10.244.2.5/32")
	st.Frontends.Delete("10.96.0.10:80/TCP")
	step("pod and service removed", "db ", epoch.Add(time.Second))
	step("a while after", "db ", epoch.Add(50*time.Second))
	step("a minute after", "unknown ", epoch.Add(61*time.Second))
	st.Pods.Insert(state.Pod{Namespace: "default", Name: "next", Node: "b", Addresses: []netip.Addr{addr("10.244.2.5")}})
	step("given to another", "next ", epoch.Add(62*time.Second))
	st.Pods.Delete("default/next")
	st.Pods.Insert(state.Pod{Namespace: "default", Name: "third", Node: "b", Addresses: []netip.Addr{addr("10.244.2.5")}})
	step("given away at once", "third ", epoch.Add(63*time.Second))
	late := n.Name(epoch.Add(3*time.Minute), []flow.Event{e}, nil)[0].From
	if late.Pod != nil || late.Kind != policy.PodPeer || late.Node != "b" {
		t.Errorf("of an event that nobody has read for minutes: %+v", late)
	}
	st.Remotes.Delete("10.244.2.0/24")
	st.Pods.Delete("default/third")
	step("the node is gone", "world ", epoch.Add(64*time.Second))
}

// BenchmarkName is a busy node: many short connections between few pods, and some of the outside.
func BenchmarkName(b *testing.B) {
	st := town()
	n := namer(b, st)
	events := make([]flow.Event, 1000)
	for i := range events {
		events[i] = ends(fmt.Sprintf("10.244.1.5:%d", 1024+i), fmt.Sprintf("10.244.2.%d:80", i%100))
		events[i].Front = netip.MustParseAddrPort("10.96.0.10:80")
		events[i].Egress, events[i].Ingress = 7, 8
		if i%10 == 0 {
			events[i].Target = netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:443", i%250))
		}
	}
	into := make([]flow.Flow, 0, len(events))
	b.ReportAllocs()
	for b.Loop() {
		into = n.Name(epoch, events, into[:0])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(events)), "ns/flow")
}
