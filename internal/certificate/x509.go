package certificate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

const pemCertificate = "CERTIFICATE"

// certified is a certificate with its key, as bytes of a Secret and parsed.
type certified struct {
	*x509.Certificate
	key               crypto.Signer
	certText, keyText []byte
}

// made is when a certificate of ours was made.
func made(c *x509.Certificate) time.Time { return c.NotBefore.Add(back) }

// twoThirds is when a certificate has lived two thirds of its life.
func twoThirds(c *x509.Certificate) time.Time {
	return made(c).Add(c.NotAfter.Sub(made(c)) / 3 * 2)
}

func validAt(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

func isAuthority(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// issue makes a certificate with a new key. parent is nil for an authority, which signs itself.
func issue(template *x509.Certificate, parent *certified) (*certified, error) {
	// P-256 is what every TLS library takes; the name of the curve is all that is to be chosen.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", template.Subject.CommonName, err)
	}
	signer, by := crypto.Signer(key), template
	if parent != nil {
		signer, by = parent.key, parent.Certificate
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, by, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of %s: %w", template.Subject.CommonName, err)
	}
	return parsePair(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

func parsePair(certText, keyText []byte) (*certified, error) {
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return &certified{pair.Leaf, key, certText, keyText}, nil
}

// parseCertificates reads one certificate or more, and nothing else.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != pemCertificate {
			return nil, errors.New("there is something else than certificates in it")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("it is empty")
	}
	return out, nil
}

func encodeCertificates(list []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range list {
		_ = pem.Encode(&out, &pem.Block{Type: pemCertificate, Bytes: c.Raw}) // a buffer takes everything
	}
	return out.Bytes()
}

// signedBy returns the one of list that signed c; nil: none.
func signedBy(c *x509.Certificate, list []*x509.Certificate) *x509.Certificate {
	for _, a := range list {
		if bytes.Equal(c.RawIssuer, a.RawSubject) && c.CheckSignatureFrom(a) == nil {
			return a
		}
	}
	return nil
}
