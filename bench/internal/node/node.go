// Package node runs the nodes of the benchmark: processes in network, mount, pid and cgroup trees of their own that act as
// the container runtime of their node.
package node

import (
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/wire"
	"golang.org/x/sys/unix"
)

// Node is a running node. Killing its process ends everything that runs in it.
type Node struct {
	Name   string
	Space  *wire.Namespace // the node's own network
	Group  bill.Group      // its cgroups
	cmd    *exec.Cmd
	client *rpc.Client
}

// Argument makes a copy of this program a node process when it is the first argument.
const Argument = "node"

// Start starts a node whose process joins group's "runtime" leaf.
func Start(name string, group bill.Group) (*Node, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket to node %s: %w", name, err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "node")
	cmd := exec.Command(self, Argument, name)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
	}
	err = errors.Join(cmd.Start(), theirs.Close())
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", name, err)
	}
	n := &Node{Name: name, Group: group, cmd: cmd, client: rpc.NewClient(os.NewFile(uintptr(ends[0]), "node"))}
	if err := n.settle(); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

func (n *Node) settle() error {
	runtime, err := n.Runtime()
	if err != nil {
		return err
	}
	if err := runtime.Join(n.cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := n.Run("true"); err != nil { // the first answer comes after furnish
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	n.Space, err = wire.Open(n.Name, fmt.Sprintf("/proc/%d/ns/net", n.cmd.Process.Pid))
	return err
}

// Stop kills the node and waits for it.
func (n *Node) Stop() error {
	_ = n.client.Close()
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	if n.Space == nil {
		return nil
	}
	return n.Space.Close()
}

// Pid is the node process as the machine sees it.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Root is the node's file system as the machine sees it.
func (n *Node) Root(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.cmd.Process.Pid), path)
}

func (n *Node) call(method string, args, reply any) error {
	if err := n.client.Call("Node."+method, args, reply); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// Pod makes an empty pod and opens its network.
func (n *Node) Pod(name string) (*wire.Namespace, error) {
	if err := n.call("Pod", name, &Nothing{}); err != nil {
		return nil, err
	}
	return wire.Open(n.Name+"/"+name, n.Root(filepath.Join(netnsDir, name)))
}

// Pods makes empty pods whose networks only CNI will enter.
func (n *Node) Pods(names []string) error {
	for _, name := range names {
		if err := n.call("Pod", name, &Nothing{}); err != nil {
			return err
		}
	}
	return nil
}

// Unpod removes pods after CNI has released them.
func (n *Node) Unpod(names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, n.call("Unpod", name, &Nothing{}))
	}
	return errors.Join(errs...)
}

// Run runs a command in the node and returns its output.
func (n *Node) Run(argv ...string) (string, error) { return n.Feed("", argv...) }

// Feed is Run with standard input.
func (n *Node) Feed(stdin string, argv ...string) (string, error) {
	var out string
	err := n.call("Run", Command{Argv: argv, Stdin: stdin}, &out)
	return strings.TrimSpace(out), err
}

// Start starts a daemon in the node; its process id is the node's own numbering.
func (n *Node) Start(log string, argv ...string) (int, error) {
	var pid int
	err := n.call("Start", Command{Argv: argv, Log: log}, &pid)
	return pid, err
}

// StartIn is Start in groups of its own, for processes that have an account apart from the daemons'.
func (n *Node) StartIn(group bill.Group, log string, argv ...string) (int, error) {
	var pid int
	err := n.call("Start", Command{Argv: argv, Log: log, Groups: group.Procs()}, &pid)
	return pid, err
}

// Runtime is the account of the node's daemons: all that runs in it but the ends of paths.
func (n *Node) Runtime() (bill.Group, error) { return n.Group.Child("runtime") }

// Write writes a file into the node's own tree.
func (n *Node) Write(path string, data []byte) error {
	return n.call("Write", File{Path: path, Data: data}, &Nothing{})
}

// CNI makes a batch of CNI calls.
func (n *Node) CNI(c CNI) (CNIReply, error) {
	var reply CNIReply
	err := n.call("CNI", c, &reply)
	return reply, err
}

// CNIStatus asks a plugin for its status.
func (n *Node) CNIStatus(confList, binDir string) error {
	return n.call("Status", CNI{ConfList: confList, BinDir: binDir}, &Nothing{})
}
