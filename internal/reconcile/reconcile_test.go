package reconcile

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/table"
)

type row struct {
	Key, Value string
	Status
}

func (r row) WithStatus(s Status) row { r.Status = s; return r }

// kernel is an Ops that keeps rows in memory and refuses one call in failOneIn.
type kernel struct {
	mu        sync.Mutex
	rows      map[string]string
	failOneIn int
	rnd       *rand.Rand
	updates   int
	pruned    int
}

var errRefused = errors.New("refused")

func (k *kernel) refuse() bool { return k.failOneIn > 0 && k.rnd.IntN(k.failOneIn) == 0 }

func (k *kernel) Update(_ context.Context, r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.updates++
	if k.refuse() || r.Value == "bad" {
		return errRefused
	}
	k.rows[r.Key] = r.Value
	return nil
}

func (k *kernel) Delete(_ context.Context, r row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse() {
		return errRefused
	}
	delete(k.rows, r.Key)
	return nil
}

func (k *kernel) Prune(_ context.Context, rows iter.Seq[row]) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pruned++
	want := map[string]string{}
	for r := range rows {
		want[r.Key] = r.Value
	}
	var differences []string
	for key := range k.rows {
		if _, ok := want[key]; !ok {
			differences = append(differences, "stray "+key)
			delete(k.rows, key)
		}
	}
	return differences, nil
}

func (k *kernel) snapshot() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]string{}
	for key, v := range k.rows {
		out[key] = v
	}
	return out
}

func start(t *testing.T, k *kernel) (*table.Table[row], *Reconciler[row]) {
	t.Helper()
	rows := table.New("rows", func(r row) string { return r.Key })
	r := New(Config[row]{
		Table: rows, Ops: k, Log: slog.New(slog.DiscardHandler),
		RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond, PruneEvery: 20 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return rows, r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not reached: %s", what)
}

func TestConvergesWithFailingKernel(t *testing.T) {
	k := &kernel{rows: map[string]string{}, failOneIn: 4, rnd: rand.New(rand.NewPCG(1, 2))}
	rows, r := start(t, k)
	want := map[string]string{}
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 2000 {
		key := fmt.Sprint("k", rnd.IntN(50))
		if rnd.IntN(4) == 0 {
			rows.Delete(key)
			delete(want, key)
		} else {
			rows.Insert(row{Key: key, Value: fmt.Sprint(i)})
			want[key] = fmt.Sprint(i)
		}
	}
	eventually(t, "kernel equals table, every row done", func() bool {
		got := k.snapshot()
		if fmt.Sprint(got) != fmt.Sprint(want) || r.Health().Failing != 0 {
			return false
		}
		for one := range rows.Snapshot().All() {
			if one.Kind != Done {
				return false
			}
		}
		return true
	})
}

func TestPruneWaitsForEverySource(t *testing.T) {
	k := &kernel{rows: map[string]string{"from before": "x"}}
	rows, r := start(t, k)
	done := rows.Register("source")
	rows.Insert(row{Key: "new", Value: "1"})
	eventually(t, "row applied", func() bool { return k.snapshot()["new"] == "1" })
	if k.snapshot()["from before"] != "x" {
		t.Fatal("pruned before the source had synced")
	}
	done()
	<-r.Pruned()
	if _, there := k.snapshot()["from before"]; there {
		t.Error("stray row was not pruned")
	}
	if r.Health().Drift != 0 {
		t.Error("what was left from before counts as drift")
	}
	k.mu.Lock()
	k.rows["injected"] = "x"
	k.mu.Unlock()
	eventually(t, "drift found and counted", func() bool { return r.Health().Drift == 1 })
}

func TestFailureIsInTheRowAndHoldsUpNobody(t *testing.T) {
	k := &kernel{rows: map[string]string{}}
	rows, r := start(t, k)
	rows.Insert(row{Key: "a", Value: "bad"}, row{Key: "b", Value: "good"})
	eventually(t, "b applied", func() bool { return k.snapshot()["b"] == "good" })
	eventually(t, "a says why", func() bool {
		a, _, _ := rows.Snapshot().Get("a")
		return a.Kind == Error && a.Err == "refused"
	})
	if h := r.Health(); h.Failing != 1 || h.LastError != "a: refused" {
		t.Errorf("health %+v", h)
	}
	rows.Insert(row{Key: "a", Value: "mended"})
	eventually(t, "a applied", func() bool {
		a, _, _ := rows.Snapshot().Get("a")
		return k.snapshot()["a"] == "mended" && a.Kind == Done && r.Health().Failing == 0
	})
}

func TestOwnStatusWriteIsNotAChange(t *testing.T) {
	k := &kernel{rows: map[string]string{}}
	rows, _ := start(t, k)
	rows.Insert(row{Key: "a", Value: "1"})
	eventually(t, "done", func() bool { a, _, _ := rows.Snapshot().Get("a"); return a.Kind == Done })
	time.Sleep(20 * time.Millisecond)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.updates != 1 {
		t.Errorf("%d updates for one change", k.updates)
	}
}
