// Package pki issues the certificates of one lab: a throw-away authority on disk, nothing leaves the machine.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// lifetime of everything: a lab is younger.
const lifetime = 365 * 24 * time.Hour

// Authority signs certificates and keeps them in a directory as NAME.crt and NAME.key.
type Authority struct {
	dir  string
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Subject is who a certificate is for.
type Subject struct {
	CommonName   string   // user name to the API server
	Organization []string // groups to the API server
	DNS          []string
	IPs          []net.IP
}

// New makes an authority named name in dir.
func New(dir, name string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := template(Subject{CommonName: "strait-lab-" + name})
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, name: name, cert: cert, key: key}
	return a, a.write(name, der, key)
}

// Load reads an authority that New made.
func Load(dir, name string) (*Authority, error) {
	a := &Authority{dir: dir, name: name}
	certPEM, err := os.ReadFile(a.CertFile(name))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(a.KeyFile(name))
	if err != nil {
		return nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("read authority %s: no PEM block", name)
	}
	if a.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
		return nil, err
	}
	a.key, err = x509.ParseECPrivateKey(keyBlock.Bytes)
	return a, err
}

// Issue makes and stores a certificate for server and client use, with a new key.
func (a *Authority) Issue(file string, s Subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template, err := template(s)
	if err != nil {
		return err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", file, err)
	}
	return a.write(file, der, key)
}

// CAFile is the authority's own certificate.
func (a *Authority) CAFile() string { return a.CertFile(a.name) }

// CertFile and KeyFile are where a certificate and its key are stored.
func (a *Authority) CertFile(file string) string { return filepath.Join(a.dir, file+".crt") }
func (a *Authority) KeyFile(file string) string  { return filepath.Join(a.dir, file+".key") }

func template(s Subject) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.CommonName, Organization: s.Organization},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		DNSNames:     s.DNS,
		IPAddresses:  s.IPs,
	}, nil
}

func (a *Authority) write(file string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(a.CertFile(file), cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(a.KeyFile(file), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600)
}

// Kubeconfig renders a client configuration that carries its certificates with it. The server's certificate is checked
// against the name "kubernetes", whatever address it is reached at.
func (a *Authority) Kubeconfig(server, client string) ([]byte, error) {
	var files [3][]byte
	for i, f := range []string{a.CAFile(), a.CertFile(client), a.KeyFile(client)} {
		content, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		files[i] = content
	}
	return kubeconfig(server, client, files), nil
}
