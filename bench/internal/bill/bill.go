// Package bill accounts CPU time with cgroups, v1 cpuacct or v2 cpu.stat, whichever the machine has.
package bill

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tree is where the machine keeps its cgroups.
type Tree struct {
	unified string // v2 mount: sockets' programs and, on v2 machines, accounting
	acct    string // v1 cpuacct mount; empty: account with v2
}

// Find locates the cgroup mounts of this machine.
func Find(mountinfo string) (Tree, error) {
	var t Tree
	scanner := bufio.NewScanner(strings.NewReader(mountinfo))
	for scanner.Scan() {
		left, right, ok := strings.Cut(scanner.Text(), " - ")
		from, to := strings.Fields(left), strings.Fields(right)
		if !ok || len(from) < 5 || len(to) < 3 {
			continue
		}
		switch {
		case to[0] == "cgroup2" && t.unified == "":
			t.unified = from[4]
		case to[0] == "cgroup" && t.acct == "" && hasOption(to[2], "cpuacct"):
			t.acct = from[4]
		}
	}
	if t.unified == "" {
		return t, errors.New("no cgroup2 mount")
	}
	return t, nil
}

func hasOption(options, want string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == want {
			return true
		}
	}
	return false
}

// String says which accounting is used.
func (t Tree) String() string {
	if t.acct != "" {
		return "v1 cpuacct"
	}
	return "v2 cpu.stat"
}

// Group is one cgroup, in both trees when the machine has both.
type Group struct {
	tree Tree
	path string
}

// Root makes the top group of the run of process pid, after it has removed those of runs that were killed.
func (t Tree) Root(prefix string, pid int) (Group, error) {
	for _, dir := range t.mounts() {
		left, err := filepath.Glob(filepath.Join(dir, prefix+"-*"))
		if err != nil {
			return Group{}, err
		}
		for _, d := range left {
			owner := strings.TrimPrefix(filepath.Base(d), prefix+"-")
			if _, err := os.Stat(filepath.Join("/proc", owner)); errors.Is(err, os.ErrNotExist) {
				_ = removeTree(d) // processes that are still ending keep it until the next run
			}
		}
	}
	g := Group{tree: t, path: prefix + "-" + strconv.Itoa(pid)}
	return g, g.make()
}

func (t Tree) mounts() []string {
	if t.acct == "" {
		return []string{t.unified}
	}
	return []string{t.unified, t.acct}
}

// Child makes a group below g.
func (g Group) Child(name string) (Group, error) {
	c := Group{tree: g.tree, path: filepath.Join(g.path, name)}
	return c, c.make()
}

func (g Group) dirs() []string {
	dirs := g.tree.mounts()
	for i := range dirs {
		dirs[i] = filepath.Join(dirs[i], g.path)
	}
	return dirs
}

func (g Group) make() error {
	for _, d := range g.dirs() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// Unified is the group's cgroup v2 directory.
func (g Group) Unified() string { return filepath.Join(g.tree.unified, g.path) }

// Procs are the files a process writes its id to in order to join.
func (g Group) Procs() []string {
	var files []string
	for _, d := range g.dirs() {
		files = append(files, filepath.Join(d, "cgroup.procs"))
	}
	return files
}

// Join moves a process into the group.
func (g Group) Join(pid int) error {
	for _, f := range g.Procs() {
		if err := os.WriteFile(f, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Used is the CPU time that processes of the group have used, ended ones too.
func (g Group) Used() (time.Duration, error) {
	if g.tree.acct != "" {
		text, err := os.ReadFile(filepath.Join(g.tree.acct, g.path, "cpuacct.usage"))
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns), err
	}
	text, err := os.ReadFile(filepath.Join(g.Unified(), "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseStat(string(text))
}

func parseStat(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, errors.New("cpu.stat has no usage_usec")
}

// Remove removes the group and everything below it; its processes have to be gone. The kernel needs a moment to let
// go of the last one.
func (g Group) Remove() error {
	var err error
	for range 100 {
		err = nil
		for _, d := range g.dirs() {
			err = errors.Join(err, removeTree(d))
		}
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup: %w", err)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}
