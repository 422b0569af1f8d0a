package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/strait-net/strait/lab/internal/controlplane"
	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/topology"
	"github.com/strait-net/strait/lab/internal/wire"
)

// Kubeconfig is the administrator's, for use on the machine.
func Kubeconfig(state string) string { return filepath.Join(state, "kubeconfig") }

// serveAPI gives the API server an address on the machine's loopback and writes the kubeconfig that uses it.
func (s *Supervisor) serveAPI() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for API clients: %w", err)
	}
	s.apiPort = listener.Addr().(*net.TCPAddr).Port
	content, err := s.ca.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", s.apiPort), controlplane.AdminName)
	if err != nil {
		return err
	}
	if err := os.WriteFile(Kubeconfig(s.config.State), content, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go s.splice(client.(*net.TCPConn))
		}
	}()
	return nil
}

// splice joins a client with the API server; each direction ends by itself, as exec and port-forward need it.
func (s *Supervisor) splice(client *net.TCPConn) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	dialled, err := s.control.Dial(ctx, "tcp", s.config.Spec.APIServer().String())
	if err != nil {
		return // the client sees the connection close, as with any server that is not up
	}
	server := dialled.(*net.TCPConn)
	defer server.Close()
	up := make(chan struct{})
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
		close(up)
	}()
	_, _ = io.Copy(client, server)
	_ = client.CloseWrite()
	<-up
}

func (s *Supervisor) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathState, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.state(), nil) })
	mux.HandleFunc("POST "+wire.PathNodes, func(w http.ResponseWriter, r *http.Request) {
		var b wire.Boot
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		m, err := s.addNode(b)
		answer(w, m, err)
	})
	mux.HandleFunc("POST "+wire.PathNodes+"/{name}/kill", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.killNode(r.PathValue("name")))
	})
	mux.HandleFunc("POST "+wire.PathNodes+"/{name}/restart", func(w http.ResponseWriter, r *http.Request) {
		var b wire.Boot
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, nil, s.restartNode(r.PathValue("name"), b))
	})
	return mux
}

func answer(w http.ResponseWriter, body any, err error) {
	switch {
	case errors.Is(err, errNoNode):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case body != nil:
		_ = json.NewEncoder(w).Encode(body) // the client has gone: nobody to tell
	}
}

func (s *Supervisor) state() wire.State {
	spec := s.config.Spec
	state := wire.State{Spec: spec, Started: s.started, Pid: s.pid, APIPort: s.apiPort, Bin: s.config.Bin}
	for _, m := range []struct {
		net   *namespace.Net
		addrs []string
	}{
		{s.control, texts(spec.ControlPlaneAddrs())},
		{s.router, append(texts(spec.RouterAddrs()), texts(spec.RouterOutsideAddrs())...)},
		{s.outside, texts(spec.OutsideAddrs())},
		{s.underlay, nil},
	} {
		state.Machines = append(state.Machines, wire.Machine{Name: m.net.Name, Addrs: m.addrs, Net: m.net.Path(s.pid)})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.nodes {
		state.Machines = append(state.Machines, s.describeLocked(m))
	}
	return state
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.String()
	}
	return out
}

// Components names the logs that exist besides those of nodes, by machine.
func Components() map[string][]string {
	return map[string][]string{
		topology.ControlPlane: {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"},
		topology.Outside:      {"web", "dns"},
		topology.Router:       {"web", "dns"}, // what is behind it
	}
}
