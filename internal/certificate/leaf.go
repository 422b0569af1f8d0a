package certificate

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"
)

// use is what a leaf is for.
type use struct {
	role  string
	of    string // for people
	names func(namespace string) []string
	keys  []x509.ExtKeyUsage
}

func uses() map[string]use {
	return map[string]use{
		Server: {"server", "agents", func(string) []string {
			return []string{"observer.strait.dev"} // observer.ServerName: all nodes have the same
		}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		Relay: {"relay", "the relay", func(namespace string) []string {
			service := "hubble-relay." + namespace + ".svc"
			return []string{"relay.strait.dev", service, service + ".cluster.local", "localhost"} // localhost: a forwarded port
		}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}},
		Client: {"client", "clients", func(string) []string { return nil }, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	}
}

// leaf is what the Secret of a party holds.
type leaf struct {
	use
	name    string
	foreign bool
	there   bool
	data    map[string][]byte
	pair    *certified // nil: there is none
	wrong   error      // why
	trusted []*x509.Certificate
}

func readLeaves(held map[string]Secret, now time.Time) []leaf {
	var out []leaf
	for _, name := range []string{Server, Relay, Client} {
		s, there := held[name]
		l := leaf{use: uses()[name], name: name, foreign: s.Foreign, there: there, data: s.Data}
		l.pair, l.wrong = parsePair(s.Data[CertFile], s.Data[KeyFile])
		if list, err := parseCertificates(s.Data[CAFile]); err == nil {
			l.trusted = list
		}
		if l.pair != nil && !validAt(l.pair.Certificate, now) {
			l.wrong = fmt.Errorf("it is good from %s to %s", stamp(l.pair.NotBefore), stamp(l.pair.NotAfter))
		}
		out = append(out, l)
	}
	return out
}

// fits reports whether the leaf says what it is to say.
func (l leaf) fits(c Config) bool {
	return slices.Equal(l.pair.DNSNames, l.names(c.Namespace)) && slices.Equal(l.pair.ExtKeyUsage, l.keys) && !l.pair.IsCA
}

// due is when the leaf is to be made anew.
func (l leaf) due(c Config, t trust, now time.Time) time.Time {
	signer, _ := t.signer(now)
	if !l.pair.NotAfter.Before(signer.NotAfter) && !now.Add(c.Validity).Before(signer.NotAfter) {
		return l.pair.NotAfter // a new one would not last longer
	}
	at := twoThirds(l.pair.Certificate)
	if shorter := made(l.pair.Certificate).Add(c.Validity / 3 * 2); shorter.Before(at) {
		at = shorter
	}
	return at
}

// decide returns what is to be changed in the leaf's Secret; if nothing, then it holds a leaf that is right.
func (l leaf) decide(c Config, t trust, now time.Time) (Write, error) {
	bundle := t.bundle()
	want := map[string][]byte{CAFile: encodeCertificates(bundle)}
	signer, sure := t.signer(now)
	var by *x509.Certificate
	wrong := l.wrong
	if wrong == nil {
		if by = signedBy(l.pair.Certificate, bundle); by == nil {
			wrong = errors.New("it is signed by an authority that is not trusted")
		}
	}
	var n note
	switch {
	case !l.there:
		n.reason = Made
	case wrong != nil:
		n = note{Repaired, "; before: " + wrong.Error()}
	case !sure || by.Equal(signer.Certificate) && l.fits(c) && now.Before(l.due(c, t, now)):
		if changed := difference(l.data, want); len(changed) > 0 {
			return Write{l.name, changed, Trusted, fmt.Sprintf("%s trust %d authorities, %s the newest", l.of, len(bundle), t.current.Subject.CommonName)}, nil
		}
		return Write{}, nil
	default:
		n.reason = Renewed
	}
	if !sure {
		n.reason = Cut
		n.text += "; " + signer.Subject.CommonName + " is not known yet to parties that have read their files before: they do not know this one until they read them again"
	}
	fresh, err := l.make(c, signer, now)
	if err != nil {
		return Write{}, err
	}
	want[CertFile], want[KeyFile] = fresh.certText, fresh.keyText
	text := fmt.Sprintf("certificate of %s made by %s, good until %s%s", l.of, signer.Subject.CommonName, stamp(fresh.NotAfter), n.text)
	return Write{l.name, difference(l.data, want), n.reason, text}, nil
}

// make returns a new leaf; it does not outlive its authority.
func (l leaf) make(c Config, signer *certified, now time.Time) (*certified, error) {
	end := now.Add(c.Validity)
	if signer.NotAfter.Before(end) {
		end = signer.NotAfter
	}
	return issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "Strait " + l.role},
		DNSNames:  l.names(c.Namespace),
		NotBefore: now.Add(-back), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.keys, BasicConstraintsValid: true,
	}, signer)
}
