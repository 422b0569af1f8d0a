package agent

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"net/netip"
	"os"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

// checkIPAM answers strait ipam check.
func (a *agent) checkIPAM(ctx context.Context, fix bool) (localapi.IPAMCheck, error) {
	return status.CheckIPAM(ctx, status.IPAMNode{
		Endpoints: func() iter.Seq[state.Endpoint] { return a.state.Endpoints.Snapshot().All() },
		Kernel: func() ([]netip.Addr, error) {
			rows, err := a.maps.Endpoints()
			var out []netip.Addr
			for _, r := range rows {
				out = append(out, r.Address)
			}
			return out, err
		},
		// A namespace that cannot be looked at is no reason to take its addresses.
		Alive: func(netns string) bool {
			_, err := os.Stat(netns)
			return !errors.Is(err, fs.ErrNotExist)
		},
		Release: func(ctx context.Context, e state.Endpoint) error {
			return a.keeper.Del(ctx, wire.Attachment{
				ContainerID: e.ContainerID, IfName: e.IfName, NetNS: e.NetNS, Namespace: e.Namespace, Pod: e.Pod, PodUID: e.PodUID,
			})
		},
	}, fix)
}
