package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/kubeproxy"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/takeover"
)

// takeoverEvery is how often connections that somebody has to wait for are counted.
const takeoverEvery = 5 * time.Second

// takeoverStatus says who serves, and what there is of kube-proxy. Nothing is changed.
func (a *agent) takeoverStatus(context.Context) (localapi.Takeover, error) {
	mode, decided := a.serviceMode()
	t := localapi.Takeover{Mode: string(mode), Config: string(a.cfg.Services.Mode), SocketLB: a.cgroupDir() != ""}
	if !decided.IsZero() {
		t.Decided = &decided
	}
	running, runErr := kubeproxy.Running()
	left, findErr := kubeproxy.Find()
	plan, _, planErr := a.takeoverPlan()
	held, heldErr := netfilter.Held()
	served, servedErr := a.maps.Served()
	t.Running, t.Left, t.Holding, t.Served = traces(running), traces(left), held, served
	t.Import, t.Held, t.Lost = len(plan.Import), len(plan.Held), len(plan.Lost)
	for _, k := range kubeproxy.Kinds() {
		t.Checked = append(t.Checked, string(k))
	}
	return t, errors.Join(runErr, findErr, planErr, heldErr, servedErr)
}

func traces(found []kubeproxy.Trace) []localapi.ProxyTrace {
	out := []localapi.ProxyTrace{}
	for _, f := range found {
		out = append(out, localapi.ProxyTrace{Kind: string(f.Kind), Name: f.Name, Detail: f.Detail})
	}
	return out
}

// takeOver makes this node serve Services in place of kube-proxy, which must have been stopped. It may be repeated.
//
// Connections are imported twice: before the switch, so that the programs know from the first packet they see that it is the stack's, and
// after it, with what has begun meanwhile. The second time makes them the programs', each of them at once.
func (a *agent) takeOver(ctx context.Context) (localapi.Takeover, error) {
	a.switching.Lock()
	defer a.switching.Unlock()
	running, err := kubeproxy.Running()
	if err != nil {
		return localapi.Takeover{}, err
	}
	if len(running) > 0 {
		return localapi.Takeover{}, fmt.Errorf("kube-proxy runs on this node (%s %s): stop it first, it would put its rules back", running[0].Kind, running[0].Name)
	}
	if err := a.synced(ctx); err != nil {
		return localapi.Takeover{}, fmt.Errorf("wait for services to be in the kernel: %w", err)
	}
	before, err := kubeproxy.Find()
	if err != nil {
		return localapi.Takeover{}, err
	}
	plan, err := a.takeConnections()
	if err != nil {
		return localapi.Takeover{}, err
	}
	t, err := a.takeoverStatus(ctx)
	for _, b := range traces(before) {
		if !slices.ContainsFunc(t.Left, func(l localapi.ProxyTrace) bool { return l.Kind == b.Kind && l.Name == b.Name }) {
			t.Removed = append(t.Removed, b)
		}
	}
	t.Import, t.Held, t.Lost = len(plan.Import), len(plan.Held), len(plan.Lost)
	a.log.Info("taken over from kube-proxy", "imported", t.Import, "held", t.Held, "lost", t.Lost, "removed", len(t.Removed), "left", len(t.Left))
	return t, err
}

// takeConnections switches, and removes kube-proxy's rules when nobody needs them any more.
func (a *agent) takeConnections() (_ takeover.Plan, err error) {
	strict, err := netfilter.Liberal()
	if err != nil {
		return takeover.Plan{}, err
	}
	defer func() { err = errors.Join(err, strict()) }()
	plan, _, err := a.takeoverPlan()
	if err == nil {
		err = a.maps.Import(plan.Import, true)
	}
	if err == nil {
		err = a.serve(config.ServicesOn)
	}
	if err != nil {
		return plan, err
	}
	plan, flows, err := a.takeoverPlan()
	if err == nil {
		err = a.maps.Import(plan.Import, false)
	}
	// From here the programs have everything that is theirs; the rest is translated by the stack, if it is held to it.
	if err == nil {
		err = netfilter.Hold()
	}
	if err != nil {
		return plan, err
	}
	view, err := a.takeoverView()
	if err != nil {
		return plan, err
	}
	return plan, errors.Join(
		kubeproxy.Remove(),
		a.maps.LeaveStack(view.Service),
		netfilter.Forget(slices.DeleteFunc(flows, func(f takeover.Flow) bool { return !plan.Imported(f) })),
	)
}

// takeoverPlan judges the connections that the stack translates now.
func (a *agent) takeoverPlan() (takeover.Plan, []takeover.Flow, error) {
	view, err := a.takeoverView()
	if err != nil {
		return takeover.Plan{}, nil, err
	}
	flows, err := netfilter.Redirected()
	return takeover.Make(flows, view), flows, err
}

// takeoverView is what the kernel's tables say of services and backends, and of the addresses of this node.
func (a *agent) takeoverView() (v takeover.View, err error) {
	type known struct{ id, generation uint32 }
	backends, services := map[maps.Frontend]known{}, map[maps.Frontend]bool{}
	pods, own := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	err = errors.Join(
		a.maps.EachBackend(func(id uint32, b maps.Backend) {
			backends[maps.Frontend{AddrPort: b.AddrPort, Protocol: b.Protocol}] = known{id, b.Generation}
		}),
		a.maps.EachService(func(f maps.Frontend, _ maps.Service) { services[f] = true }),
	)
	for e := range a.state.Endpoints.Snapshot().All() {
		for _, address := range e.Addresses {
			pods[address] = true
		}
	}
	for r := range a.state.Remotes.Snapshot().All() {
		if r.Kind == state.RemoteHost {
			own[r.Prefix.Addr()] = true
		}
	}
	for d := range a.state.Devices.Snapshot().All() {
		for _, p := range d.Addresses {
			own[p.Addr()] = true
		}
	}
	v.Pod = func(ip netip.Addr) bool { return pods[ip] }
	v.Node = func(ip netip.Addr) bool { return own[ip] }
	v.Backend = func(address netip.AddrPort, protocol uint8) (uint32, uint32, bool) {
		k, ok := backends[maps.Frontend{AddrPort: address, Protocol: protocol}]
		return k.id, k.generation, ok
	}
	v.Service = func(front netip.AddrPort, protocol uint8) bool {
		if services[maps.Frontend{AddrPort: front, Protocol: protocol}] {
			return true
		}
		any := netip.IPv4Unspecified()
		if front.Addr().Is6() {
			any = netip.IPv6Unspecified()
		}
		return (own[front.Addr()] || front.Addr().IsLoopback()) && services[maps.Frontend{AddrPort: netip.AddrPortFrom(any, front.Port()), Protocol: protocol}]
	}
	return v, err
}

// undoTakeover leaves new connections to kube-proxy; those that are ours go on.
func (a *agent) undoTakeover(ctx context.Context, force bool) (localapi.Takeover, error) {
	a.switching.Lock()
	defer a.switching.Unlock()
	mode, _ := a.serviceMode()
	if mode != config.ServicesOn {
		return localapi.Takeover{}, fmt.Errorf("services are %s on this node: there is nothing to undo", mode)
	}
	found, err := kubeproxy.Find()
	if err != nil {
		return localapi.Takeover{}, err
	}
	if len(found) == 0 && !force {
		return localapi.Takeover{}, errors.New("kube-proxy has no rules on this node: start it first, or nobody serves new connections")
	}
	if err := a.serve(config.ServicesDrain); err != nil {
		return localapi.Takeover{}, err
	}
	if err := a.endDrain(); err != nil {
		return localapi.Takeover{}, err
	}
	return a.takeoverStatus(ctx)
}

// endDrain switches off what a person has let drain, once nothing is left of it.
func (a *agent) endDrain() error {
	mode, decided := a.serviceMode()
	if mode != config.ServicesDrain || decided.IsZero() {
		return nil
	}
	n, err := a.maps.Served()
	if err != nil || n > 0 {
		return err
	}
	return a.serve(config.ServicesOff)
}

// endHold lets the stack go once it translates no connection any more that Strait has left to it.
func (a *agent) endHold() error {
	held, err := netfilter.Held()
	if !held || err != nil {
		return err
	}
	plan, _, err := a.takeoverPlan()
	if err != nil || len(plan.Held)+len(plan.Lost) > 0 {
		return err
	}
	a.log.Info("the stack translates no connection of kube-proxy's any more")
	return netfilter.Release()
}

// followTakeover ends what waits for connections to end.
func (a *agent) followTakeover(ctx context.Context) error {
	const subject = "takeover"
	if err := a.synced(ctx); err != nil { // services that are not there yet would let go of their connections
		return err
	}
	for {
		a.switching.Lock()
		err := errors.Join(a.endDrain(), a.endHold())
		a.switching.Unlock()
		if err != nil {
			a.report(subject, err)
		} else {
			state.Clear(a.state.Problems, agentProblems, subject)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(takeoverEvery):
		}
	}
}
