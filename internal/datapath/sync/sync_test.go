package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/state"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var errFlaky = errors.New("write failed on purpose")

// kernel is the service maps in memory. It checks after every write that no service in use has a slot without a backend, and
// fails every write with a given probability.
type kernel struct {
	t        *testing.T
	services map[maps.Frontend]maps.Service
	slots    map[maps.Slot]uint32
	backends map[uint32]maps.Backend
	random   *rand.Rand
	failing  float64
	writes   []string
}

func newKernel(t *testing.T) *kernel {
	return &kernel{
		t: t, services: map[maps.Frontend]maps.Service{}, slots: map[maps.Slot]uint32{}, backends: map[uint32]maps.Backend{},
		random: rand.New(rand.NewPCG(1, 2)),
	}
}

func (k *kernel) write(what string, do func()) error {
	if k.random.Float64() < k.failing {
		return errFlaky
	}
	do()
	k.writes = append(k.writes, what)
	for f, s := range k.services {
		for i := range s.Count {
			id, ok := k.slots[maps.Slot{Service: s.ID, Slot: i}]
			if b, there := k.backends[id]; !ok || !there || b.Protocol != f.Protocol {
				k.t.Fatalf("after %q: slot %d of %s has no backend; writes %q", what, i, f.AddrPort, k.writes)
			}
		}
	}
	return nil
}

func (k *kernel) PutService(f maps.Frontend, s maps.Service) error {
	return k.write(fmt.Sprintf("service %s count %d", f.AddrPort, s.Count), func() { k.services[f] = s })
}

func (k *kernel) DeleteService(f maps.Frontend) error {
	return k.write("delete service", func() { delete(k.services, f) })
}

func (k *kernel) PutSlot(s maps.Slot, b uint32) error {
	return k.write(fmt.Sprintf("slot %d", s.Slot), func() { k.slots[s] = b })
}

func (k *kernel) DeleteSlot(s maps.Slot) error {
	return k.write(fmt.Sprintf("delete slot %d", s.Slot), func() { delete(k.slots, s) })
}

func (k *kernel) PutBackend(id uint32, b maps.Backend) error {
	return k.write("backend "+b.String(), func() { k.backends[id] = b })
}

func (k *kernel) DeleteBackend(id uint32) error {
	return k.write("delete backend", func() { delete(k.backends, id) })
}

func (k *kernel) EachService(fn func(maps.Frontend, maps.Service)) error {
	for f, s := range k.services {
		fn(f, s)
	}
	return nil
}

func (k *kernel) EachSlot(fn func(maps.Slot, uint32)) error {
	for s, b := range k.slots {
		fn(s, b)
	}
	return nil
}

func (k *kernel) EachBackend(fn func(uint32, maps.Backend)) error {
	for id, b := range k.backends {
		fn(id, b)
	}
	return nil
}

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

// content is what the datapath makes of the maps: backends of each frontend.
func content(t *testing.T, k ServiceMaps) map[string][]string {
	t.Helper()
	slots, backends, out := map[maps.Slot]uint32{}, map[uint32]maps.Backend{}, map[string][]string{}
	err := errors.Join(
		k.EachSlot(func(s maps.Slot, b uint32) { slots[s] = b }),
		k.EachBackend(func(id uint32, b maps.Backend) { backends[id] = b }),
		k.EachService(func(f maps.Frontend, s maps.Service) {
			list := []string{}
			for i := range s.Count {
				list = append(list, backends[slots[maps.Slot{Service: s.ID, Slot: i}]].String())
			}
			slices.Sort(list)
			out[f.String()] = list
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wanted(rows ...state.Frontend) map[string][]string {
	out := map[string][]string{}
	for _, r := range rows {
		list := []string{}
		for _, b := range targets(r) {
			list = append(list, b.String())
		}
		slices.Sort(list)
		out[key(r).String()] = list
	}
	return out
}

func TestWritesOfOneChange(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to []int
		want     []string
	}{
		{"first", nil, []int{1}, []string{"backend 10.244.0.1:8080", "slot 0", "service 10.96.0.1:80 count 1"}},
		{"one more", []int{1, 2}, []int{1, 2, 3}, []string{"backend 10.244.0.3:8080", "slot 2", "service 10.96.0.1:80 count 3"}},
		{"one less, the last", []int{1, 2, 3}, []int{1, 2}, []string{"service 10.96.0.1:80 count 2", "delete slot 2", "delete backend"}},
		{"one less, in the middle", []int{1, 2, 3}, []int{1, 3},
			[]string{"service 10.96.0.1:80 count 2", "slot 1", "delete slot 2", "delete backend"}},
		{"one replaced", []int{1, 2, 3}, []int{1, 4, 3}, []string{"backend 10.244.0.4:8080", "slot 1", "delete backend"}},
		{"none left", []int{1}, nil, []string{"service 10.96.0.1:80 count 0", "delete slot 0", "delete backend"}},
		{"nothing", []int{1, 2}, []int{2, 1}, nil},
	} {
		k := newKernel(t)
		s, err := NewFrontends(k, 1)
		if err != nil {
			t.Fatal(err)
		}
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

func TestSharedBackendStays(t *testing.T) {
	k := newKernel(t)
	s, err := NewFrontends(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := errors.Join(s.Update(ctx, front(1, 7, 8)), s.Update(ctx, front(2, 7)), s.Delete(ctx, front(1))); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(wanted(front(2, 7)), content(t, k)); diff != "" {
		t.Error(diff)
	}
	if len(k.backends) != 1 || len(k.slots) != 1 {
		t.Errorf("%d backends, %d slots, want one each", len(k.backends), len(k.slots))
	}
	if err := s.Delete(ctx, front(2)); err != nil {
		t.Fatal(err)
	}
	if len(k.backends)+len(k.slots)+len(k.services) != 0 {
		t.Errorf("left: %v %v %v", k.services, k.slots, k.backends)
	}
}

func TestIDsAcrossRestart(t *testing.T) {
	k := newKernel(t)
	ctx := context.Background()
	s, err := NewFrontends(k, 100)
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
	var gone uint32 = 3 // the id backend 3 had
	k.writes = nil
	s, err = NewFrontends(k, 50) // the clock went back
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

func TestFailingWritesConverge(t *testing.T) {
	k := newKernel(t)
	k.failing = 0.1
	ctx, random := context.Background(), rand.New(rand.NewPCG(3, 4))
	s, err := NewFrontends(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[int]state.Frontend{}
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
		if _, exists := rows[i]; exists && random.IntN(4) == 0 {
			delete(rows, i)
			retry(func() error { return s.Delete(ctx, front(i)) })
			continue
		}
		var backends []int
		for b := range 10 {
			if random.IntN(3) == 0 {
				backends = append(backends, b)
			}
		}
		rows[i] = front(i, backends...)
		if random.IntN(10) == 0 { // given up half way: the next change or the prune goes on from there
			_ = s.Update(ctx, front(i, random.IntN(10), 10+random.IntN(10)))
		}
		if random.IntN(20) == 0 { // killed and started again
			if s, err = NewFrontends(k, 1); err != nil {
				t.Fatal(err)
			}
		}
		retry(func() error { return s.Update(ctx, rows[i]) })
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

// checkExact fails when a slot or a backend is there that nothing uses.
func checkExact(t *testing.T, k *kernel) {
	t.Helper()
	slots, used := 0, map[uint32]bool{}
	for _, s := range k.services {
		slots += int(s.Count)
		for i := range s.Count {
			used[k.slots[maps.Slot{Service: s.ID, Slot: i}]] = true
		}
	}
	if slots != len(k.slots) || len(used) != len(k.backends) {
		t.Errorf("%d slots (%d used), %d backends (%d used)", len(k.slots), slots, len(k.backends), len(used))
	}
}

func TestDriftIsRepairedAndReported(t *testing.T) {
	k := newKernel(t)
	ctx := context.Background()
	s, err := NewFrontends(k, 1)
	if err != nil {
		t.Fatal(err)
	}
	rows := []state.Frontend{front(1, 1, 2, 3), front(2, 3), front(3)}
	for _, r := range rows {
		if err := s.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	id, _ := s.ID(front(1))
	f := key(front(1))
	for name, damage := range map[string]func(){
		"slot gone":         func() { delete(k.slots, maps.Slot{Service: id, Slot: 1}) },
		"slot to nowhere":   func() { k.slots[maps.Slot{Service: id, Slot: 0}] = 99999 },
		"backend gone":      func() { delete(k.backends, k.slots[maps.Slot{Service: id, Slot: 2}]) },
		"backend elsewhere": func() { k.backends[k.slots[maps.Slot{Service: id, Slot: 2}]] = maps.Backend{Protocol: 6} },
		"service gone":      func() { delete(k.services, f) },
		"count":             func() { k.services[f] = maps.Service{ID: id, Count: 1} },
		"id of another":     func() { k.services[f] = k.services[key(front(2))] },
		"id zero":           func() { k.services[f] = maps.Service{} },
		"alien service":     func() { k.services[key(front(77))] = maps.Service{ID: 1234} },
		"alien slot":        func() { k.slots[maps.Slot{Service: 555, Slot: 3}] = 1 },
		"alien backend":     func() { k.backends[4321] = maps.Backend{AddrPort: netip.MustParseAddrPort("1.2.3.4:5")} },
		"everything":        func() { clear(k.services); clear(k.slots); clear(k.backends) },
	} {
		damage()
		s.kernel = &looseKernel{k} // the damage itself breaks the invariant that k watches
		found, err := s.Prune(ctx, slices.Values(rows))
		if err != nil || len(found) == 0 {
			t.Errorf("%s: found %q, %v", name, found, err)
		}
		if diff := gocmp.Diff(wanted(rows...), content(t, k)); diff != "" {
			t.Errorf("%s: content (-want +got):\n%s", name, diff)
		}
		checkExact(t, k)
		if found, err := s.Prune(ctx, slices.Values(rows)); err != nil || len(found) != 0 {
			t.Errorf("%s: second prune %q, %v", name, found, err)
		}
		id, _ = s.ID(front(1))
	}
}

// looseKernel does not look at the invariant between writes.
type looseKernel struct{ *kernel }

func (k *looseKernel) PutService(f maps.Frontend, s maps.Service) error {
	k.services[f] = s
	return nil
}
func (k *looseKernel) DeleteService(f maps.Frontend) error        { delete(k.services, f); return nil }
func (k *looseKernel) PutSlot(s maps.Slot, b uint32) error        { k.slots[s] = b; return nil }
func (k *looseKernel) DeleteSlot(s maps.Slot) error               { delete(k.slots, s); return nil }
func (k *looseKernel) PutBackend(id uint32, b maps.Backend) error { k.backends[id] = b; return nil }
func (k *looseKernel) DeleteBackend(id uint32) error              { delete(k.backends, id); return nil }

func TestIDsWrapAround(t *testing.T) {
	m := newModel()
	m.generation = 5
	m.lastBackend, m.lastService = ^uint32(0), ^uint32(0)
	m.backends[1] = maps.Backend{}
	m.owners[1] = maps.Frontend{}
	if id := m.nextBackend(); id != 2 || m.generation != 6 {
		t.Errorf("backend id %d generation %d, want 2 and 6", id, m.generation)
	}
	if id := m.nextService(); id != 2 {
		t.Errorf("service id %d, want 2", id)
	}
}

// open returns the real maps.
func open(t testing.TB, sizes config.Maps) *maps.Maps {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := maps.Spec(sizes)
	if err != nil {
		t.Fatal(err)
	}
	m, err := maps.Open(tree, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

var small = config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024}

func TestFrontendsInTheKernel(t *testing.T) {
	m := open(t, small)
	ctx := context.Background()
	v6 := front(3, 5)
	v6.Address, v6.Protocol = netip.MustParseAddr("fd00:96::3"), state.UDP
	v6.Backends[0].Address = netip.MustParseAddr("fd00:244::5")
	rows := []state.Frontend{front(1, 1, 2), front(2), v6}
	s, err := NewFrontends(m, 1)
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
	if s, err = NewFrontends(m, 2); err != nil {
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
	s, err := NewFrontends(m, 1)
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	for i := range 100 {
		failed = errors.Join(failed, s.Update(context.Background(), front(i, i)))
	}
	if failed == nil || !strings.Contains(failed.Error(), "write strait_backend") {
		t.Errorf("error %v", failed)
	}
	// Deleting makes room again, and what could not be written is written then.
	for i := range 99 {
		if err := s.Delete(context.Background(), front(i)); err != nil {
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

func TestRemotes(t *testing.T) {
	m := open(t, small)
	ctx := context.Background()
	devices := map[string]int{"eth0": 3}
	ops := NewRemotes(m, func(name string) (int, bool) { i, ok := devices[name]; return i, ok })
	pfx, at := netip.MustParsePrefix, netip.MustParseAddr
	rows := []state.Remote{
		{Prefix: pfx("10.244.0.0/24"), Kind: state.RemotePods},
		{Prefix: pfx("10.244.1.0/24"), Kind: state.RemotePods, Tunnel: true, NextHop: at("192.168.0.2")},
		{Prefix: pfx("fd00:1::/64"), Kind: state.RemotePods, NextHop: at("fe80::2"), Device: "eth0"},
		{Prefix: pfx("192.168.0.1/32"), Kind: state.RemoteHost},
		{Prefix: pfx("192.168.0.9/32"), Kind: state.RemoteAPIServer},
	}
	for _, r := range rows {
		if err := ops.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(want ...string) {
		t.Helper()
		found, err := ops.Prune(ctx, slices.Values(rows))
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(want, found); diff != "" {
			t.Errorf("prune (-want +got):\n%s", diff)
		}
	}
	prune()
	if err := errors.Join(
		ops.Delete(ctx, rows[0]), ops.Delete(ctx, rows[0]),
		ops.Update(ctx, state.Remote{Prefix: pfx("10.9.0.0/16"), Kind: state.RemoteNode}),
	); err != nil {
		t.Fatal(err)
	}
	devices["eth0"] = 4 // made anew
	prune("ipcache entry 10.244.0.0/24 is missing",
		"ipcache entry fd00:1::/64 is identity 5 flags 0x4 via fe80::2 device 3, want identity 5 flags 0x4 via fe80::2 device 4",
		"ipcache entry 10.9.0.0/16 is not wanted")
	prune()
	got, err := m.Remotes()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b maps.Remote) int { return comparePrefix(a.Prefix, b.Prefix) })
	want := maps.Remote{Prefix: pfx("10.244.1.0/24"), Identity: 5, Flags: bpf.RemotePod | bpf.RemoteTunnel, Node: at("192.168.0.2")}
	if got[1] != want {
		t.Errorf("tunnelled row %+v, want %+v", got[1], want)
	}
	for _, bad := range []struct {
		row  state.Remote
		want string
	}{
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: state.RemotePods, NextHop: at("10.0.0.1"), Device: "eth9"}, "device eth9 is not there"},
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: state.RemotePods, Tunnel: true}, "no tunnel endpoint"},
		{state.Remote{Prefix: pfx("10.1.0.0/16"), Kind: "alien"}, `unknown kind "alien"`},
	} {
		if err := ops.Update(ctx, bad.row); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("error %v, want %q", err, bad.want)
		}
	}
}

func TestDevices(t *testing.T) {
	m := open(t, small)
	pfx := netip.MustParsePrefix
	rows := []state.Device{
		{Name: "eth0", Index: 2, MTU: 1500, Native: true, Addresses: []netip.Prefix{pfx("192.168.0.1/24"), pfx("192.168.0.7/24"), pfx("fd00::1/64")}},
		{Name: "docker0", Index: 3, MTU: 1500, Addresses: []netip.Prefix{pfx("172.17.0.1/16")}},
	}
	if err := m.PutDevice(maps.Device{Index: 99}); err != nil {
		t.Fatal(err)
	}
	if found, err := Devices(m, slices.Values(rows)); err != nil || len(found) != 2 {
		t.Errorf("found %q, %v", found, err)
	}
	if found, err := Devices(m, slices.Values(rows)); err != nil || len(found) != 0 {
		t.Errorf("second time %q, %v", found, err)
	}
	got, err := m.Devices()
	want := []maps.Device{{Index: 2, Address: netip.MustParseAddr("192.168.0.1"), IPv6: netip.MustParseAddr("fd00::1"), MTU: 1500}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
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
				s, err := NewFrontends(m, 1)
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
					if s, err = NewFrontends(m, 2); err != nil {
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
