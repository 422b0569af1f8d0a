package model

import (
	"fmt"
	"net/netip"
	"reflect"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Expectation is what one end of a connection may say while a change is under way: what it said before, or what it says afterwards.
type Expectation struct {
	Conn          eval.Connection
	Way           policy.Way
	Before, After *policy.Verdict
	// Between is what policies of before say of peers as they are afterwards: a verdict of its own only when one change concerns both ends, as
	// that of a namespace's labels does. Identities and programs are written one after the other.
	Between *policy.Verdict
}

// Expect returns what ends that are of the node before and after may say. Nobody is asked about what an end sends to itself.
func Expect(before, after *eval.Cluster, node string, conns []eval.Connection) []Expectation {
	relabelled := !reflect.DeepEqual(before.Namespaces, after.Namespaces)
	var out []Expectation
	for _, conn := range conns {
		was, is := before.Decide(conn), after.Decide(conn)
		for _, e := range []Expectation{{conn, policy.Egress, was.Egress, is.Egress, nil}, {conn, policy.Ingress, was.Ingress, is.Ingress, nil}} {
			own, peer := e.Ends()
			if before.NodeOf(own) != node || after.NodeOf(own) != node || before.SameEnd(own, peer) || after.SameEnd(own, peer) {
				continue
			}
			e.Between = e.After
			if relabelled {
				e.Between = eval.Across(before, after, conn, e.Way)
			}
			out = append(out, e)
		}
	}
	return out
}

// Ends returns the end that is asked, and its peer.
func (e *Expectation) Ends() (own, peer netip.Addr) {
	if e.Way == policy.Ingress {
		return e.Conn.To, e.Conn.From
	}
	return e.Conn.From, e.Conn.To
}

// Check looks the connection up. An end without program lets everything pass: what nothing but a default allows needs none.
func (e *Expectation) Check(t *Tables) error {
	own, peer := e.Ends()
	got, err := t.Judge(own, e.Way, peer, e.Conn.Protocol, e.Conn.Port)
	if err == nil {
		for _, v := range []*policy.Verdict{e.Before, e.After, e.Between} {
			if v == nil && got == nil || v != nil && got != nil && *v == *got || got == nil && v.Allow && !v.Audit && v.Rule.Kind == policy.Builtin {
				return nil
			}
		}
	}
	said := Show(got)
	if err != nil {
		said = err.Error()
	}
	return fmt.Errorf("%s of %s -> %s %s %d: %s\n  before:  %s\n  after:   %s\n  between: %s", e.Way, e.Conn.From, e.Conn.To, e.Conn.Protocol, e.Conn.Port,
		said, Show(e.Before), Show(e.After), Show(e.Between))
}

// Settled is the expectation when all is written.
func (e *Expectation) Settled() Expectation {
	return Expectation{e.Conn, e.Way, e.After, e.After, e.After}
}

// Show writes a verdict for people.
func Show(v *policy.Verdict) string {
	if v == nil {
		return "nobody is asked"
	}
	s := fmt.Sprintf("allow %v by %s", v.Allow, v.Rule)
	if v.Audit {
		s += fmt.Sprintf("; audited: allow %v by %s", v.AuditAllow, v.AuditRule)
	}
	return s
}
