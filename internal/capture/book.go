package capture

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// remembered is how many connections are kept at least, and half of how many at most, of each node.
	remembered = 1 << 14
	// chapters is how much is kept of each connection.
	chapters = 16
	// heldBack is how long a node does not tell the same denial again, and some time for it to be told.
	heldBack = 1100 * time.Millisecond
	// tick is how much later a packet may seem to be than what a program said of it: their clocks are converted into each other.
	tick = 2 * time.Millisecond
)

// book is what one node has told of connections.
type book struct {
	node   string
	ties   recent[tuple, []*chapter]  // in the order of time
	stops  recent[target, []*chapter] // denials and drops, whoever's source port they name
	losses []Event                    // records that were lost, the last few
	told   bool                       // something has been told, or would be
}

// chapter is an event, and where a packet has been shown as the one that it is about.
type chapter struct {
	Event
	shown []*Place
}

// target is what repeats of a denial are held back for.
type target struct {
	from, to netip.Addr
	port     uint16
	protocol uint8
}

// add notes an event. One of which only the other direction was told is made whole.
func (b *book) add(e Event) {
	b.told = true
	if e.What == Lost {
		b.losses = append(b.losses, e)
		b.losses = b.losses[max(0, len(b.losses)-chapters):]
		return
	}
	if e.What == Ended {
		return
	}
	c := &chapter{Event: e}
	// A client that knows a service by its packets sends to the service.
	for _, other := range []netip.AddrPort{e.Target, e.Front} {
		if other.IsValid() && e.Source.IsValid() {
			key := tupleOf(e.Protocol, e.Source, other)
			b.ties.put(key, appended(b.ties.of(key), c))
		}
	}
	if e.NAT.IsValid() {
		key := tupleOf(e.Protocol, e.NAT, e.Target)
		b.ties.put(key, appended(b.ties.of(key), c))
	}
	if e.stops() {
		key := e.target()
		b.stops.put(key, appended(b.stops.of(key), c))
	}
}

// appended keeps the order of time, and merges the two halves of what was told of one packet.
func appended(list []*chapter, e *chapter) []*chapter {
	at := len(list)
	for at > 0 && list[at-1].Time.After(e.Time) {
		at--
	}
	if at > 0 {
		if last := list[at-1]; last.Time.Equal(e.Time) && last.What == e.What {
			for _, rule := range []struct{ into, from *string }{{&last.Egress, &e.Egress}, {&last.Ingress, &e.Ingress}, {&last.Audited, &e.Audited}, {&last.Why, &e.Why}} {
				if *rule.into == "" {
					*rule.into = *rule.from
				}
			}
			return list
		}
	}
	list = slices.Insert(list, at, e)
	return list[max(0, len(list)-chapters):]
}

func (e *Event) stops() bool { return e.What == Denied || e.What == Dropped }

// target is the sender's side of a stop: an answer goes the other way.
func (e *Event) target() target {
	from, to := e.Source, e.Target
	if e.Answer && e.What == Denied {
		from, to = to, from
	}
	t := target{from.Addr(), to.Addr(), to.Port(), e.Protocol}
	if e.Protocol == ICMP || e.Protocol == ICMPv6 {
		t.port = 0
	}
	return t
}

func (h *Header) target() target {
	t := target{h.Source.Addr(), h.Target.Addr(), 0, h.Protocol}
	if h.Ports {
		t.port = h.Target.Port()
	}
	return t
}

// finding is what a book says of a packet.
type finding struct {
	*Event      // nil: nothing
	fresh  bool // the event is of this very packet
}

// finding is what a chapter says of a packet at a place. It is of the first packet there.
func (c *chapter) finding(at time.Time, place *Place) finding {
	if c.Time.Before(at.Add(-tick)) || slices.Contains(c.shown, place) {
		return finding{&c.Event, false}
	}
	c.shown = append(c.shown, place)
	return finding{&c.Event, true}
}

// find returns what decided for a packet of which another one of the same direction came at end. arrived: nothing has stopped it on this node.
func (b *book) find(h *Header, at, end time.Time, arrived bool, place *Place) finding {
	list := b.ties.of(h.tuple())
	var known *chapter // says least
	for i := len(list) - 1; i >= 0; i-- {
		e := list[i]
		if !e.Time.Before(end) {
			continue
		}
		switch {
		case e.stops() && arrived:
			continue
		case e.What == Known:
			known = e
			continue
		case e.What == Dropped && (at.Sub(e.Time) > heldBack || !h.sentBy(&e.Event)): // of one packet, not of a connection
			continue
		}
		return e.finding(at, place)
	}
	if known != nil {
		return finding{&known.Event, false}
	}
	if arrived {
		return finding{}
	}
	stops := b.stops.of(h.target())
	for i := len(stops) - 1; i >= 0; i-- {
		// Told before within the time that repeats are held back for, or after and for several.
		e := stops[i]
		before := !e.Time.After(at.Add(tick)) && at.Sub(e.Time) <= heldBack
		after := e.Time.After(at) && e.Packets > 1 && e.Time.Sub(at) <= heldBack
		if before || after {
			return finding{&e.Event, false}
		}
	}
	return finding{}
}

// sentBy reports whether an event is about packets of this direction.
func (h *Header) sentBy(e *Event) bool {
	return h.Source.Addr() == e.Source.Addr() || e.NAT.IsValid() && h.Source.Addr() == e.NAT.Addr()
}

// lost is how many records a node has lost about a time.
func (b *book) lost(at time.Time) (n uint64) {
	for _, e := range b.losses {
		if d := at.Sub(e.Time); d > -heldBack && d < heldBack {
			n += e.Packets
		}
	}
	return n
}

// recent keeps what was put or asked for lately: at least the last remembered keys, at most twice as many.
type recent[K comparable, V any] struct{ young, old map[K]V }

func (r *recent[K, V]) of(k K) V {
	if v, ok := r.young[k]; ok {
		return v
	}
	v, ok := r.old[k]
	if ok {
		r.put(k, v)
	}
	return v
}

func (r *recent[K, V]) put(k K, v V) {
	if r.young == nil || len(r.young) >= remembered {
		r.young, r.old = make(map[K]V), r.young
	}
	r.young[k] = v
}
