package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// The files of a directory with certificates.
const (
	caFile   = "ca.crt"
	certFile = "tls.crt"
	keyFile  = "tls.key"
)

// Certificates are what one end of a connection shows, and by what it knows the other. The files are read again when they change: a new
// connection gets the new ones. What cannot be read leaves the old ones in force.
type Certificates struct {
	dir string

	mu     sync.Mutex
	stamps [3]stamp // guarded by mu: of the files that pair was read from
	pair   *pair    // guarded by mu; nil: none were right so far
}

// pair is the content of the files.
type pair struct {
	own   tls.Certificate
	roots *x509.CertPool
}

// stamp tells a changed file from the old one.
type stamp struct {
	size int64
	at   time.Time
}

// NewCertificates returns those of a directory with ca.crt, tls.crt and tls.key; they are read when they are needed.
func NewCertificates(dir string) *Certificates { return &Certificates{dir: dir} }

// Server makes a gRPC server ask every client for a certificate of the same authority.
func (c *Certificates) Server() grpc.ServerOption {
	return grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			p, err := c.current()
			if p == nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{p.own},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.roots,
			}, nil
		},
	}))
}

// Client makes a gRPC client show its certificate, and ask the other end for one of the same authority for a name.
func (c *Certificates) Client(name string) grpc.DialOption {
	return grpc.WithTransportCredentials(clientSide{credentials.NewTLS(&tls.Config{ServerName: name, MinVersion: tls.VersionTLS13}), c, name})
}

// clientSide are credentials that are read anew for each connection.
type clientSide struct {
	credentials.TransportCredentials
	from *Certificates
	name string
}

// ClientHandshake implements credentials.TransportCredentials.
func (s clientSide) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := s.from.current()
	if p == nil {
		return nil, nil, err
	}
	return credentials.NewTLS(&tls.Config{
		ServerName: s.name, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{p.own}, RootCAs: p.roots,
	}).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (s clientSide) Clone() credentials.TransportCredentials { return s }

// Watch tells report what is wrong with the files, or nil, whenever that changes, until ctx ends.
func (c *Certificates) Watch(ctx context.Context, every time.Duration, report func(error)) error {
	last := "?"
	for {
		_, err := c.current()
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != last {
			report(err)
			last = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// current returns the newest certificates that are right, and what is wrong with those in the files.
func (c *Certificates) current() (*pair, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stamps [3]stamp
	for i, name := range []string{caFile, certFile, keyFile} {
		info, err := os.Stat(filepath.Join(c.dir, name))
		if err != nil {
			return c.pair, fmt.Errorf("read certificates of flows: %w", err)
		}
		stamps[i] = stamp{info.Size(), info.ModTime()}
	}
	if c.pair != nil && stamps == c.stamps {
		return c.pair, nil
	}
	p, err := c.read()
	if err != nil {
		return c.pair, fmt.Errorf("read certificates of flows: %w", err)
	}
	c.pair, c.stamps = p, stamps
	return p, nil
}

func (c *Certificates) read() (*pair, error) {
	own, err := tls.LoadX509KeyPair(filepath.Join(c.dir, certFile), filepath.Join(c.dir, keyFile))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(c.dir, caFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New(filepath.Join(c.dir, caFile) + ": no certificate in it")
	}
	return &pair{own, roots}, nil
}
