// Package testkit makes clusters of node namespaces that run the real agent and the real plugin, for tests and benchmarks.
//
// A node is a network and a mount namespace with its own bpffs and /run, and a cgroup v2 child; a pod is a network namespace whose
// processes are in its node's cgroup, so that socket programs of one node see exactly its own pods. Nodes hang on a bridge in an
// underlay namespace; nothing touches the machine's own interfaces.
package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// T is what testkit needs of a test or a benchmark rig.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// RequireRoot skips a test that needs privileges, saying so.
func RequireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads BPF programs")
	}
}

// Namespace is a network namespace held open by a process, with the mount namespace and cgroup that came with it.
type Namespace struct {
	Name   string
	pid    int
	cgroup string // cgroup v2 directory of the processes run in it
	mount  bool   // has a mount namespace of its own
	t      T
}

// hold starts a process that does nothing but keep new namespaces alive until the test ends.
func hold(t T, name, cgroup string, flags uintptr) *Namespace {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	// Pdeathsig follows the thread that forked: it must live as long as the process.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := startIn(cmd, cgroup)
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		runtime.UnlockOSThread()
	}()
	if err := <-started; err != nil {
		t.Fatalf("start holder of namespace %s: %v", name, err)
	}
	n := &Namespace{Name: name, pid: cmd.Process.Pid, cgroup: cgroup, mount: flags&syscall.CLONE_NEWNS != 0, t: t}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	n.Do(func() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatalf("set lo up in %s: %v", name, err)
		}
	})
	return n
}

// startIn starts cmd as a member of a cgroup v2 directory from its first instruction on; empty: the caller's.
func startIn(cmd *exec.Cmd, cgroup string) error {
	if cgroup == "" {
		return cmd.Start()
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(dir.Fd())
	return cmd.Start()
}

// Path returns the path of the network namespace.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/ns/net", n.pid) }

// Do runs fn on a thread inside the network namespace; sockets and netlink handles that fn makes stay there.
func (n *Namespace) Do(fn func()) {
	done := make(chan error)
	go func() {
		// The thread is not given back to the scheduler: it ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(n.Path())
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("enter namespace %s: %v", n.Name, err)
	}
}

// Command returns a command that will run inside the namespaces; Start it with Namespace.Start.
func (n *Namespace) Command(name string, args ...string) *exec.Cmd {
	enter := []string{"--target", fmt.Sprint(n.pid), "--net"}
	if n.mount {
		enter = append(enter, "--mount")
	}
	return exec.Command("nsenter", append(append(enter, "--", name), args...)...)
}

// Start starts a command made by Command in the namespace's cgroup. It is killed when the test ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if err := startIn(cmd, n.cgroup); err != nil {
		return err
	}
	n.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return nil
}

// Run runs a command inside the namespaces and returns its combined output; a failure ends the test.
func (n *Namespace) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.TryRun(name, args...)
	if err != nil {
		n.t.Fatalf("in %s: %s %s: %v\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return out
}

// TryRun runs a command inside the namespaces and returns its combined output.
func (n *Namespace) TryRun(name string, args ...string) (string, error) {
	cmd := n.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := startIn(cmd, n.cgroup); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// newCgroup makes a cgroup v2 directory that is removed when the test ends, below the caller's own.
func newCgroup(t T, name string) string {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatalf("%v", err)
	}
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	t.Cleanup(func() { removeCgroup(dir) })
	return dir
}

// removeCgroup ends what is left in the cgroup and removes it.
func removeCgroup(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o644)
	eventually(func() bool { return os.Remove(dir) == nil || os.IsNotExist(statError(dir)) })
}

func statError(path string) error {
	_, err := os.Stat(path)
	return err
}

// cgroupRoot returns the mounted cgroup v2 directory of the calling process.
func cgroupRoot() (string, error) {
	own := "/"
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(text)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				own = path
			}
		}
	}
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return filepath.Join(mount, own), nil
		}
	}
	return "", fmt.Errorf("no cgroup v2 mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")
}
