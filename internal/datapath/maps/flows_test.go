package maps

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/verdict"
)

func TestLostIsTheSumOfAllCPUs(t *testing.T) {
	m := open(t)
	perCPU := make([]bpf.Lost, ebpf.MustPossibleCPU())
	var want flow.LostCount
	for i := range perCPU {
		perCPU[i] = bpf.Lost{Records: uint64(i + 1), Packets: 10, Bytes: 1000}
		want.Records += uint64(i + 1)
		want.Traffic = want.Add(flow.Traffic{Packets: 10, Bytes: 1000})
	}
	if err := m.byName[bpf.DatapathMapStraitLost].Put(uint32(flow.Denied), perCPU); err != nil {
		t.Fatal(err)
	}
	got, err := m.Lost()
	if err != nil || got[flow.Denied] != want || got[flow.New] != (flow.LostCount{}) {
		t.Errorf("lost %+v, %v; want %+v denied", got, err, want)
	}
	d, err := m.Dump("lost", 0)
	if err != nil || len(d.Rows) != 1 || d.Rows[0][0] != "denied" || d.Rows[0][1] != fmt.Sprint(want.Records) {
		t.Errorf("dump %+v, %v", d, err)
	}
}

// Repeats that no packet told of are told once; what is still held back or was told is left alone; what is old and told goes.
func TestRepeatsAreTakenOnce(t *testing.T) {
	m := open(t)
	now, err := clock()
	if err != nil {
		t.Fatal(err)
	}
	src, dst := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::1")
	entry := func(port uint16, reason verdict.Reason, silent time.Duration, packets uint64) {
		k := bpf.MutedKey{Src: bpf.AddrFrom(src), Dst: bpf.AddrFrom(dst), Dport: bpf.NetPort(port), Proto: 6, Reason: bpf.DatapathReason(reason)}
		v := bpf.Muted{Told: uint64(now - silent), Packets: packets, Bytes: 60 * packets, Sport: bpf.NetPort(4321), Hook: bpf.HookToPod, RuleIn: 7}
		if err := m.byName[bpf.DatapathMapStraitMuted].Put(&k, &v); err != nil {
			t.Fatal(err)
		}
	}
	entry(1, verdict.PolicyIngress, 2*time.Second, 5)
	entry(2, verdict.NoEndpoint, 2*time.Second, 6)
	entry(3, verdict.PolicyIngress, 200*time.Millisecond, 7) // still held back
	entry(4, verdict.PolicyIngress, 2*time.Second, 0)        // told
	entry(5, verdict.PolicyIngress, 20*time.Second, 0)       // told and old
	entry(6, verdict.PolicyIngress, 20*time.Second, 8)       // old
	var got []flow.Event
	for range 2 {
		if err := m.Repeats(func(e flow.Event) { got = append(got, e) }); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(got, func(a, b flow.Event) int { return int(a.Target.Port()) - int(b.Target.Port()) })
	var want []flow.Event
	for _, w := range []flow.Event{
		{Kind: flow.Denied, Reason: verdict.PolicyIngress, Target: netip.AddrPortFrom(dst, 1), Sent: flow.Traffic{Packets: 5, Bytes: 300}},
		{Kind: flow.Dropped, Reason: verdict.NoEndpoint, Target: netip.AddrPortFrom(dst, 2), Sent: flow.Traffic{Packets: 6, Bytes: 360}},
		{Kind: flow.Denied, Reason: verdict.PolicyIngress, Target: netip.AddrPortFrom(dst, 6), Sent: flow.Traffic{Packets: 8, Bytes: 480}},
	} {
		w.Hook, w.Protocol, w.Source, w.Ingress = flow.ToPod, 6, netip.AddrPortFrom(src, 4321), 7
		want = append(want, w)
	}
	if !slices.Equal(got, want) {
		t.Errorf("told %+v\nwant %+v", got, want)
	}
	d, err := m.Dump("muted", 0)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, r := range d.Rows {
		left = append(left, strings.TrimPrefix(r[2], "[fd00::1]:")+" "+r[4])
	}
	if slices.Sort(left); !slices.Equal(left, []string{"1 0", "2 0", "3 7", "4 0"}) {
		t.Errorf("left %q", left)
	}
}

// The ring has the size that the configuration says, an upgrade from a version without it makes it, and another size makes it anew.
func TestRingOfRecordsIsSized(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	size := func() uint32 {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(tree.Maps(), bpf.DatapathMapStraitEvents), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer pinned.Close()
		return pinned.MaxEntries()
	}
	for _, step := range []struct {
		bytes  uint32
		before func() error
	}{
		{1 << 16, func() error { return nil }},
		{1 << 18, func() error { return nil }},
		{1 << 16, func() error {
			for _, name := range []string{bpf.DatapathMapStraitEvents, bpf.DatapathMapStraitMuted, bpf.DatapathMapStraitLost} {
				if err := os.Remove(filepath.Join(tree.Maps(), name)); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		if err := step.before(); err != nil {
			t.Fatal(err)
		}
		spec, err := Spec(small)
		if err != nil {
			t.Fatal(err)
		}
		SizeEvents(spec, step.bytes)
		m, err := Open(tree, spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Settle(); err != nil {
			t.Fatal(err)
		}
		ring, err := m.Events()
		if err != nil || ring.MaxEntries() != step.bytes || size() != step.bytes {
			t.Errorf("ring of %d bytes, pinned %d: want %d; %v", ring.MaxEntries(), size(), step.bytes, err)
		}
		list, err := m.List()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(d Description) bool { return d.Name == bpf.DatapathMapStraitEvents })
		if i < 0 || list[i].Entries != Uncounted || list[i].Max != 0 || list[i].Bytes < uint64(step.bytes) {
			t.Errorf("listed as %+v", list[max(i, 0)])
		}
		m.Close()
	}
}

// What is forgotten is told unless a packet has told of its end, and once where several entries are of one connection.
func TestForgottenConnectionsEnd(t *testing.T) {
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	m := open(t)
	var got []string
	m.Ended = func(e flow.Event) {
		if e.Kind != flow.Ended || e.Hook != flow.Userland || time.Since(e.Time) > time.Minute {
			t.Errorf("told %+v", e)
		}
		text := fmt.Sprintf("%s %s>%s %d/%d rules %d,%d", e.Protocol, e.Source, e.Target, e.Sent, e.Answered, e.Egress, e.Ingress)
		if e.Front.IsValid() {
			text += " front " + e.Front.String()
		}
		if e.NAT.IsValid() {
			text += " nat " + e.NAT.String()
		}
		got = append(got, text)
	}
	if err := m.PutBackend(9, Backend{AddrPort: netip.MustParseAddrPort("10.0.2.9:8080"), Protocol: tcp, Generation: 3}); err != nil {
		t.Fatal(err)
	}
	entry := func(lo, hi string, proto uint8, e bpf.CtEntry) {
		t.Helper()
		l, h := netip.MustParseAddrPort(lo), netip.MustParseAddrPort(hi)
		k := bpf.CtKey{Lo: bpf.AddrFrom(l.Addr()), Hi: bpf.AddrFrom(h.Addr()), LoPort: bpf.NetPort(l.Port()), HiPort: bpf.NetPort(h.Port()), Proto: proto}
		e.Packets, e.Bytes, e.RuleOut, e.RuleIn = [2]uint64{3, 4}, [2]uint64{300, 400}, 5, 6
		if err := put(m, bpf.DatapathMapStraitCt, k, e); err != nil { // last seen when the machine began
			t.Fatal(err)
		}
	}
	const fins = bpf.CtFinLo | bpf.CtFinHi
	entry("10.0.1.1:1000", "10.0.2.1:53", udp, bpf.CtEntry{Flags: bpf.CtReplied})
	entry("10.0.1.1:80", "10.0.2.1:1001", tcp, bpf.CtEntry{Flags: bpf.CtHiBegan | bpf.CtFinHi})
	entry("10.0.1.1:1002", "10.0.2.1:80", tcp, bpf.CtEntry{Flags: fins})
	entry("10.0.1.1:1003", "10.0.2.1:80", tcp, bpf.CtEntry{Flags: bpf.CtRst})
	entry("10.0.1.1:1004", "198.51.100.1:80", tcp, bpf.CtEntry{Flags: bpf.CtNat, NatAddr: addr("192.0.2.1"), NatPort: bpf.NetPort(10004)})
	entry("10.0.1.1:1005", "10.0.2.9:8080", tcp, bpf.CtEntry{Flags: bpf.CtFront, FrontAddr: addr("10.96.0.1"), FrontPort: bpf.NetPort(80)})
	entry("10.0.1.1:1005", "10.96.0.1:80", tcp, bpf.CtEntry{Flags: bpf.CtService, Backend: 9, BackendGen: 3}) // beside the one above
	entry("192.0.2.1:30080", "198.51.100.7:1006", tcp, bpf.CtEntry{Flags: bpf.CtService | bpf.CtNat | bpf.CtHiBegan, Backend: 9, BackendGen: 3, NatAddr: addr("192.0.2.1"), NatPort: bpf.NetPort(10006)})
	entry("192.0.2.1:30080", "198.51.100.7:1007", tcp, bpf.CtEntry{Flags: bpf.CtService | bpf.CtNat | bpf.CtHiBegan, Backend: 9, BackendGen: 2})
	entry("192.0.2.1:30080", "198.51.100.7:1008", tcp, bpf.CtEntry{Flags: bpf.CtService | bpf.CtDSR | bpf.CtHiBegan | bpf.CtFinHi, Backend: 9, BackendGen: 3})
	entry("10.0.1.1:1009", "169.254.1.1:1009", tcp, bpf.CtEntry{Flags: bpf.CtFront | bpf.CtHiBegan, FrontAddr: addr("10.96.0.1"), FrontPort: bpf.NetPort(80)})
	if _, err := m.Sweep(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"TCP 10.0.1.1:1004>198.51.100.1:80 {3 300}/{4 400} rules 5,6 nat 192.0.2.1:10004",
		"TCP 10.0.1.1:1005>10.0.2.9:8080 {3 300}/{4 400} rules 5,6 front 10.96.0.1:80",
		"TCP 10.0.1.1:1009>10.0.1.1:1009 {4 400}/{3 300} rules 5,6 front 10.96.0.1:80",
		"TCP 10.0.2.1:1001>10.0.1.1:80 {4 400}/{3 300} rules 5,6",
		"TCP 198.51.100.7:1006>10.0.2.9:8080 {4 400}/{3 300} rules 5,6 front 192.0.2.1:30080 nat 192.0.2.1:10006",
		"UDP 10.0.1.1:1000>10.0.2.1:53 {3 300}/{4 400} rules 5,6",
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("told by the sweep:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got = nil
	entry("10.0.1.1:1000", "10.0.2.1:53", udp, bpf.CtEntry{})
	entry("10.0.1.2:1000", "10.0.2.1:53", udp, bpf.CtEntry{})
	entry("10.0.1.1:1002", "10.0.2.1:80", tcp, bpf.CtEntry{Flags: fins})
	if err := m.Purge([]netip.Addr{netip.MustParseAddr("10.0.1.1")}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != "UDP 10.0.1.1:1000>10.0.2.1:53 {3 300}/{4 400} rules 5,6" {
		t.Errorf("told when a pod's traces are removed: %q", got)
	}
}
