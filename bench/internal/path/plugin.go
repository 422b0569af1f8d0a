package path

import (
	"encoding/json"
	"fmt"

	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/node"
)

// object is a JSON object.
type object map[string]any

func confList(name string, plugin object) string {
	plugin["name"] = name
	text, err := json.Marshal(object{"cniVersion": "1.0.0", "name": name, "plugins": []object{plugin}})
	if err != nil {
		return err.Error() // maps of strings cannot fail to marshal; libcni would refuse the text with this message
	}
	return string(text)
}

func hostLocal(routes []string, subnets ...string) object {
	var ranges [][]object
	for _, s := range subnets {
		ranges = append(ranges, []object{{"subnet": s}})
	}
	var to []object
	for _, r := range routes {
		to = append(to, object{"dst": r})
	}
	return object{"type": "host-local", "ranges": ranges, "routes": to, "dataDir": "/run/cni/ipam"}
}

// Bridge and PTP are the plugins that stand for "a simple CNI".
const (
	Bridge = "bridge"
	PTP    = "ptp"
)

// PluginConf is the CNI configuration of a reference plugin as clusters use it; subnets are IPv4 and perhaps IPv6.
func PluginConf(kind string, subnets ...string) string { return pluginConf(kind, true, subnets) }

func pluginConf(kind string, masquerade bool, subnets []string) string {
	routes := []string{"0.0.0.0/0", "::/0"}[:len(subnets)]
	c := object{"type": kind, "ipMasq": masquerade, "mtu": deviceMTU, "ipam": hostLocal(routes, subnets...)}
	if kind == Bridge {
		c["bridge"], c["isGateway"], c["hairpinMode"] = "cni0", true, true
	}
	return confList(kind, c)
}

// Plugin is two pods of one node behind a reference plugin.
func (s *Site) Plugin(kind string) (*Path, error) {
	n, err := s.Node(kind)
	if err != nil {
		return nil, err
	}
	if err := s.KubeRules(n); err != nil {
		return nil, err
	}
	conf := PluginConf(kind, "10.88.0.0/16", "fd00:88::/64")
	made, err := pods(n, conf, s.box.Plugins(), "client", "server")
	if err != nil {
		return nil, err
	}
	p := &Path{Name: kind, Address: made[1].address, Witness: []Witness{{n.Space, made[0].device}},
		About: fmt.Sprintf("%s plugin, ipMasq, kube-proxy's rules, %s", kind, Variant(n))}
	return s.between(p, [2]*node.Node{n, n}, made[0], made[1])
}

// between opens a path from one pod to another.
func (s *Site) between(p *Path, on [2]*node.Node, client, server pod) (*Path, error) {
	var err error
	p.Client, p.Server, err = s.ends([2]bill.Group{on[0].Group, on[1].Group}, p.Name, client.space, server.space)
	if err != nil {
		return nil, err
	}
	return s.open(p)
}
