package policy

import (
	"fmt"
	"net/netip"

	"github.com/strait-net/strait/internal/identity"
)

// Answer is a row of a program: what it says to an identity, or with identity.Other to all that have no row.
type Answer struct {
	Program  ID
	Way      Way
	Identity identity.ID
	Entry
}

// Move makes a prefix belong to an identity.
type Move struct {
	Prefix netip.Prefix
	To     identity.ID
	Gone   bool // it is not distinguished from what is around it any more
}

// Change is what differs between what is enforced and what is to be. Program 0: nothing is enforced.
type Change struct {
	// Answers are those of programs that nothing has used before, and those to identities that nothing has had before. All others are known.
	Answers []Answer
	Moves   []Move
	// Pods are attachments with a program they did not have before; those in Left are gone. One that is in both was attached again.
	Pods map[string]ID
	Left []string
	// Node is the program of the node itself.
	Node ID
}

// Empty reports whether nothing differs.
func (c *Change) Empty() bool {
	return len(c.Answers) == 0 && len(c.Moves) == 0 && len(c.Pods) == 0 && len(c.Left) == 0
}

// NoRoom is the error of a change that does not fit into the kernel's tables. Nothing of it was done.
type NoRoom struct {
	Table   string // strait_policy
	Setting string // maps.policies
	Need    int    // rows; 0: more than Fit, and nobody has counted how many
	Fit     int
	// Soon: it will fit when what is not used any more is removed.
	Soon bool
	// Prefixes are, of strait_identity, those of the change that have no row yet.
	Prefixes []netip.Prefix
}

func (e *NoRoom) Error() string {
	if e.Need == 0 {
		return fmt.Sprintf("needs more than the %d rows of %s that fit (%s)", e.Fit, e.Table, e.Setting)
	}
	return fmt.Sprintf("needs %d rows of %s, %d fit (%s)", e.Need, e.Table, e.Fit, e.Setting)
}
