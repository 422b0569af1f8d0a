package maps

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/nstest"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// What programs and userspace call the same has the same number.
func TestConstantsOfPolicy(t *testing.T) {
	header, err := os.ReadFile("../../../bpf/lib/types.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{
		"IDENTITY_WORLD": uint64(identity.World), "IDENTITY_OTHER": uint64(identity.Other),
		"POLICY_EGRESS": uint64(policy.Egress), "POLICY_INGRESS": uint64(policy.Ingress),
	} {
		m := regexp.MustCompile(`(?m)^\t` + name + ` = (\d+),`).FindSubmatch(header)
		if m == nil || string(m[1]) != strconv.FormatUint(want, 10) {
			t.Errorf("%s is %q in C, %d in Go", name, m, want)
		}
	}
	if bpf.PolicyEgress != bpf.PolicyDirection(policy.Egress) || bpf.PolicyIngress != bpf.PolicyDirection(policy.Ingress) {
		t.Error("directions differ")
	}
}

func TestIdentityIsTheLongestPrefix(t *testing.T) {
	m := open(t)
	rows := []Identity{
		{netip.MustParsePrefix("0.0.0.0/0"), 2}, {netip.MustParsePrefix("::/0"), 3}, {netip.MustParsePrefix("10.0.0.0/8"), 300},
		{netip.MustParsePrefix("10.1.2.3/32"), 1 << 63}, {netip.MustParsePrefix("fd00::1/128"), 301},
	}
	if done, err := m.PutIdentities(rows); err != nil || done != len(rows) {
		t.Fatal(done, err)
	}
	for a, want := range map[string]uint64{"10.1.2.3": 1 << 63, "10.1.2.4": 300, "11.0.0.1": 2, "fd00::1": 301, "fd00::2": 3} {
		ip := netip.MustParseAddr(a)
		if id, ok, err := m.Identity(netip.PrefixFrom(ip, ip.BitLen())); err != nil || !ok || id != want {
			t.Errorf("%s is %d, %v, %v, want %d", a, id, ok, err, want)
		}
	}
	var got []Identity
	if err := m.EachIdentity(func(r Identity) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	byPrefix := func(a, b Identity) int {
		return a.Prefix.Addr().Compare(b.Prefix.Addr()) + a.Prefix.Bits() - b.Prefix.Bits()
	}
	slices.SortFunc(got, byPrefix)
	slices.SortFunc(rows, byPrefix)
	if !slices.Equal(got, rows) {
		t.Errorf("read back %v, want %v", got, rows)
	}
	if done, err := m.DeleteIdentities([]netip.Prefix{rows[0].Prefix, netip.MustParsePrefix("1.2.3.4/32")}); err != nil || done != 2 {
		t.Error(done, err)
	}
}

func TestPortIsTheLongestRow(t *testing.T) {
	m := open(t)
	keys := []Port{{Table: 1 << 40}, {Table: 1 << 40, Protocol: 6}, {1 << 40, 6, 1024, 6}, {1 << 40, 6, 1025, 16}, {Table: 7}}
	verdicts := []PolicyVerdict{{Rule: 1}, {Rule: 2}, {Rule: 3, Flags: bpf.PolicyAllow}, {Rule: 4}, {Rule: 5}}
	if done, err := m.PutPorts(keys, verdicts); err != nil || done != len(keys) {
		t.Fatal(done, err)
	}
	for p, want := range map[Port]uint32{
		{1 << 40, 17, 53, 16}: 1, {1 << 40, 6, 80, 16}: 2, {1 << 40, 6, 1024, 16}: 3, {1 << 40, 6, 2047, 16}: 3, {1 << 40, 6, 2048, 16}: 2,
		{1 << 40, 6, 1025, 16}: 4, {7, 6, 80, 16}: 5,
	} {
		if v, ok, err := m.Port(p); err != nil || !ok || v.Rule != want {
			t.Errorf("%+v: %+v, %v, %v, want rule %d", p, v, ok, err, want)
		}
	}
	got := map[Port]PolicyVerdict{}
	if err := m.EachPort(func(p Port, v PolicyVerdict) { got[p] = v }); err != nil {
		t.Fatal(err)
	}
	want := map[Port]PolicyVerdict{}
	for i, k := range keys {
		want[k] = verdicts[i]
	}
	want[Port{1 << 40, 6, 1024, 6}] = verdicts[2]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := m.DeletePorts(keys[1:]); err != nil {
		t.Fatal(err)
	}
	if v, _, err := m.Port(Port{1 << 40, 6, 1025, 16}); err != nil || v.Rule != 1 {
		t.Errorf("after deletion %+v, %v", v, err)
	}
}

func TestPolicyAndNodeState(t *testing.T) {
	m := open(t)
	k := PolicyKey{Policy: 9, Direction: bpf.PolicyIngress, Identity: 255}
	e := PolicyEntry{Table: 4, Verdict: PolicyVerdict{Rule: 1, AuditRule: 2, Flags: bpf.PolicyAllow | bpf.PolicyAudit}}
	if _, err := m.PutPolicies([]PolicyKey{k}, []PolicyEntry{e}); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := m.Policy(k); err != nil || !ok || got != e {
		t.Error(got, ok, err)
	}
	if s, err := m.NodeState(); err != nil || s != (NodeState{}) {
		t.Error(s, err)
	}
	if err := m.PutNodeState(NodeState{3, 9}); err != nil {
		t.Fatal(err)
	}
	if s, err := m.NodeState(); err != nil || s != (NodeState{3, 9}) {
		t.Error(s, err)
	}
	if done, err := m.DeletePolicies([]PolicyKey{k, k}); err != nil || done != 2 {
		t.Error(done, err)
	}
}

// count does what programs on two CPUs do.
func count(t *testing.T, m *Maps, rule uint32, packets uint64) {
	t.Helper()
	perCPU := make([]bpf.Counter, ebpf.MustPossibleCPU())
	perCPU[0], perCPU[len(perCPU)-1] = bpf.Counter{Packets: 1, Bytes: 60}, bpf.Counter{Packets: packets - 1, Bytes: 60 * (packets - 1)}
	if err := m.Kernel()[bpf.DatapathMapStraitRule].Put(rule, perCPU); err != nil {
		t.Fatal(err)
	}
}

func TestRules(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	sizes := small
	sizes.Rules = 4096
	m := openAt(t, tree, sizes)
	count(t, m, 7, 5)
	count(t, m, 4000, 9)
	want := []RuleCount{{7, 5, 300}, {4000, 9, 540}}
	read := func(m *Maps) (got []RuleCount) {
		t.Helper()
		if err := m.EachRule(func(c RuleCount) { got = append(got, c) }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := read(m); !slices.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	sizes.Rules = 8192
	larger := openAt(t, tree, sizes)
	if err := larger.Settle(); err != nil {
		t.Fatal(err)
	}
	if got := read(larger); !slices.Equal(got, want) {
		t.Errorf("after growing %v, want %v", got, want)
	}
	sizes.Rules = 1024
	spec, err := Spec(sizes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(tree, spec); !errors.Is(err, ErrFull) {
		t.Errorf("shrunk below a rule that has counted: %v", err)
	}
	if err := larger.ZeroRule(7); err != nil {
		t.Fatal(err)
	}
	if c, err := larger.RuleCount(7); err != nil || c != (RuleCount{Rule: 7}) {
		t.Error(c, err)
	}
	if err := larger.ZeroRule(8192); err == nil {
		t.Error("a slot that is not there was zeroed")
	}
}

func TestPoliciesThatDoNotFit(t *testing.T) {
	tree, _, err := pin.Prepare(nstest.BPFFS(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	m := openAt(t, tree, config.Maps{Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024, Policies: 100})
	keys := make([]PolicyKey, 150)
	for i := range keys {
		keys[i].Policy = uint64(i)
	}
	done, err := m.PutPolicies(keys, make([]PolicyEntry, len(keys)))
	if !errors.Is(err, ErrFull) || done != 100 {
		t.Errorf("%d written, %v", done, err)
	}
	for i, k := range keys {
		if _, ok, err := m.Policy(k); err != nil || ok != (i < done) {
			t.Fatalf("row %d is there: %v, %v", i, ok, err)
		}
	}
}

func TestDumpOfPolicy(t *testing.T) {
	m := open(t)
	_, err1 := m.PutPolicies([]PolicyKey{{10, bpf.PolicyEgress, 255}, {10, bpf.PolicyIngress, 300}},
		[]PolicyEntry{{Table: 11}, {Verdict: PolicyVerdict{Rule: 3, AuditRule: 4, Flags: bpf.PolicyAllow | bpf.PolicyAudit | bpf.PolicyAuditDeny}}})
	_, err2 := m.PutPorts([]Port{{Table: 11}, {11, 6, 1024, 6}, {11, 6, 80, 16}, {11, 1, 0x0800, 8}, {11, 1, 0x0304, 16}},
		[]PolicyVerdict{{Rule: 1}, {Rule: 1}, {Rule: 1}, {Rule: 1}, {Rule: 1}})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][][]string{
		"policy": {
			{"000000000000000a", "egress", "other", "000000000000000b", "", "", "", ""},
			{"000000000000000a", "ingress", "000000000000012c", "-", "allow", "3", "deny", "4"},
		},
		"port": {
			{"000000000000000b", "ICMP", "type 3 code 4", "deny", "1", "", ""},
			{"000000000000000b", "ICMP", "type 8", "deny", "1", "", ""},
			{"000000000000000b", "TCP", "1024-2047", "deny", "1", "", ""},
			{"000000000000000b", "TCP", "80", "deny", "1", "", ""},
			{"000000000000000b", "any", "any", "deny", "1", "", ""},
		},
	} {
		got, err := m.Dump(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Rows); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func BenchmarkPut100kPolicies(b *testing.B) {
	tree, _, err := pin.Prepare(nstest.BPFFS(b, 0))
	if err != nil {
		b.Fatal(err)
	}
	m := openAt(b, tree, small)
	keys := make([]PolicyKey, 100_000)
	for i := range keys {
		keys[i] = PolicyKey{Policy: uint64(i)}
	}
	for b.Loop() {
		if _, err := m.PutPolicies(keys, make([]PolicyEntry, len(keys))); err != nil {
			b.Fatal(err)
		}
	}
}
