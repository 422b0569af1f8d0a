// Package verdict names what becomes of a packet: the reasons of bpf/lib/reasons.def as Go values.
package verdict

import "fmt"

//go:generate go run ./gen -def ../../bpf/lib/reasons.def -go reasons.go -doc ../../docs/reference/drop-reasons.md

// Reason is what became of a packet. Ids are stable: they are in dashboards and recorded flows.
type Reason uint32

// Kind says whether somebody misses the packet.
type Kind string

// The kinds of reasons.
const (
	Forwarded Kind = "forwarded"
	Ignored   Kind = "ignored" // its way ended here, but there was nobody it could have reached
	Dropped   Kind = "dropped"
)

// Where the ids of a kind begin.
const (
	firstIgnored Reason = 24
	firstDropped Reason = 32
)

// Kind returns the kind, which is in the id.
func (r Reason) Kind() Kind {
	switch {
	case r >= firstDropped:
		return Dropped
	case r >= firstIgnored:
		return Ignored
	}
	return Forwarded
}

// Dropped reports whether the packet was dropped.
func (r Reason) Dropped() bool { return r.Kind() == Dropped }

// Policy reports whether policy is the reason.
func (r Reason) Policy() bool { return r == PolicyEgress || r == PolicyIngress || r == PolicyMissing }

// String gives the reason's name as in reasons.def in lower case, or its number when this version does not know it.
func (r Reason) String() string {
	if row, ok := lookup(r); ok {
		return row.name
	}
	return fmt.Sprintf("reason-%d", uint32(r))
}

// Text gives the reason for people.
func (r Reason) Text() string {
	if row, ok := lookup(r); ok {
		return row.text
	}
	return fmt.Sprintf("reason %d, which this version does not know", uint32(r))
}

// All gives every known reason by ascending id.
func All() []Reason {
	rows := reasons()
	all := make([]Reason, len(rows))
	for i, row := range rows {
		all[i] = row.id
	}
	return all
}

// row is one line of reasons.def.
type row struct {
	id         Reason
	name, text string
}

func lookup(r Reason) (row, bool) {
	for _, row := range reasons() {
		if row.id == r {
			return row, true
		}
	}
	return row{}, false
}
