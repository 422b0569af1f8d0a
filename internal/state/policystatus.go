package state

import (
	"time"

	"github.com/strait-net/strait/internal/table"
)

// PolicyCondition is what one condition of an object with policies says. The zero value: there is none.
type PolicyCondition struct {
	True       bool
	Reason     string
	Message    string
	Generation int64 // observed
}

// PolicyConditions are the conditions of an object with policies that are ours.
type PolicyConditions struct {
	Valid    PolicyCondition // all of it can be enforced
	Enforced PolicyCondition // it is, on every node
}

// PolicyObject is an object with policies as the one sees it who writes its conditions: without Specs. Intent of the operator; owner: kube.
type PolicyObject struct {
	Policy
	Shown PolicyConditions
	Since [2]time.Time // when Valid and Enforced of Shown last changed between true and false
}

// Equal reports whether two objects say the same.
func (o PolicyObject) Equal(p PolicyObject) bool {
	return o.Shown == p.Shown && o.Since[0].Equal(p.Since[0]) && o.Since[1].Equal(p.Since[1]) && o.Policy.Equal(p.Policy)
}

// NewPolicyObjects returns the table of policies of all kinds, keyed by Policy.Key.
func NewPolicyObjects() *table.Table[PolicyObject] {
	return table.New("policy objects", func(o PolicyObject) string { return o.Key() })
}
