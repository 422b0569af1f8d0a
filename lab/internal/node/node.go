// Package node is one machine of the lab from the inside: it turns a fresh set of namespaces into a host with its own
// file systems, containerd and kubelet, and is that host's init.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/cgroup"
	"github.com/strait-net/strait/lab/internal/controlplane"
	"github.com/strait-net/strait/lab/internal/process"
	"github.com/strait-net/strait/lab/internal/topology"
)

// Config is all that a node knows; it is stored in the node's directory.
type Config struct {
	Spec   topology.Spec
	Node   topology.Node
	Dir    string   // the node's disk: what survives a reboot of the node
	Bin    string   // binaries
	Images string   // directory of image archives
	Load   []string // archives in Images to import before the kubelet starts
	CGroup cgroup.Tree
}

// Files below Config.Dir.
const (
	configFile  = "node.json"
	varLib      = "var-lib"
	varLog      = "var-log"
	opt         = "opt"
	etcUpper    = "etc"
	etcWork     = "etc-work"
	etcCNI      = "etc-cni"
	imported    = "imported"
	credentials = "pki"

	kubeProxyOff = "kube-proxy.off"
)

// KubeProxyOff is a file of the node's disk, seen from outside the node: while it exists, the node's kube-proxy is stopped.
func KubeProxyOff(dir string) string { return filepath.Join(dir, kubeProxyOff) }

// CNIDir is where a node's CNI configuration lies, seen from outside the node.
func CNIDir(dir string) string { return filepath.Join(dir, etcCNI, "net.d") }

// LogFile is the log of a node's own component, seen from outside the node.
func LogFile(dir, component string) string { return filepath.Join(dir, varLog, component+".log") }

// Credentials is the directory of the node's certificates: ca.crt, kubelet.crt, kubelet.key, kubelet.kubeconfig and kube-proxy.kubeconfig.
func Credentials(dir string) string { return filepath.Join(dir, credentials) }

// Prepare lays out the node's disk; what is there stays.
func (c Config) Prepare() error {
	for _, d := range []string{varLib, varLog, opt, filepath.Join(opt, "cni", "bin"), etcUpper, etcWork, filepath.Join(etcCNI, "net.d"), credentials} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o755); err != nil {
			return err
		}
	}
	plugins := []string{"loopback"} // part of every distribution's containernetworking package
	if c.Spec.CNI == "bridge" {
		plugins = append(plugins, "bridge", "host-local", "portmap")
	}
	for _, p := range plugins {
		if err := copyFile(filepath.Join(c.Bin, p), filepath.Join(c.Dir, opt, "cni", "bin", p)); err != nil {
			return err
		}
	}
	content, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Dir, configFile), content, 0o644)
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

func load(dir string) (Config, error) {
	var c Config
	content, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(content, &c)
}

// Namespaces are the clone flags of a node's init; its network namespace exists already and its cgroup namespace is made by Enter.
const Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Enter is the first stage of a node's init: it moves into the node's cgroups, makes them the roots of a new cgroup
// namespace and executes the second stage in the same process.
func Enter(dir string, second []string) error {
	c, err := load(dir)
	if err != nil {
		return err
	}
	if err := c.CGroup.Enter(); err != nil {
		return err
	}
	// The namespace belongs to this thread, and exec makes the calling thread the whole process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := c.CGroup.EnterLeaf(); err != nil {
		return err
	}
	if err := c.CGroup.Delegate(); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", second, os.Environ())
}

// Init is the second stage; it returns only on error. Each line written to progress is a finished step; closing it means that
// the kubelet has been started.
func Init(dir string, progress *os.File) error {
	c, err := load(dir)
	if err != nil {
		return err
	}
	if err := c.mountAll(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Node.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	table := process.NewTable()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := c.startRuntime(ctx, table); err != nil {
		return err
	}
	fmt.Fprintln(progress, "containerd")
	if err := c.importImages(table); err != nil {
		return err
	}
	fmt.Fprintln(progress, "images")
	if err := c.startKubelet(ctx, table); err != nil {
		return err
	}
	fmt.Fprintln(progress, "kubelet")
	progress.Close()
	select {} // the reaper and the keepers work on
}

func (c Config) startRuntime(ctx context.Context, table *process.Table) error {
	if err := os.MkdirAll("/etc/containerd", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/containerd/config.toml", []byte(containerdConfig), 0o644); err != nil {
		return err
	}
	err := table.Keep(process.Command{
		Path: inside.bin("containerd"), Args: []string{"containerd", "--log-level", "warn"},
		Env: environment(), Log: "/var/log/containerd.log",
	})
	if err != nil {
		return err
	}
	for {
		conn, err := net.Dial("unix", containerdSocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c Config) importImages(table *process.Table) error {
	var group errgroup.Group
	for _, archive := range c.Load {
		group.Go(func() error {
			return table.Run(process.Command{
				Path: inside.bin("ctr"), Args: append([]string{"ctr"}, importArgs(containerdSocket, filepath.Join(inside.images, archive))...),
				Env: environment(), Log: "/var/log/import.log",
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(inside.node, imported), []byte(strings.Join(c.Load, "\n")+"\n"), 0o644)
}

func importArgs(socket, archive string) []string {
	return []string{"-a", socket, "-n", "k8s.io", "images", "import", archive}
}

// ImportedFile lists the archives, one a line, that a node has imported since it booted, seen from outside the node.
func ImportedFile(dir string) string { return filepath.Join(dir, imported) }

// Load imports an archive on a running node from outside; pid is the node's init.
func Load(pid int, dir, bin, archive string) error {
	socket := fmt.Sprintf("/proc/%d/root%s", pid, containerdSocket)
	if out, err := exec.Command(filepath.Join(bin, "ctr"), importArgs(socket, archive)...).CombinedOutput(); err != nil {
		return fmt.Errorf("import %s: %w: %s", filepath.Base(archive), err, bytes.TrimSpace(out))
	}
	f, err := os.OpenFile(ImportedFile(dir), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(filepath.Base(archive) + "\n") // one write: appends of parallel loads do not mix
	return errors.Join(err, f.Close())
}

func (c Config) startKubelet(ctx context.Context, table *process.Table) error {
	config, err := kubeletConfig(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/var/lib/kubelet", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/var/lib/kubelet/config.yaml", config, 0o644); err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(inside.pki(), "ca.crt"))
	if err != nil {
		return err
	}
	var dialer net.Dialer
	if err := controlplane.WaitReady(ctx, "https://"+c.Spec.APIServer().String(), ca, dialer.DialContext); err != nil {
		return err
	}
	err = table.Keep(process.Command{
		Path: inside.bin("kubelet"),
		Args: []string{"kubelet",
			"--config=/var/lib/kubelet/config.yaml",
			"--kubeconfig=" + filepath.Join(inside.pki(), "kubelet.kubeconfig"),
			"--hostname-override=" + c.Node.Name,
			"--node-ip=" + topology.Join(topology.Hosts(c.Node.Addrs)),
			fmt.Sprintf("--node-labels=topology.kubernetes.io/zone=zone%d", (c.Node.Index-1)%3+1), // three zones, as upstream tests want
			"--v=1",
		},
		Env: environment(), Log: "/var/log/kubelet.log",
	})
	if err != nil || c.Spec.KubeProxy() == "" {
		return err
	}
	if err := os.WriteFile("/etc/kube-proxy.yaml", []byte(kubeProxyConfig(c)), 0o644); err != nil {
		return err
	}
	return table.Keep(process.Command{
		Path: inside.bin("kube-proxy"), Args: []string{"kube-proxy", "--config=/etc/kube-proxy.yaml"},
		Env: environment(), Log: "/var/log/kube-proxy.log", Off: filepath.Join(inside.node, kubeProxyOff),
	})
}

func environment() []string {
	return []string{"PATH=" + inside.binDir + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

// paths are where a node finds what the lab hands it.
type paths struct{ binDir, images, node string }

func (p paths) bin(name string) string { return filepath.Join(p.binDir, name) }
func (p paths) pki() string            { return filepath.Join(p.node, credentials) }

// inside is constant.
var inside = paths{binDir: "/run/lab/bin", images: "/run/lab/images", node: "/run/lab/node"}

// mountAll makes this mount namespace a machine's: all paths keep their usual names, what is written to them is the node's own.
func (c Config) mountAll() error {
	bind := func(from, to string) func() error { return func() error { return bindDir(from, to) } }
	below := func(d string) string { return filepath.Join(inside.node, d) }
	steps := []func() error{
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755") },
		bind(c.Bin, inside.binDir),
		bind(c.Images, inside.images),
		bind(c.Dir, inside.node), // before /var/lib is covered
		bind(below(varLib), "/var/lib"),
		bind(below(varLog), "/var/log"),
		bind(below(opt), "/opt"),
		func() error {
			return mount("overlay", "/etc", "overlay", 0, fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", below(etcUpper), below(etcWork)))
		},
		bind(below(etcCNI), "/etc/cni"),
		func() error { return mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777") },
		func() error { return mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") },
		func() error {
			return mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		},
		func() error { return cgroup.MountInside(c.CGroup.Hierarchies) },
		func() error {
			return mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700")
		},
		c.writeEtc,
		coverSysctls,
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }, // what kubelet and mount propagation expect
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) writeEtc() error {
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for _, a := range topology.Hosts(c.Node.Addrs) {
		hosts += fmt.Sprintf("%s %s\n", a, c.Node.Name)
	}
	var resolv strings.Builder
	for _, a := range topology.Hosts(c.Spec.OutsideAddrs()) {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	for file, content := range map[string]string{
		"/etc/hostname": c.Node.Name + "\n", "/etc/hosts": hosts, "/etc/resolv.conf": resolv.String(),
	} {
		// Removed first: resolv.conf is often a link into the machine's /run.
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// coverSysctls hides the sysctls that a kubelet sets for the whole machine behind files that hold what it wants to see.
func coverSysctls() error {
	wanted := map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	}
	for name, value := range wanted {
		file := filepath.Join("/run/lab/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func bindDir(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return mount(from, to, "", unix.MS_BIND, "")
}

func mount(what, on, kind string, flags uintptr, options string) error {
	if err := unix.Mount(what, on, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", strings.TrimSpace(what+" "+kind), on, err)
	}
	return nil
}
