package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// headlessPause is the least time between two looks for policies that ask for headless services.
const headlessPause = 100 * time.Millisecond

// addHeadless follows slices of headless services once a policy asks for one. They may be the most of all slices, and nobody else wants them;
// the table counts as initialised without them.
func addHeadless(a *APIServer, client *Client) {
	if a.tables.Policies == nil || a.tables.Services == nil {
		return
	}
	s := &store[*discoveryv1.EndpointSlice, state.EndpointSlice]{
		kind: endpointSlicesOf(a.tables, true), problems: a.tables.Problems, done: func() {}, now: time.Now,
	}
	r := resource{client: client.discovery, name: "endpointslices", labels: corev1.IsHeadlessService}
	a.reflectors = append(a.reflectors, func(ctx context.Context) {
		if a.headlessAsked(ctx) {
			a.follow(ctx, r, &discoveryv1.EndpointSlice{}, s)
		}
	})
}

// headlessAsked waits until a policy asks for a headless service; false: ctx has ended.
func (a *APIServer) headlessAsked(ctx context.Context) bool {
	var asked []string
	var known uint64 // revision of the policies that asked is of
	for {
		policies, services := a.tables.Policies.Snapshot(), a.tables.Services.Snapshot()
		if now := policies.Revision(); now != known {
			asked, known = servicesOf(policies), now
		}
		for _, name := range asked {
			if svc, _, ok := services.Get(name); ok && svc.Headless {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-policies.Changed():
		case <-services.Changed():
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(headlessPause):
		}
	}
}

// servicesOf returns the namespace/name of the services that rules of policies mean, some of them several times.
func servicesOf(policies table.Snapshot[state.Policy]) (out []string) {
	for row := range policies.All() {
		for i := range row.Specs {
			for _, rule := range row.Specs[i].Egress.Rules {
				for _, peer := range rule.Peers {
					if peer.Kind == policy.SelectService {
						out = append(out, peer.Service)
					}
				}
			}
		}
	}
	return out
}
