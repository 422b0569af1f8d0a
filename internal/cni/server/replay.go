package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/state"
)

func (s *Server) replayLoop(ctx context.Context) {
	t := time.NewTicker(s.cfg.ReplayEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.replay(ctx)
		}
	}
}

// replay does the DELs that were queued while there was no agent. One that fails stays queued and is a problem.
func (s *Server) replay(ctx context.Context) {
	names, err := s.queue.Names()
	s.report("queued deletes", err)
	if len(names) == 0 {
		return
	}
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	// In parallel, because a device takes the kernel 20 ms to remove, and a sweep of the connection table is shared.
	var work sync.WaitGroup
	slots := make(chan struct{}, replayParallel)
	for _, name := range names {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			err := s.replayOne(ctx, name)
			s.report("queued delete "+name, err)
			if err != nil {
				s.cfg.Log.Error("queued delete", "file", name, "error", err)
			}
		})
	}
	work.Wait()
}

const replayParallel = 16

// problemSource is the owner of the server's rows in the table of problems.
const problemSource = "cni"

// report notes what is wrong with the subject, or with nil that nothing is.
func (s *Server) report(subject string, err error) {
	if err == nil {
		state.Clear(s.cfg.Problems, problemSource, subject)
		return
	}
	state.Raise(s.cfg.Problems, state.Problem{Source: problemSource, Subject: subject, Text: err.Error()}, time.Now())
}

func (s *Server) replayOne(ctx context.Context, name string) error {
	req, err := s.queue.Get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // done by a DEL that came in between
	}
	var a wire.Attachment
	if err == nil {
		a, err = queued(req, name)
	}
	if err != nil {
		to, aside := s.queue.SetAside(name)
		if aside != nil {
			return errors.Join(err, aside)
		}
		return fmt.Errorf("%w; kept as %s", err, to)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	defer cancel()
	if err := s.cfg.Endpoints.Del(ctx, a); err != nil {
		return fmt.Errorf("do queued delete of %s: %w", a.Key(), err)
	}
	s.cfg.Log.Info("did queued delete", "container", a.ContainerID, "interface", a.IfName)
	return s.queue.Remove(name)
}

// queued checks a request from the queue like one from the socket.
func queued(req wire.Request, name string) (wire.Attachment, error) {
	if req.Command != wire.Del {
		return wire.Attachment{}, fmt.Errorf("queued delete %s has the command %q", name, req.Command)
	}
	conf, err := wire.ParseConfig(req.Config)
	if err != nil {
		return wire.Attachment{}, fmt.Errorf("queued delete %s: %w", name, err)
	}
	a, err := req.Attachment(conf.Name)
	if err != nil {
		return a, fmt.Errorf("queued delete %s: %w", name, err)
	}
	if a.FileName() != name {
		return a, fmt.Errorf("queued delete %s is about %s", name, a.Key())
	}
	return a, nil
}
