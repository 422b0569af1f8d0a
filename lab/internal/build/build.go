// Package build compiles the foreign programs of a lab from pinned modules and keeps them in a cache outside the tree.
//
// The pins are the go.mod and go.sum of lab/kube, lab/runtime, lab/coredns, lab/conformance, lab/cyclonus and lab/clients: nothing else
// names a version.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

// Program is one binary to build.
type Program struct {
	Name    string
	Module  string // directory of its module below the lab's source
	Package string // import path, or "." for the module itself
	// Version fills -X VersionVariable from the module's requirement of VersionModule; both empty when unused.
	VersionModule, VersionVariable string
	Tags                           string
	CGO                            bool     // linked statically with the C library
	Test                           bool     // the package's tests, not its main
	Names                          []string // the names it answers to; empty: its own
}

// Programs are all that a lab runs and did not write itself, and its own pause and probe.
func Programs() []Program {
	const containerd, plugins = "github.com/containerd/containerd/v2/cmd/", "github.com/containernetworking/plugins/plugins/"
	programs := []Program{
		{
			Name: "kube", Module: "kube", Package: ".", Tags: "grpcnotrace",
			VersionModule: "k8s.io/kubernetes", VersionVariable: "k8s.io/component-base/version.gitVersion",
			Names: []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"},
		},
		{Name: "agnhost", Module: "kube", Package: "k8s.io/kubernetes/test/images/agnhost"},
		{Name: "regression-issue-74839", Module: "kube", Package: "k8s.io/kubernetes/test/images/regression-issue-74839"},
		{Name: "runc", Module: "runtime", Package: "github.com/opencontainers/runc", Tags: "seccomp,netgo,osusergo", CGO: true},
		{Name: "coredns", Module: "coredns", Package: "."},
		{Name: "pause", Module: "pause", Package: "."},
		{Name: "probe", Module: "probe", Package: "."},
		{Name: "agnhost-sctp", Module: "agnhost", Package: "."},
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		programs = append(programs, Program{
			Name: name, Module: "runtime", Package: containerd + name, Tags: "grpcnotrace",
			VersionModule: "github.com/containerd/containerd/v2", VersionVariable: "github.com/containerd/containerd/v2/version.Version",
		})
	}
	for _, path := range []string{"main/bridge", "main/ptp", "main/loopback", "ipam/host-local", "meta/portmap"} {
		programs = append(programs, Program{Name: filepath.Base(path), Module: "runtime", Package: plugins + path})
	}
	return programs
}

// SuitePrograms are what Kubernetes' own end-to-end tests need besides a lab; few want them, so they are no part of its set.
func SuitePrograms() []Program {
	return []Program{
		{Name: "e2e.test", Module: "kube", Package: "k8s.io/kubernetes/test/e2e", Tags: "grpcnotrace", Test: true},
		{Name: "ginkgo", Module: "kube", Package: "github.com/onsi/ginkgo/v2/ginkgo"},
	}
}

// ConformanceProgram are the conformance tests of ClusterNetworkPolicy.
func ConformanceProgram() Program {
	return Program{Name: "conformance.test", Module: "conformance", Package: "sigs.k8s.io/network-policy-api/conformance", Test: true}
}

// CyclonusProgram generates and runs cases of NetworkPolicy.
func CyclonusProgram() Program { return Program{Name: "cyclonus", Module: "cyclonus", Package: "."} }

// Clients are programs of others that ask Strait as they are; a lab does not need them.
func Clients() []Program {
	return []Program{
		{
			Name: "hubble", Module: "clients", Package: "github.com/cilium/cilium/hubble",
			VersionModule: "github.com/cilium/cilium", VersionVariable: "github.com/cilium/cilium/hubble/pkg.Version",
		},
		{
			Name: "grpcurl", Module: "clients", Package: "github.com/fullstorydev/grpcurl/cmd/grpcurl",
			VersionModule: "github.com/fullstorydev/grpcurl", VersionVariable: "main.version",
		},
	}
}

// Builder builds into a cache.
type Builder struct {
	Source string // directory lab/ of the repository
	Cache  string
	// Step is called before each program that has to be compiled; what it returns is called with the result.
	Step func(title string) func(error)
	Log  io.Writer // the compiler's output
}

// Set returns a directory with all programs under all their names, compiling what the cache lacks. A set is never changed,
// so that running labs keep theirs.
func (b Builder) Set(ctx context.Context) (string, error) {
	version, err := goVersion(ctx)
	if err != nil {
		return "", err
	}
	built := map[string]string{} // name -> file
	sum := sha256.New()
	for _, p := range Programs() {
		file, err := b.file(ctx, p, version)
		if err != nil {
			return "", err
		}
		for _, name := range p.names() {
			built[name] = file
			fmt.Fprintln(sum, name, file)
		}
	}
	return b.link(built, hex.EncodeToString(sum.Sum(nil))[:16])
}

// File returns the path of one program, compiling it if the cache lacks it.
func (b Builder) File(ctx context.Context, p Program) (string, error) {
	version, err := goVersion(ctx)
	if err != nil {
		return "", err
	}
	return b.file(ctx, p, version)
}

func (b Builder) file(ctx context.Context, p Program, goVersion string) (string, error) {
	key, err := b.key(p, goVersion)
	if err != nil {
		return "", fmt.Errorf("describe %s: %w", p.Name, err)
	}
	file := filepath.Join(b.Cache, "bin", p.Name+"-"+key)
	if _, err := os.Stat(file); err == nil || !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	done := b.Step("build " + p.Name)
	err = b.compile(ctx, p, file)
	done(err)
	return file, err
}

func (p Program) names() []string {
	if len(p.Names) > 0 {
		return p.Names
	}
	return []string{p.Name}
}

func (b Builder) link(built map[string]string, key string) (string, error) {
	set := filepath.Join(b.Cache, "sets", key)
	if _, err := os.Stat(set); err == nil {
		return set, nil
	}
	if err := os.MkdirAll(filepath.Dir(set), 0o755); err != nil {
		return "", err
	}
	aside, err := os.MkdirTemp(filepath.Dir(set), ".linking-*")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(aside, 0o755); err != nil {
		return "", err
	}
	for name, file := range built {
		// Hard links: the set is bind-mounted into nodes, where a symbolic link would lead nowhere.
		if err := os.Link(file, filepath.Join(aside, name)); err != nil {
			return "", err
		}
	}
	if err := os.Rename(aside, set); err != nil {
		return "", errors.Join(err, os.RemoveAll(aside))
	}
	return set, nil
}

func (b Builder) compile(ctx context.Context, p Program, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	flags := []string{"-s", "-w"}
	if p.VersionVariable != "" {
		version, err := b.requirement(p.Module, p.VersionModule)
		if err != nil {
			return err
		}
		flags = append(flags, "-X", p.VersionVariable+"="+version)
	}
	cgo := "0"
	if p.CGO {
		cgo = "1"
		flags = append(flags, "-extldflags", "-static")
	}
	aside := file + ".building"
	defer os.Remove(aside)
	command := []string{"build"}
	if p.Test {
		command = []string{"test", "-c", "-vet=off"} // vet takes ten times as long as the rest
	}
	args := append(command, "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(flags, " "), "-o", aside)
	if p.Tags != "" {
		args = append(args, "-tags", p.Tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Package)...)
	cmd.Dir = filepath.Join(b.Source, p.Module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOWORK=off")
	cmd.Stdout, cmd.Stderr = b.Log, b.Log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", p.Name, err)
	}
	return os.Rename(aside, file)
}

// requirement is the version of a module that another one pins.
func (b Builder) requirement(module, of string) (string, error) {
	path := filepath.Join(b.Source, module, "go.mod")
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	mod, err := modfile.ParseLax(path, content, nil)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(mod.Require, func(r *modfile.Require) bool { return r.Mod.Path == of })
	if i < 0 {
		return "", fmt.Errorf("%s does not require %s", path, of)
	}
	return mod.Require[i].Mod.Version, nil
}

// key covers everything that decides what the binary will be.
func (b Builder) key(p Program, goVersion string) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%#v %s %s %s\n", p, goVersion, runtime.GOOS, runtime.GOARCH)
	dir := filepath.Join(b.Source, p.Module)
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	for _, file := range append(sources, filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")) {
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // pause and probe are part of the lab's module
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n", filepath.Base(file), len(content))
		sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

func goVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for its version: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
