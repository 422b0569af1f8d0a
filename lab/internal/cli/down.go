package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/cgroup"
	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/supervisor"
)

func downCommand(p places, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop a lab and remove everything it left, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := screen.New(os.Stdout)
			pid, err := supervisor.Alive(p.state(*name))
			if err != nil {
				return err
			}
			if pid != 0 {
				if err := s.Run("processes and namespaces ended", func() error { return stop(cmd.Context(), pid) }); err != nil {
					return err
				}
			}
			return s.Run("state of lab "+*name+" removed", func() error { return sweep(p, *name) })
		},
	}
}

// stop kills the init of the lab's PID namespace and returns when it, and so everything in it, is gone.
func stop(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open supervisor %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill supervisor %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// sweep removes the files and cgroups of a lab that does not run.
func sweep(p places, lab string) error {
	state := p.state(lab)
	if pid, err := supervisor.Alive(state); err != nil || pid != 0 {
		return errors.Join(err, fmt.Errorf("lab %s is being started or runs (process %d): stop it with lab down first", lab, pid))
	}
	hierarchies, err := cgroup.Machine()
	if err != nil {
		return err
	}
	// The tree of the lab is found by its name: the configuration may not have been written.
	tree := supervisor.Tree(hierarchies, lab, "")
	return errors.Join(tree.Remove(), os.RemoveAll(state), removeEmpty(filepath.Dir(state)))
}

// removeEmpty drops the directory of all labs with the last of them.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
