package servicerules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// IPVS returns the lines of ipvsadm -Ln: a virtual server for each address, those of the node one by one as kube-proxy has them. A
// scheduler that IPVS does not have keeps the name it has here.
func IPVS(rows []localapi.Service) []string {
	lines := []string{
		"IP Virtual Server version 1.2.1 (size=4096)",
		"Prot LocalAddress:Port Scheduler Flags",
		"  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
	}
	rows = slices.DeleteFunc(slices.Clone(rows), func(r localapi.Service) bool {
		return r.Note != "" || r.Frontend.Addr().IsUnspecified()
	})
	slices.SortStableFunc(rows, func(a, b localapi.Service) int {
		if a.Protocol != b.Protocol {
			return strings.Compare(a.Protocol, b.Protocol)
		}
		return a.Frontend.Compare(b.Frontend)
	})
	for _, r := range rows {
		server := fmt.Sprintf("%-4s %s %s", r.Protocol, r.Frontend, scheduler(r))
		if r.AffinitySeconds > 0 {
			server += fmt.Sprintf(" persistent %d", r.AffinitySeconds)
		}
		lines = append(lines, server)
		forward := "Masq"
		if r.Forwarding == "dsr" && r.Type != "ClusterIP" {
			forward = "Route"
		}
		for _, b := range servers(r) {
			lines = append(lines, strings.TrimRight(fmt.Sprintf("  -> %-28s %-7s %-6d %-10d %-10d", b.Address, forward, weight(b), b.Open, 0), " "))
		}
	}
	return lines
}

// servers are the backends of who comes in by this address.
func servers(r localapi.Service) []localapi.Backend {
	if r.ExternalLocal && r.Type != "ClusterIP" {
		return r.Outer
	}
	return r.Backends
}

// scheduler returns the name IPVS has for an algorithm; rr and lc have others with weights.
func scheduler(r localapi.Service) string {
	weighted := slices.ContainsFunc(servers(r), func(b localapi.Backend) bool { return weight(b) > 1 })
	switch {
	case r.Algorithm == "maglev":
		return "mh"
	case r.Algorithm == "p2c":
		return "twos"
	case weighted && (r.Algorithm == "rr" || r.Algorithm == "lc"):
		return "w" + r.Algorithm
	case r.Algorithm == "":
		return "random"
	}
	return r.Algorithm
}
