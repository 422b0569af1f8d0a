package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func (g generator) wanted() Wanted {
	s := g.selector()
	w := Wanted{Key: s.Key(), Selector: s}
	for range g.IntN(3) {
		w.Ports = append(w.Ports, PortName{pick(g, "web", "dns"), pick(g, TCP, UDP, AnyProtocol)})
	}
	slices.SortFunc(w.Ports, comparePortNames)
	w.Ports = slices.Compact(w.Ports)
	return w
}

// one by one asks every selector in use.
func oneByOne(in []Wanted, p *Peer) Matches {
	var out Matches
	for i := range in {
		if in[i].Selector.Matches(p) {
			out = in[i].matches(p, out)
		}
	}
	slices.SortFunc(out, Match.Compare)
	return slices.Compact(out)
}

func TestIndexFindsWhatAskingEachFinds(t *testing.T) {
	found := 0
	for seed := range uint64(60) {
		g := newGenerator(seed)
		x := NewIndex()
		var in []Wanted
		for range 400 {
			if g.IntN(2) == 0 || len(in) == 0 {
				w := g.wanted()
				in = append(in, w)
				x.Add(w)
			} else {
				i := g.IntN(len(in))
				x.Remove(in[i])
				in = slices.Delete(in, i, i+1)
			}
			peer := g.peer()
			got, want := x.Match(peer), oneByOne(in, peer)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: %+v\ngot  %v\nwant %v", seed, peer, got, want)
			}
			found += len(got)
		}
		for _, w := range in {
			x.Remove(w)
		}
		if x.Len()+len(x.anchors)+len(x.prefixes)+len(x.services)+len(x.rest)+len(x.boundaries) != 0 || x.lengths != [2][129]int{} {
			t.Fatalf("seed %d: something is left: %+v", seed, x)
		}
	}
	if found < 10000 {
		t.Errorf("only %d matches", found)
	}
}

func TestIndexSaysWhetherAnythingChanged(t *testing.T) {
	client := pods("a", "app", "client")
	plain := Wanted{Key: client.Key(), Selector: client}
	http := plain
	http.Ports = []PortName{{"http", TCP}}
	x := NewIndex()
	for i, k := range []struct {
		do   func(Wanted) bool
		w    Wanted
		want bool
	}{
		{x.Remove, plain, false},
		{x.Add, plain, true},
		{x.Add, plain, false},
		{x.Add, http, true},
		{x.Add, http, false},
		{x.Remove, http, false},
		{x.Remove, http, true},
		{x.Remove, plain, false},
		{x.Remove, plain, true},
	} {
		if got := k.do(k.w); got != k.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

func TestIndexNamesWhereAnswersChange(t *testing.T) {
	x := NewIndex()
	for _, s := range []Selector{
		{Kind: SelectCIDR, CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		{Kind: SelectCIDR, CIDR: netip.MustParsePrefix("10.0.0.0/8")},
		{Kind: SelectEntity, Entity: EntityWorldIPv6},
		{Kind: SelectEntity, Entity: EntityCluster},
		{Kind: SelectService, Service: "a/web"},
		pods("a", "", ""),
	} {
		x.Add(Wanted{Key: s.Key(), Selector: s})
	}
	if got := fmt.Sprint(x.Prefixes()); got != "[10.0.0.0/8 10.1.0.0/16 ::/0]" {
		t.Error(got)
	}
	if got := fmt.Sprint(x.Services()); got != "[a/web]" {
		t.Error(got)
	}
}

func TestNamedPortsMakeIdentitiesDiffer(t *testing.T) {
	p := &Policy{Ref: Ref{NetworkPolicy, "a", "out"}, Tier: Normal, Egress: Direction{Isolates: true, Rules: []Rule{
		{Path: "spec.egress[0]", Peers: []Selector{pods("a", "app", "web")}, Ports: []Port{{Protocol: TCP, Name: "http"}}},
		{Path: "spec.egress[1]", Ports: []Port{{Name: "dns"}}},
	}}}
	program := NewProgram(Set{Policies: []*Policy{p}})
	if got := fmt.Sprint(program.Selectors()[0].Key, program.Selectors()[0].Ports, program.Selectors()[1].Key, program.Selectors()[1].Ports); got !=
		"pods[{dns ANY}]pods app=web in namespace a[{http TCP}]" {
		t.Error(got)
	}
	pod := func(ports ...NamedPort) *Peer {
		return &Peer{Kind: PodPeer, Namespace: "a", Labels: Labels{{"app", "web"}}, Ports: ports}
	}
	old, young, without := pod(NamedPort{"http", TCP, 80}, NamedPort{"dns", UDP, 53}), pod(NamedPort{"http", TCP, 8080}), pod(NamedPort{"http", UDP, 80})
	ids := NewIdentities()
	of := func(p *Peer) Identity { return ids.Of(p.Kind, program.match(p)) }
	if of(old).ID == of(young).ID || of(young).ID == of(without).ID || ids.Len() != 3 {
		t.Error("pods with different numbers for a name are one identity")
	}
	for _, k := range []struct {
		peer     *Peer
		protocol Protocol
		port     uint16
		allow    bool
	}{
		{old, TCP, 80, true}, {old, TCP, 8080, false}, {old, UDP, 53, true}, {old, TCP, 53, false}, {old, UDP, 80, false},
		{young, TCP, 8080, true}, {young, TCP, 80, false}, {young, UDP, 53, false}, {without, UDP, 80, false}, {without, TCP, 80, false},
	} {
		i := of(k.peer)
		if got := program.Entry(Egress, i.Kind, i.Matches).At(k.protocol, k.port); got.Allow != k.allow {
			t.Errorf("%v to %d/%s: %+v", k.peer.Ports, k.port, k.protocol, got)
		}
	}
}

// Peers that the same rules match, and that differ in one thing about one named port, are not answered for each other.
func TestAnswersAreOfNamedPorts(t *testing.T) {
	web := []Selector{pods("a", "app", "web")}
	p := &Policy{Ref: Ref{NetworkPolicy, "a", "out"}, Tier: Normal, Egress: Direction{Isolates: true, Rules: []Rule{
		{Path: "http", Peers: web, Ports: []Port{{Name: "http"}}},
		{Path: "admin", Peers: web, Ports: []Port{{Name: "admin"}}},
	}}}
	program := NewProgram(Set{Policies: []*Policy{p}})
	for _, port := range []NamedPort{{"http", TCP, 80}, {"admin", TCP, 80}, {"http", UDP, 80}, {"http", TCP, 81}} {
		peer := &Peer{Kind: PodPeer, Namespace: "a", Labels: Labels{{"app", "web"}}, Ports: []NamedPort{port}}
		entry := program.Entry(Egress, peer.Kind, program.match(peer))
		for _, protocol := range []Protocol{TCP, UDP} {
			for _, number := range []uint16{80, 81} {
				want := protocol == port.Protocol && number == port.Port
				if v := entry.At(protocol, number); v.Allow != want || want && v.Rule.Path != port.Name {
					t.Errorf("%+v: %d/%s: %+v", port, number, protocol, v)
				}
			}
		}
	}
}
