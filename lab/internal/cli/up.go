package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/build"
	"github.com/strait-net/strait/lab/internal/debian"
	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/topology"
)

func upCommand(p places, name *string) *cobra.Command {
	var spec topology.Spec
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and install Strait; on a running lab: install again what is built now",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec.Name = *name
			if err := spec.Validate(); err != nil {
				return err
			}
			return up(cmd.Context(), p, spec)
		},
	}
	f := c.Flags()
	f.IntVar(&spec.Nodes, "nodes", 3, "how many nodes")
	f.StringVar(&spec.Mode, "mode", "vxlan", "routing mode: vxlan or native")
	f.StringVar(&spec.IP, "ip", "dual", "address families: dual, ipv4 or ipv6")
	f.StringVar(&spec.Network, "network", "island", "cluster design: island, flat or isolated")
	f.StringVar(&spec.IPAM, "ipam", "cluster-pool", "who gives nodes their pod CIDRs: cluster-pool (strait-operator) or kubernetes (kube-controller-manager)")
	f.StringVar(&spec.CNI, "cni", "strait", "network: strait, or bridge for the reference plugins with kube-proxy")
	f.StringVar(&spec.Proxy, "kube-proxy", "", "run the real kube-proxy on every node: none, iptables or nftables; Strait is installed with services off (default none, with bridge nftables)")
	f.StringArrayVar(&spec.Set, "set", nil, "a value of Strait's Helm chart, as helm's --set; may be repeated")
	return c
}

func up(ctx context.Context, p places, spec topology.Spec) error {
	s := screen.New(os.Stdout)
	if _, state, err := p.running(ctx, spec.Name); err == nil {
		s.Note("Lab %s runs since %s; installing again.", spec.Name, state.Started.Format("15:04:05"))
		if err := sameLab(state.Spec, spec); err != nil {
			return err
		}
		return install(ctx, p, s, spec)
	}
	config, err := prepare(ctx, p, s, spec)
	if err != nil {
		return err
	}
	if err := sweep(p, spec.Name); err != nil {
		return err
	}
	if err := launch(ctx, s, config); err != nil {
		return err
	}
	return install(ctx, p, s, spec)
}

// sameLab refuses to pretend that a running lab could become another one; only chart values may differ.
func sameLab(running, wanted topology.Spec) error {
	for _, f := range []struct {
		flag      string
		is, wants any
	}{
		{"nodes", running.Nodes, wanted.Nodes}, {"mode", running.Mode, wanted.Mode}, {"ip", running.IP, wanted.IP},
		{"network", running.Network, wanted.Network}, {"ipam", running.IPAM, wanted.IPAM}, {"cni", running.CNI, wanted.CNI}, {"kube-proxy", running.KubeProxy(), wanted.KubeProxy()},
	} {
		if f.is != f.wants {
			return fmt.Errorf("lab %s runs with --%s %v, not %v: end it with lab down, or start another with --name", running.Name, f.flag, f.is, f.wants)
		}
	}
	return nil
}

// prepare makes binaries and images.
func prepare(ctx context.Context, p places, s *screen.Screen, spec topology.Spec) (supervisor.Config, error) {
	config := supervisor.Config{
		Spec: spec, State: p.state(spec.Name), Images: imageDir(p),
		NodeCommand: []string{"lab", "node-enter"}, WebCommand: []string{"lab", "outside-web"},
	}
	if err := installPackages(ctx, s); err != nil {
		return config, err
	}
	set, err := buildAll(ctx, p, s)
	if err != nil {
		return config, err
	}
	config.Bin = set
	done := s.Step("images assembled")
	config.Load, err = archives(p, set, spec.CNI == "strait")
	done(err)
	return config, err
}

func installPackages(ctx context.Context, s *screen.Screen) error {
	missing, err := debian.Missing(ctx, debian.Packages(image.ToolPackages()))
	if err != nil || len(missing) == 0 {
		return err
	}
	return s.Run("apt-get install "+strings.Join(missing, " "), func() error { return debian.Install(ctx, missing, os.Stderr) })
}

func buildAll(ctx context.Context, p places, s *screen.Screen) (string, error) {
	b := build.Builder{Source: filepath.Join(p.source, "lab"), Cache: p.cache, Step: s.Step, Log: os.Stderr}
	return b.Set(ctx)
}

func imageDir(p places) string { return filepath.Join(p.cache, "images") }

// specs are the images of a lab in the order of their import.
func specs(p places, set string, strait bool) ([]image.Spec, error) {
	agnhost, err := image.AgnhostSpec(set)
	if err != nil {
		return nil, err
	}
	all := []image.Spec{image.PauseSpec(set)}
	if strait {
		product := image.StraitSpec(filepath.Join(p.source, "bin"))
		if len(product.Files) == 0 {
			return nil, fmt.Errorf("no program of Strait in %s: run make build", filepath.Join(p.source, "bin"))
		}
		all = append(all, product)
	}
	return append(all, image.CoreDNSSpec(set), agnhost, image.BusyboxSpec(), image.StraysSpec(set)), nil
}

func archives(p places, set string, strait bool) ([]string, error) {
	all, err := specs(p, set, strait)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, spec := range all {
		file, err := image.Archive(imageDir(p), spec, runtime.GOARCH)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

const supervisorConfig = "supervisor.json"

// launch starts the supervisor and shows its progress until everything runs.
func launch(ctx context.Context, s *screen.Screen, config supervisor.Config) error {
	if err := raiseInotify(s, config.Spec.Nodes); err != nil {
		return err
	}
	if err := os.MkdirAll(config.State, 0o755); err != nil {
		return err
	}
	content, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(config.State, supervisorConfig), content, 0o644); err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	logFile := filepath.Join(config.State, "supervisor.log")
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "supervise", config.State)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write}
	// Init of a PID namespace: when it is killed, the kernel kills everything that it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	write.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // interrupted half-way: nothing stays
	err = follow(s, read)
	if stop() && err == nil {
		return cmd.Process.Release()
	}
	_ = cmd.Process.Kill()
	err = errors.Join(err, ctx.Err(), cmd.Wait())
	return fmt.Errorf("start lab %s: %w (log: %s)", config.Spec.Name, err, logFile)
}

func follow(s *screen.Screen, events *os.File) error {
	begun := time.Now()
	for lines := bufio.NewScanner(events); lines.Scan(); {
		var e supervisor.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case e.Ready:
			return nil
		default:
			s.Done(e.Step, begun)
		}
	}
	return errors.New("the supervisor ended without a word")
}

// raiseInotify makes room for the watchers of many nodes: about nine instances each, of 128 on a stock kernel.
func raiseInotify(s *screen.Screen, nodes int) error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return err
	}
	want := 64 + 16*nodes
	if have >= want {
		return nil
	}
	s.Note("Raising fs.inotify.max_user_instances of this machine from %d to %d: each node needs about nine.", have, want)
	return os.WriteFile(file, []byte(strconv.Itoa(want)), 0o644)
}
