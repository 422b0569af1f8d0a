package endpoint

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/state"
)

// judge is the policy loop in tests: it gives every pod one program.
type judge struct {
	keeper  *Keeper
	program uint64
	err     error
	early   bool // an address was in the kernel before its pod was admitted
}

func (j *judge) Admit(_ context.Context, row state.Endpoint) error {
	if j.err != nil {
		return j.err
	}
	for _, a := range row.Addresses {
		if _, there, _ := j.keeper.cfg.Maps.Endpoint(a); there {
			j.early = true
		}
	}
	_, err := j.keeper.SetPolicy(row.Key(), j.program)
	return err
}

// programs returns what the entries of an attachment name.
func (b *bench) programs(l *life, ep state.Endpoint) (out []uint64) {
	b.t.Helper()
	for _, a := range ep.Addresses {
		e, there, err := l.Endpoint(a)
		if err != nil || !there {
			b.t.Fatalf("entry of %s: %v, %v", a, there, err)
		}
		out = append(out, e.Policy)
	}
	return out
}

func all(programs []uint64, want uint64) bool {
	for _, p := range programs {
		if p != want {
			return false
		}
	}
	return len(programs) > 0
}

// CNI-3: an address is not in the kernel before the pod's program is, and names it from its first entry on, also after a restart.
func TestPolicyOfAPod(t *testing.T) {
	b := newBench(t)
	l := b.start()
	j := &judge{keeper: l.k, program: 7}
	l.k.cfg.Policies = j
	ep := mustAdd(t, l, "a")
	if got := b.programs(l, ep); !all(got, 7) || j.early {
		t.Errorf("programs %v, early %v", got, j.early)
	}
	if changed, err := l.k.SetPolicy(ep.Key(), 8); err != nil || !changed || !all(b.programs(l, ep), 8) {
		t.Errorf("programs %v after a change, %v, %v", b.programs(l, ep), changed, err)
	}
	if changed, err := l.k.SetPolicy(ep.Key(), 8); err != nil || changed {
		t.Errorf("said twice: %v, %v", changed, err)
	}
	if changed, err := l.k.SetPolicy("nobody/eth0", 8); err != nil || changed {
		t.Errorf("said of nobody: %v, %v", changed, err)
	}
	// Somebody has meddled: CHECK sees it, and so does a comparison, which repairs.
	e, _, _ := l.Endpoint(ep.Addresses[0])
	e.Policy = 0
	if err := l.PutEndpoint(e); err != nil {
		t.Fatal(err)
	}
	if err := l.k.Check(t.Context(), attachment("a"), ep.Addresses); err == nil || !strings.Contains(err.Error(), "has policy 0000000000000000, want 0000000000000008") {
		t.Errorf("check: %v", err)
	}
	rows, found, err := l.k.CheckPolicies(true)
	if err != nil || rows != 2 || len(found) != 1 || !all(b.programs(l, ep), 8) {
		t.Errorf("%d rows, found %v, %v, programs %v", rows, found, err, b.programs(l, ep))
	}
	// After a restart it stays as it is until the loop speaks.
	l = b.start()
	l.k.Verify(t.Context())
	if !all(b.programs(l, ep), 8) {
		t.Errorf("programs %v after a restart", b.programs(l, ep))
	}
	if held, err := l.k.Held(); err != nil || len(held) != 1 || !held[8] {
		t.Errorf("held %v, %v", held, err)
	}
	mustDel(t, l, "a")
	if held, err := l.k.Held(); err != nil || len(held) != 0 {
		t.Errorf("held %v after the end, %v", held, err)
	}
}

// A pod whose policy cannot be made is not attached, and nothing is left of it.
func TestPodWithoutPolicyIsNotAttached(t *testing.T) {
	b := newBench(t)
	l := b.start()
	l.k.cfg.Policies = &judge{keeper: l.k, err: errors.New("nobody knows it")}
	_, err := l.k.Add(t.Context(), attachment("a"))
	wantCode(t, err, types.ErrTryAgainLater, "nobody knows it")
	b.consistent(l)
}
