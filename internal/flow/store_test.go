package flow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Unix(1_000_000, 0)

// flows returns n flows a second apart, from second first on.
func flows(first, n int) []flow.Flow {
	out := make([]flow.Flow, n)
	for i := range out {
		out[i] = flow.Flow{Event: flow.Event{Kind: flow.New, Time: epoch.Add(time.Duration(first+i) * time.Second)}}
	}
	return out
}

// numbers reads what there is without waiting.
func numbers(c *flow.Cursor) (out []uint64, missed uint64) {
	for {
		f, m, ok := c.Try()
		if !ok {
			return out, missed
		}
		out, missed = append(out, f.Number), missed+m
	}
}

func expect(t *testing.T, what string, got []uint64, first, last uint64) {
	t.Helper()
	var want []uint64
	for n := first; n <= last; n++ {
		want = append(want, n)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: flows %v, want %d to %d", what, got, first, last)
	}
}

func TestStoreRemembersTheLast(t *testing.T) {
	s := flow.NewStore(100)
	for _, c := range []*flow.Cursor{s.Oldest(), s.Last(5), s.Since(epoch)} {
		if _, _, ok := c.Try(); ok {
			t.Error("an empty store has a flow")
		}
	}
	early := s.Oldest()
	for i := range 25 {
		s.Append(epoch, flows(i*10, 10))
	}
	check := func(what string, c *flow.Cursor, first, last, missed uint64) {
		t.Helper()
		got, m := numbers(c)
		expect(t, what, got, first, last)
		if m != missed {
			t.Errorf("%s: missed %d, want %d", what, m, missed)
		}
	}
	check("a cursor from before the first", early, 151, 250, 150)
	check("oldest", s.Oldest(), 151, 250, 0)
	check("last 7", s.Last(7), 244, 250, 0)
	check("last 0", s.Last(0), 1, 0, 0)
	check("last of all", s.Last(1000), 151, 250, 0)
	check("since a time that is kept", s.Since(epoch.Add(200*time.Second)), 200, 250, 0) // flow 201, and what may be out of order
	check("since before everything", s.Since(time.Time{}), 151, 250, 0)
	check("since the future", s.Since(epoch.Add(time.Hour)), 1, 0, 0)
	var back []uint64
	for f := range s.Backward() {
		back = append([]uint64{f.Number}, back...)
	}
	expect(t, "backward", back, 151, 250)
	for f := range s.Backward() {
		if f.Number != 250 {
			t.Errorf("the newest is %d", f.Number)
		}
		break
	}
}

func TestStoreCounts(t *testing.T) {
	s := flow.NewStore(8)
	now := epoch
	if c := s.Counts(now); c.Seen != 0 || c.Kept != 0 || c.Max != 8 || c.PerSecond != 0 {
		t.Errorf("counts of an empty store: %+v", c)
	}
	lost := flow.Flow{Event: flow.Event{Kind: flow.Lost, LostKind: flow.New, LostRecords: 5, Sent: flow.Traffic{Packets: 6, Bytes: 700}}}
	denied := flow.Event{Kind: flow.Denied, Hook: flow.ToPod, Reason: verdict.PolicyIngress, Sent: flow.Traffic{Packets: 2, Bytes: 120}}
	for range 30 {
		s.Append(now, append(flows(0, 9), flow.Flow{Event: denied}))
		now = now.Add(time.Second)
	}
	s.Append(now, []flow.Flow{lost, lost})
	c := s.Counts(now)
	if c.Seen != 300 || c.ByKind[flow.New] != 270 || c.ByKind[flow.Denied] != 30 || c.Kept != 8 || c.Max != 8 {
		t.Errorf("counts %+v", c)
	}
	if got := c.Stopped[flow.Stop{Reason: verdict.PolicyIngress, Way: policy.Ingress}]; len(c.Stopped) != 1 || got != (flow.Traffic{Packets: 60, Bytes: 3600}) {
		t.Errorf("stopped %+v", c.Stopped)
	}
	if c.PerSecond != 10 {
		t.Errorf("%v flows a second, want 10", c.PerSecond)
	}
	if c.LostRecords() != 10 || c.Lost[flow.New] != (flow.LostCount{Records: 10, Traffic: flow.Traffic{Packets: 12, Bytes: 1400}}) {
		t.Errorf("lost %+v", c.Lost)
	}
	if c := s.Counts(now.Add(5 * time.Minute)); c.PerSecond != 0 {
		t.Errorf("%v flows a second after five silent minutes", c.PerSecond)
	}
}

// Readers that wait, fall behind and leave, and a writer that never waits for any of them.
func TestStoreFollowed(t *testing.T) {
	const total, readers = 20000, 8
	s := flow.NewStore(500)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var group sync.WaitGroup
	for r := range readers {
		c := s.Oldest()
		group.Go(func() {
			var read, lost, last uint64
			for read+lost < total {
				f, missed, err := c.Next(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				if lost += missed; f.Number != last+missed+1 {
					t.Errorf("flow %d after %d, missed %d", f.Number, last, missed)
					return
				}
				if f.Time != epoch.Add(time.Duration(f.Number-1)*time.Second) {
					t.Errorf("flow %d is another one", f.Number)
					return
				}
				last = f.Number
				if read++; r%2 == 1 && read%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	// One that waits for what never comes, and one that never reads.
	waiting := make(chan error, 1)
	idle := s.Last(0)
	go func() {
		c := s.Last(0)
		for {
			if _, _, err := c.Next(ctx); err != nil {
				waiting <- err
				return
			}
		}
	}()
	for i := 0; i < total; i += 10 {
		s.Append(epoch, flows(i, 10))
	}
	group.Wait()
	if f, missed, err := idle.Next(ctx); err != nil || f.Number != total-499 || missed != total-500 {
		t.Errorf("who did not read got flow %d after missing %d: %v", f.Number, missed, err)
	}
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("who waits was told %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	s := flow.NewStore(8192)
	batch := flows(0, 1000)
	b.ReportAllocs()
	for b.Loop() {
		s.Append(epoch, batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/flow")
}
