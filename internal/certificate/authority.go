package certificate

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What the authority's Secret holds beside CertFile and KeyFile, which are the current authority's, and CAFile, which begins with it.
const (
	oldKeyFile = "old.key"       // of the one before it, as long as that signs
	sinceFile  = "trusted-since" // time; all have trusted the current one since
	untilFile  = "old-until"     // time; the others, which sign no more, are trusted until then
)

// maxOld bounds what is trusted beside the current authority: somebody may delete it again and again.
const maxOld = 8

// trust is what the authority's Secret holds.
type trust struct {
	current *certified
	old     []*x509.Certificate // trusted as well, newest first
	oldKey  *certified          // the one of old that signs until current has settled; nil: none
	since   time.Time           // zero: not all trust current yet; without meaning if there is no old one
	until   time.Time           // zero: current has not settled yet
}

// bundle is who is trusted.
func (t trust) bundle() []*x509.Certificate {
	return append([]*x509.Certificate{t.current.Certificate}, t.old...)
}

func (t trust) data() map[string][]byte {
	out := map[string][]byte{
		CertFile: t.current.certText, KeyFile: t.current.keyText, CAFile: encodeCertificates(t.bundle()),
		oldKeyFile: nil, sinceFile: nil, untilFile: nil,
	}
	if t.oldKey != nil {
		out[oldKeyFile] = t.oldKey.keyText
	}
	if !t.since.IsZero() {
		out[sinceFile] = []byte(stamp(t.since))
	}
	if !t.until.IsZero() {
		out[untilFile] = []byte(stamp(t.until))
	}
	return out
}

// settled: whatever current signs is known to all.
func (t trust) settled(now time.Time) bool {
	return len(t.old) == 0 || !t.until.IsZero() || !t.since.IsZero() && !now.Before(t.since.Add(settle))
}

// signer returns who signs; it is not sure that all know it if the one that they know was lost.
func (t trust) signer(now time.Time) (by *certified, sure bool) {
	switch {
	case t.settled(now):
		return t.current, true
	case t.oldKey != nil:
		return t.oldKey, true
	}
	return t.current, false
}

// next is when there is something to do.
func (t trust) next(now time.Time) time.Time {
	d := Decision{}
	d.at(now, twoThirds(t.current.Certificate), t.current.NotAfter, t.until)
	if !t.since.IsZero() {
		d.at(now, t.since.Add(settle))
	}
	return d.Again
}

// readTrust returns what a Secret holds, or why that is nothing to go on with. What is wrong beside current is left out.
func readTrust(s Secret, now time.Time) (trust, error) {
	if len(s.Data) == 0 {
		return trust{}, errors.New("it was not there, or empty")
	}
	current, err := parsePair(s.Data[CertFile], s.Data[KeyFile])
	if err != nil {
		return trust{}, fmt.Errorf("%s and %s: %w", CertFile, KeyFile, err)
	}
	all, err := parseCertificates(s.Data[CAFile])
	switch {
	case err != nil:
		return trust{}, fmt.Errorf("%s: %w", CAFile, err)
	case !isAuthority(current.Certificate):
		return trust{}, errors.New(CertFile + ": it may not sign certificates")
	case !validAt(current.Certificate, now):
		return trust{}, fmt.Errorf("%s: it is good from %s to %s", CertFile, stamp(current.NotBefore), stamp(current.NotAfter))
	case !all[0].Equal(current.Certificate):
		return trust{}, errors.New(CAFile + ": it does not begin with " + CertFile)
	}
	t := trust{current: current, old: all[1:]}
	if len(t.old) == 0 {
		return t, nil
	}
	for _, c := range t.old {
		if pair, err := parsePair(encodeCertificates([]*x509.Certificate{c}), s.Data[oldKeyFile]); err == nil && validAt(c, now) {
			t.oldKey = pair
			break
		}
	}
	t.since = readTime(s.Data[sinceFile], now.Add(back))
	t.until = readTime(s.Data[untilFile], t.latest().Add(settle))
	if t.since.IsZero() && !t.until.IsZero() {
		t.since = made(current.Certificate) // it has settled: either time says so, should the other one be lost
	}
	return t, nil
}

// readTime returns zero for what cannot be.
func readTime(text []byte, latest time.Time) time.Time {
	t, err := time.Parse(time.RFC3339, string(text))
	if err != nil || t.After(latest) {
		return time.Time{}
	}
	return t
}

// note is what a change is for.
type note struct {
	reason Reason
	text   string
}

// follow takes one step of the authority's life, if there is one to take. Every step is one write, and the steps are some time apart or follow from
// what the leaves hold then.
func follow(c Config, held map[string]Secret, leaves []leaf, now time.Time) (trust, note, error) {
	t, err := readTrust(held[Authority], now)
	if err != nil {
		return anew(leaves, err, now)
	}
	all := trustedByAll(leaves, t.current.Certificate)
	name := t.current.Subject.CommonName
	switch {
	case len(t.old) == 0:
		if now.Before(twoThirds(t.current.Certificate)) {
			return t, note{Repaired, "what did not belong there was removed"}, nil
		}
		return t.succeed(now)
	case !t.until.IsZero() && !now.Before(t.until) && !anySigned(leaves, t.old):
		t.old, t.oldKey, t.since, t.until = nil, nil, time.Time{}, time.Time{}
		return t, note{AuthorityRetired, "only " + name + " is trusted now: the leaves of those before it have ended"}, nil
	case t.until.IsZero() && t.settled(now) && all:
		t.oldKey, t.until = nil, t.end(c, leaves, now)
		return t, note{AuthoritySigns, fmt.Sprintf("%s signs from now on; those before it are trusted until %s", name, stamp(t.until))}, nil
	case t.until.IsZero() && !all && !t.since.IsZero():
		t.since = time.Time{}
		return t, note{AuthorityTrusted, "not all Secrets hold " + name + " any more: the time in which it becomes known begins again"}, nil
	case t.until.IsZero() && all && t.since.IsZero():
		t.since = now
		return t, note{AuthorityTrusted, fmt.Sprintf("all trust %s; it signs in %s", name, settle)}, nil
	case !t.until.IsZero() && !now.Before(twoThirds(t.current.Certificate)):
		return t.succeed(now)
	}
	return t, note{Repaired, "what did not belong there was removed"}, nil
}

// anew makes an authority when there is none. Whoever the leaves were signed by stays trusted: parties go on with what they have.
func anew(leaves []leaf, why error, now time.Time) (trust, note, error) {
	fresh, err := newAuthority(now)
	if err != nil {
		return trust{}, note{}, err
	}
	t := trust{current: fresh, old: adopt(leaves, now)}
	name := fresh.Subject.CommonName
	if len(t.old) == 0 {
		return t, note{AuthorityMade, fmt.Sprintf("%s made, good until %s (before: %v)", name, stamp(fresh.NotAfter), why)}, nil
	}
	return t, note{AuthorityLost, fmt.Sprintf("%v: %s takes its place. It signs %s after all have it in %s; until then leaves are good as they are, and cannot be renewed",
		why, name, settle, CAFile)}, nil
}

// succeed makes the authority that follows current.
func (t trust) succeed(now time.Time) (trust, note, error) {
	fresh, err := newAuthority(now)
	if err != nil {
		return trust{}, note{}, err
	}
	old := append([]*x509.Certificate{t.current.Certificate}, t.old...)
	text := fmt.Sprintf("%s is to follow %s: it signs %s after all have it in %s", fresh.Subject.CommonName, t.current.Subject.CommonName, settle, CAFile)
	return trust{current: fresh, old: old[:min(len(old), maxOld)], oldKey: t.current}, note{AuthorityFollows, text}, nil
}

func newAuthority(now time.Time) (*certified, error) {
	// Names differ, so that of two that are trusted the right one is found at once.
	return issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "Strait authority " + rand.Text()[:8]},
		NotBefore: now.Add(-back), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
}

// adopt returns the authorities that leaves show as trusted. Those of a Secret count if its leaf is signed by one of them: they were
// written together.
func adopt(leaves []leaf, now time.Time) []*x509.Certificate {
	var signers, others []*x509.Certificate
	for _, l := range leaves {
		if l.foreign || l.pair == nil || !validAt(l.pair.Certificate, now) {
			continue
		}
		signer := signedBy(l.pair.Certificate, l.trusted)
		if signer == nil {
			continue
		}
		signers = append(signers, signer)
		others = append(others, l.trusted...)
	}
	var out []*x509.Certificate
	for _, c := range append(signers, others...) {
		if len(out) < maxOld && isAuthority(c) && validAt(c, now) && !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// end is when the last leaf of the old ones has ended everywhere.
func (t trust) end(c Config, leaves []leaf, now time.Time) time.Time {
	end := now.Add(c.Validity)
	for _, l := range leaves {
		if l.pair != nil && !l.foreign && l.pair.NotAfter.After(end) {
			end = l.pair.NotAfter
		}
	}
	if latest := t.latest(); latest.Before(end) {
		end = latest
	}
	return end.Add(settle).Truncate(time.Second)
}

// latest is when the last of the old ones ends.
func (t trust) latest() time.Time {
	var out time.Time
	for _, c := range t.old {
		if c.NotAfter.After(out) {
			out = c.NotAfter
		}
	}
	return out
}

// trustedByAll reports whether every party that reads its Secret now trusts a.
func trustedByAll(leaves []leaf, a *x509.Certificate) bool {
	return !slices.ContainsFunc(leaves, func(l leaf) bool {
		return !l.foreign && (l.pair == nil || !slices.ContainsFunc(l.trusted, a.Equal))
	})
}

func anySigned(leaves []leaf, by []*x509.Certificate) bool {
	return slices.ContainsFunc(leaves, func(l leaf) bool {
		return !l.foreign && l.pair != nil && signedBy(l.pair.Certificate, by) != nil
	})
}
