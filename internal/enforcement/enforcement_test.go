package enforcement

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

func object(generation int64, refused string) state.Policy {
	p := state.Policy{Ref: policy.Ref{Kind: policy.ClusterNetworkPolicy, Name: "p"}, UID: "u", Generation: generation, Enforced: generation, Refused: refused}
	if refused != "" {
		p.Enforced = 0
	}
	return p
}

// report reads "node generation uid error...": without a generation the node does not know the policy.
func report(text string) Report {
	words := strings.SplitN(text, " ", 4)
	r := Report{Node: words[0]}
	if len(words) > 1 {
		row := Row{Kind: policy.ClusterNetworkPolicy, Name: "p", UID: "u"}
		_, _ = fmt.Sscan(words[1], &row.Generation)
		if len(words) > 2 {
			row.UID = words[2]
		}
		if len(words) > 3 {
			row.Error = words[3]
		}
		r.Policies = []Row{row}
	}
	return r
}

func showCondition(c state.PolicyCondition) string {
	return fmt.Sprintf("%t %s %d: %s", c.True, c.Reason, c.Generation, c.Message)
}

// POL-8
func TestConditions(t *testing.T) {
	const valid = "true Accepted 2: all of generation 2 can be enforced"
	for _, c := range []struct {
		name            string
		object          state.Policy
		reports, silent []string
		valid, enforced string
	}{
		{"everywhere", object(2, ""), []string{"b 2", "a 2", "c 2"}, nil, valid, "true Enforced 2: enforced on 3/3 nodes at generation 2"},
		{"not everywhere yet", object(2, ""), []string{"a 2", "c", "b 1"}, nil, valid,
			"false Pending 2: enforced on 1/3 nodes at generation 2; b enforces generation 1; c does not know it yet"},
		{"one of the same name from before", object(2, ""), []string{"a 2 another", "b 0"}, nil, valid,
			"false Pending 2: enforced on 0/2 nodes at generation 2; a does not know it yet; b enforces nothing of it"},
		{"it fails", object(2, ""), []string{"a 2", "b 1", "c 2 u the table strait_policy is full"}, nil, valid,
			"false Failed 2: enforced on 1/3 nodes at generation 2; c: the table strait_policy is full; b enforces generation 1"},
		{"many nodes", object(2, ""), []string{"a", "b", "c", "d", "e"}, nil, valid,
			"false Pending 2: enforced on 0/5 nodes at generation 2; a does not know it yet; b does not know it yet; c does not know it yet; and 2 more"},
		{"silent nodes do not count", object(2, ""), []string{"a 2"}, []string{"d", "c", "b", "e"}, valid,
			"true Enforced 2: enforced on 1/1 nodes at generation 2; 4 more nodes do not answer: b, c, d, and 1 more"},
		{"no node", object(2, ""), nil, nil, valid, "false Pending 2: no agent says what it enforces"},
		{"refused", object(2, "spec.x: \"y\": want z"), []string{"a 1", "b 1"}, nil, "false Refused 2: spec.x: \"y\": want z",
			"false Failed 2: generation 2 is refused; from before: enforced on 2/2 nodes at generation 1"},
		{"refused from the beginning", object(1, "spec.x: \"y\": want z"), []string{"a 0", "b"}, nil, "false Refused 1: spec.x: \"y\": want z",
			"false Failed 1: generation 1 is refused, nothing from before is enforced"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var reports []Report
			for _, text := range c.reports {
				reports = append(reports, report(text))
			}
			got := NewNodes(reports, c.silent).Conditions(c.object)
			if v := showCondition(got.Valid); v != c.valid {
				t.Errorf("Valid\n%s\nwant\n%s", v, c.valid)
			}
			if e := showCondition(got.Enforced); e != c.enforced {
				t.Errorf("Enforced\n%s\nwant\n%s", e, c.enforced)
			}
		})
	}
	if c := (Nodes{}).Conditions(object(1, strings.Repeat("ä", 20000))); len(c.Valid.Message) > maxMessage+3 {
		t.Errorf("a message of %d bytes", len(c.Valid.Message))
	}
}

func TestReport(t *testing.T) {
	st := state.New()
	tables := Tables{"a", st}
	if err := tables.Known(); err == nil {
		t.Error("known before anything is")
	}
	policies, programs := st.Policies.Register("kube"), st.Programs.Register("control")
	policies()
	if err := tables.Known(); err == nil || !strings.Contains(err.Error(), "programs") {
		t.Errorf("known before policy is in force: %v", err)
	}
	programs()
	if err := tables.Known(); err != nil {
		t.Error(err)
	}
	ref := func(name string) policy.Ref {
		return policy.Ref{Kind: policy.NetworkPolicy, Namespace: "x", Name: name}
	}
	for _, name := range []string{"idle", "used", "full"} {
		st.Policies.Insert(state.Policy{Ref: ref(name), UID: "u-" + name, Generation: 3, Enforced: 2})
	}
	st.Programs.Insert(state.Program{ID: 1, Policies: []policy.Ref{ref("full"), ref("used")}, Pods: []string{"x/a", "x/b"}},
		state.Program{ID: 2, Policies: []policy.Ref{ref("full")}, Pods: []string{"x/b"}, Error: "no room"})
	show := func() string {
		var lines []string
		for _, r := range tables.Report().Policies {
			lines = append(lines, fmt.Sprintf("%s %s %d pods %d %s", r.Name, r.UID, r.Generation, r.Pods, r.Error))
		}
		return strings.Join(lines, "\n")
	}
	if got, want := show(), "full u-full 2 pods 2 no room\nidle u-idle 2 pods 0 \nused u-used 2 pods 2 "; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	before := tables.Revision()
	state.Raise(st.Problems, state.Problem{Source: "policy", Subject: "policy", Text: "the kernel says no"}, time.Now())
	if got, want := show(), "full u-full 2 pods 2 no room\nidle u-idle 2 pods 0 \nused u-used 2 pods 2 the kernel says no"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if tables.Revision() == before {
		t.Error("another report under the same revision")
	}
}

// Who has seen a report gets it again only when it says something else.
func TestHandler(t *testing.T) {
	st := state.New()
	h := Handler(Tables{"a", st})
	ask := func(tag string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest(http.MethodGet, Path, http.NoBody), httptest.NewRecorder()
		r.Header.Set("If-None-Match", tag)
		h.ServeHTTP(w, r)
		return w
	}
	if w := ask(""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("before anything is known: %d", w.Code)
	}
	st.Policies.Register("kube")()
	st.Programs.Register("control")()
	first := ask("")
	tag := first.Header().Get("ETag")
	if first.Code != http.StatusOK || first.Body.String() != `{"node":"a","policies":[]}` || tag == "" {
		t.Errorf("%d %s, tag %s", first.Code, first.Body, tag)
	}
	if w := ask(tag); w.Code != http.StatusNotModified || w.Body.Len() != 0 {
		t.Errorf("nothing changed: %d %s", w.Code, w.Body)
	}
	st.Programs.Insert(state.Program{ID: 1}) // another revision, the same content
	if w := ask(tag); w.Code != http.StatusNotModified {
		t.Errorf("nothing changed in what it says: %d", w.Code)
	}
	st.Policies.Insert(state.Policy{Ref: policy.Ref{Kind: policy.NetworkPolicy, Namespace: "x", Name: "p"}, UID: "u", Generation: 1, Enforced: 1})
	if w := ask(tag); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `{"kind":"NetworkPolicy","namespace":"x","name":"p","uid":"u","generation":1}`) || w.Header().Get("ETag") == tag {
		t.Errorf("changed: %d %s", w.Code, w.Body)
	}
}
