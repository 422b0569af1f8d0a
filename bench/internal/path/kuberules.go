package path

import (
	"fmt"
	"strings"

	"github.com/strait-net/strait/bench/internal/node"
)

// ruledServices is the number of services in the rules a peer's node carries: a small cluster's.
const ruledServices = 10

// kubeRules is what kube-proxy in iptables mode keeps in a cluster with n services of two endpoints each, for iptables-restore.
// family is 4 or 6.
func kubeRules(family, n int) string {
	local, cluster, endpoint := "127.0.0.0/8", "10.96.%d.%d/32", "10.244.%d.%d"
	if family == 6 {
		local, cluster, endpoint = "::1/128", "fd00:96::%x:%x/128", "fd00:244::%x:%x"
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("*filter")
	for _, c := range []string{"KUBE-EXTERNAL-SERVICES", "KUBE-FIREWALL", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"} {
		line(":%s - [0:0]", c)
	}
	const fresh = `-m conntrack --ctstate NEW -m comment --comment "kubernetes"`
	line("-A INPUT %s -j KUBE-PROXY-FIREWALL", fresh)
	line("-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS")
	line("-A INPUT %s -j KUBE-EXTERNAL-SERVICES", fresh)
	line("-A INPUT -j KUBE-FIREWALL")
	line("-A FORWARD %s -j KUBE-PROXY-FIREWALL", fresh)
	line("-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD")
	line("-A FORWARD %s -j KUBE-SERVICES", fresh)
	line("-A FORWARD %s -j KUBE-EXTERNAL-SERVICES", fresh)
	line("-A OUTPUT %s -j KUBE-PROXY-FIREWALL", fresh)
	line("-A OUTPUT %s -j KUBE-SERVICES", fresh)
	line("-A OUTPUT -j KUBE-FIREWALL")
	line("-A KUBE-FIREWALL ! -s %s -d %s -m comment --comment \"block incoming localnet connections\""+
		" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP", local, local)
	line("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP")
	line("-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT")
	line("-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	line("COMMIT\n*nat")
	for _, c := range []string{"KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-SERVICES"} {
		line(":%s - [0:0]", c)
	}
	for i := range n {
		line(":KUBE-SVC-%016d - [0:0]\n:KUBE-SEP-%016d - [0:0]\n:KUBE-SEP-%016d - [0:0]", i, 2*i, 2*i+1)
	}
	line("-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES")
	line("-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES")
	line("-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING")
	line("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000")
	line("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN")
	line("-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0")
	line("-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully")
	for i := range n {
		line("-A KUBE-SERVICES -d "+cluster+" -p tcp -m comment --comment \"ns/s%d cluster IP\" -m tcp --dport 80 -j KUBE-SVC-%016d", i>>8, i&255, i, i)
		line("-A KUBE-SVC-%016d -m statistic --mode random --probability 0.5 -j KUBE-SEP-%016d", i, 2*i)
		line("-A KUBE-SVC-%016d -j KUBE-SEP-%016d", i, 2*i+1)
		for e := 2 * i; e <= 2*i+1; e++ {
			to := fmt.Sprintf(endpoint, 200+e>>8, e&255)
			line("-A KUBE-SEP-%016d -s %s -j KUBE-MARK-MASQ", e, to)
			if family == 6 {
				to = "[" + to + "]"
			}
			line("-A KUBE-SEP-%016d -p tcp -m tcp -j DNAT --to-destination %s:8080", e, to)
		}
	}
	line("-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
	line("COMMIT")
	return b.String()
}

// KubeRules programs a peer's node as kube-proxy would.
func (s *Site) KubeRules(n *node.Node) error {
	for family, restore := range map[int]string{4: "iptables-restore", 6: "ip6tables-restore"} {
		if _, err := n.Feed(kubeRules(family, ruledServices), restore, "--noflush"); err != nil {
			return fmt.Errorf("program kube-proxy's rules: %w", err)
		}
	}
	return nil
}
