package departure

import (
	"testing"
	"time"

	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/state"
)

// SVC-5, as a table: what becomes of a backend that is in no slot any more.
func TestJudge(t *testing.T) {
	now := time.Unix(1000, 0)
	later := now.Add(time.Second)
	tcp := func(w wait) wait { w.Departed = sync.Departed{Protocol: state.TCP, Pod: "default/web-0"}; return w }
	udp := func(w wait) wait { w.Departed = sync.Departed{Protocol: state.UDP, Pod: "default/dns-0"}; return w }
	nameless := tcp(wait{})
	nameless.Pod = ""
	for _, c := range []struct {
		name  string
		wait  wait
		facts facts
		want  decision
	}{
		{"TCP without connections", tcp(wait{next: later}), facts{asks: true}, release},
		{"TCP, terminating", tcp(wait{}), facts{sockets: true, listed: true, asks: true}, keep},
		{"TCP by packets, terminating", tcp(wait{}), facts{tracked: true, listed: true, asks: true}, keep},
		{"TCP, another label, this node", tcp(wait{}), facts{sockets: true, local: attached, asks: true}, keep},
		{"TCP, detached here", tcp(wait{}), facts{sockets: true, local: detached, asks: true}, closeSockets},
		{"TCP, not listed", tcp(wait{}), facts{sockets: true, asks: true}, ask},
		{"TCP, asking", tcp(wait{asking: true}), facts{sockets: true, asks: true}, keep},
		{"TCP, alive a moment ago", tcp(wait{next: later}), facts{sockets: true, asks: true}, keep},
		{"TCP, gone", tcp(wait{gone: true}), facts{sockets: true, asks: true}, closeSockets},
		{"TCP by packets, gone", tcp(wait{gone: true}), facts{tracked: true, asks: true}, closeSockets},
		{"TCP, gone, closing failed", tcp(wait{gone: true, next: later}), facts{sockets: true, asks: true}, keep},
		{"TCP, nobody to ask", tcp(wait{}), facts{sockets: true}, closeSockets},
		{"TCP, no pod", nameless, facts{sockets: true, asks: true}, closeSockets},
		{"TCP, no pod, listed", nameless, facts{sockets: true, listed: true, asks: true}, keep},
		{"UDP without sockets", udp(wait{}), facts{tracked: true, listed: true, asks: true}, release},
		{"UDP with sockets", udp(wait{}), facts{sockets: true, listed: true, local: attached, asks: true}, closeAgain},
		{"UDP, closed once", udp(wait{rounds: 1, next: later}), facts{sockets: true}, keep},
		{"UDP, closed once, a second ago", udp(wait{rounds: 1, next: now}), facts{sockets: true}, closeSockets},
	} {
		if got := c.wait.judge(c.facts, now); got != c.want {
			t.Errorf("%s: decision %d, want %d", c.name, got, c.want)
		}
	}
}

func TestDelayGrowsToHalfAMinute(t *testing.T) {
	now := time.Unix(1000, 0)
	w := &wait{}
	var got []time.Duration
	for range 7 {
		w.delay(now)
		got = append(got, w.next.Sub(now)/time.Second)
	}
	want := []time.Duration{1, 2, 4, 8, 16, 30, 30}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("delays %v s, want %v", got, want)
		}
	}
}
