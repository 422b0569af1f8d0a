package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/strait-net/strait/internal/control"
	"github.com/strait-net/strait/internal/datapath/sync"
	"github.com/strait-net/strait/internal/metric"
	"github.com/strait-net/strait/internal/state"
)

// publishLimit is how long the addresses of a new pod are tried to be published: by then the kubelet has written them.
const publishLimit = 10 * time.Second

// policies is what the agent has of policy.
type policies struct {
	writer *sync.Policies
	loop   *control.Policies
	view   *policyView
}

// newPolicies reads what the kernel holds; nothing is written before the loop has seen everything.
func (a *agent) newPolicies(m *metric.Policy) (*policies, error) {
	writer, err := sync.NewPolicies(sync.PolicyConfig{Kernel: a.maps, Ends: a.keeper, Sizes: a.cfg.Maps, StateDir: a.cfg.StateDir})
	if err != nil {
		return nil, fmt.Errorf("open policy: %w", err)
	}
	p := &policies{writer: writer, view: newPolicyView(a.state, a.cfg.Policy, a.maps, writer)}
	c := control.PoliciesConfig{
		Node: a.Node, Config: a.cfg, State: a.state, Writer: writer, Log: a.log,
		Applied: func(took time.Duration) {
			p.view.applied(took)
			m.Applied(took)
		},
	}
	if a.client != nil {
		c.Fetch = a.client.Pod
	}
	p.loop = control.NewPolicies(c)
	return p, nil
}

// admitter lets the keeper, which is there first, wait for the loop.
type admitter struct{ *node }

func (n admitter) Admit(ctx context.Context, row state.Endpoint) error {
	return n.policies.loop.Admit(ctx, row)
}

// publish tells other nodes the addresses of a pod before the kubelet does.
func (a *agent) publish(ctx context.Context, e state.Endpoint) {
	if a.client == nil || e.Pod == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishLimit)
	go func() {
		defer cancel()
		if err := a.client.PublishAddresses(ctx, e.Namespace, e.Pod, e.PodUID, e.Addresses); err != nil {
			a.log.Debug("addresses not published: others learn them from the kubelet", "pod", e.Namespace+"/"+e.Pod, "err", err)
		}
	}()
}
