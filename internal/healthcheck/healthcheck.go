// Package healthcheck answers load balancers that ask on a Service's healthCheckNodePort whether this node has endpoints of it.
package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// Mark is on a socket while it is bound: the socket programs refuse ports of the node port range to all others. "ST", 1.
const Mark = 0x53540001

// problemSource is the owner of this package's rows in the table of problems.
const problemSource = "health checks"

const (
	defaultRetry  = 5 * time.Second
	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute
)

// Config is what Servers need. Retry has a default.
type Config struct {
	Node  string // in Kubernetes
	State *state.State
	// Healthy reports whether this node serves Services as they are now.
	Healthy func() bool
	Log     *slog.Logger
	Retry   time.Duration // of a port that cannot be bound; default 5 s
}

// Servers are the listeners, one for each service that has such a port. One goroutine owns them.
type Servers struct {
	cfg     Config
	servers map[state.ServiceName]*server
	owner   map[string]state.ServiceName // of each EndpointSlice, as last seen: the label can change
}

// server is one service's. Without http it could not be opened yet.
type server struct {
	name  state.ServiceName
	port  uint16
	count atomic.Int64
	http  *http.Server
}

// New returns the servers; none is open yet.
func New(cfg Config) *Servers {
	if cfg.Retry == 0 {
		cfg.Retry = defaultRetry
	}
	return &Servers{cfg: cfg, servers: map[state.ServiceName]*server{}, owner: map[string]state.ServiceName{}}
}

// Run serves until ctx ends. It begins when services and slices are known whole.
func (s *Servers) Run(ctx context.Context) error {
	for _, initialized := range []<-chan struct{}{s.cfg.State.Services.Initialized(), s.cfg.State.EndpointSlices.Initialized()} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-initialized:
		}
	}
	services, endpoints := s.cfg.State.Services.Changes(), s.cfg.State.EndpointSlices.Changes()
	defer services.Close()
	defer endpoints.Close()
	defer s.closeAll()
	retry := time.NewTicker(s.cfg.Retry)
	defer retry.Stop()
	for {
		changedServices, moreServices := services.Next()
		changedSlices, moreSlices := endpoints.Next()
		s.follow(ctx, changedServices, changedSlices)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moreServices:
		case <-moreSlices:
		case <-retry.C:
			s.openAll(ctx)
		}
	}
}

// follow makes the servers what the services want. Ports are closed before others are opened: one may have changed hands.
func (s *Servers) follow(ctx context.Context, services []table.Change[state.Service], endpoints []table.Change[state.EndpointSlice]) {
	added := false
	for _, c := range services {
		want := port(c.Row)
		if row, _, exists := s.cfg.State.Services.Snapshot().Get(c.Row.String()); c.Deleted && !exists {
			want = 0
		} else if exists {
			want = port(row)
		}
		name := c.Row.ServiceName
		if have := s.servers[name]; have != nil && have.port != want {
			s.close(have)
		}
		if want != 0 && s.servers[name] == nil {
			s.servers[name] = &server{name: name, port: want}
			s.recount(name)
			added = true
		}
	}
	for _, c := range endpoints {
		key := s.cfg.State.EndpointSlices.Key(c.Row)
		if before, known := s.owner[key]; known && before != c.Row.Service {
			s.recount(before)
		}
		if s.owner[key] = c.Row.Service; c.Deleted {
			delete(s.owner, key)
		}
		s.recount(c.Row.Service)
	}
	if added {
		s.openAll(ctx)
	}
}

func (s *Servers) recount(name state.ServiceName) {
	if srv := s.servers[name]; srv != nil {
		rows := s.cfg.State.EndpointSlices.Snapshot().By(state.SlicesByService, name.String())
		srv.count.Store(int64(local(s.cfg.Node, slices.Collect(rows))))
	}
}

// openAll opens what is not open. What cannot be is a problem until it can.
func (s *Servers) openAll(ctx context.Context) {
	for _, srv := range s.servers {
		if srv.http != nil {
			continue
		}
		subject := "service " + srv.name.String()
		if err := s.open(ctx, srv); err != nil {
			text := fmt.Sprintf("healthCheckNodePort %d: %v; load balancers take this node for unhealthy", srv.port, err)
			state.Raise(s.cfg.State.Problems, state.Problem{Source: problemSource, Subject: subject, Text: text}, time.Now())
			continue
		}
		state.Clear(s.cfg.State.Problems, problemSource, subject)
		s.cfg.Log.Debug("health check opened", "service", srv.name, "port", srv.port)
	}
}

func (s *Servers) open(ctx context.Context, srv *server) error {
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return mark(c, Mark) }}
	listener, err := listen.Listen(ctx, "tcp", ":"+strconv.Itoa(int(srv.port))) // all addresses of both families
	if err != nil {
		return err
	}
	// Connections inherit the mark, and a rule of somebody else's might mean it.
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = mark(raw, 0)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	srv.http = &http.Server{
		Handler: s.handler(srv), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	go func() {
		if err := srv.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Log.Warn("serve health check", "service", srv.name, "port", srv.port, "error", err)
		}
	}()
	return nil
}

func mark(c syscall.RawConn, value int) error {
	var set error
	if err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, value) }); err != nil {
		return err
	}
	if set != nil {
		return fmt.Errorf("mark socket: %w", set)
	}
	return nil
}

func (s *Servers) close(srv *server) {
	if srv.http != nil {
		_ = srv.http.Close()
		s.cfg.Log.Debug("health check closed", "service", srv.name, "port", srv.port)
	}
	delete(s.servers, srv.name)
	state.Clear(s.cfg.State.Problems, problemSource, "service "+srv.name.String())
}

func (s *Servers) closeAll() {
	for _, srv := range s.servers {
		s.close(srv)
	}
}

// handler answers every request as kube-proxy does: status 200 with ready endpoints, else 503.
func (s *Servers) handler(srv *server) http.Handler {
	type service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		count, healthy := int(srv.count.Load()), s.cfg.Healthy()
		body, err := json.MarshalIndent(struct {
			Service service `json:"service"`
			Local   int     `json:"localEndpoints"`
			Healthy bool    `json:"serviceProxyHealthy"`
		}{service{srv.name.Namespace, srv.name.Name}, count, healthy}, "", "\t")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(count))
		if count == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(body)
	})
}
