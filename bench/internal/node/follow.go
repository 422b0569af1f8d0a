package node

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Followed is what a client that follows flows has printed.
type Followed struct {
	Flows  uint64
	Missed uint64        // flows that were overwritten before it could read them
	Lost   uint64        // records that the kernel had no room for
	Gaps   uint64        // places at which the kernel had none
	CPU    time.Duration // once it has ended
}

// follower is a client that runs.
type follower struct {
	cmd  *exec.Cmd
	out  io.Reader
	done chan error // what counting has ended with; then closed

	mu   sync.Mutex // guards what follows
	seen Followed
}

// Follow starts a client that prints flows as lines of JSON, and counts them. One runs at a time.
func (s *service) Follow(c Command, _ *Nothing) error {
	if s.follower != nil {
		return errors.New("a client follows flows already")
	}
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	f := &follower{cmd: cmd, out: out, done: make(chan error, 1)}
	go func() {
		f.done <- f.count()
		close(f.done)
	}()
	s.follower = f
	return nil
}

// count counts until the client ends.
func (f *follower) count() error {
	lines := bufio.NewReaderSize(f.out, 1<<20)
	var failed error
	for line, ended := lines.ReadBytes('\n'); ended == nil && failed == nil; line, ended = lines.ReadBytes('\n') {
		f.mu.Lock()
		failed = f.seen.add(line)
		f.mu.Unlock()
	}
	return failed
}

func (f *follower) counted() Followed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// add counts a line.
func (f *Followed) add(line []byte) error {
	if bytes.HasPrefix(line, []byte(`{"flow":`)) {
		f.Flows++
		return nil
	}
	var gap struct {
		Lost *struct {
			Source string `json:"source"`
			N      uint64 `json:"num_events_lost,string"`
		} `json:"lost_events"`
	}
	if err := json.Unmarshal(line, &gap); err != nil || gap.Lost == nil {
		return fmt.Errorf("a client printed %q, want a flow or a gap: %w", strings.TrimSpace(string(line)), err)
	}
	if gap.Lost.Source == "PERF_EVENT_RING_BUFFER" {
		f.Lost, f.Gaps = f.Lost+gap.Lost.N, f.Gaps+1
		return nil
	}
	f.Missed += gap.Lost.N
	return nil
}

// Followed says what the client has printed until now.
func (s *service) Followed(_ Nothing, out *Followed) error {
	f := s.follower
	if f == nil {
		return errNobodyFollows
	}
	select {
	case err := <-f.done:
		return errors.Join(errors.New("the client has ended"), err)
	default:
	}
	*out = f.counted()
	return nil
}

// Unfollow ends the client and says what it has printed and used.
func (s *service) Unfollow(_ Nothing, out *Followed) error {
	f := s.follower
	if f == nil {
		return errNobodyFollows
	}
	s.follower = nil
	_ = f.cmd.Process.Kill()
	err := <-f.done // before Wait, which closes the pipe
	_ = f.cmd.Wait()
	*out = f.counted()
	out.CPU = f.cmd.ProcessState.UserTime() + f.cmd.ProcessState.SystemTime()
	return err
}

var errNobodyFollows = errors.New("no client follows flows")

// Timed is how a command went.
type Timed struct {
	Output string
	Code   int // exit code
	Took   time.Duration
}

// Timed runs a command to its end; that it fails is no error.
func (*service) Timed(c Command, out *Timed) error {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	begin := time.Now()
	text, err := cmd.CombinedOutput()
	*out = Timed{Output: string(text), Took: time.Since(begin)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		out.Code, err = exit.ExitCode(), nil
	}
	return err
}

// Follow starts a client that prints flows.
func (n *Node) Follow(argv ...string) error { return n.call("Follow", Command{Argv: argv}, &Nothing{}) }

// Followed says what the client has printed until now.
func (n *Node) Followed() (out Followed, err error) {
	err = n.call("Followed", Nothing{}, &out)
	return out, err
}

// Unfollow ends the client.
func (n *Node) Unfollow() (out Followed, err error) {
	err = n.call("Unfollow", Nothing{}, &out)
	return out, err
}

// Timed runs a command to its end.
func (n *Node) Timed(argv ...string) (out Timed, err error) {
	err = n.call("Timed", Command{Argv: argv}, &out)
	return out, err
}
