package events

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	client = netip.MustParseAddrPort("10.244.1.5:41000")
	server = netip.MustParseAddrPort("[fd00:2::5]:8080")
)

func record(change func(*bpf.Event)) []byte {
	r := bpf.Event{
		Time: 5_000_000_000, Src: bpf.AddrFrom(client.Addr()), Dst: bpf.AddrFrom(server.Addr()), Sport: bpf.NetPort(client.Port()), Dport: bpf.NetPort(server.Port()),
		Kind: bpf.EventNew, Hook: bpf.HookFromPod, Ifindex: 7, RuleOut: 11, RuleIn: 12, Proto: unix.IPPROTO_TCP, TcpFlags: 2, Icmp: 0x0800,
	}
	change(&r)
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
}

func TestDecode(t *testing.T) {
	c := clock{offset: 100 * time.Second}
	plain := flow.Event{
		Time: time.Unix(105, 0), Kind: flow.New, Hook: flow.FromPod, Protocol: policy.TCP, TCPFlags: 2, Device: 7,
		Source: client, Target: server, Egress: 11, Ingress: 12,
	}
	front := netip.MustParseAddrPort("10.96.0.10:80")
	for name, c := range map[string]struct {
		record func(*bpf.Event)
		want   func(*flow.Event)
	}{
		"new": {func(*bpf.Event) {}, func(*flow.Event) {}},
		"behind a service, masqueraded": {func(r *bpf.Event) {
			r.Front, r.FrontPort = bpf.AddrFrom(front.Addr()), bpf.NetPort(80)
			r.Nat, r.NatPort = bpf.AddrFrom(netip.MustParseAddr("192.0.2.1")), bpf.NetPort(10001)
			r.Flags = bpf.EventAnswer
		}, func(e *flow.Event) {
			e.Front, e.NAT, e.Answer = front, netip.MustParseAddrPort("192.0.2.1:10001"), true
		}},
		"ended": {func(r *bpf.Event) { r.Kind, r.Packets, r.Bytes = bpf.EventEnd, [2]uint64{3, 4}, [2]uint64{5, 6} }, func(e *flow.Event) {
			e.Kind, e.Sent, e.Answered = flow.Ended, flow.Traffic{Packets: 3, Bytes: 5}, flow.Traffic{Packets: 4, Bytes: 6}
		}},
		"denied": {func(r *bpf.Event) {
			r.Kind, r.Reason, r.Packets[0], r.Bytes[0] = bpf.EventDenied, bpf.DatapathReason(verdict.PolicyIngress), 9, 540
		}, func(e *flow.Event) {
			e.Kind, e.Reason, e.Sent = flow.Denied, verdict.PolicyIngress, flow.Traffic{Packets: 9, Bytes: 540}
		}},
		"audited": {func(r *bpf.Event) { r.Flags, r.Audit = bpf.EventAudit, 13 }, func(e *flow.Event) { e.Audited = 13 }},
		"ping": {func(r *bpf.Event) { r.Proto = unix.IPPROTO_ICMP }, func(e *flow.Event) {
			e.Protocol, e.TCPFlags, e.ICMP = policy.ICMP, 0, 0x0800
		}},
		"without addresses": {func(r *bpf.Event) {
			r.Kind, r.Src, r.Dst, r.Reason = bpf.EventDropped, bpf.Addr{}, bpf.Addr{}, bpf.DatapathReason(verdict.Malformed)
		}, func(e *flow.Event) {
			e.Kind, e.Source, e.Target, e.Reason = flow.Dropped, netip.AddrPort{}, netip.AddrPort{}, verdict.Malformed
		}},
	} {
		want := plain
		c.want(&want)
		got, err := decode(record(c.record), clock{offset: 100 * time.Second})
		if err != nil || got != want {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, want)
		}
	}
	for name, sample := range map[string][]byte{
		"kind 0": record(func(r *bpf.Event) { r.Kind = 0 }), "kind 6, which is only ours": record(func(r *bpf.Event) { r.Kind = 6 }),
		"empty": {}, "short": record(func(*bpf.Event) {})[:100], "long": append(record(func(*bpf.Event) {}), 0),
	} {
		if e, err := decode(sample, c); err == nil {
			t.Errorf("%s: decoded as %+v", name, e)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(func(*bpf.Event) {}))
	f.Add(record(func(r *bpf.Event) { r.Kind = bpf.EventDropped; r.Src = bpf.Addr{} }))
	f.Add([]byte("no record"))
	f.Fuzz(func(t *testing.T, sample []byte) {
		e, err := decode(sample, clock{})
		if err != nil {
			return
		}
		if e.Kind < flow.New || e.Kind > flow.Dropped {
			t.Errorf("kind %d", e.Kind)
		}
		for _, a := range []netip.AddrPort{e.Source, e.Target, e.Front, e.NAT} {
			if a.Addr().Is4In6() || !a.Addr().IsValid() && a != (netip.AddrPort{}) {
				t.Errorf("address %v", a)
			}
		}
		if !e.Kind.Stops() && e.Reason != 0 {
			t.Errorf("%s for a reason: %s", e.Kind, e.Reason)
		}
	})
}

func TestClockFollows(t *testing.T) {
	var c clock
	if err := c.adjust(); err != nil {
		t.Fatal(err)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(c.time(uint64(ts.Nano()))).Abs(); d > 10*time.Millisecond {
		t.Errorf("a record of now is %s off", d)
	}
	kept := c.offset + tolerated/2
	c.offset = kept
	if err := c.adjust(); err != nil {
		t.Fatal(err)
	}
	if c.offset != kept && (c.offset-kept).Abs() < tolerated/2 {
		t.Errorf("offset moved by %s", c.offset-kept)
	}
	c.offset += time.Hour
	if err := c.adjust(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(c.time(uint64(ts.Nano()))).Abs(); d > time.Second {
		t.Errorf("after the time of day was set: %s off", d)
	}
}

// kernel is a ring that a test fills.
type kernel struct {
	ring    *ebpf.Map
	mu      sync.Mutex // guards everything below
	lost    [flow.Kinds]flow.LostCount
	repeats []flow.Event
}

func (k *kernel) Events() (*ebpf.Map, error) { return k.ring, nil }

func (k *kernel) Lost() ([flow.Kinds]flow.LostCount, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lost, nil
}

func (k *kernel) Repeats(tell func(flow.Event)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.repeats {
		tell(e)
	}
	k.repeats = nil
	return nil
}

func newKernel(t testing.TB, size uint32) *kernel {
	t.Helper()
	nstest.Root(t)
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	return &kernel{ring: ring}
}

// producer puts its context, a record, into the ring without waking anybody, as the programs do.
func (k *kernel) producer(t testing.TB) *ebpf.Program {
	t.Helper()
	size := int16(unsafe.Sizeof(bpf.Event{}))
	body := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for at := int16(0); at < size; at += 4 {
		body = append(body, asm.LoadMem(asm.R2, asm.R6, at, asm.Word), asm.StoreMem(asm.RFP, at-size, asm.R2, asm.Word))
	}
	const noWakeup, sleepable = 1, 1 << 4
	body = append(body,
		asm.LoadMapPtr(asm.R1, k.ring.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -int32(size)),
		asm.Mov.Imm(asm.R3, int32(size)), asm.Mov.Imm(asm.R4, noWakeup), asm.FnRingbufOutput.Call(), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.Syscall, Flags: sleepable, License: "Dual BSD/GPL", Instructions: body})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func put(t testing.TB, p *ebpf.Program, sample []byte) {
	t.Helper()
	if _, err := p.Run(&ebpf.RunOptions{Context: sample}); err != nil {
		t.Fatal(err)
	}
}

func TestReader(t *testing.T) {
	k := newKernel(t, 1<<16)
	p := k.producer(t)
	k.lost[flow.New].Records = 100 // before anybody read
	put(t, p, record(func(r *bpf.Event) { r.RuleOut = 1 }))
	var mu sync.Mutex
	var got []flow.Event
	var errs []string
	r, err := New(Config{
		Kernel: k,
		Tell:   func(e []flow.Event) { mu.Lock(); got = append(got, e...); mu.Unlock() },
		Report: func(err error) {
			if err != nil {
				mu.Lock()
				errs = append(errs, err.Error())
				mu.Unlock()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if used, size := r.Fill(); used < len(record(func(*bpf.Event) {})) || size != 1<<16 {
		t.Errorf("%d of %d bytes wait", used, size)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			is := ok()
			mu.Unlock()
			if is {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: got %+v, errors %q", what, got, errs)
			}
		}
	}
	until("what was there", func() bool { return len(got) == 1 && got[0].Egress == 1 })
	begun := time.Now()
	put(t, p, record(func(r *bpf.Event) { r.RuleOut = 2 }))
	until("what nobody was woken for", func() bool { return len(got) == 2 && got[1].Egress == 2 })
	t.Logf("told after %s", time.Since(begun))
	k.mu.Lock()
	k.lost[flow.New].Records += 7
	k.lost[flow.New].Packets += 8
	k.repeats = []flow.Event{{Kind: flow.Denied, Egress: 3}}
	k.mu.Unlock()
	until("what was lost and held back", func() bool {
		return slices.ContainsFunc(got, func(e flow.Event) bool {
			return e.Kind == flow.Lost && e.LostKind == flow.New && e.LostRecords == 7 && e.Sent.Packets == 8 && time.Since(e.Time) < time.Minute
		}) && slices.ContainsFunc(got, func(e flow.Event) bool {
			return e.Kind == flow.Denied && e.Egress == 3 && time.Since(e.Time) < time.Minute
		})
	})
	put(t, p, record(func(r *bpf.Event) { r.Kind = 77 }))
	until("what cannot be read", func() bool {
		return got[len(got)-1].Kind == flow.Lost && got[len(got)-1].LostKind == 0 && got[len(got)-1].LostRecords == 1 && len(errs) == 1 && strings.Contains(errs[0], "kind 77")
	})
	cancel()
	<-done
	r.Close()
	if used, size := r.Fill(); used != 0 || size != 0 {
		t.Errorf("%d of %d bytes of a closed ring", used, size)
	}
}

// BenchmarkRead is decoding what is in the ring, in batches.
func BenchmarkRead(b *testing.B) {
	k := newKernel(b, 1<<23)
	p := k.filler(b)
	var n int
	r, err := New(Config{Kernel: k, Tell: func(e []flow.Event) { n += len(e) }})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	const records = 20000
	packet := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		if _, err := p.Run(&ebpf.RunOptions{Data: packet, Repeat: records}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r.ring.SetDeadline(time.Now().Add(-time.Second))
		for drained := false; !drained; r.tell() {
			if drained, err = r.read(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if n != b.N*records {
		b.Fatalf("read %d of %d", n, b.N*records)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
}

// filler puts one record into the ring each time it runs.
func (k *kernel) filler(b *testing.B) *ebpf.Program {
	b.Helper()
	sample := record(func(*bpf.Event) {})
	var body asm.Instructions
	for at := 0; at < len(sample); at += 8 {
		body = append(body, asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint64(sample[at:])), asm.DWord),
			asm.StoreMem(asm.RFP, int16(at-len(sample)), asm.R2, asm.DWord))
	}
	body = append(body,
		asm.LoadMapPtr(asm.R1, k.ring.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -int32(len(sample))),
		asm.Mov.Imm(asm.R3, int32(len(sample))), asm.Mov.Imm(asm.R4, 1), asm.FnRingbufOutput.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: body})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}
