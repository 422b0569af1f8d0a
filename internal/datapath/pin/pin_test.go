package pin

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestPrepareMountsOnce(t *testing.T) {
	nstest.Root(t)
	root := filepath.Join(t.TempDir(), "bpf")
	tree, mounted, err := Prepare(root)
	if err != nil || !mounted {
		t.Fatalf("mounted %v, %v", mounted, err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	if _, mounted, err := Prepare(root); err != nil || mounted {
		t.Errorf("second time: mounted %v, %v", mounted, err)
	}
	if st, err := os.Stat(tree.Links()); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("links directory: %v, %v", st, err)
	}
	if err := tree.Remove(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(root)
	left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".debug") }) // the kernel's own
	if err != nil || len(left) != 0 {
		t.Errorf("left behind %v, %v", left, err)
	}
}

func TestReadOnly(t *testing.T) {
	root := nstest.BPFFS(t, unix.MS_RDONLY)
	_, _, err := Prepare(root)
	if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), root+" is mounted read-only") {
		t.Errorf("error %v", err)
	}
}

func TestFullIsExplained(t *testing.T) {
	err := At("/sys/fs/bpf").Explain(&os.PathError{Op: "mkdir", Path: "x", Err: unix.ENOSPC})
	if !errors.Is(err, ErrUnusable) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "is full") {
		t.Errorf("error %v", err)
	}
	other := errors.New("other")
	if err := At("/sys/fs/bpf").Explain(other); !errors.Is(err, other) || errors.Is(err, ErrUnusable) {
		t.Errorf("error %v", err)
	}
}
