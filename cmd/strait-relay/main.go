// Command strait-relay serves the flows of all nodes in one stream, to Hubble's clients.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/relay"
)

var version = "dev" // set by the linker

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "strait-relay:", err)
		os.Exit(1)
	}
}

func run() error {
	path := flag.String("config", "/etc/strait/config.yaml", "configuration file")
	show := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *show {
		fmt.Println("strait-relay", version)
		return nil
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return err
	}
	host, _ := os.Hostname()
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log.Info("strait-relay starts", "version", version, "peer", cfg.Relay.Peer)
	err = relay.Run(ctx, relay.Config{Relay: cfg.Relay, Name: host, Version: version, Log: log})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}
