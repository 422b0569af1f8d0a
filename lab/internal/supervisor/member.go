package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/strait-net/strait/lab/internal/cgroup"
	"github.com/strait-net/strait/lab/internal/controlplane"
	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/network"
	"github.com/strait-net/strait/lab/internal/node"
	"github.com/strait-net/strait/lab/internal/pki"
	"github.com/strait-net/strait/lab/internal/process"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

var errNoNode = errors.New("no such node")

// member is one node as seen from outside: off (process nil or dead) or on.
type member struct {
	node    topology.Node
	dir     string
	tree    cgroup.Tree
	net     *namespace.Net   // while on
	process *process.Process // the node's init, while on
}

func (m *member) on() bool {
	if m.process == nil {
		return false
	}
	select {
	case <-m.process.Done():
		return false
	default:
		return true
	}
}

// NodeDir is a node's disk.
func NodeDir(state, name string) string { return filepath.Join(state, "nodes", name) }

// Tree is a node's place in the cgroup hierarchies.
func Tree(hierarchies []cgroup.Hierarchy, lab, name string) cgroup.Tree {
	return cgroup.Tree{Hierarchies: hierarchies, Path: filepath.Join("strait-lab", lab, name)}
}

func (s *Supervisor) member(index int) *member {
	n := s.config.Spec.Node(index)
	return &member{
		node: n,
		dir:  NodeDir(s.config.State, n.Name),
		tree: Tree(s.hierarchies, s.config.Spec.Name, n.Name),
	}
}

// boot starts a node that is off and returns once its kubelet runs. Different members may boot at the same time.
func (s *Supervisor) boot(m *member, b wire.Boot, step func(string)) error {
	ns, err := namespace.NewNet(m.node.Name)
	if err != nil {
		return err
	}
	m.net = ns
	if err := s.plug(m); err != nil {
		return err
	}
	if err := m.tree.Create(); err != nil {
		return err
	}
	config := node.Config{
		Spec: s.config.Spec, Node: m.node, Dir: m.dir,
		Bin: s.config.Bin, Images: s.config.Images, Load: b.Load, CGroup: m.tree,
	}
	if err := config.Prepare(); err != nil {
		return err
	}
	if err := s.issue(m); err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	log := node.LogFile(m.dir, "init")
	m.process, err = s.table.Start(process.Command{
		Path: "/proc/self/exe", Args: append(s.config.NodeCommand, m.dir), Env: os.Environ(),
		Log: log, Net: ns, Files: []*os.File{write},
		Sys: &syscall.SysProcAttr{Cloneflags: node.Namespaces, Setsid: true},
	})
	write.Close()
	if err != nil {
		return err
	}
	last := ""
	for lines := bufio.NewScanner(read); lines.Scan(); {
		last = lines.Text()
		step(last)
	}
	if last != "kubelet" {
		<-m.process.Done()
		return fmt.Errorf("boot %s: %w; see %s", m.node.Name, m.process.Err(), log)
	}
	return nil
}

func (s *Supervisor) plug(m *member) error {
	if err := network.Unplug(s.underlay, m.node.Name); err != nil {
		return err
	}
	err := network.Plug(s.underlay, m.node.Name, network.Port{Net: m.net, Device: network.Uplink, Addrs: m.node.Addrs, MAC: m.node.MAC})
	if err != nil {
		return err
	}
	return errors.Join(
		network.Forward(m.net),
		network.DefaultRoutes(m.net, topology.Hosts(s.config.Spec.RouterAddrs())),
	)
}

// issue gives the node its certificates unless its disk has them.
func (s *Supervisor) issue(m *member) error {
	dir := node.Credentials(m.dir)
	kubeconfig := filepath.Join(dir, "kubelet.kubeconfig")
	if _, err := os.Stat(kubeconfig); err == nil {
		return nil
	}
	var ips []net.IP
	for _, a := range topology.Hosts(m.node.Addrs) {
		ips = append(ips, a.AsSlice())
	}
	file := "kubelet-" + m.node.Name
	err := s.ca.Issue(file, pki.Subject{
		CommonName: "system:node:" + m.node.Name, Organization: []string{"system:nodes"},
		DNS: []string{m.node.Name}, IPs: ips,
	})
	if err != nil {
		return err
	}
	for from, to := range map[string]string{
		s.ca.CAFile(): "ca.crt", s.ca.CertFile(file): "kubelet.crt", s.ca.KeyFile(file): "kubelet.key",
	} {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, to), content, 0o600); err != nil {
			return err
		}
	}
	return errors.Join(
		controlplane.WriteKubeconfig(s.ca, s.config.Spec, "kube-proxy", filepath.Join(dir, "kube-proxy.kubeconfig")),
		controlplane.WriteKubeconfig(s.ca, s.config.Spec, file, kubeconfig),
	)
}

// halt takes a node's power: its init dies and with it everything in its namespaces.
func (s *Supervisor) halt(m *member) error {
	if m.process != nil {
		m.process.Kill()
		m.process.Fd.Close()
		m.process = nil
	}
	if m.net != nil {
		m.net.Close()
		m.net = nil
	}
	return errors.Join(network.Unplug(s.underlay, m.node.Name), m.tree.Remove())
}

func (s *Supervisor) findLocked(name string) (*member, error) {
	for _, m := range s.nodes {
		if m.node.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", errNoNode, name)
}

func (s *Supervisor) killNode(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.findLocked(name)
	if err != nil {
		return err
	}
	return s.halt(m)
}

func (s *Supervisor) restartNode(name string, b wire.Boot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.findLocked(name)
	if err != nil {
		return err
	}
	if err := s.halt(m); err != nil {
		return err
	}
	return s.boot(m, b, func(string) {})
}

func (s *Supervisor) addNode(b wire.Boot) (wire.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := len(s.nodes) + 1
	if index > topology.MaxNodes {
		return wire.Machine{}, fmt.Errorf("a lab has at most %d nodes", topology.MaxNodes)
	}
	m := s.member(index)
	if err := s.boot(m, b, func(string) {}); err != nil {
		return wire.Machine{}, errors.Join(err, s.halt(m))
	}
	s.nodes = append(s.nodes, m)
	return s.describeLocked(m), nil
}

func (s *Supervisor) describeLocked(m *member) wire.Machine {
	d := wire.Machine{
		Name: m.node.Name, Addrs: texts(m.node.Addrs),
		Node: &wire.Node{Running: m.on(), Dir: m.dir, CGroup: m.tree},
	}
	if m.on() {
		d.Net = m.net.Path(s.pid)
		d.Node.Pid = machinePid(m.process)
	}
	return d
}

// machinePid is a child's number in the PID namespace of the mounted /proc, the machine's; 0 when it is gone.
func machinePid(p *process.Process) int {
	content, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", p.Fd.Fd()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if text, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(text))
			return max(pid, 0)
		}
	}
	return 0
}

// eachOn calls f for every running node.
func (s *Supervisor) eachOn(f func(*member) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed []error
	for _, m := range s.nodes {
		if m.on() {
			failed = append(failed, f(m))
		}
	}
	return errors.Join(failed...)
}
