package observer

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/verdict"
)

var update = flag.Bool("update", false, "write golden files")

// TestRender compares Hubble's form of one event of each kind with what was looked at by a person.
func TestRender(t *testing.T) {
	s := newServer(t, 8)
	var b strings.Builder
	for i, f := range sample() {
		f.Number = uint64(i + 1)
		for _, p := range partsOf(&f, nil) {
			text, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true, Indent: "  "}.Marshal(s.render(&p))
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString(strings.ReplaceAll(string(text), ":  ", ": ") + "\n") // its blanks are random on purpose
		}
	}
	path := filepath.Join("testdata", "flows.json")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("flows (-file +now):\n%s", diff)
	}
}

func TestUUID(t *testing.T) {
	seen := map[string]string{}
	for _, node := range []string{"n1", "n2"} {
		for _, start := range []time.Time{began, began.Add(time.Nanosecond)} {
			b := bootOf(node, start)
			for n := range uint64(3) {
				f := opened()
				f.Number = n + 1
				for _, p := range partsOf(&f, nil) {
					text := b.uuid(&p).String()
					if len(text) != 36 || text[14] != '8' || !strings.ContainsRune("89ab", rune(text[19])) {
						t.Errorf("%s is no UUID of version 8", text)
					}
					what := node + start.String() + p.direction.String() + string(rune('0'+n))
					if other, there := seen[text]; there {
						t.Errorf("%s is both %s and %s", text, other, what)
					}
					seen[text] = what
					if b != bootOf(node, start) || b.uuid(&p).String() != text {
						t.Errorf("%s is another one the second time", text)
					}
				}
			}
		}
	}
}

// TestEveryReasonOfPolicyIsAVerdict: what Hubble's clients count as denied by policy is what policy denied.
func TestEveryReasonOfPolicyIsAVerdict(t *testing.T) {
	for _, r := range verdict.All() {
		if !r.Dropped() {
			continue
		}
		f := dropped()
		f.Reason = r
		p := partsOf(&f, nil)
		denies := r == verdict.PolicyEgress || r == verdict.PolicyIngress
		if len(p) != 1 || (p[0].kind == typeVerdict) != denies || (dropReason(r) == 133) != denies {
			t.Errorf("%s: %d parts, type %d, drop reason %d", r, len(p), p[0].kind, dropReason(r))
		}
		if !denies && p[0].sub != int32(dropReason(r)) {
			t.Errorf("%s: sub type %d, drop reason %d", r, p[0].sub, dropReason(r))
		}
	}
}

func TestDenialSaysWhatIsKnown(t *testing.T) {
	s := newServer(t, 8)
	f := denied()
	p := partsOf(&f, nil)[0]
	always := policy.RuleRef{Ref: policy.Ref{Kind: policy.Builtin, Name: policy.ModeAlwaysOn}, Way: policy.Ingress}
	for _, tc := range []struct {
		rule *policy.RuleRef
		want string
	}{
		{nil, "denied by a rule that is gone"},
		{refIngress, "denied by CiliumNetworkPolicy shop/db ingress spec.ingress[1]"},
		{&always, "no policy allowed it, and the mode is always; nearest miss NetworkPolicy shop/db spec.ingress[0]: port 5432/TCP, want 5433/TCP"},
		{refNone, "no rule of NetworkPolicy shop/db, NetworkPolicy shop/all allowed it; nearest miss NetworkPolicy shop/db spec.ingress[0]: port 5432/TCP, want 5433/TCP"},
	} {
		if got, _ := s.denial(&p, tc.rule); got != tc.want {
			t.Errorf("rule %v: %q, want %q", tc.rule, got, tc.want)
		}
	}
	s.c.Explain = nil
	if got, _ := s.denial(&p, refNone); got != "no rule of NetworkPolicy shop/db allowed it" {
		t.Errorf("without explanations: %q", got)
	}
}
