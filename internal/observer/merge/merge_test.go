package merge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestNumber: how many flows, of all nodes together, and which.
func TestNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newObserved("a"), newObserved("b"), newObserved("c")
		for i := range 30 { // c has seen the newest ten
			[]*observed{a, b, c}[i/10].see(time.Duration(100-i) * time.Minute)
		}
		names := func(from, to int) (out []string) {
			for i := from; i < to; i++ {
				out = append(out, fmt.Sprintf("%c-%d", 'a'+i/10, i%10))
			}
			return out
		}
		since := timestamppb.New(time.Now().Add(-85 * time.Minute)) // that of b-5
		for _, tc := range []struct {
			name string
			q    *observerpb.GetFlowsRequest
			want []string
		}{
			{"everything", &observerpb.GetFlowsRequest{}, names(0, 30)},
			{"all, in Hubble's words", &observerpb.GetFlowsRequest{Number: math.MaxUint64}, names(0, 30)},
			{"the last", &observerpb.GetFlowsRequest{Number: 1}, names(29, 30)},
			{"the last of two nodes", &observerpb.GetFlowsRequest{Number: 13}, names(17, 30)},
			{"more than there are", &observerpb.GetFlowsRequest{Number: 1000}, names(0, 30)},
			{"the first", &observerpb.GetFlowsRequest{Number: 12, First: true}, names(0, 12)},
			{"since", &observerpb.GetFlowsRequest{Since: since}, names(15, 30)},
			{"the first since", &observerpb.GetFlowsRequest{Since: since, Number: 7}, names(15, 22)},
		} {
			var got client
			if err := mergeOf(tc.q, a, b, c).Run(t.Context(), got.take); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			if !slices.Equal(got.names(), tc.want) {
				t.Errorf("%s: %v, want %v", tc.name, got.names(), tc.want)
			}
			if want := []string{"NODE_CONNECTED [a b c]"}; !slices.Equal(got.said(), want) {
				t.Errorf("%s: events %q, want %q", tc.name, got.said(), want)
			}
		}
		for _, tc := range []struct { // what was is followed by what comes
			name string
			q    *observerpb.GetFlowsRequest
			want []string
		}{
			{"from now on", &observerpb.GetFlowsRequest{}, nil},
			{"the last of all", &observerpb.GetFlowsRequest{Number: 13}, names(17, 30)},
			{"since", &observerpb.GetFlowsRequest{Since: since, Number: 3}, names(15, 30)},
		} {
			tc.q.Follow = true
			ctx, cancel := context.WithCancel(t.Context())
			var got client
			done := make(chan error, 1)
			go func() { done <- mergeOf(tc.q, a, b, c).Run(ctx, got.take) }()
			time.Sleep(time.Second)
			if !slices.Equal(got.names(), tc.want) {
				t.Errorf("follow, %s: %v, want %v", tc.name, got.names(), tc.want)
			}
			a.see(0)
			time.Sleep(time.Second)
			if all := got.names(); len(all) != len(tc.want)+1 || !strings.HasPrefix(all[len(all)-1], "a-") {
				t.Errorf("follow, %s: then %v", tc.name, all)
			}
			a.change(func() { a.flows = a.flows[:10] })
			if cancel(); !errors.Is(<-done, context.Canceled) {
				t.Error("no end")
			}
		}
	})
}

// TestTooMany: to find the last ones no more than a bound is kept.
func TestTooMany(t *testing.T) {
	n := numberOf(&observerpb.GetFlowsRequest{Number: 1 << 40})
	r := &Response{Time: timestamppb.Now(), ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: &flowpb.Flow{}}}
	for i := range keepMost + 1 {
		if _, _, err := n.take(r, time.Now()); (err != nil) != (i == keepMost) {
			t.Fatalf("after %d: %v", i, err)
		}
	}
}

// TestNodes: who answers, fails, comes back, comes and goes is told, in the order in which it happens, and to who follows a node is asked again.
func TestNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c, d := newObserved("a"), newObserved("b"), newObserved("c"), newObserved("d")
		b.kill(errDown)
		c.still = true
		m := mergeOf(&observerpb.GetFlowsRequest{Follow: true}, a, b, c)
		ctx, cancel := context.WithCancel(t.Context())
		var got client
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, got.take) }()
		want := func(after time.Duration, events ...string) {
			t.Helper()
			time.Sleep(after)
			if said := got.said(); !slices.Equal(said, events) {
				t.Fatalf("events %q, want %q", said, events)
			}
			got.mu.Lock()
			defer got.mu.Unlock()
			got.events = nil
		}
		want(time.Second) // c is waited for
		want(2*time.Second, "NODE_CONNECTED [a]", "NODE_UNAVAILABLE [b]: connection refused", "NODE_UNAVAILABLE [c]: no answer in 2s")
		b.see(0)
		b.kill(nil)
		want(6*time.Second, "NODE_CONNECTED [b]")
		if !slices.Equal(got.names(), []string{"b-0"}) {
			t.Errorf("%v: what happened since the merge began is missing", got.names())
		}
		m.Join(d.source())
		want(time.Second, "NODE_CONNECTED [d]")
		d.see(0)
		a.kill(errors.New("error reading from server: EOF"))
		want(time.Second, "NODE_UNAVAILABLE [a]: error reading from server: EOF")
		m.Leave("d")
		want(time.Second, "NODE_GONE [d]")
		m.Join(d.source())
		want(time.Second, "NODE_CONNECTED [d]")
		m.Leave("a")
		a.kill(nil)
		want(10*time.Second, "NODE_GONE [a]")
		if !slices.Equal(got.names(), []string{"b-0", "d-0"}) {
			t.Errorf("%v after the others have come and gone", got.names())
		}
		if cancel(); !errors.Is(<-done, context.Canceled) {
			t.Error("no end")
		}
	})
}

// TestFailures: how a merge ends that nobody, or not everybody, answers.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, follow := range []bool{false, true} {
			q := &observerpb.GetFlowsRequest{Follow: follow}
			a, b, mute := newObserved("a"), newObserved("b"), newObserved("m")
			a.kill(errDown)
			b.kill(&Refusal{errors.New("whitelist[0]: nonsense")})
			mute.still = true
			var got client
			var refusal *Refusal
			if err := mergeOf(q, a, b).Run(t.Context(), got.take); !errors.As(err, &refusal) || err.Error() != "whitelist[0]: nonsense" || len(got.said()) > 0 {
				t.Errorf("refused: %v, %q", err, got.said())
			}
			var nobody *Unreachable
			begin := time.Now()
			err := mergeOf(q, mute, a).Run(t.Context(), got.take)
			if !errors.As(err, &nobody) || err.Error() != "no node answers: a: connection refused; m: no answer in 10s" || time.Since(begin) != 10*time.Second {
				t.Errorf("nobody: %v after %v", err, time.Since(begin))
			}
			if err := mergeOf(q).Run(t.Context(), got.take); err == nil || err.Error() != "there is no node to ask" {
				t.Errorf("no nodes: %v", err)
			}
			enough := errors.New("enough")
			if err := mergeOf(q, newObserved("c")).Run(t.Context(), func(*Response) error { return enough }); !errors.Is(err, enough) {
				t.Errorf("a client that has gone: %v", err)
			}
		}
		a, b := newObserved("a"), newObserved("b")
		a.see(0)
		b.see(0)
		half := Source{Node: "b", Ask: func(ctx context.Context, q *observerpb.GetFlowsRequest, hear func(*Response) error) error {
			if err := hear(b.flows[0]); err != nil {
				return err
			}
			return errDown
		}}
		m := mergeOf(&observerpb.GetFlowsRequest{}, a)
		m.Join(half)
		var got client
		err := m.Run(t.Context(), got.take)
		if want := []string{"NODE_CONNECTED [a]", "NODE_ERROR [b]: connection refused"}; err != nil || !slices.Equal(got.said(), want) || len(got.flows) != 2 {
			t.Errorf("in the middle of an answer: %v, %q, %v", err, got.said(), got.names())
		}
	})
}

// TestBlockedClient: while a client takes nothing no more than a bound is read of each node, and afterwards all of it comes, in order.
func TestBlockedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 5000
		nodes := []*observed{newObserved("a"), newObserved("b"), newObserved("c")}
		got := client{block: make(chan struct{})}
		for i := range each * len(nodes) {
			nodes[i%len(nodes)].see(time.Hour - time.Duration(i)*time.Millisecond)
		}
		done := make(chan error, 1)
		go func() { done <- mergeOf(&observerpb.GetFlowsRequest{}, nodes...).Run(t.Context(), got.take) }()
		time.Sleep(time.Hour)
		for _, n := range nodes {
			n.mu.Lock()
			if n.heard > ahead+2 { // and the first beat, and what is being told
				t.Errorf("%d answers of %s were read", n.heard, n.name)
			}
			n.mu.Unlock()
		}
		close(got.block)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(got.flows) != each*len(nodes) || !slices.IsSortedFunc(got.flows, byTime) {
			t.Errorf("%d flows", len(got.flows))
		}
	})
}

func byTime(a, b *Response) int { return a.Time.AsTime().Compare(b.Time.AsTime()) }

// TestSlowClock: a node whose clock is slow does not make the others wait, and loses nothing.
func TestSlowClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newObserved("a"), newObserved("b")
		b.behind = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got client
		done := make(chan error, 1)
		go func() { done <- mergeOf(&observerpb.GetFlowsRequest{Follow: true}, a, b).Run(ctx, got.take) }()
		time.Sleep(time.Second)
		for i := range 100 {
			a.see(0)
			if i%10 == 0 {
				b.see(0)
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(Patience)
		if n := len(got.names()); n != 110 {
			t.Errorf("%d flows of 110", n)
		}
		cancel()
		<-done
	})
}

// TestNothingLostNothingDoubled: nodes that fail and come back while flows are followed by a client that is slow at times, in random order.
func TestNothingLostNothingDoubled(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			nodes := make([]*observed, 1+r.IntN(5))
			for i := range nodes {
				nodes[i] = newObserved(fmt.Sprint("n", i))
				for range r.IntN(20) {
					nodes[i].see(time.Duration(r.IntN(3000)) * time.Millisecond)
				}
				slices.SortFunc(nodes[i].flows, byTime)
				nodes[i].bare = seed%3 == 0
			}
			faulty := seed%2 == 1
			q := &observerpb.GetFlowsRequest{Follow: true, Since: timestamppb.New(time.Now().Add(-time.Minute))}
			ctx, cancel := context.WithCancel(t.Context())
			var got client
			slow := rand.New(rand.NewPCG(seed, 2))
			done := make(chan error, 1)
			go func() {
				done <- mergeOf(q, nodes...).Run(ctx, func(r *Response) error {
					if slow.IntN(30) == 0 {
						time.Sleep(time.Duration(slow.IntN(300)) * time.Millisecond)
					}
					return got.take(r)
				})
			}()
			time.Sleep(time.Second)
			for range 1000 {
				n := nodes[r.IntN(len(nodes))]
				switch what := r.IntN(100); {
				case what < 2 && faulty:
					n.kill(errDown)
				case what < 6 && faulty:
					n.kill(nil)
				case what < 10:
					time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
				default:
					n.see(time.Duration(r.IntN(100)) * time.Millisecond) // a little out of order
				}
			}
			for _, n := range nodes {
				n.kill(nil)
			}
			time.Sleep(5 * time.Minute)
			cancel()
			<-done
			count := map[string]int{}
			for _, f := range got.flows {
				count[fmt.Sprint(f.NodeName, f.Time.AsTime().UnixNano())]++
			}
			all := 0
			for _, n := range nodes {
				want := map[string]int{}
				for _, f := range n.flows {
					want[fmt.Sprint(f.NodeName, f.Time.AsTime().UnixNano())]++
				}
				for k, times := range want {
					if count[k] != times {
						t.Errorf("seed %d: %s told %d times, want %d", seed, k, count[k], times)
					}
				}
				all += len(n.flows)
			}
			if all != len(got.flows) {
				t.Errorf("seed %d: %d of %d", seed, len(got.flows), all)
			}
			if faulty {
				return
			}
			var last time.Time
			for _, f := range got.flows {
				if f.Time.AsTime().Before(last.Add(-100 * time.Millisecond)) {
					t.Errorf("seed %d: %v after %v", seed, f.Time.AsTime(), last)
				}
				last = f.Time.AsTime()
			}
		})
	}
}
