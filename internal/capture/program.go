package capture

import (
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/net/bpf"
)

// NetworkOffset is the base of a Program that the kernel runs: it finds the IP header whatever is before it (SKF_NET_OFF of linux/filter.h).
const NetworkOffset = 0xfff00000

// mostPeers is how many the kernel looks for: beyond, everything of the ends is copied and Match decides.
const mostPeers = 64

// Offsets from the IP header.
const (
	v4Protocol, v4Fragment, v4Source, v4Target = 9, 6, 12, 16
	v6Next, v6Source, v6Target                 = 6, 8, 24
)

// Program is the filter as a socket takes it. It lets pass all that Match wants, and little else. base is where the IP header is: NetworkOffset, or
// the length of what is before it. What passes is cut to snap bytes, counted from the beginning of the frame.
func (f Filter) Program(base uint32, snap int) ([]bpf.Instruction, error) {
	a := assembler{base: base, targets: map[string]int{}}
	if len(f.Ends) > 0 {
		f.families(&a)
	}
	a.label("accept")
	a.add(bpf.RetConstant{Val: uint32(snap)})
	a.label("reject")
	a.add(bpf.RetConstant{})
	return a.assemble()
}

func (f Filter) families(a *assembler) {
	other := "reject"
	if f.All() {
		other = "accept" // ARP and the like
	}
	a.load(0, 1)
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4})
	a.equal(4, "v4")
	a.equal(6, "v6")
	a.jump(other)
	for _, v6 := range []bool{false, true} {
		family := family{a, f, "v4", v6Source, v6Target}
		if v6 {
			family.name = "v6"
		} else {
			family.source, family.target = v4Source, v4Target
		}
		a.label(family.name)
		family.addresses(v6)
		a.label(family.name + "transport")
		if v6 {
			family.next6()
		} else {
			family.next4()
		}
	}
}

// family writes the part for one family of addresses.
type family struct {
	*assembler
	Filter
	name           string
	source, target uint32
}

// addresses goes on at "transport" if the ends are right, at "error" if one is and the packet may be an ICMP error.
func (f family) addresses(v6 bool) {
	for _, way := range []struct {
		end, peer uint32
		name      string
	}{{f.target, f.source, "in"}, {f.source, f.target, "out"}} {
		found, done := f.name+way.name+"found", f.name+way.name+"done"
		if way.name == "out" && f.ToEnds {
			continue
		}
		for _, e := range f.Ends {
			f.address(way.end, e, v6, found)
		}
		f.jump(done)
		f.label(found)
		if len(f.Peers) == 0 || len(f.Peers) > mostPeers {
			f.jump(f.name + "transport")
		} else {
			for _, p := range f.Peers {
				f.address(way.peer, p.Address, v6, f.name+"transport")
			}
			f.perhapsError(v6)
		}
		f.label(done)
	}
	f.jump("reject")
}

// perhapsError accepts what may be an ICMP error.
func (f family) perhapsError(v6 bool) {
	if v6 {
		f.load(v6Next, 1)
		f.equal(ICMPv6, "accept")
		f.extensions("accept")
		return
	}
	f.load(v4Protocol, 1)
	f.equal(ICMP, "accept")
}

// address goes to a label if the address at an offset is this one.
func (f family) address(at uint32, a netip.Addr, v6 bool, found string) {
	if a.Is6() != v6 {
		return
	}
	bytes := a.AsSlice()
	f.next++
	miss := fmt.Sprintf("miss%d", f.next)
	for i := 0; i < len(bytes); i += 4 {
		f.load(at+uint32(i), 4)
		f.unequal(uint32(bytes[i])<<24|uint32(bytes[i+1])<<16|uint32(bytes[i+2])<<8|uint32(bytes[i+3]), miss)
	}
	f.jump(found)
	f.label(miss)
}

// next4 looks at protocol and ports of IPv4.
func (f family) next4() {
	f.load(v4Protocol, 1)
	f.equal(ICMP, "accept") // perhaps an error
	f.wantedProtocol()
	if !f.wantsPorts() {
		f.jump("accept")
		return
	}
	f.load(v4Fragment, 2)
	f.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x1fff})
	f.unequal(0, "accept") // a later fragment
	f.load(0, 1)
	f.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2}, bpf.TAX{})
	f.ports(func(at uint32) { f.add(bpf.LoadIndirect{Off: f.base + at, Size: 2}) })
}

// next6 looks at protocol and ports of IPv6. What stands behind other headers is let through.
func (f family) next6() {
	f.load(v6Next, 1)
	f.equal(ICMPv6, "accept")
	f.extensions("accept")
	f.wantedProtocol()
	if !f.wantsPorts() {
		f.jump("accept")
		return
	}
	f.ports(func(at uint32) { f.load(ipv6Len+at, 2) })
}

func (f family) extensions(to string) {
	for next := range 256 {
		if extension(uint8(next)) {
			f.equal(uint32(next), to)
		}
	}
}

func (f family) wantedProtocol() {
	if f.Protocol != 0 {
		f.unequal(uint32(f.Protocol), "reject")
	}
}

func (f family) wantsPorts() bool {
	if f.Port != 0 || f.EndPort != 0 {
		return true
	}
	for _, p := range f.Peers {
		if p.Port == 0 {
			return false
		}
	}
	return len(f.Peers) > 0 && len(f.Peers) <= mostPeers
}

// ports accepts what has one of the wanted ports at either end; load reads one of both.
func (f family) ports(load func(at uint32)) {
	var wanted []uint16
	switch {
	case f.Port != 0:
		wanted = []uint16{f.Port}
	case f.EndPort != 0:
		wanted = []uint16{f.EndPort}
	default:
		for _, p := range f.Peers {
			wanted = append(wanted, p.Port)
		}
	}
	for _, at := range []uint32{0, 2} {
		load(at)
		for _, p := range wanted {
			f.equal(uint32(p), "accept")
		}
	}
	f.jump("reject")
}

// assembler writes a program whose conditions jump to labels, always forward. Conditions reach 255 instructions, jumps any.
type assembler struct {
	base    uint32
	code    []bpf.Instruction
	jumps   []fixup
	targets map[string]int
	next    int // number of the last label that was made up
}

type fixup struct {
	at int // of the Jump
	to string
}

func (a *assembler) add(i ...bpf.Instruction) { a.code = append(a.code, i...) }
func (a *assembler) label(name string)        { a.targets[name] = len(a.code) }

func (a *assembler) load(at uint32, size int) {
	a.add(bpf.LoadAbsolute{Off: a.base + at, Size: size})
}

func (a *assembler) jump(to string) {
	a.jumps = append(a.jumps, fixup{len(a.code), to})
	a.add(bpf.Jump{})
}

func (a *assembler) equal(v uint32, to string) {
	a.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: 1})
	a.jump(to)
}

func (a *assembler) unequal(v uint32, to string) {
	a.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: 1})
	a.jump(to)
}

// maxInstructions is what a kernel takes (BPF_MAXINSNS).
const maxInstructions = 4096

func (a *assembler) assemble() ([]bpf.Instruction, error) {
	for _, j := range a.jumps {
		skip := a.targets[j.to] - j.at - 1
		if skip < 0 || skip > math.MaxUint16 {
			return nil, fmt.Errorf("assemble filter: jump from %d to %s, %d instructions away", j.at, j.to, skip)
		}
		a.code[j.at] = bpf.Jump{Skip: uint32(skip)}
	}
	if len(a.code) > maxInstructions {
		return nil, fmt.Errorf("assemble filter: %d instructions, a kernel takes %d", len(a.code), maxInstructions)
	}
	return a.code, nil
}
