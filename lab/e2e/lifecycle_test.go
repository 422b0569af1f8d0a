package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/supervisor"
)

// A second lab beside the one under test, with the reference plugins, so that this tests the lab and nothing else: after a
// crash nothing runs, and after down nothing is left.
func TestLab_CrashAndDownLeaveNothing(t *testing.T) {
	other := &rig{lab: shared.lab, name: fmt.Sprintf("leak-%d", os.Getpid())}
	state := filepath.Join(filepath.Dir(statePath(t)), other.name)
	down := func() {
		t.Helper()
		if out, err := other.run(context.Background(), "down"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	t.Cleanup(down)
	before := leftovers(t, other.name)
	if len(before) > 0 {
		t.Fatalf("there already: %v", before)
	}
	up := func() {
		t.Helper()
		if out, err := other.run(t.Context(), "up", "--cni", "bridge", "--nodes", "1", "--ip", "ipv4"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	mounts := read(t, "/proc/self/mounts")

	up()
	if got := read(t, "/proc/self/mounts"); got != mounts {
		t.Errorf("a running lab shows in the machine's mounts:\n%s", got)
	}
	pid, err := supervisor.Alive(state)
	if err != nil || pid == 0 {
		t.Fatalf("supervisor: %d %v", pid, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil { // the crash
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func(context.Context) error {
		if running := processes(t, other.name); len(running) > 0 {
			return fmt.Errorf("still running: %s", strings.Join(running, "; "))
		}
		return nil
	})

	up() // over the remains of the crash
	down()
	eventually(t, 20*time.Second, func(context.Context) error {
		if left := leftovers(t, other.name); len(left) > 0 {
			return fmt.Errorf("left behind: %s", strings.Join(left, "; "))
		}
		return nil
	})
	if got := read(t, "/proc/self/mounts"); got != mounts {
		t.Errorf("mounts changed to\n%s", got)
	}
}

// OPS-2: a node that lost its power comes back with its pods, which reach and are reached.
func TestOPS2_NodeReboot(t *testing.T) {
	needStrait(t)
	reboot(t, &shared.nodes[len(shared.nodes)-1])
}

// reboot takes a node's power, if it has any, gives it back, and waits until its pods reach and are reached.
func reboot(t *testing.T, victim *nodeRig) {
	t.Helper()
	if _, err := shared.run(t.Context(), "node", "restart", victim.name); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		out, err := shared.inPod(ctx, shared.namespace, victim.server, "curl -sS --max-time 3 http://web/hostname")
		if err == nil && !strings.HasPrefix(out, "server-") {
			err = fmt.Errorf("the service answers %q", out)
		}
		return err
	})
	settle(t)
	if err := shared.readAddresses(t.Context()); err != nil { // a new sandbox may have a new address
		t.Fatal(err)
	}
	for _, a := range victim.pods {
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			_, err := shared.inPod(ctx, shared.namespace, shared.nodes[0].server, ask(a, serverPort))
			return err
		})
	}
}

func statePath(t *testing.T) string {
	t.Helper()
	path, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(path))
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// processes lists those whose command line or cgroup names the lab.
func processes(t *testing.T, lab string) []string {
	t.Helper()
	var found []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		// A process may end while it is looked at.
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		command := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if strings.Contains(command, "strait-lab/"+lab) || strings.Contains(string(cgroup), "strait-lab/"+lab) {
			found = append(found, filepath.Base(dir)+" "+command)
		}
	}
	return found
}

// leftovers lists processes, cgroups, files and network namespace mounts of a lab.
func leftovers(t *testing.T, lab string) []string {
	t.Helper()
	found := processes(t, lab)
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasSuffix(path, "/strait-lab/"+lab) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(statePath(t)), lab)); err == nil {
		found = append(found, "state directory")
	}
	return found
}
