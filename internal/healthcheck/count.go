package healthcheck

import (
	"net/netip"

	"github.com/strait-net/strait/internal/state"
)

// port returns the port on which load balancers ask for the service, 0 for none.
func port(s state.Service) uint16 {
	if s.Type != state.LoadBalancer || s.ExternalPolicy != state.PolicyLocal || s.Proxy != "" {
		return 0
	}
	return s.HealthCheckNodePort
}

// local counts the endpoints of a service that are ready on the node. Terminating ones do not count, although they may still serve: the
// load balancer is to look elsewhere in time. A pod counts once, whatever its ports and, in the family that has more, its addresses.
func local(node string, slices []state.EndpointSlice) int {
	addresses := [2]map[netip.Addr]bool{{}, {}}
	for _, s := range slices {
		for _, e := range s.Endpoints {
			family := 0
			if e.Address.Is6() {
				family = 1
			}
			if e.Ready && e.Node == node {
				addresses[family][e.Address] = true
			}
		}
	}
	return max(len(addresses[0]), len(addresses[1]))
}
