package merge

import (
	"hash/fnv"
	"time"
)

const (
	// disorder is how far the flows of a node may be out of order of time.
	disorder = time.Second
	// remembered is how many flows are known again at most.
	remembered = 1024
)

// memory knows which flows a node has told last, so that none of them is told again when the node is asked again.
type memory struct {
	floor  time.Time // everything until then has been told
	last   time.Time // of the newest flow
	recent []key     // those after floor, as they came
	before map[key]int
	until  time.Time // of before: nothing later has been told before
}

// key tells a flow from others: clients may ask for flows without their UUIDs, then flows of one time are told apart by their number.
type key struct {
	at int64 // Unix, nanoseconds
	id uint64
}

func keyOf(r *Response) key {
	const lost = 1
	k := key{at: r.GetTime().AsTime().UnixNano()}
	switch {
	case r.GetLostEvents() != nil:
		k.id = lost
	case r.GetFlow().GetUuid() != "":
		h := fnv.New64a()
		_, _ = h.Write([]byte(r.GetFlow().GetUuid())) // never fails
		k.id = h.Sum64()
	}
	return k
}

// known reports whether the flow has been told before the node was asked again, and remembers it.
func (m *memory) known(r *Response) bool {
	if isGap(r) {
		return false
	}
	k, at := keyOf(r), r.GetTime().AsTime()
	if n := m.before[k]; n > 0 {
		m.before[k] = n - 1
		return true
	}
	if at.After(m.until) {
		m.before = nil
	}
	if at.After(m.last) {
		m.last = at
	}
	m.recent = append(m.recent, k)
	for len(m.recent) > remembered || len(m.recent) > 0 && time.Unix(0, m.recent[0].at).Before(m.last.Add(-disorder)) {
		if forgotten := time.Unix(0, m.recent[0].at); forgotten.After(m.floor) {
			m.floor = forgotten
		}
		m.recent = m.recent[1:]
	}
	return false
}

// again prepares for a node that is asked again, and returns since when; zero: it has told nothing yet.
func (m *memory) again() time.Time {
	m.before, m.until = make(map[key]int, len(m.recent)), m.last.Add(disorder)
	for _, k := range m.recent {
		m.before[k]++
	}
	if m.last.IsZero() && m.floor.IsZero() {
		return time.Time{}
	}
	since := m.last.Add(-disorder)
	if after := m.floor.Add(1); after.After(since) {
		since = after
	}
	return since
}

// newest is the time of the newest flow; zero: there was none.
func (m *memory) newest() time.Time {
	if m.floor.After(m.last) {
		return m.floor
	}
	return m.last
}
