// Package process starts, restarts and reaps the children of a process that is the init of its PID namespace.
package process

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/namespace"
)

// Command says what to start.
type Command struct {
	Path string         // absolute path of the executable
	Args []string       // argv, including argv[0]
	Env  []string       // complete environment; nil inherits
	Log  string         // file that receives stdout and stderr, appended
	Net  *namespace.Net // network namespace to start in; nil for the caller's
	Off  string         // file; while it exists, Keep keeps the child stopped
	Sys  *syscall.SysProcAttr
	// Files are inherited as descriptor 3 and up; the caller keeps its copies.
	Files []*os.File
}

// Table owns every child of this process, adopted orphans included: nothing else in the process may call wait.
type Table struct {
	mu    sync.Mutex // held across fork and across each reap, so that a child is known before its death is read
	known map[int]*Process
}

// Process is one started child.
type Process struct {
	Pid int // in the caller's PID namespace
	// Fd is a pidfd: signals through it never reach a later process with the same number.
	Fd     *os.File
	done   chan struct{}
	status unix.WaitStatus
}

// NewTable starts to reap.
func NewTable() *Table {
	t := &Table{known: map[int]*Process{}}
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	go func() {
		for range deaths {
			t.reap()
		}
	}()
	return t
}

func (t *Table) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := t.known[pid]; p != nil {
			delete(t.known, pid)
			p.status = status
			close(p.done)
		}
	}
}

// Start starts one child.
func (t *Table) Start(c Command) (*Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := os.MkdirAll(filepath.Dir(c.Log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	fd := -1
	sys := &syscall.SysProcAttr{}
	if c.Sys != nil {
		clone := *c.Sys
		sys = &clone
	}
	sys.PidFD = &fd
	attr := &os.ProcAttr{Env: c.Env, Files: append([]*os.File{null, log, log}, c.Files...), Sys: sys}
	start := func() (*Process, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		child, err := os.StartProcess(c.Path, c.Args, attr)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", c.Path, err)
		}
		p := &Process{Pid: child.Pid, Fd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
		t.known[p.Pid] = p
		return p, child.Release()
	}
	if c.Net == nil {
		return start()
	}
	var p *Process
	err = c.Net.Do(func() error {
		var err error
		p, err = start()
		return err
	})
	return p, err
}

// Done is closed when the process is dead and reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is nil while the process runs or when it left with status 0.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	switch {
	case p.status.Signaled():
		return fmt.Errorf("killed by %s", p.status.Signal())
	case p.status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", p.status.ExitStatus())
	}
	return nil
}

// Kill sends SIGKILL and waits until the process, and with an init its whole namespace, is gone.
func (p *Process) Kill() {
	_ = unix.PidfdSendSignal(int(p.Fd.Fd()), unix.SIGKILL, nil, 0) // ESRCH: it is gone already
	<-p.done
}

// Run starts a child and waits for its end.
func (t *Table) Run(c Command) error {
	p, err := t.Start(c)
	if err != nil {
		return err
	}
	defer p.Fd.Close()
	<-p.Done()
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s: %w (see %s)", filepath.Base(c.Args[0]), err, c.Log)
	}
	return nil
}

// Keep starts a child and starts it again, a second later, whenever it ends, for as long as this process lives.
func (t *Table) Keep(c Command) error {
	p, err := t.Start(c)
	if err != nil {
		return err
	}
	go func() {
		for {
			p.waitFor(c.Off)
			p.Fd.Close()
			appendLine(c.Log, fmt.Sprintf("--- ended (%v), starting again\n", p.Err()))
			for {
				time.Sleep(time.Second)
				if exists(c.Off) {
					continue
				}
				if p, err = t.Start(c); err == nil {
					break
				}
				appendLine(c.Log, fmt.Sprintf("--- %v\n", err))
			}
		}
	}()
	return nil
}

// waitFor returns when the process has ended. It ends it when the file off appears.
func (p *Process) waitFor(off string) {
	if off == "" {
		<-p.Done()
		return
	}
	for {
		select {
		case <-p.Done():
			return
		case <-time.After(200 * time.Millisecond):
			if exists(off) {
				p.Kill()
			}
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return file != "" && err == nil
}

// appendLine drops its own errors: the log is where they would be reported.
func appendLine(path, line string) {
	if f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		_, _ = f.WriteString(line)
		f.Close()
	}
}
