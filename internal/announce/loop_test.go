package announce

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/state"
)

// peers is what the test says about nodes.
type peers struct {
	mu      sync.Mutex
	alive   map[string]bool // absent: not known
	set     []string
	changed chan struct{}
}

func (p *peers) Set(nodes []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = nodes
}

func (p *peers) Alive(node string) (alive, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	alive, known = p.alive[node]
	return alive || !known, known
}

func (p *peers) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

func (p *peers) say(node string, alive bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive[node] = alive
	close(p.changed)
	p.changed = make(chan struct{})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A node that starts says nothing about addresses of nodes it has not heard of, and its table is not complete before: what the kernel
// announces since the last run goes on. Nothing is announced before services are in the kernel.
func TestLoopWaits(t *testing.T) {
	st := state.New()
	for _, done := range []func(){
		st.Nodes.Register("test"), st.Services.Register("test"), st.EndpointSlices.Register("test"), st.Devices.Register("test"),
	} {
		done()
	}
	st.Nodes.Insert(node("n1 172.18.0.1"), node("n2 172.18.0.2"))
	st.Devices.Insert(device("eth0", "172.18.0.1/24"))
	for i := range 20 {
		st.Services.Insert(service("s" + string(rune('a'+i)) + " lb=172.18.0." + string(rune('1'+i/10)) + string(rune('0'+i%10))))
	}
	waiting := service("waiting lb=192.0.2.1")
	waiting.Ingress, waiting.Allocation = nil, state.Allocation{Reason: "Exhausted", Message: "no address"}
	st.Services.Insert(waiting)
	p := &peers{alive: map[string]bool{}, changed: make(chan struct{})}
	programmed := make(chan struct{})
	l := NewLoop(Config{Self: "n1", State: st, Enabled: true, Peers: p, After: []<-chan struct{}{programmed}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	time.Sleep(20 * time.Millisecond)
	if n := st.Announcements.Snapshot().Len(); n != 0 {
		t.Fatalf("%d addresses announced before the services are in the kernel", n)
	}
	close(programmed)
	eventually(t, "own share", func() bool { return st.Announcements.Snapshot().Len() > 0 })
	share := st.Announcements.Snapshot().Len()
	if share == 20 || closed(st.Announcements.Initialized()) || !slices.Equal(p.set, []string{"n2"}) {
		t.Errorf("%d of 20 announced, complete %t, asks %v", share, closed(st.Announcements.Initialized()), p.set)
	}
	problems := slices.Collect(st.Problems.Snapshot().All())
	if len(problems) != 1 || problems[0].Subject != "service x/waiting" {
		t.Errorf("problems %v", problems)
	}
	p.say("n2", false)
	eventually(t, "all of them", func() bool { return st.Announcements.Snapshot().Len() == 20 && closed(st.Announcements.Initialized()) })
	p.say("n2", true)
	eventually(t, "own share again", func() bool { return st.Announcements.Snapshot().Len() == share })
	waiting.Allocation.Done = true
	st.Services.Insert(waiting)
	eventually(t, "no problem any more", func() bool { return st.Problems.Snapshot().Len() == 0 })
}

func TestLoopTurnedOff(t *testing.T) {
	st := state.New()
	for _, done := range []func(){
		st.Nodes.Register("test"), st.Services.Register("test"), st.EndpointSlices.Register("test"), st.Devices.Register("test"),
	} {
		done()
	}
	st.Nodes.Insert(node("n1 172.18.0.1"))
	st.Devices.Insert(device("eth0", "172.18.0.1/24"))
	st.Services.Insert(service("a lb=172.18.0.9"))
	l := NewLoop(Config{Self: "n1", State: st, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	eventually(t, "complete, so that what was announced is withdrawn", func() bool { return closed(st.Announcements.Initialized()) })
	if n := st.Announcements.Snapshot().Len(); n != 0 {
		t.Errorf("%d addresses announced", n)
	}
}
