package path

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/toolbox"
)

// Flannel's backends.
const (
	FlannelVXLAN  = "vxlan"
	FlannelHostGW = "host-gw"
)

// Flannel is two pods on two nodes of a flannel network: flannel's own backend and iptables rules, the bridge plugin with the
// configuration that flannel's CNI plugin delegates, kube-proxy's rules.
func (s *Site) Flannel(backend string) (*Path, error) {
	name := "flannel-" + backend
	nodes, err := s.attached(name, 2)
	if err != nil {
		return nil, err
	}
	leases := filepath.Join(s.logs, name+"-leases")
	if err := os.MkdirAll(leases, 0o755); err != nil {
		return nil, err
	}
	for i, n := range nodes {
		if err := s.KubeRules(n.Node); err != nil {
			return nil, err
		}
		_, err := n.Start(s.log(n.Name), s.box.Flanneld(), "--node", n.Name, "--leases", leases, "--device", "eth0", "--backend", backend,
			"--network", "10.244.0.0/16", "--network6", "fd00:244::/48",
			"--subnet", fmt.Sprintf("10.244.%d.0/24", i+1), "--subnet6", fmt.Sprintf("fd00:244:0:%d::/64", i+1))
		if err != nil {
			return nil, err
		}
	}
	var made [2]pod
	for i, n := range nodes {
		mtu, err := flannelReady(s.log(n.Name), n.Node)
		if err != nil {
			return nil, err
		}
		conf := confList("cbr0", object{"type": "bridge", "bridge": "cni0", "mtu": mtu, "hairpinMode": true, "ipMasq": false, "isGateway": true,
			"isDefaultGateway": true, "ipam": hostLocal([]string{"10.244.0.0/16", "fd00:244::/48"},
				fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd00:244:0:%d::/64", i+1))})
		one, err := pods(n.Node, conf, s.box.Plugins(), fmt.Sprintf("pod%d", i+1))
		if err != nil {
			return nil, err
		}
		made[i] = one[0]
	}
	p := &Path{Name: name, Address: made[1].address, Witness: []Witness{{nodes[0].Space, made[0].device}},
		About: fmt.Sprintf("flannel %s %s backend and rules (leases from files), bridge plugin, kube-proxy's rules, %s",
			toolbox.FlannelVersion, backend, Variant(nodes[0].Node))}
	if backend == FlannelVXLAN {
		p.Witness = []Witness{{nodes[0].Space, "flannel.1"}, {nodes[0].Space, "flannel-v6.1"}} // one per family
	}
	return s.between(p, [2]*node.Node{nodes[0].Node, nodes[1].Node}, made[0], made[1])
}

func (s *Site) log(name string) string { return filepath.Join(s.logs, name+".log") }

// flannelReady waits until flannel has programmed its network, the route to the other node included, and returns the pods' MTU.
func flannelReady(log string, n *node.Node) (int, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		text, err := os.ReadFile(log)
		if err != nil {
			return 0, err
		}
		_, after, ok := strings.Cut(string(text), "ready mtu ")
		var mtu int
		if ok {
			if _, err := fmt.Sscan(after, &mtu); err != nil {
				return 0, fmt.Errorf("flannel on %s printed %q", n.Name, after)
			}
			routes, err := n.Run("sh", "-c", "ip -4 route show; ip -6 route show")
			if err != nil {
				return 0, err
			}
			if strings.Count(routes, "10.244.")+strings.Count(routes, "fd00:244:0:") >= 2 {
				return mtu, nil
			}
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("flannel on %s is not ready after 20 s: %s", n.Name, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
