package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
)

const cgroupPin = "cgroup" // stands for the device in pins of cgroup links

// ErrNoCgroup is matched when the node has no cgroup v2 tree to attach to.
var ErrNoCgroup = errors.New("no cgroup v2 tree")

func cgroupHooks() map[string]ebpf.AttachType {
	return map[string]ebpf.AttachType{
		bpf.DatapathProgStraitConnect4: ebpf.AttachCGroupInet4Connect,
		bpf.DatapathProgStraitConnect6: ebpf.AttachCGroupInet6Connect,
		bpf.DatapathProgStraitSendmsg4: ebpf.AttachCGroupUDP4Sendmsg,
		bpf.DatapathProgStraitSendmsg6: ebpf.AttachCGroupUDP6Sendmsg,
		bpf.DatapathProgStraitRecvmsg4: ebpf.AttachCGroupUDP4Recvmsg,
		bpf.DatapathProgStraitRecvmsg6: ebpf.AttachCGroupUDP6Recvmsg,
		bpf.DatapathProgStraitPeer4:    ebpf.AttachCgroupInet4GetPeername,
		bpf.DatapathProgStraitPeer6:    ebpf.AttachCgroupInet6GetPeername,
		bpf.DatapathProgStraitBind4:    ebpf.AttachCGroupInet4Bind,
		bpf.DatapathProgStraitBind6:    ebpf.AttachCGroupInet6Bind,
		bpf.DatapathProgStraitRelease:  ebpf.AttachCgroupInetSockRelease,
	}
}

// Cgroup attaches the socket programs to a cgroup v2 directory; every socket made below it is load balanced. The programs that
// translate come last: a connection that has been translated must never meet a getpeername that does not know, nor end uncounted.
func (a *Attacher) Cgroup(root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return fmt.Errorf("look at cgroup %s: %w", root, err)
	}
	hooks := cgroupHooks()
	for _, name := range backwardsFirst(hooks) {
		p, err := a.program(name)
		if err != nil {
			return err
		}
		err = a.keep(a.pin(name, cgroupPin), p,
			// A cgroup's id is its inode number.
			func(i *link.Info) bool { return i.Cgroup() != nil && i.Cgroup().CgroupId == st.Ino },
			func() (link.Link, error) {
				l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: hooks[name], Program: p})
				if err != nil {
					return nil, fmt.Errorf("attach cgroup link %s to %s: %w", name, root, err)
				}
				return l, nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// DetachCgroup removes the socket programs, those that translate first.
func (a *Attacher) DetachCgroup() error {
	names := backwardsFirst(cgroupHooks())
	slices.Reverse(names)
	for _, name := range names {
		if err := unpin(a.pin(name, cgroupPin)); err != nil {
			return err
		}
	}
	return nil
}

func backwardsFirst(hooks map[string]ebpf.AttachType) []string {
	var back, there []string
	for name := range hooks {
		if strings.HasPrefix(name, "strait_connect") || strings.HasPrefix(name, "strait_sendmsg") {
			there = append(there, name)
		} else {
			back = append(back, name)
		}
	}
	slices.Sort(back)
	slices.Sort(there)
	return append(back, there...)
}

// CgroupRoot returns the cgroup v2 directory that holds all sockets of the node: the configured one, else the outermost mount
// this process sees. An error matches ErrNoCgroup if there is none.
func CgroupRoot(configured string) (string, error) {
	if configured != "" {
		var st unix.Statfs_t
		if err := unix.Statfs(configured, &st); err != nil {
			return "", fmt.Errorf("cgroupRoot %s: %w", configured, err)
		}
		if st.Type != unix.CGROUP2_SUPER_MAGIC {
			return "", fmt.Errorf("cgroupRoot %s: %w: file system type 0x%x, want 0x%x (cgroup2)", configured, ErrNoCgroup, st.Type,
				unix.CGROUP2_SUPER_MAGIC)
		}
		return filepath.Clean(configured), nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	if root := outermost(string(mounts)); root != "" {
		return root, nil
	}
	return "", fmt.Errorf("%w: nothing of type cgroup2 is mounted (looked at /sys/fs/cgroup, /sys/fs/cgroup/unified and all other mounts); "+
		"mount it and name it in cgroupRoot", ErrNoCgroup)
}

// outermost chooses among the cgroup2 mounts of a mountinfo (proc_pid_mountinfo(5)). A container with a cgroup namespace sees its
// own cgroup as "/" and what the host gave it from further out as "/..": the further out, the better; what is below "/" is no root.
func outermost(mountinfo string) string {
	best, bestRank := "", -1
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 || kind[0] != "cgroup2" {
			continue
		}
		root, dir := fields[3], unescape(fields[4])
		rank := 10 * strings.Count(root, "/..")
		if rank == 0 && root != "/" {
			continue
		}
		switch dir {
		case "/sys/fs/cgroup":
			rank += 2
		case "/sys/fs/cgroup/unified":
			rank++
		}
		if rank > bestRank {
			best, bestRank = dir, rank
		}
	}
	return best
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
