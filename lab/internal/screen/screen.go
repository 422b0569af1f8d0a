// Package screen tells a person what is going on: one line per step with the time it took.
package screen

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Screen writes lines; it may be used by several goroutines.
type Screen struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
	live  bool // a terminal: the running step is shown and overwritten
}

// New starts the clock.
func New(out *os.File) *Screen {
	stat, err := out.Stat()
	return &Screen{out: out, start: time.Now(), live: err == nil && stat.Mode()&os.ModeCharDevice != 0}
}

// Step announces a step; call the result when it is over.
func (s *Screen) Step(title string) func(error) {
	begun := time.Now()
	s.mu.Lock()
	if s.live {
		fmt.Fprintf(s.out, "\r\x1b[K   %s ...", title)
	}
	s.mu.Unlock()
	return func(err error) { s.done(title, begun, err) }
}

// Done reports a step that somebody else timed from begun.
func (s *Screen) Done(title string, begun time.Time) { s.done(title, begun, nil) }

func (s *Screen) done(title string, begun time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	mark := "ok"
	if err != nil {
		mark = "!!"
	}
	fmt.Fprintf(s.out, "%s %-64s %6.1fs  at %5.1fs\n", mark, title, time.Since(begun).Seconds(), time.Since(s.start).Seconds())
}

// Note writes a line between steps.
func (s *Screen) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	fmt.Fprintf(s.out, format+"\n", args...)
}

// Run is a step around a function.
func (s *Screen) Run(title string, f func() error) error {
	done := s.Step(title)
	err := f()
	done(err)
	return err
}
