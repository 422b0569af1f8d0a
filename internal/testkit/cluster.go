package testkit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/yaml"
)

// Options describe a Cluster. The zero value is two dual-stack nodes in vxlan mode.
type Options struct {
	Nodes int
	// Config is merged over the test defaults; keys as in config.yaml.
	Config map[string]any
	// BinDir holds strait-agent and strait-cni. Empty: bin/ at the top of the repository.
	BinDir string
	// NoAgents leaves the agents stopped: Node.StartAgent starts them.
	NoAgents bool
}

// Cluster is a set of nodes on one bridge, with an outside host behind the same bridge.
type Cluster struct {
	Nodes []*Node
	// Outside is a host that is no node: 172.18.0.254, fd18::fe. It routes nothing to pod addresses.
	Outside *Namespace

	t       T
	dir     string
	bin     string
	objects string
	files   map[string]string
	xdp     bool // devices send what XDP on their other end has sent
}

// Node is one node of a Cluster.
type Node struct {
	*Namespace
	IPv4, IPv6 netip.Addr
	CIDRs      []netip.Prefix

	cluster  *Cluster
	root     string // cgroup of the node; its pods' processes are below it
	dir      string
	config   string         // path of config.yaml
	settings map[string]any // its content
	logFile  string

	mu     sync.Mutex // guards the running agent
	agent  *exec.Cmd
	exited chan struct{}
}

// Addresses of the underlay: node i is .i+1 and ::i+1.
const (
	underlay4 = "172.18.0."
	underlay6 = "fd18::"
)

var (
	outside4 = netip.MustParseAddr("172.18.0.254")
	outside6 = netip.MustParseAddr("fd18::fe")
)

// OutsideAddr returns the outside host's address of the family.
func OutsideAddr(v6 bool) netip.Addr {
	if v6 {
		return outside6
	}
	return outside4
}

// NewCluster makes the namespaces, writes the nodes' objects for the static source and starts the agents.
func NewCluster(t T, o Options) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	c := &Cluster{t: t, dir: t.TempDir(), bin: o.BinDir, files: map[string]string{}}
	if c.bin == "" {
		c.bin = repositoryBin(t)
	}
	c.objects = filepath.Join(c.dir, "objects")
	must(t, os.MkdirAll(c.objects, 0o755))
	name := fmt.Sprintf("strait-test-%d", time.Now().UnixNano()%1e9)
	cgroup := newCgroup(t, name)
	switchNS := hold(t, "underlay", cgroup, syscall.CLONE_NEWNET)
	switchNS.Do(func() { must(t, addBridge()) })
	c.xdp = wantsXDP(o.Config)
	for i := range o.Nodes {
		c.Nodes = append(c.Nodes, c.newNode(i, cgroup, switchNS, o.Config))
	}
	c.Outside = hold(t, "outside", cgroup, syscall.CLONE_NEWNET)
	c.plug(c.Outside, switchNS, "outside", outside4, outside6)
	c.writeNodes()
	if !o.NoAgents {
		c.StartAgents()
	}
	return c
}

// StartAgents starts the agents of all nodes and waits until they have opened them for pods.
func (c *Cluster) StartAgents() {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.StartAgent()
	}
	for _, n := range c.Nodes {
		n.WaitReady(time.Minute) // programs are verified meanwhile, which takes long on a busy machine
	}
}

func addBridge() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "underlay"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

// plug connects ns to the bridge as its eth0.
func (c *Cluster) plug(ns, underlay *Namespace, port string, addrs ...netip.Addr) {
	c.t.Helper()
	underlay.Do(func() {
		bridge, err := netlink.LinkByName("underlay")
		must(c.t, err)
		attrs := netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index, MTU: 1500}
		must(c.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(ns.pid)}))
		link, err := netlink.LinkByName(port)
		must(c.t, err)
		must(c.t, netlink.LinkSetUp(link))
		if c.xdp {
			must(c.t, passXDP(link))
		}
	})
	ns.Do(func() {
		eth0, err := netlink.LinkByName("eth0")
		must(c.t, err)
		// Link-local addresses are usable at once, too: neighbour discovery needs them.
		must(c.t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("0"), 0o644))
		for _, a := range addrs {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
			if a.Is6() {
				address.Flags = 0x02 // IFA_F_NODAD: usable at once
			}
			must(c.t, netlink.AddrAdd(eth0, address))
		}
		must(c.t, netlink.LinkSetUp(eth0))
		// The outside host is the default route of all.
		if addrs[0] != outside4 {
			must(c.t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: outside4.AsSlice()}))
			must(c.t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: outside6.AsSlice()}))
		}
	})
}

func (c *Cluster) newNode(i int, cgroup string, underlay *Namespace, overrides map[string]any) *Node {
	c.t.Helper()
	name := fmt.Sprintf("node-%d", i+1)
	root := filepath.Join(cgroup, name)
	must(c.t, os.Mkdir(root, 0o755))
	c.t.Cleanup(func() { removeCgroup(root) })
	n := &Node{
		IPv4:    netip.MustParseAddr(fmt.Sprint(underlay4, i+1)),
		IPv6:    netip.MustParseAddr(fmt.Sprint(underlay6, i+1)),
		CIDRs:   []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd44:0:0:%d::/64", i+1))},
		cluster: c,
		root:    root,
		dir:     filepath.Join(c.dir, name),
	}
	n.Namespace = hold(c.t, name, root, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS)
	c.plug(n.Namespace, underlay, name, n.IPv4, n.IPv6)
	must(c.t, os.MkdirAll(n.dir, 0o755))
	for _, args := range [][]string{
		{"--make-rprivate", "/"},
		{"-t", "tmpfs", "tmpfs", "/run"},
		{"-t", "bpf", "bpf", "/sys/fs/bpf"},
	} {
		n.Run("mount", args...)
	}
	n.settings = map[string]any{
		"routingMode": "vxlan",
		"ipv4":        true,
		"ipv6":        true,
		"ipam":        map[string]any{"mode": "kubernetes", "podCIDRv4": "10.244.0.0/16", "podCIDRv6": "fd44::/48"},
		"cgroupRoot":  root,
		"stateDir":    filepath.Join(n.dir, "state"),
		"cni":         map[string]any{"install": true, "binDir": filepath.Join(n.dir, "cni-bin"), "confDir": filepath.Join(n.dir, "cni-conf")},
		"logLevel":    "debug",
	}
	for k, v := range overrides {
		n.settings[k] = v
	}
	n.config = filepath.Join(n.dir, "config.yaml")
	n.logFile = filepath.Join(n.dir, "agent.log")
	writeYAML(c.t, n.config, n.settings)
	return n
}

// writeNodes writes the Node objects for the static source.
func (c *Cluster) writeNodes() {
	for _, n := range c.Nodes {
		var cidrs []string
		for _, p := range n.CIDRs {
			cidrs = append(cidrs, p.String())
		}
		c.Apply("node-"+n.Name, map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"name": n.Name, "uid": n.Name, "labels": map[string]any{"kubernetes.io/hostname": n.Name}},
			"spec":     map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs},
			"status": map[string]any{"addresses": []any{
				map[string]any{"type": "InternalIP", "address": n.IPv4.String()},
				map[string]any{"type": "InternalIP", "address": n.IPv6.String()},
			}},
		})
	}
}

// Apply writes objects into a file of the static source that all agents follow.
func (c *Cluster) Apply(file string, objects ...map[string]any) {
	c.t.Helper()
	var text bytes.Buffer
	for _, o := range objects {
		doc, err := yaml.Marshal(o)
		must(c.t, err)
		text.WriteString("---\n")
		text.Write(doc)
	}
	path := filepath.Join(c.objects, file+".yaml")
	must(c.t, os.WriteFile(path+".tmp", text.Bytes(), 0o644))
	must(c.t, os.Rename(path+".tmp", path))
}

// Remove removes a file that Apply wrote.
func (c *Cluster) Remove(file string) {
	c.t.Helper()
	must(c.t, os.Remove(filepath.Join(c.objects, file+".yaml")))
}

func writeYAML(t T, path string, v any) {
	t.Helper()
	text, err := yaml.Marshal(v)
	must(t, err)
	must(t, os.WriteFile(path, text, 0o644))
}

func must(t T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// repositoryBin finds bin/ next to the go.mod of the product.
func repositoryBin(t T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if text, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(text, []byte("module github.com/strait-net/strait\n")) {
			bin := filepath.Join(dir, "bin")
			if _, err := os.Stat(filepath.Join(bin, "strait-agent")); err != nil {
				t.Fatalf("%v: run make build first", err)
			}
			return bin
		}
	}
	t.Fatalf("not inside the repository")
	return ""
}

// eventually polls until ok or five seconds are over, and reports which.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// decode reads JSON or ends the test.
func decode[V any](t T, text string) (v V) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return v
}
