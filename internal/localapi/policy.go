package localapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// PolicyStatus is the state of policy on this node.
type PolicyStatus struct {
	Enforcement string        `json:"enforcement"`     // default, always, never
	Audit       bool          `json:"audit,omitempty"` // nothing is enforced, all of it is computed
	Objects     []PolicyCount `json:"objects"`         // every kind and state there is
	Pods        int           `json:"pods"`            // on this node
	Selected    int           `json:"selected"`        // of them selected by a policy
	Programs    int           `json:"programs"`
	Identities  int           `json:"identities"` // prefixes told apart
	Rules       int           `json:"rules"`      // in use on this node
	Revision    uint32        `json:"revision"`   // of what policy decides, grows with every change
	// Changed is when the last change was complete in the kernel, Took how long it took to get there.
	Changed time.Time      `json:"changed,omitzero"`
	Took    time.Duration  `json:"tookNanoseconds,omitempty"`
	Drift   uint64         `json:"drift"`   // rows that differed from what they should be and were repaired, since the start
	Packets []VerdictCount `json:"packets"` // since the agent's start
}

// PolicyCount counts objects.
type PolicyCount struct {
	Kind  string `json:"kind"`
	State string `json:"state"` // as Policy.State
	Count int    `json:"count"`
}

// VerdictCount counts packets that policy judged.
type VerdictCount struct {
	Direction string `json:"direction"` // egress, ingress
	Verdict   string `json:"verdict"`   // allowed, denied, audited: would have been decided otherwise, counted when a connection is judged
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// The states of a policy on a node.
const (
	PolicyEnforced = "enforced" // in the kernel for every pod it selects here
	PolicyAudited  = "audited"  // computed, counted and shown
	PolicyRefused  = "refused"  // something in it cannot be enforced: what it said before stays
	PolicyFailed   = "failed"   // not in the kernel for some pod here
	PolicyOff      = "off"      // the cluster's mode is never
)

// PolicyName names an object with policies in it.
type PolicyName struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns "NetworkPolicy shop/web".
func (n PolicyName) String() string {
	if n.Namespace == "" {
		return n.Kind + " " + n.Name
	}
	return n.Kind + " " + n.Namespace + "/" + n.Name
}

// Policy is a row of /v1/policies.
type Policy struct {
	PolicyName
	Tier       string `json:"tier,omitempty"`     // admin, normal, baseline; empty when nothing of it is enforced
	Priority   *int32 `json:"priority,omitempty"` // of admin and baseline
	Host       bool   `json:"host,omitempty"`     // it selects nodes
	Generation int64  `json:"generation"`
	Enforced   int64  `json:"enforcedGeneration"` // 0: none
	State      string `json:"state"`
	Error      string `json:"error,omitempty"` // why it is refused or failed
	Pods       int    `json:"pods"`            // selected on this node
	Rules      int    `json:"rules"`
	Allowed    Count  `json:"allowed"`
	Denied     Count  `json:"denied"`
}

// Count is packets and their bytes (layer 3).
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Add sums.
func (c Count) Add(o Count) Count { return Count{c.Packets + o.Packets, c.Bytes + o.Bytes} }

// RuleName says where a rule stands.
type RuleName struct {
	PolicyName
	Direction string `json:"direction"`
	Path      string `json:"path,omitempty"` // in the object; empty: what no rule of it matches
}

// Place returns where the rule is in its object: "spec.ingress[0]", or "ingress, nothing else".
func (n RuleName) Place() string {
	if n.Path == "" {
		return n.Direction + ", nothing else"
	}
	return n.Path
}

// String returns "NetworkPolicy shop/web spec.ingress[0]".
func (n RuleName) String() string { return n.PolicyName.String() + " " + n.Place() }

// Rules is the answer of /v1/rules: what every rule of every policy has counted on this node.
type Rules struct {
	At    time.Time `json:"at"` // when they were read
	Rules []Rule    `json:"rules"`
}

// Rule is a rule of a policy, or what becomes of packets that no rule matches.
type Rule struct {
	RuleName
	Title  string    `json:"title,omitempty"` // its name in the object
	Action string    `json:"action"`          // allow, deny, pass
	Peers  []string  `json:"peers"`           // in words; empty: nobody
	Ports  []string  `json:"ports"`           // in words; empty: none
	Audit  bool      `json:"audit,omitempty"` // Count is of packets it would have decided
	InUse  bool      `json:"inUse"`           // a pod of this node is judged by it
	Count  Count     `json:"count"`
	Since  time.Time `json:"since,omitzero"` // beginning of the count; zero: it does not count here
	// Shadowed names what decides in place of this rule wherever it is in use; nil: it can decide, or was not asked for.
	Shadowed *RuleName `json:"shadowedBy,omitempty"`
}

// PolicyDetail is the answer of /v1/policies/KIND/NAMESPACE/NAME.
type PolicyDetail struct {
	Node string `json:"node"`
	Policy
	Subjects []string      `json:"subjects"` // what its specs select, in words
	Isolates []string      `json:"isolates"` // directions
	Selected []SelectedPod `json:"selected"` // on this node
	RuleRows []Rule        `json:"ruleRows"`
}

// SelectedPod is a local pod that a policy selects.
type SelectedPod struct {
	Pod     string `json:"pod"` // namespace/name; empty: the node itself
	Program string `json:"program"`
	Entries int    `json:"entries"`         // rows of the program in the kernel
	Mode    string `json:"mode,omitempty"`  // always, never; empty: default
	Audit   bool   `json:"audit,omitempty"` // everything is only audited here
	Error   string `json:"error,omitempty"` // why the kernel does not have the program
}

// PodRow is a row of /v1/pods: a pod as policy sees it.
type PodRow struct {
	Namespace      string            `json:"namespace"`
	Name           string            `json:"name"`
	Node           string            `json:"node,omitempty"`
	Addresses      []netip.Addr      `json:"addresses"`
	HostNetwork    bool              `json:"hostNetwork,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Ports          []string          `json:"ports,omitempty"` // with a name: "http 80/TCP"
	Audit          bool              `json:"audit,omitempty"`
}

// NamespaceRow is a row of /v1/namespaces.
type NamespaceRow struct {
	Name   string            `json:"name"`
	Mode   string            `json:"mode,omitempty"` // empty: the cluster's
	Audit  bool              `json:"audit,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// IdentityRow is a row of /v1/identities: who has a prefix, as far as policy in use on this node can tell.
type IdentityRow struct {
	Prefix   netip.Prefix `json:"prefix"`
	Identity string       `json:"identity"`
	Kind     string       `json:"kind"`
	Pod      string       `json:"pod,omitempty"` // namespace/name
	Matches  []string     `json:"matches"`       // selectors in use, in words
}

// ProgramRow is a row of /v1/policyprograms: a set of policies in use on this node, compiled.
type ProgramRow struct {
	ID       string       `json:"id"`
	Policies []PolicyName `json:"policies"`
	Pods     []string     `json:"pods"` // namespace/name; "" is the node itself
	Entries  int          `json:"entries"`
	Error    string       `json:"error,omitempty"`
}

// handlePolicy adds the paths about policy.
func handlePolicy(mux *http.ServeMux, p Provider) {
	get(mux, "/v1/policies", p.Policies)
	get(mux, "/v1/pods", p.Pods)
	get(mux, "/v1/namespaces", p.Namespaces)
	get(mux, "/v1/identities", p.Identities)
	get(mux, "/v1/policyprograms", p.PolicyPrograms)
	handle(mux, "GET /v1/rules", p.Rules != nil, func(r *http.Request) (any, error) {
		return p.Rules(r.Context(), r.URL.Query().Get("shadowed") == "true")
	})
	for _, name := range []string{"{kind}/{name}", "{kind}/{namespace}/{name}"} {
		handle(mux, "GET /v1/policies/"+name, p.Policy != nil, func(r *http.Request) (any, error) {
			return p.Policy(r.Context(), PolicyName{r.PathValue("kind"), r.PathValue("namespace"), r.PathValue("name")})
		})
	}
	handle(mux, "GET /v1/verdict", p.Verdict != nil, func(r *http.Request) (any, error) {
		q, err := askedVerdict(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return p.Verdict(r.Context(), q)
	})
	for method, repair := range map[string]bool{http.MethodGet: false, http.MethodPost: true} {
		handle(mux, method+" /v1/check", p.Check != nil, func(r *http.Request) (any, error) { return p.Check(r.Context(), repair) })
	}
}

// Policies returns the policies of all kinds, those that are not as they should be first.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return fetch[[]Policy](ctx, c, "/v1/policies")
}

// Policy returns everything of one policy.
func (c *Client) Policy(ctx context.Context, name PolicyName) (PolicyDetail, error) {
	if !isPath(name.Kind) || !isPath(name.Name) || name.Namespace != "" && !isPath(name.Namespace) {
		return PolicyDetail{}, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	path := "/v1/policies/" + name.Kind + "/"
	if name.Namespace != "" {
		path += name.Namespace + "/"
	}
	return fetch[PolicyDetail](ctx, c, path+name.Name)
}

// Rules returns what the rules of all policies have counted; with shadowed also what decides in place of those that never can.
func (c *Client) Rules(ctx context.Context, shadowed bool) (Rules, error) {
	return fetch[Rules](ctx, c, "/v1/rules?shadowed="+strconv.FormatBool(shadowed))
}

// Pods returns the pods the agent knows of.
func (c *Client) Pods(ctx context.Context) ([]PodRow, error) {
	return fetch[[]PodRow](ctx, c, "/v1/pods")
}

// Namespaces returns the namespaces the agent knows of.
func (c *Client) Namespaces(ctx context.Context) ([]NamespaceRow, error) {
	return fetch[[]NamespaceRow](ctx, c, "/v1/namespaces")
}

// Identities returns who has which prefix for policy.
func (c *Client) Identities(ctx context.Context) ([]IdentityRow, error) {
	return fetch[[]IdentityRow](ctx, c, "/v1/identities")
}

// PolicyPrograms returns the compiled sets of policies.
func (c *Client) PolicyPrograms(ctx context.Context) ([]ProgramRow, error) {
	return fetch[[]ProgramRow](ctx, c, "/v1/policyprograms")
}

// Verdict judges a connection by what is in the kernel.
func (c *Client) Verdict(ctx context.Context, q VerdictQuestion) (PolicyVerdict, error) {
	return fetch[PolicyVerdict](ctx, c, "/v1/verdict?"+q.values().Encode())
}

// Check compares API, model and kernel now; with repair, what differs is written again.
func (c *Client) Check(ctx context.Context, repair bool) (Check, error) {
	method := http.MethodGet
	if repair {
		method = http.MethodPost
	}
	return do[Check](ctx, c, method, "/v1/check")
}

func (q VerdictQuestion) values() url.Values {
	return url.Values{
		"source": {q.Source}, "destination": {q.Destination},
		"protocol": {strconv.Itoa(int(q.Protocol))}, "port": {strconv.Itoa(int(q.Port))}, "name": {q.PortName},
	}
}

func askedVerdict(v url.Values) (VerdictQuestion, error) {
	q := VerdictQuestion{Source: v.Get("source"), Destination: v.Get("destination"), PortName: v.Get("name")}
	protocol, err := strconv.ParseUint(v.Get("protocol"), 10, 8)
	if err != nil {
		return q, BadQuestion("protocol %q: want the number of an IP protocol", v.Get("protocol"))
	}
	port, err := strconv.ParseUint(v.Get("port"), 10, 16)
	if err != nil {
		return q, BadQuestion("port %q: want 0 to 65535", v.Get("port"))
	}
	q.Protocol, q.Port = uint8(protocol), uint16(port)
	return q, nil
}
