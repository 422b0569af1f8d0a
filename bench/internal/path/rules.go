package path

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/rr"
)

const (
	rulesPerPolicy = 100
	deniedPort     = 7 // nothing allows it, and something listens there
	lastPort       = 9 // after rr.Port
)

// rule is the k-th rule on the server, in turn for pods by label, for addresses, for namespaces, for pods of namespaces; each peer is another one, the
// ports are those that services have. The measured conversation uses none of them.
func rule(k int) kube.Rule {
	ports := []int{80, 443, 2379, 3306, 4222, 5432, 5672, 6379, 8080, 8443, 9090, 9092, 9200, 11211, 27017, 50051}
	r := kube.Rule{Port: ports[k/4%len(ports)], Protocol: "TCP"}
	role, team := map[string]string{"role": fmt.Sprintf("role-%d", k)}, map[string]string{"team": fmt.Sprintf("team-%d", k)}
	switch k % 4 {
	case 0:
		r.Pods = role
	case 1:
		r.CIDR = ruleCIDR(k)
	case 2:
		r.Namespaces = team
	case 3:
		r.Pods, r.Namespaces = role, team
	}
	return r
}

func ruleCIDR(k int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(k>>8), byte(k), 0}), 24)
}

// rulePolicies are n rules on the server, and those that let the client in at last.
func rulePolicies(namespace string, n int) []kube.Policy {
	subject := map[string]string{"app": "server"}
	var out []kube.Policy
	for from := 0; from < n; from += rulesPerPolicy {
		p := kube.Policy{Namespace: namespace, Name: fmt.Sprintf("rules-%05d", from), Pods: subject}
		for k := from; k < min(n, from+rulesPerPolicy); k++ {
			p.Rules = append(p.Rules, rule(k))
		}
		out = append(out, p)
	}
	if n == 0 {
		return nil
	}
	client := map[string]string{"app": "client"}
	return append(out, kube.Policy{Namespace: namespace, Name: "zz-client", Pods: subject, Rules: []kube.Rule{
		{Pods: client, Port: rr.Port, Last: rr.Port + lastPort, Protocol: "TCP"}, {Pods: client, Port: rr.Port, Last: rr.Port + lastPort, Protocol: "UDP"}}})
}

// Ruled is how long it took until rules were enforced, and what the daemon used for it.
type Ruled struct {
	Started
	Path *Path
}

// Ruled starts the daemon and makes a path to a pod with n rules, and proves that they are enforced.
func (m *Member) Ruled(name string, n int) (out Ruled, err error) {
	ctx := m.cluster.site.ctx
	if err := m.cluster.server.StorePolicies(ctx, rulePolicies(m.Name, n)); err != nil {
		return out, err
	}
	begin := node.Now()
	if err := m.start(); err != nil {
		return out, err
	}
	made, err := m.pods("client", "server")
	if err != nil {
		return out, err
	}
	out.Took = node.Now().Sub(begin)
	if out.CPU, err = m.used(); err != nil {
		return out, err
	}
	if out.RSS, err = m.memory("VmRSS"); err != nil {
		return out, err
	}
	if out.Peak, err = m.memory("VmHWM"); err != nil {
		return out, err
	}
	p := &Path{Name: name, About: fmt.Sprintf("%s, %d rules on the server", m.about(), n), Address: made[1].address, Witness: []Witness{{m.Space, made[0].device}},
		Nodes: []*node.Node{m.Node}, Modes: ruleModes()}
	if out.Path, err = m.cluster.site.between(p, [2]*node.Node{m.Node, m.Node}, made[0], made[1]); err != nil {
		return out, err
	}
	return out, denied(m.Node, made[1].address[4], n)
}

func ruleModes() []rr.Mode { return []rr.Mode{rr.RR, rr.CRR} }

// denied makes the server answer at a port that no rule allows, and checks that the client reaches it only if there are no rules.
func denied(n *node.Node, server netip.Addr, rules int) error {
	if err := n.Answer(node.Answer{Pod: "server", Ports: []int{deniedPort}}); err != nil {
		return err
	}
	_, err := n.Watch(node.Watch{Pod: "client", Targets: []netip.AddrPort{netip.AddrPortFrom(server, deniedPort)}, Every: 10 * time.Millisecond,
		Patience: 100 * time.Millisecond, Timeout: 300 * time.Millisecond})
	switch {
	case rules > 0 && err == nil:
		return errNotDenied
	case rules == 0 && err != nil:
		return err
	}
	return nil
}

var errNotDenied = errors.New("a port that no rule allows was reached")

// RuledByNft is the same behind the ptp plugin with the rules that agents based on sets of addresses keep, written by the benchmark itself: connections
// that are known pass at once, then each rule is a comparison with a set and a port, in turn.
func (s *Site) RuledByNft(name string, n int) (*Path, error) {
	host, err := s.Node(name)
	if err != nil {
		return nil, err
	}
	made, err := pods(host, PluginConf(PTP, "10.88.0.0/16", "fd00:88::/64"), s.box.Plugins(), "client", "server")
	if err != nil {
		return nil, err
	}
	if n > 0 {
		if _, err := host.Feed(nftRules(made[0].address, made[1].address, n), "nft", "-f", "-"); err != nil {
			return nil, fmt.Errorf("program %d rules: %w", n, err)
		}
	}
	p := &Path{Name: name, Address: made[1].address, Witness: []Witness{{host.Space, made[0].device}}, Modes: ruleModes(),
		About: fmt.Sprintf("ptp plugin, nftables with %d rules on the server, one set of addresses each", n)}
	if p, err = s.between(p, [2]*node.Node{host, host}, made[0], made[1]); err != nil {
		return nil, err
	}
	return p, denied(host, made[1].address[4], n)
}

func nftRules(client, server map[int]netip.Addr, n int) string {
	var sets, rules strings.Builder
	for k := range n {
		// Pods and namespaces by label are the addresses that some pods happen to have.
		fmt.Fprintf(&sets, "set s%d { type ipv4_addr; flags interval; elements = { %s } }\n", k, ruleCIDR(k))
		fmt.Fprintf(&rules, "ip saddr @s%d tcp dport %d accept\n", k, rule(k).Port)
	}
	var subject, last strings.Builder
	for family, word := range map[int]string{4: "ip", 6: "ip6"} {
		fmt.Fprintf(&subject, "%s daddr %s jump server\n", word, server[family])
		for _, proto := range []string{"tcp", "udp"} {
			fmt.Fprintf(&last, "%s saddr %s %s dport %d-%d accept\n", word, client[family], proto, rr.Port, rr.Port+lastPort)
		}
	}
	return fmt.Sprintf("table inet bench {\n%s\nchain server {\n%s%sdrop\n}\nchain forward {\ntype filter hook forward priority 0; policy accept;\n"+
		"ct state established,related accept\n%s}\n}\n", &sets, &rules, &last, &subject)
}
