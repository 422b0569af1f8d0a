package server

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/state"
)

// encodeResult returns the result of ADD in the shape of the CNI version.
func encodeResult(ep state.Endpoint, version string, gateway func(v6 bool) netip.Addr) (json.RawMessage, error) {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: ep.Device, Mac: ep.HostMAC.String(), Mtu: ep.MTU},
			{Name: ep.IfName, Mac: ep.PodMAC.String(), Mtu: ep.MTU, Sandbox: ep.NetNS},
		},
	}
	const podInterface = 1 // its index above
	for _, addr := range ep.Addresses {
		gw := net.IP(gateway(addr.Is6()).AsSlice())
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(podInterface),
			Address:   ipNet(addr, addr.BitLen()),
			Gateway:   gw,
		})
		everything := netip.IPv4Unspecified()
		if addr.Is6() {
			everything = netip.IPv6Unspecified()
		}
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(everything, 0), GW: gw})
	}
	shaped, err := r.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("convert result to CNI version %s: %w", version, err)
	}
	out, err := json.Marshal(shaped)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return out, nil
}

func ipNet(addr netip.Addr, bits int) net.IPNet {
	return net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// prevResult is the part of a result that CHECK needs. It has this shape in every version from 0.3.1 on.
type prevResult struct {
	Interfaces []struct {
		Name    string `json:"name"`
		Sandbox string `json:"sandbox"`
	} `json:"interfaces"`
	IPs []struct {
		Address   string `json:"address"`
		Interface *int   `json:"interface"`
	} `json:"ips"`
}

// resultAddresses returns the addresses that the configuration's prevResult gives to the attachment's interface. Addresses of
// other interfaces belong to other plugins.
func resultAddresses(conf wire.Config, a wire.Attachment) ([]netip.Addr, error) {
	bad := func(format string, args ...any) error {
		return types.NewError(types.ErrInvalidNetworkConfig, "field \"prevResult\": "+fmt.Sprintf(format, args...), "")
	}
	var r prevResult
	if err := json.Unmarshal(conf.PrevResult, &r); err != nil {
		return nil, bad("%v", err)
	}
	var out []netip.Addr
	for i, ip := range r.IPs {
		if n := ip.Interface; n != nil {
			if *n < 0 || *n >= len(r.Interfaces) {
				return nil, bad("ips[%d].interface: %d is not the index of an interface", i, *n)
			}
			if on := r.Interfaces[*n]; on.Name != a.IfName || on.Sandbox == "" {
				continue
			}
		}
		p, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, bad("ips[%d].address: %q is not an address with a prefix length", i, ip.Address)
		}
		out = append(out, p.Addr().Unmap())
	}
	return out, nil
}
