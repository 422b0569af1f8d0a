package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

// Repeats of a packet that was told are held back by the programs for heldBack; an entry that was silent for forgotten is removed.
const (
	heldBack  = time.Second
	forgotten = 10 * time.Second
)

func flowDescriptions() []description {
	return []description{
		{name: bpf.DatapathMapStraitEvents, purpose: "what happened to connections, until it is read",
			sealed: "who reads a record takes it away; strait observe shows them"},
		describe(bpf.DatapathMapStraitMuted, "repeated denials and drops that are not told yet",
			"PROTOCOL SOURCE DESTINATION REASON PACKETS BYTES HOOK SILENT", repeatRow),
		{name: bpf.DatapathMapStraitLost, purpose: "records that there was no room for",
			columns: []string{"KIND", "RECORDS", "PACKETS", "BYTES"}, rows: lostRows},
	}
}

// Events returns the ring of records. It belongs to m.
func (m *Maps) Events() (*ebpf.Map, error) { return m.get(bpf.DatapathMapStraitEvents) }

// Lost returns what did not fit into the ring since the map was made, by kind.
func (m *Maps) Lost() (out [flow.Kinds]flow.LostCount, err error) {
	lost, err := m.get(bpf.DatapathMapStraitLost)
	if err != nil {
		return out, err
	}
	return readLost(lost)
}

func readLost(m *ebpf.Map) (out [flow.Kinds]flow.LostCount, err error) {
	for kind := range uint32(flow.Kinds) {
		var each []bpf.Lost
		if err := m.Lookup(kind, &each); err != nil {
			return out, fmt.Errorf("read count of lost records: %w", err)
		}
		for _, c := range each {
			out[kind].Records += c.Records
			out[kind].Traffic = out[kind].Add(flow.Traffic{Packets: c.Packets, Bytes: c.Bytes})
		}
	}
	return out, nil
}

// tellEnd tells that a connection is forgotten. back says which backends there are: an entry of a client and a frontend whose backend is not
// among them is not told.
func (m *Maps) tellEnd(k bpf.CtKey, c bpf.CtEntry, back backends, now time.Time) {
	if m.Ended == nil || !ownConnection(c.Flags) || endTold(k.Proto, c.Flags) || c.Packets == [2]uint64{} {
		return
	}
	e := flow.Event{
		Time: now, Kind: flow.Ended, Hook: flow.Userland, Protocol: policy.Protocol(k.Proto), Egress: c.RuleOut, Ingress: c.RuleIn,
		Source: netAddrPort(k.Lo, k.LoPort), Target: netAddrPort(k.Hi, k.HiPort),
		Sent: flow.Traffic{Packets: c.Packets[0], Bytes: c.Bytes[0]}, Answered: flow.Traffic{Packets: c.Packets[1], Bytes: c.Bytes[1]},
	}
	if c.Flags&bpf.CtHiBegan != 0 {
		e.Source, e.Target = e.Target, e.Source
		e.Sent, e.Answered = e.Answered, e.Sent
	}
	if c.Flags&bpf.CtNat != 0 {
		e.NAT = netAddrPort(c.NatAddr, c.NatPort)
	}
	switch {
	case c.Flags&bpf.CtService != 0:
		b, ok := back[c.Backend]
		if !ok || b.Generation != c.BackendGen {
			return
		}
		e.Front, e.Target = e.Target, netAddrPort(b.Addr, b.Port)
	case c.Flags&(bpf.CtFront|bpf.CtSocket) != 0:
		e.Front = netAddrPort(c.FrontAddr, c.FrontPort)
		if gateway(e.Source.Addr()) { // hairpin: the backend is the client
			e.Source = netip.AddrPortFrom(e.Target.Addr(), e.Source.Port())
		}
	}
	m.Ended(e)
}

// ownConnection is event_real of bpf/lib/event.h: other entries are beside one that is told.
func ownConnection(f bpf.CtFlags) bool {
	return f&bpf.CtVirtual == 0 && (f&bpf.CtService == 0 || f&(bpf.CtNat|bpf.CtDSR) != 0)
}

// endTold reports whether a packet has told of the end: of a connection whose backend answers the client itself, the client's last.
func endTold(protocol uint8, f bpf.CtFlags) bool {
	const fins = bpf.CtFinLo | bpf.CtFinHi
	return protocol == unix.IPPROTO_TCP && (f&bpf.CtRst != 0 || f&fins == fins || f&bpf.CtDSR != 0 && f&fins != 0)
}

// gateway reports whether an address is the next hop of pods, which stands for a pod that reaches itself by a service.
func gateway(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{169, 254, 1, 1}) || a.Is6() && a.IsLinkLocalUnicast()
}

// netAddrPort is the zero AddrPort when there is no address.
func netAddrPort(a bpf.Addr, port uint16) netip.AddrPort {
	if ip := a.Netip(); ip.IsValid() {
		return netip.AddrPortFrom(ip, bpf.NetPort(port))
	}
	return netip.AddrPort{}
}

func lostRows(m *ebpf.Map, row func([]string)) error {
	all, err := readLost(m)
	for kind, c := range all {
		if c.Records > 0 {
			row([]string{flow.Kind(kind).String(), decimal(c.Records), decimal(c.Packets), decimal(c.Bytes)})
		}
	}
	return err
}

func repeatRow(k bpf.MutedKey, v bpf.Muted) []string {
	silent := ""
	if now, err := clock(); err == nil {
		silent = max(now-time.Duration(v.Told), 0).Truncate(time.Millisecond).String()
	}
	return []string{protocol(k.Proto), addrPort(k.Src, v.Sport), addrPort(k.Dst, k.Dport), verdict.Reason(k.Reason).String(),
		decimal(v.Packets), decimal(v.Bytes), flow.Hook(v.Hook).String(), silent}
}

// Repeats tells of the denials and drops that were held back and that no further packet has told of, and forgets those that are over. The
// time of an event is not set.
func (m *Maps) Repeats(tell func(flow.Event)) error {
	muted, err := m.get(bpf.DatapathMapStraitMuted)
	if err != nil {
		return err
	}
	now, err := clock()
	if err != nil {
		return err
	}
	var taker *ebpf.Program // rarely needed
	defer func() {
		if taker != nil {
			_ = taker.Close()
		}
	}()
	var errs []error
	err = scan(muted, func(k bpf.MutedKey, v bpf.Muted) bool {
		silent := now - time.Duration(v.Told)
		switch {
		case silent <= heldBack:
		case v.Packets > 0:
			if taker == nil {
				if taker, err = repeatTaker(muted); err != nil {
					errs = append(errs, err)
					return false
				}
			}
			taken, err := takeRepeats(taker, k)
			if err != nil {
				errs = append(errs, err)
			} else if taken.Packets > 0 {
				tell(repeat(k, v, taken))
			}
		case silent > forgotten:
			errs = append(errs, remove(m, bpf.DatapathMapStraitMuted, k))
		}
		return true
	})
	return errors.Join(append(errs, err)...)
}

func repeat(k bpf.MutedKey, v bpf.Muted, taken flow.Traffic) flow.Event {
	reason := verdict.Reason(k.Reason)
	e := flow.Event{
		Kind: flow.Dropped, Hook: flow.Hook(v.Hook), Reason: reason, Protocol: policy.Protocol(k.Proto),
		Source: netAddrPort(k.Src, v.Sport), Target: netAddrPort(k.Dst, k.Dport),
		Egress: v.RuleOut, Ingress: v.RuleIn, Sent: taken,
	}
	if reason.Policy() {
		e.Kind = flow.Denied
	}
	return e
}

// takeSize is the context of the program of repeatTaker: the key, then what it has taken.
const (
	takeKey  = int16(unsafe.Sizeof(bpf.MutedKey{}))
	takeSize = takeKey + 16
)

// repeatTaker returns a program of kind syscall that takes the counts out of an entry: programs go on counting in it meanwhile, and neither they
// nor we tell a packet twice.
func repeatTaker(muted *ebpf.Map) (*ebpf.Program, error) {
	packets, bytes := int16(unsafe.Offsetof(bpf.Muted{}.Packets)), int16(unsafe.Offsetof(bpf.Muted{}.Bytes))
	body := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for at := int16(0); at < takeKey; at += 4 {
		body = append(body, asm.LoadMem(asm.R2, asm.R6, at, asm.Word), asm.StoreMem(asm.RFP, at-takeKey, asm.R2, asm.Word))
	}
	body = append(body,
		asm.LoadMapPtr(asm.R1, muted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -int32(takeKey)),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 0),
		exchange(asm.R0, asm.R1, packets),
		asm.StoreMem(asm.R6, takeKey, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, 0),
		exchange(asm.R0, asm.R1, bytes),
		asm.StoreMem(asm.R6, takeKey+8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "strait_repeats", Type: ebpf.Syscall, Flags: sleepable, License: "Dual BSD/GPL", Instructions: body,
	})
	if err != nil {
		return nil, fmt.Errorf("load the program that takes counts of repeats: %w", err)
	}
	return p, nil
}

// exchange puts a register into 64 bits of memory and what was there into the register. The library (v0.22) writes the operation of an atomic
// instruction only if it stands in the constant as well; without that this would be an addition.
func exchange(dst, src asm.Register, offset int16) asm.Instruction {
	ins := asm.Xchg.Mem(dst, src, asm.DWord, offset)
	ins.Constant = int64(asm.Xchg >> 8)
	return ins
}

func takeRepeats(taker *ebpf.Program, k bpf.MutedKey) (flow.Traffic, error) {
	var args [takeSize]byte
	copy(args[:], unsafe.Slice((*byte)(unsafe.Pointer(&k)), takeKey))
	if _, err := taker.Run(&ebpf.RunOptions{Context: args[:], ContextOut: args[:]}); err != nil {
		return flow.Traffic{}, fmt.Errorf("take count of repeats: %w", err)
	}
	return flow.Traffic{Packets: binary.NativeEndian.Uint64(args[takeKey:]), Bytes: binary.NativeEndian.Uint64(args[takeKey+8:])}, nil
}
