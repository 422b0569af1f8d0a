package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv makes this test binary the init of a node: it enters the tree that the variable names.
const childEnv = "STRAIT_TEST_CGROUP_PATH"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := child(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child does what a node's init does and then makes a cgroup with limits, as a kubelet does for pods.
func child(path string) error {
	hierarchies, err := Machine()
	if err != nil {
		return err
	}
	tree := Tree{Hierarchies: hierarchies, Path: path}
	for _, step := range []func() error{tree.Enter, tree.EnterLeaf, tree.Delegate} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, h := range hierarchies {
		if !h.V2() {
			continue
		}
		pods := filepath.Join(h.Base, path, "kubepods")
		if err := os.Mkdir(pods, 0o755); err != nil {
			return err
		}
		if len(hierarchies) > 1 {
			continue // a hybrid machine has its controllers elsewhere
		}
		for file, value := range map[string]string{"memory.max": "100000000", "pids.max": "100", "cpu.max": "50000 100000"} {
			if err := os.WriteFile(filepath.Join(pods, file), []byte(value), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// On a pure v2 machine this proves that controllers reach pods; on others that the directories come and go.
func TestTreeLife(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	hierarchies, err := Machine()
	if err != nil {
		t.Skip(err)
	}
	tree := Tree{Hierarchies: hierarchies, Path: fmt.Sprintf("strait-lab/test-%d/node1", os.Getpid())}
	lab := Tree{Hierarchies: hierarchies, Path: filepath.Dir(tree.Path)}
	t.Cleanup(func() { _ = lab.Remove() })
	if err := tree.Create(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+tree.Path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := lab.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies {
		if _, err := os.Stat(filepath.Join(h.Base, lab.Path)); err == nil {
			t.Errorf("%s is left in %s", lab.Path, h.Base)
		}
	}
}

// Inside a container the visible v2 root holds processes, which is in the way of delegation.
func TestDelegateMovesProcessesAside(t *testing.T) {
	hierarchies, err := Machine()
	if os.Geteuid() != 0 || err != nil || len(hierarchies) != 1 {
		t.Skip("needs root on a pure v2 machine")
	}
	outer := Tree{Hierarchies: hierarchies, Path: fmt.Sprintf("strait-outer-%d", os.Getpid())}
	if err := outer.Create(); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("/bin/sleep", "60")
	dir, err := os.Open(filepath.Join(hierarchies[0].Base, outer.Path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	sleeper.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
		_ = outer.Remove()
	}()
	inner := Hierarchy{Mount: hierarchies[0].Mount, Base: dir.Name()} // as a container sees it
	if err := (Tree{Hierarchies: []Hierarchy{inner}, Path: "strait-lab/x/node1"}).Create(); err != nil {
		t.Fatal(err)
	}
	control, err := os.ReadFile(filepath.Join(dir.Name(), "strait-lab", "cgroup.subtree_control"))
	if err != nil || !strings.Contains(string(control), "memory") {
		t.Errorf("the inner tree hands on %q %v", control, err)
	}
}
