package maps

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
)

// The maps as the first release has pinned them.
func firstRelease() []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: bpf.DatapathMapStraitCt, Type: ebpf.LRUHash, KeySize: 40, ValueSize: 88, MaxEntries: small.Conntrack},
		{Name: bpf.DatapathMapStraitNat, Type: ebpf.LRUHash, KeySize: 40, ValueSize: 24, MaxEntries: small.NAT},
		{Name: bpf.DatapathMapStraitService, Type: ebpf.Hash, KeySize: 20, ValueSize: 16, MaxEntries: small.Services, Flags: unix.BPF_F_NO_PREALLOC},
		{Name: bpf.DatapathMapStraitSlot, Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 2 * small.Backends, Flags: unix.BPF_F_NO_PREALLOC},
		{Name: bpf.DatapathMapStraitBackend, Type: ebpf.Hash, KeySize: 4, ValueSize: 24, MaxEntries: small.Backends, Flags: unix.BPF_F_NO_PREALLOC},
	}
}

// old is a node that the first release has run on: a masqueraded connection, a service of two backends.
type old struct {
	tree   pin.Tree
	maps   map[string]*ebpf.Map
	ct     bpf.CtKey
	nat    bpf.NatKey
	client bpf.Addr
}

func newOld(t *testing.T) *old {
	t.Helper()
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	o := &old{tree: tree, maps: map[string]*ebpf.Map{}, client: addr("10.0.0.1")}
	for _, spec := range firstRelease() {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		if err := m.Pin(filepath.Join(tree.Maps(), spec.Name)); err != nil {
			t.Fatal(err)
		}
		o.maps[spec.Name] = m
	}
	o.ct, o.nat = o.connect(t, 4001, 3)
	front := bpf.SockaddrKeyFrom(netip.MustParseAddrPort("10.96.0.1:80"), unix.IPPROTO_TCP)
	o.put(t, bpf.DatapathMapStraitService, binary.NativeEndian.AppendUint32, front, 7, 2, uint32(bpf.ServiceClusterIP), 0)
	for i := range uint32(2) {
		o.put(t, bpf.DatapathMapStraitSlot, binary.NativeEndian.AppendUint32, bpf.SlotKey{Set: 7, Slot: i}, 20+i)
		value := pack(t, netip.MustParseAddr("10.0.0.9").As16(), bpf.NetPort(uint16(8080+i)), uint8(unix.IPPROTO_TCP), uint8(0), uint32(1234))
		if err := o.maps[bpf.DatapathMapStraitBackend].Put(20+i, value); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func (o *old) put(t *testing.T, name string, word func([]byte, uint32) []byte, key any, words ...uint32) {
	t.Helper()
	var value []byte
	for _, w := range words {
		value = word(value, w)
	}
	if err := o.maps[name].Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// connect does what an old program does for a connection from the pod to the outside that has carried some packets.
func (o *old) connect(t *testing.T, port uint16, packets uint64) (bpf.CtKey, bpf.NatKey) {
	t.Helper()
	world, node := addr("93.184.216.34"), addr("192.168.0.1")
	k := bpf.CtKey{Lo: o.client, LoPort: bpf.NetPort(port), Hi: world, HiPort: bpf.NetPort(443), Proto: unix.IPPROTO_TCP}
	value := pack(t, uint64(5), [2]uint64{packets, 0}, [2]uint64{60 * packets, 0}, uint32(17), uint32(bpf.CtNat|bpf.CtReplied), [2]uint32{}, uint32(0), uint32(0),
		node.W, bpf.NetPort(port+1000), uint16(0), uint32(99))
	n := bpf.NatKey{Remote: world, RemotePort: bpf.NetPort(443), Node: node, NodePort: bpf.NetPort(port + 1000), Proto: unix.IPPROTO_TCP}
	if err := errors.Join(o.maps[bpf.DatapathMapStraitCt].Put(k, value),
		o.maps[bpf.DatapathMapStraitNat].Put(n, pack(t, o.client.W, bpf.NetPort(port), [3]uint16{}))); err != nil {
		t.Fatal(err)
	}
	return k, n
}

func pack(t *testing.T, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&b, binary.NativeEndian, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// check reads the new maps as an agent does.
func (o *old) check(t *testing.T, when string, m *Maps, ct bpf.CtKey, nat bpf.NatKey, packets uint64) {
	t.Helper()
	services, slots, backends := map[Frontend]Service{}, map[Slot]Share{}, map[uint32]Backend{}
	if err := errors.Join(
		m.EachService(func(f Frontend, s Service) { services[f] = s }),
		m.EachSlot(func(s Slot, to Share) { slots[s] = to }),
		m.EachBackend(func(id uint32, b Backend) { backends[id] = b }),
	); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	want := []any{
		map[Frontend]Service{{at("10.96.0.1:80"), 6}: {ID: 7, Flags: bpf.ServiceClusterIP, Set: 7, Count: 2, OuterSet: 7, OuterCount: 2}},
		map[Slot]Share{{7, 0}: {20, 0}, {7, 1}: {21, 0}},
		map[uint32]Backend{20: {at("10.0.0.9:8080"), 6, 0, 1234}, 21: {at("10.0.0.9:8081"), 6, 0, 1234}},
	}
	compare := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, []any{services, slots, backends}, compare); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
	e, ok, err := lookup[bpf.CtEntry](m, bpf.DatapathMapStraitCt, ct)
	if err != nil || !ok || e.Packets[0] != packets || e.LastSeen != 17 || e.Tick != 99 || e.NatAddr != addr("192.168.0.1") || e.FrontAddr != (bpf.Addr{}) {
		t.Errorf("%s: connection %+v, %v, %v, want %d packets", when, e, ok, err, packets)
	}
	n, ok, err := lookup[bpf.NatEntry](m, bpf.DatapathMapStraitNat, nat)
	if err != nil || !ok || n.Client != o.client || n.FrontPort != 0 || n.FrontAddr != (bpf.Addr{}) {
		t.Errorf("%s: way back %+v, %v, %v", when, n, ok, err)
	}
}

// program loads one that uses maps, as an agent does that attaches it.
func program(t *testing.T, used ...*ebpf.Map) *ebpf.Program {
	t.Helper()
	var all asm.Instructions
	for _, m := range used {
		all = append(all, asm.LoadMapPtr(asm.R1, m.FD()))
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: append(all, asm.Mov.Imm(asm.R0, 0), asm.Return())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (o *old) pins(t *testing.T) (now, next []string) {
	t.Helper()
	for dir, into := range map[string]*[]string{o.tree.Maps(): &now, o.tree.Next(): &next} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			*into = append(*into, e.Name())
		}
	}
	return now, next
}

func TestUpgradeFromTheFirstRelease(t *testing.T) {
	o := newOld(t)
	m := openAt(t, o.tree, small)
	o.check(t, "opened", m, o.ct, o.nat, 3)
	if got := m.Rebuilding(); len(got) != 5 {
		t.Errorf("rebuilding %q", got)
	}
	// Until all programs are replaced the old ones go on: a connection begins, and the known one goes on.
	k, n := o.connect(t, 4002, 1)
	o.connect(t, 4001, 30)
	if err := m.CatchUp(); err != nil {
		t.Fatal(err)
	}
	o.check(t, "caught up", m, k, n, 1)
	k2, n2 := o.connect(t, 4003, 2)
	// Programs on the new maps have seen more of this one.
	e, _, _ := lookup[bpf.CtEntry](m, bpf.DatapathMapStraitCt, k)
	e.Packets[0] = 8
	if err := put(m, bpf.DatapathMapStraitCt, k, e); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	for when, m := range map[string]*Maps{"settled": m, "opened again": openAt(t, o.tree, small)} {
		o.check(t, when, m, o.ct, o.nat, 30)
		o.check(t, when, m, k, n, 8)
		o.check(t, when, m, k2, n2, 2)
		if got := m.Rebuilding(); len(got) != 0 {
			t.Errorf("%s: rebuilding %q", when, got)
		}
	}
	if _, next := o.pins(t); next != nil {
		t.Errorf("left in next: %q", next)
	}
}

// An agent is killed after every step in turn, before and after its programs have taken over. The next one finds everything.
func TestKilledWhileRebuilding(t *testing.T) {
	killed := errors.New("killed")
	for attached := range 2 {
		for n := 0; ; n++ {
			o := newOld(t)
			var done []string
			r := rebuilder{o.tree, func(step string) error {
				if done = append(done, step); len(done) > n {
					return killed
				}
				return nil
			}}
			spec, err := Spec(small)
			if err != nil {
				t.Fatal(err)
			}
			var k = o.ct
			var w = o.nat
			packets := uint64(3)
			m, err := openWith(r, spec)
			if err == nil {
				if attached == 1 {
					program(t, m.Kernel()[bpf.DatapathMapStraitCt], m.Kernel()[bpf.DatapathMapStraitNat])
					// Entries that only the new maps have.
					k.LoPort, w.NodePort, packets = bpf.NetPort(5555), bpf.NetPort(6555), 4
					e, _, _ := lookup[bpf.CtEntry](m, bpf.DatapathMapStraitCt, o.ct)
					e.Packets[0] = packets
					if err := errors.Join(put(m, bpf.DatapathMapStraitCt, k, e), put(m, bpf.DatapathMapStraitNat, w, bpf.NatEntry{Client: o.client})); err != nil {
						t.Fatal(err)
					}
				}
				err = m.Settle()
				m.Close()
			}
			if err != nil && !errors.Is(err, killed) {
				t.Fatal(err)
			}
			alive := err == nil
			when := fmt.Sprintf("killed after %q, attached %d", done, attached)
			late, lateWay := o.connect(t, 4009, 2) // by programs that are still the old ones
			m = openAt(t, o.tree, small)
			o.check(t, when, m, k, w, packets)
			if err := errors.Join(m.CatchUp(), m.Settle()); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			o.check(t, when+", settled", m, k, w, packets)
			if !slices.Contains(done, "swap strait_ct") { // later no program of before is left
				o.check(t, when+", settled", m, late, lateWay, 2)
			}
			if now, next := o.pins(t); next != nil || len(now) != len(pinnedNames(spec)) {
				t.Errorf("%s: pins %q and %q", when, now, next)
			}
			if alive {
				if n != 25 {
					t.Errorf("%d steps, want 5 of each map: %q", n, done)
				}
				break
			}
		}
	}
}

func TestSizeChange(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	m := openAt(t, tree, small)
	ct, nat := masqueraded(t, m, "10.0.0.1", 4001, 1, bpf.CtReplied)
	at := netip.MustParseAddrPort
	if _, err := m.PutTable(9, []uint32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(300) {
		if err := m.PutBackend(i, Backend{AddrPort: at("10.0.0.1:80"), Generation: i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.PutRemote(Remote{Prefix: netip.MustParsePrefix("10.0.0.0/8"), NodeID: 7}); err != nil {
		t.Fatal(err)
	}
	other := config.Maps{Conntrack: 4096, NAT: 2048, Services: 2048, Backends: 4096, IPCache: 2048}
	for _, sizes := range []config.Maps{other, small, small} {
		m = openAt(t, tree, sizes)
		if err := m.Settle(); err != nil {
			t.Fatal(err)
		}
		if got := m.Kernel()[bpf.DatapathMapStraitCt].MaxEntries(); got != sizes.Conntrack {
			t.Errorf("%d entries, want %d", got, sizes.Conntrack)
		}
		if !has[bpf.CtEntry](t, m, bpf.DatapathMapStraitCt, ct) || !has[bpf.NatEntry](t, m, bpf.DatapathMapStraitNat, nat) {
			t.Error("a connection is lost")
		}
		n := 0
		if err := m.EachBackend(func(id uint32, b Backend) { n += int(b.Generation / max(id, 1)) }); err != nil || n != 299 {
			t.Errorf("%d backends, %v", n, err)
		}
		if list, err := m.Remotes(); err != nil || len(list) != 1 || list[0].NodeID != 7 {
			t.Errorf("ipcache %+v, %v", list, err)
		}
	}
	// What does not fit is refused, and what is there stays.
	spec, err := Spec(config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 256, IPCache: 1024})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(tree, spec)
	if !errors.Is(err, ErrShape) || !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "strait_backend is Hash of 4 to 28 bytes, 1024 entries") ||
		!strings.Contains(err.Error(), "256 entries, flags 0x1: its entries cannot be copied") {
		t.Errorf("error %v", err)
	}
	m = openAt(t, tree, small)
	if got := m.Rebuilding(); len(got) != 0 {
		t.Errorf("rebuilding %q", got)
	}
}

// A rebuilding that was given up with its programs in place goes on towards a third size.
func TestSizeChangeTwice(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	first := openAt(t, tree, small)
	early, _ := masqueraded(t, first, "10.0.0.1", 4001, 1, 0)
	sizes := small
	sizes.Conntrack = 2048
	second := openAt(t, tree, sizes)
	program(t, second.Kernel()[bpf.DatapathMapStraitCt])
	inSecond, _ := masqueraded(t, second, "10.0.0.1", 4002, 1, 0)
	inFirst, _ := masqueraded(t, first, "10.0.0.1", 4003, 1, 0)
	sizes.Conntrack = 4096
	third := openAt(t, tree, sizes)
	if err := third.Settle(); err != nil {
		t.Fatal(err)
	}
	for _, k := range []bpf.CtKey{early, inSecond, inFirst} {
		if !has[bpf.CtEntry](t, third, bpf.DatapathMapStraitCt, k) {
			t.Errorf("connection of port %d is lost", bpf.NetPort(k.LoPort))
		}
	}
	if got := third.Kernel()[bpf.DatapathMapStraitCt].MaxEntries(); got != 4096 {
		t.Errorf("%d entries", got)
	}
}

func TestEveryMapCanChangeItsSize(t *testing.T) {
	spec, err := Spec(small)
	if err != nil {
		t.Fatal(err)
	}
	fixed := []string{bpf.DatapathMapStraitSk, bpf.DatapathMapStraitSkUse, bpf.DatapathMapStraitCounter, bpf.DatapathMapStraitLost}
	for _, name := range pinnedNames(spec) {
		l := layouts(name)
		if slices.Contains(fixed, name) != (len(l) == 0) {
			t.Errorf("%s has %d forms", name, len(l))
		}
		if len(l) > 0 && l[0].value != spec.Maps[name].ValueSize {
			t.Errorf("%s: today's form has %d bytes, the programs' %d", name, l[0].value, spec.Maps[name].ValueSize)
		}
	}
}
