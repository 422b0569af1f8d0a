package policy

import "testing"

// Somebody who may be anybody is let through only where nobody in particular is stopped, nor passed over.
func TestUnanswered(t *testing.T) {
	evil, everybody := []Selector{pods("a", "app", "evil")}, []Selector(nil)
	for _, c := range []struct {
		name  string
		rule  Rule
		audit bool
		tier  Tier
		way   Way
		as    bool // as all others
	}{
		{"allow some", Rule{Peers: evil}, false, Normal, Ingress, true},
		{"deny some", Rule{Action: Deny, Peers: evil}, false, Normal, Ingress, false},
		{"deny some on a port", Rule{Action: Deny, Peers: evil, Ports: tcp(80)}, false, Admin, Egress, false},
		{"deny some, audited", Rule{Action: Deny, Peers: evil}, true, Normal, Ingress, true},
		{"pass over some", Rule{Action: Pass, Peers: evil}, false, Admin, Ingress, false},
		{"deny everybody", Rule{Action: Deny, Peers: everybody}, false, Normal, Ingress, true},
		{"deny everybody a port that each has another number for", Rule{Action: Deny, Peers: everybody, Ports: []Port{{Protocol: TCP, Name: "web"}}}, false, Normal, Egress, false},
		{"deny everybody a port of the pod's own", Rule{Action: Deny, Peers: everybody, Ports: []Port{{Protocol: TCP, Name: "web"}}}, false, Normal, Ingress, true},
	} {
		p := &Policy{Ref: Ref{NetworkPolicy, "a", "web"}, Tier: c.tier, Audit: c.audit}
		p.Of(c.way).Rules = []Rule{c.rule, {Peers: everybody, Ports: tcp(443)}}
		program := NewProgram(Set{Policies: []*Policy{p}, Ports: []NamedPort{{"web", TCP, 8080}}})
		got := program.Unanswered(c.way)
		if c.as != got.Equal(program.Other(c.way)) || !c.as && (got.Table != nil || got.Allow || got.Rule.Name != NoRoomForWho) {
			t.Errorf("%s: %+v", c.name, got)
		}
		other := Ingress + Egress - c.way
		if !program.Unanswered(other).Equal(program.Other(other)) {
			t.Errorf("%s: says something about the other way", c.name)
		}
	}
}

// Of two answers, one is within the other if it lets nobody through whom that stops; where it depends on ports it may be thought not to be.
func TestWithin(t *testing.T) {
	allow, deny := Entry{Verdict: Verdict{Allow: true}}, Entry{}
	named := Entry{Verdict: Verdict{Allow: true, Rule: RuleRef{Path: "x"}}}
	some, more := Entry{Table: &Table{ID: 1}}, Entry{Table: &Table{ID: 2}}
	for _, c := range []struct {
		a, b Entry
		want bool
	}{
		{deny, deny, true}, {deny, allow, true}, {allow, deny, false}, {allow, named, true}, {deny, some, true}, {some, deny, false},
		{some, allow, true}, {allow, some, false}, {some, some, true}, {some, more, false},
	} {
		if got := c.a.Within(c.b); got != c.want {
			t.Errorf("%+v within %+v: %v", c.a, c.b, got)
		}
	}
}
