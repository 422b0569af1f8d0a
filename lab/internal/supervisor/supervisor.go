// Package supervisor holds a running lab: it owns every namespace and process of it and is the init of their PID namespace,
// so that its death, however it comes, is the death of all of them.
package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/lab/internal/cgroup"
	"github.com/strait-net/strait/lab/internal/controlplane"
	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/network"
	"github.com/strait-net/strait/lab/internal/pki"
	"github.com/strait-net/strait/lab/internal/process"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

// Config is stored in the lab's state directory before the supervisor starts.
type Config struct {
	Spec   topology.Spec
	State  string   // directory of the lab
	Bin    string   // directory with all binaries
	Images string   // directory of image archives
	Load   []string // archives every node imports
	// NodeCommand is the argument list, without the node's directory, that makes this executable a node's first stage.
	NodeCommand []string
	// WebCommand is the argument list that makes this executable the web server outside.
	WebCommand []string
}

// Event is one line of progress; Error is set on the last line of a failed start.
type Event struct {
	Step  string
	Error string
	Ready bool // everything runs
}

// Supervisor is a running lab.
type Supervisor struct {
	config      Config
	table       *process.Table
	hierarchies []cgroup.Hierarchy
	ca          *pki.Authority
	started     time.Time
	pid         int // as the machine sees this process
	apiPort     int
	lock        *os.File // held for life

	underlay, control, router, outside *namespace.Net

	mu    sync.Mutex // guards nodes; held while one is started or stopped
	nodes []*member
}

// Run starts the lab, writes events to progress, closes it when all is up or failed, and serves until killed.
func Run(config Config, progress *os.File) error {
	encoder := json.NewEncoder(progress)
	var mu sync.Mutex
	emit := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		_ = encoder.Encode(e) // the reader may have left: the lab goes on without it
	}
	s := &Supervisor{config: config, table: process.NewTable(), started: time.Now()}
	listener, err := s.start(emit)
	if err != nil {
		emit(Event{Error: err.Error()})
		return err
	}
	emit(Event{Ready: true})
	if err := progress.Close(); err != nil {
		return err
	}
	return http.Serve(listener, s.routes())
}

func (s *Supervisor) start(emit func(Event)) (net.Listener, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts private: %w", err)
	}
	// /proc is still the machine's: it shows this process under the number that others use.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil, err
	}
	if s.pid, err = strconv.Atoi(self); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(s.config.State, s.pid); err != nil {
		return nil, err
	}
	if s.hierarchies, err = cgroup.Machine(); err != nil {
		return nil, err
	}
	if err := s.wireUp(); err != nil {
		return nil, err
	}
	emit(Event{Step: "underlay, router and outside world wired"})
	if s.ca, err = controlplane.Issue(s.config.Spec, s.config.State); err != nil {
		return nil, err
	}
	if err := s.serveAPI(); err != nil {
		return nil, err
	}
	plane := controlplane.Config{Spec: s.config.Spec, Bin: s.config.Bin, State: s.config.State, Net: s.control, Table: s.table}
	if err := plane.StartStore(s.ca); err != nil {
		return nil, err
	}
	if err := s.startOutside(); err != nil {
		return nil, err
	}
	var group errgroup.Group
	group.Go(func() error { return s.startControl(plane, emit) })
	for i := range s.config.Spec.Nodes {
		m := s.member(i + 1)
		s.nodes = append(s.nodes, m)
		group.Go(func() error {
			return s.boot(m, wire.Boot{Load: s.config.Load}, func(step string) { emit(Event{Step: m.node.Name + ": " + step}) })
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	go s.followNodes()
	socket := wire.Socket(s.config.State)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

func (s *Supervisor) startControl(plane controlplane.Config, emit func(Event)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	authority, err := os.ReadFile(s.ca.CAFile())
	if err != nil {
		return err
	}
	if err := controlplane.WaitReady(ctx, "https://"+s.config.Spec.APIServer().String(), authority, s.control.Dial); err != nil {
		return fmt.Errorf("%w; logs in %s", err, controlplane.Logs(s.config.State))
	}
	emit(Event{Step: "etcd and API server ready"})
	return plane.StartControllers(s.ca)
}

// wireUp makes the namespaces that are no cluster members and the links between them.
func (s *Supervisor) wireUp() error {
	for _, n := range []struct {
		name string
		into **namespace.Net
	}{
		{topology.Underlay, &s.underlay}, {topology.ControlPlane, &s.control}, {topology.Router, &s.router}, {topology.Outside, &s.outside},
	} {
		made, err := namespace.NewNet(n.name)
		if err != nil {
			return err
		}
		*n.into = made
	}
	spec := s.config.Spec
	if err := network.Underlay(s.underlay); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		port network.Port
	}{
		{topology.Router, network.Port{Net: s.router, Device: network.Uplink, Addrs: spec.RouterAddrs()}},
		{topology.ControlPlane, network.Port{Net: s.control, Device: network.Uplink, Addrs: spec.ControlPlaneAddrs()}},
	} {
		if err := network.Plug(s.underlay, p.name, p.port); err != nil {
			return err
		}
	}
	err := network.Connect(
		network.Port{Net: s.router, Device: "outside", Addrs: spec.RouterOutsideAddrs()},
		network.Port{Net: s.outside, Device: network.Uplink, Addrs: spec.OutsideAddrs()},
	)
	if err != nil {
		return err
	}
	return errors.Join(
		network.Forward(s.router),
		network.DefaultRoutes(s.control, topology.Hosts(spec.RouterAddrs())),
		network.DefaultRoutes(s.outside, topology.Hosts(spec.RouterOutsideAddrs())),
	)
}

// Outside services and their logs.
const (
	webLog = "web.log"
	dnsLog = "dns.log"
)

// startOutside starts the web server, which writes the address of each client into its log, and the name server of the world.
func (s *Supervisor) startOutside() error {
	logs := controlplane.Logs(s.config.State)
	err := s.table.Keep(process.Command{
		Path: "/proc/self/exe", Args: s.config.WebCommand,
		Log: filepath.Join(logs, webLog), Net: s.outside,
	})
	if err != nil {
		return err
	}
	hosts := ""
	for _, a := range topology.Hosts(s.config.Spec.OutsideAddrs()) {
		hosts += fmt.Sprintf("        %s web.outside.test www.outside.test\n", a)
	}
	corefile := filepath.Join(s.config.State, "outside.Corefile")
	content := ".:53 {\n    errors\n    hosts {\n" + hosts + "        ttl 5\n    }\n}\n"
	if err := os.WriteFile(corefile, []byte(content), 0o644); err != nil {
		return err
	}
	return s.table.Keep(process.Command{
		Path: filepath.Join(s.config.Bin, "coredns"), Args: []string{"coredns", "-conf", corefile},
		Log: filepath.Join(logs, dnsLog), Net: s.outside,
	})
}
