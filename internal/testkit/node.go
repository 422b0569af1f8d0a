package testkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/strait-net/strait/internal/config"
)

// StartAgent starts the agent. Its log goes to AgentLog.
func (n *Node) StartAgent(args ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(n.t, err)
	defer func() { _ = log.Close() }()
	cmd := n.Command(filepath.Join(n.cluster.bin, "strait-agent"), n.agentArgs(args)...)
	cmd.Stdout, cmd.Stderr = log, log
	must(n.t, n.Start(cmd))
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	n.agent, n.exited = cmd, exited
	n.t.Cleanup(func() {
		<-exited
		if f, ok := n.t.(interface{ Failed() bool }); ok && f.Failed() {
			text, _ := os.ReadFile(n.logFile)
			n.t.Logf("agent log of %s:\n%s", n.Name, tail(text, 6000))
		}
	})
	n.t.Cleanup(func() { _ = cmd.Process.Kill() })
}

// KillAgent ends the agent as kill -9 does and waits until it is gone.
func (n *Node) KillAgent() { n.signalAgent(syscall.SIGKILL) }

// StopAgent ends the agent politely and waits until it is gone.
func (n *Node) StopAgent() { n.signalAgent(syscall.SIGTERM) }

func (n *Node) signalAgent(s syscall.Signal) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	// nsenter without --fork execs: the agent has the pid of the command.
	must(n.t, n.agent.Process.Signal(s))
	select {
	case <-n.exited:
	case <-time.After(20 * time.Second):
		n.t.Fatalf("agent of %s does not end after %v", n.Name, s)
	}
}

// AgentPID returns the process id of the running agent.
func (n *Node) AgentPID() int { return n.agent.Process.Pid }

// AgentLog returns what the agents of this node have logged.
func (n *Node) AgentLog() string {
	text, _ := os.ReadFile(n.logFile)
	return string(text)
}

// WaitReady waits until the agent has opened the node for pods.
func (n *Node) WaitReady(limit time.Duration) {
	n.t.Helper()
	var last error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-n.exited:
			n.t.Fatalf("agent of %s ended:\n%s", n.Name, tail([]byte(n.AgentLog()), 4000))
		default:
		}
		var out string
		if out, last = n.TryCLI("status", "-o", "json"); strings.Contains(out, `"ready": true`) {
			return
		}
	}
	n.t.Fatalf("agent of %s is not ready after %s: %v\n%s", n.Name, limit, last, tail([]byte(n.AgentLog()), 4000))
}

// CLI runs the strait command on the node and returns its output.
func (n *Node) CLI(args ...string) string {
	n.t.Helper()
	return n.Run(filepath.Join(n.cluster.bin, "strait"), args...)
}

// TryCLI runs the strait command on the node and returns its output and how it ended.
func (n *Node) TryCLI(args ...string) (string, error) {
	return n.TryRun(filepath.Join(n.cluster.bin, "strait"), args...)
}

// Get returns what the agent answers on the address of its metrics, as Prometheus and the operator ask it.
func (n *Node) Get(path string) string {
	n.t.Helper()
	_, port, err := net.SplitHostPort(config.Default().MetricsAddress)
	must(n.t, err)
	var conn net.Conn
	n.Do(func() { conn, err = net.DialTimeout("tcp", net.JoinHostPort(n.IPv4.String(), port), 5*time.Second) })
	must(n.t, err)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	resp, err := client.Get("http://agent" + path)
	must(n.t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		n.t.Fatalf("agent of %s answers %s with %s, %v\n%s", n.Name, path, resp.Status, err, body)
	}
	return string(body)
}

// Config returns a copy of the node's configuration.
func (n *Node) Config() map[string]any { return maps.Clone(n.settings) }

// SetConfig replaces the node's configuration; the agent reads it when it starts.
func (n *Node) SetConfig(settings map[string]any) {
	n.t.Helper()
	n.settings = settings
	writeYAML(n.t, n.config, n.settings)
}

// SetConfigKey changes one top-level key of the node's configuration; the agent reads it when it starts.
func (n *Node) SetConfigKey(key string, value any) {
	n.t.Helper()
	n.settings[key] = value
	writeYAML(n.t, n.config, n.settings)
}

// RunAgent runs one more agent in the foreground and returns its output when it ends.
func (n *Node) RunAgent(args ...string) (string, error) {
	return n.TryRun(filepath.Join(n.cluster.bin, "strait-agent"), n.agentArgs(args)...)
}

func (n *Node) agentArgs(more []string) []string {
	return append([]string{"--config", n.config, "--node-name", n.Name, "--source", "static:" + n.cluster.objects}, more...)
}

// StateDir returns the agent's record directory.
func (n *Node) StateDir() string { return filepath.Join(n.dir, "state") }

// network returns the network configuration a runtime would use.
func (n *Node) network() *libcni.NetworkConfigList {
	n.t.Helper()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil,
		`{"cniVersion":"1.1.0","name":"strait","plugins":[{"type":"strait-cni","capabilities":{"portMappings":true},"stateDir":%q}]}`, n.StateDir()))
	must(n.t, err)
	return list
}

func (n *Node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.cluster.bin}, filepath.Join(n.dir, "cni-cache"), &execIn{n})
}

// CNIStatus asks the plugin for its status.
func (n *Node) CNIStatus() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.cni().GetStatusNetworkList(ctx, n.network())
}

// Pod is a network namespace that the plugin has attached.
type Pod struct {
	*Namespace
	IPv4, IPv6  netip.Addr
	ContainerID string
	Result      *current.Result
	HostPorts   []HostPortMapping // set before Attach
	Spec        *PodSpec          // nil: there is no Pod object
	node        *Node
}

// HostPortMapping is one of CNI's portMappings.
type HostPortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// AddPod makes a pod's namespace and attaches it through the plugin.
func (n *Node) AddPod(name string) *Pod {
	n.t.Helper()
	p := n.NewSandbox(name)
	if err := p.Attach(); err != nil {
		n.t.Fatalf("attach %s: %v\n%s", name, err, tail([]byte(n.AgentLog()), 4000))
	}
	return p
}

// NewSandbox makes a pod's namespace without attaching it.
func (n *Node) NewSandbox(name string) *Pod {
	n.t.Helper()
	cgroup := filepath.Join(n.root, "pod-"+name)
	must(n.t, os.MkdirAll(cgroup, 0o755))
	n.t.Cleanup(func() { removeCgroup(cgroup) })
	return &Pod{
		Namespace:   hold(n.t, name, cgroup, syscall.CLONE_NEWNET),
		ContainerID: fmt.Sprintf("%s-%d", name, time.Now().UnixNano()),
		node:        n,
	}
}

func (p *Pod) runtime() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ContainerID, NetNS: p.Path(), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.KubernetesNamespace()}, {"K8S_POD_NAME", p.Name}, {"K8S_POD_UID", p.ContainerID}},
	}
	if len(p.HostPorts) > 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": p.HostPorts}
	}
	return rt
}

// Attach runs ADD.
func (p *Pod) Attach() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	result, err := p.node.cni().AddNetworkList(ctx, p.node.network(), p.runtime())
	if err != nil {
		return err
	}
	if p.Result, err = current.NewResultFromResult(result); err != nil {
		return err
	}
	for _, ip := range p.Result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && a.Unmap().Is4() {
			p.IPv4 = a.Unmap()
		} else if ok {
			p.IPv6 = a
		}
	}
	return nil
}

// Detach runs DEL.
func (p *Pod) Detach() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return p.node.cni().DelNetworkList(ctx, p.node.network(), p.runtime())
}

// Check runs CHECK.
func (p *Pod) Check() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return p.node.cni().CheckNetworkList(ctx, p.node.network(), p.runtime())
}

// GC runs the plugin's GC with the given attachments as the only valid ones.
func (n *Node) GC(valid ...*Pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var keep []types.GCAttachment
	for _, p := range valid {
		keep = append(keep, types.GCAttachment{ContainerID: p.ContainerID, IfName: "eth0"})
	}
	return n.cni().GCNetworkList(ctx, n.network(), &libcni.GCArgs{ValidAttachments: keep})
}

// Address returns the pod's address of the family.
func (p *Pod) Address(v6 bool) netip.Addr {
	if v6 {
		return p.IPv6
	}
	return p.IPv4
}

// Echo starts an echo server (TCP and UDP) that answers with the name of the namespace, in which there must be no x, and returns when it listens.
func (n *Namespace) Echo(port int) {
	n.t.Helper()
	cmd := n.self(fmt.Sprintf("echo %d %s", port, n.Name))
	out, err := cmd.StdoutPipe()
	must(n.t, err)
	cmd.Stderr = os.Stderr
	must(n.t, n.Start(cmd))
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil {
		n.t.Fatalf("echo server in %s: %v", n.Name, err)
	}
	go func() { _ = cmd.Wait() }()
}

// Probe runs a client in the namespace and returns what came of it.
func (n *Namespace) Probe(p Probe) Answer {
	n.t.Helper()
	return n.StartProbe(p)()
}

// StartProbe starts a client; the returned function waits for its answer.
func (n *Namespace) StartProbe(p Probe) func() Answer {
	n.t.Helper()
	arg, err := json.Marshal(p)
	must(n.t, err)
	cmd := n.self("probe " + string(arg))
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	must(n.t, n.Start(cmd))
	return func() Answer {
		n.t.Helper()
		if err := cmd.Wait(); err != nil {
			n.t.Fatalf("probe in %s: %v: %s", n.Name, err, problems.String())
		}
		return decode[Answer](n.t, out.String())
	}
}

func (n *Namespace) self(role string) *exec.Cmd {
	self, err := os.Executable()
	must(n.t, err)
	cmd := n.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// HostPort joins an address and a port.
func HostPort(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), fmt.Sprint(port)) }

// execIn runs plugins inside the node's namespaces, as the node's container runtime does.
type execIn struct{ node *Node }

func (e *execIn) ExecPlugin(ctx context.Context, plugin string, stdin []byte, environ []string) ([]byte, error) {
	cmd := e.node.Command(plugin)
	cmd.Env = environ
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &problems
	if err := startIn(cmd, e.node.root); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		var refused types.Error
		if json.Unmarshal(out.Bytes(), &refused) == nil && refused.Code != 0 {
			return nil, &refused
		}
		return nil, fmt.Errorf("%s: %w: %s%s", plugin, err, out.String(), problems.String())
	}
	return out.Bytes(), nil
}

func (e *execIn) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (e *execIn) Decode(text []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(text)
}

func tail(text []byte, n int) []byte { return text[max(0, len(text)-n):] }
