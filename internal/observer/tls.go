package observer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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

// Certificates are what a server shows, and by what it knows its clients. The files are read again when they change: a new
// connection gets the new ones. What cannot be read leaves the old ones in force.
type Certificates struct {
	dir string

	mu     sync.Mutex
	stamps [3]stamp    // guarded by mu: of the files that config was read from
	config *tls.Config // guarded by mu; nil: none were right so far
}

// stamp tells a changed file from the old one.
type stamp struct {
	size int64
	at   time.Time
}

// NewCertificates returns those of a directory with ca.crt, tls.crt and tls.key; they are read when they are needed.
func NewCertificates(dir string) *Certificates { return &Certificates{dir: dir} }

// Option makes a gRPC server ask every client for a certificate of the same authority.
func (c *Certificates) Option() grpc.ServerOption {
	return grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config, err := c.current()
			if config == nil {
				return nil, err
			}
			return config, nil
		},
	}))
}

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
func (c *Certificates) current() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stamps [3]stamp
	for i, name := range []string{caFile, certFile, keyFile} {
		info, err := os.Stat(filepath.Join(c.dir, name))
		if err != nil {
			return c.config, fmt.Errorf("read certificates of flows: %w", err)
		}
		stamps[i] = stamp{info.Size(), info.ModTime()}
	}
	if c.config != nil && stamps == c.stamps {
		return c.config, nil
	}
	config, err := c.read()
	if err != nil {
		return c.config, fmt.Errorf("read certificates of flows: %w", err)
	}
	c.config, c.stamps = config, stamps
	return config, nil
}

func (c *Certificates) read() (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(filepath.Join(c.dir, certFile), filepath.Join(c.dir, keyFile))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(c.dir, caFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New(filepath.Join(c.dir, caFile) + ": no certificate in it")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{own},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}, nil
}
