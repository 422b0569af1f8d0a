package capture

import (
	"cmp"
	"container/heap"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"
)

// Config says how packets and verdicts are joined.
type Config struct {
	Nodes []string              // by part
	Names map[netip.Addr]string // pods, "namespace/name"
	Every bool                  // also what the pod has got is shown on the way
	// Hold is how long a packet waits for what its node says of it, Patience how much longer for nodes that say nothing.
	Hold, Patience time.Duration
	Limit          int // bytes that may wait; beyond, the oldest packet is judged by what is known
}

// The usual waits.
const (
	Hold     = 300 * time.Millisecond
	Patience = 2 * time.Second
	Limit    = 64 << 20
)

// far is how much later than a packet, by another node's clock, that node may have judged it.
const far = 250 * time.Millisecond

// double is how long after it was seen on its way a packet may arrive.
const double = time.Second

// Seen is a packet with what became of it.
type Seen struct {
	Packet
	Header
	Place   *Place
	Verdict Verdict
	// From and To are the ends by name, where they have one.
	From, To string
}

// Joiner puts what parts say in order, and joins packets with verdicts. One goroutine at a time.
type Joiner struct {
	c      Config
	parts  []*part
	seed   maphash.Seed
	bytes  int // that wait
	number uint64
}

// part is one node's.
type part struct {
	book
	places  []*Place
	mark    time.Time
	stats   []Stats
	done    bool
	waiting queue   // not in order yet
	held    []*item // in order, until verdicts have come
	ways    map[uint64][]*item
	next    map[course][]time.Time // of what is held, by connection and direction
	firsts  recent[piece, [2]uint16]
}

// course is a direction of a connection.
type course struct {
	tuple
	from netip.AddrPort
}

// piece names the fragments of a packet.
type piece struct {
	from, to netip.Addr
	id       uint32
	protocol uint8
}

type item struct {
	Packet
	Header
	place  *Place
	came   time.Time
	print  uint64
	number uint64
	double bool // the pod has it: seen there
}

// NewJoiner waits for what parts say.
func NewJoiner(c Config) *Joiner {
	if c.Names == nil {
		c.Names = map[netip.Addr]string{}
	}
	j := &Joiner{c: c, seed: maphash.MakeSeed()}
	for _, n := range c.Nodes {
		j.parts = append(j.parts, &part{book: book{node: n}, ways: map[uint64][]*item{}, next: map[course][]time.Time{}})
	}
	return j
}

// Hear takes what a part says, except for notes.
func (j *Joiner) Hear(number int, m Message, now time.Time) {
	p := j.parts[number]
	switch {
	case m.Place != nil:
		place := *m.Place // who told may still look at his
		place.Node = p.node
		p.places = append(p.places, &place)
	case m.Packet != nil:
		if m.Packet.Place < 0 || m.Packet.Place >= len(p.places) {
			return // of nowhere: another version's
		}
		j.number++
		i := &item{Packet: *m.Packet, place: p.places[m.Packet.Place], came: now, number: j.number}
		i.Header = Decode(i.place.Link, i.Data)
		j.bytes += len(i.Data) + overhead
		heap.Push(&p.waiting, i)
	case m.Event != nil:
		p.add(*m.Event)
		j.name(m.Event.Source, m.Event.From)
		j.name(m.Event.Target, m.Event.To)
	case m.Mark != nil:
		p.mark, p.stats, p.done = m.Mark.Until, m.Mark.Stats, m.Mark.Last
		p.told = p.told || m.Mark.Flows
	}
	j.arrange(p, now)
}

func (j *Joiner) name(a netip.AddrPort, pod string) {
	if pod != "" && j.c.Names[a.Addr()] != pod {
		j.c.Names[a.Addr()] = pod
	}
}

// overhead is what a packet that waits takes besides its bytes, about.
const overhead = 400

// Places are those that a part has told of.
func (j *Joiner) Places(number int) []*Place { return j.parts[number].places }

// Gone says that a part will say nothing more.
func (j *Joiner) Gone(number int, now time.Time) {
	j.parts[number].done = true
	j.arrange(j.parts[number], now)
}

// Open reports whether a part may say more.
func (j *Joiner) Open() bool {
	return slices.ContainsFunc(j.parts, func(p *part) bool { return !p.done })
}

// Stats are the sums of a part's sockets.
func (j *Joiner) Stats(number int) (sum Stats) {
	for _, s := range j.parts[number].stats {
		sum.Seen, sum.Lost = sum.Seen+s.Seen, sum.Lost+s.Lost
	}
	return sum
}

// arrange moves what is known to be in order, or cannot wait for it.
func (j *Joiner) arrange(p *part, now time.Time) {
	for p.waiting.Len() > 0 && (p.done || !p.waiting[0].Time.After(p.mark) || j.bytes > j.c.Limit || j.tired(p.waiting[0], now)) {
		j.admit(p, heap.Pop(&p.waiting).(*item)) //nolint:forcetypeassert // the queue has nothing else
	}
}

// admit takes the next packet of a part in order of time.
func (j *Joiner) admit(p *part, i *item) {
	p.defragment(&i.Header)
	if i.place.Kind == OnTheWay || i.place.Kind == AtPod && !i.Out {
		i.print = i.fingerprint(j.seed, &i.Packet)
	}
	switch {
	case i.place.Kind == OnTheWay && p.sender(i.Source.Addr()):
		i.double = true // seen where it was sent
	case i.place.Kind == OnTheWay:
		p.ways[i.print] = append(p.ways[i.print], i)
	case i.place.Kind == AtPod && !i.Out:
		p.arrived(i)
	}
	if !i.double && (i.Out || i.place.Kind != AtPod) {
		c := course{i.tuple(), i.Source}
		p.next[c] = append(p.next[c], i.Time)
	}
	p.held = append(p.held, i)
}

// sender reports whether what an address sends is seen at its pod.
func (p *part) sender(a netip.Addr) bool {
	for _, place := range p.places {
		if place.Kind == AtPod && slices.Contains(place.Own, a) {
			return true
		}
	}
	return false
}

// arrived marks the newest copy of a packet at each device that it came by.
func (p *part) arrived(i *item) {
	stack := p.ways[i.print]
	var devices []*Place
	for n := len(stack); n > 0 && i.Time.Sub(stack[n-1].Time) < double && !slices.Contains(devices, stack[n-1].place); n-- {
		stack[n-1].double = true
		devices, stack = append(devices, stack[n-1].place), stack[:n-1]
	}
	p.keep(i.print, stack)
}

func (p *part) keep(print uint64, stack []*item) {
	if len(stack) == 0 {
		delete(p.ways, print)
		return
	}
	p.ways[print] = stack
}

// defragment gives later fragments the ports of their first one.
func (p *part) defragment(h *Header) {
	if !h.Fragment {
		return
	}
	key := piece{h.Source.Addr(), h.Target.Addr(), h.ID, h.Protocol}
	if !h.Later {
		p.firsts.put(key, [2]uint16{h.Source.Port(), h.Target.Port()})
		return
	}
	if ports := p.firsts.of(key); ports != [2]uint16{} {
		h.Ports = true
		h.Source, h.Target = netip.AddrPortFrom(h.Source.Addr(), ports[0]), netip.AddrPortFrom(h.Target.Addr(), ports[1])
	}
}

// Next returns the packet whose turn it is; false: none yet.
func (j *Joiner) Next(now time.Time) (Seen, bool) {
	for _, p := range j.parts {
		j.arrange(p, now)
	}
	for n := j.first(); n >= 0; n = j.first() {
		p := j.parts[n]
		i := p.held[0]
		if !j.ripe(i, now) {
			break
		}
		p.held = p.held[1:]
		j.bytes -= len(i.Data) + overhead
		if end := p.leave(i); !i.double || j.c.Every {
			return j.seen(n, i, end), true
		}
	}
	return Seen{}, false
}

// first is the part that has the oldest packet, -1: there is none.
func (j *Joiner) first() int {
	first := -1
	for n, p := range j.parts {
		if len(p.held) > 0 && (first < 0 || p.held[0].Time.Before(j.parts[first].held[0].Time)) {
			first = n
		}
	}
	return first
}

// ripe reports whether everything that is waited for has come, or has been waited for long enough.
func (j *Joiner) ripe(i *item, now time.Time) bool {
	if j.bytes > j.c.Limit || j.tired(i, now) {
		return true
	}
	for _, p := range j.parts {
		if !p.done && p.mark.Before(i.Time.Add(j.c.Hold)) {
			return false
		}
	}
	return true
}

func (j *Joiner) tired(i *item, now time.Time) bool { return now.Sub(i.came) > j.c.Hold+j.c.Patience }

// leave forgets a packet that is shown, and returns when the next one of its direction came.
func (p *part) leave(i *item) time.Time {
	if stack := p.ways[i.print]; len(stack) > 0 && stack[0] == i {
		p.keep(i.print, stack[1:])
	}
	end := i.Time.Add(far)
	if i.double || !i.Out && i.place.Kind == AtPod {
		return end
	}
	c := course{i.tuple(), i.Source}
	times := p.next[c]
	if len(times) <= 1 {
		delete(p.next, c)
		return end
	}
	p.next[c] = times[1:]
	switch gap := times[1].Sub(i.Time); {
	case gap < 2*tick:
		end = times[1]
	case gap < far:
		end = times[1].Add(-tick)
	}
	return end
}

// seen judges a packet.
func (j *Joiner) seen(n int, i *item, end time.Time) Seen {
	p := j.parts[n]
	w := witness{place: i.place, own: &p.book, arrived: i.place.Kind == AtPod && !i.Out || i.double}
	if i.place.Station < len(p.stats) {
		w.lost = p.stats[i.place.Station].Lost > 0
	}
	for o, other := range j.parts {
		if o != n {
			w.others = append(w.others, &other.book)
		}
	}
	return Seen{
		Packet: i.Packet, Header: i.Header, Place: i.place, Verdict: w.judge(&i.Header, i.Data, i.Time, end, i.Time.Add(far)),
		From: i.EndName(i.Source, j.c.Names), To: i.EndName(i.Target, j.c.Names),
	}
}

// queue is a heap of packets by time. What is on its way comes before what has arrived.
type queue []*item

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(a, b int) { q[a], q[b] = q[b], q[a] }
func (q queue) Less(a, b int) bool {
	x, y := q[a], q[b]
	return cmp.Or(x.Time.Compare(y.Time), cmp.Compare(y.place.Kind, x.place.Kind), cmp.Compare(x.number, y.number)) < 0
}

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(*item)) } //nolint:forcetypeassert // the queue has nothing else

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	i := (*q)[last]
	(*q)[last], *q = nil, (*q)[:last]
	return i
}
