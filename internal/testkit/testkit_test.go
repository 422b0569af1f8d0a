package testkit

import (
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// Without agents nodes reach each other over the bridge: what the datapath tests add is the pods.
func TestUnderlayCarriesNodes(t *testing.T) {
	RequireRoot(t)
	c := NewCluster(t, Options{NoAgents: true, BinDir: t.TempDir()})
	c.Nodes[1].Echo(8080)
	for _, v6 := range []bool{false, true} {
		to := c.Nodes[1].IPv4
		from := c.Nodes[0].IPv4
		if v6 {
			to, from = c.Nodes[1].IPv6, c.Nodes[0].IPv6
		}
		for _, network := range []string{"tcp", "udp"} {
			answer := c.Nodes[0].Probe(Probe{Network: network, Address: HostPort(to, 8080), Timeout: time.Second})
			if answer.OK != 1 || answer.Peer != HostPort(to, 8080) || len(answer.Seen) < len(from.String()) {
				t.Errorf("%s to %s: %+v", network, to, answer)
			}
		}
	}
}
