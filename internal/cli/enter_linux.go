package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) enterCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enter POD [-- COMMAND [ARG...]]",
		Short: "Run a program of this node in the network namespace of a pod",
		Long: `Runs a program of this node (a shell without COMMAND) where a pod's network is: its addresses, routes and sockets, but the node's files and
processes. The pod's image needs no tools for it. POD is [NAMESPACE/]NAME, default namespace "default".

Its exit code is that of the program.`,
		Example: `  sudo strait enter shop/web-1 -- ip addr
  sudo strait enter shop/web-1 -- tcpdump -ni eth0 port 80
  sudo strait enter shop/web-1 -- ss -tnl`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch at := cmd.ArgsLenAtDash(); {
			case len(args) == 0 || at == 0:
				return errors.New("POD is missing")
			case at < 0 && len(args) > 1 || at > 1:
				return fmt.Errorf("unexpected argument %q: the program comes after --", args[1])
			case at == 1 && len(args) == 1:
				return errors.New("COMMAND is missing after --")
			}
			return nil
		},
		ValidArgsFunction: a.completeLocalPod,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.enter(cmd.Context(), args[0], args[1:]) },
	}
	return cmd
}

func (a *app) enter(ctx context.Context, pod string, command []string) error {
	client, err := a.local(ctx)
	if err != nil {
		return err
	}
	if client == nil {
		node, err := a.nodeOfPod(ctx, pod)
		if err != nil {
			return err
		}
		return usage("enter runs a program of the pod's node: type it on node %s", node)
	}
	end, err := localEndpoint(ctx, client, pod)
	if err != nil {
		return a.localError(err)
	}
	if len(command) == 0 {
		shell := a.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		command = []string{shell}
	}
	return runIn(ctx, end.NetNS, command)
}

// runIn runs a program in a network namespace, with the terminal of this one.
func runIn(ctx context.Context, netns string, command []string) error {
	err := inNamespace(netns, func() error { // a child is made by the thread that has entered
		child := exec.CommandContext(ctx, command[0], command[1:]...)
		child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
		child.Cancel = func() error { return child.Process.Signal(os.Interrupt) } // the terminal has told it as well
		return child.Run()
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &exitError{code: max(exit.ExitCode(), 1)}
	}
	return err
}

// inNamespace runs fn on a thread inside the network namespace at a path.
func inNamespace(netns string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", netns, err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", netns, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// completeLocalPod offers the pods of this node.
func (a *app) completeLocalPod(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	a.timeout = completionLimit
	client, err := a.local(cmd.Context())
	if err != nil || client == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ends, err := client.Endpoints(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, e := range ends {
		out = append(out, endpointName(e))
	}
	slices.Sort(out)
	return out, cobra.ShellCompDirectiveNoFileComp
}
