package metric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server serves /metrics, /healthz and /readyz. Address, Registry and Log are required.
type Server struct {
	Address  string // host:port; an empty host is every address of the node
	Registry *prometheus.Registry
	// Live and Ready return why the process is not; nil functions mean it is.
	Live, Ready func() error
	// More are further paths, as net/http.ServeMux has them: "GET /policies".
	More map[string]http.Handler
	Log  *slog.Logger
}

// Handler returns the three paths.
func (s Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /healthz", answerHealth(s.Live))
	mux.HandleFunc("GET /readyz", answerHealth(s.Ready))
	for pattern, handler := range s.More {
		mux.Handle(pattern, handler)
	}
	return mux
}

func answerHealth(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		text := "ok\n"
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				text = err.Error() + "\n"
			}
		}
		_, _ = io.WriteString(w, text) // the client has gone: nobody to tell
	}
}

// Listen returns the listener of Serve. It is its own step so that an address in use is known at start.
func (s Server) Listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on metricsAddress %q: %w", s.Address, err)
	}
	return l, nil
}

// Serve answers on l until ctx ends; it closes l.
func (s Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return ctx.Err()
}
