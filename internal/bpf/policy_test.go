package bpf

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/strait-net/strait/internal/verdict"
)

// The policies, identities and rules of the tests. Rules of pod A are below 100, those of pod B above.
const (
	policyA, policyB = 0xaaaa, 0xbbbb
	friend, foe      = 1 << 40, 2 << 40 // identities of peers
	ruleOther        = 1                // of what has no row of its own
	ruleRow          = 2
	ruleAudit        = 9
	ruleB            = 100 // added to those of pod B
)

// with is a copy of rows with one policy entry more.
func with(rows map[PolicyKey]PolicyEntry, policy, id uint64, way PolicyDirection, e PolicyEntry) map[PolicyKey]PolicyEntry {
	all := map[PolicyKey]PolicyEntry{{Policy: policy, Identity: id, Direction: way}: e}
	for k, v := range rows {
		if _, ok := all[k]; !ok {
			all[k] = v
		}
	}
	return all
}

// nothing is a policy that denies all.
func nothing(policy uint64, rule uint32) map[PolicyKey]PolicyEntry {
	return map[PolicyKey]PolicyEntry{
		{Policy: policy, Identity: identityOther, Direction: PolicyEgress}:  denied(rule),
		{Policy: policy, Identity: identityOther, Direction: PolicyIngress}: denied(rule),
	}
}

// TestPolicyWays: the first packet of a connection is judged wherever it comes to a pod or leaves it, by the identity of the other end.
func TestPolicyWays(t *testing.T) {
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		pod := at(f.podA, 40000)
		for _, tc := range []struct {
			name     string
			from, to netip.AddrPort
			way      PolicyDirection
			peer     netip.Addr
			pass     verdict.Reason
		}{
			{"to a pod here", pod, at(f.podB, 80), PolicyEgress, f.podB, verdict.ToLocalPod},
			{"to a pod by next hop", pod, at(f.nativePod, 80), PolicyEgress, f.nativePod, verdict.ToNeighbour},
			{"to a pod through the tunnel", pod, at(f.tunnelPod, 80), PolicyEgress, f.tunnelPod, verdict.ToTunnel},
			{"to this node", pod, at(f.node, 80), PolicyEgress, f.node, verdict.ToStack},
			{"to another node", pod, at(f.nativeNode, 80), PolicyEgress, f.nativeNode, verdict.ToNeighbour},
			{"outside", pod, at(f.world, 80), PolicyEgress, f.world, verdict.ToWorldMasqueraded},
			{"from a pod elsewhere", at(f.nativePod, 80), pod, PolicyIngress, f.nativePod, verdict.ToLocalPod},
			{"from outside", at(f.world, 80), pod, PolicyIngress, f.world, verdict.ToLocalPod},
			{"from this node", at(f.node, 80), pod, PolicyIngress, f.node, verdict.ToLocalPod},
		} {
			no, other := verdict.PolicyEgress, PolicyIngress
			if tc.way == PolicyIngress {
				no, other = verdict.PolicyIngress, PolicyEgress
			}
			id := map[netip.Prefix]uint64{host(tc.peer): friend}
			for _, step := range []struct {
				name   string
				rows   policyRows
				reason verdict.Reason
				rules  map[uint32]uint64
			}{
				{"no policy", policyRows{}, tc.pass, map[uint32]uint64{}},
				{"allowed by its row", policyRows{identities: id, policies: with(nothing(policyA, ruleOther), policyA, friend, tc.way, allowed(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, tc.pass, map[uint32]uint64{ruleRow: 1}},
				{"denied by its row", policyRows{identities: id, policies: with(everything(policyA, ruleOther), policyA, friend, tc.way, denied(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, no, map[uint32]uint64{ruleRow: 1}},
				{"allowed as others", policyRows{identities: id, policies: with(everything(policyA, ruleOther), policyA, foe, tc.way, denied(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, tc.pass, map[uint32]uint64{ruleOther: 1}},
				{"denied as others", policyRows{identities: id, policies: with(nothing(policyA, ruleOther), policyA, foe, tc.way, allowed(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, no, map[uint32]uint64{ruleOther: 1}},
				{"the other direction denies", policyRows{policies: with(everything(policyA, ruleOther), policyA, identityOther, other, denied(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, tc.pass, map[uint32]uint64{ruleOther: 1}},
				{"no row: world", policyRows{policies: with(everything(policyA, ruleOther), policyA, 2, tc.way, denied(ruleRow)),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, no, map[uint32]uint64{ruleRow: 1}},
				{"the policy is missing", policyRows{policies: everything(policyB, ruleOther), pods: map[netip.Addr]uint64{f.podA: policyA}}, verdict.PolicyMissing, map[uint32]uint64{}},
				{"the policy's table is missing", policyRows{policies: with(everything(policyA, ruleOther), policyA, identityOther, tc.way, PolicyEntry{Table: 5}),
					pods: map[netip.Addr]uint64{f.podA: policyA}}, verdict.PolicyMissing, map[uint32]uint64{}},
				{"audited", policyRows{policies: with(nothing(policyA, ruleOther), policyA, identityOther, tc.way, PolicyEntry{Verdict: PolicyVerdict{Rule: ruleRow,
					AuditRule: ruleAudit, Flags: PolicyAllow | PolicyAudit | PolicyAuditDeny}}), pods: map[netip.Addr]uint64{f.podA: policyA}}, tc.pass,
					map[uint32]uint64{ruleRow: 1, ruleAudit: 1}},
				{"no policy again", policyRows{pods: map[netip.Addr]uint64{f.podA: 0}}, tc.pass, map[uint32]uint64{}},
			} {
				r.each(f.name+" "+tc.name+" "+step.name, func(r *rig) {
					r.enforce(step.rows)
					reason, rules := r.judge(tc.from, tc.to, protoTCP)
					if reason != step.reason {
						r.t.Errorf("%s, want %s", reason, step.reason)
					}
					if diff := cmp.Diff(step.rules, rules); diff != "" {
						r.t.Errorf("rules counted (-want +got):\n%s", diff)
					}
					entries := 1
					if reason.Dropped() {
						entries = 0
					}
					if n := r.entries(r.objs.StraitCt); n != entries {
						r.t.Errorf("%d connections, want %d", n, entries)
					}
					if n := r.entries(r.objs.StraitNat); n > 0 && reason.Dropped() {
						r.t.Errorf("%d masquerade ports used up", n)
					}
				})
			}
		}
	}
}

// TestPolicyPorts: tables of ports, by prefix and protocol.
func TestPolicyPorts(t *testing.T) {
	const table = 77
	for _, f := range families() {
		r := newServiceRig(t, NetworkIsland)
		icmp := layers.IPProtocol(f.icmpProto())
		request := uint16(8 << 8)
		if f.v6 {
			request = 128 << 8
		}
		rule := func(n uint32, allow bool) PolicyVerdict {
			v := PolicyVerdict{Rule: n}
			if allow {
				v.Flags = PolicyAllow
			}
			return v
		}
		rows := policyRows{
			policies: with(everything(policyA, ruleOther), policyA, identityOther, PolicyEgress, PolicyEntry{Table: table}),
			ports: map[PortKey]PolicyVerdict{
				portRow(table, 0, 0, 0):                           rule(10, false),
				portRow(table, protoTCP, 0x1000, 4):               rule(11, true), // 4096-8191
				portRow(table, protoTCP, 0x1100, 8):               rule(12, false),
				portRow(table, protoTCP, 0x1180, 16):              rule(13, true),
				portRow(table, protoUDP, 0, 0):                    rule(14, true),
				portRow(table, protoSCTP, 36412, 16):              rule(15, true),
				portRow(table, layers.IPProtocolGRE, 0, 0):        rule(16, true),
				portRow(table, icmp, request, 16):                 rule(17, true),
				portRow(table, icmp, 40<<8, 8):                    rule(18, true),
				portRow(table+1, 0, 0, 0):                         rule(99, true),
				portRow(table, layers.IPProtocol(99), 0, 0):       rule(19, false),
				portRow(table, layers.IPProtocolVRRP, 0x0000, 16): rule(20, true),
			},
			pods: map[netip.Addr]uint64{f.podA: policyA},
		}
		r.enforce(rows)
		for _, tc := range []struct {
			name  string
			proto layers.IPProtocol
			port  uint16
			rule  uint32
			pass  bool
		}{
			{"below the range", protoTCP, 4095, 10, false},
			{"first of the range", protoTCP, 4096, 11, true},
			{"last of the range", protoTCP, 8191, 11, true},
			{"above the range", protoTCP, 8192, 10, false},
			{"range inside the range", protoTCP, 0x11ff, 12, false},
			{"port inside the range inside the range", protoTCP, 0x1180, 13, true},
			{"any port", protoUDP, 53, 14, true},
			{"SCTP", protoSCTP, 36412, 15, true},
			{"SCTP, another port", protoSCTP, 36413, 10, false},
			{"protocol without ports", layers.IPProtocolGRE, 0, 16, true},
			{"protocol without ports, its port 0", layers.IPProtocolVRRP, 0, 20, true},
			{"protocol without ports, denied", layers.IPProtocol(99), 0, 19, false},
			{"protocol without a row", layers.IPProtocol(98), 0, 10, false},
			{"echo", icmp, request, 17, true},
			{"echo with a code", icmp, request + 1, 10, false},
			{"any code", icmp, 40<<8 + 5, 18, true},
			{"another type", icmp, 41 << 8, 10, false},
		} {
			r.each(f.name+" "+tc.name, func(r *rig) {
				if tc.port>>8 == 40 && f.v6 {
					r.t.Skip("an error in ICMPv6")
				}
				if tc.port>>8 == 41 && f.v6 {
					tc.port = 160 << 8
				}
				reason, rules := r.judge(at(f.podA, 40000), at(f.podB, tc.port), tc.proto)
				want := verdict.ToLocalPod
				if !tc.pass {
					want = verdict.PolicyEgress
				}
				if diff := cmp.Diff(map[uint32]uint64{tc.rule: 1}, rules); reason != want || diff != "" {
					r.t.Errorf("%s, want %s; rules counted (-want +got):\n%s", reason, want, diff)
				}
			})
		}
	}
}
