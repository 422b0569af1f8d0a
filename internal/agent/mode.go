package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/datapath/attach"
	"github.com/strait-net/strait/internal/datapath/load"
)

// decision is who serves Services on this node by the word of a person at run time. It holds over restarts until the configuration
// changes its mind as well.
//
//	off --takeover--> on --undo--> drain --no connection left--> off
type decision struct {
	Mode config.ServiceMode `json:"mode"`
	// Config is what the configuration said when the decision was made.
	Config config.ServiceMode `json:"config"`
	At     time.Time          `json:"at"`
}

func decisionFile(stateDir string) string { return filepath.Join(stateDir, "services-mode.json") }

// readDecision returns the decision in force, the zero one if there is none. One that the configuration has left behind is removed.
func readDecision(cfg config.Config) (d decision, err error) {
	file := decisionFile(cfg.StateDir)
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return decision{}, nil
	}
	if err != nil {
		return decision{}, fmt.Errorf("read decision about services: %w", err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return decision{}, fmt.Errorf("read decision about services: %s: %w", file, err)
	}
	if d.Config == cfg.Services.Mode && d.Mode != d.Config {
		return d, nil
	}
	return decision{}, forgetDecision(cfg)
}

func forgetDecision(cfg config.Config) error {
	if err := os.Remove(decisionFile(cfg.StateDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget decision about services: %w", err)
	}
	return nil
}

// write keeps the decision; the file is replaced in one step.
func (d decision) write(cfg config.Config) error {
	if d.Mode == d.Config {
		return forgetDecision(cfg)
	}
	text, err := json.Marshal(d)
	if err == nil {
		err = os.MkdirAll(cfg.StateDir, 0o755)
	}
	file := decisionFile(cfg.StateDir)
	if err == nil {
		err = os.WriteFile(file+".new", append(text, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return fmt.Errorf("keep decision about services: %w", err)
	}
	return nil
}

// serviceMode returns who serves Services on this node, and since when a person has decided so; the zero time: the configuration has.
func (n *node) serviceMode() (config.ServiceMode, time.Time) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.modeLocked(), n.decided.At
}

func (n *node) modeLocked() config.ServiceMode {
	if n.decided.Mode != "" {
		return n.decided.Mode
	}
	return n.cfg.Services.Mode
}

// cgroupDir returns the cgroup whose sockets are load balanced; empty: none is.
func (n *node) cgroupDir() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.cgroup
}

// wantedCgroup returns the cgroup whose sockets are to be load balanced with a decision in force. kube-proxy has no say about sockets,
// and whoever takes over from it wants all of them, whatever the configuration said while kube-proxy served.
func wantedCgroup(cfg config.Config, d decision) (string, error) {
	mode := d.Mode
	if mode == "" {
		mode = cfg.Services.Mode
	}
	if mode == config.ServicesOff || d.Mode == "" && !cfg.SocketLB.Enabled {
		return "", load.Require(false)
	}
	if err := load.Require(true); err != nil {
		return "", err
	}
	return attach.CgroupRoot(cfg.CgroupRoot)
}

// serve changes who serves Services, and keeps that. The decision is kept first: an agent that starts after a crash goes on with it.
// On error everything stays as it was.
func (n *node) serve(mode config.ServiceMode) error {
	d := decision{Mode: mode, Config: n.cfg.Services.Mode, At: time.Now()}
	if mode == d.Config {
		d = decision{}
	}
	cgroup, err := wantedCgroup(n.cfg, d)
	if err != nil {
		return err
	}
	n.mu.Lock()
	before, beforeCgroup := n.decided, n.cgroup
	n.decided, n.cgroup, n.stale = d, cgroup, true
	podMTU := n.podMTU
	n.mu.Unlock()
	err = n.keepDecision(d)
	if err == nil {
		err = n.load(podMTU)
	}
	if err == nil {
		n.log.Info("services switched", "mode", mode)
		return nil
	}
	n.mu.Lock()
	n.decided, n.cgroup, n.stale = before, beforeCgroup, true
	n.mu.Unlock()
	return errors.Join(fmt.Errorf("switch services to %s: %w", mode, err), n.keepDecision(before), n.load(podMTU))
}

func (n *node) keepDecision(d decision) error {
	if d.Mode == "" {
		return forgetDecision(n.cfg)
	}
	return d.write(n.cfg)
}
