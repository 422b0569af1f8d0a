package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Answer makes a namespace of the node answer TCP connections with one byte, the low byte of the port.
type Answer struct {
	Pod   string // empty: the node itself
	Ports []int
}

// Watch connects until every target has answered.
type Watch struct {
	Pod      string // client's namespace; empty: the node itself
	Targets  []netip.AddrPort
	Want     byte          // the answer that counts; 0: any
	Every    time.Duration // pause between attempts
	Patience time.Duration // for one attempt
	Timeout  time.Duration // for all
	Unless   string        // file of the node that ends the watch when it appears
}

// Moment is a reading of the machine's monotonic clock, which all its processes share.
type Moment int64

// Now reads the clock.
func Now() Moment {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for unknown clocks only
	return Moment(t.Nano())
}

// Sub is the time from n to m.
func (m Moment) Sub(n Moment) time.Duration { return time.Duration(m - n) }

// in runs fn on a thread inside the network of a pod.
func in(pod string, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends here when it changed its namespace
		if pod == "" {
			defer runtime.UnlockOSThread()
			done <- fn()
			return
		}
		done <- inPod(pod, fn)
	}()
	return <-done
}

func inPod(pod string, fn func() error) error {
	handle, err := netns.GetFromPath(filepath.Join(netnsDir, pod))
	if err != nil {
		return fmt.Errorf("open network of pod %s: %w", pod, err)
	}
	if err := errors.Join(netns.Set(handle), handle.Close()); err != nil {
		return fmt.Errorf("enter network of pod %s: %w", pod, err)
	}
	return fn()
}

// Answer starts the listeners; they live as long as the node.
func (*service) Answer(a Answer, _ *Nothing) error {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	for _, port := range a.Ports {
		var l net.Listener
		err := in(a.Pod, func() (err error) {
			l, err = c.Listen(context.Background(), "tcp4", "0.0.0.0:"+strconv.Itoa(port))
			return err
		})
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		go answer(l, byte(port))
	}
	return nil
}

func answer(l net.Listener, with byte) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, _ = conn.Write([]byte{with})
			_, _ = conn.Read(make([]byte, 1)) // the client ends the conversation
		}()
	}
}

// Watch returns the moment at which the last target answered for the first time.
func (*service) Watch(w Watch, reached *Moment) error {
	return in(w.Pod, func() error {
		end := time.Now().Add(w.Timeout)
		for _, to := range w.Targets {
			for {
				got, err := attempt(to, w.Patience)
				if err == nil && (w.Want == 0 || w.Want == got) {
					break
				}
				if w.Unless != "" {
					if _, gone := os.Stat(w.Unless); gone == nil {
						return fmt.Errorf("connect to %s: %w", to, errEnded)
					}
				}
				if time.Now().After(end) {
					if err == nil {
						err = fmt.Errorf("answer %d instead of %d", got, w.Want)
					}
					return fmt.Errorf("connect to %s, for %s: %w", to, w.Timeout, err)
				}
				time.Sleep(w.Every)
			}
		}
		*reached = Now()
		return nil
	})
}

// attempt connects and reads the byte. It resets the connection, so that no connection table keeps it for long.
func attempt(to netip.AddrPort, patience time.Duration) (byte, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	if err != nil {
		return 0, fmt.Errorf("set up socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		return 0, err
	}
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	if err == nil && n != 1 {
		err = errClosed
	}
	return b[0], err
}

var errEnded = errors.New("ended by the rig")

var errClosed = errors.New("closed without an answer")

// Signal is a signal to a process of the node, in the node's numbering.
type Signal struct {
	Pid    int
	Signal unix.Signal
}

// Signal sends it.
func (*service) Signal(s Signal, _ *Nothing) error { return unix.Kill(s.Pid, s.Signal) }

// Answer makes a namespace of the node answer connections.
func (n *Node) Answer(a Answer) error { return n.call("Answer", a, &Nothing{}) }

// Watch waits until every target answers.
func (n *Node) Watch(w Watch) (Moment, error) {
	var reached Moment
	err := n.call("Watch", w, &reached)
	return reached, err
}

// Signal sends a signal to a process of the node.
func (n *Node) Signal(pid int, s unix.Signal) error {
	return n.call("Signal", Signal{Pid: pid, Signal: s}, &Nothing{})
}
