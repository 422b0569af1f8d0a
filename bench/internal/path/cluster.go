package path

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/rr"
	"github.com/strait-net/strait/bench/internal/toolbox"
	"github.com/strait-net/strait/bench/internal/wire"
	"golang.org/x/sys/unix"
)

// The networks of a cluster. Every node is on one link: an API server and a client that is no node are there as well.
const (
	clusterBits4, clusterBits6 = 16, 64
	podRange4, podRange6       = "10.192.0.0/10", "fd00:200::/32"
)

var (
	serverIPv4, serverIPv6   = netip.AddrFrom4([4]byte{172, 30, 255, 254}), v6(0x30, 0, 0xfffe)
	outsideIPv4, outsideIPv6 = netip.AddrFrom4([4]byte{172, 30, 254, 1}), v6(0x30, 0, 0xfe01)
	// checkAddress is an address that every node has, so that one endpoint is reachable from the nodes of all systems before any pod is.
	checkAddress = netip.AddrFrom4([4]byte{192, 0, 2, 1})
)

const checkPort = 8080

// System is who serves Services on a node.
type System struct {
	Name  string
	Proxy string // mode of kube-proxy; empty: Strait
	XDP   string // services.xdp of Strait; empty: off
}

// Systems are those compared: Strait and the two modes of kube-proxy.
func Systems() []System {
	return []System{{Name: "strait"}, {Name: "kp-iptables", Proxy: "iptables"}, {Name: "kp-nftables", Proxy: "nftables"}}
}

// Cluster is an API server and nodes of several systems that all see the same Services.
type Cluster struct {
	site     *Site
	server   *kube.Server
	config   []byte // kubeconfig
	outside  *wire.Namespace
	client   bill.Group // of the client outside
	members  int        // of all clusters of the site
	stop     context.CancelFunc
	services int // addresses of services handed out, besides the filling
	ports    int // node ports handed out
	filled   int
	// The crowd: see there. version is that of its pods' labels.
	crowd, crowdPolicies, version int
}

// Cluster starts the API server. One runs at a time.
func (s *Site) Cluster(name string) (*Cluster, error) {
	bin, err := s.box.Kubernetes(s.ctx)
	if err != nil {
		return nil, err
	}
	if s.control == nil {
		if s.control, err = s.place("control", serverIPv4, serverIPv6); err != nil {
			return nil, err
		}
		if s.outside, err = s.place("outside", outsideIPv4, outsideIPv6); err != nil {
			return nil, err
		}
		if s.client, err = s.root.Child("outside"); err != nil {
			return nil, err
		}
	}
	c := &Cluster{site: s, outside: s.outside, client: s.client, members: s.members}
	ctx, stop := context.WithCancel(s.ctx)
	c.stop = stop
	c.server, err = kube.Start(ctx, kube.Config{Bin: bin, Dir: filepath.Join(s.logs, "kubernetes-"+name), Space: s.control, Address: serverIPv4,
		Start: func(cmd *exec.Cmd) error {
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			return s.spawner.Start(s.control, cmd)
		}})
	if err != nil {
		stop()
		return nil, err
	}
	c.config, err = c.server.Kubeconfig()
	return c, err
}

// Close ends the API server; nodes and what they have in their kernels stay.
func (c *Cluster) Close() {
	c.stop()
	c.site.members = c.members
	c.server.Wait()
}

// place makes a namespace on the cluster's link.
func (s *Site) place(name string, v4, v6 netip.Addr) (*wire.Namespace, error) {
	space, err := s.space(name)
	if err != nil {
		return nil, err
	}
	return space, s.plug(space, "u-"+name, v4, v6)
}

// plug gives a namespace an eth0 on the underlay bridge; port is the bridge's end.
func (s *Site) plug(space *wire.Namespace, port string, v4, v6 netip.Addr) error {
	addresses := []netip.Prefix{netip.PrefixFrom(v4, clusterBits4), netip.PrefixFrom(v6, clusterBits6)}
	err := wire.Cable(wire.End{Space: s.underlay, Device: port, Bridge: "under"}, wire.End{Space: space, Device: "eth0", Addresses: addresses}, deviceMTU)
	if err != nil {
		return err
	}
	return space.FullChecksums("eth0")
}

// checkpoint reports whether the i-th filling service has an endpoint that answers: the first ten, one in two hundred, and with
// 10, 1,000 or 10,000 services the last.
func checkpoint(i int) bool { return i < 10 || i%200 == 0 || i == 999 || i == 9999 }

func fillAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}) }

// Fill raises the number of services that nobody measures to n, each with one EndpointSlice of two endpoints.
func (c *Cluster) Fill(n int) error {
	var services []kube.Service
	var endpoints [][]kube.Endpoint
	for i := c.filled; i < n; i++ {
		services = append(services, kube.Service{Name: fmt.Sprintf("fill-%05d", i), Addresses: map[int]netip.Addr{4: fillAddress(i)},
			Ports: []kube.Port{{Number: 80, Target: checkPort, Protocol: "TCP"}}})
		if checkpoint(i) {
			endpoints = append(endpoints, []kube.Endpoint{{Address: checkAddress}})
			continue
		}
		var two []kube.Endpoint
		for k := range 2 {
			two = append(two, kube.Endpoint{Address: netip.AddrFrom4([4]byte{10, 200, byte(i >> 7), byte(i<<1 | k)})})
		}
		endpoints = append(endpoints, two)
	}
	c.filled = max(n, c.filled)
	return c.server.Store(c.site.ctx, services, endpoints)
}

// checkpoints are the answering services, the last first: it is the one a system that goes in order programs last.
func (c *Cluster) checkpoints() []netip.AddrPort {
	var out []netip.AddrPort
	for i := c.filled - 1; i >= 0; i-- {
		if checkpoint(i) {
			out = append(out, netip.AddrPortFrom(fillAddress(i), 80))
		}
	}
	return out
}

// Member is a node of the cluster.
type Member struct {
	*node.Node
	System   System
	cluster  *Cluster
	v4, v6   netip.Addr
	cidrs    []netip.Prefix
	pid      int
	confList string
	labels   map[string]map[string]string // of the node's pods
	held     []io.Closer
}

// Join makes a node whose system is not started yet.
func (c *Cluster) Join(name string, system System) (*Member, error) {
	n, err := c.site.Node(name)
	if err != nil {
		return nil, err
	}
	c.members++
	k := c.members
	m := &Member{Node: n, System: system, cluster: c, v4: netip.AddrFrom4([4]byte{172, 30, byte(k), 1}), v6: v6(0x30, 0, k),
		cidrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 192, byte(k), 0}), 24), netip.PrefixFrom(v6(0x200, k, 0), 64)}}
	port := fmt.Sprintf("u-m%d", k)
	if err := c.site.plug(n.Space, port, m.v4, m.v6); err != nil {
		return nil, err
	}
	if system.XDP != "" {
		pass, err := c.site.underlay.PassXDP(port)
		if err != nil {
			return nil, err
		}
		m.held = append(m.held, pass)
	}
	for _, via := range []netip.Addr{serverIPv4, serverIPv6} {
		if err := n.Space.Route(netip.PrefixFrom(via, 0).Masked(), via); err != nil {
			return nil, err
		}
	}
	if err := n.Space.Address("lo", netip.PrefixFrom(checkAddress, 32)); err != nil {
		return nil, err
	}
	if err := n.Answer(node.Answer{Ports: []int{checkPort}}); err != nil {
		return nil, err
	}
	if err := c.server.StoreNamespaces(c.site.ctx, []kube.Namespace{{Name: name}}); err != nil { // of the node's pods
		return nil, err
	}
	return m, c.server.Create(c.site.ctx, kube.NodePath, kube.Node{Name: name, Addresses: []netip.Addr{m.v4, m.v6}, PodCIDRs: m.cidrs}.Object())
}

const kubeconfigFile = "/run/strait-bench/kubeconfig"

// start starts the system's daemon.
func (m *Member) start() (err error) {
	if err := m.Write(kubeconfigFile, m.cluster.config); err != nil {
		return err
	}
	site := m.cluster.site
	if m.System.Proxy == "" {
		if err := m.configureStrait(); err != nil {
			return err
		}
		m.pid, err = m.Start(site.log(m.Name), filepath.Join(site.box.StraitBin(), "strait-agent"), "--config", straitConfig, "--node-name", m.Name)
		return err
	}
	const file = "/run/strait-bench/kube-proxy.yaml"
	config, err := json.Marshal(object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": m.System.Proxy, "hostnameOverride": m.Name,
		"clusterCIDR": podRange4 + "," + podRange6, "clientConnection": object{"kubeconfig": kubeconfigFile},
		// The machine's own conntrack limits are not the benchmark's to change.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
	if err != nil {
		return err
	}
	if err := m.Write(file, config); err != nil {
		return err
	}
	bin, err := site.box.Kubernetes(site.ctx)
	if err != nil {
		return err
	}
	m.pid, err = m.Start(site.log(m.Name), filepath.Join(bin, "kube-proxy"), "--config", file)
	return err
}

func (m *Member) configureStrait() error {
	xdp := m.System.XDP
	if xdp == "" {
		xdp = "off"
	}
	config, err := json.Marshal(object{
		"clusterName": "bench", "routingMode": "native", "ipv4": true, "ipv6": true, "cgroupRoot": m.Group.Unified(),
		"ipam":   object{"mode": "kubernetes", "podCIDRv4": podRange4, "podCIDRv6": podRange6},
		"runDir": "/run/strait", "stateDir": "/run/strait-state", "api": object{"kubeconfig": kubeconfigFile}, "services": object{"xdp": xdp},
		"cni": object{"install": true, "binDir": straitBinDir, "confDir": straitConfDir},
	})
	if err != nil {
		return err
	}
	return m.Write(straitConfig, config)
}

// Started is how a cold start went.
type Started struct {
	Took time.Duration // from the start of the daemon until every checkpoint was reachable
	CPU  time.Duration // of the daemon and the commands it ran, until then
	// RSS and Peak of the daemon in KiB, a few seconds later.
	RSS, Peak int
}

// ColdStart starts the daemon on its untouched node and waits until a connection to each checkpoint succeeds. Memory is read settle later.
func (m *Member) ColdStart(settle time.Duration) (Started, error) {
	var out Started
	reached := m.watch(node.Watch{Targets: m.cluster.checkpoints(), Every: 5 * time.Millisecond, Patience: 20 * time.Millisecond, Timeout: 3 * time.Minute,
		Unless: endedFile})
	time.Sleep(50 * time.Millisecond)
	if len(reached) > 0 {
		return out, fmt.Errorf("services of %s before its start: %w", m.Name, errors.Join(errServed, (<-reached).err))
	}
	begin := node.Now()
	if err := m.start(); err != nil {
		return out, err
	}
	a, err := m.whileAlive(reached)
	if err != nil {
		text, _ := os.ReadFile(m.cluster.site.log(m.Name))
		return out, fmt.Errorf("services of %s are not programmed: %w: %s", m.Name, err, text[max(0, len(text)-1000):])
	}
	out.Took = a.Sub(begin)
	if out.CPU, err = m.used(); err != nil {
		return out, err
	}
	time.Sleep(settle)
	if out.RSS, err = m.memory("VmRSS"); err != nil {
		return out, err
	}
	out.Peak, err = m.memory("VmHWM")
	return out, err
}

// seen is the end of a watch.
type seen struct {
	at  node.Moment
	err error
}

// watch watches without waiting for the end.
func (m *Member) watch(w node.Watch) chan seen {
	reached := make(chan seen, 1)
	go func() {
		at, err := m.Watch(w)
		reached <- seen{at, err}
	}()
	return reached
}

// endedFile appears on a node whose daemon has ended by itself.
const endedFile = "/run/strait-bench/ended"

var errEnded = errors.New("the daemon has ended")

// whileAlive waits for the end of a watch that has endedFile, or of the daemon.
func (m *Member) whileAlive(reached chan seen) (node.Moment, error) {
	for {
		select {
		case s := <-reached:
			return s.at, s.err
		case <-time.After(200 * time.Millisecond):
		}
		if _, err := os.Stat(m.Root(filepath.Join("/proc", strconv.Itoa(m.pid)))); err != nil {
			return 0, errors.Join(errEnded, m.Write(endedFile, nil), (<-reached).err)
		}
	}
}

// errServed is returned when services work without the system that is to serve them.
var errServed = errors.New("they are served already")

// ticks is the kernel's USER_HZ, fixed in its interface.
const ticks = 100

// used is the daemon's CPU time with that of its ended children; proc(5), fields 14 to 17 of stat, counted after the name.
func (m *Member) used() (time.Duration, error) {
	text, err := os.ReadFile(m.Root(filepath.Join("/proc", strconv.Itoa(m.pid), "stat")))
	if err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", m.Name, err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	total := 0
	for _, i := range []int{11, 12, 13, 14} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, fmt.Errorf("CPU time of %s: %w", m.Name, err)
		}
		total += n
	}
	return time.Duration(total) * time.Second / ticks, nil
}

// memory reads a field of the daemon's status in KiB.
func (m *Member) memory(field string) (int, error) {
	text, err := os.ReadFile(m.Root(filepath.Join("/proc", strconv.Itoa(m.pid), "status")))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", m.Name, err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("memory of %s: no %s", m.Name, field)
}

// Pause stops the daemon so that another one's reaction is measured alone; the kernel goes on with what it has.
func (m *Member) Pause() error { return m.Signal(m.pid, unix.SIGSTOP) }

// Resume lets a paused daemon go on.
func (m *Member) Resume() error { return m.Signal(m.pid, unix.SIGCONT) }

// Retire kills the daemon; what it has programmed stays and no longer changes.
func (m *Member) Retire() error { return m.Signal(m.pid, unix.SIGKILL) }

// pods connects pods by the system's own means: Strait's plugin, or ptp without masquerade for kube-proxy, which has the shorter path of
// the two reference plugins.
func (m *Member) pods(names ...string) ([]pod, error) {
	site := m.cluster.site
	if m.System.Proxy != "" {
		return pods(m.Node, pluginConf(PTP, false, []string{m.cidrs[0].String(), m.cidrs[1].String()}), site.box.Plugins(), names...)
	}
	for _, name := range names {
		if m.labels[name] == nil {
			m.label(name, map[string]string{"app": name})
		}
	}
	return m.podsOf(m.Name, names...)
}

// label gives labels to a pod that is not made yet.
func (m *Member) label(pod string, labels map[string]string) {
	if m.labels == nil {
		m.labels = map[string]map[string]string{}
	}
	m.labels[pod] = labels
}

// podsOf connects pods of a namespace that the API server has. Strait adds no pod that the API server does not know.
func (m *Member) podsOf(namespace string, names ...string) ([]pod, error) {
	var objects []kube.Pod
	for _, name := range names {
		objects = append(objects, kube.Pod{Namespace: namespace, Name: name, UID: node.PodUID(name), Node: m.Name, Labels: m.labels[name]})
	}
	if err := m.cluster.server.StorePods(m.cluster.site.ctx, objects); err != nil {
		return nil, err
	}
	if m.confList == "" {
		conf, err := m.cluster.site.admitted(m.Node)
		if err != nil {
			return nil, err
		}
		m.confList = conf
	}
	return podsIn(m.Node, namespace, m.confList, straitBinDir, names...)
}

func (m *Member) about() string {
	if m.System.Proxy != "" {
		about := fmt.Sprintf("kube-proxy %s in %s mode, ptp plugin", toolbox.KubernetesVersion, m.System.Proxy)
		if m.System.Proxy == "iptables" {
			about += ", " + Variant(m.Node)
		}
		return about
	}
	about := "strait-agent and strait-cni, routing mode native"
	if m.System.XDP != "" {
		about += ", services.xdp " + m.System.XDP
	}
	return about
}

// Direct is a path between two new pods of the node.
func (m *Member) Direct(name string) (*Path, error) {
	made, err := m.pods("direct-client", "direct-server")
	if err != nil {
		return nil, err
	}
	p := &Path{Name: name, About: m.about(), Address: made[1].address, Witness: []Witness{{m.Space, made[0].device}}}
	if m.System.Proxy == "" {
		p.Nodes = []*node.Node{m.Node}
	}
	return m.cluster.site.between(p, [2]*node.Node{m.Node, m.Node}, made[0], made[1])
}

// Service is like direct, by way of a ClusterIP. Its server is another one, so that what netfilter remembers of direct connections between
// the same ports cannot be in the way: with one server, connects by way of kube-proxy timed out now and then.
func (m *Member) Service(name string, direct *Path) (*Path, error) {
	c := m.cluster
	backend, err := m.Backend("service-server")
	if err != nil {
		return nil, err
	}
	c.services++
	s := kube.Service{Name: label(name), Addresses: map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 96, 1, byte(c.services)}), 6: serviceAddress6(c.services)},
		Ports: servicePorts(0, rr.CRR)}
	if err := c.server.Publish(c.site.ctx, s, backend.pod.address, m.Name); err != nil {
		return nil, err
	}
	p := *direct
	p.Server = backend.end
	p.Name, p.About, p.Address, p.Modes = name, direct.About+", by ClusterIP", s.Addresses, []rr.Mode{rr.CRR}
	return &p, c.proven(&p)
}

// label makes the name of a path one that an object may have.
func label(name string) string { return strings.ReplaceAll(name, "@", "-at-") }

// serviceAddress6 is the i-th address of the IPv6 service range that measured services use.
func serviceAddress6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x96, 13: 1, 14: byte(i >> 8), 15: byte(i)})
}

// servicePorts are the ports of the modes, at their places of the load program.
func servicePorts(nodePort int, modes ...rr.Mode) []kube.Port {
	var out []kube.Port
	for i, mode := range rr.Modes() {
		for _, wanted := range modes {
			if mode != wanted {
				continue
			}
			p := kube.Port{Number: rr.Port + i, Target: rr.Port + i, Protocol: "TCP"}
			if mode == rr.UDPRR || mode == rr.UDPPPS {
				p.Protocol = "UDP"
			}
			if nodePort > 0 {
				p.NodePort = nodePort + i
			}
			out = append(out, p)
		}
	}
	return out
}

// proven waits until a path works and carries its own traffic.
func (c *Cluster) proven(p *Path) error {
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := c.site.Prove(p)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("service is not programmed after 60 s: %w", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
