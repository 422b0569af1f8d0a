package eval_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/policy/eval/model"
	"github.com/strait-net/strait/internal/policy/eval/sample"
)

// STRAIT_SEED repeats a run, STRAIT_CASES says how many verdicts are compared.
func seed(t testing.TB) uint64 {
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("STRAIT_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("STRAIT_SEED: %v", err)
		}
		s = n
	}
	t.Logf("STRAIT_SEED=%d", s)
	return s
}

func cases(t testing.TB, otherwise int) int {
	text := os.Getenv("STRAIT_CASES")
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("STRAIT_CASES: %v", err)
	}
	return n
}

const perCluster = 40 // connections

// TestCompilerAgreesWithDocuments holds compiled policy, looked up as the kernel does, against what the documents say: verdict, rule, audit.
func TestCompilerAgreesWithDocuments(t *testing.T) {
	start, want := seed(t), cases(t, 30_000)
	judged := map[string]int{}
	n := 0
	for i := uint64(0); n < want; i++ {
		r := rand.New(rand.NewPCG(start, i))
		o := sample.Options{HostPolicy: true, Policies: 3 + int(i%8)}
		c := sample.Cluster(r, o)
		conns := sample.Connections(r, c, perCluster)
		if err := compare(c, conns, judged); err != nil {
			reproduce(t, c, conns, fmt.Sprintf("STRAIT_SEED=%d, cluster %d", start, i))
		}
		n = judged["allow"] + judged["deny"]
	}
	t.Logf("compared: %v", judged)
	for _, k := range []string{"allow", "deny", "audit", "admin", "baseline", "port", "builtin", "isolation"} {
		if judged[k] < n/400 {
			t.Errorf("%d of %d verdicts are of kind %q: the generator no longer makes them", judged[k], n, k)
		}
	}
}

// compare judges connections at every node both ways.
func compare(c *eval.Cluster, conns []eval.Connection, judged map[string]int) error {
	tables := map[string]*model.Tables{}
	for _, n := range c.Nodes {
		t, err := model.NewView(c, n.Name).Tables()
		if err != nil {
			return err
		}
		tables[n.Name] = t
	}
	for _, conn := range conns {
		want := c.Decide(conn)
		if err := compareEnd(c, tables, conn, policy.Egress, want.Egress); err != nil {
			return err
		}
		if err := compareEnd(c, tables, conn, policy.Ingress, want.Ingress); err != nil {
			return err
		}
		count(c, want.Egress, judged)
		count(c, want.Ingress, judged)
	}
	return nil
}

func compareEnd(c *eval.Cluster, tables map[string]*model.Tables, conn eval.Connection, way policy.Way, want *policy.Verdict) error {
	if want == nil {
		return nil // nobody is asked
	}
	own, peer := conn.From, conn.To
	if way == policy.Ingress {
		own, peer = peer, own
	}
	got, err := tables[c.NodeOf(own)].Judge(own, way, peer, conn.Protocol, conn.Port)
	if err != nil {
		return fmt.Errorf("%s %s -> %s %s %d: %w", way, conn.From, conn.To, conn.Protocol, conn.Port, err)
	}
	if got == nil || *got != *want {
		return fmt.Errorf("%s of %s -> %s %s %d\n  documents: %s\n  compiled:  %s", way, conn.From, conn.To, conn.Protocol, conn.Port, model.Show(want), model.Show(got))
	}
	return nil
}

// count keeps book of what was tested.
func count(c *eval.Cluster, v *policy.Verdict, judged map[string]int) {
	if v == nil || judged == nil {
		return
	}
	if v.Allow {
		judged["allow"]++
	} else {
		judged["deny"]++
	}
	if v.Audit {
		judged["audit"]++
	}
	if v.Rule.Kind == policy.Builtin {
		judged["builtin"]++
	} else if v.Rule.Path == "" {
		judged["isolation"]++
	}
	for i := range c.Policies {
		p := &c.Policies[i]
		if p.Ref != v.Rule.Ref {
			continue
		}
		if p.Tier != policy.Normal {
			judged[p.Tier.String()]++
		}
		for _, r := range p.Of(v.Rule.Way).Rules {
			if r.Path == v.Rule.Path && r.Ports != nil {
				judged["port"]++
			}
		}
	}
}

// TestExplanationsAgreeWithDocuments holds what people are told against the documents: the verdict, which rule decides, and that rules called
// shadowed never do.
func TestExplanationsAgreeWithDocuments(t *testing.T) {
	start, want := seed(t), cases(t, 6000)
	n, shadowed := 0, 0
	for i := uint64(0); n < want; i++ {
		r := rand.New(rand.NewPCG(start, i))
		c := sample.Cluster(r, sample.Options{HostPolicy: true})
		shadows := map[policy.RuleRef]policy.RuleRef{}
		var policies []*policy.Policy
		for j := range c.Policies {
			policies = append(policies, &c.Policies[j])
		}
		for _, s := range policy.Shadowed(policies) {
			shadows[s.Rule] = s.By
		}
		shadowed += len(shadows)
		for _, conn := range sample.Connections(r, c, 20) {
			o := c.Decide(conn)
			for way, v := range map[policy.Way]*policy.Verdict{policy.Egress: o.Egress, policy.Ingress: o.Ingress} {
				if v == nil {
					continue
				}
				n++
				if by, ok := shadows[v.Rule]; ok {
					t.Fatalf("STRAIT_SEED=%d, cluster %d: %s decides %+v, though shadowed by %s\n%s", start, i, v.Rule, conn, by, sample.Describe(c))
				}
				if by, ok := shadows[v.AuditRule]; ok && v.Audit {
					t.Fatalf("STRAIT_SEED=%d, cluster %d: %s would decide %+v, though shadowed by %s\n%s", start, i, v.AuditRule, conn, by, sample.Describe(c))
				}
				e := model.Explain(c, conn, way)
				if e.Verdict != *v {
					t.Fatalf("STRAIT_SEED=%d, cluster %d: %s of %+v\n  documents: %s\n  explained: %s\n%s", start, i, way, conn, model.Show(v), model.Show(&e.Verdict), sample.Describe(c))
				}
				for _, m := range e.Matching {
					if m.Decides != (m.RuleRef == v.Rule) {
						t.Fatalf("STRAIT_SEED=%d, cluster %d: %+v is said to decide %+v\n%s", start, i, m, conn, sample.Describe(c))
					}
				}
			}
		}
	}
	if shadowed < n/100 {
		t.Errorf("only %d shadowed rules at %d verdicts", shadowed, n)
	}
}

// reproduce fails with the smallest cluster in which one of the connections is judged wrongly.
func reproduce(t *testing.T, c *eval.Cluster, conns []eval.Connection, from string) {
	t.Helper()
	for _, conn := range conns {
		one := []eval.Connection{conn}
		wrong := func(c *eval.Cluster) bool { return compare(c, one, nil) != nil }
		if !wrong(c) {
			continue
		}
		small := sample.Shrink(c, wrong)
		t.Fatalf("%s\n%v\n%s", from, compare(small, one, nil), sample.Describe(small))
	}
	t.Fatalf("%s: wrong, but no single connection is", from)
}

// FuzzCompilerAgreesWithDocuments lets the fuzzer choose the dice.
func FuzzCompilerAgreesWithDocuments(f *testing.F) {
	f.Add(uint64(1), uint8(4))
	f.Fuzz(func(t *testing.T, dice uint64, policies uint8) {
		r := rand.New(rand.NewPCG(dice, 0))
		c := sample.Cluster(r, sample.Options{HostPolicy: true, Policies: 1 + int(policies%16)})
		conns := sample.Connections(r, c, 10)
		if compare(c, conns, nil) != nil {
			reproduce(t, c, conns, fmt.Sprintf("dice %d, policies %d", dice, policies))
		}
	})
}
