package status_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// judged answers as the tables of n1 would: db lets 5432 in over both families; 53 differs between them; 6 is not in the kernel.
func judged(asked *[]status.Connection) func(status.Connection) (status.Judgement, error) {
	return func(c status.Connection) (status.Judgement, error) {
		*asked = append(*asked, c)
		j := status.Judgement{Program: 0x500, Identity: 0x700}
		switch {
		case c.Port == 6:
			return j, errors.New("program is not in the kernel")
		case !c.Local.IsValid():
			return status.Judgement{}, nil
		case c.Local == netip.MustParseAddr("10.1.0.7"):
			j.Rule = policy.RuleRef{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "out"}, Way: c.Way}
		case c.Way == policy.Egress:
			j.Allow, j.Rule = true, policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: policy.DefaultAllow}}
		case c.Port == 5432, c.Port == 53 && c.Local.Is4():
			j.Allow, j.Rule = true, policy.RuleRef{Ref: dbRef, Way: policy.Ingress, Path: "spec.ingress[0]"}
			j.Audit, j.AuditRule = c.Port == 5432, policy.RuleRef{Ref: tenantsRef, Way: policy.Ingress, Path: "spec.ingress[0]"}
		default:
			j.Rule = policy.RuleRef{Ref: dbRef, Way: policy.Ingress}
		}
		return j, nil
	}
}

func TestVerdict(t *testing.T) {
	tcp := func(src, dst string, port uint16) localapi.VerdictQuestion {
		return localapi.VerdictQuestion{Source: src, Destination: dst, Protocol: 6, Port: port}
	}
	for _, tc := range []struct {
		name  string
		q     localapi.VerdictQuestion
		want  string // verdict, then a line per side
		asked string // of the kernel
	}{
		{"a pod elsewhere to a pod here", tcp("shop/web-1", "shop/db-0", 5432),
			"unknown\ningress shop/db-0 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]\negress elsewhere on n2",
			"10.1.0.5 ingress 10.2.0.5 5432/TCP, fd00::5 ingress fd00::2:5 5432/TCP"},
		{"denied, and what is missing", tcp("shop/web-1", "shop/db-0", 5433),
			"denied\ningress shop/db-0 denied: NetworkPolicy shop/db isolates it and no rule allows this\n- NetworkPolicy shop/db spec.ingress[0]: port 5433/TCP, want 5432/TCP\n- NetworkPolicy shop/db spec.ingress[1]: peer address 10.2.0.5, want one in 10.20.0.0/16; port 5433/TCP, want 9100/TCP\negress elsewhere on n2", ""},
		{"families differ", tcp("shop/web-1", "shop/db-0", 53),
			"denied\ningress shop/db-0 IPv4 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP\ningress shop/db-0 IPv6 denied: NetworkPolicy shop/db isolates it and no rule allows this\n- NetworkPolicy shop/db spec.ingress[0]: port 53/TCP, want 5432/TCP\n- NetworkPolicy shop/db spec.ingress[1]: peer address fd00::2:5, want one in 10.20.0.0/16; port 53/TCP, want 9100/TCP\negress elsewhere on n2", ""},
		{"the outside is where no policy looks", tcp("shop/db-0", "world", 443), "allowed\negress shop/db-0 allowed: no policy isolates it",
			"10.1.0.5 egress 198.51.100.1 443/TCP, fd00::5 egress 2001:db8::1 443/TCP"},
		{"an address of a pod", tcp("10.2.0.5", "10.1.0.5", 5432),
			"unknown\ningress shop/db-0 IPv4 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]\negress elsewhere on n2", ""},
		{"by the name of a port", localapi.VerdictQuestion{Source: "world", Destination: "shop/db-0", Protocol: 6, PortName: "sql"},
			"allowed\ningress shop/db-0 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]", ""},
		{"its own node", tcp("host", "shop/db-1", 5432),
			"allowed\negress node n1 IPv4 allowed: nothing is enforced here\ningress shop/db-1 IPv4 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]",
			"the node egress 10.1.0.6 5432/TCP, 10.1.0.6 ingress 10.0.0.1 5432/TCP"},
		{"a pod with its node's network elsewhere", tcp("shop/logger", "shop/db-1", 5432),
			"allowed\ningress shop/db-1 IPv4 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]", ""},
		{"a ping has a type for each family", localapi.VerdictQuestion{Source: "shop/web-1", Destination: "shop/db-0", Protocol: 1, Port: 8 << 8},
			"denied\ningress shop/db-0 denied: NetworkPolicy shop/db isolates it and no rule allows this\n- NetworkPolicy shop/db spec.ingress[0]: port ICMP 8/0, want 5432/TCP\n- NetworkPolicy shop/db spec.ingress[1]: peer address 10.2.0.5, want one in 10.20.0.0/16; port ICMP 8/0, want 9100/TCP\negress elsewhere on n2",
			"10.1.0.5 ingress 10.2.0.5 2048/ICMP, fd00::5 ingress fd00::2:5 32768/ICMPv6"},
		{"who is an API server and an endpoint of a service", tcp("shop/db-2", "10.9.9.9", 443),
			"denied\negress shop/db-2 IPv4 denied: NetworkPolicy shop/out isolates it and no rule allows this\n- NetworkPolicy shop/out spec.egress[0]: port 443/TCP, want 6443/TCP\n- NetworkPolicy shop/out spec.egress[1]: port 443/TCP, want 80/TCP",
			"10.1.0.7 egress 10.9.9.9 443/TCP"},
		{"this node by an address that Kubernetes does not know", tcp("10.7.0.1", "shop/db-1", 5432),
			"allowed\negress node n1 IPv4 allowed: nothing is enforced here\ningress shop/db-1 IPv4 allowed: NetworkPolicy shop/db spec.ingress[0]: allow pods app=web in namespace shop; 5432/TCP, would be denied by ClusterNetworkPolicy tenants spec.ingress[0]",
			"the node egress 10.1.0.6 5432/TCP, 10.1.0.6 ingress 10.7.0.1 5432/TCP"},
		{"itself", tcp("shop/db-0", "shop/db-0", 1), "allowed\nnote: a pod always reaches itself", ""},
		{"nobody's business", tcp("10.9.9.9", "10.9.9.8", 1), "allowed\nnote: neither end is a pod, and no policy selects nodes here: nothing judges this", ""},
		{"not in the kernel", tcp("world", "shop/db-0", 6), "unknown\ningress shop/db-0 not known: program is not in the kernel", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []status.Connection
			v, err := provider(shopWithServers(), status.PolicySources{Judge: judged(&asked)}).Verdict(context.Background(), tc.q)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, verdictLines(v)); diff != "" {
				t.Error(diff)
			}
			var questions []string
			for _, c := range asked {
				local := "the node"
				if c.Local.IsValid() {
					local = c.Local.String()
				}
				questions = append(questions, fmt.Sprintf("%s %s %s %d/%s", local, c.Way, c.Peer, c.Port, c.Protocol))
			}
			if got := strings.Join(questions, ", "); tc.asked != "" && got != tc.asked {
				t.Errorf("asked %s, want %s", got, tc.asked)
			}
		})
	}
}

// shopWithServers has a pod that may reach the API server and a service only, both at 10.9.9.9, and another address of the node.
func shopWithServers() *state.State {
	st := guardedShop()
	st.Pods.Insert(state.Pod{Namespace: "shop", Name: "db-2", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.7")}, Labels: policy.NewLabels(map[string]string{"app": "out"})})
	out := policy.Policy{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "shop", Name: "out"}, Tier: policy.Normal, Subject: labelled("out"), Egress: policy.Direction{Isolates: true, Rules: []policy.Rule{
		allow("spec.egress[0]", 6443, policy.Selector{Kind: policy.SelectEntity, Entity: policy.EntityAPIServer}), allow("spec.egress[1]", 80, policy.Selector{Kind: policy.SelectService, Service: "shop/mail"})}}}
	st.Policies.Insert(state.Policy{Ref: out.Ref, Generation: 1, Enforced: 1, Specs: []policy.Policy{out}})
	for _, name := range []state.ServiceName{{Namespace: "default", Name: "kubernetes"}, {Namespace: "shop", Name: "mail"}} {
		st.EndpointSlices.Insert(state.EndpointSlice{Namespace: name.Namespace, Name: name.Name, Service: name, Endpoints: []state.SliceEndpoint{{Address: netip.MustParseAddr("10.9.9.9")}}})
	}
	st.Remotes.Insert(state.Remote{Prefix: netip.MustParsePrefix("10.7.0.1/32"), Kind: state.RemoteHost, Node: "n1"})
	return st
}

func verdictLines(v localapi.PolicyVerdict) string {
	lines := []string{v.Verdict}
	for _, s := range v.Sides {
		line := s.Direction + " " + s.Subject
		if s.Family != "" {
			line += " " + s.Family
		}
		if s.Error != "" {
			line += " not known: " + s.Error
		} else {
			line += " " + s.Verdict + ": " + s.Text
		}
		if s.Would != "" {
			line += ", would be " + s.Would + " by " + s.WouldRule.String()
		}
		lines = append(lines, line)
		for _, m := range s.Misses {
			lines = append(lines, "- "+m)
		}
	}
	for _, e := range v.Elsewhere {
		lines = append(lines, e.Direction+" elsewhere on "+e.Node)
	}
	if v.Note != "" {
		lines = append(lines, "note: "+v.Note)
	}
	return strings.Join(lines, "\n")
}

func TestVerdictRefusals(t *testing.T) {
	st := guardedShop()
	st.Frontends.Insert(state.Frontend{Address: netip.MustParseAddr("10.96.0.7"), Port: 5432, Protocol: state.TCP, Service: state.ServiceName{Namespace: "shop", Name: "db"},
		Backends: []state.Backend{{Address: netip.MustParseAddr("10.1.0.5"), Port: 5432}}})
	p := provider(st, status.PolicySources{})
	for _, tc := range []struct {
		q    localapi.VerdictQuestion
		kind error
		want string
	}{
		{localapi.VerdictQuestion{Source: "shop/web-9", Destination: "world"}, localapi.ErrNotFound, `source "shop/web-9": not found: pods of namespace shop are db-0, db-1, late, logger, web-1`},
		{localapi.VerdictQuestion{Source: "world", Destination: "web-1"}, localapi.ErrNotFound, `destination "web-1": not found: no pod is known in namespace default (want a pod as NAMESPACE/NAME, an address, world or host)`},
		{localapi.VerdictQuestion{Source: "world", Destination: "shop/late"}, localapi.ErrBadQuestion, `destination "shop/late": the pod has no address yet`},
		{localapi.VerdictQuestion{Source: "world", Destination: "shop/db-0", Protocol: 17, PortName: "sql"}, localapi.ErrBadQuestion, `port "sql": pod shop/db-0 has no such port of protocol UDP; it has sql/TCP`},
		{localapi.VerdictQuestion{Source: "world", Destination: "10.9.9.9", Protocol: 6, PortName: "sql"}, localapi.ErrBadQuestion, `port "sql": 10.9.9.9 is no pod, only pods have ports with names`},
		{localapi.VerdictQuestion{Source: "fd00::2:5", Destination: "shop/db-1", Protocol: 6, Port: 1}, localapi.ErrBadQuestion, "fd00::2:5 and shop/db-1 have no addresses of the same family"},
		{localapi.VerdictQuestion{Source: "shop/web-1", Destination: "10.96.0.7", Protocol: 6, Port: 5432}, localapi.ErrBadQuestion,
			"destination 10.96.0.7:5432/TCP is service shop/db; policy judges the connection to the backend, ask for one of: 10.1.0.5:5432"},
	} {
		_, err := p.Verdict(context.Background(), tc.q)
		if !errors.Is(err, tc.kind) || err.Error() != tc.want {
			t.Errorf("%+v: %v\nwant %s", tc.q, err, tc.want)
		}
	}
	// Without a view of the kernel nothing is called allowed.
	if v, err := p.Verdict(context.Background(), localapi.VerdictQuestion{Source: "world", Destination: "shop/db-0", Protocol: 6, Port: 1}); err != nil || v.Verdict != localapi.VerdictUnknown {
		t.Errorf("= %+v, %v", v, err)
	}
}
