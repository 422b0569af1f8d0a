package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// What a node is taken for after a series of answers.
func TestWatchMachine(t *testing.T) {
	type want struct{ alive, known bool }
	for _, c := range []struct {
		name    string
		answers []answer
		every   time.Duration
		want    want
	}{
		{"nothing heard", nil, time.Second, want{true, false}},
		{"ready", []answer{ready}, time.Second, want{true, true}},
		{"one lost answer", []answer{ready, silent}, time.Second, want{true, true}},
		{"lost answers apart", []answer{ready, silent, ready, silent}, time.Second, want{true, true}},
		{"dead", []answer{ready, silent, silent}, time.Second, want{false, true}},
		{"silent from the beginning, once", []answer{silent}, time.Second, want{true, false}},
		{"silent from the beginning", []answer{silent, silent}, time.Second, want{false, true}},
		{"returned", []answer{ready, silent, silent, ready}, time.Second, want{true, true}},
		{"returned, not ready yet", []answer{ready, silent, silent, up, up}, time.Second, want{false, true}},
		{"first asked while its agent restarts", []answer{up, up, up, up, ready}, time.Second, want{true, true}},
		{"not ready yet, for all we know", []answer{up, up, up, up}, time.Second, want{true, false}},
		{"never ready", []answer{up, up, up, up, up}, time.Second, want{false, true}},
		{"its agent restarts", []answer{ready, up, up, up, ready, up}, 20 * time.Second, want{true, true}},
		{"its agent does not come back", []answer{ready, up, up, up, up}, 20 * time.Second, want{false, true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := NewWatch(WatchConfig{Nodes: state.NewNodes(), Port: "1"})
			w.Set([]string{"n"})
			now := time.Unix(1000, 0)
			for _, a := range c.answers {
				w.note(w.watched["n"], a, now)
				now = now.Add(c.every)
			}
			if alive, known := w.Alive("n"); alive != c.want.alive || known != c.want.known {
				t.Errorf("alive %t known %t, want %+v", alive, known, c.want)
			}
		})
	}
}

// Real servers: one that becomes ready, goes and returns; a port where nobody listens; an address where nobody is.
func TestWatchAsks(t *testing.T) {
	var isReady atomic.Bool
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !isReady.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	server := httptest.NewServer(handler)
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nodes := state.NewNodes()
	nodes.Insert(
		state.Node{Name: "peer", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}},
		state.Node{Name: "bare", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.3")}},
	)
	w := NewWatch(WatchConfig{Nodes: nodes, Port: port, Every: 20 * time.Millisecond, Timeout: 20 * time.Millisecond, Grace: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	is := func(node string, alive bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; {
			changed := w.Changed()
			if is, known := w.Alive(node); known && is == alive {
				return
			}
			select {
			case <-changed:
			case <-time.After(time.Until(end)):
				t.Fatalf("%s: alive %t is not seen", node, alive)
			}
		}
	}
	w.Set([]string{"peer", "bare", "gone"})
	is("peer", false) // answers, but has never been ready
	is("bare", false)
	is("gone", false) // has no object
	isReady.Store(true)
	is("peer", true)
	isReady.Store(false)
	time.Sleep(60 * time.Millisecond)
	is("peer", true) // its kernel goes on
	w.Set(nil)
	if _, known := w.Alive("peer"); known {
		t.Error("a node that is not watched is known")
	}
}
