// Package debian installs the distribution's packages that a lab needs and that are missing.
package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Packages lists what a lab needs besides Go; tools are the packages whose programs go into test images.
func Packages(tools []string) []string {
	return append([]string{
		"gcc", "libc6-dev", "libseccomp-dev", "pkg-config", // runc
		"mount", "util-linux", // kubelet calls mount
		"iproute2", "nftables", // looking around in nodes; kube-proxy of the reference network
	}, tools...)
}

// Missing filters the packages that are not installed.
func Missing(ctx context.Context, packages []string) ([]string, error) {
	args := append([]string{"-W", "-f", "${Package} ${db:Status-Status}\n"}, packages...)
	out, err := exec.CommandContext(ctx, "dpkg-query", args...).Output()
	// It exits with 1 when one package is unknown and still answers for the others.
	if unknown := (*exec.ExitError)(nil); err != nil && !errors.As(err, &unknown) {
		return nil, fmt.Errorf("ask dpkg for installed packages (a lab needs Debian or Ubuntu): %w", err)
	}
	installed := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), " installed"); ok {
			installed[name] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(packages), func(p string) bool { return installed[p] }), nil
}

// Install installs packages without their recommendations.
func Install(ctx context.Context, packages []string, log io.Writer) error {
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w", args[0], err)
		}
	}
	return nil
}
