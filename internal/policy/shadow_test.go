package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestShadowed(t *testing.T) {
	policy := func(name string, tier Tier, rules ...Rule) *Policy {
		for i := range rules {
			rules[i].Path = fmt.Sprintf("spec.ingress[%d]", i)
		}
		return &Policy{Ref: Ref{NetworkPolicy, "a", name}, Tier: tier, Subject: pods("a", "app", "web"), Ingress: Direction{Rules: rules}}
	}
	client := []Selector{pods("a", "app", "client")}
	broad := []Selector{pods("a", "", "")}
	cidr := func(s string, except ...string) []Selector {
		out := Selector{Kind: SelectCIDR, Everyone: true, CIDR: netip.MustParsePrefix(s)}
		for _, e := range except {
			out.Except = append(out.Except, netip.MustParsePrefix(e))
		}
		return []Selector{out}
	}
	wide := func(p *Policy) *Policy { p.Subject = pods("a", "", ""); return p }
	other := func(p *Policy) *Policy { p.Subject = pods("b", "", ""); return p }
	audit := func(p *Policy) *Policy { p.Audit = true; return p }
	isolating := func(p *Policy) *Policy { p.Ingress.Isolates = true; return p }
	const first, second = "NetworkPolicy a/p ingress spec.ingress[0]", "NetworkPolicy a/q ingress spec.ingress[0]"
	for _, k := range []struct {
		name     string
		policies []*Policy
		want     string
	}{
		{"equal", []*Policy{policy("p", Normal, Rule{Peers: client}), policy("q", Normal, Rule{Peers: client})}, second + " by " + first},
		{"broader peers", []*Policy{policy("p", Normal, Rule{Peers: broad}), policy("q", Normal, Rule{Peers: client})}, second + " by " + first},
		{"broader peers later", []*Policy{policy("p", Normal, Rule{Peers: client}), policy("q", Normal, Rule{Peers: broad})}, ""},
		{"everybody", []*Policy{policy("p", Normal, Rule{}), policy("q", Normal, Rule{Peers: client, Ports: tcp(80)})}, second + " by " + first},
		{"fewer ports", []*Policy{policy("p", Normal, Rule{Ports: tcp(80)}), policy("q", Normal, Rule{Peers: client})}, ""},
		{"range", []*Policy{policy("p", Normal, Rule{Ports: []Port{{First: 1, Last: 100}}}), policy("q", Normal, Rule{Ports: tcp(80)})}, second + " by " + first},
		{"deny before allow", []*Policy{policy("p", Normal, Rule{Peers: client}), policy("q", Normal, Rule{Action: Deny})}, first + " by " + second},
		{"allow does not hide deny", []*Policy{policy("p", Normal, Rule{}), policy("q", Normal, Rule{Action: Deny, Peers: client})}, ""},
		{"admin before normal", []*Policy{policy("p", Admin, Rule{}), policy("q", Normal, Rule{Action: Deny})}, second + " by " + first},
		{"pass before normal", []*Policy{policy("p", Admin, Rule{Action: Pass}), policy("q", Normal, Rule{Action: Deny})}, ""},
		{"pass before an admin rule", []*Policy{policy("p", Admin, Rule{Action: Pass}), policy("q", Admin, Rule{Action: Deny})}, second + " by " + first},
		{"somebody passed before", []*Policy{policy("o", Admin, Rule{Action: Pass, Peers: client}), policy("p", Admin, Rule{}), policy("q", Normal, Rule{Action: Deny})}, ""},
		{"isolation before baseline", []*Policy{isolating(policy("p", Normal)), policy("q", Baseline, Rule{})}, second + " by NetworkPolicy a/p ingress (no rule matches)"},
		{"subject broader", []*Policy{wide(policy("p", Normal, Rule{})), policy("q", Normal, Rule{})}, second + " by " + first},
		{"subject narrower", []*Policy{policy("p", Normal, Rule{}), wide(policy("q", Normal, Rule{}))}, ""},
		{"subject elsewhere", []*Policy{other(policy("p", Normal, Rule{})), policy("q", Normal, Rule{})}, ""},
		{"only audited", []*Policy{audit(policy("p", Normal, Rule{})), policy("q", Normal, Rule{})}, ""},
		{"both audited", []*Policy{audit(policy("p", Normal, Rule{})), audit(policy("q", Normal, Rule{}))}, second + " by " + first},
		{"excepted", []*Policy{policy("p", Normal, Rule{Peers: cidr("10.0.0.0/8", "10.1.0.0/16")}), policy("q", Normal, Rule{Peers: cidr("10.1.2.0/24")})}, ""},
		{"excepted elsewhere", []*Policy{policy("p", Normal, Rule{Peers: cidr("10.0.0.0/8", "10.1.0.0/16")}), policy("q", Normal, Rule{Peers: cidr("10.2.2.0/24")})}, second + " by " + first},
		{"excepted by both", []*Policy{policy("p", Normal, Rule{Peers: cidr("10.0.0.0/8", "10.1.0.0/16")}), policy("q", Normal, Rule{Peers: cidr("10.0.0.0/9", "10.0.0.0/12")})}, second + " by " + first},
		{"own node", []*Policy{policy("p", Normal, Rule{Peers: []Selector{{Kind: SelectEntity, Entity: EntityHost}}})}, first + " by Builtin own node"},
		{"void", []*Policy{policy("p", Normal, Rule{Peers: []Selector{}}), policy("q", Normal, Rule{Ports: []Port{}})}, ""},
	} {
		got := ""
		for i, s := range Shadowed(k.policies) {
			if i > 0 {
				got += ", "
			}
			got += s.Rule.String() + " by " + s.By.String()
		}
		if got != k.want {
			t.Errorf("%s: %s, want %s", k.name, got, k.want)
		}
	}
}

// No rule that is called shadowed ever decides, whichever pod, peer and port.
func TestShadowedNeverDecide(t *testing.T) {
	found := 0
	for seed := range uint64(1500) {
		g := newGenerator(seed)
		var policies []*Policy
		for i := range 1 + g.IntN(4) {
			p := g.policy(fmt.Sprintf("p%d", i))
			if g.IntN(2) == 0 {
				p.Subject = Selector{Kind: SelectPods}
			}
			policies = append(policies, p)
		}
		shadowed := map[RuleRef]RuleRef{}
		for _, s := range Shadowed(policies) {
			shadowed[s.Rule] = s.By
		}
		found += len(shadowed)
		if len(shadowed) == 0 {
			continue
		}
		for range 60 {
			pod := g.peer()
			pod.Kind = PodPeer
			set := Set{Mode: pick(g, ModeDefault, ModeAlways), Audit: g.IntN(4) == 0, Ports: g.namedPorts()}
			for _, p := range policies {
				if p.Subject.Matches(pod) {
					set.Policies = append(set.Policies, p)
				}
			}
			peer, way := g.peer(), pick(g, Egress, Ingress)
			protocol, port := g.packet()
			for _, enforced := range []bool{true, false} {
				if _, by := plainly(set, way, peer, protocol, port, enforced); shadowed[by] != (RuleRef{}) {
					t.Fatalf("seed %d: %s decides, though shadowed by %s", seed, by, shadowed[by])
				}
			}
		}
	}
	if found < 300 {
		t.Errorf("only %d shadowed rules", found)
	}
}
