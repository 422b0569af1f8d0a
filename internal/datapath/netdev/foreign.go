package netdev

import (
	"path"
	"slices"
)

// Finding is something another network left on the node, or still runs there.
type Finding struct {
	Device string `json:"device"`
	Of     string `json:"of"`     // which software makes such devices
	Effect string `json:"effect"` // what it does to Strait
}

// foreign lists devices by the patterns of their names. Containers of Docker and the like are no problem and not here.
var foreign = [...]struct{ pattern, of, effect string }{
	{"cni0", "the bridge plugin (flannel, kubenet)", "its subnet may be this node's pod CIDR"},
	{"cbr0", "kubenet", "its subnet may be this node's pod CIDR"},
	{"flannel.*", "flannel", "its routes may cover other nodes' pod CIDRs; its VXLAN port may be Strait's"},
	{"flannel-*", "flannel", "its routes may cover other nodes' pod CIDRs"},
	{"cilium_*", "Cilium", "its programs and routes see the same packets"},
	{"lxc*", "Cilium", "a pod is still attached to it"},
	{"cali*", "Calico", "a pod is still attached to it"},
	{"vxlan.calico", "Calico", "its routes may cover other nodes' pod CIDRs"},
	{"vxlan-v6.calico", "Calico", "its routes may cover other nodes' pod CIDRs"},
	{"weave", "Weave Net", "its subnet may overlap the pod CIDRs"},
	{"kube-bridge", "kube-router", "its subnet may be this node's pod CIDR"},
	{"antrea-gw0", "Antrea", "its routes may cover other nodes' pod CIDRs"},
	{"kube-ipvs0", "kube-proxy in IPVS mode", "service addresses are local addresses of this node"},
}

// ForeignDevices returns devices of other Kubernetes networks on this node, in the order of their names.
func (n *Net) ForeignDevices() ([]Finding, error) {
	links, err := n.links()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return foreignAmong(names), nil
}

func foreignAmong(names []string) []Finding {
	var out []Finding
	for _, name := range names {
		for _, f := range foreign {
			if ok, err := path.Match(f.pattern, name); err == nil && ok {
				out = append(out, Finding{Device: name, Of: f.of, Effect: f.effect})
				break
			}
		}
	}
	return out
}
