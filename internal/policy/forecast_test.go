package policy

import (
	"fmt"
	"testing"
)

func TestForecast(t *testing.T) {
	p := &Policy{Ref: Ref{NetworkPolicy, "a", "web"}, Tier: Normal, Ingress: Direction{Isolates: true, Rules: []Rule{
		{Path: "spec.ingress[0]", Peers: []Selector{pods("a", "app", "client")}, Ports: tcp(80)},
		{Path: "spec.ingress[1]", Peers: []Selector{pods("b", "", "")}},
	}}}
	program := NewProgram(Set{Policies: []*Policy{p}})
	client := Match{Selector: pods("a", "app", "client").Key()}
	identities := []Identity{
		{Kind: HostPeer}, {Kind: WorldPeer}, {Kind: UnknownPeer},
		{Kind: PodPeer, Matches: Matches{{Selector: "of another program"}}},
		{Kind: PodPeer, Matches: Matches{client}},
		{Kind: PodPeer, Matches: Matches{client, {Selector: "of another program"}}},
		{Kind: PodPeer, Matches: Matches{{Selector: pods("b", "", "").Key()}}},
	}
	// Other of both ways, the own node, two identities of clients with one table, one identity of b.
	if got := program.Forecast(identities); got != (Forecast{Entries: 6, Tables: 1, Ports: 2}) {
		t.Errorf("%+v", got)
	}
	if d := program.Decision(identities[6]); !d.Ingress.Allow || !d.Egress.Equal(program.Other(Egress)) || d.Ingress.Equal(program.Other(Ingress)) {
		t.Errorf("%+v", d)
	}
	if got := NewProgram(Set{Mode: ModeNever}).Forecast(identities); got != (Forecast{Entries: 3}) {
		t.Errorf("mode never: %+v", got)
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
