package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

var lives = flag.Int("lives", 25, "how many changes of authority are lived through")

// Years, and changes of authority, with wrong clocks, parties that read late, leaders that write late, two leaders, absent leaders, deletions and
// broken content: parties know each other all the time, unless the authority was lost and a leaf with it.
func TestPartiesKnowEachOther(t *testing.T) {
	live := func(seed int, validity, age, life time.Duration) {
		t.Run(fmt.Sprintf("%d, %v of %v", seed, life, validity), func(t *testing.T) {
			w := newWorld(t, uint64(seed), validity, age)
			w.run(life)
			t.Logf("%d checks, %d excused, %d disturbances, %d authorities, %v", w.checks, w.excuses, w.disturbed, len(w.authorities), w.reasons)
		})
	}
	live(0, 90*day, 0, 3*365*day)
	live(1, day, 0, 90*day)
	for seed := range *lives {
		validity := []time.Duration{1, 2, 4, 8, 90}[seed%5] * day
		live(2+seed, validity, authorityLife/3*2-3*day, 20*day)
	}
}

const day = 24 * time.Hour

// keeper does what is decided, at once.
type keeper struct {
	t      *testing.T
	config Config
	now    time.Time
	held   map[string]Secret
}

func newKeeper(t *testing.T) *keeper {
	return &keeper{t, Config{Namespace: "strait", Validity: 90 * day}, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), map[string]Secret{}}
}

// settle returns what was done until there was nothing to do, and the last decision.
func (k *keeper) settle() (done []string, last Decision) {
	k.t.Helper()
	for range 6 {
		d, err := Decide(k.config, k.held, k.now)
		if err != nil {
			k.t.Fatal(err)
		}
		if len(d.Writes) == 0 {
			return done, d
		}
		if !d.Again.Equal(k.now) {
			k.t.Errorf("after writes to be looked at again at %s", d.Again)
		}
		for _, w := range d.Writes {
			data := maps.Clone(k.held[w.Name].Data)
			if data == nil {
				data = map[string][]byte{}
			}
			maps.Copy(data, w.Data)
			maps.DeleteFunc(data, func(_ string, v []byte) bool { return v == nil })
			k.held[w.Name] = Secret{Data: data}
			done = append(done, strings.TrimPrefix(w.Name, "strait-hubble-")+" "+string(w.Reason))
		}
	}
	k.t.Fatalf("there is always something to do: %v", done)
	return nil, Decision{}
}

func (k *keeper) expect(want ...string) Decision {
	k.t.Helper()
	done, d := k.settle()
	if !slices.Equal(done, want) {
		k.t.Fatalf("%s: done %q, want %q", stamp(k.now), done, want)
	}
	return d
}

func (k *keeper) leaf(name string) *x509.Certificate {
	k.t.Helper()
	pair, err := parsePair(k.held[name].Data[CertFile], k.held[name].Data[KeyFile])
	if err != nil {
		k.t.Fatal(err)
	}
	return pair.Certificate
}

var firstInstall = []string{"ca AuthorityMade", "server CertificateMade", "relay CertificateMade", "client CertificateMade"}

// What is made, for what, and for how long.
func TestFirst(t *testing.T) {
	k := newKeeper(t)
	d := k.expect(firstInstall...)
	if want := k.now.Add(60 * day); !d.Again.Equal(want) {
		t.Errorf("to be looked at again at %s, want %s", d.Again, want)
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, x := range []struct {
		name  string
		names []string
		keys  []x509.ExtKeyUsage
		life  time.Duration
	}{
		{Authority, nil, nil, 3 * 365 * day},
		{Server, []string{"observer.strait.dev"}, both[:1], 90 * day},
		{Relay, []string{"relay.strait.dev", "hubble-relay.strait.svc", "hubble-relay.strait.svc.cluster.local", "localhost"}, both, 90 * day},
		{Client, nil, both[1:], 90 * day},
	} {
		c := k.leaf(x.name)
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !slices.Equal(c.DNSNames, x.names) || !slices.Equal(c.ExtKeyUsage, x.keys) || !ok || key.Curve != elliptic.P256() || c.IsCA != (x.name == Authority) {
			t.Errorf("%s: names %q, keys %v, %T", x.name, c.DNSNames, c.ExtKeyUsage, c.PublicKey)
		}
		if !c.NotBefore.Equal(k.now.Add(-time.Hour)) || !c.NotAfter.Equal(k.now.Add(x.life)) || !d.Ends[x.name].Equal(c.NotAfter) {
			t.Errorf("%s: good from %s to %s, told %s", x.name, c.NotBefore, c.NotAfter, d.Ends[x.name])
		}
		data := k.held[x.name].Data
		if !bytes.Equal(data[CAFile], k.held[Authority].Data[CertFile]) {
			t.Errorf("%s trusts others", x.name)
		}
		t.Logf("%s: %d bytes of certificate, %d as text, key %d as text", x.name, len(c.Raw), len(data[CertFile]), len(data[KeyFile]))
	}
}

// A life without harm, step by step.
func TestSteps(t *testing.T) {
	k := newKeeper(t)
	k.expect(firstInstall...)
	leaves := []string{"server CertificateRenewed", "relay CertificateRenewed", "client CertificateRenewed"}
	for end := k.now.Add(2 * 365 * day); ; {
		_, d := k.settle()
		if k.now = d.Again; !k.now.Before(end) {
			break
		}
		k.expect(leaves...)
	}
	d := k.expect("ca AuthorityFollows", "server TrustChanged", "relay TrustChanged", "client TrustChanged", "ca AuthorityTrusted")
	if want := k.now.Add(2 * time.Hour); !d.Again.Equal(want) {
		t.Errorf("to be looked at again at %s, want %s", d.Again, want)
	}
	k.now = d.Again
	k.expect(append([]string{"ca AuthoritySigns"}, leaves...)...)
	if len(k.held[Authority].Data[oldKeyFile]) > 0 {
		t.Error("the key of the old authority is kept")
	}
	signed := k.now
	for {
		_, d := k.settle()
		k.now = d.Again
		if done, _ := k.settle(); !slices.Equal(done, leaves) {
			if want := []string{"ca AuthorityRetired", "server TrustChanged", "relay TrustChanged", "client TrustChanged"}; !slices.Equal(done, want) {
				t.Errorf("done %q, want %q", done, want)
			}
			break
		}
	}
	if want := signed.Add(90*day + 2*time.Hour); !k.now.Equal(want) {
		t.Errorf("the old authority was trusted until %s, want %s", k.now, want)
	}
}

// What is not as it is to be, and what becomes of it.
func TestRepairs(t *testing.T) {
	all := []string{"server CertificateRenewed", "relay CertificateRenewed", "client CertificateRenewed"}
	trusted := []string{"ca AuthorityLost", "server TrustChanged", "relay TrustChanged", "client TrustChanged", "ca AuthorityTrusted"}
	for _, x := range []struct {
		what string
		do   func(k *keeper)
		want []string
	}{
		{"nothing", func(*keeper) {}, nil},
		{"a leaf is gone", func(k *keeper) { delete(k.held, Relay) }, []string{"relay CertificateMade"}},
		{"a leaf is empty", func(k *keeper) { k.held[Relay] = Secret{} }, []string{"relay CertificateRepaired"}},
		{"a leaf of another's key", func(k *keeper) { k.held[Server].Data[KeyFile] = k.held[Client].Data[KeyFile] }, []string{"server CertificateRepaired"}},
		{"trust in somebody else", func(k *keeper) { k.held[Server].Data[CAFile] = k.held[Client].Data[CertFile] }, []string{"server TrustChanged"}},
		{"a leaf for something else", func(k *keeper) { k.held[Server] = Secret{Data: maps.Clone(k.held[Client].Data)} }, []string{"server CertificateRenewed"}},
		{"a leaf of another authority", func(k *keeper) {
			other := newKeeper(k.t)
			other.settle()
			k.held[Server] = other.held[Server]
		}, []string{"server CertificateRepaired"}},
		{"something beside", func(k *keeper) { k.held[Server].Data["note"] = []byte("x") }, nil},
		{"leaves have ended", func(k *keeper) { k.now = k.now.Add(91 * day) }, []string{"server CertificateRepaired", "relay CertificateRepaired", "client CertificateRepaired"}},
		{"leaves are of the future", func(k *keeper) { k.now = k.now.Add(-2 * time.Hour) }, firstOf("CertificateRepaired", "ca AuthorityMade")},
		{"all has ended", func(k *keeper) { k.now = k.now.Add(4 * 365 * day) }, firstOf("CertificateRepaired", "ca AuthorityMade")},
		{"shorter validity", func(k *keeper) { k.config.Validity = 10 * day; k.now = k.now.Add(7 * day) }, all},
		{"longer validity", func(k *keeper) { k.config.Validity = 365 * day; k.now = k.now.Add(59 * day) }, nil},
		{"another namespace", func(k *keeper) { k.config.Namespace = "other" }, []string{"relay CertificateRenewed"}},
		{"the authority is gone", func(k *keeper) { delete(k.held, Authority) }, trusted},
		{"the authority is empty", func(k *keeper) { k.held[Authority] = Secret{} }, trusted},
		{"the authority's key is gone", func(k *keeper) { delete(k.held[Authority].Data, KeyFile) }, trusted},
		{"a leaf as authority", func(k *keeper) { k.held[Authority] = Secret{Data: maps.Clone(k.held[Server].Data)} }, trusted},
		{"keys of another time", func(k *keeper) { k.held[Authority].Data[untilFile] = []byte("2999-01-01T00:00:00Z") }, []string{"ca CertificateRepaired"}},
		{"the authority and a leaf are gone", func(k *keeper) { delete(k.held, Authority); delete(k.held, Server) },
			[]string{"ca AuthorityLost", "server CertificateCut", "relay TrustChanged", "client TrustChanged", "ca AuthorityTrusted"}},
		{"everything is gone", func(k *keeper) { clear(k.held) }, firstInstall},
	} {
		t.Run(x.what, func(t *testing.T) {
			k := newKeeper(t)
			k.expect(firstInstall...)
			x.do(k)
			k.expect(x.want...)
			if again, _ := k.settle(); len(again) > 0 {
				t.Errorf("done again: %q", again)
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(k.held[Relay].Data[CAFile])
			if _, err := k.leaf(Server).Verify(x509.VerifyOptions{Roots: pool, DNSName: "observer.strait.dev", CurrentTime: k.now}); err != nil {
				t.Error(err)
			}
		})
	}
}

func firstOf(reason string, first string) []string {
	return []string{first, "server " + reason, "relay " + reason, "client " + reason}
}

// What is not ours is left alone, and told with what a person can do.
func TestForeign(t *testing.T) {
	k := newKeeper(t)
	k.held[Relay] = Secret{Foreign: true, Data: map[string][]byte{CertFile: []byte("of somebody")}}
	done, d := k.settle()
	if !slices.Equal(done, []string{"ca AuthorityMade", "server CertificateMade", "client CertificateMade"}) {
		t.Errorf("done %q", done)
	}
	if len(d.Problems) != 1 || d.Problems[0].Name != Relay || d.Problems[0].Reason != Foreign || !strings.Contains(d.Problems[0].Text, "strait/strait-hubble-relay is not Strait's, it has no label strait.dev/certificate") ||
		!strings.Contains(d.Problems[0].Text, "label it strait.dev/certificate=relay") {
		t.Errorf("told %v", d.Problems)
	}
	// An authority that follows does not wait for it.
	delete(k.held, Authority)
	k.expect("ca AuthorityLost", "server TrustChanged", "client TrustChanged", "ca AuthorityTrusted")

	k.held[Authority] = Secret{Foreign: true, Data: k.held[Authority].Data}
	delete(k.held, Server)
	done, d = k.settle()
	if len(done) > 0 || len(d.Problems) != 2 || !strings.Contains(d.Problems[0].Text, "without an authority no certificates are made or renewed") || !d.Again.IsZero() {
		t.Errorf("with the authority of somebody else done %q, told %v", done, d.Problems)
	}
	if d.Ends[Authority].IsZero() {
		t.Error("not told when it ends")
	}
}

// A leaf ends with its authority, and is not made anew again and again before.
func TestNearTheEnd(t *testing.T) {
	k := newKeeper(t)
	k.expect(firstInstall...)
	k.now = k.leaf(Authority).NotAfter.Add(-90 * time.Minute) // nobody led for years
	done, d := k.settle()
	want := append([]string{"ca AuthorityFollows"}, "server CertificateRepaired", "relay CertificateRepaired", "client CertificateRepaired", "ca AuthorityTrusted")
	if !slices.Equal(done, want) {
		t.Errorf("done %q, want %q", done, want)
	}
	if ends := k.leaf(Server).NotAfter; !ends.Equal(k.now.Add(90*time.Minute)) || !d.Again.Equal(ends) {
		t.Errorf("a leaf ends %s, to be looked at again %s", ends, d.Again)
	}
}
