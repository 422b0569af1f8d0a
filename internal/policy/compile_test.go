package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

// pods returns a selector of pods with one label, in a namespace if that is not empty.
func pods(namespace, key, value string) Selector {
	s := Selector{Kind: SelectPods}
	if key != "" {
		s.Requirements = append(s.Requirements, Requirement{Source: PodLabel, Key: key, Op: In, Values: []string{value}})
	}
	if namespace != "" {
		s.Requirements = append(s.Requirements, Requirement{Source: NamespaceName, Op: In, Values: []string{namespace}})
	}
	return s
}

func tcp(port uint16) []Port { return []Port{{Protocol: TCP, First: port, Last: port}} }

// matching returns Matches of a peer for all selectors of a program.
func matching(p *Program, peer *Peer) Matches {
	x := NewIndex()
	for _, w := range p.Selectors() {
		x.Add(w)
	}
	return x.Match(peer)
}

func TestOnePolicy(t *testing.T) {
	web := &Policy{
		Ref: Ref{NetworkPolicy, "a", "web"}, Tier: Normal,
		Ingress: Direction{Isolates: true, Rules: []Rule{
			{Path: "spec.ingress[0]", Peers: []Selector{pods("a", "app", "client")}, Ports: tcp(80)},
		}},
	}
	program := NewProgram(Set{Policies: []*Policy{web}})
	client := &Peer{Kind: PodPeer, Prefix: netip.MustParsePrefix("10.0.0.1/32"), Namespace: "a", Labels: Labels{{"app", "client"}}}
	e := program.Entry(Ingress, client.Kind, matching(program, client))
	if v := e.At(TCP, 80); !v.Allow || v.Rule.String() != "NetworkPolicy a/web ingress spec.ingress[0]" {
		t.Errorf("80/TCP: %+v", v)
	}
	if v := e.At(TCP, 81); v.Allow || v.Rule.String() != "NetworkPolicy a/web ingress (no rule matches)" {
		t.Errorf("81/TCP: %+v", v)
	}
	if v := program.Entry(Ingress, HostPeer, nil).At(TCP, 81); !v.Allow || v.Rule.String() != "Builtin own node" {
		t.Errorf("own node: %+v", v)
	}
	if v := program.Other(Egress).Verdict; !v.Allow || v.Rule.Name != DefaultAllow {
		t.Errorf("egress: %+v", v)
	}
	if got := program.Selectors()[0].Key; got != "pods app=client in namespace a" {
		t.Errorf("key: %s", got)
	}
}

// Ten thousand identical policies are as easy as one: only the first is ever named, and the rows are those of one.
func TestManyIdenticalPolicies(t *testing.T) {
	var set Set
	for i := range 10000 {
		set.Policies = append(set.Policies, &Policy{Ref: Ref{NetworkPolicy, "a", fmt.Sprintf("web-%05d", i)}, Tier: Normal, Ingress: Direction{Isolates: true,
			Rules: []Rule{{Path: "spec.ingress[0]", Peers: []Selector{pods("a", "app", "client")}, Ports: []Port{{Protocol: TCP, First: 80, Last: 90}}}}}})
	}
	program := NewProgram(set)
	e := program.Entry(Ingress, PodPeer, Matches{{Selector: pods("a", "app", "client").Key()}})
	if len(e.Table.Rows) > 8 || e.At(TCP, 85).Rule.Name != "web-00000" || e.At(TCP, 91).Rule.Name != "web-00000" || e.At(TCP, 91).Allow {
		t.Errorf("%+v", e.Table.Rows)
	}
	first := program.ID()
	set.Policies[5000].Ingress.Rules[0].Path = "spec.ingress[1]"
	if set.ID() == first || NewProgram(set).ID() != set.ID() {
		t.Error("what is in the middle does not count")
	}
	if len(program.Selectors()) != 1 {
		t.Errorf("%d selectors", len(program.Selectors()))
	}
}
