package enforcement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// The reasons of the conditions of an object with policies.
const (
	ReasonAccepted = "Accepted" // Valid
	ReasonRefused  = "Refused"

	ReasonEnforced = "Enforced" // Enforced
	ReasonPending  = "Pending"
	ReasonFailed   = "Failed"
)

const (
	maxNodes   = 3    // named in a message
	maxMessage = 2000 // bytes
)

// Nodes are the newest reports of all nodes whose agents are ready.
type Nodes struct {
	names   []string // sorted
	reports []map[policy.Ref]Row
	silent  []string
}

// NewNodes puts reports together. Silent are nodes that there are and whose agents do not answer.
func NewNodes(reports []Report, silent []string) Nodes {
	n := Nodes{silent: slices.Sorted(slices.Values(silent))}
	slices.SortFunc(reports, func(a, b Report) int { return strings.Compare(a.Node, b.Node) })
	for _, r := range reports {
		rows := make(map[policy.Ref]Row, len(r.Policies))
		for _, row := range r.Policies {
			rows[row.ref()] = row
		}
		n.names, n.reports = append(n.names, r.Node), append(n.reports, rows)
	}
	return n
}

// Answering returns how many nodes count.
func (n Nodes) Answering() int { return len(n.names) }

// Silent returns how many more there are.
func (n Nodes) Silent() int { return len(n.silent) }

// Conditions says of an object what it shows: whether it can be enforced, and where it is. A node counts when it enforces the newest
// generation, also when that selects nothing there.
func (n Nodes) Conditions(p state.Policy) state.PolicyConditions {
	out := state.PolicyConditions{
		Valid:    state.PolicyCondition{True: true, Reason: ReasonAccepted, Generation: p.Generation},
		Enforced: state.PolicyCondition{Generation: p.Generation},
	}
	out.Valid.Message = fmt.Sprintf("all of generation %d can be enforced", p.Generation)
	generation, lead := p.Generation, ""
	if p.Refused != "" {
		out.Valid.True, out.Valid.Reason, out.Valid.Message = false, ReasonRefused, cut(p.Refused)
		out.Enforced.Reason = ReasonFailed
		if generation = n.before(p); generation == 0 {
			out.Enforced.Message = fmt.Sprintf("generation %d is refused, nothing from before is enforced", p.Generation)
			return out
		}
		lead = fmt.Sprintf("generation %d is refused; from before: ", p.Generation)
	}
	count, failed, behind := n.count(p, generation)
	out.Enforced.Message = lead + fmt.Sprintf("enforced on %d/%d nodes at generation %d", count, len(n.names), generation)
	if len(n.names) == 0 {
		out.Enforced.Message = lead + "no agent says what it enforces"
	}
	if len(failed)+len(behind) > 0 {
		out.Enforced.Message += "; " + some(append(failed, behind...), "; ")
	}
	if len(n.silent) > 0 {
		out.Enforced.Message += fmt.Sprintf("; %d more nodes do not answer: %s", len(n.silent), some(n.silent, ", "))
	}
	switch {
	case out.Enforced.Reason != "": // refused
	case len(failed) > 0:
		out.Enforced.Reason = ReasonFailed
	case count < len(n.names) || count == 0:
		out.Enforced.Reason = ReasonPending
	default:
		out.Enforced.True, out.Enforced.Reason = true, ReasonEnforced
	}
	out.Enforced.Message = cut(out.Enforced.Message)
	return out
}

// cut bounds a message: the API server takes no more than 32 KiB.
func cut(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage], "") + "..."
}

// before returns the newest generation that a node has of an object that is refused: agents know what it said, nobody else does.
func (n Nodes) before(p state.Policy) (generation int64) {
	for _, rows := range n.reports {
		if row, known := rows[p.Ref]; known && row.UID == p.UID {
			generation = max(generation, row.Generation)
		}
	}
	return generation
}

// count returns how many nodes enforce the generation, and what is the matter with the others.
func (n Nodes) count(p state.Policy, generation int64) (count int, failed, behind []string) {
	for i, name := range n.names {
		switch row, known := n.reports[i][p.Ref]; {
		case !known || row.UID != p.UID:
			behind = append(behind, name+" does not know it yet")
		case row.Error != "":
			failed = append(failed, name+": "+row.Error)
		case row.Generation == 0:
			behind = append(behind, name+" enforces nothing of it")
		case row.Generation != generation:
			behind = append(behind, fmt.Sprintf("%s enforces generation %d", name, row.Generation))
		default:
			count++
		}
	}
	return count, failed, behind
}

func some(texts []string, separator string) string {
	if more := len(texts) - maxNodes; more > 0 {
		return strings.Join(texts[:maxNodes], separator) + fmt.Sprintf("%sand %d more", separator, more)
	}
	return strings.Join(texts, separator)
}
