package status

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

// IPAMNode is what CheckIPAM asks of the node. All fields are required.
type IPAMNode struct {
	// Endpoints returns the attachments that hold addresses, as they are now.
	Endpoints func() iter.Seq[state.Endpoint]
	// Kernel returns the addresses the datapath hands packets over for.
	Kernel func() ([]netip.Addr, error)
	// Alive reports whether a network namespace still exists.
	Alive func(netns string) bool
	// Release detaches an endpoint: its addresses cool down.
	Release func(context.Context, state.Endpoint) error
}

// CheckIPAM compares who holds addresses with the sandboxes that live and with the kernel. With fix, addresses of sandboxes
// that are gone are taken back. Endpoints that are just being added are not judged.
func CheckIPAM(ctx context.Context, n IPAMNode, fix bool) (localapi.IPAMCheck, error) {
	before, err := n.Kernel()
	if err != nil {
		return localapi.IPAMCheck{}, fmt.Errorf("read addresses of pods from the kernel: %w", err)
	}
	c := localapi.IPAMCheck{Findings: []localapi.IPAMFinding{}}
	holder := map[netip.Addr]state.Endpoint{}
	find := func(a netip.Addr, e state.Endpoint, fixed bool, text string) {
		c.Findings = append(c.Findings, localapi.IPAMFinding{Address: a.String(), Owner: owner(e), Text: text, Fixed: fixed})
	}
	for e := range n.Endpoints() {
		gone := e.Phase != state.EndpointAdding && !n.Alive(e.NetNS)
		var failed error
		if gone && fix {
			failed = n.Release(ctx, e)
		}
		for _, a := range e.Addresses {
			c.Checked++
			if other, twice := holder[a]; twice {
				find(a, e, false, "held by "+owner(other)+" as well")
			}
			holder[a] = e
			switch {
			case failed != nil:
				find(a, e, false, "the sandbox is gone; taking it back: "+failed.Error())
			case gone:
				find(a, e, fix, "the sandbox is gone")
			case e.Phase == state.EndpointReady && !slices.Contains(before, a):
				if now, err := n.Kernel(); err == nil && !slices.Contains(now, a) { // it may have been added meanwhile
					find(a, e, false, "not in the kernel")
				}
			}
		}
	}
	after, err := n.Kernel() // what is in both was not being added or removed
	if err != nil {
		return localapi.IPAMCheck{}, fmt.Errorf("read addresses of pods from the kernel: %w", err)
	}
	for _, a := range before {
		if _, held := holder[a]; !held && slices.Contains(after, a) {
			c.Findings = append(c.Findings, localapi.IPAMFinding{Address: a.String(), Text: "in the kernel, but nobody holds it"})
		}
	}
	return c, nil
}

func owner(e state.Endpoint) string {
	if e.Pod == "" {
		return e.Key()
	}
	return e.Namespace + "/" + e.Pod + " (" + e.Key() + ")"
}
