package control

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// claimant is who can claim frontends: a service, or a pod with host ports.
type claimant struct {
	state.ServiceName
	pod bool
}

func claimantOf(f state.Frontend) claimant { return claimant{f.Service, f.Type == state.HostPort} }

// String names the claimant as a person would.
func (c claimant) String() string { return c.kind() + " " + c.ServiceName.String() }

func (c claimant) kind() string {
	if c.pod {
		return "pod"
	}
	return "service"
}

// contest is a frontend that several claim, and who has it.
type contest struct {
	claimants []claimant
	holder    claimant
	why       string // the holder goes first, for the problem of the others
}

// contest notes that both claim the frontend, if the first still does.
func (s *Services) contest(r *round, key string, first, second claimant) {
	if want, computed := r.wanted[first]; computed {
		if _, still := want.frontends[key]; !still {
			return
		}
	}
	c := s.contested[key]
	if c == nil {
		c = &contest{}
		s.contested[key] = c
	}
	for _, who := range []claimant{first, second} {
		if !slices.Contains(c.claimants, who) {
			c.claimants = append(c.claimants, who)
		}
	}
	r.queue = append(r.queue, first)
}

func (s *Services) withdraw(key string, who claimant) {
	c := s.contested[key]
	c.claimants = slices.DeleteFunc(slices.Clone(c.claimants), func(other claimant) bool { return other == who })
	if len(c.claimants) < 2 {
		delete(s.contested, key)
	}
}

// decide returns who has the frontend. All claimants have been computed in this round. A cluster address is its service's: the API server
// gave it to that one alone. Services go before pods: the time since which a pod is known begins anew with each agent.
func (c *contest) decide(r *round, key string) claimant {
	rank := func(who claimant) int {
		switch r.wanted[who].frontends[key].Type {
		case state.ClusterIP:
			return 0
		case state.HostPort:
			return 2
		}
		return 1
	}
	order := func(a, b claimant) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), r.wanted[a].since.Compare(r.wanted[b].since), strings.Compare(a.String(), b.String()))
	}
	slices.SortFunc(c.claimants, order)
	c.holder = c.claimants[0]
	second := c.claimants[1]
	switch {
	case rank(c.holder) == 0 && rank(second) != 0:
		c.why = "whose cluster address it is"
	case rank(c.holder) != rank(second):
		c.why = "and services go before host ports"
	case r.wanted[c.holder].since.Equal(r.wanted[second].since):
		c.why = "which is as old and the first by name"
	default:
		c.why = "which is older"
	}
	return c.holder
}

// report makes the problems table say what is contested and wrong now: one problem for each service or pod.
func (s *Services) report() {
	if len(s.contested) == 0 && len(s.wrong) == 0 && !s.reported {
		return
	}
	texts := map[claimant][]string{}
	for who, list := range s.wrong {
		texts[who] = slices.Clone(list)
	}
	for key, c := range s.contested {
		for _, who := range c.claimants {
			if who != c.holder {
				texts[who] = append(texts[who], key+" belongs to "+c.holder.String()+", "+c.why+"; this "+who.kind()+" does not get it")
			}
		}
	}
	problems := make([]state.Problem, 0, len(texts))
	for who, list := range texts {
		slices.Sort(list)
		problems = append(problems, state.Problem{Subject: who.String(), Text: strings.Join(list, "; ")})
	}
	slices.SortFunc(problems, func(a, b state.Problem) int { return strings.Compare(a.Subject, b.Subject) })
	state.Report(s.state.Problems, serviceProblems, time.Now(), problems)
	s.reported = len(problems) > 0
}
