package cli

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/node"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/world"
)

// progressFd is where the inner commands find the pipe that their starter reads.
const progressFd = 3

func progress() *os.File {
	unix.CloseOnExec(progressFd) // or every child would keep the reader waiting
	return os.NewFile(progressFd, "progress")
}

func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "supervise STATE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			content, err := os.ReadFile(filepath.Join(args[0], supervisorConfig))
			if err != nil {
				return err
			}
			var config supervisor.Config
			if err := json.Unmarshal(content, &config); err != nil {
				return err
			}
			return supervisor.Run(config, progress())
		},
	}
}

func enterCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node-enter DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return node.Enter(args[0], []string{"lab", "node-init", args[0]})
		},
	}
}

func initCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node-init DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return node.Init(args[0], progress())
		},
	}
}

func webCommand() *cobra.Command {
	return &cobra.Command{
		Use: "outside-web", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return world.Serve() },
	}
}
