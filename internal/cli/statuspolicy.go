package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/localapi"
)

// policy is the lines of strait status about policy. An agent that says nothing of it has none.
func (v *screen) policy(p localapi.PolicyStatus) {
	if p.Enforcement == "" {
		return
	}
	v.line("Policy", v.policyText(p))
	text := fmt.Sprintf("%d of %s selected, by %s in %s; %s told apart", p.Selected, plural(p.Pods, "pod"), plural(p.Rules, "rule"),
		plural(p.Programs, "program"), prefixes(p.Identities))
	if p.Revision > 0 {
		text += fmt.Sprintf("; revision %d", p.Revision)
	}
	if !p.Changed.IsZero() {
		text += fmt.Sprintf(", %s ago, in force in %v", v.age(p.Changed), rounded(p.Took))
	}
	if p.Drift > 0 {
		text += ", " + v.paint(yellow, plural(int(p.Drift), "difference")+" repaired since the start")
	}
	v.line("", text)
}

// policyText is the mode and how many policies there are of each state that is not as it should be.
func (v *screen) policyText(p localapi.PolicyStatus) string {
	text := p.Enforcement
	switch {
	case p.Audit:
		text = v.paint(yellow, "audit only, nothing is enforced") + " (mode " + p.Enforcement + ")"
	case p.Enforcement == "never":
		text = v.paint(yellow, "never: no policy is enforced")
	case p.Enforcement == "always":
		text += " (what no policy allows is denied)"
	}
	total, states := 0, map[string]int{}
	for _, c := range p.Objects {
		total += c.Count
		states[c.State] += c.Count
	}
	text += "; " + policyPlural(total)
	var parts []string
	for _, state := range []string{localapi.PolicyRefused, localapi.PolicyFailed, localapi.PolicyAudited} {
		if n := states[state]; n > 0 {
			word := map[string]string{localapi.PolicyFailed: "not in the kernel"}[state]
			if word == "" {
				word = state
			}
			look := red
			if state == localapi.PolicyAudited {
				look = plain
			}
			parts = append(parts, v.paint(look, strconv.Itoa(n)+" "+word))
		}
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	var denied, audited uint64
	for _, c := range p.Packets {
		switch c.Verdict {
		case localapi.VerdictDenied:
			denied += c.Packets
		case localapi.VerdictAudited:
			audited += c.Packets
		}
	}
	text += "; " + short(denied) + " packets denied"
	if audited > 0 {
		text += ", " + short(audited) + " would have been decided otherwise"
	}
	return text
}

func prefixes(n int) string {
	if n == 1 {
		return "1 prefix"
	}
	return strconv.Itoa(n) + " prefixes"
}

// rounded prints a duration with two or three digits.
func rounded(d time.Duration) time.Duration {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}

// policies is the section of strait status --verbose about policy.
func (v *screen) policies(s localapi.Status) {
	g := &grid{columns: columns("KIND", "STATE", "POLICIES#")}
	for _, c := range s.Policy.Objects {
		state := cell{text: c.State}
		if c.State == localapi.PolicyRefused || c.State == localapi.PolicyFailed {
			state.style = red
		}
		g.add(c.Kind, state, strconv.Itoa(c.Count))
	}
	v.section("Policies", g)

	g = &grid{columns: columns("DIRECTION", "VERDICT", "PACKETS#", "BYTES#")}
	for _, c := range s.Policy.Packets {
		if c.Packets > 0 {
			g.add(c.Direction, c.Verdict, short(c.Packets), short(c.Bytes))
		}
	}
	v.section("Packets judged by policy since the agent's start", g)
}

// policySums adds up policy over the nodes.
func (v *screen) policySums(nodes []answer[localapi.Status]) {
	var sum localapi.PolicyStatus
	modes := map[string]int{}
	most := map[localapi.PolicyCount]int{} // objects are the same everywhere, states need not be
	answered := 0
	for _, n := range nodes {
		p := n.Value.Policy
		if n.Err != nil || p.Enforcement == "" {
			continue
		}
		answered++
		mode := p.Enforcement
		if p.Audit {
			mode += " (audit only)"
		}
		modes[mode]++
		for _, c := range p.Objects {
			key := localapi.PolicyCount{Kind: c.Kind, State: c.State}
			most[key] = max(most[key], c.Count)
		}
		sum.Pods += p.Pods
		sum.Selected += p.Selected
		sum.Packets = append(sum.Packets, p.Packets...)
	}
	if answered == 0 {
		return
	}
	for c, n := range most {
		c.Count = n
		sum.Objects = append(sum.Objects, c)
	}
	sum.Enforcement = tallyWords(modes)
	v.line("Policy", v.policyText(sum)+fmt.Sprintf("; %d of %s selected", sum.Selected, plural(sum.Pods, "pod")))
}
