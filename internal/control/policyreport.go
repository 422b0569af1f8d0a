package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// publish shows the programs that have changed, those that could not be brought into force, and those that say nothing of some peers and why.
func (s *subjects) publish(t *table.Table[state.Program], entries func(policy.ID) int, lacking map[policy.ID]string) {
	for id, u := range s.uses {
		if lacking[id] != s.lacking[id] {
			s.touched[u] = true
		}
	}
	s.lacking = lacking
	if len(s.touched) == 0 && !s.refresh {
		return
	}
	failed := map[*use][]*local{}
	for l := range s.everyone() {
		if l.failed != nil {
			failed[l.failed] = append(failed[l.failed], l)
			s.touched[l.failed] = true
		}
	}
	t.Write(func(tx *table.Txn[state.Program]) {
		for u := range s.touched { // also those that have come back as others of the same name
			tx.Delete(t.Key(state.Program{ID: u.id}))
		}
		for u := range s.touched {
			row := state.Program{ID: u.id, Policies: u.refs, Entries: entries(u.id), Error: lacking[u.id]}
			for l := range u.ends {
				row.Pods = append(row.Pods, l.shownAs())
			}
			for _, l := range failed[u] {
				row.Pods = append(row.Pods, l.shownAs())
				row.Error = l.refused.Error()
			}
			slices.Sort(row.Pods)
			row.Pods = slices.Compact(row.Pods)
			if len(row.Pods) > 0 {
				tx.Insert(row)
			}
		}
	})
	clear(s.touched)
	s.refresh = false
}

// problems returns what could not be brought into force, by what caused it.
func (s *subjects) problems() []state.Problem {
	var out []state.Problem
	pods := map[string][]string{} // by reason
	for l := range s.everyone() {
		if l.refused != nil {
			pods[l.refused.Error()] = append(pods[l.refused.Error()], l.shownAs())
		}
	}
	for why, of := range pods {
		subject, text, _ := strings.Cut(why, ": ")
		slices.Sort(of)
		shown := strings.Join(of[:min(len(of), 5)], ", ")
		if len(of) > 5 {
			shown += fmt.Sprintf(" and %d more", len(of)-5)
		}
		out = append(out, state.Problem{Subject: subject, Text: text + "; what was enforced before stays for " + shown})
	}
	return out
}

// shownAs names the local in tables: the pod, or nothing for the node.
func (l *local) shownAs() string {
	if l.key == "" {
		return ""
	}
	return l.podKey()
}
