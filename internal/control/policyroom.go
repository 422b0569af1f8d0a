package control

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// propose makes the writer accept what has changed, as far as it fits: programs that do not are refused, and their pods keep what they had. Only
// when what is left still does not fit, because peers have come or changed, the newest of these are held back.
func (p *Policies) propose() error {
	var refused []*use // for want of room next to others
	hold, again := false, true
	for {
		victim, err := p.offer(hold)
		var room *policy.NoRoom
		switch {
		case err == nil && hold && again && len(refused) > 0:
			p.reconsider(refused) // it was peers that did not fit
			refused, hold, again = nil, false, false
			continue
		case err == nil:
			return nil
		case !errors.As(err, &room) || room.Soon:
			return err
		}
		if victim == nil {
			if victim = p.subjects.largest(room.Table); victim != nil {
				refused = append(refused, victim)
			}
		}
		switch {
		case victim != nil:
			p.refuse(victim, room)
		case !hold:
			hold = true
		case !p.peers.holdRows(room, p.subjects):
			return err
		}
	}
}

// offer gives the writer everything that has changed. Of a *policy.NoRoom victim is the program that does not fit even without others, nil if there
// is no such program. With hold, identities that are new to programs in use are held back if they do not fit.
func (p *Policies) offer(hold bool) (victim *use, err error) {
	p.subjects.place(p.peers)
	p.peers.place(p.subjects)
	change := p.subjects.change()
	p.peers.blur(p.subjects)
	p.peers.change(&change)
	fits, held := p.Writer.Forecast(true), false
	for _, id := range p.peers.untold() {
		answers := p.subjects.answersTo(id)
		room := fits(answers)
		switch {
		case room == nil:
			change.Answers = append(change.Answers, answers...)
		case !hold:
			return nil, room
		default:
			p.peers.short.idents[id.ID] = &withheld{room, programsOf(answers)}
			held = true
		}
	}
	if held {
		p.peers.touchHeld()
		return p.offer(hold) // they are others now
	}
	if victim, room := p.answersOfNew(&change); room != nil {
		return victim, room
	}
	if !change.Empty() || change.Node != idOf(p.subjects.node.have) {
		if err := p.Writer.Accept(&change); err != nil {
			return nil, err
		}
	}
	p.subjects.accepted()
	p.peers.accepted()
	return nil, nil
}

// answersOfNew adds all answers of programs that are new to the writer, as long as they fit next to what the change has already. A program that
// does not fit without that is the victim; of others nobody knows whose fault it is.
func (p *Policies) answersOfNew(c *policy.Change) (victim *use, room *policy.NoRoom) {
	fits := p.Writer.Forecast(false)
	if room := fits(c.Answers); room != nil {
		return nil, room
	}
	for _, u := range p.subjects.untold() {
		begin := len(c.Answers)
		alone := p.Writer.Forecast(false)
		u.weight = weight{rules: u.weight.rules}
		tables := map[policy.ID]bool{}
		take := func(from int) *policy.NoRoom {
			more := c.Answers[from:]
			u.weight.add(more, tables)
			return alone(more)
		}
		for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
			other, unanswered := u.program.Other(way), u.program.Unanswered(way)
			c.Answers = append(c.Answers, policy.Answer{Program: u.id, Way: way, Identity: identity.Other, Entry: other})
			if !unanswered.Equal(other) { // there before it is needed: then there may be no room for it
				c.Answers = append(c.Answers, policy.Answer{Program: u.id, Way: way, Identity: identity.Unanswered, Entry: unanswered})
			}
		}
		if room := take(begin); room != nil {
			return u, room
		}
		for _, id := range p.peers.idents {
			if id.rows == 0 {
				continue
			}
			from := len(c.Answers)
			if u.answer(id, c); len(c.Answers) == from {
				continue
			}
			u.weight.identities += id.rows
			if room := take(from); room != nil {
				return u, room
			}
		}
		if room := fits(c.Answers[begin:]); room != nil {
			return nil, room
		}
	}
	return nil, nil
}

// refuse leaves a program out until there may be room.
func (p *Policies) refuse(u *use, room *policy.NoRoom) {
	err := fmt.Errorf("%s: %w", u.text(), room)
	p.refusals[u.id] = refusal{err, time.Now().Add(refuseFor)}
	p.Log.Error("policy does not fit", "error", err)
	p.subjects.refuse(u, err, p.peers)
}

// reconsider lets programs be tried that were refused just now.
func (p *Policies) reconsider(refused []*use) {
	for _, u := range refused {
		delete(p.refusals, u.id)
	}
	p.subjects.again()
	p.subjects.choose(p.refused)
}

// weight is what a program needs, in rows.
type weight struct{ policies, ports, identities, rules int }

// add counts answers; tables are those that were counted.
func (w *weight) add(answers []policy.Answer, tables map[policy.ID]bool) {
	w.policies += len(answers)
	for i := range answers {
		if t := answers[i].Table; t != nil && !tables[t.ID] {
			tables[t.ID] = true
			w.ports += len(t.Rows)
		}
	}
}

// of returns the rows of one of the kernel's tables.
func (w *weight) of(table string) int {
	switch table {
	case "strait_port":
		return w.ports
	case "strait_identity":
		return w.identities
	case "strait_rule":
		return w.rules
	}
	return w.policies
}

// untold returns the programs that somebody is to have and the writer does not know, in the order of their numbers.
func (s *subjects) untold() (out []*use) {
	for u := range s.touched {
		if !u.told && len(u.ends) > 0 {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b *use) int { return cmp.Compare(a.id, b.id) })
	return out
}

// largest returns the program that adds most to one of the kernel's tables, of those that are new to the writer; nil if there is none.
func (s *subjects) largest(table string) (found *use) {
	for _, u := range s.untold() {
		if found == nil || u.weight.of(table) > found.weight.of(table) {
			found = u
		}
	}
	return found
}

// answersTo returns what programs that the writer knows say to an identity that is new to it. Also those that nobody is to have any more: until
// the change is through somebody has them.
func (s *subjects) answersTo(id *ident) []policy.Answer {
	var c policy.Change
	for _, u := range s.uses {
		if u.told {
			u.answer(id, &c)
		}
	}
	return c.Answers
}

func (u *use) answer(id *ident, c *policy.Change) {
	for _, way := range []policy.Way{policy.Egress, policy.Ingress} {
		if e := u.program.Entry(way, id.Kind, id.Matches); !e.Equal(u.program.Other(way)) {
			c.Answers = append(c.Answers, policy.Answer{Program: u.id, Way: way, Identity: id.ID, Entry: e})
		}
	}
}

func programsOf(answers []policy.Answer) map[policy.ID]bool {
	out := map[policy.ID]bool{}
	for i := range answers {
		out[answers[i].Program] = true
	}
	return out
}
