package localapi

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrBadQuestion is matched by errors of Provider.Verdict when what was asked makes no sense, and of the Client when the agent says so.
var ErrBadQuestion = errors.New("cannot be asked")

// BadQuestion returns an error that matches ErrBadQuestion and says what is wrong with the question.
func BadQuestion(format string, args ...any) error {
	return &answerError{fmt.Sprintf(format, args...), ErrBadQuestion}
}

// VerdictQuestion asks what policy does with a new connection.
type VerdictQuestion struct {
	Source      string `json:"source"`      // a pod as namespace/name, an address, or world, host
	Destination string `json:"destination"` // likewise
	Protocol    uint8  `json:"protocol"`    // IP protocol number
	Port        uint16 `json:"port"`        // of the destination, after services; ICMP: type << 8 | code
	PortName    string `json:"portName,omitempty"`
}

// PolicyVerdict is the answer of /v1/verdict: what the kernel's tables of this node say.
type PolicyVerdict struct {
	Node        string     `json:"node"` // who says it
	Source      VerdictEnd `json:"source"`
	Destination VerdictEnd `json:"destination"`
	Protocol    string     `json:"protocol"`
	Port        uint16     `json:"port"`
	Verdict     string     `json:"verdict"` // as Sum
	// Sides are the judgements of this node, those of an address family each: of IPv4 first.
	Sides []VerdictSide `json:"sides"`
	// Elsewhere are those that another node makes.
	Elsewhere []VerdictElsewhere `json:"elsewhere,omitempty"`
	// Note says what is not judged by policy at all, and why.
	Note string `json:"note,omitempty"`
}

// VerdictEnd is one end of the connection.
type VerdictEnd struct {
	Text      string       `json:"text"` // as asked
	Kind      string       `json:"kind"` // pod, own node, node, kube-apiserver, world, unknown
	Pod       string       `json:"pod,omitempty"`
	Node      string       `json:"node,omitempty"` // that it is on
	Addresses []netip.Addr `json:"addresses"`
}

// The outcomes of a judgement.
const (
	VerdictAllowed = "allowed"
	VerdictDenied  = "denied"
	VerdictUnknown = "unknown" // a side could not be asked, and no other denies
	VerdictAudited = "audited" // in counts: policies that are only audited would have decided otherwise
)

// Sum is what becomes of the connection as far as the sides say.
func (v PolicyVerdict) Sum() string {
	switch {
	case slices.ContainsFunc(v.Sides, func(s VerdictSide) bool { return s.Error == "" && s.Verdict == VerdictDenied }):
		return VerdictDenied
	case len(v.Elsewhere) > 0 || slices.ContainsFunc(v.Sides, func(s VerdictSide) bool { return s.Error != "" }):
		return VerdictUnknown
	}
	return VerdictAllowed
}

// VerdictSide is what judges one end, in one direction.
type VerdictSide struct {
	Direction string `json:"direction"`
	Subject   string `json:"subject"` // the pod that is judged: namespace/name, or the node
	Node      string `json:"node"`
	Family    string `json:"family,omitempty"` // IPv4, IPv6; empty: the same for both
	Verdict   string `json:"verdict"`
	// Rule decided; nil: nothing isolates the pod in this direction, or policy does not judge this (Text says why).
	Rule *RuleName `json:"rule,omitempty"`
	Text string    `json:"text"` // who decided, in words
	// Would is what policies that are only audited would have decided, by WouldRule, where that is something else.
	Would     string    `json:"would,omitempty"`
	WouldRule *RuleName `json:"wouldRule,omitempty"`
	// Misses say of a denial which rules almost allowed it, and what is missing.
	Misses []string `json:"misses,omitempty"`
	// Of the kernel's tables.
	Program  string   `json:"program,omitempty"`
	Identity string   `json:"identity,omitempty"` // of the peer
	Matches  []string `json:"matches,omitempty"`  // selectors that the peer matches
	Error    string   `json:"error,omitempty"`    // the tables do not answer
}

// VerdictElsewhere is a judgement that another node makes.
type VerdictElsewhere struct {
	Direction string `json:"direction"`
	Subject   string `json:"subject"`
	Node      string `json:"node"`
}

// Check is the answer of /v1/check: whether API, model and kernel say the same.
type Check struct {
	Node     string        `json:"node"`
	Took     time.Duration `json:"tookNanoseconds"`
	Pods     int           `json:"pods"`
	Policies int           `json:"policies"`
	Rows     int           `json:"rows"` // compared
	Tables   []CheckTable  `json:"tables"`
	// Differences, those that were not repaired first.
	Differences []Difference `json:"differences"`
}

// CheckTable is one table that was compared.
type CheckTable struct {
	Name        string    `json:"name"`
	Rows        int       `json:"rows"`
	Differences int       `json:"differences"`
	Compared    time.Time `json:"compared,omitzero"` // when, of tables that are compared by themselves; zero: now
}

// Difference is one thing that is not the same.
type Difference struct {
	Table    string `json:"table"`
	Key      string `json:"key"`
	Text     string `json:"text"` // what is there and what should be
	Repaired bool   `json:"repaired"`
}
