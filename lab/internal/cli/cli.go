// Package cli is the lab command.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/lab/internal/wire"
)

// places are the directories of the machine that the command uses.
type places struct {
	source string // the repository
	cache  string // binaries and images; may be deleted at any time
	labs   string // state of the labs
}

func findPlaces() (places, error) {
	var p places
	cache, err := os.UserCacheDir()
	if err != nil {
		return p, err
	}
	p.cache = or(os.Getenv("STRAIT_CACHE"), filepath.Join(cache, "strait"))
	p.labs = or(os.Getenv("STRAIT_LAB_DIR"), "/var/lib/strait-lab")
	p.source = os.Getenv("STRAIT_SOURCE")
	if p.source != "" {
		return p, nil
	}
	self, err := os.Executable()
	if err != nil {
		return p, err
	}
	p.source = filepath.Dir(filepath.Dir(self)) // bin/lab of the repository
	return p, nil
}

func or(first, second string) string {
	if first != "" {
		return first
	}
	return second
}

func (p places) state(lab string) string { return filepath.Join(p.labs, lab) }

// running asks the supervisor of a lab.
func (p places) running(ctx context.Context, lab string) (wire.Client, wire.State, error) {
	client := wire.NewClient(p.state(lab))
	state, err := client.State(ctx)
	if err != nil {
		return client, state, fmt.Errorf("lab %q does not run; start it with: lab up --name %s", lab, lab)
	}
	return client, state, nil
}

var errNotRoot = errors.New("a lab makes namespaces and mounts: run as root")

// New builds the command tree.
func New() (*cobra.Command, error) {
	p, err := findPlaces()
	if err != nil {
		return nil, err
	}
	root := &cobra.Command{
		Use:           "lab",
		Short:         "A real Kubernetes cluster on one machine, with Strait as its network",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if os.Geteuid() != 0 {
				return errNotRoot
			}
			return nil
		},
	}
	name := root.PersistentFlags().String("name", or(os.Getenv("STRAIT_LAB"), "default"), "which lab; labs with different names run side by side")
	root.AddCommand(
		upCommand(p, name), downCommand(p, name), listCommand(p), statusCommand(p, name), nodeCommand(p, name),
		shellCommand(p, name), kubeconfigCommand(p, name), kubectlCommand(p, name), logsCommand(p, name),
		installCommand(p, name), imageCommand(p), buildCommand(p), suiteCommand(p, name), clientCommand(p, name),
		superviseCommand(), enterCommand(), initCommand(), webCommand(),
	)
	return root, nil
}
