package departure

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	kernel "github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/sockets"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/state"
)

// desk is one Departures with the answers of everybody around it, and a clock. The real ones meet in internal/agent.
type desk struct {
	t *testing.T
	*Departures
	now      time.Time
	leaving  []sync.Departed
	loads    map[uint32]kernel.Load
	alive    func() (bool, error)
	asked    int
	closing  error // what closing says
	closed   []sockets.Target
	released []uint32
}

func (d *desk) Leaving() []sync.Departed { return d.leaving }

func (d *desk) Release(id uint32) error {
	d.released = append(d.released, id)
	d.leaving = slices.DeleteFunc(d.leaving, func(b sync.Departed) bool { return b.ID == id })
	return nil
}

func (d *desk) Load(id uint32) (kernel.Load, bool, error) { return d.loads[id], true, nil }

func (d *desk) Close(_ map[uint64]string, targets []sockets.Target) (int, error) {
	if d.closing != nil {
		return 0, d.closing
	}
	d.closed = append(d.closed, targets...)
	return len(targets), nil
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, now: time.Unix(1000, 0), loads: map[uint32]kernel.Load{}}
	d.Departures = New(Config{
		Node: "node-1", State: state.New(), Backends: d, Loads: d, Sockets: d, Log: slog.New(slog.DiscardHandler),
		Alive: func(context.Context, string, netip.Addr) (bool, error) { d.asked++; return d.alive() },
		Now:   func() time.Time { return d.now },
	})
	return d
}

// look lets time pass, looks, and takes the answer to what was asked.
func (d *desk) look(after time.Duration) {
	d.t.Helper()
	d.now = d.now.Add(after)
	d.Departures.look(d.t.Context())
	for _, w := range d.waiting {
		if w.asking {
			d.take(<-d.answers)
			d.Departures.look(d.t.Context())
		}
	}
}

func (d *desk) want(when string, closed, released, asked int) {
	d.t.Helper()
	if len(d.closed) != closed || len(d.released) != released || d.asked != asked {
		d.t.Errorf("%s: %d closed, %d released, %d questions, want %d, %d, %d", when, len(d.closed), len(d.released), d.asked, closed, released, asked)
	}
}

func (d *desk) problem() string {
	p, _, _ := d.cfg.State.Problems.Snapshot().Get(problemSource + "/" + problemSubject)
	return p.Text
}

var web = sync.Departed{ID: 7, AddrPort: netip.MustParseAddrPort("10.0.1.7:80"), Protocol: state.TCP, Pod: "default/web-0", Since: time.Unix(999, 0)}

// A pod that no slice lists is asked about, less and less often while it lives or nobody answers; its connections go with it.
func TestAskedUntilGone(t *testing.T) {
	d := newDesk(t)
	d.leaving, d.loads[7] = []sync.Departed{web}, kernel.Load{Sockets: 1}
	d.alive = func() (bool, error) { return false, errors.New("connection refused") }
	d.look(0)
	d.want("without an answer", 0, 0, 1)
	d.look(500 * time.Millisecond)
	d.want("half a second later", 0, 0, 1)
	d.alive = func() (bool, error) { return true, nil }
	d.look(500 * time.Millisecond)
	d.want("alive", 0, 0, 2)
	d.look(time.Second)
	d.want("a second later", 0, 0, 2)
	d.alive = func() (bool, error) { return false, nil }
	d.look(time.Second)
	d.want("gone", 1, 1, 3)
	if d.closed[0].AddrPort != web.AddrPort || len(d.waiting) != 0 {
		t.Errorf("closed %v, still waiting for %d", d.closed, len(d.waiting))
	}
}

// While it is listed nobody is asked; another pod with its address does not count.
func TestListedLives(t *testing.T) {
	d := newDesk(t)
	d.leaving, d.loads[7] = []sync.Departed{web}, kernel.Load{Tracked: 3}
	d.alive = func() (bool, error) { return false, nil }
	list := func(pod string) {
		d.cfg.State.EndpointSlices.Insert(state.EndpointSlice{Namespace: "default", Name: "web", Endpoints: []state.SliceEndpoint{
			{Address: web.Addr(), Serving: true, Terminating: true, Pod: pod},
		}})
	}
	list("default/web-0")
	d.look(0)
	d.look(time.Hour)
	d.want("terminating", 0, 0, 0)
	list("default/other")
	d.look(0)
	d.want("its address is another pod's", 1, 1, 1)
}

// What comes back into a slot is not closed, and begins anew when it leaves again.
func TestComesBack(t *testing.T) {
	d := newDesk(t)
	d.leaving, d.loads[7] = []sync.Departed{web}, kernel.Load{Sockets: 1}
	d.alive = func() (bool, error) { return true, nil }
	d.look(0)
	d.leaving = nil
	d.look(time.Second)
	d.want("back", 0, 0, 1)
	again := web
	again.Since = d.now
	d.leaving = []sync.Departed{again}
	d.look(0)
	d.want("left again", 0, 0, 2)
	d.loads[7] = kernel.Load{}
	d.look(0)
	d.want("its last connection has ended", 0, 1, 2)
}

// Connected datagram sockets are closed whatever became of the pod, twice.
func TestDatagramsAtOnce(t *testing.T) {
	d := newDesk(t)
	dns := web
	dns.ID, dns.Protocol = 8, state.UDP
	idle := dns
	idle.ID = 9
	d.leaving, d.loads[8], d.loads[9] = []sync.Departed{dns, idle}, kernel.Load{Sockets: 1}, kernel.Load{Tracked: 1}
	d.look(0)
	d.want("at once", 1, 1, 0)
	d.look(500 * time.Millisecond)
	d.want("half a second later", 1, 1, 0)
	d.look(500 * time.Millisecond)
	d.want("a second later", 2, 2, 0)
}

// What could not be closed is not released, is a problem, and is tried again; a kernel that cannot close at all is a problem that stays.
func TestClosingFails(t *testing.T) {
	d := newDesk(t)
	nameless := web
	nameless.Pod = ""
	d.leaving, d.loads[7] = []sync.Departed{nameless}, kernel.Load{Sockets: 1}
	d.closing = errors.New("no buffer space")
	d.look(0)
	d.want("failed", 0, 0, 0)
	if !strings.Contains(d.problem(), "no buffer space") {
		t.Errorf("problem %q", d.problem())
	}
	d.closing = nil
	d.look(time.Second)
	d.want("again", 1, 1, 0)
	if p := d.problem(); p != "" {
		t.Errorf("problem %q stays", p)
	}
	d.leaving, d.closing = []sync.Departed{nameless}, sockets.ErrUnsupported
	d.look(0)
	d.look(time.Hour)
	d.want("unsupported", 1, 2, 0)
	if !strings.Contains(d.problem(), "CONFIG_INET_DIAG_DESTROY") {
		t.Errorf("problem %q", d.problem())
	}
}
