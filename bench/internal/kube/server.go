// Package kube runs a real etcd and API server inside a namespace and writes the objects of a benchmark to it.
package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/strait-net/strait/bench/internal/wire"
)

// The cluster's service ranges, the largest an API server accepts.
const serviceRanges = "10.96.0.0/12,fd00:96::/108"

const (
	etcd  = "http://127.0.0.1:2379" // inside the namespace
	port  = 6443
	token = "bench" // belongs to system:masters; the server is reachable from the run's namespaces only
)

// Object is a JSON object.
type Object = map[string]any

// Config is what a server needs.
type Config struct {
	Bin     string          // directory with etcd and kube-apiserver
	Dir     string          // data and logs
	Space   *wire.Namespace // where both run
	Address netip.Addr      // of Space, where clients in other namespaces find the server
	// Start starts a command inside Space; the process ends with the run.
	Start func(*exec.Cmd) error
}

// Server is a running API server with its etcd.
type Server struct {
	Config
	client *http.Client
	ended  sync.WaitGroup
}

// Wait waits until etcd and the API server have ended after their context.
func (s *Server) Wait() { s.ended.Wait() }

// Start starts both and waits until the server is ready.
func Start(ctx context.Context, c Config) (*Server, error) {
	s := &Server{Config: c}
	s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext:     s.dial,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}, // self-signed, in a namespace of our own
	}}
	if err := s.secrets(); err != nil {
		return nil, err
	}
	const peer = "http://127.0.0.1:2380"
	err := s.run(ctx, "etcd", "--data-dir", s.file("etcd"), "--unsafe-no-fsync", "--log-level", "warn", "--listen-client-urls", etcd,
		"--advertise-client-urls", etcd, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return nil, err
	}
	err = s.run(ctx, "kube-apiserver", "--etcd-servers", etcd, "--bind-address", "0.0.0.0", "--secure-port", fmt.Sprint(port),
		"--advertise-address", c.Address.String(), "--cert-dir", s.file("certs"), "--service-account-issuer", "https://bench",
		"--service-account-key-file", s.file("sa.key"), "--service-account-signing-key-file", s.file("sa.key"),
		"--service-cluster-ip-range", serviceRanges, "--token-auth-file", s.file("tokens.csv"), "--authorization-mode", "RBAC", "--profiling=false")
	if err != nil {
		return nil, err
	}
	return s, s.wait(ctx)
}

func (s *Server) file(name string) string { return filepath.Join(s.Dir, name) }

func (s *Server) secrets() error {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make key of service accounts: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(s.file("sa.key"), text, 0o600); err != nil {
		return err
	}
	return os.WriteFile(s.file("tokens.csv"), []byte(token+",bench,bench,system:masters\n"), 0o600)
}

func (s *Server) run(ctx context.Context, name string, args ...string) error {
	log, err := os.Create(s.file(name + ".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, name), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, s.Dir
	if err := s.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.ended.Go(func() { _ = cmd.Wait() })
	return nil
}

// dial connects from inside the namespace: the machine itself has no way to it.
func (s *Server) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	var d net.Dialer
	err = s.Space.Do(func() error {
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (s *Server) wait(ctx context.Context) error {
	for end := time.Now().Add(90 * time.Second); ; {
		err := s.do(ctx, http.MethodGet, "/readyz", nil)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(s.file("kube-apiserver.log"))
			return fmt.Errorf("API server is not ready: %w\n%s", err, log[max(0, len(log)-3000):])
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Kubeconfig is the configuration of a client in another namespace.
func (s *Server) Kubeconfig() ([]byte, error) {
	return json.Marshal(Object{
		"apiVersion": "v1", "kind": "Config", "current-context": "bench",
		"clusters": []Object{{"name": "bench", "cluster": Object{
			"server": "https://" + netip.AddrPortFrom(s.Address, port).String(), "insecure-skip-tls-verify": true}}},
		"users":    []Object{{"name": "bench", "user": Object{"token": token}}},
		"contexts": []Object{{"name": "bench", "context": Object{"cluster": "bench", "user": "bench"}}},
	})
}

// Create creates an object in a collection such as /api/v1/nodes.
func (s *Server) Create(ctx context.Context, collection string, o Object) error {
	return s.do(ctx, http.MethodPost, collection, o)
}

// Replace replaces the object at a path such as /api/v1/nodes/a.
func (s *Server) Replace(ctx context.Context, path string, o Object) error {
	return s.do(ctx, http.MethodPut, path, o)
}

// Delete deletes the object at a path.
func (s *Server) Delete(ctx context.Context, path string) error {
	return s.do(ctx, http.MethodDelete, path, nil)
}

// Merge applies a JSON merge patch to the object at a path.
func (s *Server) Merge(ctx context.Context, path string, patch Object) error {
	return s.send(ctx, http.MethodPatch, fmt.Sprintf("https://127.0.0.1:%d%s", port, path), "application/merge-patch+json", patch)
}

func (s *Server) do(ctx context.Context, method, path string, o Object) error {
	return s.request(ctx, method, fmt.Sprintf("https://127.0.0.1:%d%s", port, path), o)
}

func (s *Server) request(ctx context.Context, method, url string, o Object) error {
	return s.send(ctx, method, url, "application/json", o)
}

func (s *Server) send(ctx context.Context, method, url, kind string, o Object) error {
	var body io.Reader
	if o != nil {
		text, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("encode object for %s: %w", url, err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", kind)
	answer, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	if answer.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %s: %s", method, url, answer.Status, bytes.TrimSpace(text[:min(len(text), 400)]))
	}
	return nil
}
