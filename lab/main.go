// Command lab runs a real Kubernetes cluster on one machine, in namespaces, with Strait as its network.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/strait-net/strait/lab/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root, err := cli.New()
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	var child *exec.ExitError
	if errors.As(err, &child) {
		os.Exit(child.ExitCode()) // the command that ran has said what is wrong
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}
