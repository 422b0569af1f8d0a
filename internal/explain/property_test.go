package explain_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/explain"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/testkit"
)

// defaultCases is what fits into CI; STRAIT_CASES says another number.
const defaultCases = 80

// world is a cluster of which anything can be broken.
type world struct {
	*rig
	random *rand.Rand
	pods   []placed
	maps   map[string]*maps.Maps // of each node
	said   map[string]int        // cases by what they are about, and what explain said
}

// placed is a pod with its node.
type placed struct {
	*testkit.Pod
	node   *testkit.Node
	device string // the node's end
}

const (
	frontPort = 80
	nodePort  = 30080
	// services is how many have node ports; the last one answers outside only on its backend's node.
	services = 3
	withXDP  = "native, xdp"
)

func clusterIPs(i int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd96::%d", i))}
}

func newWorld(t *testing.T, seed uint64, mode string) *world {
	config := map[string]any{"routingMode": mode}
	if mode == withXDP {
		config = map[string]any{"routingMode": "native", "services": map[string]any{"xdp": "native"}}
	}
	r := newRig(t, testkit.Options{Config: config})
	w := &world{rig: r, random: rand.New(rand.NewPCG(seed, 1)), maps: map[string]*maps.Maps{}, said: map[string]int{}}
	for i, n := range r.c.Nodes {
		m, err := maps.OpenPinned(pin.At(strings.TrimSuffix(n.Path(), "ns/net") + "root/sys/fs/bpf"))
		w.must(err)
		t.Cleanup(m.Close)
		w.maps[n.Name] = m
		n.Echo(port)
		for j := range 2 {
			name := fmt.Sprintf("p%d%d", i, j)
			p := n.AddPodAs(name, testkit.PodSpec{Labels: map[string]string{"app": name, "node": n.Name}})
			p.Echo(port)
			w.pods = append(w.pods, placed{Pod: p, node: n, device: w.device(m, n, p)})
		}
	}
	r.c.Outside.Echo(port)
	r.c.ApplyNamespace("default", nil, nil)
	for i, p := range []placed{w.pods[0], w.pods[2], w.pods[3]} { // one backend each: which of several a real client gets is chance
		s := testkit.Service{
			Name: fmt.Sprint("s", i), Type: "NodePort", Port: frontPort, TargetPort: port, NodePort: nodePort + i, ClusterIPs: clusterIPs(i + 1), Endpoints: p.Endpoints(),
		}
		if i == services-1 {
			s.Spec = map[string]any{"externalTrafficPolicy": "Local"}
		}
		r.c.Serve(s)
	}
	for _, way := range []string{"ingress", "egress"} {
		r.c.ApplyText("policy-"+way, "")
	}
	r.c.Serve(testkit.Service{Name: "none", Port: frontPort, TargetPort: port, ClusterIPs: clusterIPs(9)})
	time.Sleep(time.Second)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) device(m *maps.Maps, n *testkit.Node, p *testkit.Pod) string {
	e, ok, err := m.Endpoint(p.IPv4)
	w.must(err)
	if !ok {
		w.t.Fatalf("%s is not in strait_endpoint", p)
	}
	out := n.Run("sh", "-c", "ip -o link | sed -n 's/^"+strconv.Itoa(int(e.Index))+": \\([^@:]*\\).*/\\1/p'")
	return strings.TrimSpace(out)
}

func pick[T any](w *world, from ...T) T { return from[w.random.IntN(len(from))] }

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

// fault breaks something and returns what was done and how to mend it.
type fault func(w *world, v6 bool) (what string, mend func())

func nothing(*world, bool) (string, func()) { return "nothing", func() {} }

// rule is a rule of somebody else, on a node or in a pod.
func rule(w *world, _ bool) (string, func()) {
	ns := pick(w, w.c.Nodes[0].Namespace, w.c.Nodes[1].Namespace, w.pods[0].Namespace, w.pods[2].Namespace)
	hook := pick(w, "prerouting", "input", "forward", "output", "postrouting")
	match := pick(w, "tcp dport 8080", "udp dport 8080", "meta l4proto tcp", "tcp sport 8080", "udp dport 8472", "tcp dport { 22, 8080 }", "ct state new",
		"ip saddr 10.244.0.0/16", "ip6 daddr fd44::/48", `iifname "eth0"`, `oifname "st*"`, "tcp dport 8000-9000 ct state established")
	text := fmt.Sprintf("add table inet fault; add chain inet fault c { type filter hook %s priority 0; }; add rule inet fault c %s %s", hook, match, pick(w, "drop", "drop", "counter drop", "accept"))
	ns.Run("nft", strings.Split(text, " ")...)
	return ns.Name + ": " + text, func() { ns.Run("nft", "delete", "table", "inet", "fault") }
}

func ip(v6 bool, args ...string) []string {
	if v6 {
		return append([]string{"-6"}, args...)
	}
	return append([]string{"-4"}, args...)
}

// podRoute takes a pod its way out.
func podRoute(w *world, v6 bool) (string, func()) {
	p := pick(w, w.pods...)
	was := strings.Fields(p.Run("ip", ip(v6, "route", "show", "default")...))
	p.Run("ip", ip(v6, "route", "del", "default")...)
	return p.Name + ": no default route", func() { p.Run("ip", append(ip(v6, "route", "replace"), was...)...) }
}

// nodeRoute takes a node its way to a pod of its own or to the other's pods, or turns it.
func nodeRoute(w *world, v6 bool) (string, func()) {
	n := pick(w, w.c.Nodes...)
	routes := strings.Split(strings.TrimSpace(n.Run("ip", ip(v6, "route", "show", "proto", pick(w, "83", "84"))...)), "\n")
	line := strings.Fields(pick(w, routes...))
	if len(line) == 0 || line[0] == "unreachable" {
		return nothing(w, v6)
	}
	protocol := "83"
	if strings.Contains(strings.Join(line, " "), "dev st") && !strings.Contains(strings.Join(line, " "), "strait_vxlan") {
		protocol = "84"
	}
	mend := func() { n.Run("ip", append(ip(v6, "route", "replace"), append(line, "proto", protocol)...)...) }
	if w.chance(50) || v6 { // IPv6 would keep both
		n.Run("ip", append(ip(v6, "route", "del"), line[0])...)
		return n.Name + ": no route to " + line[0], mend
	}
	n.Run("ip", ip(v6, "route", "replace", "unreachable", line[0], "metric", "0")...)
	return n.Name + ": unreachable " + line[0], func() {
		_, _ = n.TryRun("ip", ip(v6, "route", "del", "unreachable", line[0])...)
		mend()
	}
}

// neighbour puts a wrong hardware address where a right one was.
func neighbour(w *world, v6 bool) (string, func()) {
	const wrong = "02:00:00:00:00:99"
	if w.chance(60) {
		n, other := w.c.Nodes[0], w.c.Nodes[1]
		if w.chance(50) {
			n, other = other, n
		}
		to := other.IPv4
		if v6 && w.chance(70) {
			to = other.IPv6
		}
		n.Run("ip", "neigh", "replace", to.String(), "lladdr", wrong, "dev", "eth0", "nud", "permanent")
		return n.Name + ": stale neighbour " + to.String(), func() { n.Run("ip", "neigh", "del", to.String(), "dev", "eth0") }
	}
	p := pick(w, w.pods...)
	gateway := "169.254.1.1"
	if v6 {
		gateway = "fe80::1"
	}
	was := strings.Fields(p.Run("ip", "neigh", "show", gateway, "dev", "eth0"))
	mac := was[indexOf(was, "lladdr")+1]
	mend := func() {
		p.Run("ip", "neigh", "replace", gateway, "lladdr", mac, "dev", "eth0", "nud", "permanent")
	}
	if w.chance(50) {
		p.Run("ip", "neigh", "del", gateway, "dev", "eth0")
		return p.Name + ": no neighbour entry of its gateway", mend
	}
	p.Run("ip", "neigh", "replace", gateway, "lladdr", wrong, "dev", "eth0", "nud", "permanent")
	return p.Name + ": stale neighbour entry of its gateway", mend
}

func indexOf(words []string, word string) int {
	for i, w := range words {
		if w == word {
			return i
		}
	}
	return -1
}

// row removes a row of a map.
func row(w *world, v6 bool) (string, func()) {
	n := pick(w, w.c.Nodes...)
	m := w.maps[n.Name]
	if w.chance(50) {
		all, err := m.Endpoints()
		w.must(err)
		e := pick(w, all...)
		w.must(m.DeleteEndpoint(e.Address))
		return n.Name + ": strait_endpoint lacks " + e.Address.String(), func() { w.must(m.PutEndpoint(e)) }
	}
	all, err := m.Remotes()
	w.must(err)
	var same []maps.Remote
	for _, r := range all {
		if r.Prefix.Addr().Is6() == v6 {
			same = append(same, r)
		}
	}
	r := pick(w, same...)
	w.must(m.DeleteRemote(r.Prefix))
	return n.Name + ": strait_ipcache lacks " + r.Prefix.String(), func() { w.must(m.PutRemote(r)) }
}

// down sets a device of a node down, and puts back what the kernel takes away with that.
func down(w *world, _ bool) (string, func()) {
	p := pick(w, w.pods...)
	n, device := p.node, p.device
	if w.chance(30) {
		device = "strait_vxlan"
		if _, err := n.TryRun("ip", "link", "show", device); err != nil {
			device = p.device
		}
	}
	var again [][]string
	for _, v6 := range []bool{false, true} {
		for line := range strings.Lines(n.Run("ip", ip(v6, "route", "show", "dev", device)...)) {
			if words := strings.Fields(line); !strings.HasPrefix(words[0], "fe80") {
				again = append(again, append(ip(v6, "route", "replace"), append(words, "dev", device)...))
			}
		}
	}
	for line := range strings.Lines(n.Run("ip", "neigh", "show", "dev", device, "nud", "permanent")) {
		words := strings.Fields(line)
		again = append(again, []string{"neigh", "replace", words[0], "lladdr", words[2], "dev", device, "nud", "permanent"})
	}
	n.Run("ip", "link", "set", device, "down")
	return n.Name + ": " + device + " is down", func() {
		n.Run("ip", "link", "set", device, "up")
		for _, args := range again {
			n.Run("ip", args...)
		}
	}
}

// small gives the node's end of a pair too small an MTU.
func small(w *world, _ bool) (string, func()) {
	p := pick(w, w.pods...)
	was := strings.TrimSpace(p.node.Run("sh", "-c", "ip -o link show "+p.device+" | sed 's/.* mtu \\([0-9]*\\) .*/\\1/'"))
	p.node.Run("ip", "link", "set", p.device, "mtu", "1290")
	return p.node.Name + ": " + p.device + " has MTU 1290", func() { p.node.Run("ip", "link", "set", p.device, "mtu", was) }
}

// setting changes what a node's stack forwards and believes.
func setting(w *world, _ bool) (string, func()) {
	p := pick(w, w.pods...)
	name, value, was := pick(w, "net/ipv4/conf/"+p.device+"/forwarding", "net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/"+p.device+"/forwarding"), "0", "1"
	if w.chance(30) {
		name, value, was = "net/ipv4/conf/all/rp_filter", "1", "0"
	}
	write := func(v string) { p.node.Run("sh", "-c", "echo "+v+" > /proc/sys/"+name) }
	write(value)
	return p.node.Name + ": " + name + " = " + value, func() { write(was) }
}

// policies changes what policies say to pods, for each direction.
func (w *world) policies() string {
	said := []string{}
	for _, way := range []string{"ingress", "egress"} {
		text := ""
		if w.chance(65) {
			subject := pick(w, "{matchLabels: {app: "+pick(w, w.pods...).Name+"}}", "{matchLabels: {node: node-2}}", "{}")
			rules := w.rules(way)
			text = fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: default}\nspec: {podSelector: %s, policyTypes: [%s], %s: %s}\n",
				way, subject, strings.ToUpper(way[:1])+way[1:], way, rules)
			said = append(said, fmt.Sprintf("%s of %s: %s", way, subject, rules))
		}
		w.c.ApplyText("policy-"+way, text)
	}
	time.Sleep(500 * time.Millisecond)
	return strings.Join(said, "; ")
}

// rules are those of one direction of a policy.
func (w *world) rules(way string) string {
	pod := fmt.Sprintf("{%s: [{podSelector: {matchLabels: {app: %s}}}]}", side(way), pick(w, w.pods...).Name)
	blocks := func(v4, v6 string) string {
		return fmt.Sprintf(`{%s: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: "%s"}}]}`, side(way), v4, v6)
	}
	return "[" + strings.Join(pick(w,
		nil, []string{"{}"}, []string{pod},
		[]string{fmt.Sprintf(`{%s: [{podSelector: {matchLabels: {node: node-1}}}], ports: [{protocol: TCP, port: 8080}]}`, side(way))},
		[]string{`{ports: [{protocol: UDP, port: 8080}]}`},
		[]string{blocks("172.18.0.0/16", "fd18::/64")}, // nodes and the outside
		[]string{pod, blocks(testkit.OutsideAddr(false).String()+"/32", testkit.OutsideAddr(true).String()+"/128")},
		[]string{blocks("10.244.1.0/24", "fd44:0:0:1::/64")}), ", ") + "]"
}

func side(way string) string {
	if way == "ingress" {
		return "from"
	}
	return "to"
}

// journey is an exchange to be explained and made.
type journey struct {
	from    sender
	source  netip.Addr // of a client outside
	network string
	to      netip.AddrPort
	size    int // of the payload
	v6      bool
	about   string
	conn    net.Conn // on which there has been an exchange; nil: a new one
}

func (w *world) journey() journey {
	j := journey{network: pick(w, networks...), v6: w.chance(50), size: 1}
	at := func(n *testkit.Node) netip.Addr { return map[bool]netip.Addr{false: n.IPv4, true: n.IPv6}[j.v6] }
	if w.chance(30) {
		j.size = 1300
	}
	p := pick(w, w.pods...)
	j.from, j.about = ofPod(p.node, p.Pod), "pod"
	switch w.random.IntN(10) {
	case 0, 1:
		j.from, j.about = ofNode(pick(w, w.c.Nodes...)), "node"
	case 2, 3:
		n := pick(w, w.c.Nodes...)
		j.from, j.source = sender{ns: w.c.Outside, node: n.Name}, testkit.OutsideAddr(j.v6)
		j.to, j.about = netip.AddrPortFrom(at(n), uint16(nodePort+w.random.IntN(services))), "outside to node port"
		return j
	}
	to, kind := pick(w, w.pods...), ""
	switch w.random.IntN(20) {
	case 0, 1, 2, 3:
		j.to, kind = netip.AddrPortFrom(testkit.OutsideAddr(j.v6), port), "outside"
	case 4, 5:
		j.to, kind = netip.AddrPortFrom(at(pick(w, w.c.Nodes...)), port), "node"
	case 6, 7, 8:
		ips := clusterIPs(pick(w, 1, 2, 3, 9))
		j.to, kind = netip.AddrPortFrom(map[bool]netip.Addr{false: ips[0], true: ips[1]}[j.v6], frontPort), "service"
	case 9, 10:
		j.to, kind = netip.AddrPortFrom(at(pick(w, w.c.Nodes...)), uint16(nodePort+w.random.IntN(services))), "node port"
	case 11:
		j.to, kind = netip.AddrPortFrom(to.Address(j.v6), 9), "nobody"
	default:
		j.to, kind = netip.AddrPortFrom(to.Address(j.v6), port), "pod"
	}
	j.about += " to " + kind
	return j
}

// begin makes the connection on which the exchange will be, unless the sender's socket would be load balanced: that is so for the node's own
// processes only. Nothing is broken yet, but policy may deny it: then it stays a new one.
func (w *world) begin(j *journey) {
	if strings.Contains(j.about, "to service") || strings.Contains(j.about, " to node port") && !j.source.IsValid() {
		return
	}
	var conn net.Conn
	var err error
	j.from.ns.Do(func() {
		dialer := net.Dialer{Timeout: 300 * time.Millisecond}
		dialer.SetMultipathTCP(false)
		conn, err = dialer.Dial(j.network, j.to.String())
	})
	if err != nil {
		return
	}
	if exchange(conn, 1, 300*time.Millisecond) != nil {
		_ = conn.Close()
		return
	}
	j.conn, j.about = conn, j.about+", established"
}

// exchange has an echo server say everything once.
func exchange(conn net.Conn, size int, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, strings.Repeat("x", size)); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	for got := 0; got < size; {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		got += bytes.Count(buf[:n], []byte("x"))
	}
	return nil
}

// length is the size of the packet that carries the payload.
func (j journey) length() int {
	if j.size == 1 {
		return 0
	}
	headers := 28
	if j.network == "tcp" {
		headers = 52
	}
	if j.v6 {
		headers += 20
	}
	return j.size + headers
}

func (w *world) explained(j journey) explain.Path {
	q := localapi.ExplainQuestion{
		Session: fmt.Sprint("case-", w.random.Uint64()), Entry: localapi.EntryNode, Pod: j.from.pod,
		Packet: localapi.ExplainPacket{Target: j.to, Protocol: strings.ToUpper(j.network), Size: j.length()},
	}
	switch {
	case j.source.IsValid():
		q.Entry, q.Packet.Source = localapi.EntryNet, netip.AddrPortFrom(j.source, 41000)
	case j.from.pod != "":
		q.Entry = localapi.EntryPod
	}
	if j.conn != nil {
		own := netip.MustParseAddrPort(j.conn.LocalAddr().String())
		q.Established, q.Packet.Source = true, netip.AddrPortFrom(own.Addr().Unmap(), own.Port())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return explain.Follow(ctx, w.ask, j.from.node, q)
}

// compare explains and makes an exchange; text says in which way they differ.
func (w *world) compare(j journey) (p explain.Path, text string) {
	p = w.explained(j)
	limit := 250 * time.Millisecond
	if p.Conclusion.Verdict == explain.Delivered {
		limit = 2 * time.Second
	}
	if j.conn != nil {
		err := exchange(j.conn, j.size, limit)
		if (err == nil) == (p.Conclusion.Verdict == explain.Delivered) {
			return p, ""
		}
		return p, fmt.Sprintf("explain says %s, the exchange on a connection that exists: %v", p.Conclusion.Verdict, err)
	}
	got := j.from.ns.Probe(testkit.Probe{Network: j.network, Address: j.to.String(), Timeout: limit, Size: j.size})
	if (got.OK == 1) == (p.Conclusion.Verdict == explain.Delivered) {
		return p, ""
	}
	return p, fmt.Sprintf("explain says %s, the exchange: %d of 1, %v", p.Conclusion.Verdict, got.OK, got.Errors)
}

// What explain says is what becomes of a real packet, whatever is broken.
func TestExplainIsTrue(t *testing.T) {
	cases := defaultCases
	if text := os.Getenv("STRAIT_CASES"); text != "" {
		var err error
		if cases, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("STRAIT_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("STRAIT_SEED=%d", seed)
	faults := []fault{nothing, rule, rule, rule, podRoute, nodeRoute, neighbour, row, row, down, small, setting}
	disagreed := 0
	modes := []string{"vxlan", "native", withXDP}
	for n, mode := range modes {
		w := newWorld(t, seed+uint64(n), mode)
		policy := ""
		for i := range cases / len(modes) {
			if i%10 == 5 {
				policy = w.policies()
			}
			j := w.journey()
			if w.chance(50) {
				w.begin(&j)
			}
			what, mend := pick(w, faults...)(w, j.v6)
			p, text := w.compare(j)
			if text != "" { // what was just written may not have reached every corner
				time.Sleep(time.Second)
				p, text = w.compare(j)
			}
			mend()
			if j.conn != nil {
				_ = j.conn.Close()
			}
			w.said[j.about]++
			w.said["= "+string(p.Conclusion.Verdict)]++
			if text != "" {
				disagreed++
				t.Errorf("%s, case %d (%s), fault %q, policy %q: %s %s %s to %s, %d bytes: %s\n%s", mode, i, j.about, what, policy, j.from.ns.Name, j.source, j.network, j.to, j.size, text, show(p))
			}
			if disagreed >= 8 {
				t.Fatal("enough")
			}
		}
		t.Logf("%s: %d cases, %v, %d parts, %v each", mode, cases/len(modes), w.said, w.asked, w.took/time.Duration(max(w.asked, 1)))
	}
}
