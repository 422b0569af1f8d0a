package netfilter

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

const etherLen = 14

// truth is whether a packet matches: what rules ask for is not always known of a packet that does not exist.
type truth int

const (
	no truth = iota
	maybe
	yes
)

func is(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (t truth) not() truth { return yes - t }

// end is how a chain or a rule ends.
type end int

const (
	goOn end = iota
	returned
	accepted
	dropped
	refused
)

// Registers of rules: 16 of 4 bytes, of which four each have another name (linux/netfilter/nf_tables.h).
const (
	registers    = 16
	registerSize = 4
	wideSize     = 16
	firstNarrow  = unix.NFT_REG32_00
)

// deepest is how far chains may call each other; the kernel's own limit is 16.
const deepest = 16

// evaluation is one packet at one base chain.
type evaluation struct {
	packet Passing
	found  *Finding
	// passed: a rule that may match has accepted the packet, so that no later one of this base chain surely stops it.
	passed bool

	data  [registers * registerSize]byte
	known [registers * registerSize]bool
	mark  []byte // nil: not known
	set   bool   // mark was set by a rule
}

func (p Passing) v6() bool { return p.network()[0]>>4 == 6 }

func (p Passing) network() []byte { return p.Frame[etherLen:] }

func (p Passing) protocol() byte {
	if p.v6() {
		return p.network()[6]
	}
	return p.network()[9]
}

func (p Passing) transport() []byte {
	if p.v6() {
		return p.network()[40:]
	}
	return p.network()[int(p.network()[0]&0xf)*4:]
}

// stop notes that the packet ends here, if that is sure.
func (e *evaluation) stop(how end, rule string, sure bool) end {
	if !sure || e.passed {
		e.found.May = append(e.found.May, rule)
		return goOn
	}
	e.found.Rule, e.found.Dropped, e.found.Refused = rule, how == dropped, how == refused
	return how
}

func (e *evaluation) chain(c *chain, sure bool, depth int) end {
	for _, rule := range c.rules {
		if got := e.rule(c, rule, sure, depth); got != goOn {
			return got
		}
	}
	return goOn
}

// rule goes through the expressions of a rule; those that match nothing act.
func (e *evaluation) rule(c *chain, rule *nftables.Rule, sure bool, depth int) end {
	e.known = [registers * registerSize]bool{}
	for _, x := range rule.Exprs {
		t, acts := e.match(c.table, x)
		if !acts {
			if t == no {
				return goOn
			}
			sure = sure && t == yes
			continue
		}
		if got := e.act(c, rule, x, sure, depth); got != goOn {
			return got
		}
	}
	return goOn
}

// act does what a statement says.
func (e *evaluation) act(c *chain, rule *nftables.Rule, x expr.Any, sure bool, depth int) end {
	text := func() string { return c.title() + ", " + ruleText(rule) }
	switch x := x.(type) {
	case *expr.Verdict:
		return e.verdict(c, x, sure, depth, text)
	case *expr.Reject:
		return e.stop(refused, text(), sure)
	case *expr.Target:
		return e.target(x, sure, text)
	case *expr.NAT, *expr.Masq, *expr.Redir, *expr.TProxy, *expr.Queue, *expr.SynProxy:
		e.found.May = append(e.found.May, text())
		if sure {
			return accepted
		}
	case *expr.Payload: // a write
		e.found.May = append(e.found.May, text())
	case *expr.Meta: // a write
		if x.Key == expr.MetaKeyMARK {
			e.set, e.mark = true, nil
			if value, ok := e.load(x.Register, registerSize); ok && sure {
				e.mark = value
			}
		}
	case *expr.Lookup: // into a map of verdicts
		v, t := e.verdictOf(c.table.sets[x.SetName], x)
		switch {
		case t == no:
		case v == nil:
			e.found.May = append(e.found.May, text())
		default:
			return e.verdict(c, v, sure && t == yes, depth, text)
		}
	}
	return goOn
}

func (e *evaluation) verdict(c *chain, v *expr.Verdict, sure bool, depth int, text func() string) end {
	switch v.Kind {
	case expr.VerdictDrop:
		return e.stop(dropped, text(), sure)
	case expr.VerdictAccept, expr.VerdictStop:
		if sure {
			return accepted
		}
		e.passed = true
	case expr.VerdictReturn:
		if sure {
			return returned
		}
		e.passed = true // what follows may never be asked
	case expr.VerdictJump, expr.VerdictGoto:
		to := c.table.chains[v.Chain]
		if to == nil || depth >= deepest {
			return goOn
		}
		got := e.chain(to, sure, depth+1)
		if got != returned && got != goOn {
			return got
		}
		if v.Kind == expr.VerdictGoto && sure {
			return returned
		}
	case expr.VerdictQueue:
		e.found.May = append(e.found.May, text())
	}
	return goOn
}

// target is one of iptables' own.
func (e *evaluation) target(x *expr.Target, sure bool, text func() string) end {
	switch x.Name {
	case "REJECT":
		return e.stop(refused, text(), sure)
	case "LOG", "NFLOG", "TRACE", "CT", "NOTRACK", "AUDIT", "CHECKSUM", "CLASSIFY", "TCPMSS", "CONNMARK", "CONNSECMARK", "SECMARK":
		return goOn
	case "MARK":
		e.set, e.mark = true, nil
		return goOn
	}
	e.found.May = append(e.found.May, text())
	return goOn
}

// match says whether an expression lets the rule go on; acts: it is none that matches.
func (e *evaluation) match(t *ruleTable, x expr.Any) (truth, bool) {
	switch x := x.(type) {
	case *expr.Meta:
		if x.SourceRegister {
			return yes, true
		}
		value, ok := e.meta(x.Key)
		e.store(x.Register, value, ok)
	case *expr.Payload:
		if x.OperationType == expr.PayloadWrite {
			return yes, true
		}
		return e.payload(x), false
	case *expr.Ct:
		if !x.SourceRegister {
			value, ok := e.tracked(x.Key)
			e.store(x.Register, value, ok)
		}
	case *expr.Immediate:
		e.store(x.Register, x.Data, true)
	case *expr.Bitwise:
		e.bitwise(x)
	case *expr.Byteorder:
		e.byteorder(x)
	case *expr.Cmp:
		return e.compare(x), false
	case *expr.Range:
		value, ok := e.load(x.Register, len(x.FromData))
		if !ok {
			return maybe, false
		}
		in := is(bytes.Compare(value, x.FromData) >= 0 && bytes.Compare(value, x.ToData) <= 0)
		if x.Op == expr.CmpOpNeq {
			in = in.not()
		}
		return in, false
	case *expr.Lookup:
		if x.IsDestRegSet && x.DestRegister == unix.NFT_REG_VERDICT {
			return yes, true
		}
		return e.lookup(t.sets[x.SetName], x), false
	case *expr.Match:
		return e.compat(x), false
	case *expr.Counter, *expr.Log, *expr.Objref, *expr.Notrack, *expr.FlowOffload:
		return yes, false
	case *expr.Verdict, *expr.Reject, *expr.Target, *expr.NAT, *expr.Masq, *expr.Redir, *expr.TProxy, *expr.Queue, *expr.SynProxy:
		return yes, true
	case *expr.Fib:
		e.store(x.Register, make([]byte, registerSize), false)
	default: // limits, quotas, sockets, numbers of chance: not known of a packet that is not sent
		return maybe, false
	}
	return yes, false
}

func (e *evaluation) at(register uint32) int {
	if register >= firstNarrow {
		return int(register-firstNarrow) * registerSize
	}
	return int(register-1) * wideSize
}

func (e *evaluation) store(register uint32, value []byte, known bool) {
	at := e.at(register)
	if at < 0 || at+len(value) > len(e.data) {
		return
	}
	if !known && len(value) == 0 {
		value = make([]byte, min(wideSize, len(e.data)-at))
	}
	padded := (len(value) + registerSize - 1) / registerSize * registerSize
	for i := range min(padded, len(e.data)-at) {
		e.data[at+i], e.known[at+i] = 0, known
	}
	copy(e.data[at:], value)
}

func (e *evaluation) load(register uint32, size int) ([]byte, bool) {
	at := e.at(register)
	if at < 0 || at+size > len(e.data) {
		return nil, false
	}
	for _, known := range e.known[at : at+size] {
		if !known {
			return nil, false
		}
	}
	return bytes.Clone(e.data[at : at+size]), true
}

func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func (e *evaluation) meta(key expr.MetaKey) ([]byte, bool) {
	p := e.packet
	name := func(s string) []byte {
		b := make([]byte, unix.IFNAMSIZ)
		copy(b, s)
		return b
	}
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(p.In), true
	case expr.MetaKeyOIFNAME:
		return name(p.Out), true
	case expr.MetaKeyIIF:
		return native32(uint32(p.InIndex)), true
	case expr.MetaKeyOIF:
		return native32(uint32(p.OutIdx)), true
	case expr.MetaKeyL4PROTO:
		return []byte{p.protocol()}, true
	case expr.MetaKeyNFPROTO:
		if p.v6() {
			return []byte{unix.NFPROTO_IPV6}, true
		}
		return []byte{unix.NFPROTO_IPV4}, true
	case expr.MetaKeyPROTOCOL:
		return bytes.Clone(p.Frame[12:etherLen]), true
	case expr.MetaKeyLEN:
		return native32(uint32(len(p.network()))), true
	case expr.MetaKeyMARK:
		if e.set {
			return e.mark, e.mark != nil
		}
		return native32(0), true
	}
	return nil, false
}

func (e *evaluation) payload(x *expr.Payload) truth {
	var from []byte
	switch x.Base {
	case expr.PayloadBaseLLHeader:
		from = e.packet.Frame
	case expr.PayloadBaseNetworkHeader:
		from = e.packet.network()
	case expr.PayloadBaseTransportHeader:
		from = e.packet.transport()
	}
	if int(x.Offset+x.Len) > len(from) { // the kernel ends the rule
		return no
	}
	e.store(x.DestRegister, from[x.Offset:x.Offset+x.Len], true)
	return yes
}

// Bits of a connection's state, in nftables and in iptables' match (linux/netfilter/nf_conntrack_common.h).
const (
	ctEstablished = 1 << 1
	ctNew         = 1 << 3
	ctUntracked   = 1 << 6
)

func (e *evaluation) state() uint32 {
	if e.packet.Untracked {
		return ctUntracked
	}
	if e.packet.Known {
		return ctEstablished
	}
	return ctNew
}

func (e *evaluation) tracked(key expr.CtKey) ([]byte, bool) {
	if key == expr.CtKeySTATE {
		return native32(e.state()), true
	}
	return nil, false
}

func (e *evaluation) bitwise(x *expr.Bitwise) {
	value, ok := e.load(x.SourceRegister, int(x.Len))
	if !ok || len(x.Mask) < len(value) || len(x.Xor) < len(value) {
		e.store(x.DestRegister, make([]byte, x.Len), false)
		return
	}
	for i := range value {
		value[i] = value[i]&x.Mask[i] ^ x.Xor[i]
	}
	e.store(x.DestRegister, value, true)
}

func (e *evaluation) byteorder(x *expr.Byteorder) {
	value, ok := e.load(x.SourceRegister, int(x.Len))
	if !ok || x.Size == 0 {
		e.store(x.DestRegister, make([]byte, x.Len), false)
		return
	}
	size := int(x.Size)
	for at := 0; at+size <= len(value); at += size {
		for i, j := at, at+size-1; i < j; i, j = i+1, j-1 { // both ways are the same on a little-endian machine
			value[i], value[j] = value[j], value[i]
		}
	}
	e.store(x.DestRegister, value, true)
}

func (e *evaluation) compare(x *expr.Cmp) truth {
	value, ok := e.load(x.Register, len(x.Data))
	if !ok {
		return maybe
	}
	c := bytes.Compare(value, x.Data)
	switch x.Op {
	case expr.CmpOpEq:
		return is(c == 0)
	case expr.CmpOpNeq:
		return is(c != 0)
	case expr.CmpOpLt:
		return is(c < 0)
	case expr.CmpOpLte:
		return is(c <= 0)
	case expr.CmpOpGt:
		return is(c > 0)
	case expr.CmpOpGte:
		return is(c >= 0)
	}
	return maybe
}

// element finds what a set has for a value in a register.
func (e *evaluation) element(s *set, register uint32) (*nftables.SetElement, truth) {
	if s == nil || s.Dynamic {
		return nil, maybe
	}
	var best *nftables.SetElement
	for i := range s.elements {
		one := &s.elements[i]
		value, ok := e.load(register, len(one.Key))
		if !ok {
			return nil, maybe
		}
		switch {
		case one.KeyEnd != nil:
			if within(value, one.Key, one.KeyEnd) {
				return one, yes
			}
		case !s.Interval:
			if bytes.Equal(value, one.Key) {
				return one, yes
			}
		case bytes.Compare(one.Key, value) <= 0 && (best == nil || bytes.Compare(one.Key, best.Key) > 0 || bytes.Equal(one.Key, best.Key) && best.IntervalEnd):
			best = one
		}
	}
	if best == nil || best.IntervalEnd {
		return nil, no
	}
	return best, yes
}

// within compares register by register, as ranges of several fields are kept.
func within(value, from, to []byte) bool {
	if len(to) != len(value) {
		return false
	}
	for at := 0; at < len(value); at += registerSize {
		stop := min(at+registerSize, len(value))
		if bytes.Compare(value[at:stop], from[at:stop]) < 0 || bytes.Compare(value[at:stop], to[at:stop]) > 0 {
			return false
		}
	}
	return true
}

func (e *evaluation) lookup(s *set, x *expr.Lookup) truth {
	found, t := e.element(s, x.SourceRegister)
	if x.Invert {
		return t.not()
	}
	if t == yes && x.IsDestRegSet {
		e.store(x.DestRegister, found.Val, true)
	} else if x.IsDestRegSet {
		e.store(x.DestRegister, nil, false)
	}
	return t
}

func (e *evaluation) verdictOf(s *set, x *expr.Lookup) (*expr.Verdict, truth) {
	found, t := e.element(s, x.SourceRegister)
	if t != yes {
		return nil, t
	}
	return verdictIn(found), yes
}

// verdictIn reads an element's verdict, which the library leaves as it came: nested attributes of a code and a chain.
func verdictIn(e *nftables.SetElement) *expr.Verdict {
	if e.VerdictData != nil {
		return e.VerdictData
	}
	in := attributes(e.Val)
	code := in[unix.NFTA_VERDICT_CODE]
	if len(code) != registerSize {
		return nil
	}
	chain := strings.TrimRight(string(in[unix.NFTA_VERDICT_CHAIN]), "\x00")
	return &expr.Verdict{Kind: expr.VerdictKind(int32(binary.BigEndian.Uint32(code))), Chain: chain}
}

// compat is one of iptables' own matches.
func (e *evaluation) compat(x *expr.Match) truth {
	l4 := e.packet.transport()
	if len(l4) < 4 {
		return maybe
	}
	sport, dport := binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	in := func(p uint16, r [2]uint16) bool { return p >= r[0] && p <= r[1] }
	switch info := x.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Tcp:
		if e.packet.protocol() != unix.IPPROTO_TCP {
			return no
		}
		flags := info.FlagsMask == 0 || len(l4) > 13 && (l4[13]&info.FlagsMask == info.FlagsCmp) != (info.InvFlags&xt.TcpInvFlags != 0)
		if !flags || in(sport, info.SrcPorts) == (info.InvFlags&xt.TcpInvSrcPorts != 0) || in(dport, info.DstPorts) == (info.InvFlags&xt.TcpInvDestPorts != 0) {
			return no
		}
		if info.Option != 0 {
			return maybe
		}
		return yes
	case *xt.Udp:
		if e.packet.protocol() != unix.IPPROTO_UDP {
			return no
		}
		return is(in(sport, info.SrcPorts) != (info.InvFlags&xt.UdpInvSrcPorts != 0) && in(dport, info.DstPorts) != (info.InvFlags&xt.UdpInvDestPorts != 0))
	case *xt.ConntrackMtinfo3:
		if info.MatchFlags != uint16(xt.ConntrackState) {
			return maybe
		}
		return is((uint32(info.StateMask)&e.state() != 0) != (info.InvertFlags&uint16(xt.ConntrackState) != 0))
	}
	if x.Name == "comment" {
		return yes
	}
	return maybe
}
