package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	runDir   = "/run"
	netnsDir = "/run/netns"
)

// furnish makes the private mounts of a node. It runs as the first process of fresh mount, pid and network namespaces, so
// nothing it does is seen outside and everything is gone when the process ends.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", runDir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", runDir, err)
	}
	if err := freshSys(); err != nil {
		return err
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	return errors.Join(netlink.LinkSetUp(lo), sysctls(map[string]string{
		"net/ipv4/ip_forward":                              "1",
		"net/ipv6/conf/all/forwarding":                     "1",
		"net/ipv6/conf/default/accept_dad":                 "0",
		"net/ipv4/conf/all/rp_filter":                      "0",
		"net/ipv4/conf/default/rp_filter":                  "0",
		"net/bridge/bridge-nf-call-iptables":               "1",
		"net/bridge/bridge-nf-call-ip6tables":              "1",
		"net/netfilter/nf_conntrack_tcp_timeout_time_wait": "120",
	}))
}

// freshSys shows the node's own devices below /sys and gives it a bpffs of its own; the cgroup trees stay as they are.
func freshSys() error {
	const cgroup, aside = "/sys/fs/cgroup", runDir + "/cgroup"
	if err := os.Mkdir(aside, 0o755); err != nil {
		return err
	}
	steps := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{cgroup, aside, "", unix.MS_BIND | unix.MS_REC},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{aside, cgroup, "", unix.MS_BIND | unix.MS_REC},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	}
	for _, s := range steps {
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", s.source, s.target, err)
		}
	}
	return unix.Unmount(aside, unix.MNT_DETACH)
}

func sysctls(settings map[string]string) error {
	for key, value := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s to %s: %w", key, value, err)
		}
	}
	return nil
}
