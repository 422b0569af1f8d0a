// Package uninstall removes everything Strait has put on a node, and finds what is left.
package uninstall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/datapath/netfilter"
	"github.com/strait-net/strait/internal/datapath/pin"
	"github.com/strait-net/strait/internal/state"
)

// ErrAgentRuns is matched by the error of Remove when an agent runs on the node: it would put everything back.
var ErrAgentRuns = errors.New("an agent runs on this node")

// Node is where Strait's things are.
type Node struct {
	Config config.Config
	Net    *netdev.Net
}

// Trace is one thing Strait has put on the node.
type Trace struct {
	Kind string `json:"kind"` // one of Kinds
	Name string `json:"name"`
}

// kinds in the order in which Remove takes them away: first no new pods, then no more packets, then the rest.
const (
	kindCNI     = "CNI"
	kindProgram = "program"
	kindRoute   = "route"
	kindDevice  = "device"
	kindTable   = "nftables table"
	kindPins    = "pins"
	kindFiles   = "files"
)

// Kinds returns the kinds of things Find looks for.
func Kinds() []string {
	return []string{kindCNI, kindProgram, kindRoute, kindDevice, kindTable, kindPins, kindFiles}
}

// Find returns what Strait has on the node. With an error, what it could not look at is missing.
func (n Node) Find() (found []Trace, err error) {
	var errs []error
	add := func(kind string, names []string, err error) {
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			found = append(found, Trace{kind, name})
		}
		errs = append(errs, err)
	}
	add(kindCNI, n.cniFiles(), nil)
	names, err := n.programs()
	add(kindProgram, names, err)
	names, err = n.routes()
	add(kindRoute, names, err)
	names, err = n.devices()
	add(kindDevice, names, err)
	names, err = tables()
	add(kindTable, names, err)
	add(kindPins, existing(n.pinRoot()), nil)
	names, err = n.files()
	add(kindFiles, names, err)
	return found, errors.Join(errs...)
}

// Remove takes everything away: pods of this node have no network afterwards. It goes on after an error. An agent must not run.
func (n Node) Remove(ctx context.Context) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	if n.Config.CNI.Install {
		_, err = server.Install{BinDir: n.Config.CNI.BinDir, ConfDir: n.Config.CNI.ConfDir}.Remove()
		errs = append(errs, err)
	}
	errs = append(errs, attach.New(n.tree(), n.Net, nil, false).DetachAll())
	_, err = netdev.NewRoutes(n.Net).Prune(ctx, func(func(state.Route) bool) {})
	errs = append(errs, err)
	devices, err := n.devices()
	errs = append(errs, err)
	for _, d := range devices {
		errs = append(errs, n.Net.DeleteDevice(d))
	}
	errs = append(errs, netfilter.Release())
	if len(existing(n.pinRoot())) > 0 {
		errs = append(errs, n.tree().Remove())
	}
	for _, dir := range []string{n.Config.StateDir, n.Config.RunDir} {
		errs = append(errs, empty(dir))
	}
	return errors.Join(errs...)
}

func (n Node) tree() pin.Tree { return pin.At(n.Config.BPFRoot) }

// pinRoot is the directory of all versions of the pinned tree.
func (n Node) pinRoot() string { return filepath.Dir(filepath.Dir(n.tree().Maps())) }

// lock holds the agent's lock, so that none starts meanwhile.
func (n Node) lock() (unlock func(), err error) {
	path := filepath.Join(n.Config.RunDir, "agent.lock")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open agent lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, _ := os.ReadFile(path) // without it the message is shorter
			return nil, fmt.Errorf("%w (pid %s holds %s)", ErrAgentRuns, cmp.Or(strings.TrimSpace(string(pid)), "unknown"), path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

func (n Node) cniFiles() []string {
	if !n.Config.CNI.Install {
		return nil
	}
	return existing(filepath.Join(n.Config.CNI.ConfDir, server.ConflistName), filepath.Join(n.Config.CNI.BinDir, wire.PluginType))
}

func existing(paths ...string) (out []string) {
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func (n Node) programs() (out []string, err error) {
	list, err := attach.New(n.tree(), n.Net, nil, false).List()
	for _, a := range list {
		out = append(out, fmt.Sprintf("%s at %s (%s)", a.Program, cmp.Or(a.Device, "the cgroup"), a.Kind))
	}
	return out, err
}

func (n Node) routes() (out []string, err error) {
	list, err := netdev.NewRoutes(n.Net).List()
	for _, p := range list {
		out = append(out, p.String())
	}
	return out, err
}

func (n Node) devices() ([]string, error) {
	out, err := n.Net.PodDevices()
	if err != nil {
		return nil, err
	}
	switch _, err := n.Net.Index(netdev.VXLANDevice); {
	case err == nil:
		out = append(out, netdev.VXLANDevice)
	case !errors.Is(err, fs.ErrNotExist):
		return out, err
	}
	return out, nil
}

// tables are what a takeover from kube-proxy keeps while old connections need it.
func tables() ([]string, error) {
	held, err := netfilter.Held()
	if !held || err != nil {
		return nil, err
	}
	return []string{netfilter.HoldTable}, nil
}

// files are what is in the directories of the agent; the directories themselves may be mounts of a pod.
func (n Node) files() (out []string, err error) {
	var errs []error
	for _, dir := range []string{n.Config.StateDir, n.Config.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, errors.Join(errs...)
}

// empty removes a directory with what is in it. A directory that is a mount point stays, empty.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EROFS) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
