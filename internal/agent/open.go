package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/cni/server"
	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/endpoint"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

const (
	cniSubject   = "CNI"
	retryOpening = 5 * time.Second
	// reinstallEvery is how often plugin and configuration are put right: other installers overwrite them.
	reinstallEvery = 30 * time.Second
)

// open lets pods in: the plugin and its configuration are installed, a rehearsal proves that they work, and the taint goes.
func (a *agent) open(ctx context.Context, socket string) error {
	if err := localapi.ClearFailure(a.cfg.RunDir); err != nil {
		a.report("run directory", err)
	}
	install := server.Install{
		Source: a.Plugin, BinDir: a.cfg.CNI.BinDir, ConfDir: a.cfg.CNI.ConfDir,
		Socket: socket, StateDir: a.cfg.StateDir, Exclusive: a.cfg.CNI.Exclusive,
	}
	for {
		err := a.install(install)
		if err == nil && !a.isOpen() {
			err = a.admit(ctx, install)
		}
		wait := reinstallEvery
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.report(cniSubject, err)
			wait = retryOpening
		} else {
			state.Clear(a.state.Problems, agentProblems, cniSubject)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (a *agent) install(i server.Install) error {
	if !a.cfg.CNI.Install {
		return nil
	}
	changed, err := i.Apply()
	if len(changed) > 0 {
		a.log.Info("CNI installed", "changed", changed)
	}
	return err
}

// settledGC is how much garbage the agent lets come together, in percent of the live heap, when it knows the cluster.
const settledGC = 25

// admit rehearses, and tells Kubernetes that pods can come. A node is kept closed by the taint while this fails.
func (a *agent) admit(ctx context.Context, i server.Install) error {
	conflist, err := i.Conflist()
	if err != nil {
		return err
	}
	plugin := a.Plugin
	if a.cfg.CNI.Install {
		plugin = filepath.Join(a.cfg.CNI.BinDir, wire.PluginType)
	}
	if err := (rehearsal{plugin: plugin, conflist: conflist, node: a.addresses()}).run(ctx); err != nil {
		return fmt.Errorf("rehearse the start of a pod: %w", err)
	}
	if a.writer != nil {
		if err := a.writer.SetNetworkAvailable(ctx, true, "StraitIsUp", "strait-agent has attached a sandbox and reached the node from it"); err != nil {
			return err
		}
		if err := a.writer.Taint(ctx, false); err != nil {
			return err
		}
		a.writer.Event(kube.Normal, "StraitReady", "pods can be started on this node")
	}
	close(a.rehearsed)
	// From here on the heap changes slowly: little garbage is worth more than the CPU it costs, and what reading the whole cluster once has
	// left behind is given back.
	debug.SetGCPercent(settledGC)
	debug.FreeOSMemory()
	a.log.Info("node is open for pods", "after", time.Since(a.began).Round(time.Millisecond))
	return nil
}

func (a *agent) isOpen() bool {
	select {
	case <-a.rehearsed:
		return true
	default:
		return false
	}
}

// closeNewNode taints a node that no agent has opened yet. One that was open before stays so: its pods go on.
func (a *agent) closeNewNode(ctx context.Context) {
	if a.writer == nil {
		return
	}
	node, err := a.client.Node(ctx, a.Node)
	if err == nil && !kube.NetworkAvailable(node) {
		err = a.writer.Taint(ctx, true)
	}
	if err != nil {
		a.log.Warn("node not tainted while it is not ready", "err", err)
	}
}

// ready is the answer of /readyz.
func (a *agent) ready() error {
	if a.isOpen() {
		return nil
	}
	var waiting []string
	for _, r := range a.reconcilers {
		select {
		case <-r.Pruned():
		default:
			waiting = append(waiting, r.Health().Table)
		}
	}
	select {
	case <-a.policies.loop.Ready():
	default:
		waiting = append(waiting, "policies")
	}
	if len(waiting) > 0 {
		return fmt.Errorf("tables not in the kernel yet: %s", strings.Join(waiting, ", "))
	}
	return fmt.Errorf("no pod can be started yet: see strait status")
}

// countingAdds notes when the last ADD succeeded.
type countingAdds struct {
	*endpoint.Keeper
	agent *agent
}

func (c countingAdds) Add(ctx context.Context, at wire.Attachment) (state.Endpoint, error) {
	e, err := c.Keeper.Add(ctx, at)
	if err == nil {
		c.agent.lastAdd.Store(time.Now().UnixNano())
		c.agent.lastError.Store("")
		c.agent.publish(ctx, e)
	} else {
		c.agent.lastError.Store(err.Error())
	}
	return e, err
}
