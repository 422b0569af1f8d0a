package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultSocket is where the agent listens unless its runDir says otherwise.
const DefaultSocket = "/run/strait/agent.sock"

// ErrNotFound is wrapped by Provider.DumpMap when there is no such map, and by the Client when the agent says so.
var ErrNotFound = errors.New("not found")

// ErrNotOffered is wrapped by the Client when the agent has no such function.
var ErrNotOffered = errors.New("not offered by this agent")

// Provider is what the agent answers with. A nil function makes its path answer 501.
type Provider struct {
	Status    func(context.Context) (Status, error)
	Nodes     func(context.Context) ([]Node, error)
	Endpoints func(context.Context) ([]Endpoint, error)
	Services  func(context.Context) ([]Service, error)
	// Service tells everything of one service. It wraps ErrNotFound when there is none of that name.
	Service func(ctx context.Context, namespace, name string) (ServiceDetail, error)
	Remotes func(context.Context) ([]Remote, error)
	Routes  func(context.Context) ([]Route, error)
	Devices func(context.Context) ([]Device, error)
	Maps    func(context.Context) ([]Map, error)
	// DumpMap wraps ErrNotFound when name is no map. limit is the largest number of rows, 0 for all. With match only rows with one of these
	// words, or with a port of one of these addresses.
	DumpMap func(ctx context.Context, name string, limit int, match ...string) (MapDump, error)
	// Takeover says who serves Services; TakeOver makes the node do it in place of kube-proxy, and UndoTakeover is the way back.
	Takeover     func(context.Context) (Takeover, error)
	TakeOver     func(context.Context) (Takeover, error)
	UndoTakeover func(ctx context.Context, force bool) (Takeover, error)
	// Policies are the policies of all kinds; Policy tells everything of one and wraps ErrNotFound when there is none of that name.
	Policies func(context.Context) ([]Policy, error)
	Policy   func(ctx context.Context, name PolicyName) (PolicyDetail, error)
	// Rules tells what rules have counted; with shadowed also which of them never can decide.
	Rules          func(ctx context.Context, shadowed bool) (Rules, error)
	Pods           func(context.Context) ([]PodRow, error)
	Namespaces     func(context.Context) ([]NamespaceRow, error)
	Identities     func(context.Context) ([]IdentityRow, error)
	PolicyPrograms func(context.Context) ([]ProgramRow, error)
	// Verdict judges a connection by what is in the kernel. It wraps ErrNotFound when an end is not known, ErrBadQuestion when it cannot be asked so.
	Verdict func(context.Context, VerdictQuestion) (PolicyVerdict, error)
	// Explain works out the node's part of a packet's path. It wraps ErrNotFound when the sender is not here, ErrBadQuestion when it cannot be asked so.
	Explain func(context.Context, ExplainQuestion) (ExplainPart, error)
	// Ends says who has one of these names or addresses; a word that nobody has adds nothing.
	Ends func(ctx context.Context, words []string) (Ends, error)
	// Check compares API, model and kernel, and repairs when repair is set.
	Check func(ctx context.Context, repair bool) (Check, error)
	// CheckIPAM compares address records with live sandboxes, and repairs when fix is set.
	CheckIPAM func(ctx context.Context, fix bool) (IPAMCheck, error)
}

// failure is the body of every answer that is not 200.
type failure struct {
	Error string `json:"error"`
}

// Handler serves the API.
func Handler(p Provider) http.Handler {
	mux := http.NewServeMux()
	get(mux, "/v1/status", p.Status)
	get(mux, "/v1/nodes", p.Nodes)
	get(mux, "/v1/endpoints", p.Endpoints)
	get(mux, "/v1/services", p.Services)
	get(mux, "/v1/remotes", p.Remotes)
	get(mux, "/v1/routes", p.Routes)
	get(mux, "/v1/devices", p.Devices)
	get(mux, "/v1/maps", p.Maps)
	handle(mux, "GET /v1/services/{namespace}/{name}", p.Service != nil, func(r *http.Request) (any, error) {
		return p.Service(r.Context(), r.PathValue("namespace"), r.PathValue("name"))
	})
	handle(mux, "GET /v1/maps/{name}", p.DumpMap != nil, func(r *http.Request) (any, error) {
		limit := 0
		if text := r.URL.Query().Get("limit"); text != "" {
			var err error
			if limit, err = strconv.Atoi(text); err != nil || limit < 0 {
				return nil, BadQuestion("limit %q: want a number of rows, 0 or more", text)
			}
		}
		return p.DumpMap(r.Context(), r.PathValue("name"), limit, r.URL.Query()["match"]...)
	})
	for method, fix := range map[string]bool{http.MethodGet: false, http.MethodPost: true} {
		handle(mux, method+" /v1/ipam/check", p.CheckIPAM != nil, func(r *http.Request) (any, error) { return p.CheckIPAM(r.Context(), fix) })
	}
	handleTakeover(mux, p)
	handlePolicy(mux, p)
	handleExplain(mux, p)
	handleEnds(mux, p)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusNotFound, failure{fmt.Sprintf("no such path: %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

// handle answers a pattern with what ask returns. offered: the Provider has the function for it.
func handle(mux *http.ServeMux, pattern string, offered bool, ask func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if !offered {
			write(w, http.StatusNotImplemented, failure{r.URL.Path + ": " + ErrNotOffered.Error()})
			return
		}
		v, err := ask(r)
		answer(w, v, err)
	})
}

func get[T any](mux *http.ServeMux, path string, fn func(context.Context) (T, error)) {
	handle(mux, "GET "+path, fn != nil, func(r *http.Request) (any, error) { return fn(r.Context()) })
}

func answer(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, ErrNotFound):
		write(w, http.StatusNotFound, failure{err.Error()})
	case errors.Is(err, ErrBadQuestion):
		write(w, http.StatusBadRequest, failure{err.Error()})
	case err != nil:
		write(w, http.StatusInternalServerError, failure{err.Error()})
	default:
		write(w, http.StatusOK, v)
	}
}

func write(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code = http.StatusInternalServerError
		body, _ = json.Marshal(failure{"encode answer: " + err.Error()}) // a struct of one string cannot fail
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client has gone: nobody to tell
}

// Listen makes the socket, for root only. A socket file nobody listens on is replaced; one that answers is an error.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of agent socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: another agent answers there", path)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove stale agent socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on agent socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect agent socket: %w", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends; it closes l.
func Serve(ctx context.Context, l net.Listener, p Provider, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           Handler(p),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve local API: %w", err)
	}
	return ctx.Err()
}

// isPath reports whether name can be one element of a path of the API.
func isPath(name string) bool {
	return name != "" && !strings.ContainsAny(name, "/?#%") && name != ".."
}
