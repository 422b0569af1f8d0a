// Package departure closes the connections to backends that have vanished (SVC-5).
//
// A backend leaves the slots of its services when its pod becomes unready, terminates, loses a label or goes. Connected UDP sockets are
// closed then, because a datagram never learns that nobody listens. TCP connections stay as long as the pod lives, so that a pod can
// finish what it has begun and a switch of labels breaks nothing; when the pod is gone, nobody would tell the clients.
package departure

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	kernel "github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/sockets"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/state"
)

// Backends are those in no slot. *sync.Frontends is one.
type Backends interface {
	Leaving() []sync.Departed
	Release(id uint32) error // one that is back in a slot is left alone
}

// Loads knows the connections of backends. *maps.Maps is one.
type Loads interface {
	Load(backend uint32) (l kernel.Load, ok bool, err error)
}

// Sockets closes those connected to targets, in the node's network namespace and in others by their cookies. *sockets.Table is one.
type Sockets interface {
	Close(namespaces map[uint64]string, targets []sockets.Target) (closed int, err error)
}

// Config is what Departures needs. All but Alive and Now are required.
type Config struct {
	Node     string // in Kubernetes
	State    *state.State
	Backends Backends
	Loads    Loads
	Sockets  Sockets
	Log      *slog.Logger
	// Alive asks whether a pod, namespace/name, still runs and has the address. Nil: a pod that no EndpointSlice lists is gone.
	Alive func(ctx context.Context, pod string, address netip.Addr) (bool, error)
	Now   func() time.Time // default time.Now
}

// Departures waits for the backends that are leaving. One goroutine owns it.
type Departures struct {
	cfg     Config
	waiting map[uint32]*wait
	answers chan answer
	asking  chan struct{} // a slot for each question
	failed  bool          // a problem is reported
	unable  error         // this kernel cannot close sockets: stays until the next start
}

type answer struct {
	id    uint32
	since time.Time // tells the backend from a later one with the same id
	alive bool
	err   error
}

const (
	parallelQuestions = 8
	questionTimeout   = 5 * time.Second
	// pause is the time between two looks: changes that come together are looked at together.
	pause = 100 * time.Millisecond
	// lookEvery is when to look although nothing has happened: connections end by themselves.
	lookEvery = 10 * time.Second

	problemSource  = "departures"
	problemSubject = "connections to vanished backends"
)

// New returns the loop.
func New(cfg Config) *Departures {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Departures{cfg: cfg, waiting: map[uint32]*wait{}, answers: make(chan answer), asking: make(chan struct{}, parallelQuestions)}
}

// Run closes connections until ctx ends. It begins when the EndpointSlices are known: a backend that none of them lists may be gone.
func (d *Departures) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.cfg.State.EndpointSlices.Initialized():
	}
	for {
		frontends := d.cfg.State.Frontends.Snapshot().Changed() // rows change again when they are in the kernel
		slices, endpoints := d.cfg.State.EndpointSlices.Snapshot().Changed(), d.cfg.State.Endpoints.Snapshot().Changed()
		wake := time.NewTimer(d.look(ctx))
		if len(d.waiting) == 0 {
			slices, endpoints = nil, nil
		}
		select {
		case <-ctx.Done():
		case <-wake.C:
		case <-frontends:
		case <-slices:
		case <-endpoints:
		case a := <-d.answers:
			d.take(a)
		}
		wake.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// look does what is due and returns when to look again at the latest.
func (d *Departures) look(ctx context.Context) time.Duration {
	now := d.cfg.Now()
	d.meet()
	if len(d.waiting) == 0 {
		d.report(d.unable)
		return lookEvery
	}
	known := d.gather()
	var errs []error
	var closing, done []*wait
	for _, id := range slices.Sorted(maps.Keys(d.waiting)) {
		w := d.waiting[id]
		f, err := known.of(w)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch w.judge(f, now) {
		case ask:
			d.ask(ctx, w)
		case closeSockets, closeAgain:
			closing = append(closing, w)
		case release:
			done = append(done, w)
		}
	}
	closed, err := d.close(closing, known.namespaces, now)
	if errors.Is(err, sockets.ErrUnsupported) {
		d.unable, err = err, nil
	}
	errs = append(errs, d.unable, err)
	for _, w := range append(done, closed...) {
		if err := d.cfg.Backends.Release(w.ID); err != nil {
			w.delay(now)
			errs = append(errs, err)
			continue
		}
		delete(d.waiting, w.ID)
	}
	d.report(errors.Join(errs...))
	return d.nextLook(now)
}

// meet takes up the backends that are leaving and forgets those that have come back.
func (d *Departures) meet() {
	leaving := map[uint32]bool{}
	for _, b := range d.cfg.Backends.Leaving() {
		leaving[b.ID] = true
		if w := d.waiting[b.ID]; w == nil || w.Since != b.Since || w.AddrPort != b.AddrPort {
			d.waiting[b.ID] = &wait{Departed: b}
		}
	}
	maps.DeleteFunc(d.waiting, func(id uint32, _ *wait) bool { return !leaving[id] })
}

// close closes the sockets of the backends, all in one search, and returns those that can be released.
func (d *Departures) close(backends []*wait, namespaces map[uint64]string, now time.Time) (done []*wait, err error) {
	if len(backends) == 0 {
		return nil, nil
	}
	var targets []sockets.Target
	for _, w := range backends {
		targets = append(targets, sockets.Target{AddrPort: w.AddrPort, Protocol: uint8(w.Protocol)})
	}
	closed, err := d.cfg.Sockets.Close(namespaces, targets)
	if err != nil && !errors.Is(err, sockets.ErrUnsupported) { // that one will not get better by waiting
		for _, w := range backends {
			w.delay(now)
		}
		return nil, err
	}
	for _, w := range backends {
		w.rounds++
		if w.Protocol == state.UDP && w.rounds == 1 {
			w.next = now.Add(settle)
			continue
		}
		done = append(done, w)
	}
	if closed > 0 {
		d.cfg.Log.Info("sockets of vanished backends closed", "sockets", closed, "backends", targets)
	}
	return done, err
}

// ask finds out whether the pod lives; the answer comes by the channel. With too many questions under way it is asked later.
func (d *Departures) ask(ctx context.Context, w *wait) {
	select {
	case d.asking <- struct{}{}:
	default:
		return
	}
	w.asking = true
	a := answer{id: w.ID, since: w.Since}
	pod, address := w.Pod, w.Addr()
	go func() {
		question, cancel := context.WithTimeout(ctx, questionTimeout)
		a.alive, a.err = d.cfg.Alive(question, pod, address)
		cancel()
		<-d.asking
		select {
		case d.answers <- a:
		case <-ctx.Done():
		}
	}()
}

// take notes an answer. Who gives none is asked again, and so is a pod that lives without being listed: nobody tells when it goes.
func (d *Departures) take(a answer) {
	w := d.waiting[a.id]
	if w == nil || w.Since != a.since {
		return
	}
	w.asking = false
	if w.gone = a.err == nil && !a.alive; !w.gone {
		w.delay(d.cfg.Now())
	}
	if a.err != nil {
		d.cfg.Log.Warn("ask whether a pod lives", "pod", w.Pod, "error", a.err, "again_in", w.backOff)
	}
}

func (d *Departures) nextLook(now time.Time) time.Duration {
	wait := lookEvery
	for _, w := range d.waiting {
		if w.next.After(now) {
			wait = min(wait, w.next.Sub(now))
		}
	}
	return wait
}

func (d *Departures) report(err error) {
	if err == nil {
		if d.failed {
			d.failed = false
			state.Clear(d.cfg.State.Problems, problemSource, problemSubject)
		}
		return
	}
	d.failed = true
	d.cfg.Log.Warn("close connections to vanished backends", "error", err)
	state.Raise(d.cfg.State.Problems, state.Problem{Source: problemSource, Subject: problemSubject, Text: err.Error()}, d.cfg.Now())
}
