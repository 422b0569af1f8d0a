package chart

import (
	"strings"

	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/topology"
)

// Values are what a user would write for a cluster like the lab: its image, where its API server is (there is no
// kube-proxy to find it by), and the network that the lab was asked for.
func Values(s topology.Spec) map[string]any {
	type object = map[string]any
	repository, tag, _ := strings.Cut(strings.TrimPrefix(image.Strait, "localhost/"), ":")
	pool := object{}
	for _, c := range s.PodCIDRs() {
		if c.Addr().Is4() {
			pool["clusterPoolIPv4PodCIDRList"] = []any{c.String()}
			pool["clusterPoolIPv4MaskSize"] = topology.NodeMaskV4
		} else {
			pool["clusterPoolIPv6PodCIDRList"] = []any{c.String()}
			pool["clusterPoolIPv6MaskSize"] = topology.NodeMaskV6
		}
	}
	var services []any
	for _, c := range s.ServiceCIDRs() {
		services = append(services, c.String())
	}
	values := object{
		"image":          object{"repository": "localhost/" + repository, "tag": tag, "pullPolicy": "Never"},
		"k8sServiceHost": s.APIServer().Addr().String(),
		"k8sServicePort": int(s.APIServer().Port()),
		"cluster":        object{"name": s.Name},
		"routingMode":    s.Mode,
		"network":        s.Network,
		"ipv4":           object{"enabled": s.V4()},
		"ipv6":           object{"enabled": s.V6()},
		"serviceCIDRs":   services,
		"operator":       object{"replicas": min(2, s.Nodes)}, // no two fit on one node
		"ipam":           object{"mode": s.IPAM, "operator": pool},
		"hubble":         object{"relay": object{"enabled": true}},
	}
	if s.KubeProxy() != "" {
		values["kubeProxyReplacement"] = "false"
	}
	return values
}
