// Package eval decides slowly and plainly what policies say about a connection: it is written from the documents of the APIs, and what is
// compiled for the kernel is held against it.
//
// It knows no identities, tables or programs: every question is answered by going through all there is. Documents quoted:
//
//	NP      kubernetes.io, Network Policies, and the reference of networking.k8s.io/v1 NetworkPolicy
//	CNP     sigs.k8s.io/network-policy-api, ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2
//	Cilium  docs.cilium.io, Network Policy
//	0006    docs/design/0006-policy.md, for what only Strait has
package eval

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/policy"
)

// Connection is the first packet of a connection between its real ends: no service address, no masquerade address.
type Connection struct {
	From, To netip.Addr
	Protocol policy.Protocol
	Port     uint16 // of To; ICMP: type << 8 | code
}

// Outcome is what the ends say. An end that nothing is enforced at says nil: it is outside the cluster, nobody's, or a node without policy of
// its own; and nobody is asked about what a pod or node sends to itself.
type Outcome struct {
	Egress  *policy.Verdict
	Ingress *policy.Verdict
}

// Allow reports whether both ends let the connection pass.
//
// NP: "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and the ingress policy
// on the destination pod need to allow the connection. If either side does not allow the connection, it will not happen."
func (o Outcome) Allow() bool {
	return (o.Egress == nil || o.Egress.Allow) && (o.Ingress == nil || o.Ingress.Allow)
}

// Decide says what becomes of a connection.
func (c *Cluster) Decide(conn Connection) Outcome {
	var out Outcome
	from, to := c.subjectAt(conn.From), c.subjectAt(conn.To)
	// NP: "exception: a pod cannot block access to itself". 0006: also through its own service.
	if from.pod != nil && from.pod == to.pod || from.node != nil && from.node == to.node {
		return out
	}
	if from.judged() {
		v := c.verdict(from, policy.Egress, conn, c.peerAt(conn.To, from.nodeName()))
		out.Egress = &v
	}
	if to.judged() {
		v := c.verdict(to, policy.Ingress, conn, c.peerAt(conn.From, to.nodeName()))
		out.Ingress = &v
	}
	return out
}

// subject is whose policy is asked: a pod with an address of its own, or a node.
type subject struct {
	pod      *Pod
	node     *Node
	policies []*policy.Policy // that select it
	mode     policy.Mode
	audit    bool // all of policies are only audited
}

func (s subject) judged() bool { return s.pod != nil || s.node != nil && len(s.policies) > 0 }

func (s subject) nodeName() string {
	if s.pod != nil {
		return s.pod.Node
	}
	return s.node.Name
}

// subjectAt finds who has address, and the policies that select it.
//
// CNP: "host-networked pods are not included in subject selection". NP: a host-networked pod's traffic is its node's.
func (c *Cluster) subjectAt(address netip.Addr) subject {
	at := c.peerAt(address, "")
	s := subject{pod: at.pod, node: at.node, mode: c.Mode, audit: c.Audit}
	for i := range c.Policies {
		p := &c.Policies[i]
		if s.pod != nil && !p.Node && c.selects(p.Subject, at) || s.node != nil && p.Node && c.selects(p.Subject, at) {
			s.policies = append(s.policies, p)
		}
	}
	if s.pod != nil {
		ns := c.namespace(s.pod.Namespace)
		if ns.Mode != nil {
			s.mode = *ns.Mode
		}
		s.audit = s.audit || ns.Audit || s.pod.Audit
	}
	return s
}

// verdict computes the decision twice, with audited policies and without; the latter is what counts (0006, "Audit").
func (c *Cluster) verdict(s subject, way policy.Way, conn Connection, other peer) policy.Verdict {
	var enforced []*policy.Policy
	for _, p := range s.policies {
		if !p.Audit && !s.audit {
			enforced = append(enforced, p)
		}
	}
	q := question{cluster: c, subject: s, way: way, conn: conn, other: other}
	mode := s.mode
	if s.audit && mode == policy.ModeAlways {
		mode = policy.ModeDefault
	}
	var v policy.Verdict
	v.Allow, v.Rule = q.decide(enforced, mode)
	allow, rule := q.decide(s.policies, s.mode)
	if allow != v.Allow {
		v.Audit, v.AuditAllow, v.AuditRule = true, allow, rule
	}
	return v
}

// question is a connection as one of its ends sees it.
type question struct {
	cluster *Cluster
	subject subject
	way     policy.Way
	conn    Connection
	other   peer
}

// decide goes through the tiers.
//
// CNP: "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier".
func (q question) decide(policies []*policy.Policy, mode policy.Mode) (allow bool, rule policy.RuleRef) {
	// NP, reference: "Traffic is allowed to a pod if ... the traffic source is the pod's local node". Cilium: "Kubernetes will automatically allow
	// all communication from the local host of all local endpoints." NP, text, says "traffic to and from the node"; its reference has no such
	// exception for egress, and 0006 follows the reference.
	if q.subject.pod != nil && q.way == policy.Ingress && q.other.host {
		return true, q.builtin(policy.OwnNode)
	}
	// Cilium: "With never mode, policy enforcement is disabled on all endpoints, even if rules do select specific endpoints."
	if mode == policy.ModeNever {
		return true, q.builtin(policy.ModeNeverOn)
	}
	// CNP: "If Admin tier has made a final decision (Accept or Deny) on a connection, then no further evaluation is done."
	if action, rule, ok := q.ordered(policies, policy.Admin); ok && action != policy.Pass {
		return action == policy.Allow, rule
	}
	if allow, rule, ok := q.normal(policies, mode); ok {
		return allow, rule
	}
	if action, rule, ok := q.ordered(policies, policy.Baseline); ok && action != policy.Pass {
		return action == policy.Allow, rule
	}
	// CNP: "If a given connection wasn't allowed or denied by any of the tiers, the default kubernetes policy is applied, which says that all
	// pods can communicate with each other."
	return true, q.builtin(policy.DefaultAllow)
}

// ordered finds the first rule that matches in the admin or baseline tier.
//
// CNP: "Policies with lower priority values have higher precedence, and are checked before policies with higher priority values in the same
// tier." Between equals "the implementation can apply any": 0006 says by name. "The relative precedence of ingress rules within a single
// CNP object ... will be determined by the order in which the rule is written." Pass: "Skips all further ClusterNetworkPolicy rules in the
// current tier for the selected traffic, and passes evaluation to the next tier."
func (q question) ordered(policies []*policy.Policy, tier policy.Tier) (policy.Action, policy.RuleRef, bool) {
	policies = inTier(policies, tier)
	slices.SortStableFunc(policies, func(a, b *policy.Policy) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), byName(a, b))
	})
	for _, p := range policies {
		for _, r := range q.direction(p).Rules {
			if q.matches(r) {
				return r.Action, policy.RuleRef{Ref: p.Ref, Way: q.way, Path: r.Path}, true
			}
		}
	}
	return 0, policy.RuleRef{}, false
}

// normal asks the namespaces' own policies. It has nothing to say when none of them isolates the pod and none of their rules matches.
//
// Which of several rules that say the same is named: the first by name, namespace, kind and place in the object.
func (q question) normal(policies []*policy.Policy, mode policy.Mode) (allow bool, rule policy.RuleRef, ok bool) {
	policies = inTier(policies, policy.Normal)
	slices.SortStableFunc(policies, byName)
	// Cilium: "Deny policies take precedence over allow policies, regardless of whether they are a Cilium Network Policy, a Clusterwide Cilium
	// Network Policy or even a Kubernetes Network Policy."
	// NP: "Network policies do not conflict; they are additive": any rule that allows will do.
	for _, action := range []policy.Action{policy.Deny, policy.Allow} {
		for _, p := range policies {
			for _, r := range q.direction(p).Rules {
				if r.Action == action && q.matches(r) {
					return action == policy.Allow, policy.RuleRef{Ref: p.Ref, Way: q.way, Path: r.Path}, true
				}
			}
		}
	}
	// NP: "A pod is isolated for egress if there is any NetworkPolicy that both selects the pod and has "Egress" in its policyTypes ... When a
	// pod is isolated for egress, the only allowed connections from the pod are those allowed by the egress list of some NetworkPolicy".
	// CNP: "v1.NetworkPolicy always makes a final decision for selected pods."
	for _, p := range policies {
		if q.direction(p).Isolates {
			return false, policy.RuleRef{Ref: p.Ref, Way: q.way}, true
		}
	}
	// Cilium: "With always mode, policy enforcement is enabled on all endpoints even if no rules select specific endpoints." 0006: pods only.
	if mode == policy.ModeAlways && q.subject.pod != nil {
		return false, q.builtin(policy.ModeAlwaysOn), true
	}
	return false, policy.RuleRef{}, false
}

func (q question) direction(p *policy.Policy) policy.Direction {
	if q.way == policy.Ingress {
		return p.Ingress
	}
	return p.Egress
}

func (q question) builtin(name string) policy.RuleRef {
	return policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: name}, Way: q.way}
}

func inTier(policies []*policy.Policy, tier policy.Tier) []*policy.Policy {
	var out []*policy.Policy
	for _, p := range policies {
		if p.Tier == tier {
			out = append(out, p)
		}
	}
	return out
}

func byName(a, b *policy.Policy) int {
	return cmp.Or(
		cmp.Compare(a.Ref.Name, b.Ref.Name),
		cmp.Compare(a.Ref.Namespace, b.Ref.Namespace),
		cmp.Compare(a.Ref.Kind, b.Ref.Kind),
		cmp.Compare(a.Spec, b.Spec))
}
