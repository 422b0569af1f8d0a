// Package toolbox builds what a run needs, the peers at their pinned versions and Strait from the tree, into a cache.
package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/rr"
)

// The peers' versions.
const (
	PluginsVersion = "v1.9.1"
	FlannelVersion = "v0.28.4" // required by flanneld/go.mod
	// KubernetesVersion is required by lab/kube/go.mod.
	KubernetesVersion = "v1.36.3"
)

// Box is a directory of built programs.
type Box struct {
	Dir  string // cache
	Repo string // root of the repository
	Bin  string // directory with strait-agent, strait-cni and strait that Strait leaves alone; empty: built from the tree
	Say  func(format string, args ...any)

	kubernetes string // found once
}

// New opens the cache; dir empty means strait-bench in the user's cache directory.
func New(dir, repo string, say func(string, ...any)) (*Box, error) {
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = "/var/cache"
		}
		dir = filepath.Join(base, "strait-bench")
	}
	b := &Box{Dir: dir, Repo: repo, Say: say}
	return b, os.MkdirAll(b.Plugins(), 0o755)
}

// Plugins is the directory with the CNI plugins of the peers.
func (b *Box) Plugins() string { return filepath.Join(b.Dir, "cni-plugins-"+PluginsVersion) }

// Flanneld is flannel with leases in a directory.
func (b *Box) Flanneld() string { return filepath.Join(b.Dir, "flanneld-"+FlannelVersion) }

// StraitBin is where Strait's programs are; they are rebuilt each time, which the Go build cache makes cheap.
func (b *Box) StraitBin() string {
	if b.Bin != "" {
		return b.Bin
	}
	return filepath.Join(b.Dir, "strait")
}

// RR builds the load program.
func (b *Box) RR(ctx context.Context) (rr.Program, error) {
	sum := sha256.Sum256(rr.Source())
	path := filepath.Join(b.Dir, "rr-"+hex.EncodeToString(sum[:6]))
	if exists(path) {
		return rr.Open(path), nil
	}
	b.Say("compiling the load program")
	return rr.Open(path), rr.Build(ctx, path)
}

// Peers builds the CNI plugins and flannel.
func (b *Box) Peers(ctx context.Context) error {
	const module = "github.com/containernetworking/plugins/plugins/"
	var missing []string
	for _, p := range []string{"main/bridge", "main/ptp", "ipam/host-local", "main/loopback"} {
		if !exists(filepath.Join(b.Plugins(), filepath.Base(p))) {
			missing = append(missing, module+p+"@"+PluginsVersion)
		}
	}
	if len(missing) > 0 {
		b.Say("building CNI plugins %s", PluginsVersion)
		if err := b.run(ctx, b.Dir, []string{"GOBIN=" + b.Plugins()}, append([]string{"go", "install", "-trimpath", "-ldflags=-s -w"}, missing...)); err != nil {
			return fmt.Errorf("build CNI plugins: %w", err)
		}
	}
	// The command is ours, so it is rebuilt when its source changes; the Go build cache decides.
	b.Say("building flannel %s", FlannelVersion)
	if err := b.run(ctx, filepath.Join(b.Repo, "bench", "flanneld"), nil, []string{"go", "build", "-trimpath", "-o", b.Flanneld(), "."}); err != nil {
		return fmt.Errorf("build flannel: %w", err)
	}
	return nil
}

// Strait builds the agent, the plugin and the command from the tree.
func (b *Box) Strait(ctx context.Context) error {
	if b.Bin != "" {
		return nil
	}
	b.Say("building Strait from the tree")
	if err := os.MkdirAll(b.StraitBin(), 0o755); err != nil {
		return err
	}
	args := []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.StraitBin() + "/", "./cmd/strait-agent", "./cmd/strait-cni", "./cmd/strait"}
	if err := b.run(ctx, b.Repo, nil, args); err != nil {
		return fmt.Errorf("build strait-agent, strait-cni and strait: %w", err)
	}
	return nil
}

// Kubernetes is the directory with etcd, kube-apiserver and kube-proxy: those of the lab, which keeps them in a cache of its own.
func (b *Box) Kubernetes(ctx context.Context) (string, error) {
	if b.kubernetes != "" {
		return b.kubernetes, nil
	}
	cache := os.Getenv("STRAIT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(base, "strait")
	}
	set := newestSet(cache)
	if set == "" {
		b.Say("building Kubernetes %s (once, about ten minutes)", KubernetesVersion)
		if err := b.run(ctx, filepath.Join(b.Repo, "lab"), nil, []string{"go", "run", ".", "build"}); err != nil {
			return "", fmt.Errorf("build Kubernetes: %w", err)
		}
		if set = newestSet(cache); set == "" {
			return "", fmt.Errorf("no kube-apiserver, etcd and kube-proxy under %s/sets", cache)
		}
	}
	b.kubernetes = set
	return set, nil
}

// newestSet is the last made set of the lab's programs that is complete; empty: none.
func newestSet(cache string) string {
	found, _ := filepath.Glob(filepath.Join(cache, "sets", "*", "kube-apiserver"))
	best, when := "", time.Time{}
	for _, file := range found {
		dir := filepath.Dir(file)
		info, err := os.Stat(dir)
		if err == nil && info.ModTime().After(when) && exists(filepath.Join(dir, "etcd")) && exists(filepath.Join(dir, "kube-proxy")) {
			best, when = dir, info.ModTime()
		}
	}
	return best
}

func (b *Box) run(ctx context.Context, dir string, env, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// Commit names the tree: the abbreviated commit, with "-dirty" when Strait's own files differ from it.
func (b *Box) Commit(ctx context.Context) string {
	commit, err := exec.CommandContext(ctx, "git", "-C", b.Repo, "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(commit))
	changed, err := exec.CommandContext(ctx, "git", "-C", b.Repo, "status", "--porcelain", "--", "bpf", "cmd", "internal").Output()
	if err != nil || len(changed) > 0 {
		name += "-dirty"
	}
	return name
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
