package state

import (
	"time"

	"github.com/strait-net/strait/internal/table"
)

// Problem is something a person should know of: what is wrong, with what, since when. Each row is owned by its Source.
type Problem struct {
	Source  string    `json:"source"`  // who found it: "kube", "nodes", "services", ...
	Subject string    `json:"subject"` // what it is about, as a person would name it: "node worker-1"
	Text    string    `json:"text"`    // what is wrong, the value, and what would be accepted
	Since   time.Time `json:"since"`
}

// Key returns source/subject: one problem per subject and source.
func (p Problem) Key() string { return p.Source + "/" + p.Subject }

// ProblemsBySource finds the problems one source has reported.
var ProblemsBySource = table.Index[Problem]{
	Name: "source",
	Keys: func(p Problem) []string { return []string{p.Source} },
}

// NewProblems returns the table of problems, keyed by Problem.Key.
func NewProblems() *table.Table[Problem] {
	return table.New("problems", Problem.Key, ProblemsBySource)
}

// Report makes found all that source has to say. Since of a problem that stays is kept; found without Since begins now.
// Source is set in each row; of several about one subject the first is kept.
func Report(problems *table.Table[Problem], source string, now time.Time, found []Problem) {
	problems.Write(func(tx *table.Txn[Problem]) {
		keep := make(map[string]bool, len(found))
		for _, p := range found {
			p.Source = source
			if !keep[p.Key()] {
				keep[p.Key()] = true
				raise(tx, p, now)
			}
		}
		tx.All(func(p Problem) bool {
			if p.Source == source && !keep[p.Key()] {
				tx.Delete(p.Key())
			}
			return true
		})
	})
}

// Raise adds or updates one problem.
func Raise(problems *table.Table[Problem], p Problem, now time.Time) {
	problems.Write(func(tx *table.Txn[Problem]) { raise(tx, p, now) })
}

// Clear removes the problem source had with subject, if any.
func Clear(problems *table.Table[Problem], source, subject string) {
	key := Problem{Source: source, Subject: subject}.Key()
	if _, _, ok := problems.Snapshot().Get(key); ok {
		problems.Delete(key)
	}
}

func raise(tx *table.Txn[Problem], p Problem, now time.Time) {
	old, _, ok := tx.Get(p.Key())
	if ok && old.Text == p.Text {
		return
	}
	if p.Since.IsZero() {
		p.Since = now
		if ok {
			p.Since = old.Since
		}
	}
	tx.Insert(p)
}
