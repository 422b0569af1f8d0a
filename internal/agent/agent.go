// Package agent composes strait-agent: it opens what the node has, starts every loop, and is ready when the kernel holds what
// Kubernetes wants.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/localapi"
)

// Config is what the command line says.
type Config struct {
	File    string // configuration file
	Node    string // name of the node in Kubernetes
	Source  string // "kubernetes" or "static:DIR"
	Plugin  string // strait-cni binary to install; empty: next to this program
	Version string
}

// Run is the life of the agent. It ends with ctx, or with the error of whatever cannot go on. The kernel keeps forwarding with
// what it has in either case.
func Run(ctx context.Context, c Config) error {
	cfg, err := config.Load(c.File)
	if err != nil {
		return fail(config.Default().RunDir, err)
	}
	log, err := newLogger(cfg.LogLevel)
	if err != nil {
		return fail(cfg.RunDir, err)
	}
	lock, err := lockNode(cfg.RunDir)
	if err != nil {
		return err // the failure file is the running agent's
	}
	defer func() { _ = lock.Close() }()
	if c.Node == "" {
		return fail(cfg.RunDir, errors.New("node name \"\": set --node-name to the name of this node in Kubernetes"))
	}
	if c.Plugin == "" {
		self, err := os.Executable()
		if err != nil {
			return fail(cfg.RunDir, fmt.Errorf("find strait-cni next to this program: %w", err))
		}
		c.Plugin = filepath.Join(filepath.Dir(self), "strait-cni")
	}
	log.Info("agent starts", "version", c.Version, "node", c.Node, "source", c.Source, "mode", cfg.RoutingMode, "network", cfg.Network)
	node, err := openNode(c.Node, cfg, log)
	if err != nil {
		return fail(cfg.RunDir, err)
	}
	defer node.close()
	a := &agent{Config: c, node: node, began: time.Now(), rehearsed: make(chan struct{})}
	err = a.run(ctx)
	if ctx.Err() != nil {
		log.Info("agent ends; the kernel keeps forwarding")
		return nil
	}
	return fail(cfg.RunDir, err)
}

// fail leaves the reason where `strait status` finds it when no agent answers.
func fail(runDir string, err error) error {
	if err == nil {
		return nil
	}
	if writeErr := localapi.WriteFailure(runDir, err); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	return err
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("logLevel %q: want debug, info, warn or error", level)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
	kube.RouteLogs(log)
	return log, nil
}

// newSource returns where intent comes from, and the client of the API server if that is it.
func (a *agent) newSource() (kube.Source, *kube.Client, error) {
	tables := kube.TablesOf(a.state)
	tables.Cluster = a.cfg.ClusterName
	var err error
	if tables.Memory, err = kube.OpenPolicyMemory(filepath.Join(a.cfg.StateDir, "refused-policies.json")); err != nil {
		a.report("policies", err)
	}
	if dir, ok := strings.CutPrefix(a.Source, "static:"); ok {
		return kube.NewDirectory(dir, tables, a.log), nil, nil
	}
	if a.Source != "kubernetes" {
		return nil, nil, fmt.Errorf("source %q: want kubernetes or static:DIR", a.Source)
	}
	client, err := kube.NewClient(a.cfg.API, "strait-agent/"+a.Version)
	if err != nil {
		return nil, nil, err
	}
	return kube.NewAPIServer(client, tables, a.log), client, nil
}
