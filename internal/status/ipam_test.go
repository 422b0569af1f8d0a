package status_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/status"
)

func TestCheckIPAM(t *testing.T) {
	a := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	end := func(id string, phase state.EndpointPhase, addresses ...netip.Addr) state.Endpoint {
		return state.Endpoint{ContainerID: id, IfName: "eth0", Namespace: "d", Pod: id, NetNS: "/run/netns/" + id, Phase: phase, Addresses: addresses}
	}
	for _, tc := range []struct {
		name      string
		endpoints []state.Endpoint
		kernel    []netip.Addr
		dead      []string
		fix       bool
		stuck     bool // Release fails
		want      []string
		released  []string
	}{
		{name: "all is well", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1)), end("y", state.EndpointReady, a(2))}, kernel: []netip.Addr{a(1), a(2)}},
		{name: "sandbox gone", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1), a(2))}, kernel: []netip.Addr{a(1), a(2)}, dead: []string{"/run/netns/x"},
			want: []string{"10.0.0.1 d/x (x/eth0): the sandbox is gone false", "10.0.0.2 d/x (x/eth0): the sandbox is gone false"}},
		{name: "sandbox gone, taken back", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1))}, kernel: []netip.Addr{a(1)}, dead: []string{"/run/netns/x"}, fix: true,
			want: []string{"10.0.0.1 d/x (x/eth0): the sandbox is gone true"}, released: []string{"x/eth0"}},
		{name: "sandbox gone, cannot be taken back", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1))}, kernel: []netip.Addr{a(1)}, dead: []string{"/run/netns/x"},
			fix: true, stuck: true, want: []string{"10.0.0.1 d/x (x/eth0): the sandbox is gone; taking it back: busy false"}, released: []string{"x/eth0"}},
		{name: "just being added", endpoints: []state.Endpoint{end("x", state.EndpointAdding, a(1))}, dead: []string{"/run/netns/x"}, fix: true},
		{name: "held twice", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1)), end("y", state.EndpointReady, a(1))}, kernel: []netip.Addr{a(1)},
			want: []string{"10.0.0.1 d/y (y/eth0): held by d/x (x/eth0) as well false"}},
		{name: "kernel and records differ", endpoints: []state.Endpoint{end("x", state.EndpointReady, a(1))}, kernel: []netip.Addr{a(2)},
			want: []string{"10.0.0.1 d/x (x/eth0): not in the kernel false", "10.0.0.2 : in the kernel, but nobody holds it false"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var released []string
			c, err := status.CheckIPAM(context.Background(), status.IPAMNode{
				Endpoints: func() iter.Seq[state.Endpoint] { return slices.Values(tc.endpoints) },
				Kernel:    func() ([]netip.Addr, error) { return tc.kernel, nil },
				Alive:     func(netns string) bool { return !slices.Contains(tc.dead, netns) },
				Release: func(_ context.Context, e state.Endpoint) error {
					released = append(released, e.Key())
					if tc.stuck {
						return errors.New("busy")
					}
					return nil
				},
			}, tc.fix)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range c.Findings {
				got = append(got, fmt.Sprintf("%s %s: %s %v", f.Address, f.Owner, f.Text, f.Fixed))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if !slices.Equal(released, tc.released) {
				t.Errorf("released %v, want %v", released, tc.released)
			}
		})
	}
}

// An address that is removed between the two looks at the kernel is no finding.
func TestCheckIPAMWhileAPodGoes(t *testing.T) {
	looks := 0
	c, err := status.CheckIPAM(context.Background(), status.IPAMNode{
		Endpoints: func() iter.Seq[state.Endpoint] { return func(func(state.Endpoint) bool) {} },
		Kernel: func() ([]netip.Addr, error) {
			looks++
			if looks == 1 {
				return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
			}
			return nil, nil
		},
	}, false)
	if err != nil || len(c.Findings) > 0 {
		t.Errorf("= %+v, %v", c, err)
	}
}
