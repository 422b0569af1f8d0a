package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

func front(i int, backends ...int) state.Frontend {
	f := state.Frontend{
		Address: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: state.TCP, Type: state.ClusterIP,
		Service: state.ServiceName{Namespace: "default", Name: fmt.Sprint("svc", i)},
	}
	for _, b := range backends {
		f.Backends = append(f.Backends, state.Backend{Address: netip.AddrFrom4([4]byte{10, 244, byte(b >> 8), byte(b)}), Port: 8080})
	}
	return f
}

func TestWritesOfOneChange(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to []int
		want     []string
	}{
		{"first", nil, []int{1}, []string{"load", "backend 10.244.0.1:8080", "slot 0", "service 10.96.0.1:80 count 1"}},
		{"one more", []int{1, 2}, []int{1, 2, 3}, []string{"load", "backend 10.244.0.3:8080", "slot 2", "service 10.96.0.1:80 count 3"}},
		{"one less, the last", []int{1, 2, 3}, []int{1, 2},
			[]string{"service 10.96.0.1:80 count 2", "delete slot 2", "backend 10.244.0.3:8080 leaving"}},
		{"one less, in the middle", []int{1, 2, 3}, []int{1, 3},
			[]string{"service 10.96.0.1:80 count 2", "slot 1", "delete slot 2", "backend 10.244.0.2:8080 leaving"}},
		{"one replaced", []int{1, 2, 3}, []int{1, 4, 3}, []string{"load", "backend 10.244.0.4:8080", "slot 1", "backend 10.244.0.2:8080 leaving"}},
		{"none left", []int{1}, nil, []string{"service 10.96.0.1:80 count 0", "delete slot 0", "backend 10.244.0.1:8080 leaving"}},
		{"nothing", []int{1, 2}, []int{2, 1}, nil},
	} {
		k := newKernel(t)
		s := newFrontends(t, k)
		ctx := context.Background()
		if err := s.Update(ctx, front(1, c.from...)); err != nil {
			t.Fatal(err)
		}
		k.writes = nil
		if err := s.Update(ctx, front(1, c.to...)); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(c.want, k.writes); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if diff := gocmp.Diff(wanted(front(1, c.to...)), content(t, k)); diff != "" {
			t.Errorf("%s: content (-want +got):\n%s", c.name, diff)
		}
	}
}

func newFrontends(t testing.TB, k ServiceMaps) *Frontends {
	t.Helper()
	s, err := NewFrontends(k, 1, tableEntries)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A change of one endpoint costs the same writes whatever the number of services and endpoints.
func TestWritesDoNotGrow(t *testing.T) {
	ctx := context.Background()
	for _, a := range []state.Algorithm{state.Random, state.RR, state.LC, state.DH, state.SH, state.SED, state.NQ, state.P2C} {
		var first [2]int
		for i, size := range []struct{ services, endpoints int }{{1, 2}, {300, 200}} {
			k := newKernel(t)
			k.loose = true // the check after each write would make the test slow
			s := newFrontends(t, k)
			var all []int
			for b := range size.endpoints {
				all = append(all, b)
			}
			for n := range size.services {
				row := front(n, 1, 2)
				if row.Algorithm = a; n == 0 {
					row = front(n, all...)
				}
				if err := s.Update(ctx, row); err != nil {
					t.Fatal(err)
				}
			}
			row := front(0, append(all, 5000)...)
			row.Algorithm = a
			var counts [2]int
			for j, r := range []state.Frontend{row, front(0, all...)} {
				r.Algorithm = a
				if j == 0 { // what only the algorithm changes is not counted
					first := front(0, all...)
					first.Algorithm = a
					if err := s.Update(ctx, first); err != nil {
						t.Fatal(err)
					}
				}
				k.writes = nil
				if err := s.Update(ctx, r); err != nil {
					t.Fatal(err)
				}
				counts[j] = len(k.writes)
			}
			if i == 0 {
				first = counts
			} else if counts != first {
				t.Errorf("%s: one endpoint more and less cost %v writes, in a small cluster %v", a, counts, first)
			}
			if counts[0] > 4 || counts[1] > 4 {
				t.Errorf("%s: one endpoint more and less cost %v writes", a, counts)
			}
		}
	}
}

// family is one service port with frontends of several kinds.
func family(inner, outer []int) []state.Frontend {
	base := front(1, inner...)
	base.PortName = "http"
	rows := []state.Frontend{base, base, base}
	rows[1].Type, rows[1].Address, rows[1].Port = state.NodePort, netip.IPv4Unspecified(), 30080
	rows[2].Type, rows[2].Address = state.LoadBalancer, netip.MustParseAddr("192.0.2.1")
	rows[2].SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.7/32")}
	for i := range rows[1:] {
		rows[1+i].OuterLocal, rows[1+i].OuterBackends = true, front(1, outer...).Backends
	}
	return rows
}

func TestFrontendsOfAPortShareTheirSets(t *testing.T) {
	k, ctx := newKernel(t), context.Background()
	s := newFrontends(t, k)
	update := func(rows []state.Frontend) {
		t.Helper()
		for _, r := range rows {
			if err := s.Update(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if diff := gocmp.Diff(wanted(rows...), content(t, k)); diff != "" {
			t.Errorf("content (-want +got):\n%s", diff)
		}
		checkExact(t, k)
	}
	update(family([]int{1, 2, 3}, []int{2}))
	cluster, _ := s.Service(family(nil, nil)[0])
	node, _ := s.Service(family(nil, nil)[1])
	balancer, _ := s.Service(family(nil, nil)[2])
	if cluster.Set != cluster.OuterSet || node.Set != cluster.Set || balancer.Set != cluster.Set || node.OuterSet == node.Set || balancer.OuterSet != node.OuterSet {
		t.Errorf("sets: %+v, %+v, %+v", cluster, node, balancer)
	}
	if len(k.slots) != 4 || len(k.backends) != 3 {
		t.Errorf("%d slots of %d backends, want 4 of 3", len(k.slots), len(k.backends))
	}
	k.writes = nil
	if err := s.Update(ctx, family([]int{1, 2, 3, 4}, []int{2})[0]); err != nil {
		t.Fatal(err)
	}
	want := []string{"load", "backend 10.244.0.4:8080", "slot 3", "service 0.0.0.0:30080 count 4", "service 192.0.2.1:80 count 4", "service 10.96.0.1:80 count 4"}
	if diff := gocmp.Diff(want, k.writes); diff != "" {
		t.Errorf("all frontends get their count with the set (-want +got):\n%s", diff)
	}
	update(family([]int{1, 2, 3, 4}, []int{2})) // finds nothing to write
	if len(k.writes) != len(want) {
		t.Errorf("the rows after the first wrote %q", k.writes[len(want):])
	}
	update(family([]int{1}, nil))
	// After a restart the same sets are used.
	k.writes = nil
	s = newFrontends(t, k)
	update(family([]int{1}, nil))
	if len(k.writes) != 0 {
		t.Errorf("a restart without changes wrote %q", k.writes)
	}
	// externalTrafficPolicy becomes Cluster: the outer set goes.
	rows := family([]int{1}, nil)
	rows[1].OuterLocal, rows[2].OuterLocal = false, false
	update(rows)
	for _, r := range rows {
		if err := s.Delete(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.services)+len(k.slots)+len(k.sources) != 0 {
		t.Errorf("left: %v %v %v", k.services, k.slots, k.sources)
	}
}

func TestSharedBackendStays(t *testing.T) {
	k := newKernel(t)
	s := newFrontends(t, k)
	ctx := context.Background()
	if err := errors.Join(s.Update(ctx, front(1, 7, 8)), s.Update(ctx, front(2, 7)), s.Delete(ctx, front(1))); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(wanted(front(2, 7)), content(t, k)); diff != "" {
		t.Error(diff)
	}
	if left := s.Leaving(); len(left) != 1 || left[0].String() != "10.244.0.8:8080" || len(k.slots) != 1 {
		t.Errorf("leaving %+v, %d slots", left, len(k.slots))
	}
	if err := s.Delete(ctx, front(2)); err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Leaving() {
		if err := s.Release(b.ID); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.backends)+len(k.slots)+len(k.services)+len(k.loads) != 0 {
		t.Errorf("left: %v %v %v %v", k.services, k.slots, k.backends, k.loads)
	}
}

func TestLeavingBackends(t *testing.T) {
	k, ctx := newKernel(t), context.Background()
	s := newFrontends(t, k)
	begin := time.Now()
	row := front(1, 1, 2)
	row.Backends[1].Pod = "default/two"
	if err := errors.Join(s.Update(ctx, row), s.Update(ctx, front(1, 1))); err != nil {
		t.Fatal(err)
	}
	check := func(when, pod string) Departed {
		t.Helper()
		left := s.Leaving()
		if len(left) != 1 || left[0].Port() != 8080 || left[0].Protocol != state.TCP || left[0].Pod != pod || left[0].Since.Before(begin) {
			t.Fatalf("%s: leaving %+v", when, left)
		}
		if b := k.backends[left[0].ID]; b.Flags != bpf.BackendLeaving {
			t.Errorf("%s: backend %+v is not marked", when, b)
		}
		return left[0]
	}
	first := check("after the update", "default/two")
	prune := func() {
		t.Helper()
		if found, err := s.Prune(ctx, slices.Values([]state.Frontend{front(1, 1)})); err != nil || len(found) != 0 {
			t.Errorf("prune: %q, %v", found, err)
		}
	}
	prune()
	if again := check("after a prune", "default/two"); again != first {
		t.Errorf("%+v became %+v", first, again)
	}
	s = newFrontends(t, k)
	prune()
	check("after a restart", "")
	generation := k.backends[first.ID].Generation
	if err := s.Update(ctx, row); err != nil {
		t.Fatal(err)
	}
	if b := k.backends[first.ID]; b.Flags != 0 || b.Generation != generation || len(s.Leaving()) != 0 {
		t.Errorf("back in a slot it is %+v; leaving %+v", b, s.Leaving())
	}
	if err := s.Release(first.ID); err != nil || len(k.backends) != 2 {
		t.Errorf("a backend in use was released: %v, %v", k.backends, err)
	}
	if err := errors.Join(s.Update(ctx, front(1, 1)), s.Release(first.ID), s.Release(first.ID)); err != nil {
		t.Fatal(err)
	}
	if len(k.backends) != 1 || len(k.loads) != 1 || len(s.Leaving()) != 0 {
		t.Errorf("after the release: %v, %v", k.backends, k.loads)
	}
	if err := s.Update(ctx, row); err != nil {
		t.Fatal(err)
	}
	for id, b := range k.backends {
		if b.AddrPort == first.AddrPort && (id == first.ID || b.Generation < generation) {
			t.Errorf("made anew it has id %d generation %d, the old one %d and %d", id, b.Generation, first.ID, generation)
		}
	}
}

func TestWeightsBecomeSlots(t *testing.T) {
	weigh := func(a state.Algorithm, weights ...uint16) state.Frontend {
		row := front(1)
		row.Algorithm = a
		for i, w := range weights {
			b := front(1, i).Backends[0]
			b.Weight = w
			row.Backends = append(row.Backends, b)
		}
		return row
	}
	for _, c := range []struct {
		row  state.Frontend
		want []string // slots in order
	}{
		{weigh(state.RR, 4, 2, 2), []string{"0 x 1", "1 x 1", "2 x 1", "0 x 1"}},
		{weigh(state.RR, 0, 0), []string{"0 x 1", "1 x 1"}},
		{weigh(state.Random, 7, 7), []string{"0 x 1", "1 x 1"}},
		{weigh(state.LC, 30, 10), []string{"0 x 3", "1 x 1"}},
		{weigh(state.P2C, 5, 3), []string{"0 x 5", "1 x 3"}},
		{weigh(state.SED, 60000, 1, 30000), []string{"0 x 256", "1 x 1", "2 x 128"}},
	} {
		k := newKernel(t)
		if err := newFrontends(t, k).Update(context.Background(), c.row); err != nil {
			t.Fatal(err)
		}
		got := make([]string, len(k.slots))
		for s, to := range k.slots {
			got[s.Slot] = fmt.Sprintf("%d x %d", k.backends[to.Backend].Addr().As4()[3], to.Weight)
		}
		if diff := gocmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s of %v (-want +got):\n%s", c.row.Algorithm, c.row.Backends, diff)
		}
	}
	// Weights that change rewrite what they must, and nothing else.
	k := newKernel(t)
	s := newFrontends(t, k)
	if err := s.Update(context.Background(), weigh(state.SH, 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	k.writes = nil
	if err := s.Update(context.Background(), weigh(state.SH, 1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"slot 3", "slot 4", "service 10.96.0.1:80 count 5"}, k.writes); diff != "" {
		t.Errorf("one weight more (-want +got):\n%s", diff)
	}
}

func TestMaglevTables(t *testing.T) {
	k, ctx := newKernel(t), context.Background()
	s := newFrontends(t, k)
	row := front(1, 3, 1, 2)
	row.Algorithm = state.Maglev
	addresses := func(k *kernel, s *Frontends) (out []string) {
		svc, _ := s.Service(row)
		for _, id := range k.content[k.tables[svc.Set]] {
			out = append(out, k.backends[id].String())
		}
		return out
	}
	if err := s.Update(ctx, row); err != nil {
		t.Fatal(err)
	}
	// A node that has met the backends in another order, and other services before, has the same table of addresses.
	other := newKernel(t)
	o := newFrontends(t, other)
	swapped := front(1, 2, 3, 1)
	swapped.Algorithm = state.Maglev
	if err := errors.Join(o.Update(ctx, front(9, 9, 2)), o.Update(ctx, swapped)); err != nil {
		t.Fatal(err)
	}
	if a, b := addresses(k, s), addresses(other, o); len(a) != tableEntries || !slices.Equal(a, b) {
		t.Errorf("tables of two nodes differ: %v, %v", a, b)
	}
	// Neither a restart nor a prune writes a table that is right.
	k.writes = nil
	s = newFrontends(t, k)
	if err := s.Update(ctx, row); err != nil {
		t.Fatal(err)
	}
	if found, err := s.Prune(ctx, slices.Values([]state.Frontend{row})); err != nil || len(found)+len(k.writes) != 0 {
		t.Errorf("after a restart: %q, %q, %v", found, k.writes, err)
	}
	// A restart with another size makes them anew.
	var err error
	if s, err = NewFrontends(k, 1, 509); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(ctx, row); err != nil || len(addresses(k, s)) != 509 || !slices.Equal(k.writes, []string{"table"}) {
		t.Errorf("after a change of the size: %d entries, %q, %v", len(addresses(k, s)), k.writes, err)
	}
	k.writes = nil
	row.Backends = front(1, 1, 2).Backends
	if err := s.Update(ctx, row); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"service 10.96.0.1:80 count 2", "slot 0", "table", "delete slot 2", "backend 10.244.0.3:8080 leaving"}, k.writes); diff != "" {
		t.Errorf("one less (-want +got):\n%s", diff)
	}
	row.Algorithm = state.RR
	if err := s.Update(ctx, row); err != nil || len(k.tables) != 0 {
		t.Errorf("another algorithm: tables %v, %v", k.tables, err)
	}
	row.Algorithm = state.Maglev
	if err := errors.Join(s.Update(ctx, row), s.Delete(ctx, row)); err != nil || len(k.tables) != 0 {
		t.Errorf("removed: tables %v, %v", k.tables, err)
	}
}

func TestNoStaleAffinity(t *testing.T) {
	k, ctx := newKernel(t), context.Background()
	s := newFrontends(t, k)
	row := func(backends ...int) state.Frontend {
		r := front(1, backends...)
		r.Affinity = 3 * time.Hour
		return r
	}
	if err := errors.Join(s.Update(ctx, front(2, 2)), s.Update(ctx, row(1, 2)), s.Update(ctx, row(1))); err != nil {
		t.Fatal(err)
	}
	svc, _ := s.Service(row())
	two, _ := s.BackendID(netip.MustParseAddrPort("10.244.0.2:8080"), state.TCP)
	if svc.Affinity != 10800 || svc.Flags != bpf.ServiceClusterIP|bpf.ServiceAffinity {
		t.Errorf("row %+v", svc)
	}
	want := []string{fmt.Sprintf("%d/%d", svc.Set, two)}
	if !slices.Equal(k.forgot, want) {
		t.Errorf("forgot %q, want %q: the backend is still there for another service", k.forgot, want)
	}
	if err := errors.Join(s.Update(ctx, front(1, 1)), s.Update(ctx, row(1)), s.Delete(ctx, row(1))); err != nil {
		t.Fatal(err)
	}
	want = append(want, fmt.Sprintf("%d/0", svc.Set), fmt.Sprintf("%d/0", svc.Set))
	if !slices.Equal(k.forgot, want) {
		t.Errorf("forgot %q, want %q", k.forgot, want)
	}
}

func TestSourceRanges(t *testing.T) {
	k, ctx := newKernel(t), context.Background()
	s := newFrontends(t, k)
	row := func(ranges ...string) state.Frontend {
		r := front(1, 1)
		r.Type = state.LoadBalancer
		for _, p := range ranges {
			r.SourceRanges = append(r.SourceRanges, netip.MustParsePrefix(p))
		}
		return r
	}
	for _, step := range []struct {
		row  state.Frontend
		want []string
	}{
		{row(), []string{"load", "backend 10.244.0.1:8080", "slot 0", "service 10.96.0.1:80 count 1"}},
		{row("10.0.0.0/8", "::/0"), []string{"source 10.0.0.0/8", "source ::/0", "service 10.96.0.1:80 count 1"}},
		{row("10.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16"), []string{"source 10.1.0.0/16", "delete source ::/0"}},
		{row(), []string{"service 10.96.0.1:80 count 1", "delete source 10.0.0.0/8", "delete source 10.1.0.0/16"}},
	} {
		k.writes = nil
		if err := s.Update(ctx, step.row); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(step.want, k.writes); diff != "" {
			t.Errorf("%v (-want +got):\n%s", step.row.SourceRanges, diff)
		}
	}
}

// What does not fit leaves nothing behind, names the service and the map, and stops no other.
func TestWhatDoesNotFit(t *testing.T) {
	ctx := context.Background()
	big := front(1, 1, 2, 3)
	big.Algorithm, big.Type = state.Maglev, state.LoadBalancer
	big.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("11.0.0.0/8")}
	for name, room := range map[string]int{"services": 1, "slots": 2, "backends": 3, "loads": 3, "sources": 1, "tables": 1} {
		k := newKernel(t)
		s := newFrontends(t, k)
		other := front(2, 1)
		if name == "tables" {
			other.Algorithm = state.Maglev
		}
		if err := s.Update(ctx, other); err != nil {
			t.Fatal(err)
		}
		k.room[name] = room
		if name == "backends" || name == "loads" {
			k.room[name] = 2
		}
		for range 3 {
			err := s.Update(ctx, big)
			if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "service default/svc1: ") || !strings.Contains(err.Error(), "write "+name) {
				t.Fatalf("%s: error %v", name, err)
			}
			if diff := gocmp.Diff(wanted(other), content(t, k)); diff != "" {
				t.Errorf("%s: content (-want +got):\n%s", name, diff)
			}
			checkExact(t, k)
			if left := s.Leaving(); len(left) != 0 {
				t.Errorf("%s: leaving %+v", name, left)
			}
		}
		if err := s.Update(ctx, func() state.Frontend { o := other; o.Forwarding = state.DSR; return o }()); err != nil {
			t.Errorf("%s: another service: %v", name, err)
		}
		// One that is there stays as it was when it cannot grow.
		clear(k.room)
		if err := errors.Join(s.Update(ctx, other), s.Update(ctx, front(1, 1))); err != nil {
			t.Fatal(err)
		}
		if name == "slots" || name == "backends" || name == "loads" {
			k.room[name] = map[string]int{"slots": 3, "backends": 2, "loads": 2}[name]
			if err := s.Update(ctx, front(1, 1, 2, 3)); !errors.Is(err, maps.ErrFull) {
				t.Errorf("%s: error %v", name, err)
			}
			if diff := gocmp.Diff(wanted(other, front(1, 1)), content(t, k)); diff != "" {
				t.Errorf("%s: content (-want +got):\n%s", name, diff)
			}
			checkExact(t, k)
		}
	}
}

func TestIDsAcrossRestart(t *testing.T) {
	k := newKernel(t)
	ctx := context.Background()
	s, err := NewFrontends(k, 100, tableEntries)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Update(ctx, front(1, 1)), s.Update(ctx, front(2, 2, 3)), s.Update(ctx, front(2, 2))); err != nil {
		t.Fatal(err)
	}
	id, ok := s.ID(front(2))
	if !ok {
		t.Fatal("no id")
	}
	const gone = 3 // the id backend 3 had
	if err := s.Release(gone); err != nil || k.backends[gone].IsValid() {
		t.Fatalf("backend %v, %v", k.backends[gone], err)
	}
	k.writes = nil
	s, err = NewFrontends(k, 50, tableEntries) // the clock went back
	if err != nil {
		t.Fatal(err)
	}
	rows := []state.Frontend{front(1, 1), front(2, 2)}
	for _, r := range rows {
		if err := s.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := s.Prune(ctx, slices.Values(rows)); err != nil || len(found) != 0 {
		t.Errorf("prune after restart: %q, %v", found, err)
	}
	if len(k.writes) != 0 {
		t.Errorf("a restart without changes wrote %q", k.writes)
	}
	if again, _ := s.ID(front(2)); again != id {
		t.Errorf("service id %d, was %d", again, id)
	}
	if err := s.Update(ctx, front(1, 1, 9)); err != nil {
		t.Fatal(err)
	}
	if b, reused := k.backends[gone]; reused && b.Generation <= 100 {
		t.Errorf("id %d is used again with generation %d, which connections may remember", gone, b.Generation)
	}
}

// anyRows returns the frontends of a service with everything chosen by chance.
func anyRows(i int, random *rand.Rand) []state.Frontend {
	pick := func(one int) (out []int) {
		for b := range 10 {
			if random.IntN(one) == 0 {
				out = append(out, b)
			}
		}
		return out
	}
	inner, outer := pick(3), pick(6)
	rows := family(inner, outer)
	names := []state.Algorithm{state.Random, state.Maglev, state.RR, state.LC, state.SH, state.P2C}
	a, affinity := names[random.IntN(len(names))], time.Duration(random.IntN(2))*time.Hour
	weights := random.IntN(3) == 0
	local := random.IntN(2) == 0
	for n := range rows {
		r := &rows[n]
		r.Service.Name, r.Algorithm, r.Affinity = fmt.Sprint("svc", i), a, affinity
		r.OuterLocal = r.OuterLocal && local
		if !r.OuterLocal {
			r.OuterBackends = nil
		}
		if n == 2 && random.IntN(2) == 0 {
			r.SourceRanges = r.SourceRanges[:random.IntN(3)]
		}
		for b := range r.Backends {
			if weights {
				r.Backends[b].Weight = uint16(b)
			}
		}
	}
	rows[0].Address, rows[1].Port, rows[2].Address = front(i).Address, 30000+uint16(i), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	return rows[:1+random.IntN(3)]
}

func TestFailingWritesConverge(t *testing.T) {
	k := newKernel(t)
	k.failing = 0.1
	ctx, random := context.Background(), rand.New(rand.NewPCG(3, 4))
	s := newFrontends(t, k)
	rows := map[string]state.Frontend{}
	retry := func(do func() error) {
		t.Helper()
		for range 1000 {
			err := do()
			if err == nil {
				return
			}
			if !errors.Is(err, errFlaky) {
				t.Fatal(err)
			}
		}
		t.Fatal("does not converge")
	}
	for range 2000 {
		i := random.IntN(12)
		next := map[string]state.Frontend{}
		for _, r := range anyRows(i, random) {
			next[r.Key()] = r
		}
		for at, r := range rows {
			if _, stays := next[at]; !stays && r.Service == (state.ServiceName{Namespace: "default", Name: fmt.Sprint("svc", i)}) {
				delete(rows, at)
				retry(func() error { return s.Delete(ctx, r) })
			}
		}
		if random.IntN(5) == 0 { // given up half way: the next change or the prune goes on from there
			_ = s.Update(ctx, anyRows(i, random)[0])
		}
		if random.IntN(20) == 0 { // killed and started again
			s = newFrontends(t, k)
		}
		for at, r := range next {
			rows[at] = r
			retry(func() error { return s.Update(ctx, r) })
		}
		for _, b := range s.Leaving() {
			if random.IntN(4) == 0 {
				_ = s.Release(b.ID)
			}
		}
		k.writes = k.writes[:0]
	}
	var all []state.Frontend
	for _, r := range rows {
		all = append(all, r)
	}
	retry(func() error { _, err := s.Prune(ctx, slices.Values(all)); return err })
	if diff := gocmp.Diff(wanted(all...), content(t, k)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	checkExact(t, k)
	if found, err := s.Prune(ctx, slices.Values(all)); err != nil || len(found) != 0 {
		t.Errorf("second prune: %q, %v", found, err)
	}
}

func TestDriftIsRepairedAndReported(t *testing.T) {
	k := newKernel(t)
	ctx := context.Background()
	s := newFrontends(t, k)
	rows := append(family([]int{1, 2, 3}, []int{1}), front(2, 3), front(3))
	rows[3].Algorithm = state.Maglev
	for _, r := range rows {
		if err := s.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	f := key(rows[0])
	var svc maps.Service
	k.loose = true // the damage itself breaks what k watches
	slot := func(i uint32) maps.Slot { return maps.Slot{Set: svc.Set, Slot: i} }
	for name, damage := range map[string]func(){
		"slot gone":         func() { delete(k.slots, slot(1)) },
		"slot to nowhere":   func() { k.slots[slot(0)] = maps.Share{Backend: 99999} },
		"weight":            func() { k.slots[slot(0)] = maps.Share{Backend: k.slots[slot(0)].Backend, Weight: 7} },
		"backend gone":      func() { delete(k.backends, k.slots[slot(2)].Backend) },
		"backend elsewhere": func() { k.backends[k.slots[slot(2)].Backend] = maps.Backend{Protocol: 6} },
		"backend marked": func() {
			b := k.backends[k.slots[slot(2)].Backend]
			b.Flags = bpf.BackendLeaving
			k.backends[k.slots[slot(2)].Backend] = b
		},
		"load gone":       func() { delete(k.loads, k.slots[slot(2)].Backend) },
		"alien load":      func() { k.loads[777] = maps.Load{} },
		"service gone":    func() { delete(k.services, f) },
		"count":           func() { k.services[f] = maps.Service{ID: svc.ID, Set: svc.Set, OuterSet: svc.Set, Count: 1} },
		"id of another":   func() { k.services[f] = k.services[key(rows[3])] },
		"set of another":  func() { v := svc; v.Set = k.services[key(rows[3])].Set; k.services[f] = v },
		"no set":          func() { v := svc; v.Set, v.OuterSet = 0, 0; k.services[f] = v },
		"id zero":         func() { k.services[f] = maps.Service{} },
		"alien service":   func() { k.services[key(front(77))] = maps.Service{ID: 1234, Set: 1234, OuterSet: 1234} },
		"alien slot":      func() { k.slots[maps.Slot{Set: 555, Slot: 3}] = maps.Share{Backend: 1} },
		"alien backend":   func() { k.backends[4321] = maps.Backend{AddrPort: netip.MustParseAddrPort("1.2.3.4:5")} },
		"alien source":    func() { k.sources[maps.Source{Service: 888, Prefix: netip.MustParsePrefix("1.0.0.0/8")}] = true },
		"source gone":     func() { clear(k.sources) },
		"table gone":      func() { clear(k.tables) },
		"table of nobody": func() { k.tables[999] = 1 },
		"everything": func() {
			clear(k.services)
			clear(k.slots)
			clear(k.backends)
			clear(k.loads)
			clear(k.sources)
			clear(k.tables)
		},
	} {
		svc, _ = s.Service(rows[0])
		damage()
		found, err := s.Prune(ctx, slices.Values(rows))
		if err != nil || len(found) == 0 {
			t.Errorf("%s: found %q, %v", name, found, err)
		}
		if diff := gocmp.Diff(wanted(rows...), content(t, k)); diff != "" {
			t.Errorf("%s: content (-want +got):\n%s", name, diff)
		}
		for _, b := range s.Leaving() {
			if err := s.Release(b.ID); err != nil {
				t.Error(err)
			}
		}
		checkExact(t, k)
		if found, err := s.Prune(ctx, slices.Values(rows)); err != nil || len(found) != 0 {
			t.Errorf("%s: second prune %q, %v", name, found, err)
		}
	}
}

func TestIDsWrapAround(t *testing.T) {
	m := newModel()
	m.generation = 5
	m.lastBackend, m.lastService, m.lastSet = ^uint32(0), ^uint32(0), ^uint32(0)
	m.backends[1] = &backend{}
	m.sets[1] = &set{}
	m.owners[1] = struct{}{}
	if id := m.nextBackend(); id != 2 || m.generation != 6 {
		t.Errorf("backend id %d generation %d, want 2 and 6", id, m.generation)
	}
	if id := m.nextService(); id != 2 {
		t.Errorf("service id %d, want 2", id)
	}
	if id := m.nextSet(); id != 2 {
		t.Errorf("set id %d, want 2", id)
	}
}

func TestFrontendsInTheKernel(t *testing.T) {
	m := open(t, small)
	ctx := context.Background()
	v6 := front(3, 5)
	v6.Address, v6.Protocol = netip.MustParseAddr("fd00:96::3"), state.UDP
	v6.Backends[0].Address = netip.MustParseAddr("fd00:244::5")
	rows := []state.Frontend{front(1, 1, 2), front(2), v6}
	s, err := NewFrontends(m, 1, tableEntries)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := s.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if diff := gocmp.Diff(wanted(rows...), content(t, m)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	if s, err = NewFrontends(m, 2, tableEntries); err != nil {
		t.Fatal(err)
	}
	if found, err := s.Prune(ctx, slices.Values(rows)); err != nil || len(found) != 0 {
		t.Errorf("after restart %q, %v", found, err)
	}
	found, err := s.Prune(ctx, slices.Values(rows[:1]))
	if err != nil || len(found) != 2 {
		t.Errorf("two services less: %q, %v", found, err)
	}
	if diff := gocmp.Diff(wanted(rows[:1]...), content(t, m)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

func TestServiceMapFull(t *testing.T) {
	sizes := small
	sizes.Services, sizes.Backends = 4, 4
	m := open(t, sizes)
	s, err := NewFrontends(m, 1, tableEntries)
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	for i := range 100 {
		failed = errors.Join(failed, s.Update(context.Background(), front(i, i)))
	}
	if !errors.Is(failed, maps.ErrFull) || !strings.Contains(failed.Error(), "service default/svc9: ") || !strings.Contains(failed.Error(), "write strait_load") {
		t.Errorf("error %v", failed)
	}
	// Deleting makes room again, and what could not be written is written then.
	for i := range 99 {
		if err := s.Delete(context.Background(), front(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range s.Leaving() {
		if err := s.Release(b.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Update(context.Background(), front(99, 99)); err != nil {
		t.Error(err)
	}
	if diff := gocmp.Diff(wanted(front(99, 99)), content(t, m)); diff != "" {
		t.Error(diff)
	}
}

func tenThousand() []state.Frontend {
	rows := make([]state.Frontend, 10_000)
	for i := range rows {
		rows[i] = front(i, i, i+1, i+2)
	}
	slices.SortFunc(rows, func(a, b state.Frontend) int { return cmp.Compare(a.Key(), b.Key()) })
	return rows
}

func BenchmarkTenThousandFrontends(b *testing.B) {
	rows, ctx := tenThousand(), context.Background()
	for _, what := range []string{"cold", "restart", "drift"} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				m := open(b, config.Maps{Conntrack: 1024, NAT: 1024, Services: 65536, Backends: 131072, IPCache: 1024})
				s, err := NewFrontends(m, 1, tableEntries)
				if err != nil {
					b.Fatal(err)
				}
				fill := func() {
					for _, r := range rows {
						if err := s.Update(ctx, r); err != nil {
							b.Fatal(err)
						}
					}
				}
				if what == "cold" {
					b.StartTimer()
				}
				fill()
				if what != "cold" {
					b.StartTimer()
				}
				if what == "restart" {
					if s, err = NewFrontends(m, 2, tableEntries); err != nil {
						b.Fatal(err)
					}
					fill()
				}
				if _, err := s.Prune(ctx, slices.Values(rows)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What the operations themselves hold for 10,000 services with three backends each, rows not counted.
func BenchmarkMemory(b *testing.B) {
	rows, ctx := tenThousand(), context.Background()
	m := open(b, config.Maps{Conntrack: 1024, NAT: 1024, Services: 65536, Backends: 131072, IPCache: 1024})
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := newFrontends(b, m)
		for _, r := range rows {
			if err := s.Update(ctx, r); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(rows)), "heapB/service")
		runtime.KeepAlive(s)
	}
}
