package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/vishvananda/netns"
)

// control is the descriptor of the socket to the rig in a node process.
const control = 3

// Serve is the life of a node process: furnish the namespaces it was started in, then do what the rig asks until
// the rig is gone.
func Serve() error {
	if err := furnish(); err != nil {
		return fmt.Errorf("furnish node: %w", err)
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Node", &service{}); err != nil {
		return err
	}
	server.ServeConn(os.NewFile(control, "control"))
	return nil
}

// service is the runtime of a node; its exported methods are the calls of Node.
type service struct {
	follower *follower // nil: none; the rig makes these calls one after the other
}

// Nothing stands for an empty argument or reply.
type Nothing struct{}

// Pod makes a pod's network namespace, as a container runtime does before it calls CNI.
func (*service) Pod(name string, _ *Nothing) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its namespace
		done <- makePod(name)
	}()
	return <-done
}

func makePod(name string) error {
	handle, err := netns.NewNamed(name)
	if err != nil {
		return fmt.Errorf("make network of pod %s: %w", name, err)
	}
	return errors.Join(handle.Close(), sysctls(PodSettings()))
}

// PodSettings are the settings of every namespace that holds an end of a conversation. A client that keeps no TIME_WAIT sockets can
// open connections for as long as it likes without searching for a free port more slowly each time.
func PodSettings() map[string]string {
	return map[string]string{
		"net/ipv4/tcp_max_tw_buckets":      "0",
		"net/ipv4/ip_local_port_range":     "32768 60999",
		"net/ipv6/conf/default/accept_dad": "0",
	}
}

// Unpod removes a pod's network namespace.
func (*service) Unpod(name string, _ *Nothing) error {
	if err := netns.DeleteNamed(name); err != nil {
		return fmt.Errorf("remove network of pod %s: %w", name, err)
	}
	return nil
}

// Command is a process to run in the node.
type Command struct {
	Argv  []string
	Env   []string
	Stdin string
	Log   string // Start only: file in the rig's tree that takes its output
	// Groups, of Start only, are cgroup.procs files of groups that the process is moved to; empty: those of the node's runtime.
	Groups []string
}

// Run runs a command to its end.
func (*service) Run(c Command, out *string) error {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	text, err := cmd.CombinedOutput()
	*out = string(text)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", strings.Join(c.Argv, " "), bytes.TrimSpace(text), err)
	}
	return nil
}

// Start starts a daemon and returns its process id as the node sees it.
func (*service) Start(c Command, pid *int) error {
	log, err := os.Create(c.Log)
	if err != nil {
		return fmt.Errorf("log of %s: %w", c.Argv[0], err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	*pid = cmd.Process.Pid
	go func() { _ = cmd.Wait() }()
	for _, g := range c.Groups {
		if err := os.WriteFile(g, []byte(strconv.Itoa(*pid)), 0o644); err != nil {
			return fmt.Errorf("account %s: %w", c.Argv[0], err)
		}
	}
	return nil
}

// Write writes a file in the node's own tree.
func (*service) Write(f File, _ *Nothing) error {
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(f.Path, f.Data, 0o644)
}

// File is a file to write.
type File struct {
	Path string
	Data []byte
}

// CNI is a batch of calls of one verb, made through libcni exactly as a runtime makes them: the plugin binary is executed for
// each pod.
type CNI struct {
	ConfList  string
	BinDir    string
	Namespace string // of the pods, as Kubernetes calls it
	Pods      []string
	Parallel  int
	Delete    bool
	Ping      bool // after each ADD, time until the node's first ping of the pod is answered
}

// CNIReply has one entry per pod, in the order of the request.
type CNIReply struct {
	Results []string        // CNI results of ADD
	Took    []time.Duration // time of the call
	Reached []time.Duration // time from the start of the call to the first answered ping
	Elapsed time.Duration   // whole batch
}

// CNI runs the batch; the first error wins, but every pod is tried.
func (*service) CNI(c CNI, reply *CNIReply) error {
	list, err := libcni.NetworkConfFromBytes([]byte(c.ConfList))
	if err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	exe := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}}
	cni := libcni.NewCNIConfigWithCacheDir([]string{c.BinDir}, runDir+"/cni/cache", exe)
	n := len(c.Pods)
	*reply = CNIReply{Results: make([]string, n), Took: make([]time.Duration, n), Reached: make([]time.Duration, n)}
	errs := make([]error, n)
	next := make(chan int)
	var workers sync.WaitGroup
	begin := time.Now()
	for range max(1, c.Parallel) {
		workers.Go(func() {
			for i := range next {
				errs[i] = c.one(cni, list, i, reply)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
	reply.Elapsed = time.Since(begin)
	return errors.Join(errs...)
}

func (c CNI) one(cni *libcni.CNIConfig, list *libcni.NetworkConfigList, i int, reply *CNIReply) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pod := c.Pods[i]
	rt := &libcni.RuntimeConf{ContainerID: pod, NetNS: filepath.Join(netnsDir, pod), IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", cmp.Or(c.Namespace, "bench")}, {"K8S_POD_NAME", pod}, {"K8S_POD_INFRA_CONTAINER_ID", pod},
		{"K8S_POD_UID", PodUID(pod)},
	}}
	begin := time.Now()
	if c.Delete {
		err := cni.DelNetworkList(ctx, list, rt)
		reply.Took[i] = time.Since(begin)
		return err
	}
	result, err := cni.AddNetworkList(ctx, list, rt)
	reply.Took[i] = time.Since(begin)
	if err != nil {
		return fmt.Errorf("ADD of %s: %w", pod, err)
	}
	var text bytes.Buffer
	if err := result.PrintTo(&text); err != nil {
		return fmt.Errorf("result of %s: %w", pod, err)
	}
	reply.Results[i] = text.String()
	if !c.Ping {
		return nil
	}
	parsed, err := ParseResult(text.Bytes())
	if err != nil {
		return fmt.Errorf("result of %s: %w", pod, err)
	}
	if err := reach(ctx, parsed.Addresses[0]); err != nil {
		return fmt.Errorf("ping %s of %s: %w", parsed.Addresses[0], pod, err)
	}
	reply.Reached[i] = time.Since(begin)
	return nil
}

// PodUID is the UID that a pod has by its name, for the plugin as at the API server.
func PodUID(name string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", h.Sum64()&(1<<48-1))
}

// Status asks a plugin for its status.
func (*service) Status(c CNI, _ *Nothing) error {
	list, err := libcni.NetworkConfFromBytes([]byte(c.ConfList))
	if err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return libcni.NewCNIConfigWithCacheDir([]string{c.BinDir}, runDir+"/cni/cache", nil).GetStatusNetworkList(ctx, list)
}
