package table

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type person struct {
	Name  string
	Likes []string
}

var byLikes = Index[person]{Name: "likes", Keys: func(p person) []string { return p.Likes }}

func newPeople() *Table[person] {
	return New("people", func(p person) string { return p.Name }, byLikes)
}

func TestSnapshotDoesNotChange(t *testing.T) {
	people := newPeople()
	people.Insert(person{"ada", []string{"tea"}})
	before := people.Snapshot()
	people.Insert(person{"ada", []string{"coffee"}}, person{Name: "bob"})
	people.Delete("ada")

	if row, _, ok := before.Get("ada"); !ok || row.Likes[0] != "tea" {
		t.Errorf("snapshot changed: ada = %v, %v", row, ok)
	}
	if before.Len() != 1 || people.Snapshot().Len() != 1 {
		t.Errorf("rows before %d, after %d, want 1 and 1", before.Len(), people.Snapshot().Len())
	}
	select {
	case <-before.Changed():
	default:
		t.Error("Changed is not closed after a write")
	}
}

func TestIndexFollowsRow(t *testing.T) {
	people := newPeople()
	people.Insert(person{"ada", []string{"tea", "maths"}}, person{"bob", []string{"tea"}}, person{"eve", []string{"te"}})
	people.Insert(person{"bob", []string{"beer"}})
	got := slices.Collect(people.Snapshot().By(byLikes, "tea"))
	if want := []person{{"ada", []string{"tea", "maths"}}}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	people.Delete("ada")
	if got := slices.Collect(people.Snapshot().By(byLikes, "maths")); len(got) != 0 {
		t.Errorf("deleted row still found by index: %v", got)
	}
}

func TestRowsNearAKey(t *testing.T) {
	people := newPeople()
	people.Insert(person{Name: "a/ada"}, person{Name: "a/bob"}, person{Name: "a0"}, person{Name: "ab/eve"})
	names := func(rows iter.Seq[person]) (out []string) {
		for p := range rows {
			out = append(out, p.Name)
		}
		return out
	}
	for _, c := range []struct{ prefix, want string }{{"a/", "[a/ada a/bob]"}, {"ab", "[ab/eve]"}, {"b", "[]"}, {"", "[a/ada a/bob a0 ab/eve]"}} {
		if got := fmt.Sprint(names(people.Snapshot().WithPrefix(c.prefix))); got != c.want {
			t.Errorf("with prefix %q: %s, want %s", c.prefix, got, c.want)
		}
	}
	people.Write(func(tx *Txn[person]) {
		for _, c := range []struct{ key, want string }{{"a/bob", "[a/ada a0]"}, {"a/bo", "[a/ada a/bob]"}, {"a", "[a/ada]"}, {"z", "[ab/eve]"}, {"a/ada", "[a/bob]"}} {
			if got := fmt.Sprint(names(tx.Beside(c.key))); got != c.want {
				t.Errorf("beside %q: %s, want %s", c.key, got, c.want)
			}
		}
		for p := range tx.Beside("a/bob") {
			if p.Name != "a/ada" {
				t.Errorf("first %q", p.Name)
			}
			break
		}
	})
}

func TestInitializedNeedsEverySource(t *testing.T) {
	people := newPeople()
	first, second := people.Register("first"), people.Register("second")
	first()
	first()
	select {
	case <-people.Initialized():
		t.Fatal("initialised while a source is pending")
	default:
	}
	if got := people.Pending(); !slices.Equal(got, []string{"second"}) {
		t.Errorf("pending %v", got)
	}
	second()
	<-people.Initialized()
}

func TestCompareAndSwap(t *testing.T) {
	people := newPeople()
	people.Insert(person{Name: "ada"})
	_, rev, _ := people.Snapshot().Get("ada")
	people.Insert(person{"ada", []string{"newer"}})
	if _, swapped := people.CompareAndSwap(person{"ada", []string{"stale"}}, rev); swapped {
		t.Error("a newer row was overwritten")
	}
	_, rev, _ = people.Snapshot().Get("ada")
	now, swapped := people.CompareAndSwap(person{"ada", []string{"swapped"}}, rev)
	if row, at, _ := people.Snapshot().Get("ada"); !swapped || at != now || row.Likes[0] != "swapped" {
		t.Errorf("swapped %v, revision %d, row %v at %d", swapped, now, row, at)
	}
}

// A reader that follows Changes always ends up with the table's content, whatever is written in between.
func TestChangesRebuildTable(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		people := newPeople()
		feeds := []*Changes[person]{people.Changes(), people.Changes()}
		copies := []map[string]person{{}, {}}
		for range 200 {
			people.Write(func(tx *Txn[person]) {
				for range rnd.IntN(4) {
					name := fmt.Sprint("p", rnd.IntN(12))
					if rnd.IntN(3) == 0 {
						tx.Delete(name)
					} else {
						tx.Insert(person{name, []string{fmt.Sprint(rnd.IntN(5))}})
					}
				}
			})
			if i := rnd.IntN(4); i < len(feeds) {
				follow(t, feeds[i], copies[i])
			}
		}
		for i, feed := range feeds {
			follow(t, feed, copies[i])
			want := map[string]person{}
			for row := range people.Snapshot().All() {
				want[row.Name] = row
			}
			if !cmp.Equal(want, copies[i]) {
				t.Fatalf("seed %d feed %d: %s", seed, i, cmp.Diff(want, copies[i]))
			}
			feed.Close()
		}
		if n := people.current.dead.Len(); n != 0 {
			t.Fatalf("seed %d: %d deleted rows kept without a reader", seed, n)
		}
		if rows, revs := people.current.rows.Len(), people.current.byRev.Len(); rows != revs {
			t.Fatalf("seed %d: %d rows but %d revisions", seed, rows, revs)
		}
	}
}

func follow(t *testing.T, feed *Changes[person], into map[string]person) {
	t.Helper()
	var last Revision
	changes, _ := feed.Next()
	for _, c := range changes {
		if c.Revision <= last {
			t.Fatalf("revision %d after %d", c.Revision, last)
		}
		last = c.Revision
		if c.Deleted {
			delete(into, c.Row.Name)
		} else {
			into[c.Row.Name] = c.Row
		}
	}
}

func TestAllInTransactionAllowsWrites(t *testing.T) {
	people := newPeople()
	for i := range 100 {
		people.Insert(person{Name: fmt.Sprintf("p%02d", i)})
	}
	seen := map[string]bool{}
	people.Write(func(tx *Txn[person]) {
		tx.All(func(p person) bool {
			seen[p.Name] = true
			tx.Delete(p.Name)
			tx.Insert(person{Name: "x" + p.Name})
			return true
		})
	})
	if len(seen) != 100 || people.Snapshot().Len() != 100 {
		t.Errorf("saw %d, left %d: %v", len(seen), people.Snapshot().Len(), slices.Sorted(maps.Keys(seen))[:3])
	}
}

func BenchmarkInsert10kRows(b *testing.B) {
	for b.Loop() {
		people := newPeople()
		people.Write(func(tx *Txn[person]) {
			for i := range 10000 {
				tx.Insert(person{fmt.Sprint("p", i), []string{"tea"}})
			}
		})
	}
}

// Readers of a snapshot see it as it was, whatever is written meanwhile and however often a row changes.
func TestReadersAreNotDisturbed(t *testing.T) {
	people := newPeople()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := people.Snapshot()
				all, found := 0, 0
				for p := range s.All() {
					if row, rev, ok := s.Get(p.Name); !ok || row.Likes[0] != p.Likes[0] || rev > s.Revision() {
						t.Errorf("%s: %v at %d of %d, %t", p.Name, row, rev, s.Revision(), ok)
						return
					}
					all++
				}
				for _, drink := range []string{"tea", "coffee"} {
					for range s.By(byLikes, drink) {
						found++
					}
				}
				if all != s.Len() || found != all {
					t.Errorf("%d rows, %d by the index, of %d", all, found, s.Len())
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		people.Write(func(tx *Txn[person]) {
			for range r.IntN(4) {
				name := fmt.Sprint("p", r.IntN(300))
				if r.IntN(3) == 0 {
					tx.Delete(name)
				} else {
					tx.Insert(person{name, []string{[]string{"tea", "coffee"}[r.IntN(2)]}})
				}
			}
		})
	}
	close(stop)
	readers.Wait()
}

// What one write costs in a large table of which somebody holds a snapshot.
func BenchmarkWriteOneOf100kRows(b *testing.B) {
	people := newPeople()
	people.Write(func(tx *Txn[person]) {
		for i := range 100_000 {
			tx.Insert(person{fmt.Sprint("p", i), []string{fmt.Sprint("likes", i%1000)}})
		}
	})
	for i := 0; b.Loop(); i++ {
		_ = people.Snapshot()
		people.Insert(person{fmt.Sprint("p", i%100_000), []string{"tea"}})
	}
}
