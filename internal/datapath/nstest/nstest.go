// Package nstest runs the tests of a package as root in network and mount namespaces of their own, so that nothing can leak.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const childEnv = "STRAIT_NSTEST_CHILD"

// Main is called by TestMain. As root it runs the test binary again inside fresh namespaces; the outcome is the same. Otherwise
// tests run where they are and those that call Root skip.
func Main(m *testing.M) {
	switch {
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(childEnv) == "":
		os.Exit(again())
	}
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "set up test namespace:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// again runs this binary in new namespaces; they end with it, so every device, route, mount and pin in them does, too.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintln(os.Stderr, "run tests in a namespace:", err)
	return 1
}

func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// Root skips the test unless it runs inside the namespaces of Main.
func Root(t testing.TB) {
	t.Helper()
	if os.Getenv(childEnv) == "" {
		t.Skip("needs root: makes network namespaces")
	}
}

// BPFFS mounts a bpf file system and returns its path.
func BPFFS(t testing.TB, flags uintptr) string {
	t.Helper()
	Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", flags, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// NetNS makes a network namespace and returns its path.
func NetNS(t testing.TB) string {
	t.Helper()
	Root(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount namespace: %v", err)
		}
	})
	return path
}

// In runs fn on a thread inside the namespace; an empty path is a fresh namespace that ends with fn. fn must not start
// goroutines that expect to be inside.
func In(t testing.TB, path string, fn func()) {
	t.Helper()
	Root(t)
	err := onThread(func() error {
		if path == "" {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
		} else {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			err = netns.Set(ns)
			if err := errors.Join(err, ns.Close()); err != nil {
				return err
			}
		}
		fn()
		return nil
	})
	if err != nil {
		t.Fatalf("enter network namespace %s: %v", path, err)
	}
}

// onThread runs fn on an OS thread that ends afterwards, because its namespaces are no longer those of the process.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("test ended early")
		defer func() { done <- err }() // also after t.FailNow
		err = fn()
	}()
	return <-done
}
