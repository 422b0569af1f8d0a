package control

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// idle fails when the loop would go round although nothing happens.
func (r *kernelRig) idle(when string) {
	r.t.Helper()
	time.Sleep(tidyAfter + 10*time.Millisecond)
	r.loop.step(context.Background(), r.feeds)
	r.loop.retireAt = time.Time{} // is of the rig's clock
	if r.loop.sleep() == 0 {
		r.t.Errorf("%s the loop does not sleep", when)
	}
}

func TestLoopSleepsWhenNothingHappens(t *testing.T) {
	cluster := shop()
	cluster.Policies = []policy.Policy{onlyFrom("nobody", "postgres"), onlyFrom("db", "app", "app")}
	r := newKernelRig(t, cluster, roomy)
	r.settle()
	r.idle("with policies")
	for _, p := range cluster.Policies {
		r.st.Policies.Delete(state.Policy{Ref: p.Ref}.Key())
		r.settle()
		r.idle("without policy " + p.Ref.String())
	}
}

func TestLoopSleepsBetweenRetries(t *testing.T) {
	r := newKernelRig(t, shop(), roomy)
	r.settle()
	r.st.Policies.Delete(state.Policy{Ref: shop().Policies[0].Ref}.Key())
	r.settle()
	r.kernel.chance = rand.New(failing{})
	r.st.Policies.Insert(state.Policy{Ref: onlyFrom("other", "app", "postgres").Ref, Specs: []policy.Policy{onlyFrom("other", "app", "postgres")}})
	for r.loop.retry < 2*tidyAfter {
		r.loop.retryAt = time.Time{}
		r.loop.step(context.Background(), r.feeds)
	}
	r.idle("while writes fail")
}

// failing is a source of which every number drawn is zero.
type failing struct{}

func (failing) Uint64() uint64 { return 1 << 32 } // zero itself would be drawn again: it is one too many
