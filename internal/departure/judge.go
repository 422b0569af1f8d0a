package departure

import (
	"time"

	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/state"
)

// A backend that is in no slot any more ends in one of these ways:
//
//	            no connection
//	leaving ----------------------------------------------> released
//	   |  UDP with sockets: closed, and again after a second --^  ^
//	   |                                                          |
//	   +-- TCP: the pod is listed, attached or alive: waits       |
//	   |                      |                                   |
//	   +----------------------+--> the pod is gone: closed -------+
type wait struct {
	sync.Departed
	gone    bool      // found out by asking
	asking  bool      // the question is under way
	rounds  int       // in which its sockets were closed
	next    time.Time // nothing is asked or closed before
	backOff time.Duration
}

const (
	minBackOff = time.Second
	maxBackOff = 30 * time.Second
	// settle is after which time a socket that was being connected while the backend left its slot has been connected.
	settle = time.Second
)

// delay puts the next attempt off, longer each time.
func (w *wait) delay(now time.Time) {
	w.backOff = min(max(2*w.backOff, minBackOff), maxBackOff)
	w.next = now.Add(w.backOff)
}

// facts are what is known about a backend without asking anybody.
type facts struct {
	sockets bool // of this node are connected to it
	tracked bool // connections by packets are under way
	listed  bool // an EndpointSlice has its address, in whatever state
	local   where
	asks    bool // there is somebody to ask
}

// where is a pod that would be on this node.
type where int

const (
	elsewhere where = iota
	attached
	detached
)

// decision is what to do with a backend.
type decision int

const (
	keep decision = iota
	ask
	closeSockets // and release
	closeAgain   // close, but do not release yet
	release
)

func (w *wait) judge(f facts, now time.Time) decision {
	datagram := w.Protocol == state.UDP
	switch {
	case !f.sockets && (datagram || !f.tracked):
		return release
	case now.Before(w.next):
		return keep
	case datagram && w.rounds == 0:
		return closeAgain
	case datagram || w.gone:
		return closeSockets
	case f.listed || f.local == attached:
		w.backOff = 0
		return keep
	case w.asking:
		return keep
	case f.local == detached || !f.asks || w.Pod == "":
		return closeSockets
	}
	return ask
}
