package policy

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
)

// plainly decides as the comment of Tier says, rule by rule.
func plainly(set Set, way Way, peer *Peer, protocol Protocol, port uint16, enforced bool) (bool, RuleRef) {
	policies := slices.Clone(set.Policies)
	slices.SortFunc(policies, func(a, b *Policy) int {
		if a.Tier != b.Tier { // policies of different tiers are never compared: any order will do, as long as it is one
			return cmp.Compare(a.Tier, b.Tier)
		}
		if a.Tier != Normal && a.Priority != b.Priority {
			return cmp.Compare(a.Priority, b.Priority)
		}
		return cmp.Or(cmp.Compare(a.Ref.Name, b.Ref.Name), cmp.Compare(a.Ref.Namespace, b.Ref.Namespace), cmp.Compare(a.Ref.Kind, b.Ref.Kind))
	})
	mode := set.Mode
	if enforced {
		policies = slices.DeleteFunc(policies, func(p *Policy) bool { return p.Audit || set.Audit })
		if set.Audit && mode == ModeAlways {
			mode = ModeDefault
		}
	}
	named := peer.Ports
	if way == Ingress {
		named = set.Ports
	}
	matches := func(r *Rule) bool {
		return (r.Peers == nil || slices.ContainsFunc(r.Peers, func(s Selector) bool { return s.Matches(peer) })) &&
			(r.Ports == nil || slices.ContainsFunc(r.Ports, func(p Port) bool { return plainPort(p, named, protocol, port) }))
	}
	first := func(tier Tier, actions ...Action) (Action, RuleRef, bool) {
		for _, p := range policies {
			for i := range p.Of(way).Rules {
				if r := &p.Of(way).Rules[i]; p.Tier == tier && slices.Contains(actions, r.Action) && matches(r) {
					return r.Action, RuleRef{p.Ref, way, r.Path}, true
				}
			}
		}
		return 0, RuleRef{}, false
	}
	switch {
	case way == Ingress && peer.Kind == HostPeer:
		return true, builtin(OwnNode, way)
	case mode == ModeNever:
		return true, builtin(ModeNeverOn, way)
	}
	if action, ref, ok := first(Admin, Allow, Deny, Pass); ok && action != Pass {
		return action == Allow, ref
	}
	for _, action := range []Action{Deny, Allow} {
		if _, ref, ok := first(Normal, action); ok {
			return action == Allow, ref
		}
	}
	for _, p := range policies {
		if p.Tier == Normal && p.Of(way).Isolates {
			return false, RuleRef{Ref: p.Ref, Way: way}
		}
	}
	if mode == ModeAlways {
		return false, builtin(ModeAlwaysOn, way)
	}
	if action, ref, ok := first(Baseline, Allow, Deny, Pass); ok && action != Pass {
		return action == Allow, ref
	}
	return true, builtin(DefaultAllow, way)
}

func plainPort(p Port, named []NamedPort, protocol Protocol, port uint16) bool {
	if p.Protocol != AnyProtocol && p.Protocol != protocol {
		return false
	}
	if p.Name != "" {
		return slices.Contains(named, NamedPort{p.Name, protocol, port})
	}
	if p.First == 0 && p.Last == 0 {
		return true
	}
	if p.Protocol == AnyProtocol && protocol != TCP && protocol != UDP && protocol != SCTP {
		return false
	}
	return p.First <= port && port <= p.Last
}

// A program, asked through matches and tables as the kernel asks it, says what going through the rules says.
func TestProgramsDecideLikeTheirRules(t *testing.T) {
	cases := 3000
	if testing.Short() {
		cases = 400
	}
	denied, audited := 0, 0
	for seed := range cases {
		g := newGenerator(uint64(seed))
		set := g.set()
		program := NewProgram(set)
		foreign := NewProgram(g.set()) // whose selectors the peer matches as well
		index := NewIndex()
		for _, w := range append(slices.Clone(program.Selectors()), foreign.Selectors()...) {
			index.Add(w)
		}
		for range 20 {
			peer, way := g.peer(), pick(g, Egress, Ingress)
			ms := index.Match(peer)
			entry := program.Entry(way, peer.Kind, ms)
			for i := range 10 {
				protocol, port := g.packet()
				var want Verdict
				want.Allow, want.Rule = plainly(set, way, peer, protocol, port, true)
				if allow, by := plainly(set, way, peer, protocol, port, false); allow != want.Allow {
					want.Audit, want.AuditAllow, want.AuditRule = true, allow, by
					audited++
				}
				if !want.Allow {
					denied++
				}
				if got := entry.At(protocol, port); got != want {
					t.Fatalf("seed %d, %s, %+v, %d of protocol %d\ngot  %+v\nwant %+v\n%+v", seed, way, peer, port, protocol, got, want, set)
				}
				if i > 0 {
					continue
				}
				if e := Explain(set, way, peer, protocol, port); e.Verdict != want {
					t.Fatalf("seed %d: explained as %+v, want %+v", seed, e.Verdict, want)
				}
			}
		}
	}
	if denied < cases || audited < cases/10 {
		t.Errorf("only %d denied and %d audited: the generator has gone blind", denied, audited)
	}
}

func TestOrderOfInputDoesNotMatter(t *testing.T) {
	for seed := range uint64(300) {
		g := newGenerator(seed)
		set := g.set()
		other := set
		other.Policies = slices.Clone(set.Policies)
		g.Shuffle(len(other.Policies), func(i, j int) { other.Policies[i], other.Policies[j] = other.Policies[j], other.Policies[i] })
		other.Ports = slices.Clone(set.Ports)
		slices.Reverse(other.Ports)
		a, b := NewProgram(set), NewProgram(other)
		if a.ID() != b.ID() || a.ID() != other.ID() || a.ID() == 0 {
			t.Fatalf("seed %d: %x and %x, by themselves %x", seed, a.ID(), b.ID(), other.ID())
		}
		if x, y := fmt.Sprintf("%+v", a.Selectors()), fmt.Sprintf("%+v", b.Selectors()); x != y {
			t.Fatalf("seed %d: selectors\n%s\n%s", seed, x, y)
		}
		for range 10 {
			peer := g.peer()
			for _, way := range []Way{Egress, Ingress} {
				x, y := a.Entry(way, peer.Kind, a.match(peer)), b.Entry(way, peer.Kind, b.match(peer))
				if show(x) != show(y) || !x.Equal(y) {
					t.Fatalf("seed %d: %s\n%s", seed, show(x), show(y))
				}
			}
		}
	}
}

func show(e Entry) string {
	if e.Table == nil {
		return fmt.Sprintf("%+v", e.Verdict)
	}
	return fmt.Sprintf("%+v", *e.Table)
}

// What decides or is named changes the ID; what does not, does not.
func TestIDIsOfContent(t *testing.T) {
	base := func() Set {
		return Set{Policies: []*Policy{{
			Ref: Ref{NetworkPolicy, "a", "web"}, Tier: Normal, Subject: pods("a", "app", "web"),
			Ingress: Direction{Isolates: true, Rules: []Rule{{Path: "spec.ingress[0]", Name: "n", Peers: []Selector{pods("a", "app", "x")},
				Ports: []Port{{Protocol: TCP, Name: "http"}}}}},
		}}, Ports: []NamedPort{{"http", TCP, 80}}}
	}
	want := NewProgram(base()).ID()
	for name, k := range map[string]struct {
		change func(*Set)
		same   bool
	}{
		"nothing":          {func(*Set) {}, true},
		"subject":          {func(s *Set) { s.Policies[0].Subject = pods("b", "", "") }, true},
		"name of a rule":   {func(s *Set) { s.Policies[0].Ingress.Rules[0].Name = "m" }, true},
		"port nobody asks": {func(s *Set) { s.Ports = append(s.Ports, NamedPort{"metrics", TCP, 9}, NamedPort{"http", UDP, 80}) }, true},
		"named port":       {func(s *Set) { s.Ports[0].Port = 81 }, false},
		"audit":            {func(s *Set) { s.Policies[0].Audit = true }, false},
		"audit of all":     {func(s *Set) { s.Audit = true }, false},
		"mode":             {func(s *Set) { s.Mode = ModeAlways }, false},
		"never":            {func(s *Set) { s.Mode = ModeNever }, false},
		"policy":           {func(s *Set) { s.Policies[0].Ref.Name = "w" }, false},
		"isolation":        {func(s *Set) { s.Policies[0].Egress.Isolates = true }, false},
		"path":             {func(s *Set) { s.Policies[0].Ingress.Rules[0].Path = "spec.ingress[1]" }, false},
		"action":           {func(s *Set) { s.Policies[0].Ingress.Rules[0].Action = Deny }, false},
		"peers":            {func(s *Set) { s.Policies[0].Ingress.Rules[0].Peers = nil }, false},
		"nobody":           {func(s *Set) { s.Policies[0].Ingress.Rules[0].Peers = []Selector{} }, false},
		"ports":            {func(s *Set) { s.Policies[0].Ingress.Rules[0].Ports = nil }, false},
		"tier":             {func(s *Set) { s.Policies[0].Tier = Admin }, false},
		"one policy more": {func(s *Set) {
			s.Policies = append(s.Policies, &Policy{Ref: Ref{NetworkPolicy, "a", "x"}, Tier: Normal})
		}, false},
		"selector's values": {func(s *Set) { s.Policies[0].Ingress.Rules[0].Peers[0].Requirements[0].Values = []string{"y"} }, false},
	} {
		s := base()
		k.change(&s)
		if got := NewProgram(s).ID(); got != s.ID() || (got == want) != k.same {
			t.Errorf("%s: same %v, want %v", name, got == want, k.same)
		}
	}
	everybody, nobody := base(), base()
	everybody.Policies[0].Ingress.Rules[0].Peers, nobody.Policies[0].Ingress.Rules[0].Peers = nil, []Selector{}
	if everybody.ID() == nobody.ID() {
		t.Error("everybody and nobody are the same")
	}
	everybody.Policies[0].Ingress.Rules[0].Ports, nobody.Policies[0].Ingress.Rules[0].Peers = []Port{}, nil
	nobody.Policies[0].Ingress.Rules[0].Ports = nil
	if everybody.ID() == nobody.ID() {
		t.Error("every port and none are the same")
	}
	never := Set{Mode: ModeNever}
	s := base()
	s.Mode = ModeNever
	if s.ID() != never.ID() || len(NewProgram(s).Selectors()) != 0 {
		t.Error("mode never: policies still make a difference")
	}
}
