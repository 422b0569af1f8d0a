// Package cgroup gives every lab node a subtree of its own in each cgroup hierarchy of the machine, v1, hybrid or pure v2.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted cgroup file system.
type Hierarchy struct {
	Mount string // where the machine mounts it
	// Options are the v1 mount options (controllers or name=); empty for v2.
	Options string
	// Base is the directory below which labs make theirs: the own cgroup in v1, the root in v2, because in v2 a cgroup
	// that holds processes cannot hand controllers on.
	Base string
}

// V2 tells the unified hierarchy from the older ones.
func (h Hierarchy) V2() bool { return h.Options == "" }

const root = "/sys/fs/cgroup"

// Discover lists the hierarchies of the machine. procCgroup and mounts are the contents of /proc/self/cgroup and /proc/self/mounts.
func Discover(procCgroup, mounts string) ([]Hierarchy, error) {
	own := map[string]string{} // controllers, or "" for v2 -> path of this process
	for line := range strings.Lines(procCgroup) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	var found []Hierarchy
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], root) {
			continue
		}
		switch f[2] {
		case "cgroup2":
			found = append(found, Hierarchy{Mount: f[1], Base: f[1]})
		case "cgroup":
			for controllers, path := range own {
				if controllers != "" && hasOptions(f[3], controllers) {
					found = append(found, Hierarchy{Mount: f[1], Options: controllers, Base: filepath.Join(f[1], path)})
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below " + root)
	}
	return found, nil
}

func hasOptions(mounted, wanted string) bool {
	have := map[string]bool{}
	for o := range strings.SplitSeq(mounted, ",") {
		have[o] = true
	}
	for w := range strings.SplitSeq(wanted, ",") {
		if !have[w] {
			return false
		}
	}
	return true
}

// Machine discovers the hierarchies of the running machine.
func Machine() ([]Hierarchy, error) {
	procCgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	return Discover(string(procCgroup), string(mounts))
}

// Tree is the set of directories, one per hierarchy, that belongs to one node.
type Tree struct {
	Hierarchies []Hierarchy
	Path        string // relative to each Base, e.g. strait-lab/default/node1
}

// leaf is where a node's own processes live: a v2 cgroup that hands controllers on may not hold processes itself.
const leaf = "system"

// Create makes the directories and hands all controllers down to them.
func (t Tree) Create() error {
	for _, h := range t.Hierarchies {
		dir := h.Base
		for part := range strings.SplitSeq(t.Path, "/") {
			if err := delegate(h, dir); err != nil {
				return err
			}
			dir = filepath.Join(dir, part)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make cgroup %s: %w", dir, err)
			}
			if err := inheritCPUSet(h, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCPUSet copies the two values without which a v1 cpuset accepts no process.
func inheritCPUSet(h Hierarchy, dir string) error {
	if !hasOptions(h.Options, "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return fmt.Errorf("copy %s to %s: %w", file, dir, err)
		}
	}
	return nil
}

// delegate enables every controller of a v2 directory for its children.
func delegate(h Hierarchy, dir string) error {
	if !h.V2() {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil || len(controllers) == 0 {
		return err
	}
	if err := stepAside(dir); err != nil {
		return err
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	for c := range strings.FieldsSeq(string(controllers)) {
		err := os.WriteFile(control, []byte("+"+c), 0o644)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: one that this kernel has and does not hand on
			return fmt.Errorf("enable cgroup controller %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

// stepAside empties a directory of processes, because only the real root may hold processes and delegate. Inside a container
// the visible root is not the real one; its processes move into a child, as every nested container runtime has them do. It
// has to happen before the first controller is enabled: those that know threads would make the directory the root of a
// threaded subtree, silently, and memory would be refused from then on.
func stepAside(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); errors.Is(err, os.ErrNotExist) {
		return nil // the real root
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || len(procs) == 0 {
		return err
	}
	side := filepath.Join(dir, leaf)
	if err := os.MkdirAll(side, 0o755); err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		err := os.WriteFile(filepath.Join(side, "cgroup.procs"), []byte(pid), 0o644)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to %s: %w", pid, side, err)
		}
	}
	return nil
}

// Enter moves the calling process into the top directories: done before a cgroup namespace is made, so that they become its roots.
func (t Tree) Enter() error { return t.move("") }

// EnterLeaf moves the calling process to where the node's own processes live.
func (t Tree) EnterLeaf() error { return t.move(leaf) }

func (t Tree) move(below string) error {
	for _, h := range t.Hierarchies {
		dir := filepath.Join(h.Base, t.Path)
		if below != "" && h.V2() {
			dir = filepath.Join(dir, below)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// Delegate hands the controllers on to what the node makes below its top; the top must be empty of processes by then.
func (t Tree) Delegate() error {
	for _, h := range t.Hierarchies {
		if err := delegate(h, filepath.Join(h.Base, t.Path)); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes the directories, deepest first, and the empty ones above that labs share. Dead processes leave their cgroup
// a moment after they are reaped, so a busy directory is tried again for some seconds.
func (t Tree) Remove() error {
	var failed []error
	for _, h := range t.Hierarchies {
		top := filepath.Join(h.Base, t.Path)
		var err error
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if err = removeAll(top); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("remove cgroup %s: %w", top, err))
		}
		for dir := filepath.Dir(top); dir != h.Base && os.Remove(dir) == nil; dir = filepath.Dir(dir) {
		}
	}
	return errors.Join(failed...)
}

// removeAll removes directories only: the files of a cgroup vanish with it.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// MountInside mounts the hierarchies afresh below /sys/fs/cgroup: called inside the cgroup namespace of the node, whose
// subtree is then all there is to see.
func MountInside(hierarchies []Hierarchy) error {
	for _, h := range hierarchies {
		if h.Mount == root {
			return mount(h, root)
		}
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", root, err)
	}
	for _, h := range hierarchies {
		if err := os.MkdirAll(h.Mount, 0o755); err != nil {
			return err
		}
		if err := mount(h, h.Mount); err != nil {
			return err
		}
	}
	return nil
}

func mount(h Hierarchy, on string) error {
	kind, options := "cgroup", h.Options
	if h.V2() {
		kind = "cgroup2"
	}
	if strings.HasPrefix(options, "name=") {
		options = "none," + options // a named hierarchy without controllers has to say so
	}
	if err := unix.Mount(kind, on, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", kind, h.Options, on, err)
	}
	return nil
}
