package flow

import (
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// Flow is an event with names, as they were then. It is never changed.
type Flow struct {
	Event
	Number      uint64 // position in the Store, from 1
	From, To    End    // who had Source and Target
	Service     string // "namespace/name" of Front, empty: none, or not known
	ServicePort string // its name, if any
	// Of the numbers in Event; nil: nothing judged, or the number is not known any more.
	EgressRule, IngressRule, AuditedRule *policy.RuleRef
}

// End is one end of a connection.
type End struct {
	Kind     policy.PeerKind
	Identity identity.ID
	Pod      *state.Pod // of PodPeer, if it is known
	Node     string     // of a pod, the host or another node
	Local    bool       // on this node
}
