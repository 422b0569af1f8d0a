// Package namespace creates network namespaces that live only as long as this process holds them, and enters those of others.
package namespace

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Net is a network namespace kept alive by an open descriptor: no bind mount, so nothing is left when the holder dies.
type Net struct {
	Name string
	file *os.File
}

const threadNet = "/proc/thread-self/ns/net"

// NewNet makes an empty namespace.
func NewNet(name string) (*Net, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		// The thread is never unlocked: it belongs to the new namespace now, and the runtime ends it with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		file, err := os.Open(threadNet)
		made <- result{file, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, r.err)
	}
	return &Net{Name: name, file: r.file}, nil
}

// Fd is the descriptor of the namespace, for netlink calls that move a link into it.
func (n *Net) Fd() int { return int(n.file.Fd()) }

// Path names the namespace for other processes, given this process's number as they see it.
func (n *Net) Path(pid int) string { return fmt.Sprintf("/proc/%d/fd/%d", pid, n.file.Fd()) }

// Close lets the namespace go once no process is in it.
func (n *Net) Close() error { return n.file.Close() }

// Do calls f on a thread that is inside the namespace. Sockets made by f stay in the namespace.
func (n *Net) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- n.doLocked(f)
	}()
	return <-done
}

func (n *Net) doLocked(f func() error) error {
	home, err := os.Open(threadNet)
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	err = f()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread() // back home: the thread may be used again; otherwise it ends with the goroutine
	}
	return err
}

// Dial connects from inside the namespace.
func (n *Net) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() error {
		var err error
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// OpenNet opens a namespace that another process holds.
func OpenNet(name, path string) (*Net, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return &Net{Name: name, file: file}, nil
}

// RunInProcess runs a command in all namespaces of the process pid, as nsenter --all does.
func RunInProcess(pid int, cmd *exec.Cmd) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has left this process's mount namespace
		// setns into a mount namespace needs a thread with its own root and working directory.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		if err := unix.Setns(fd, all); err != nil {
			done <- fmt.Errorf("enter process %d: %w", pid, err)
			return
		}
		done <- cmd.Run()
	}()
	return <-done
}
