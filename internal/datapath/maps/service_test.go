package maps

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
)

func compareAddresses() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

// What is written is read back, and gone when it is deleted.
func TestServiceEntries(t *testing.T) {
	m := open(t)
	at := netip.MustParseAddrPort
	services := map[Frontend]Service{
		{at("10.96.0.1:80"), unix.IPPROTO_TCP}: {ID: 1, Flags: bpf.ServiceClusterIP, Set: 3, Count: 2, OuterSet: 3, OuterCount: 2},
		{at("0.0.0.0:30080"), unix.IPPROTO_UDP}: {ID: 2, Flags: bpf.ServiceNodePort | bpf.ServiceAffinity | bpf.ServiceOuterLocal,
			Algorithm: bpf.AlgorithmRR, Affinity: 10800, Set: 3, Count: 2, OuterSet: 4, OuterCount: 1},
		{at("[::]:30080"), unix.IPPROTO_UDP}:   {ID: 3, Flags: bpf.ServiceNodePort, Set: 5, OuterSet: 5},
		{at("[fd00::1]:80"), unix.IPPROTO_TCP}: {ID: 4, Flags: bpf.ServiceClusterIP, Algorithm: bpf.AlgorithmP2C, Set: 5, OuterSet: 5},
	}
	for f, s := range services {
		if err := m.PutService(f, s); err != nil {
			t.Fatal(err)
		}
	}
	got := map[Frontend]Service{}
	if err := m.EachService(func(f Frontend, s Service) { got[f] = s }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(services, got, compareAddresses()); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	for f := range services {
		if err := errors.Join(m.DeleteService(f), m.DeleteService(f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.EachService(func(f Frontend, _ Service) { t.Errorf("%s is left", f) }); err != nil {
		t.Fatal(err)
	}
}

// Whose turn it is goes on when the row is written anew.
func TestTurnIsKept(t *testing.T) {
	m := open(t)
	f := Frontend{netip.MustParseAddrPort("10.96.0.1:80"), unix.IPPROTO_TCP}
	k := bpf.SockaddrKeyFrom(f.AddrPort, f.Protocol)
	if err := put(m, bpf.DatapathMapStraitService, k, bpf.Service{Id: 1, Turn: 77}); err != nil {
		t.Fatal(err)
	}
	if err := m.PutService(f, Service{ID: 1, Algorithm: bpf.AlgorithmRR, Count: 9}); err != nil {
		t.Fatal(err)
	}
	if v, _, err := lookup[bpf.Service](m, bpf.DatapathMapStraitService, k); err != nil || v.Turn != 77 || v.Count != 9 {
		t.Errorf("row %+v, %v", v, err)
	}
}

func TestLoadsAreNotReset(t *testing.T) {
	m := open(t)
	if err := errors.Join(m.PutLoad(5), put(m, bpf.DatapathMapStraitLoad, uint32(5), bpf.Load{Sockets: 1, Tracked: 2, Connections: 3}), m.PutLoad(5)); err != nil {
		t.Fatal(err)
	}
	if l, ok, err := m.Load(5); err != nil || !ok || l != (Load{1, 2, 3}) {
		t.Errorf("load %+v, %v, %v", l, ok, err)
	}
	if err := errors.Join(m.DeleteLoad(5), m.DeleteLoad(5)); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := m.Load(5); ok || err != nil {
		t.Errorf("still there, %v", err)
	}
}

func TestSourcesNetnsAndAnnouncements(t *testing.T) {
	m := open(t)
	pfx, ip := netip.MustParsePrefix, netip.MustParseAddr
	sources := []Source{{1, pfx("0.0.0.0/0")}, {1, pfx("::/0")}, {2, pfx("10.0.0.0/8")}, {2, pfx("2001:db8::/32")}, {2, pfx("192.0.2.7/32")}}
	netns := map[uint64]Netns{1 << 40: {ip("10.0.0.1"), ip("fd00::1")}, 2: {IPv4: ip("10.0.0.2")}, 3: {IPv6: ip("fd00::3")}}
	announced := []Announcement{{ip("192.0.2.1"), 3, [6]byte{2, 0, 0, 0, 0, 1}}, {ip("2001:db8::1"), 3, [6]byte{2, 0, 0, 0, 0, 1}}}
	for _, s := range sources {
		if err := m.PutSource(s); err != nil {
			t.Fatal(err)
		}
	}
	for cookie, n := range netns {
		if err := m.PutNetns(cookie, n); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range announced {
		if err := m.PutAnnouncement(a); err != nil {
			t.Fatal(err)
		}
	}
	var gotSources []Source
	gotNetns := map[uint64]Netns{}
	var gotAnnounced []Announcement
	read := func() {
		t.Helper()
		gotSources, gotAnnounced = nil, nil
		clear(gotNetns)
		if err := errors.Join(
			m.EachSource(func(s Source) { gotSources = append(gotSources, s) }),
			m.EachNetns(func(cookie uint64, n Netns) { gotNetns[cookie] = n }),
			m.EachAnnouncement(func(a Announcement) { gotAnnounced = append(gotAnnounced, a) }),
		); err != nil {
			t.Fatal(err)
		}
	}
	read()
	slices.SortFunc(gotSources, func(a, b Source) int { return slices.Index(sources, a) - slices.Index(sources, b) })
	slices.SortFunc(gotAnnounced, func(a, b Announcement) int { return a.Address.Compare(b.Address) })
	want := []any{sources, netns, announced}
	if diff := cmp.Diff(want, []any{gotSources, gotNetns, gotAnnounced}, compareAddresses()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, s := range sources {
		if err := m.DeleteSource(s); err != nil {
			t.Fatal(err)
		}
	}
	for cookie := range netns {
		if err := m.DeleteNetns(cookie); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range announced {
		if err := m.DeleteAnnouncement(a); err != nil {
			t.Fatal(err)
		}
	}
	if read(); len(gotSources)+len(gotNetns)+len(gotAnnounced) != 0 {
		t.Errorf("left: %v %v %v", gotSources, gotNetns, gotAnnounced)
	}
}

func TestMaglevTable(t *testing.T) {
	m := open(t)
	table := make([]uint32, 16381)
	for i := range table {
		table[i] = uint32(i * 7)
	}
	first, err := m.PutTable(3, table)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Table(3); err != nil || !slices.Equal(got, table) {
		t.Errorf("%d entries, %v", len(got), err)
	}
	second, err := m.PutTable(3, table[:251]) // the size was changed in the configuration
	if err != nil || second == first {
		t.Fatalf("table %d after %d, %v", second, first, err)
	}
	if got, err := m.Table(3); err != nil || !slices.Equal(got, table[:251]) {
		t.Errorf("%d entries, %v", len(got), err)
	}
	seen := map[uint32]uint32{}
	if err := m.EachTable(func(set, id uint32) { seen[set] = id }); err != nil || len(seen) != 1 || seen[3] != second {
		t.Errorf("tables %v, %v, want %d", seen, err, second)
	}
	if err := errors.Join(m.DeleteTable(3), m.DeleteTable(3)); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Table(3); err != nil || got != nil {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

func TestForgetAffinity(t *testing.T) {
	m := open(t)
	add := func(client string, set, backend uint32) {
		t.Helper()
		if err := put(m, bpf.DatapathMapStraitAffinity, bpf.AffinityKey{Client: addr(client), Set: set}, bpf.Affinity{Backend: backend, Generation: 9}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (n int) {
		t.Helper()
		if err := m.EachAffinity(func(a Affinity) { n += int(10*a.Set + a.Backend) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	add("10.0.0.1", 1, 5)
	add("10.0.0.2", 1, 6)
	add("10.0.0.1", 2, 5)
	if err := m.ForgetAffinity(1, 5); err != nil || left() != 16+25 {
		t.Errorf("left %d, %v", left(), err)
	}
	if err := m.ForgetAffinity(1, 0); err != nil || left() != 25 {
		t.Errorf("left %d, %v", left(), err)
	}
	if err := m.Purge([]netip.Addr{netip.MustParseAddr("10.0.0.1")}); err != nil || left() != 0 {
		t.Errorf("left %d, %v", left(), err)
	}
}

// served writes the entry of a client of a service whose backend is on another node, and its way back.
func served(t *testing.T, m *Maps, port uint16, backend, lastSeen uint32, flags bpf.CtFlags) (bpf.CtKey, bpf.NatKey) {
	t.Helper()
	client, front, node, pod := addr("203.0.113.9"), addr("192.0.2.1"), addr("192.168.0.1"), addr("10.0.1.7")
	k := bpf.CtKey{Lo: front, LoPort: bpf.NetPort(80), Hi: client, HiPort: bpf.NetPort(port), Proto: unix.IPPROTO_TCP}
	e := bpf.CtEntry{
		Flags: flags | bpf.CtService | bpf.CtNat | bpf.CtHiBegan, LastSeen: lastSeen, NatAddr: node, NatPort: bpf.NetPort(port + 1000),
		Backend: backend, BackendGen: 1,
	}
	n := bpf.NatKey{Remote: pod, RemotePort: bpf.NetPort(8080), Node: node, NodePort: bpf.NetPort(port + 1000), Proto: unix.IPPROTO_TCP}
	if err := errors.Join(put(m, bpf.DatapathMapStraitCt, k, e), put(m, bpf.DatapathMapStraitNat, n,
		bpf.NatEntry{Client: client, ClientPort: bpf.NetPort(port), FrontAddr: front, FrontPort: bpf.NetPort(80)})); err != nil {
		t.Fatal(err)
	}
	return k, n
}

func TestSweepOfServices(t *testing.T) {
	m := open(t)
	now, err := clock()
	if err != nil {
		t.Fatal(err)
	}
	seconds := uint32(now / time.Second)
	backend := Backend{AddrPort: netip.MustParseAddrPort("10.0.1.7:8080"), Protocol: unix.IPPROTO_TCP, Generation: 1}
	other := Backend{AddrPort: netip.MustParseAddrPort("10.0.1.8:8080"), Protocol: unix.IPPROTO_TCP, Generation: 1}
	for id, b := range map[uint32]Backend{5: backend, 6: other, 7: backend} {
		if err := errors.Join(m.PutBackend(id, b), put(m, bpf.DatapathMapStraitLoad, id, bpf.Load{Sockets: 10 + id, Tracked: 99, Connections: 1000})); err != nil {
			t.Fatal(err)
		}
	}
	liveCT, liveNAT := served(t, m, 5001, 5, seconds-100, bpf.CtReplied)
	_, _ = served(t, m, 5002, 5, seconds, bpf.CtReplied)
	deadCT, deadNAT := served(t, m, 5003, 5, seconds-100, bpf.CtReplied|bpf.CtRst)
	closedCT, _ := served(t, m, 5004, 5, seconds, bpf.CtReplied|bpf.CtFinHi|bpf.CtFinLo)
	movedCT, movedNAT := served(t, m, 5005, 6, seconds, bpf.CtReplied) // the way back is of the backend before
	_, goneNAT := served(t, m, 5006, 8, seconds, bpf.CtReplied)        // its backend's row is gone
	for i := range 3 {
		s, err := m.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		want := [3]Swept{{Connections: 6, Expired: 1, NAT: 5, Loads: 3}, {Connections: 5, NAT: 5, Orphans: 1}, {Connections: 5, NAT: 4}}[i]
		if s.Took = 0; s != want {
			t.Errorf("sweep %d: %+v, want %+v", i, s, want)
		}
	}
	for id, want := range map[uint32]Load{5: {15, 2, 1000}, 6: {16, 1, 1000}, 7: {17, 0, 1000}} {
		if l, _, err := m.Load(id); err != nil || l != want {
			t.Errorf("load of %d: %+v, %v, want %+v", id, l, err, want)
		}
	}
	for _, c := range []struct {
		what string
		there,
		want bool
	}{
		{"connection", has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, liveCT), true},
		{"its way back", has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, liveNAT), true},
		{"finished connection", has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, deadCT), false},
		{"its way back", has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, deadNAT), false},
		{"closed a moment ago", has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, closedCT), true},
		{"connection with another backend", has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, movedCT), true},
		{"way back from the backend before", has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, movedNAT), false},
		{"way back from a backend whose row is gone", has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, goneNAT), true},
	} {
		if c.there != c.want {
			t.Errorf("%s is there: %v", c.what, c.there)
		}
	}
}
