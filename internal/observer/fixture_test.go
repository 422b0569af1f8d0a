package observer

import (
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/verdict"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// The ends of the flows below.
var (
	web = flow.End{Kind: policy.PodPeer, Identity: 0xabcd00001234, Node: "n1", Local: true, Pod: &state.Pod{
		Namespace: "shop", Name: "web-1", Node: "n1", ServiceAccount: "web", Workload: "Deployment/web",
		Labels: policy.NewLabels(map[string]string{"app": "web", "app.kubernetes.io/part-of": "shop"})}}
	db = flow.End{Kind: policy.PodPeer, Identity: 0xabcd00005678, Node: "n1", Local: true, Pod: &state.Pod{
		Namespace: "shop", Name: "db-0", Node: "n1", Labels: policy.NewLabels(map[string]string{"app": "db"})}}
	away  = flow.End{Kind: policy.PodPeer, Identity: identity.Pod, Node: "n2", Pod: &state.Pod{Namespace: "default", Name: "curl", Node: "n2"}}
	world = flow.End{Kind: policy.WorldPeer, Identity: identity.World}
	host  = flow.End{Kind: policy.HostPeer, Identity: identity.Host, Node: "n1", Local: true}
)

var (
	refEgress  = &policy.RuleRef{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "web"}, Way: policy.Egress, Path: "spec.egress[0]"}
	refIngress = &policy.RuleRef{Ref: policy.Ref{Kind: policy.CiliumNetworkPolicy, Namespace: "shop", Name: "db"}, Way: policy.Ingress, Path: "spec.ingress[1]"}
	refNone    = &policy.RuleRef{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "db"}, Way: policy.Ingress}
	refDefault = &policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: policy.DefaultAllow}, Way: policy.Egress}
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// opened is web-1 connecting to db-0 through its service, judged on both sides.
func opened() flow.Flow {
	return flow.Flow{
		Event: flow.Event{
			Time: began.Add(time.Second), Kind: flow.New, Hook: flow.FromPod, Protocol: policy.TCP, TCPFlags: tcpSYN, Device: 7,
			Source: at("10.244.1.2:43210"), Target: at("10.244.1.3:5432"), Front: at("10.96.0.7:80"), Egress: 3, Ingress: 4,
		},
		From: web, To: db, Service: "shop/database", ServicePort: "sql", EgressRule: refEgress, IngressRule: refIngress,
	}
}

// ended is the end of that connection.
func ended() flow.Flow {
	f := opened()
	f.Time, f.Kind, f.Hook, f.TCPFlags, f.Answer = began.Add(2*time.Second), flow.Ended, flow.ToPod, tcpFIN|tcpACK, true
	f.Egress, f.Ingress, f.EgressRule, f.IngressRule = 0, 0, nil, nil
	f.Sent, f.Answered = flow.Traffic{Packets: 6, Bytes: 400}, flow.Traffic{Packets: 5, Bytes: 9000}
	return f
}

// denied is a pod of another node that db-0 does not want.
func denied() flow.Flow {
	return flow.Flow{
		Event: flow.Event{
			Time: began.Add(3 * time.Second), Kind: flow.Denied, Hook: flow.FromVX, Reason: verdict.PolicyIngress, Protocol: policy.TCP, TCPFlags: tcpSYN,
			Source: at("10.244.2.9:50000"), Target: at("10.244.1.3:5432"), Ingress: 9, Sent: flow.Traffic{Packets: 3, Bytes: 180},
		},
		From: away, To: db, IngressRule: refNone,
	}
}

// dropped is a datagram that could not be masqueraded.
func dropped() flow.Flow {
	return flow.Flow{
		Event: flow.Event{
			Time: began.Add(4 * time.Second), Kind: flow.Dropped, Hook: flow.FromPod, Reason: verdict.NoMasqueradePort, Protocol: policy.UDP,
			Source: at("[fd44::2]:999"), Target: at("[2001:db8::1]:53"), Sent: flow.Traffic{Packets: 1, Bytes: 60},
		},
		From: web, To: world,
	}
}

// pinged is an echo request of the node, which nothing judges.
func pinged() flow.Flow {
	return flow.Flow{
		Event: flow.Event{
			Time: began.Add(5 * time.Second), Kind: flow.New, Hook: flow.ToPod, Protocol: policy.ICMP, ICMP: 8 << 8,
			Source: at("172.18.0.2:0"), Target: at("10.244.1.2:0"), NAT: at("172.18.0.9:0"),
		},
		From: host, To: web,
	}
}

// audited is what a policy in audit mode would have denied.
func audited() flow.Flow {
	f := opened()
	f.Time, f.Source, f.Audited, f.AuditedRule = began.Add(6*time.Second), at("10.244.1.2:43211"), 5, refNone
	f.EgressRule = refDefault
	return f
}

// missing says that records were lost.
func missing() flow.Flow {
	return flow.Flow{Event: flow.Event{Time: began.Add(7 * time.Second), Kind: flow.Lost, LostKind: flow.New, LostRecords: 17}}
}

func sample() []flow.Flow {
	return []flow.Flow{opened(), ended(), denied(), dropped(), pinged(), audited(), missing()}
}

// newServer returns a server of node n1 in cluster blue with these flows.
func newServer(t testing.TB, keep int, flows ...flow.Flow) *Server {
	t.Helper()
	st := state.New()
	st.Nodes.Insert(
		state.Node{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.2")}, Labels: policy.NewLabels(map[string]string{"zone": "a"})},
		state.Node{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("fd00::3")}},
	)
	endpoints := func(service string, port uint16, protocol state.Protocol, addrs ...string) state.EndpointSlice {
		slice := state.EndpointSlice{Namespace: "shop", Name: service, Service: state.ServiceName{Namespace: "shop", Name: service}, Ports: []state.EndpointPort{{Port: port, Protocol: protocol}}}
		for _, a := range addrs {
			slice.Endpoints = append(slice.Endpoints, state.SliceEndpoint{Address: netip.MustParseAddr(a)})
		}
		return slice
	}
	st.EndpointSlices.Insert(
		endpoints("postgres", 5432, state.TCP, "10.244.1.3"), endpoints("metrics", 9100, state.TCP, "10.244.1.3"), endpoints("other", 5432, state.UDP, "10.244.1.3"),
		endpoints("front", 80, state.TCP, "10.244.1.2", "fd44::2", "172.18.0.2"), // the last shares its node's address
	)
	store := flow.NewStore(keep)
	store.Append(began, flows)
	return New(Config{
		Node: "n1", Cluster: "blue", Version: "v1.2.3", Began: began, Flows: store, State: st, Port: 4244,
		Device: func(index uint32) string { return map[uint32]string{7: "st0123"}[index] },
		Explain: func(f *flow.Flow, way policy.Way) (policy.Explanation, bool) {
			e := policy.Explanation{
				Policies: []policy.Selecting{{Ref: refNone.Ref, Isolates: true}, {Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "all"}, Isolates: true}},
				Misses: []policy.Miss{
					{RuleRef: policy.RuleRef{Ref: refNone.Ref, Way: way, Path: "spec.ingress[0]"}, Why: []string{"port 5432/TCP, want 5433/TCP"}},
					{RuleRef: *refIngress, Why: []string{"peer label app=curl, want app=web", "namespace default, want shop"}},
				},
			}
			e.Rule = *refNone
			return e, true
		},
	})
}
