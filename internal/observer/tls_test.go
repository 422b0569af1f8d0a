package observer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	return a
}

// sign returns a certificate for name and its key, as files have them.
func (a *authority) sign(t *testing.T, name string, serial int64) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}, a.cert, &own.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})
}

// write puts a server's certificates into dir.
func (a *authority) write(t *testing.T, dir string, serial int64) {
	t.Helper()
	cert, key := a.sign(t, ServerName, serial)
	for name, text := range map[string][]byte{caFile: a.pem, certFile: cert, keyFile: key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// client is what somebody with a certificate of an authority, or with none, connects by. serial is set to that of the server.
func (a *authority) client(t *testing.T, by *authority, serial *int64) grpc.DialOption {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	config := &tls.Config{RootCAs: roots, ServerName: ServerName, MinVersion: tls.VersionTLS13, VerifyConnection: func(s tls.ConnectionState) error {
		*serial = s.PeerCertificates[0].SerialNumber.Int64()
		return nil
	}}
	if by != nil {
		cert, key := by.sign(t, "client", 99)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

// TestTLS: only who has a certificate of the same authority is answered, and new files are in force without a restart.
func TestTLS(t *testing.T) {
	dir, good, bad := t.TempDir(), newAuthority(t), newAuthority(t)
	certificates := NewCertificates(dir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, reports := make(chan error, 2), make(chan error, 16)
	s := newServer(t, 8, sample()...)
	go func() { done <- s.Serve(ctx, listener, certificates.Option()) }()
	go func() { done <- certificates.Watch(ctx, 10*time.Millisecond, func(err error) { reports <- err }) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}()
	var serial int64
	ask := func(by *authority) error {
		serial = 0
		conn, err := grpc.NewClient(listener.Addr().String(), good.client(t, by, &serial))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err = observerpb.NewObserverClient(conn).ServerStatus(ctx, &observerpb.ServerStatusRequest{})
		return err
	}
	if err := <-reports; err == nil || !strings.Contains(err.Error(), caFile) {
		t.Errorf("without files: %v", err)
	}
	if err := ask(good); err == nil {
		t.Error("answered without certificates")
	}
	good.write(t, dir, 7)
	if err := <-reports; err != nil {
		t.Errorf("with files: %v", err)
	}
	if err := ask(good); err != nil || serial != 7 {
		t.Errorf("with certificates: %v, serial %d", err, serial)
	}
	for what, by := range map[string]*authority{"no certificate": nil, "somebody else's": bad} {
		if err := ask(by); err == nil {
			t.Errorf("answered who has %s", what)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, certFile), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-reports; err == nil {
		t.Error("nonsense is not reported")
	}
	if err := ask(good); err != nil || serial != 7 {
		t.Errorf("the old one while the new one is wrong: %v, serial %d", err, serial)
	}
	good.write(t, dir, 8)
	if err := <-reports; err != nil {
		t.Error(err)
	}
	if err := ask(good); err != nil || serial != 8 {
		t.Errorf("the new one: %v, serial %d", err, serial)
	}
}
