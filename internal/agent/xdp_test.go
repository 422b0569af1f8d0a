package agent_test

import (
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// SVC-3: with XDP on the nodes' devices, outside reaches a service by the node it asks; packets of known connections go by XDP unless their
// sender has left the checksum to a device that does not exist.
func TestServiceByXDP(t *testing.T) {
	testkit.RequireRoot(t)
	if _, err := exec.LookPath("ethtool"); err != nil {
		t.Skip("needs ethtool: switches checksum offload and reads the device's XDP counters")
	}
	const nodePort, kept = 30081, 3 * time.Second
	for _, forwarding := range []string{"snat", "dsr"} {
		t.Run(forwarding, func(t *testing.T) {
			c := testkit.NewCluster(t, testkit.Options{Config: map[string]any{
				"routingMode": "native", "services": map[string]any{"forwarding": forwarding, "xdp": "native"},
			}})
			near, far := c.Nodes[0].AddPod("near"), c.Nodes[1].AddPod("far")
			near.Echo(port)
			far.Echo(port)
			for _, offload := range []string{"on", "off"} {
				for _, ns := range []*testkit.Namespace{c.Outside, c.Nodes[0].Namespace, c.Nodes[1].Namespace} {
					ns.Run("ethtool", "-K", "eth0", "tx", offload)
				}
				for _, server := range []*testkit.Pod{near, far} {
					c.Serve(testkit.Service{Name: "fast", Type: "NodePort", Port: 80, TargetPort: port, NodePort: nodePort,
						ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.81"), netip.MustParseAddr("fd96::81")}, Endpoints: server.Endpoints()})
					for family, v6 := range families {
						t.Run("offload "+offload+"/"+server.Name+"/"+family, func(t *testing.T) {
							at := testkit.HostPort(map[bool]netip.Addr{false: c.Nodes[0].IPv4, true: c.Nodes[0].IPv6}[v6], nodePort)
							if !within(10*time.Second, func() bool {
								return c.Outside.Probe(testkit.Probe{Network: "tcp", Address: at, Timeout: time.Second, Size: 1}).Server == server.Name
							}) {
								t.Fatalf("%s never leads to %s", at, server.Name)
							}
							for _, network := range []string{"tcp", "udp"} {
								before := sentByXDP(t, c.Nodes[0])
								got := c.Outside.Probe(testkit.Probe{Network: network, Address: at, Timeout: 2 * time.Second, Size: 1000, For: kept / 10, Keep: true})
								if got.Failed != 0 || got.OK == 0 || got.Servers[server.Name] != got.OK {
									t.Errorf("%s: %+v, want all from %s", network, got, server.Name)
								}
								sent := sentByXDP(t, c.Nodes[0]) - before
								wants := server == far && offload == "off" && (forwarding == "snat" || network == "tcp")
								if wants && sent < got.OK || !wants && sent > 0 {
									t.Errorf("%s: %d exchanges, %d packets sent by XDP", network, got.OK, sent)
								}
							}
						})
					}
				}
			}
		})
	}
}

// sentByXDP counts what XDP has sent back by the node's device.
func sentByXDP(t *testing.T, n *testkit.Node) (sum int) {
	t.Helper()
	for _, m := range regexp.MustCompile(`rx_queue_\d+_xdp_tx: (\d+)`).FindAllStringSubmatch(n.Run("ethtool", "-S", "eth0"), -1) {
		v, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}
