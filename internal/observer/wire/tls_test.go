package wire_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/strait-net/strait/internal/observer/wire"
	"github.com/strait-net/strait/internal/testkit/authority"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTLS: only who has a certificate of the same authority is answered, and new files are in force at either end without a restart.
func TestTLS(t *testing.T) {
	dir, clientDir, otherDir, good, bad := t.TempDir(), t.TempDir(), t.TempDir(), authority.New(t), authority.New(t)
	certificates := wire.NewCertificates(dir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, reports := make(chan error, 2), make(chan error, 16)
	go func() {
		done <- wire.Serve(ctx, listener, func(*grpc.Server) {}, wire.Healthy(), certificates.Server())
	}()
	go func() { done <- certificates.Watch(ctx, 10*time.Millisecond, func(err error) { reports <- err }) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}()
	var conns []*grpc.ClientConn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	check := func(conn *grpc.ClientConn) (serial int64, err error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var with peer.Peer
		if _, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&with)); err == nil {
			serial = with.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].SerialNumber.Int64()
		}
		return serial, err
	}
	client := wire.NewCertificates(clientDir)
	dial := func(c *wire.Certificates, name string) *grpc.ClientConn {
		conn, err := grpc.NewClient(listener.Addr().String(), c.Client(name))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		return conn
	}
	ask := func() (int64, error) { return check(dial(client, wire.ObserverName)) }
	want := func(what string, serial int64) {
		t.Helper()
		if got, err := ask(); err != nil || got != serial {
			t.Errorf("%s: serial %d, %v; want %d", what, got, err, serial)
		}
	}
	if err := <-reports; err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("without files: %v", err)
	}
	reported := func(what string, right bool) { // files are written one after the other: what is half written may be reported before
		t.Helper()
		for deadline := time.After(20 * time.Second); ; {
			select {
			case err := <-reports:
				if (err == nil) == right {
					return
				}
			case <-deadline:
				t.Fatalf("%s: not reported", what)
			}
		}
	}
	if _, err := ask(); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("a client without files: %v", err)
	}
	good.Write(t, clientDir, "client", 99)
	if _, err := ask(); err == nil {
		t.Error("answered without certificates")
	}
	good.Write(t, dir, wire.ObserverName, 7)
	reported("with files", true)
	want("with certificates", 7)
	running := dial(client, wire.ObserverName)
	if _, err := check(running); err != nil {
		t.Fatal(err)
	}
	if _, err := check(dial(client, wire.RelayName)); err == nil || !strings.Contains(err.Error(), wire.RelayName) {
		t.Errorf("a certificate for another name: %v", err)
	}
	bad.Write(t, otherDir, "client", 98)
	if err := os.WriteFile(filepath.Join(otherDir, "ca.crt"), good.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check(dial(wire.NewCertificates(otherDir), wire.ObserverName)); err == nil {
		t.Error("answered who has somebody else's")
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	reported("nonsense", false)
	want("the old one while the new one is wrong", 7)
	good.Write(t, dir, wire.ObserverName, 8)
	reported("the new one", true)
	want("the new one", 8)

	next := authority.New(t) // both ends change to another authority while a connection is open
	next.Write(t, dir, wire.ObserverName, 9)
	next.Write(t, clientDir, "client", 99)
	want("of another authority", 9)
	if serial, err := check(running); err != nil || serial != 7 {
		t.Errorf("the connection of before: serial %d, %v", serial, err)
	}
}

// TestNoCertificate: who shows none is not answered.
func TestNoCertificate(t *testing.T) {
	dir, good := t.TempDir(), authority.New(t)
	good.Write(t, dir, wire.ObserverName, 7)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- wire.Serve(ctx, listener, func(*grpc.Server) {}, wire.Healthy(), wire.NewCertificates(dir).Server())
	}()
	roots, err := credentials.NewClientTLSFromFile(filepath.Join(dir, "ca.crt"), wire.ObserverName)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(roots))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err == nil {
		t.Error("answered")
	}
	_ = conn.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
