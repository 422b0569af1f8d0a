// Package server answers strait-cni on the agent's unix socket, and installs the plugin and its configuration.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Endpoints does the work behind the CNI verbs. Errors may carry a CNI error code (wire.WithCode). Calls for different
// attachments are concurrent; it orders those for the same one by itself.
type Endpoints interface {
	// Add attaches the sandbox. For an attachment that exists it returns the same endpoint again.
	Add(ctx context.Context, a wire.Attachment) (state.Endpoint, error)
	// Del detaches it; one that does not exist is no error.
	Del(ctx context.Context, a wire.Attachment) error
	// Check returns an error that lists every difference between the attachment and what it should be. addresses are those
	// the runtime believes in.
	Check(ctx context.Context, a wire.Attachment, addresses []netip.Addr) error
	// GC detaches every attachment of the network whose key is not in valid.
	GC(ctx context.Context, network string, valid map[string]bool) error
	// Status returns why Add would fail now, or nil.
	Status(ctx context.Context) error
}

// Config is what a Server needs. All but Deadline, ReplayEvery and Observe are required.
type Config struct {
	Socket    string // path
	StateDir  string // queued DELs are in cni/deletes below it
	Endpoints Endpoints
	Gateway   func(v6 bool) netip.Addr // next hop of every pod, for results
	Problems  *table.Table[state.Problem]
	Log       *slog.Logger
	// Deadline bounds the work on one request; it is below wire.Timeout. Default 50 s.
	Deadline time.Duration
	// ReplayEvery is how often the queue is looked at again: a plugin that found no agent may write to it a moment after
	// the agent has started. Default 10 s.
	ReplayEvery time.Duration
	// Observe is called after each request, with the CNI error code, 0 for success.
	Observe func(command wire.Command, code uint, took time.Duration)
}

const (
	readTimeout   = 10 * time.Second // a plugin that has connected sends at once
	maxConcurrent = 64               // requests in work; more wait in the socket's backlog
)

// Server is the agent's side of the CNI socket.
type Server struct {
	cfg      Config
	queue    wire.Queue
	listener *net.UnixListener

	// queueMu is held for writing while queued DELs are done and for reading during an ADD, so that a DEL from before an
	// ADD of the same attachment is never done after it.
	queueMu sync.RWMutex
}

// New returns a server that does not listen yet.
func New(cfg Config) *Server {
	if cfg.Deadline == 0 {
		cfg.Deadline = wire.Timeout * 5 / 6
	}
	if cfg.ReplayEvery == 0 {
		cfg.ReplayEvery = 10 * time.Second
	}
	if cfg.Observe == nil {
		cfg.Observe = func(wire.Command, uint, time.Duration) {}
	}
	return &Server{cfg: cfg, queue: wire.NewQueue(cfg.StateDir)}
}

// Listen makes the socket, readable by root only, in place of one an earlier agent left. Plugins that connect wait until
// Run serves them. The caller makes sure that there is one agent.
func (s *Server) Listen() error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("make directory of CNI socket: %w", err)
	}
	// Made aside and renamed, so that it is never open to others and never missing.
	aside := s.cfg.Socket + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old CNI socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen on CNI socket %s: %w", s.cfg.Socket, err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(aside, 0o600); err == nil {
		err = os.Rename(aside, s.cfg.Socket)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("put CNI socket in place: %w", err), l.Close(), os.Remove(aside))
	}
	s.listener = l
	return nil
}

// Run does the queued DELs, then serves until ctx ends and the requests in work are answered. Listen comes first.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	s.replay(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { s.replayLoop(ctx) })
	slots := make(chan struct{}, maxConcurrent)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on CNI socket: %w", err)
			}
			s.cfg.Log.Error("accept on CNI socket", "error", err)
			time.Sleep(100 * time.Millisecond) // out of file descriptors, most likely
			continue
		}
		work.Go(func() {
			defer func() { <-slots }()
			// A request in work is finished also when the agent is told to stop.
			s.serve(context.WithoutCancel(ctx), conn)
		})
	}
}

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	began := time.Now()
	_ = conn.SetReadDeadline(began.Add(readTimeout))
	data, err := io.ReadAll(io.LimitReader(conn, wire.MaxMessage+1))
	if err != nil {
		s.cfg.Log.Warn("read CNI request", "error", err)
		return
	}
	var req wire.Request
	var result json.RawMessage
	if len(data) > wire.MaxMessage {
		err = types.NewError(types.ErrDecodingFailure, fmt.Sprintf("request is longer than %d bytes", wire.MaxMessage), "")
	} else if req, err = wire.DecodeRequest(data); err == nil {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
		result, err = s.answer(ctx, req)
		cancel()
	}
	resp := wire.Response{Version: wire.Version, Result: result, Error: s.refusal(req, err)}
	s.note(req, resp.Error, time.Since(began))
	out, err := json.Marshal(resp)
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(readTimeout))
		_, err = conn.Write(out)
	}
	if err != nil {
		s.cfg.Log.Warn("write CNI response", "command", req.Command, "container", req.ContainerID, "error", err)
	}
}

// refusal turns an error into what the runtime sees.
func (s *Server) refusal(req wire.Request, err error) *types.Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*types.Error); ok { //nolint:errorlint // only the bare error says all there is to say
		return e
	}
	code := wire.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, err.Error(), "")
}

func (s *Server) note(req wire.Request, e *types.Error, took time.Duration) {
	level, code := slog.LevelDebug, uint(0)
	attrs := []any{"command", req.Command, "container", req.ContainerID, "interface", req.IfName, "took", took}
	if e != nil {
		level, code = slog.LevelWarn, e.Code
		attrs = append(attrs, "code", e.Code, "error", e.Error())
	}
	s.cfg.Log.Log(context.Background(), level, "CNI request", attrs...)
	s.cfg.Observe(req.Command, code, took)
}

// answer checks the request and does it.
func (s *Server) answer(ctx context.Context, req wire.Request) (json.RawMessage, error) {
	conf, err := wire.ParseConfig(req.Config)
	if err != nil {
		return nil, err
	}
	switch req.Command {
	case wire.GC:
		return nil, s.gc(ctx, conf)
	case wire.Status:
		return nil, s.status(ctx)
	case wire.Add, wire.Del, wire.Check:
	default:
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND: %q is not valid", req.Command), "")
	}
	a, err := req.Attachment(conf.Name)
	if err != nil {
		return nil, err
	}
	switch req.Command {
	case wire.Add:
		return s.add(ctx, conf, a)
	case wire.Del:
		return nil, s.del(ctx, a)
	default:
		return nil, s.check(ctx, conf, a)
	}
}

func (s *Server) add(ctx context.Context, conf wire.Config, a wire.Attachment) (json.RawMessage, error) {
	if conf.PrevResult != nil {
		return nil, types.NewError(types.ErrUnsupportedField, "field \"prevResult\" is not supported with ADD",
			"strait-cni must be the first plugin of its list")
	}
	var err error
	if a.HostPorts, err = conf.PortMappings(); err != nil {
		return nil, err
	}
	s.queueMu.RLock()
	if s.queue.Has(a) {
		s.queueMu.RUnlock()
		s.replay(ctx)
		s.queueMu.RLock()
	}
	defer s.queueMu.RUnlock()
	if s.queue.Has(a) {
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("an earlier delete of %s is not done yet", a.Key()), "")
	}
	ep, err := s.cfg.Endpoints.Add(ctx, a)
	if err != nil {
		return nil, err
	}
	return encodeResult(ep, conf.CNIVersion, s.cfg.Gateway)
}

func (s *Server) del(ctx context.Context, a wire.Attachment) error {
	if err := s.cfg.Endpoints.Del(ctx, a); err != nil {
		return err
	}
	if s.queue.Has(a) {
		return s.queue.Remove(a.FileName())
	}
	return nil
}

func (s *Server) check(ctx context.Context, conf wire.Config, a wire.Attachment) error {
	if conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "field \"prevResult\" is missing", "CHECK needs the result of ADD")
	}
	addresses, err := resultAddresses(conf, a)
	if err != nil {
		return err
	}
	return s.cfg.Endpoints.Check(ctx, a, addresses)
}

func (s *Server) gc(ctx context.Context, conf wire.Config) error {
	if conf.ValidAttachments == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "field \"cni.dev/valid-attachments\" is missing",
			"GC removes every attachment that is not in it; an empty list removes all")
	}
	valid := make(map[string]bool, len(conf.ValidAttachments))
	for _, v := range conf.ValidAttachments {
		valid[wire.Attachment{ContainerID: v.ContainerID, IfName: v.IfName}.Key()] = true
	}
	return s.cfg.Endpoints.GC(ctx, conf.Name, valid)
}

func (s *Server) status(ctx context.Context) error {
	err := s.cfg.Endpoints.Status(ctx)
	if err == nil {
		return nil
	}
	code := wire.Code(err)
	if code != types.ErrLimitedConnectivity {
		code = types.ErrPluginNotAvailable
	}
	return types.NewError(code, err.Error(), "")
}
