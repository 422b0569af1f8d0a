package sync

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// ends are the rows of pods that nobody else writes.
type ends map[string]uint64

func (e ends) SetPolicy(attachment string, program uint64) (bool, error) {
	changed := e[attachment] != program
	e[attachment] = program
	return changed, nil
}

func (e ends) Held() (map[uint64]bool, error) {
	held := map[uint64]bool{}
	for _, id := range e {
		held[id] = true
	}
	return held, nil
}

func (e ends) CheckPolicies(bool) (int, []string, error) { return len(e), nil, nil }

var policySizes = config.Maps{
	Conntrack: 1024, NAT: 1024, Services: 1024, Backends: 1024, IPCache: 1024, Identities: 1000, Policies: 1000, Ports: 1000, Rules: 100,
}

// policyBench is a writer on the real tables.
type policyBench struct {
	*Policies
	kernel *maps.Maps
	ends   ends
	dir    string
	now    time.Time
}

func newPolicyBench(t testing.TB, sizes config.Maps) *policyBench {
	b := &policyBench{kernel: open(t, sizes), ends: ends{}, dir: t.TempDir(), now: time.Unix(1000, 0)}
	b.restart(t, sizes)
	return b
}

func (b *policyBench) restart(t testing.TB, sizes config.Maps) {
	t.Helper()
	if b.Policies != nil {
		b.Close()
	}
	var err error
	b.Policies, err = NewPolicies(PolicyConfig{Kernel: b.kernel, Ends: b.ends, Sizes: sizes, StateDir: b.dir, Now: func() time.Time { return b.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
}

func (b *policyBench) apply(t testing.TB, c policy.Change) {
	t.Helper()
	if err := errors.Join(b.Accept(&c), b.Flush(context.Background())); err != nil {
		t.Fatal(err)
	}
}

func (b *policyBench) retire(t testing.TB) {
	t.Helper()
	b.now = b.now.Add(time.Minute)
	if _, err := b.Retire(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func ref(name string) policy.RuleRef {
	return policy.RuleRef{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "a", Name: name}, Way: policy.Ingress, Path: "spec.ingress[0]"}
}

func says(allow bool, name string) policy.Entry {
	return policy.Entry{Verdict: policy.Verdict{Allow: allow, Rule: ref(name)}}
}

// program answers everybody with a denial, one identity with an allowance, and another with a table of one port.
func program(id policy.ID, allowed, some identity.ID) []policy.Answer {
	table := &policy.Table{ID: id + 1000, Rows: []policy.Row{
		{Verdict: policy.Verdict{Rule: ref("none")}}, {Protocol: policy.TCP, Port: 80, Bits: 16, Verdict: policy.Verdict{Allow: true, Rule: ref("port")}},
	}}
	return []policy.Answer{
		{Program: id, Way: policy.Ingress, Identity: identity.Other, Entry: says(false, "other")},
		{Program: id, Way: policy.Egress, Identity: identity.Other, Entry: says(true, "default")},
		{Program: id, Way: policy.Ingress, Identity: allowed, Entry: says(true, "allowed")},
		{Program: id, Way: policy.Ingress, Identity: some, Entry: policy.Entry{Table: table}},
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func twoPods() policy.Change {
	return policy.Change{
		Answers: append(program(1, 300, 301), program(2, 301, 300)...),
		Moves:   []policy.Move{{Prefix: prefix("10.0.0.1/32"), To: 300}, {Prefix: prefix("10.0.0.2/32"), To: 301}, {Prefix: prefix("0.0.0.0/0"), To: identity.World}},
		Pods:    map[string]policy.ID{"p1": 1, "p2": 2},
	}
}

func (b *policyBench) rows(t testing.TB) (policies, ports, identities int) {
	t.Helper()
	if err := errors.Join(
		b.kernel.EachPolicy(func(maps.PolicyKey, maps.PolicyEntry) { policies++ }),
		b.kernel.EachPort(func(maps.Port, maps.PolicyVerdict) { ports++ }),
		b.kernel.EachIdentity(func(maps.Identity) { identities++ }),
	); err != nil {
		t.Fatal(err)
	}
	return policies, ports, identities
}

func TestPoliciesComeAndGo(t *testing.T) {
	b := newPolicyBench(t, policySizes)
	b.apply(t, twoPods())
	if p, q, i := b.rows(t); p != 8 || q != 4 || i != 3 || b.ends["p1"] != 1 || b.ends["p2"] != 2 {
		t.Fatalf("%d policies, %d ports, %d identities, ends %v", p, q, i, b.ends)
	}
	first := b.Revision()
	if first == 0 {
		t.Error("revision 0")
	}
	// One pod goes: its program stays for a while, in case a packet is being judged by it.
	b.apply(t, policy.Change{Left: []string{"p2"}})
	delete(b.ends, "p2")
	if p, _, _ := b.rows(t); p != 8 {
		t.Errorf("%d policies just after", p)
	}
	b.retire(t)
	if p, q, _ := b.rows(t); p != 4 || q != 2 || b.Entries(1) != 4 || b.Entries(2) != 0 {
		t.Errorf("%d policies, %d ports later", p, q)
	}
	// An identity that nobody has any more takes its answers with it.
	b.apply(t, policy.Change{Pods: map[string]policy.ID{}, Moves: []policy.Move{{Prefix: prefix("10.0.0.2/32"), Gone: true}}})
	b.retire(t)
	if p, q, i := b.rows(t); p != 3 || q != 0 || i != 2 {
		t.Errorf("%d policies, %d ports, %d identities without the identity", p, q, i)
	}
	if b.Revision() <= first {
		t.Error("established connections are not judged again")
	}
}

// A container that is attached anew under the same name is told its program again: who has the rows of pods has forgotten it.
func TestPodComesAgain(t *testing.T) {
	both := twoPods()
	both.Pods["p2"] = 1 // the program stays in use when p2 goes: nothing is to be written then
	for name, change := range map[string][]policy.Change{
		"later":   {{Left: []string{"p2"}}, {Pods: map[string]policy.ID{"p2": 1}}},
		"at once": {{Left: []string{"p2"}, Pods: map[string]policy.ID{"p2": 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newPolicyBench(t, policySizes)
			b.apply(t, both)
			delete(b.ends, "p2")
			for _, c := range change {
				b.apply(t, c)
			}
			if program, told := b.ends["p2"]; !told || program != 1 {
				t.Errorf("told %t, program %d, want 1", told, program)
			}
			b.apply(t, policy.Change{Left: []string{"p1", "p2"}})
			delete(b.ends, "p1")
			delete(b.ends, "p2")
			b.retire(t)
			if n := b.Entries(1); n != 0 {
				t.Errorf("%d entries of a program that nobody has", n)
			}
		})
	}
}

func TestRestartWritesNothingAgain(t *testing.T) {
	b := newPolicyBench(t, policySizes)
	b.apply(t, twoPods())
	revision := b.Revision()
	numbers, err := b.Rules()
	if err != nil || len(numbers) != 5 {
		t.Fatal(numbers, err)
	}
	b.restart(t, policySizes)
	b.apply(t, twoPods())
	if b.Revision() != revision {
		t.Errorf("revision %d, was %d: connections are judged again for nothing", b.Revision(), revision)
	}
	again, err := b.Rules()
	if err != nil || !slices.Equal(again, numbers) {
		t.Errorf("numbers of rules %v, were %v, %v", again, numbers, err)
	}
	// What an earlier agent has left goes, but not before all is said, and not while a pod is judged by it.
	b.restart(t, policySizes)
	b.ends["stranger"] = 2
	c := twoPods()
	c.Answers, c.Pods = c.Answers[:4], map[string]policy.ID{"p1": 1}
	delete(b.ends, "p2")
	b.apply(t, c)
	b.retire(t)
	if p, q, _ := b.rows(t); p != 8 || q != 4 {
		t.Errorf("%d policies, %d ports: the program of a pod without record is gone", p, q)
	}
	delete(b.ends, "stranger")
	b.retire(t)
	if p, q, _ := b.rows(t); p != 4 || q != 2 {
		t.Errorf("%d policies, %d ports are left", p, q)
	}
}

// POL: limits are said aloud, before anything is written.
func TestChangeThatDoesNotFit(t *testing.T) {
	sizes := policySizes
	sizes.Policies, sizes.Ports, sizes.Identities, sizes.Rules = 12, 8, 5, 10
	b := newPolicyBench(t, sizes)
	b.apply(t, twoPods())
	before := b.Revision()
	many := func(n int, entry func(i int) policy.Entry) (c policy.Change) {
		c = policy.Change{Pods: map[string]policy.ID{"p3": 3}, Answers: program(3, 300, 301)[:2]}
		for i := range n {
			c.Answers = append(c.Answers, policy.Answer{Program: 3, Way: policy.Ingress, Identity: identity.ID(1000 + i), Entry: entry(i)})
		}
		return c
	}
	table := func(i int) policy.Entry {
		rows := []policy.Row{{Verdict: policy.Verdict{Rule: ref("none")}}}
		for p := range 3 {
			rows = append(rows, policy.Row{Protocol: policy.TCP, Port: uint16(p), Bits: 16, Verdict: policy.Verdict{Rule: ref("none")}})
		}
		return policy.Entry{Table: &policy.Table{ID: policy.ID(5000 + i), Rows: rows}}
	}
	c := many(0, nil)
	for i := range 3 {
		c.Moves = append(c.Moves, policy.Move{Prefix: prefix(fmt.Sprintf("10.1.0.%d/32", i)), To: 300})
	}
	for want, c := range map[string]policy.Change{
		"needs 5 rows of strait_policy, 4 fit (maps.policies)":     many(3, func(int) policy.Entry { return says(true, "allowed") }),
		"needs 8 rows of strait_port, 4 fit (maps.ports)":          many(2, table),
		"needs 3 rows of strait_identity, 2 fit (maps.identities)": c,
	} {
		err := b.Accept(&c)
		var room *policy.NoRoom
		if !errors.As(err, &room) || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	c = many(2, func(i int) policy.Entry { return says(true, fmt.Sprint("rule ", i)) })
	for i := range 2 {
		for j := range 2 {
			c.Answers[i+2].Audit, c.Answers[i+2].AuditRule = true, ref(fmt.Sprint("audit ", i, j))
		}
	}
	c.Answers = append(c.Answers, c.Answers[2])
	c.Answers[4].Identity, c.Answers[4].Rule = 999, ref("one more")
	if err := b.Accept(&c); err == nil || !strings.Contains(err.Error(), "strait_policy") {
		t.Errorf("error %v", err)
	}
	if err := b.Flush(context.Background()); err != nil || b.Revision() != before || b.ends["p3"] != 0 {
		t.Errorf("something was written: %v, revision %d, was %d, ends %v", err, b.Revision(), before, b.ends)
	}
}

// A forecast counts what is not wanted yet, says so at the first answer that will never fit, and does not count that; peers may not have the last
// sixteenth of what there is.
func TestForecast(t *testing.T) {
	sizes := policySizes
	sizes.Policies, sizes.Ports, sizes.Rules = 32, 16, 10
	b := newPolicyBench(t, sizes)
	b.apply(t, twoPods()) // 8 rows, 2 tables of 2 rows, 5 rules
	one := func(i int, e policy.Entry) []policy.Answer {
		return []policy.Answer{{Program: 3, Way: policy.Ingress, Identity: identity.ID(1000 + i), Entry: e}}
	}
	known := twoPods().Answers[3]
	for what, c := range map[string]struct {
		inUse bool
		entry func(i int) policy.Entry
		fit   int
		want  string
	}{
		"rows":          {false, func(int) policy.Entry { return says(true, "allowed") }, 24, "needs more than the 24 rows of strait_policy that fit (maps.policies)"},
		"rows of peers": {true, func(int) policy.Entry { return says(true, "allowed") }, 22, "needs more than the 22 rows of strait_policy that fit (maps.policies)"},
		"known tables":  {false, func(int) policy.Entry { return known.Entry }, 24, "needs more than the 24 rows of strait_policy that fit (maps.policies)"},
		"tables": {false, func(i int) policy.Entry {
			return policy.Entry{Table: &policy.Table{ID: policy.ID(5000 + i), Rows: make([]policy.Row, 5)}}
		}, 2, "needs more than the 12 rows of strait_port that fit (maps.ports)"},
		"rules": {false, func(i int) policy.Entry { return says(true, fmt.Sprint("rule ", i)) }, 4, "needs more than the 4 rows of strait_rule that fit (maps.rules)"},
	} {
		count := b.Forecast(c.inUse)
		fit := 0
		var room *policy.NoRoom
		for ; room == nil && fit < 100; fit++ {
			room = count(one(fit, c.entry(fit)))
		}
		if fit--; fit != c.fit || room == nil || room.Error() != c.want {
			t.Errorf("%s: %d fit, then %v", what, fit, room)
		}
		if room := count(twoPods().Answers); room != nil {
			t.Errorf("%s: what is wanted already does not fit: %v", what, room)
		}
	}
}

// Programs answer those who have no identity of their own before there is anybody, and when there is nobody any more.
func TestAnswersToTheUnansweredStay(t *testing.T) {
	b := newPolicyBench(t, policySizes)
	c := twoPods()
	c.Answers = append(c.Answers, policy.Answer{Program: 1, Way: policy.Ingress, Identity: identity.Unanswered, Entry: says(false, "nobody")})
	b.apply(t, c)
	b.apply(t, policy.Change{Moves: []policy.Move{{Prefix: prefix("10.0.0.9/32"), To: identity.Unanswered}}})
	b.apply(t, policy.Change{Moves: []policy.Move{{Prefix: prefix("10.0.0.9/32"), Gone: true}}})
	b.retire(t)
	if p, _, i := b.rows(t); p != 9 || i != 3 {
		t.Errorf("%d policies, %d identities", p, i)
	}
}

// Numbers of rules that nothing uses are given to others when there are no more; then none fits.
func TestNumbersOfRulesRunOut(t *testing.T) {
	sizes := policySizes
	sizes.Rules = 8 // of which 0 is nobody's
	b := newPolicyBench(t, sizes)
	b.apply(t, twoPods()) // five rules
	fresh := func(program policy.ID, names ...string) policy.Change {
		c := policy.Change{Pods: map[string]policy.ID{"p3": program}}
		for i, name := range names {
			c.Answers = append(c.Answers, policy.Answer{Program: program, Way: policy.Ingress, Identity: identity.ID(255 + i), Entry: says(true, name)})
		}
		return c
	}
	b.apply(t, fresh(10, "x", "y"))
	c := fresh(11, "z")
	if err := b.Accept(&c); err == nil || err.Error() != "needs 1 rows of strait_rule, 0 fit (maps.rules)" {
		t.Errorf("error %v", err)
	}
	b.apply(t, policy.Change{Left: []string{"p3"}})
	delete(b.ends, "p3")
	b.retire(t)
	b.apply(t, fresh(11, "z"))
	if n, known := b.rules.byRef[ref("z")]; !known || n != 6 && n != 7 {
		t.Errorf("z has number %d, %v", n, known)
	}
}

func TestNumbersSurviveBeingKilledAtAnyByte(t *testing.T) {
	dir := t.TempDir()
	zeroed := map[uint32]int{}
	now := func() time.Time { return time.Unix(5, 0) }
	at := func() *ruleNumbers {
		t.Helper()
		r, err := openRules(dir, 100, false, func(n uint32) error { zeroed[n]++; return nil }, now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.close)
		return r
	}
	r := at()
	names := []string{"plain", `quo"ted`, "new\nline", "\xff\xfe", "", "spa ce"}
	for _, name := range names {
		r.number(ref(name))
	}
	if err := r.confirm(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, ruleFile))
	if err != nil {
		t.Fatal(err)
	}
	for size := range len(whole) + 1 {
		if err := os.WriteFile(filepath.Join(dir, ruleFile), whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		r := at()
		complete := strings.Count(string(whole[:size]), "\n") - 1 // the first is the end of nothing
		if len(r.byNum) != max(complete, 0) {
			t.Fatalf("cut at %d: %d rules, want %d", size, len(r.byNum), complete)
		}
		for i, name := range names {
			n := r.number(ref(name))
			if i < complete && n != uint32(i+1) {
				t.Fatalf("cut at %d: %q has number %d", size, name, n)
			}
		}
		if err := r.confirm(); err != nil {
			t.Fatal(err)
		}
		if again := at(); len(again.byNum) != len(names) {
			t.Fatalf("cut at %d and gone on: %d rules", size, len(again.byNum))
		}
	}
}

func TestGarbageInTheFileOfNumbers(t *testing.T) {
	for _, line := range []string{
		"", "x", "1", "1 2", "1 2 3 \"\" \"\" \"\" \"\"", "0 1 1 \"k\" \"n\" \"a\" \"p\"", "1 1 1 \"k\" \"n\" \"a\"", "1 1 1 \"k\" \"n\" \"a\" \"p\" x",
		"-1 1 1 \"k\" \"n\" \"a\" \"p\"", "1 1 1 \"k \"n\" \"a\" \"p\"", "99999999999 1 1 \"k\" \"n\" \"a\" \"p\"",
	} {
		if n, ok := parseRule(line + "\n"); ok {
			t.Errorf("%q is %+v", line, n)
		}
	}
	want := RuleNumber{Number: 7, Since: time.Unix(9, 0), Ref: ref("x")}
	if n, ok := parseRule(want.line()); !ok || n != want {
		t.Errorf("%+v, %v", n, ok)
	}
}

// Corruption of every table is found, said and repaired.
func TestDrift(t *testing.T) {
	b := newPolicyBench(t, policySizes)
	b.apply(t, twoPods())
	k := maps.PolicyKey{Policy: 1, Direction: bpf.PolicyIngress, Identity: 300}
	lost := maps.PolicyKey{Policy: 2, Direction: bpf.PolicyIngress, Identity: 255}
	alien := maps.PolicyKey{Policy: 77, Identity: 255}
	_, e1 := b.kernel.PutPolicies([]maps.PolicyKey{k, alien}, []maps.PolicyEntry{{Verdict: maps.PolicyVerdict{Rule: 9}}, {}})
	_, e2 := b.kernel.DeletePolicies([]maps.PolicyKey{lost})
	_, e3 := b.kernel.PutIdentities([]maps.Identity{{Prefix: prefix("10.0.0.1/32"), ID: 301}, {Prefix: prefix("10.9.0.0/16"), ID: 300}})
	_, e4 := b.kernel.DeleteIdentities([]netip.Prefix{prefix("10.0.0.2/32")})
	_, e5 := b.kernel.PutPorts([]maps.Port{{Table: 1001, Protocol: 6, Port: 80, Bits: 16}, {Table: 5}}, make([]maps.PolicyVerdict, 2))
	_, e6 := b.kernel.DeletePorts([]maps.Port{{Table: 1002}})
	e7 := b.kernel.PutNodeState(maps.NodeState{Revision: 1, Policy: 4})
	if err := errors.Join(e1, e2, e3, e4, e5, e6, e7); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"strait_identity 10.0.0.1/32: is 000000000000012d, want 000000000000012c",
		"strait_identity 10.0.0.2/32: is missing, want 000000000000012d",
		"strait_identity 10.9.0.0/16: is 000000000000012c, not wanted",
		"strait_node 0: is revision 1, policy 0000000000000004, want revision 1, policy 0000000000000000",
		"strait_policy 0000000000000001 ingress 000000000000012c: is deny by rule 9, want allow by rule 3",
		"strait_policy 0000000000000002 ingress other: is missing, want deny by rule 1",
		"strait_policy 000000000000004d egress other: is deny by rule 0, not wanted",
		"strait_port 0000000000000005 protocol 0 port 0/0: is deny by rule 0, not wanted",
		"strait_port 00000000000003e9 protocol 6 port 80/16: is deny by rule 0, want allow by rule 5",
		"strait_port 00000000000003ea protocol 0 port 0/0: is missing, want deny by rule 4",
	}
	for _, repair := range []bool{false, false, true} {
		_, found, err := b.Check(context.Background(), repair)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range found {
			got = append(got, d.String())
			if d.Repaired != repair {
				t.Errorf("%s: repaired %v", d, d.Repaired)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	b.retire(t)
	tables, found, err := b.Check(context.Background(), false)
	if err != nil || len(found) != 0 || b.Drift() != uint64(len(want)) {
		t.Errorf("after the repair: %v, %v, drift %d", found, err, b.Drift())
	}
	if p, q, i := b.rows(t); p != 8 || q != 4 || i != 3 || tables[1].Rows != 8 {
		t.Errorf("%d policies, %d ports, %d identities, tables %v", p, q, i, tables)
	}
	if s, err := b.kernel.NodeState(); err != nil || s.Policy != 0 || s.Revision < 2 {
		t.Errorf("node %+v, %v", s, err)
	}
}

func TestWatchFindsDriftByItself(t *testing.T) {
	b := newPolicyBench(t, policySizes)
	b.apply(t, twoPods())
	if _, err := b.kernel.DeletePolicies([]maps.PolicyKey{{Policy: 1, Direction: bpf.PolicyIngress, Identity: 300}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var found []Difference
	_ = b.Watch(ctx, func(d []Difference, _ error) { found = d; cancel() })
	if len(found) != 1 || !found[0].Repaired {
		t.Errorf("found %v", found)
	}
}

// What an answer, a move and a bump of the revision cost when there is much already.
func BenchmarkChangeAmong100kRows(b *testing.B) {
	sizes := policySizes
	sizes.Policies, sizes.Identities, sizes.Ports, sizes.Rules = 1<<18, 1<<18, 1<<17, 1<<15
	w := newPolicyBench(b, sizes)
	c := policy.Change{Answers: program(1, 300, 301), Pods: map[string]policy.ID{"p1": 1}}
	for i := range 100_000 {
		id := identity.ID(1000 + i)
		c.Answers = append(c.Answers, policy.Answer{Program: 1, Way: policy.Ingress, Identity: id, Entry: says(true, "allowed")})
		c.Moves = append(c.Moves, policy.Move{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), To: id})
	}
	begin := time.Now()
	w.apply(b, c)
	b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/first")
	n := 0
	for b.Loop() {
		n++
		w.apply(b, policy.Change{
			Answers: []policy.Answer{{Program: 1, Way: policy.Ingress, Identity: identity.ID(1_000_000 + n), Entry: says(true, "allowed")}},
			Moves:   []policy.Move{{Prefix: prefix("10.200.0.1/32"), To: identity.ID(1_000_000 + n)}},
		})
		w.now = w.now.Add(time.Second)
		if _, err := w.Retire(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
