package certificate

import (
	"bytes"
	"container/heap"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const (
	readEvery = time.Hour        // each party reads at least this often
	skew      = 30 * time.Minute // of each clock against the true time
	delay     = 10 * time.Minute // at most between what a leader has read and what it writes
)

// world is an API server's Secrets, parties that read them, and leaders that keep them, in simulated time.
type world struct {
	t        *testing.T
	r        *rand.Rand
	config   Config
	now      time.Time // true time
	queue    queue
	secrets  map[string]stored
	versions int
	parties  []*party
	leaders  []*leader

	lost        bool // the key of the authority that all know, and no other one has settled yet
	cut         bool // parties may not know each other until they have read what is written now
	excused     time.Time
	unquiet     bool // unrest is under way
	first       bool
	verified    map[[2]string]window
	checks      int
	excuses     int
	disturbed   int
	reasons     map[Reason]int
	authorities map[string]bool
}

type stored struct {
	data    map[string][]byte
	version int
}

// party is a process that holds what it has read; what it cannot read leaves the former in force.
type party struct {
	name    string // of its Secret
	offset  time.Duration
	coming  bool // a read of what has changed
	version int  // read last
	view    *view
}

type view struct {
	bundle, cert string // as text
	pool         *x509.CertPool
	roots        []*x509.Certificate
	leaf         *x509.Certificate
}

type leader struct {
	offset time.Duration
	down   time.Time // does nothing until then
	only   bool      // takes part in short overlaps only
	timer  int       // of the one that counts
}

type window struct {
	problem  error
	from, to time.Time
}

type event struct {
	at time.Time
	do func()
}

type queue []event

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// newWorld has an authority of an age; zero: none yet.
func newWorld(t *testing.T, seed uint64, validity, age time.Duration) *world {
	w := &world{
		t: t, r: rand.New(rand.NewPCG(seed, 7)), config: Config{Namespace: "kube-system", Validity: validity}, now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
		secrets: map[string]stored{}, first: true, verified: map[[2]string]window{}, reasons: map[Reason]int{}, authorities: map[string]bool{},
	}
	for _, name := range []string{Server, Server, Relay, Relay, Client, Client} {
		p := &party{name: name, offset: w.anyOffset()}
		w.parties = append(w.parties, p)
	}
	for i := range 2 {
		l := &leader{offset: w.anyOffset(), only: i > 0}
		w.leaders = append(w.leaders, l)
	}
	if age > 0 {
		fresh, err := newAuthority(w.now.Add(-age))
		if err != nil {
			t.Fatal(err)
		}
		w.store(Authority, trust{current: fresh}.data())
	}
	w.look(w.leaders[0])
	w.after(24*time.Hour, w.daily)
	w.after(w.some(24*time.Hour), w.disturbance)
	return w
}

func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.queue.Len() > 0 && !w.t.Failed(); {
		e := heap.Pop(&w.queue).(event)
		if e.at.After(end) {
			return
		}
		w.now = e.at
		e.do()
	}
}

func (w *world) after(d time.Duration, do func()) {
	heap.Push(&w.queue, event{w.now.Add(max(d, 0)), do})
}
func (w *world) some(most time.Duration) time.Duration { return time.Duration(w.r.Int64N(int64(most))) }
func (w *world) anyOffset() time.Duration              { return w.some(2*skew) - skew }
func (w *world) chance(percent int) bool               { return w.r.IntN(100) < percent }

func (w *world) read(p *party) {
	s, there := w.secrets[p.name]
	if !there || s.version == p.version {
		return
	}
	p.version = s.version
	if v, err := open(s.data); err == nil {
		p.view = v
		w.check(p)
	}
}

// open reads files as agents do.
func open(data map[string][]byte) (*view, error) {
	pair, err := tls.X509KeyPair(data[CertFile], data[KeyFile])
	if err != nil {
		return nil, err
	}
	v := &view{bundle: string(data[CAFile]), cert: string(data[CertFile]), pool: x509.NewCertPool(), leaf: pair.Leaf}
	if !v.pool.AppendCertsFromPEM(data[CAFile]) {
		return nil, fmt.Errorf("no authority")
	}
	for block, rest := pem.Decode(data[CAFile]); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		v.roots = append(v.roots, c)
	}
	return v, nil
}

// check asks whether p and every party that it may speak to know each other now.
func (w *world) check(p *party) {
	for _, q := range w.parties {
		for _, pair := range [][2]*party{{p, q}, {q, p}} {
			client, server := pair[0], pair[1]
			if client.view == nil || server.view == nil || client.name == Server || server.name == Client {
				continue
			}
			name := map[string]string{Server: "observer.strait.dev", Relay: "hubble-relay.kube-system.svc"}[server.name]
			w.knows(client, server, x509.ExtKeyUsageServerAuth, name)
			w.knows(server, client, x509.ExtKeyUsageClientAuth, "")
		}
	}
}

// knows verifies other's certificate as p does, by its own clock. What does not depend on time is verified once.
func (w *world) knows(p, other *party, use x509.ExtKeyUsage, name string) {
	w.checks++
	now := w.now.Add(p.offset)
	key := [2]string{p.view.bundle, other.view.cert + name + fmt.Sprint(use)}
	known, ok := w.verified[key]
	if !ok || known.problem != nil {
		chains, err := other.view.leaf.Verify(x509.VerifyOptions{Roots: p.view.pool, DNSName: name, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
		known.problem = err
		for _, chain := range chains {
			for _, c := range chain {
				if known.from.Before(c.NotBefore) {
					known.from = c.NotBefore
				}
				if known.to.IsZero() || c.NotAfter.Before(known.to) {
					known.to = c.NotAfter
				}
			}
		}
		if len(w.verified) > 10000 {
			clear(w.verified)
		}
		w.verified[key] = known
	}
	switch {
	case known.problem == nil && !now.Before(known.from) && !now.After(known.to):
	case w.cut || w.now.Before(w.excused):
		w.excuses++
	case w.lost && !now.Before(other.view.leaf.NotAfter): // nobody could renew it
		w.excuses++
	default:
		w.t.Errorf("%s: a %s does not know a %s, whose leaf of %s is good from %s to %s by %s: %v\ntrusted: %s", stamp(w.now), p.name, other.name, stamp(made(other.view.leaf)),
			stamp(other.view.leaf.NotBefore), stamp(other.view.leaf.NotAfter), other.view.leaf.Issuer.CommonName, known.problem, names(p.view.roots))
	}
}

func names(list []*x509.Certificate) (out string) {
	for _, c := range list {
		out += c.Subject.CommonName + "; "
	}
	return out
}

func (w *world) daily() {
	w.after(24*time.Hour, w.daily)
	for _, p := range w.parties {
		if p.view != nil {
			w.check(p)
		}
		if w.chance(3) {
			p.offset = w.anyOffset()
		}
		if w.chance(1) {
			p.view, p.version = nil, 0 // a restart
			w.read(p)
		}
	}
	if l := w.leaders[0]; w.chance(3) {
		l.offset = w.anyOffset()
		w.look(l)
	}
	w.look(w.leaders[0])
}

// look is a leader's: it reads, decides and writes, each write some time after the one before. Another look replaces one that is to come.
func (w *world) look(l *leader) {
	l.timer++
	if w.now.Before(l.down) {
		w.lookIn(l, l.down.Sub(w.now))
		return
	}
	seen := maps.Clone(w.secrets)
	now := w.now.Add(l.offset)
	d, err := Decide(w.config, w.held(seen), now)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(d.Writes) == 0 {
		w.done(now)
		if !d.Again.After(now) {
			w.t.Fatalf("nothing to do at %s, and to be looked at again at %s", stamp(now), stamp(d.Again))
		}
		if !l.only {
			w.lookIn(l, d.Again.Sub(now)+w.some(time.Minute))
		}
		return
	}
	timer := l.timer
	w.write(l, d.Writes, seen, func() {
		if timer == l.timer {
			w.look(l)
		}
	})
}

func (w *world) held(secrets map[string]stored) map[string]Secret {
	out := map[string]Secret{}
	for name, s := range secrets {
		out[name] = Secret{Data: s.data}
	}
	return out
}

func (w *world) lookIn(l *leader, d time.Duration) {
	l.timer++
	timer := l.timer
	w.after(d, func() {
		if timer == l.timer {
			w.look(l)
		}
	})
}

// done: what is to be held is held by all that read from now on.
func (w *world) done(now time.Time) {
	if w.cut {
		w.cut, w.excused = false, w.now.Add(readEvery)
	}
	if t, err := readTrust(Secret{Data: w.secrets[Authority].data}, now); err == nil && t.settled(now) {
		w.lost = false
	}
	w.first = false
}

func (w *world) write(l *leader, writes []Write, seen map[string]stored, then func()) {
	if len(writes) == 0 {
		then()
		return
	}
	pause := w.some(time.Second)
	if w.chance(10) {
		pause = w.some(delay)
	}
	w.after(pause, func() {
		x := writes[0]
		if w.secrets[x.Name].version != seen[x.Name].version || w.chance(3) || w.now.Before(l.down) { // refused, or not answered
			w.after(w.some(time.Minute), then)
			return
		}
		w.carryOut(x)
		w.write(l, writes[1:], seen, then)
	})
}

func (w *world) carryOut(x Write) {
	data := maps.Clone(w.secrets[x.Name].data)
	if data == nil {
		data = map[string][]byte{}
	}
	for key, value := range x.Data {
		if data[key] = value; value == nil {
			delete(data, key)
		}
	}
	w.store(x.Name, data)
	w.reasons[x.Reason]++
	if (x.Reason == AuthorityFollows || x.Reason == AuthorityLost) && !w.unquiet {
		w.unquiet = true
		w.after(w.some(time.Hour), w.unrest)
	}
	if x.Name == Authority {
		w.authorities[string(data[CertFile])] = true
	}
	if x.Reason == Cut || x.Reason == AuthorityMade {
		if x.Reason == AuthorityMade && slices.ContainsFunc(readLeaves(w.held(w.secrets), w.now), func(l leaf) bool { return l.wrong == nil && l.trusted != nil }) {
			w.t.Errorf("%s: %s, though there are leaves", stamp(w.now), x.Text)
		}
		if !w.lost && !w.first {
			w.t.Errorf("%s: %s %s: %s, though the authority was not lost", stamp(w.now), x.Name, x.Reason, x.Text)
		}
		w.cut = true
	}
}

func (w *world) store(name string, data map[string][]byte) {
	w.versions++
	w.secrets[name] = stored{data, w.versions}
	for _, p := range w.parties {
		if p.name == name && !p.coming { // each reads within the hour; what happens between two reads it does not see
			p.coming = true
			w.after(w.some(readEvery), func() { p.coming = false; w.read(p) })
		}
	}
}

// rotating: an authority is to become known, or follows another one.
func (w *world) rotating() bool {
	t, err := readTrust(Secret{Data: w.secrets[Authority].data}, w.now)
	return err == nil && (!t.settled(w.now.Add(-2*skew)) || t.oldKey != nil)
}

// disturbance does harm now and then.
func (w *world) disturbance() {
	w.after(w.some(12*24*time.Hour), w.disturbance)
	w.harm()
}

// unrest does harm again and again while authorities change.
func (w *world) unrest() {
	if w.unquiet = w.rotating(); w.unquiet {
		w.after(w.some(50*time.Minute), w.unrest)
		w.harm()
	}
}

func (w *world) harm() {
	w.disturbed++
	switch n := w.r.IntN(100); {
	case n < 50:
		w.harmLeaf([]string{Server, Relay, Client}[w.r.IntN(3)])
	case n < 60:
		w.harmTimes()
	case n < 62 && !w.lost && (w.chance(5) || w.rotating()):
		w.harmAuthority()
	case n < 75: // an overlap of two leaders; the other one stops after a few looks
		other := w.leaders[1]
		other.offset = w.anyOffset()
		for range 3 {
			w.after(w.some(3*delay), func() { w.look(other) })
		}
	case n < 85: // nobody leads for some time
		absent := min(w.config.Validity/8, 72*time.Hour)
		if w.rotating() {
			absent = min(absent, 4*time.Hour)
		}
		w.leaders[0].down = w.now.Add(w.some(absent))
	default:
		p := w.parties[w.r.IntN(len(w.parties))]
		p.view, p.version = nil, 0
		w.read(p)
	}
	w.lookIn(w.leaders[0], w.some(time.Minute))
}

// harmLeaf does what a reader notices: it goes on with what it has.
func (w *world) harmLeaf(name string) {
	s, there := w.secrets[name]
	if !there {
		return
	}
	data := maps.Clone(s.data)
	switch w.r.IntN(7) {
	case 0:
		delete(w.secrets, name)
		return
	case 1:
		data = map[string][]byte{}
	case 2:
		delete(data, []string{CAFile, CertFile, KeyFile}[w.r.IntN(3)])
	case 3:
		file := []string{CertFile, KeyFile}[w.r.IntN(2)]
		data[file] = data[file][:len(data[file])/2]
	case 4:
		data[KeyFile] = w.secrets[Authority].data[KeyFile] // of another certificate
	case 5:
		data[CAFile] = []byte("nothing")
	case 6:
		data["other"] = []byte("of somebody else")
	}
	w.store(name, data)
}

// harmAuthority loses the key of the current authority.
func (w *world) harmAuthority() {
	s, there := w.secrets[Authority]
	if !there {
		return
	}
	w.lost = true
	data := maps.Clone(s.data)
	switch w.r.IntN(5) {
	case 0:
		delete(w.secrets, Authority)
		return
	case 1:
		data = map[string][]byte{}
	case 2:
		data[KeyFile] = []byte("nothing")
	case 3:
		data[CertFile] = bytes.ToUpper(data[CertFile])
	case 4:
		delete(data, CAFile)
	}
	w.store(Authority, data)
}

// harmTimes changes what is kept beside the authorities.
func (w *world) harmTimes() {
	s, there := w.secrets[Authority]
	if !there {
		return
	}
	data := maps.Clone(s.data)
	key := []string{sinceFile, untilFile, oldKeyFile}[w.r.IntN(3)]
	switch w.r.IntN(3) {
	case 0:
		delete(data, key)
	case 1:
		data[key] = []byte("nothing")
	case 2:
		data[key] = []byte("2999-01-01T00:00:00Z")
	}
	w.store(Authority, data)
	t, err := readTrust(Secret{Data: data}, w.now)
	// Gone is the key of who signed until now, or that the current one has settled: together with a broken leaf that is too much.
	w.lost = w.lost || err != nil || t.oldKey == nil && (t.until.IsZero() || !t.settled(w.now.Add(-2*skew)))
}
