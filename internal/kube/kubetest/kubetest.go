// Package kubetest runs a real etcd and kube-apiserver on loopback for tests.
package kubetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// AdminToken belongs to system:masters.
const AdminToken = "admin-token"

// Server is a running API server with its etcd.
type Server struct {
	URL string
	t   testing.TB
	// args start the API server again after Stop.
	args []string
	api  *exec.Cmd
	dir  string
}

// Start runs a server until the test ends. The binaries are the lab's: without them the test is skipped. tokens are more
// users, "token" -> "user,group,...".
func Start(t testing.TB, tokens map[string]string) *Server {
	t.Helper()
	bin := Binaries(t)
	dir := t.TempDir()
	s := &Server{t: t, dir: dir}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	check(t, os.WriteFile(filepath.Join(dir, "sa.key"), keyPEM, 0o600))
	lines := AdminToken + ",admin,admin,system:masters\n"
	for token, user := range tokens {
		name, groups, _ := strings.Cut(user, ",")
		lines += fmt.Sprintf("%s,%s,%s,%q\n", token, name, name, groups)
	}
	check(t, os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(lines), 0o600))

	client, peer, port := freePort(t), freePort(t), freePort(t)
	etcd := fmt.Sprintf("http://127.0.0.1:%d", client)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	s.run(filepath.Join(bin, "etcd"), "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peerURL,
		"--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default="+peerURL)
	s.URL = fmt.Sprintf("https://127.0.0.1:%d", port)
	s.args = []string{
		filepath.Join(bin, "kube-apiserver"), "--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(port),
		"--cert-dir", filepath.Join(dir, "certs"), "--service-account-issuer", "https://test",
		"--service-account-key-file", filepath.Join(dir, "sa.key"), "--service-account-signing-key-file", filepath.Join(dir, "sa.key"),
		"--service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112", "--token-auth-file", filepath.Join(dir, "tokens.csv"),
		"--authorization-mode", "RBAC", "--watch-cache=true",
	}
	s.Resume()
	return s
}

// Config returns how client-go reaches the server with a token.
func (s *Server) Config(token string) *rest.Config {
	return &rest.Config{Host: s.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// Stop makes an outage: the API server is gone, etcd keeps what it has.
func (s *Server) Stop() {
	s.t.Helper()
	_ = s.api.Process.Kill()
	_ = s.api.Wait()
}

// Resume ends an outage and waits until the server is ready.
func (s *Server) Resume() {
	s.t.Helper()
	s.api = s.run(s.args[0], s.args[1:]...)
	client, err := rest.HTTPClientFor(s.Config(AdminToken))
	check(s.t, err)
	defer client.CloseIdleConnections()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		answer, err := client.Get(s.URL + "/readyz")
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == 200 {
				return
			}
			err = fmt.Errorf("readyz: %s", answer.Status)
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(s.dir, "kube-apiserver.log"))
			s.t.Fatalf("API server not ready: %v\n%s", err, tail(log))
		}
	}
}

func tail(log []byte) []byte { return log[max(0, len(log)-4000):] }

// run starts a process that dies with the test, even if the test is killed.
func (s *Server) run(path string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, filepath.Base(path)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(s.t, err)
	defer func() { _ = log.Close() }()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// Binaries returns the directory of the lab's Kubernetes binaries; without them the test is skipped.
func Binaries(t testing.TB) string {
	t.Helper()
	cache := os.Getenv("STRAIT_CACHE")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, ".cache", "strait")
	}
	found, _ := filepath.Glob(filepath.Join(cache, "sets", "*", "kube-apiserver"))
	for _, path := range found {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "etcd")); err == nil {
			return filepath.Dir(path)
		}
	}
	t.Skipf("no kube-apiserver and etcd under %s/sets: make up builds them", cache)
	return ""
}

func freePort(t testing.TB) int {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	check(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
