package maps

import (
	"fmt"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/identity"
)

func policyRow(k bpf.PolicyKey, v bpf.PolicyEntry) []string {
	direction := "egress"
	if k.Direction == bpf.PolicyIngress {
		direction = "ingress"
	}
	row := []string{policyName(k.Policy), direction, identity.ID(k.Identity).String(), policyName(v.Table)}
	if v.Table != 0 {
		return append(row, "", "", "", "")
	}
	return append(row, verdictCells(v.Verdict)...)
}

func portRow(k bpf.PortKey, v bpf.PolicyVerdict) []string {
	p := port(k)
	row := []string{policyName(p.Table), "any", "any"}
	if p.Protocol != 0 {
		row[1] = protocol(p.Protocol)
	}
	if p.Bits > 0 {
		row[2] = portRange(p)
	}
	return append(row, verdictCells(v)...)
}

// portRange prints "443", "1024-2047", of ICMP "type 8" or "type 3 code 4".
func portRange(p Port) string {
	last := p.Port | (1<<(16-p.Bits) - 1)
	switch name := protocol(p.Protocol); {
	case (name == "ICMP" || name == "ICMPv6") && p.Bits == 8:
		return fmt.Sprintf("type %d", p.Port>>8)
	case (name == "ICMP" || name == "ICMPv6") && p.Bits == 16:
		return fmt.Sprintf("type %d code %d", p.Port>>8, p.Port&0xff)
	case last == p.Port:
		return number(uint32(p.Port))
	}
	return fmt.Sprintf("%d-%d", p.Port, last)
}

func verdictCells(v bpf.PolicyVerdict) []string {
	verdict, audit, auditRule := "deny", "", ""
	if v.Flags&bpf.PolicyAllow != 0 {
		verdict = "allow"
	}
	if v.Flags&bpf.PolicyAudit != 0 {
		if audit = "allow"; v.Flags&bpf.PolicyAuditDeny != 0 {
			audit = "deny"
		}
		auditRule = number(v.AuditRule)
	}
	return []string{verdict, number(v.Rule), audit, auditRule}
}

func ruleRows(m *ebpf.Map, row func([]string)) error {
	return eachRule(m, func(rule uint32, perCPU []bpf.Counter) error {
		c := ruleCount(rule, perCPU)
		row([]string{number(rule), strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.Bytes, 10)})
		return nil
	})
}
