package rr

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/strait-net/strait/bench/internal/wire"
)

// run executes the work on one locked thread. It never moves that thread between namespaces without moving it back.
func (s *Spawner) run(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case <-ctx.Done():
			return
		case fn := <-s.work:
			fn()
		}
	}
}

// Start starts a command inside a namespace.
func (s *Spawner) Start(space *wire.Namespace, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	s.work <- func() {
		done <- space.Visit(cmd.Start)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return nil
}
