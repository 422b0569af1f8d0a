// Command strait-agent gives the pods of its node their network.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/strait-net/strait/internal/agent"
)

var version = "dev" // set by the linker

func main() {
	hostname, _ := os.Hostname()
	c := agent.Config{Version: version}
	flag.StringVar(&c.File, "config", "/etc/strait/config.yaml", "configuration `file`")
	flag.StringVar(&c.Node, "node-name", hostname, "`name` of this node in Kubernetes")
	flag.StringVar(&c.Source, "source", "kubernetes", "where intent comes from: kubernetes, or static:`DIR` with YAML files")
	flag.StringVar(&c.Plugin, "plugin", "", "strait-cni `binary` to install (default: next to this program)")
	printVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *printVersion {
		fmt.Println(version)
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "strait-agent: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := agent.Run(ctx, c); err != nil {
		fmt.Fprintf(os.Stderr, "strait-agent: %v\n", err)
		os.Exit(1)
	}
}
