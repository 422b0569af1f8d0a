// Package enforcement tells which policies a node enforces, and puts together what all nodes tell.
package enforcement

import (
	"fmt"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// Path is where an agent serves its Report, on the address of its metrics.
const Path = "/policies"

// Report is what one node says.
type Report struct {
	Node     string `json:"node"`
	Policies []Row  `json:"policies"` // in the order of their keys
}

// Row is an object with policies, as a node has it. An object that is not in a report is one that the node does not know.
type Row struct {
	Kind       policy.Kind `json:"kind"`
	Namespace  string      `json:"namespace,omitempty"`
	Name       string      `json:"name"`
	UID        string      `json:"uid"`
	Generation int64       `json:"generation"`     // that is enforced; 0: none
	Pods       int         `json:"pods,omitempty"` // of the node that it selects, the node itself included
	Error      string      `json:"error,omitempty"`
}

func (r Row) ref() policy.Ref { return policy.Ref{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name} }

// Tables are what a node's report is made of.
type Tables struct {
	Node string
	*state.State
}

// Revision changes whenever Report would say something else.
func (t Tables) Revision() string {
	return fmt.Sprint(t.Policies.Snapshot().Revision(), t.Programs.Snapshot().Revision(), t.writes())
}

// Known is an error while the node does not know all policies, or has not brought them into force: its report would mislead.
func (t Tables) Known() error {
	for _, table := range []struct {
		name        string
		initialized <-chan struct{}
	}{{"policies", t.Policies.Initialized()}, {"programs", t.Programs.Initialized()}} {
		select {
		case <-table.initialized:
		default:
			return fmt.Errorf("the table of %s is not complete yet", table.name)
		}
	}
	return nil
}

// Report says what is in the kernel: of a policy that is not for some pod here, why.
func (t Tables) Report() Report {
	failures, pods := map[policy.Ref]string{}, map[policy.Ref]map[string]bool{}
	for p := range t.Programs.Snapshot().All() {
		for _, ref := range p.Policies {
			if failures[ref] == "" {
				failures[ref] = p.Error
			}
			if pods[ref] == nil {
				pods[ref] = map[string]bool{}
			}
			for _, pod := range p.Pods { // one that keeps an old program while a new one does not fit is in both
				pods[ref][pod] = true
			}
		}
	}
	writes := t.writes()
	out := Report{Node: t.Node, Policies: []Row{}}
	for p := range t.Policies.Snapshot().All() {
		row := Row{
			Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, UID: p.UID, Generation: p.Enforced,
			Pods: len(pods[p.Ref]), Error: failures[p.Ref],
		}
		if row.Error == "" && row.Pods > 0 {
			row.Error = writes
		}
		out.Policies = append(out.Policies, row)
	}
	return out
}

// writes returns why changes of policy do not reach the kernel at all, empty when they do.
func (t Tables) writes() string {
	p, _, _ := t.Problems.Snapshot().Get(state.Problem{Source: "policy", Subject: "policy"}.Key())
	return p.Text
}
