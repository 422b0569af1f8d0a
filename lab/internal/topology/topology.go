// Package topology decides the names and addresses of everything in a lab; it computes and touches nothing.
//
//	  control-plane    node1    node2    node3
//	        |            |        |        |
//	--------+------------+--------+--------+----  bridge in the namespace "underlay"
//	                          |
//	                        router
//	                          |
//	                       outside   (web server and client)
package topology

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Spec is what a person asks for.
type Spec struct {
	Name    string   `json:"name"`    // of the lab, at most 20 characters
	Nodes   int      `json:"nodes"`   // 1 to 100
	Mode    string   `json:"mode"`    // routing mode: vxlan or native
	IP      string   `json:"ip"`      // dual, ipv4 or ipv6
	Network string   `json:"network"` // cluster design: island, flat or isolated
	IPAM    string   `json:"ipam"`    // cluster-pool or kubernetes
	CNI     string   `json:"cni"`     // strait, or bridge for the reference plugins with kube-proxy
	Proxy   string   `json:"proxy"`   // mode of kube-proxy on the nodes: none, iptables or nftables; empty: none but with bridge
	Set     []string `json:"set"`     // Helm values as on the command line of helm
}

// Fixed names.
const (
	Underlay     = "underlay"
	ControlPlane = "control-plane"
	Router       = "router"
	Outside      = "outside"
)

// MaxNodes keeps node addresses below .200 and pod CIDRs within 10.244.0.0/16.
const MaxNodes = 100

// Validate names the first field that cannot be used, and what could.
func (s Spec) Validate() error {
	if !regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`).MatchString(s.Name) {
		return fmt.Errorf("--name %q: want a lower-case letter, then up to 19 letters, digits or dashes", s.Name)
	}
	if s.Nodes < 1 || s.Nodes > MaxNodes {
		return fmt.Errorf("--nodes %d: want 1 to %d", s.Nodes, MaxNodes)
	}
	for _, f := range []struct {
		flag, value string
		accepted    []string
	}{
		{"mode", s.Mode, []string{"vxlan", "native"}},
		{"ip", s.IP, []string{"dual", "ipv4", "ipv6"}},
		{"network", s.Network, []string{"island", "flat", "isolated"}},
		{"ipam", s.IPAM, []string{"cluster-pool", "kubernetes"}},
		{"cni", s.CNI, []string{"strait", "bridge"}},
		{"kube-proxy", s.Proxy, []string{"", "none", "iptables", "nftables"}},
	} {
		if !slices.Contains(f.accepted, f.value) {
			return fmt.Errorf("--%s %q: want one of %s", f.flag, f.value, strings.TrimPrefix(strings.Join(f.accepted, ", "), ", "))
		}
	}
	return nil
}

// KubeProxy is the mode of the kube-proxy that runs on every node; empty: none does.
func (s Spec) KubeProxy() string {
	switch {
	case s.Proxy == "none":
		return ""
	case s.Proxy == "" && s.CNI == "bridge":
		return "nftables"
	}
	return s.Proxy
}

// V4 and V6 say which families the lab has.
func (s Spec) V4() bool { return s.IP != "ipv6" }

// V6 says whether the lab has IPv6.
func (s Spec) V6() bool { return s.IP != "ipv4" }

// pick keeps the values of the families the lab has, IPv4 first.
func pick[T any](s Spec, v4, v6 T) []T {
	var out []T
	if s.V4() {
		out = append(out, v4)
	}
	if s.V6() {
		out = append(out, v6)
	}
	return out
}

func prefixes(s Spec, v4, v6 string) []netip.Prefix {
	return pick(s, netip.MustParsePrefix(v4), netip.MustParsePrefix(v6))
}

// PodCIDRs are the cluster's pools.
func (s Spec) PodCIDRs() []netip.Prefix { return prefixes(s, "10.244.0.0/16", "fd44::/48") }

// NodeMaskV4 and NodeMaskV6 are the sizes of one node's share of the pools.
const (
	NodeMaskV4 = 24
	NodeMaskV6 = 64
)

// ServiceCIDRs are the ranges of cluster addresses of services.
func (s Spec) ServiceCIDRs() []netip.Prefix { return prefixes(s, "10.96.0.0/16", "fd96::/112") }

// ClusterDNS are the addresses of the DNS service.
func (s Spec) ClusterDNS() []netip.Addr {
	return pick(s, netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd96::a"))
}

// KubernetesService is the address of the service "kubernetes": the first of the first range.
func (s Spec) KubernetesService() netip.Addr { return s.ServiceCIDRs()[0].Addr().Next() }

// underlayHost gives the addresses of host number n on the underlay: 172.18.0.n and fd18::n with the same digits.
func (s Spec) underlayHost(n int) []netip.Prefix {
	d := strconv.Itoa(n)
	return prefixes(s, "172.18.0."+d+"/24", "fd18::"+d+"/64")
}

// mac is the link address of host number n on the underlay, locally administered.
func mac(n int) net.HardwareAddr { return net.HardwareAddr{0x02, 0x18, 0, 0, 0, byte(n)} }

// outsideHost is the same in the network behind the router.
func (s Spec) outsideHost(n int) []netip.Prefix {
	d := strconv.Itoa(n)
	return prefixes(s, "172.19.0."+d+"/24", "fd19::"+d+"/64")
}

// RouterAddrs are the router's on the underlay, RouterOutsideAddrs those on its other side.
func (s Spec) RouterAddrs() []netip.Prefix        { return s.underlayHost(1) }
func (s Spec) RouterOutsideAddrs() []netip.Prefix { return s.outsideHost(1) }

// OutsideAddrs are the web server's.
func (s Spec) OutsideAddrs() []netip.Prefix { return s.outsideHost(2) }

// ControlPlaneAddrs are the API server's.
func (s Spec) ControlPlaneAddrs() []netip.Prefix { return s.underlayHost(2) }

// APIServer is what clients inside the lab dial.
func (s Spec) APIServer() netip.AddrPort {
	return netip.AddrPortFrom(s.ControlPlaneAddrs()[0].Addr(), APIPort)
}

// APIPort is the API server's port inside the lab.
const APIPort = 6443

// Node is one machine of the cluster.
type Node struct {
	Name  string         `json:"name"`
	Index int            `json:"index"` // from 1
	Addrs []netip.Prefix `json:"addrs"` // on the underlay, IPv4 first
	// MAC of the node's link: the same after a reboot, as a machine's is, so that no neighbour has to find out.
	MAC net.HardwareAddr `json:"mac"`
}

// Node gives the node with a number from 1.
func (s Spec) Node(index int) Node {
	return Node{Name: fmt.Sprintf("node%d", index), Index: index, Addrs: s.underlayHost(10 + index), MAC: mac(10 + index)}
}

// Join renders a list with commas, the form of most Kubernetes flags.
func Join[T fmt.Stringer](list []T) string {
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = e.String()
	}
	return strings.Join(parts, ",")
}

// Hosts strips the prefix lengths.
func Hosts(list []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, p := range list {
		out[i] = p.Addr()
	}
	return out
}
