package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/netdev"
	"github.com/strait-net/strait/internal/state"
)

// rehearsal attaches a sandbox of its own through the real plugin, reaches the node from it, and detaches it again: the proof
// that pods can be started here.
type rehearsal struct {
	plugin   string // path of the installed binary
	conflist []byte
	node     []netip.Addr // addresses to be reached
}

func (r rehearsal) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ns, err := newSandbox()
	if err != nil {
		return err
	}
	defer ns.close()
	conf, err := pluginConfig(r.conflist)
	if err != nil {
		return err
	}
	call := func(command string) ([]byte, error) {
		args := &invoke.Args{
			Command: command, ContainerID: state.RehearsalContainer, NetNS: ns.path(), IfName: "eth0", Path: filepath.Dir(r.plugin),
		}
		return (&invoke.RawExec{Stderr: os.Stderr}).ExecPlugin(ctx, r.plugin, conf, args.AsEnv())
	}
	out, err := call("ADD")
	defer func() {
		if _, delErr := call("DEL"); delErr != nil {
			err = errors.Join(err, fmt.Errorf("DEL of the rehearsal sandbox: %w", delErr))
		}
	}()
	if err != nil {
		return fmt.Errorf("ADD of the rehearsal sandbox: %w", err)
	}
	var result current.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("read ADD result of the rehearsal sandbox: %w", err)
	}
	for _, a := range r.node {
		if !hasFamily(result, a) {
			continue
		}
		if err := ns.reach(ctx, a); err != nil {
			return fmt.Errorf("reach the node at %s from the rehearsal sandbox: %w", a, err)
		}
	}
	return nil
}

// pluginConfig makes the configuration of our plugin from the conflist, as a runtime does.
func pluginConfig(conflist []byte) ([]byte, error) {
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return nil, fmt.Errorf("read conflist: %w", err)
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("read conflist: no plugins")
	}
	conf := list.Plugins[0]
	// The rehearsal reads the result of the 1.0 shape, whatever the runtime prefers.
	conf["cniVersion"], conf["name"] = current.ImplementedSpecVersion, list.Name
	return json.Marshal(conf)
}

func hasFamily(r current.Result, a netip.Addr) bool {
	for _, ip := range r.IPs {
		if (ip.Address.IP.To4() == nil) == a.Is6() {
			return true
		}
	}
	return false
}

// sandbox is a network namespace held open by a descriptor.
type sandbox struct{ fd int }

func newSandbox() (*sandbox, error) {
	type made struct {
		s   *sandbox
		err error
	}
	done := make(chan made)
	netdev.Throwaway(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- made{nil, fmt.Errorf("open the new network namespace: %w", err)}
			return
		}
		done <- made{&sandbox{fd}, nil}
	})
	m := <-done
	return m.s, m.err
}

func (s *sandbox) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.fd) }

func (s *sandbox) close() { _ = unix.Close(s.fd) }

// reach connects from the sandbox to a listener on the node's address.
func (s *sandbox) reach(ctx context.Context, node netip.Addr) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(node, 0).String())
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	done := make(chan error)
	netdev.Throwaway(func() {
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", listener.Addr().String())
		if err == nil {
			err = conn.Close()
		}
		done <- err
	})
	return <-done
}
