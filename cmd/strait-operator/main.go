// Command strait-operator gives nodes their pod CIDRs; of several replicas one is active.
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
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/operator"
)

var version = "dev" // set by the linker

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "strait-operator:", err)
		os.Exit(1)
	}
}

func run() error {
	path := flag.String("config", "/etc/strait/config.yaml", "configuration file")
	namespace := flag.String("namespace", "kube-system", "namespace of the election's Lease")
	host, _ := os.Hostname()
	identity := flag.String("identity", fmt.Sprintf("%s-%d", host, os.Getpid()), "name of this replica, unique among all")
	show := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *show {
		fmt.Println("strait-operator", version)
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
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	kube.RouteLogs(log)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log.Info("strait-operator starts", "version", version, "identity", *identity, "ipam", string(cfg.IPAM.Mode))
	err = operator.Run(ctx, operator.Config{
		Config: cfg, Namespace: *namespace, Identity: *identity, Version: version, Log: log,
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}
