package policy

import (
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
