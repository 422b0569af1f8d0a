package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// title is "inet filter input", as nft names chains.
func (c *chain) title() string {
	family := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyNetdev: "netdev",
		nftables.TableFamilyBridge: "bridge",
	}[c.table.Family]
	return fmt.Sprintf("nftables %s %s %s", family, c.table.Name, c.Name)
}

// ruleText is a rule nearly as nft prints it, with its handle, by which it can be found: what has no short form is "...".
func ruleText(r *nftables.Rule) string {
	words := []string{}
	subject := ""
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			subject = metaName(e.Key)
		case *expr.Payload:
			subject = fieldName(e)
		case *expr.Ct:
			subject = "ct state"
		case *expr.Cmp:
			op := ""
			if e.Op != expr.CmpOpEq {
				op = map[expr.CmpOp]string{expr.CmpOpNeq: "!= ", expr.CmpOpLt: "< ", expr.CmpOpLte: "<= ", expr.CmpOpGt: "> ", expr.CmpOpGte: ">= "}[e.Op]
			}
			words = append(words, subject+" "+op+valueText(subject, e.Data))
		case *expr.Range:
			words = append(words, subject+" "+valueText(subject, e.FromData)+"-"+valueText(subject, e.ToData))
		case *expr.Lookup:
			words = append(words, subject+" @"+e.SetName)
		case *expr.Notrack:
			words = append(words, "notrack")
		case *expr.Bitwise, *expr.Counter, *expr.Immediate, *expr.Byteorder:
		case *expr.Match:
			words = append(words, "match "+e.Name)
		case *expr.Target:
			words = append(words, "jump "+e.Name)
		case *expr.Verdict:
			words = append(words, verdictText(e))
		case *expr.Reject:
			words = append(words, "reject")
		case *expr.Masq:
			words = append(words, "masquerade")
		case *expr.NAT:
			words = append(words, "nat")
		case *expr.Redir:
			words = append(words, "redirect")
		case *expr.TProxy:
			words = append(words, "tproxy")
		case *expr.Limit:
			words = append(words, "limit")
		default:
			words = append(words, "...")
		}
	}
	text := fmt.Sprintf("handle %d: %s", r.Handle, strings.Join(words, " "))
	if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
		text += fmt.Sprintf(" comment %q", strings.TrimRight(comment, "\x00"))
	}
	return text
}

func verdictText(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictJump:
		return "jump " + v.Chain
	case expr.VerdictGoto:
		return "goto " + v.Chain
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictQueue:
		return "queue"
	}
	return "continue"
}

func metaName(k expr.MetaKey) string {
	switch k {
	case expr.MetaKeyIIFNAME, expr.MetaKeyIIF:
		return "iifname"
	case expr.MetaKeyOIFNAME, expr.MetaKeyOIF:
		return "oifname"
	case expr.MetaKeyL4PROTO:
		return "meta l4proto"
	case expr.MetaKeyNFPROTO:
		return "meta nfproto"
	case expr.MetaKeyMARK:
		return "meta mark"
	}
	return fmt.Sprintf("meta %d", k)
}

func fieldName(p *expr.Payload) string {
	for _, a := range []struct {
		offset, size uint32
		name         string
	}{{12, 4, "ip saddr"}, {16, 4, "ip daddr"}, {8, 16, "ip6 saddr"}, {24, 16, "ip6 daddr"}} {
		if p.Base == expr.PayloadBaseNetworkHeader && p.Offset == a.offset && (p.Len == a.size || p.Len < a.size && p.Len > 1) {
			return a.name
		}
	}
	type field struct {
		base        expr.PayloadBase
		offset, len uint32
	}
	name, ok := map[field]string{
		{expr.PayloadBaseTransportHeader, 0, 2}: "sport", {expr.PayloadBaseTransportHeader, 2, 2}: "dport",
		{expr.PayloadBaseNetworkHeader, 9, 1}: "ip protocol", {expr.PayloadBaseNetworkHeader, 6, 1}: "ip6 nexthdr",
	}[field{p.Base, p.Offset, p.Len}]
	if !ok {
		return fmt.Sprintf("@%d,%d,%d", p.Base, p.Offset*8, p.Len*8)
	}
	return name
}

func valueText(subject string, b []byte) string {
	switch {
	case strings.HasSuffix(subject, "port") && len(b) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case strings.HasSuffix(subject, "addr"):
		if a, ok := netip.AddrFromSlice(b); ok {
			return a.String()
		}
		whole := make([]byte, 4, 16) // the leading bytes of a prefix
		if strings.HasPrefix(subject, "ip6") {
			whole = whole[:16]
		}
		copy(whole, b)
		if a, ok := netip.AddrFromSlice(whole); ok {
			return netip.PrefixFrom(a, len(b)*8).String()
		}
	case strings.HasSuffix(subject, "name"):
		return `"` + strings.TrimRight(string(b), "\x00") + `"`
	case len(b) == 1 && subject != "meta nfproto":
		if name, ok := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "ipv6-icmp", unix.IPPROTO_SCTP: "sctp"}[b[0]]; ok {
			return name
		}
	}
	return fmt.Sprintf("0x%x", b)
}
