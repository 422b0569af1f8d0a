// Package world is the web server behind the lab's router: it writes down who called.
package world

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"
)

// Serve answers HTTP on port 80 of both families. /clientip and /hostname answer as agnhost does; every request is logged
// with the address it came from, which is what the cluster's network made of it.
func Serve() error {
	logger := slog.New(slog.NewTextHandler(os.Stdout, nil))
	mux := http.NewServeMux()
	reply := func(text func(*http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			logger.Info("request", "client", r.RemoteAddr, "method", r.Method, "host", r.Host, "path", r.URL.Path)
			fmt.Fprint(w, text(r))
		}
	}
	mux.HandleFunc("/clientip", reply(func(r *http.Request) string { return r.RemoteAddr }))
	mux.HandleFunc("/hostname", reply(func(*http.Request) string { return "outside" }))
	mux.HandleFunc("/", reply(func(r *http.Request) string {
		return fmt.Sprintf("This is the world outside. You come from %s.\n", r.RemoteAddr)
	}))
	server := &http.Server{Addr: ":80", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}
