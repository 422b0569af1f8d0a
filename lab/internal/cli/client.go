package cli

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/lab/internal/build"
	"github.com/strait-net/strait/lab/internal/supervisor"
)

func clientCommand(p places, name *string) *cobra.Command {
	var where bool
	var names []string
	for _, c := range build.Clients() {
		names = append(names, c.Name)
	}
	c := &cobra.Command{
		Use: "client NAME [-- ARGUMENTS...]", Short: "Run a client made by others: " + strings.Join(names, " or ") + "; hubble asks the relay, by a forwarded port",
		Args: cobra.MinimumNArgs(1), ValidArgs: names,
		Example: "  lab client hubble -- observe --follow --verdict DROPPED",
		RunE: func(cmd *cobra.Command, args []string) error {
			i := slices.Index(names, args[0])
			if i < 0 {
				return fmt.Errorf("no client %q; there are %s", args[0], strings.Join(names, ", "))
			}
			file, err := p.program(cmd.Context(), build.Clients()[i])
			if err != nil {
				return err
			}
			if where {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), file)
				return err
			}
			if _, _, err := p.running(cmd.Context(), *name); err != nil {
				return err
			}
			child := exec.Command(file, args[1:]...)
			child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
			child.Env = append(os.Environ(), "HUBBLE_KUBECONFIG="+supervisor.Kubeconfig(p.state(*name)), "HUBBLE_KUBE_NAMESPACE="+release().Namespace)
			if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--server") }) {
				child.Env = append(child.Env, "HUBBLE_PORT_FORWARD=true", "HUBBLE_PORT_FORWARD_PORT=0")
			}
			return child.Run()
		},
	}
	c.Flags().BoolVar(&where, "where", false, "only build it and print where it is")
	return c
}
