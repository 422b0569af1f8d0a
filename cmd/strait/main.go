// Command strait is what a person types to see and check the network.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/term"
	"k8s.io/klog/v2"

	"github.com/strait-net/strait/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	klog.SetLogger(logr.Discard()) // client-go's own words would stand between ours
	env := cli.Env{Version: version, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now}
	if out := int(os.Stdout.Fd()); term.IsTerminal(out) {
		if width, _, err := term.GetSize(out); err == nil {
			env.Width = width
		}
		env.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	code := cli.Run(ctx, env, os.Args[1:])
	stop()
	os.Exit(code)
}
