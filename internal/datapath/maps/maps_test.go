package maps

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var small = config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024}

func open(t testing.TB) *Maps {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	return openAt(t, tree, small)
}

func openAt(t testing.TB, tree pin.Tree, sizes config.Maps) *Maps {
	t.Helper()
	spec, err := Spec(sizes)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(tree, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func TestEveryMapIsDescribed(t *testing.T) {
	spec, err := Spec(small)
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for _, d := range descriptions() {
		described[d.name] = true
	}
	for _, name := range pinnedNames(spec) {
		if !described[name] {
			t.Errorf("map %s has no description: strait bpf list would not show it", name)
		}
	}
	if len(described) != len(pinnedNames(spec)) {
		t.Errorf("%d maps described, %d pinned", len(described), len(pinnedNames(spec)))
	}
}

func TestReopenKeepsContent(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPinned(tree); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read before anything is pinned: %v", err)
	}
	first := openAt(t, tree, small)
	e := Endpoint{Address: netip.MustParseAddr("10.0.0.7"), Index: 12, Policy: 5, PodMAC: []byte{2, 0, 0, 0, 0, 1}, HostMAC: []byte{2, 0, 0, 0, 0, 2}}
	if err := first.PutEndpoint(e); err != nil {
		t.Fatal(err)
	}
	first.Close()
	reader, err := OpenPinned(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, m := range []*Maps{openAt(t, tree, small), reader} {
		got, ok, err := m.Endpoint(e.Address)
		if err != nil || !ok || cmp.Diff(e, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) != "" {
			t.Errorf("endpoint after reopening: %+v, %v, %v", got, ok, err)
		}
	}
}

func TestOtherShapeIsRefusedAndKept(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	// A foreign map in place of one, and no other map yet.
	alien, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer alien.Close()
	if err := alien.Pin(filepath.Join(tree.Maps(), bpf.DatapathMapStraitCt)); err != nil {
		t.Fatal(err)
	}
	spec, err := Spec(small)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(tree, spec)
	if !errors.Is(err, ErrShape) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"strait_ct is Hash of 4 to 8 bytes, 16 entries", "want LRUHash of 40 to", "1024 entries"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	pins, err := os.ReadDir(tree.Maps())
	if err != nil || len(pins) != 1 {
		t.Errorf("pins after the refusal: %v, %v", pins, err)
	}
}

func TestReadOnlyPinPath(t *testing.T) {
	root := nstest.BPFFS(t, 0)
	tree, _, err := pin.Prepare(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	spec, err := Spec(small)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(tree, spec); err == nil || !errors.Is(err, pin.ErrUnusable) {
		t.Errorf("error %v", err)
	}
}

func addr(s string) bpf.Addr { return bpf.AddrFrom(netip.MustParseAddr(s)) }

func TestTimeouts(t *testing.T) {
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	for _, c := range []struct {
		proto uint8
		flags bpf.CtFlags
		want  time.Duration
	}{
		{tcp, 0, 60 * time.Second},
		{tcp, bpf.CtReplied, 8000 * time.Second},
		{tcp, bpf.CtReplied | bpf.CtFinHi, 120 * time.Second},
		{tcp, bpf.CtReplied | bpf.CtFinHi | bpf.CtFinLo, 10 * time.Second},
		{tcp, bpf.CtRst, 10 * time.Second},
		{udp, 0, 60 * time.Second},
		{udp, bpf.CtReplied | bpf.CtNat, 180 * time.Second},
		{unix.IPPROTO_ICMP, 0, 30 * time.Second},
		{unix.IPPROTO_ICMPV6, bpf.CtReplied, 30 * time.Second},
	} {
		if got := timeout(c.proto, c.flags); got != c.want {
			t.Errorf("protocol %d flags %#x: %s, want %s", c.proto, c.flags, got, c.want)
		}
	}
	k := bpf.CtKey{Proto: udp}
	for _, c := range []struct {
		now, seen uint32
		want      bool
	}{{1000, 940, false}, {1000, 939, true}, {1000, 1001, false}, {5, ^uint32(0) - 10, false}, {100, ^uint32(0) - 10, true}} {
		if got := expired(k, bpf.CtEntry{LastSeen: c.seen}, c.now); got != c.want {
			t.Errorf("now %d, seen %d: expired %v", c.now, c.seen, got)
		}
	}
}

// masqueraded writes a connection of a pod to the outside with its way back.
func masqueraded(t *testing.T, m *Maps, pod string, port uint16, lastSeen uint32, flags bpf.CtFlags) (bpf.CtKey, bpf.NatKey) {
	t.Helper()
	p, world, node := addr(pod), addr("93.184.216.34"), addr("192.168.0.1")
	k := bpf.CtKey{Lo: p, LoPort: bpf.NetPort(port), Hi: world, HiPort: bpf.NetPort(80), Proto: unix.IPPROTO_TCP}
	e := bpf.CtEntry{Flags: flags | bpf.CtNat, LastSeen: lastSeen, NatAddr: node, NatPort: bpf.NetPort(port + 1000)}
	n := bpf.NatKey{Remote: world, RemotePort: bpf.NetPort(80), Node: node, NodePort: bpf.NetPort(port + 1000), Proto: unix.IPPROTO_TCP}
	if got, ok := natKey(k, e, nil); !ok || got != n {
		t.Fatalf("natKey = %+v, %v, want %+v", got, ok, n)
	}
	err := errors.Join(put(m, bpf.DatapathMapStraitCt, k, e),
		put(m, bpf.DatapathMapStraitNat, n, bpf.NatEntry{Client: p, ClientPort: bpf.NetPort(port)}))
	if err != nil {
		t.Fatal(err)
	}
	return k, n
}

func has[V, K any](t *testing.T, m *Maps, name string, k K) bool {
	t.Helper()
	_, ok, err := lookup[V](m, name, k)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestSweep(t *testing.T) {
	m := open(t)
	now, err := clock()
	if err != nil {
		t.Fatal(err)
	}
	seconds := uint32(now / time.Second)
	liveCT, liveNAT := masqueraded(t, m, "10.0.0.1", 4001, seconds-100, bpf.CtReplied)
	deadCT, deadNAT := masqueraded(t, m, "10.0.0.1", 4002, seconds-100, bpf.CtReplied|bpf.CtRst)
	goneCT, goneNAT := masqueraded(t, m, "10.0.0.1", 4003, seconds, bpf.CtReplied)
	if err := remove(m, bpf.DatapathMapStraitCt, goneCT); err != nil {
		t.Fatal(err)
	}
	s, err := m.Sweep()
	if err != nil || s.Connections != 2 || s.Expired != 1 || s.Orphans != 0 {
		t.Errorf("first sweep %+v, %v", s, err)
	}
	if !has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, goneNAT) {
		t.Error("a way back without connection was removed at first sight: its connection may just be being made")
	}
	if s, err = m.Sweep(); err != nil || s.Expired != 0 || s.Orphans != 1 {
		t.Errorf("second sweep %+v, %v", s, err)
	}
	if !has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, liveCT) || !has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, liveNAT) {
		t.Error("an established connection was swept")
	}
	if has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, deadCT) || has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, deadNAT) ||
		has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, goneNAT) {
		t.Error("a finished connection or an orphan is still there")
	}
}

// Echo has one identifier for both ends: the pod's in the connection, the node's in the way back.
func TestSweepOfEcho(t *testing.T) {
	m := open(t)
	now, err := clock()
	if err != nil {
		t.Fatal(err)
	}
	pod, world, node := addr("10.0.0.1"), addr("1.1.1.1"), addr("192.168.0.1")
	k := bpf.CtKey{Lo: world, Hi: pod, LoPort: bpf.NetPort(77), HiPort: bpf.NetPort(77), Proto: unix.IPPROTO_ICMP}
	e := bpf.CtEntry{Flags: bpf.CtNat | bpf.CtHiBegan, LastSeen: uint32(now / time.Second), NatAddr: node, NatPort: bpf.NetPort(10001)}
	n := bpf.NatKey{Remote: world, Node: node, NodePort: bpf.NetPort(10001), Proto: unix.IPPROTO_ICMP}
	if got, ok := natKey(k, e, nil); !ok || got != n {
		t.Errorf("natKey = %+v, %v, want %+v", got, ok, n)
	}
	if err := errors.Join(put(m, bpf.DatapathMapStraitCt, k, e),
		put(m, bpf.DatapathMapStraitNat, n, bpf.NatEntry{Client: pod, ClientPort: bpf.NetPort(77)})); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s, err := m.Sweep(); err != nil || s.Expired != 0 || s.Orphans != 0 || s.NAT != 1 {
			t.Errorf("sweep %+v, %v", s, err)
		}
	}
	e.NatPort = bpf.NetPort(10002) // the connection has another port now: the old way back is nobody's
	if err := put(m, bpf.DatapathMapStraitCt, k, e); err != nil {
		t.Fatal(err)
	}
	orphans := 0
	for range 2 {
		s, err := m.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		orphans += s.Orphans
	}
	if orphans != 1 {
		t.Errorf("%d orphans, want 1", orphans)
	}
}

func TestPurgeLeavesNoTrace(t *testing.T) {
	m := open(t)
	now, err := clock()
	if err != nil {
		t.Fatal(err)
	}
	seconds := uint32(now / time.Second)
	otherCT, otherNAT := masqueraded(t, m, "10.0.0.1", 4001, seconds, 0)
	for i := range uint16(100) {
		masqueraded(t, m, "10.0.0.2", 4100+i, seconds, 0)
	}
	pod := addr("10.0.0.2")
	frag := bpf.FragKey{Src: addr("10.0.0.1"), Dst: pod, Id: 7, Proto: unix.IPPROTO_UDP}
	dgram := bpf.DgramKey{Cookie: 9, Backend: bpf.SockaddrKey{Addr: pod, Port: 1, Proto: unix.IPPROTO_UDP}}
	if err := errors.Join(put(m, bpf.DatapathMapStraitFrag, frag, bpf.FragEntry{}), put(m, bpf.DatapathMapStraitDgram, dgram, bpf.SockaddrKey{})); err != nil {
		t.Fatal(err)
	}
	if err := m.Purge([]netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ct", "nat", "frag", "dgram"} {
		d, err := m.Dump(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range d.Rows {
			if strings.Contains(strings.Join(row, " "), "10.0.0.2") {
				t.Errorf("%s still has %q", name, row)
			}
		}
	}
	if !has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, otherCT) || !has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, otherNAT) {
		t.Error("another pod's connection was purged")
	}
}

func TestListAndDump(t *testing.T) {
	m := open(t)
	pfx := netip.MustParsePrefix
	for _, r := range []Remote{
		{Prefix: pfx("10.244.2.0/24"), Flags: bpf.RemotePod | bpf.RemoteTunnel, Node: netip.MustParseAddr("192.168.0.2")},
		{Prefix: pfx("10.244.10.0/24"), Flags: bpf.RemotePod, Node: netip.MustParseAddr("fe80::2"), Index: 3},
		{Prefix: pfx("fd00:2::/64"), Flags: bpf.RemotePod},
		{Prefix: pfx("192.168.0.1/32"), Flags: bpf.RemoteHost},
	} {
		if err := m.PutRemote(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := m.Dump("ipcache", 3)
	if err != nil {
		t.Fatal(err)
	}
	want := Dump{
		Name: "strait_ipcache", Columns: []string{"PREFIX", "FLAGS", "VIA", "DEVICE", "NODE"}, Omitted: 1,
		Rows: [][]string{
			{"10.244.2.0/24", "pod,tunnel", "192.168.0.2", "0", "0"},
			{"10.244.10.0/24", "pod", "fe80::2", "3", "0"},
			{"192.168.0.1/32", "host", "", "0", "0"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for word, prefix := range map[string]string{"192.168.0.2": "10.244.2.0/24", "fd00:2::/64": "fd00:2::/64", "3": "10.244.10.0/24"} {
		if d, err := m.Dump("ipcache", 0, word); err != nil || len(d.Rows) != 1 || d.Rows[0][0] != prefix {
			t.Errorf("entries with %q: %v, %v, want that of %s", word, d.Rows, err, prefix)
		}
	}
	list, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		switch d.Name {
		case "strait_ipcache":
			if d.Entries != 4 || d.Max != 1024 {
				t.Errorf("ipcache: %+v", d)
			}
		case "strait_sk":
			if d.Entries != Uncounted {
				t.Errorf("sk: %+v", d)
			}
		}
		if d.Purpose == "" || d.Type == "" {
			t.Errorf("incomplete: %+v", d)
		}
		if _, err := m.Dump(d.Name, 1); (err != nil) != slices.Contains([]string{"strait_sk", "strait_sk_use", "strait_events"}, d.Name) {
			t.Errorf("dump %s: %v", d.Name, err)
		}
	}
	if _, err := m.Dump("nonsense", 0); !errors.Is(err, ErrUnknownMap) || !strings.Contains(err.Error(), "strait_ct") {
		t.Errorf("unknown map: %v", err)
	}
}

// A full connection table is scanned in one piece; buckets longer than a chunk are not lost.
func TestScanSeesEverything(t *testing.T) {
	m := open(t)
	const n = 1000
	for i := range uint32(n) {
		if err := m.PutBackend(i, Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint32]bool{}
	if err := m.EachBackend(func(id uint32, b Backend) { seen[id] = b.Port() == 80 }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != n {
		t.Errorf("saw %d of %d", len(seen), n)
	}
}

func BenchmarkPurge(b *testing.B) {
	tree, _, err := pin.Prepare(nstest.BPFFS(b, 0))
	if err != nil {
		b.Fatal(err)
	}
	sizes := small
	sizes.Conntrack = 512 << 10
	m := openAt(b, tree, sizes)
	for i := range uint32(100_000) {
		k := bpf.CtKey{Lo: addr("10.0.0.1"), Hi: bpf.Addr{W: [4]uint32{i}}, Proto: unix.IPPROTO_TCP}
		if err := put(m, bpf.DatapathMapStraitCt, k, bpf.CtEntry{}); err != nil {
			b.Fatal(err)
		}
	}
	gone := []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	for b.Loop() {
		if err := m.Purge(gone); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMatches(t *testing.T) {
	row := []string{"TCP", "10.244.0.7:1234", "[fd00::1]:80", "10.244.0.70", ""}
	for word, want := range map[string]bool{"10.244.0.7": true, "10.244.0.7:1234": true, "fd00::1": true, "10.244.0.70": true, "TCP": true, "10.244.0": false, "1234": false, "80": false} {
		if got := matches(row, []string{"nobody", word}); got != want {
			t.Errorf("%q: %v, want %v", word, got, want)
		}
	}
	if !matches(row, nil) {
		t.Error("without words every row will do")
	}
}
