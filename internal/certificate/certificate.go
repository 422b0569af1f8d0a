// Package certificate decides what the Secrets by which agents, relay and clients know each other are to hold.
//
// It is pure but for new keys, which are random: what the Secrets hold and the time in, what they are to hold out. Whoever writes them does so in
// the order given and decides anew after a refusal, so that nothing is signed by an authority that is not kept.
//
// An authority is followed by another one in steps, so that parties that have read different states of the Secrets know each other:
//
//	signs --(two thirds of its life)--> signs, beside one that all have to trust first --(settle after all do)--> is trusted only --(its leaves have ended)--> gone
//
// When the authority is lost there is nobody to sign while the new one becomes trusted; leaves that are there go on.
package certificate

import (
	"bytes"
	"fmt"
	"maps"
	"time"
)

// The Secrets, by name.
const (
	Authority = "strait-hubble-ca"     // for the operator alone
	Server    = "strait-hubble-server" // of agents
	Relay     = "strait-hubble-relay"  // of the relay: client of agents, and server
	Client    = "strait-hubble-client" // of people and their tools
)

// Names returns those of all Secrets, the authority first.
func Names() []string { return []string{Authority, Server, Relay, Client} }

// What all of them hold.
const (
	CAFile   = "ca.crt"  // who is trusted
	CertFile = "tls.crt" // the certificate
	KeyFile  = "tls.key" // its key
)

// Label marks a Secret as the operator's; its value says what the Secret is.
const Label = "strait.dev/certificate"

// Labels are what a Secret of ours has.
func Labels(name string) map[string]string {
	role := "ca"
	if u, ok := uses()[name]; ok {
		role = u.role
	}
	return map[string]string{"app.kubernetes.io/part-of": "strait", "app.kubernetes.io/managed-by": "strait-operator", Label: role}
}

const (
	authorityLife = 3 * 365 * 24 * time.Hour
	// settle is how long an authority has been trusted by all before it signs: an hour in which each party reads its files, and an hour
	// because clocks may be wrong.
	settle = 2 * time.Hour
	// back is how long before it is made a certificate begins: clocks may be wrong by half of it, this way or that.
	back = time.Hour
)

// Config is what certificates are made for.
type Config struct {
	Namespace string        // of the Secrets and the relay's Service
	Validity  time.Duration // of leaves
}

// Secret is what one of them holds.
type Secret struct {
	Foreign bool // not marked as ours: it is left alone
	Data    map[string][]byte
}

// Decision is what is to be done, and what is to be told.
type Decision struct {
	// Writes are to be done in this order, none after one that was refused.
	Writes []Write
	// Problems are there until something changes.
	Problems []Problem
	// Ends says when the certificate ends that a Secret holds now.
	Ends map[string]time.Time
	// Again is when there will be something to do if nothing changes before; zero: never.
	Again time.Time
}

// Write makes or changes a Secret.
type Write struct {
	Name string
	// Data is what is to change: nil values are to be removed, keys that are not in it left as they are.
	Data   map[string][]byte
	Reason Reason
	Text   string // for people
}

// Problem needs a person.
type Problem struct {
	Name   string // of the Secret
	Reason Reason
	Text   string
}

// Reason is why something is done, as events and metrics have it.
type Reason string

// The reasons.
const (
	Made     Reason = "CertificateMade"
	Renewed  Reason = "CertificateRenewed"  // in time
	Repaired Reason = "CertificateRepaired" // what was there was not right
	Trusted  Reason = "TrustChanged"        // the certificate stays
	// Cut is a repair after which parties that have read their files before do not know the one that reads this, until they read again: the
	// authority was lost and the leaf, too.
	Cut Reason = "CertificateCut"

	AuthorityMade    Reason = "AuthorityMade"
	AuthorityLost    Reason = "AuthorityLost"    // and made anew
	AuthorityFollows Reason = "AuthorityFollows" // a new one is to be trusted
	AuthorityTrusted Reason = "AuthorityTrusted" // by all, or not by all any more
	AuthoritySigns   Reason = "AuthoritySigns"   // instead of the old one
	AuthorityRetired Reason = "AuthorityRetired" // the old one is not trusted any more

	Foreign Reason = "SecretForeign"
)

// Warns reports whether somebody should look.
func (r Reason) Warns() bool { return r == Repaired || r == Cut || r == AuthorityLost || r == Foreign }

// Decide compares what the Secrets hold, by name, with what they are to hold.
func Decide(c Config, held map[string]Secret, now time.Time) (Decision, error) {
	d := Decision{Ends: map[string]time.Time{}}
	leaves := readLeaves(held, now)
	for _, name := range Names() {
		if list, err := parseCertificates(held[name].Data[CertFile]); err == nil {
			d.Ends[name] = list[0].NotAfter
		}
		if held[name].Foreign {
			d.Problems = append(d.Problems, foreign(c, name))
		}
	}
	if held[Authority].Foreign {
		return d, nil // nobody signs
	}
	t, note, err := follow(c, held, leaves, now)
	if err != nil {
		return Decision{}, err
	}
	_, there := held[Authority]
	if changed := difference(held[Authority].Data, t.data()); len(changed) > 0 || !there {
		d.Writes = append(d.Writes, Write{Authority, changed, note.reason, note.text})
	}
	d.at(now, t.next(now))
	for _, l := range leaves {
		if held[l.name].Foreign {
			continue
		}
		w, err := l.decide(c, t, now)
		if err != nil {
			return Decision{}, err
		}
		if len(w.Data) > 0 {
			d.Writes = append(d.Writes, w)
		} else {
			d.at(now, l.due(c, t, now), l.pair.NotAfter)
		}
	}
	if len(d.Writes) > 0 {
		d.Again = now
	}
	return d, nil
}

// at notes moments to look again; those that have passed need no look: what was to be done then is done, or waits for another one.
func (d *Decision) at(now time.Time, moments ...time.Time) {
	for _, m := range moments {
		if m.After(now) && (d.Again.IsZero() || m.Before(d.Again)) {
			d.Again = m
		}
	}
}

func foreign(c Config, name string) Problem {
	consequence := "it is left as it is"
	if name == Authority {
		consequence = "without an authority no certificates are made or renewed"
	}
	return Problem{name, Foreign, fmt.Sprintf("Secret %s/%s is not Strait's, it has no label %s: %s. Delete it or label it %s=%s to have it made, "+
		"or set operator.certificates.enabled: false and bring all of them", c.Namespace, name, Label, consequence, Label, Labels(name)[Label])}
}

// difference returns what is to be changed in have to be like want, whose nil values are not to be there.
func difference(have, want map[string][]byte) map[string][]byte {
	out := maps.Clone(want)
	maps.DeleteFunc(out, func(key string, value []byte) bool {
		old, there := have[key]
		return there == (value != nil) && bytes.Equal(old, value)
	})
	return out
}

// stamp is how times are kept and told.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
