// Package pin owns the directory tree on the bpf file system that keeps maps and links alive while no agent runs.
package pin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// layout is the version of everything below: a change of a map's shape that programs cannot share is a new directory.
const layout = "strait/v1"

// ErrUnusable is matched by errors that say why nothing can be pinned: no bpf file system, read-only, or full.
var ErrUnusable = errors.New("bpf file system unusable")

// Tree is the directory tree of one agent. The zero value is not valid.
type Tree struct{ root string }

// At returns the tree below a bpffs mount, which need not exist; it is for readers.
func At(bpfRoot string) Tree { return Tree{root: filepath.Join(bpfRoot, layout)} }

// Prepare mounts a bpf file system at bpfRoot if there is none (and says so), makes the directories and proves that they can be
// written.
func Prepare(bpfRoot string) (t Tree, mounted bool, err error) {
	mounted, err = ensureMount(bpfRoot)
	if err != nil {
		return Tree{}, false, err
	}
	t = At(bpfRoot)
	for _, dir := range []string{t.Maps(), t.Links()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return Tree{}, mounted, explain(bpfRoot, err)
		}
	}
	probe, err := os.MkdirTemp(t.root, "probe")
	if err == nil {
		err = os.Remove(probe)
	}
	if err != nil {
		return Tree{}, mounted, explain(bpfRoot, err)
	}
	return t, mounted, nil
}

// Maps is the directory of pinned maps, each under its name.
func (t Tree) Maps() string { return filepath.Join(t.root, "maps") }

// Next is the directory of maps that are to take the place of pinned ones, each under its name. It exists only meanwhile.
func (t Tree) Next() string { return filepath.Join(t.root, "next") }

// Links is the directory of pinned links, each <program>-<device> or <program>-cgroup.
func (t Tree) Links() string { return filepath.Join(t.root, "links") }

// Remove deletes the whole tree: what no process holds open is then gone from the kernel.
func (t Tree) Remove() error {
	if err := os.RemoveAll(t.root); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	// The directory above holds other layouts, if any.
	if err := os.Remove(filepath.Dir(t.root)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

func ensureMount(root string) (mounted bool, err error) {
	var st unix.Statfs_t
	err = unix.Statfs(root, &st)
	if err == nil && st.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("look at %s: %w", root, err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return false, explain(root, err)
	}
	if err := unix.Mount("bpf", root, "bpf", 0, "mode=0700"); err != nil {
		return false, fmt.Errorf("%w: mount it at %s: %w", ErrUnusable, root, err)
	}
	return true, nil
}

// explain gives the errors of a full or read-only file system the words to look for.
func explain(root string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %s is mounted read-only: %w", ErrUnusable, root, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %s is full: %w", ErrUnusable, root, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: no permission to write to %s: %w", ErrUnusable, root, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnusable, root, err)
}

// Explain adds to the error of a pin what is wrong with the file system, if that is the cause.
func (t Tree) Explain(err error) error {
	for _, cause := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, cause) {
			return explain(t.root, err)
		}
	}
	return err
}
