package eval_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
	"github.com/strait-net/strait/internal/policy/eval/model"
	"github.com/strait-net/strait/internal/policy/eval/sample"
)

// TestNoThirdVerdict changes clusters and writes each change one row at a time, in the order of docs/design/0006: after every single row each
// verdict is that of before or that of after.
func TestNoThirdVerdict(t *testing.T) {
	start, want := seed(t), cases(t, 1000)
	o := sample.Options{HostPolicy: true, Policies: 5, Pods: 6}
	changes, rows := 0, 0
	for i := uint64(0); changes < want; i++ {
		r := rand.New(rand.NewPCG(start, i))
		c := sample.Cluster(r, o)
		tables, err := model.NewView(c, "n1").Tables()
		if err != nil {
			t.Fatal(err)
		}
		for range 25 {
			next := change(r, o, c)
			conns := sample.Connections(r, next, 8)
			n, err := move(tables, c, next, conns)
			if err != nil {
				t.Fatalf("STRAIT_SEED=%d, cluster %d: %v\n%s", start, i, err, sample.DescribeChange(c, next))
			}
			c, changes, rows = next, changes+1, rows+n
		}
	}
	t.Logf("%d changes, %d writes", changes, rows)
}

func change(r *rand.Rand, o sample.Options, c *eval.Cluster) *eval.Cluster {
	if r.IntN(2) == 0 {
		return sample.Repolicy(r, o, c)
	}
	return sample.Relabel(r, o, c)
}

// move brings tables from one cluster to the next, row by row, and looks after each.
func move(t *model.Tables, before, after *eval.Cluster, conns []eval.Connection) (writes int, err error) {
	expected := model.Expect(before, after, "n1", conns)
	was := model.NewView(before, "n1")
	both := model.NewView(after, "n1", slices.Collect(maps.Values(was.Programs))...)
	m := mover{t: t, look: func(what string) error {
		writes++
		for _, e := range expected {
			if err := e.Check(t); err != nil {
				return fmt.Errorf("after %s: %w", what, err)
			}
		}
		return nil
	}}
	// 1 to 3: everybody understands all identities, then they are given out, then pods get their programs.
	programs := maps.Clone(was.Programs)
	maps.Copy(programs, both.Programs)
	m.answers(programs, both.Known())
	m.identities(both)
	m.ends(both)
	if m.err != nil {
		return writes, m.err
	}
	// 5: what told peers apart for programs of before only does so no more.
	final := model.NewView(after, "n1")
	m.answers(final.Programs, final.Known())
	m.identities(final)
	m.removeUnused(final)
	for i := range expected {
		expected[i] = expected[i].Settled()
	}
	m.wrote("everything")
	return writes, m.err
}

// TestRelabelledNamespaceHasABetween keeps in mind the one case in which there is a third verdict: pods of one namespace, whose labels say both
// which policies its pods have and who its pods are to each other.
func TestRelabelledNamespaceHasABetween(t *testing.T) {
	of := func(value string) policy.Selector {
		return policy.Selector{Requirements: []policy.Requirement{{Source: policy.NamespaceLabel, Key: "env", Op: policy.In, Values: []string{value}}}}
	}
	before := &eval.Cluster{
		Namespaces: []eval.Namespace{{Name: "a", Labels: policy.NewLabels(map[string]string{"env": "x"})}},
		Nodes:      []eval.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.1")}}},
		Pods: []eval.Pod{
			{Namespace: "a", Name: "p", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.1")}},
			{Namespace: "a", Name: "q", Node: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}},
		},
		Policies: []policy.Policy{{Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "c"}, Subject: of("x"), Ingress: policy.Direction{
			Rules: []policy.Rule{{Path: "spec.ingress[0]", Action: policy.Deny, Peers: []policy.Selector{of("y")}}}}}},
	}
	after := sample.Clone(before)
	after.Namespaces[0].Labels = policy.NewLabels(map[string]string{"env": "y"})
	conn := eval.Connection{From: before.Pods[0].Addresses[0], To: before.Pods[1].Addresses[0], Protocol: policy.TCP, Port: 80}
	if !before.Decide(conn).Allow() || !after.Decide(conn).Allow() || eval.Across(before, after, conn, policy.Ingress).Allow {
		t.Fatal("no third verdict: the order of writes has become better than this test knows")
	}
	tables, err := model.NewView(before, "n1").Tables()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := move(tables, before, after, []eval.Connection{conn}); err != nil {
		t.Fatal(err)
	}
}

// mover writes rows one by one until one is wrong.
type mover struct {
	t    *model.Tables
	look func(what string) error
	err  error
}

func (m *mover) wrote(format string, args ...any) {
	if m.err == nil {
		m.err = m.look(fmt.Sprintf(format, args...))
	}
}

// answers writes tables, then entries that refer to them.
func (m *mover) answers(programs map[policy.ID]*policy.Program, known []policy.Identity) {
	next := model.NewTables()
	for _, p := range programs {
		if err := next.AddProgram(p, known); err != nil && m.err == nil {
			m.err = err
		}
	}
	for k, v := range next.Ports {
		if was, ok := m.t.Ports[k]; ok && was != v {
			m.err = fmt.Errorf("table %x had %+v and gets %+v", uint64(k.Table), was, v)
		} else if !ok {
			m.t.Ports[k] = v
			m.wrote("row %+v", k)
		}
	}
	for k, e := range next.Entries {
		if was, ok := m.t.Entries[k]; ok && was != e {
			m.err = fmt.Errorf("entry %+v had %+v and gets %+v", k, was, e)
		} else if !ok {
			m.t.Entries[k] = e
			m.wrote("entry %+v", k)
		}
	}
}

// identities gives prefixes their identities, in any order: what a prefix is there for only new programs ask, and they are not in use yet.
func (m *mover) identities(to *model.View) {
	for p, who := range to.Identities {
		if id, ok := m.t.Identities[p]; !ok || id != who.ID {
			m.t.Identities[p] = who.ID
			m.wrote("identity of %x/%d", p.Address, p.Bits)
		}
	}
	for p := range m.t.Identities {
		if _, ok := to.Identities[p]; !ok {
			delete(m.t.Identities, p)
			m.wrote("removal of the identity of %x/%d", p.Address, p.Bits)
		}
	}
}

func (m *mover) ends(to *model.View) {
	for a := range m.t.Endpoints {
		if _, ok := to.Endpoints[a]; !ok {
			delete(m.t.Endpoints, a)
			m.wrote("removal of %s", a)
		}
	}
	for a, id := range to.Endpoints {
		if m.t.Endpoints[a] != id {
			m.t.Endpoints[a] = id
			m.wrote("program of %s", a)
		}
	}
	if m.t.Node != to.Node {
		m.t.Node = to.Node
		m.wrote("program of the node")
	}
}

// removeUnused removes entries of programs and of identities that are gone, and tables that nothing refers to.
func (m *mover) removeUnused(to *model.View) {
	known := map[identity.ID]bool{identity.Other: true}
	for _, i := range to.Known() {
		known[i.ID] = true
	}
	referred := map[policy.ID]bool{}
	for k, e := range m.t.Entries {
		if to.Programs[k.Program] == nil || !known[k.Identity] {
			delete(m.t.Entries, k)
			m.wrote("removal of entry %+v", k)
			continue
		}
		referred[e.Table] = true
	}
	for k := range m.t.Ports {
		if !referred[k.Table] {
			delete(m.t.Ports, k)
			m.wrote("removal of row %+v", k)
		}
	}
}
