package operator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strait-net/strait/internal/certificate"
	"github.com/strait-net/strait/internal/kube"
	"github.com/strait-net/strait/internal/kube/kubetest"
)

// certRig is an API server with a role that has what the chart gives to the operator, and nothing else of Secrets.
type certRig struct {
	rig
	server *kubetest.Server
	clock  time.Time
	kept   *certificates
}

const keeperToken = "keeper-token"

func newCertRig(t *testing.T) *certRig {
	t.Helper()
	server := kubetest.Start(t, map[string]string{keeperToken: "keeper"})
	cfg := server.Config(kubetest.AdminToken)
	cfg.QPS, cfg.Burst = 1000, 1000
	admin, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	grant(t, admin)
	client, err := kube.NewClientFor(server.Config(keeperToken), "test")
	if err != nil {
		t.Fatal(err)
	}
	r := &certRig{rig: rig{t, admin, client}, server: server, clock: time.Now().Truncate(time.Second)}
	r.kept = r.keeper()
	return r
}

// grant lets the user keeper do what the operator's roles allow.
func grant(t *testing.T, admin *kubernetes.Clientset) {
	t.Helper()
	for _, body := range []string{
		`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"keeper"},"rules":[
			{"apiGroups":[""],"resources":["secrets"],"verbs":["create"]},
			{"apiGroups":[""],"resources":["secrets"],"verbs":["get","update"],"resourceNames":["` + strings.Join(certificate.Names(), `","`) + `"]},
			{"apiGroups":[""],"resources":["events"],"verbs":["create","patch"]}]}`,
		`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"keeper"},
			"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"keeper"},"subjects":[{"kind":"User","name":"keeper"}]}`,
	} {
		resource := "roles"
		if strings.Contains(body, "RoleBinding") {
			resource = "rolebindings"
		}
		err := admin.RESTClient().Post().AbsPath("/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/"+resource).
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// keeper is what another leader would be.
func (r *certRig) keeper() *certificates {
	log := slog.New(slog.DiscardHandler)
	return &certificates{
		client: r.kube, events: kube.NewEvents(r.t.Context(), r.kube, component, "x", log), metrics: newMetrics(prometheus.NewRegistry()), log: log,
		config: certificate.Config{Namespace: "kube-system", Validity: 90 * 24 * time.Hour}, now: func() time.Time { return r.clock },
	}
}

// settle runs rounds until nothing is to be done, and returns when to look again.
func (r *certRig) settle() time.Duration {
	r.t.Helper()
	for range 6 {
		again, err := r.kept.round(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		if again != pause {
			return again
		}
	}
	r.t.Fatal("there is always something to do")
	return 0
}

func (r *certRig) secret(name string) *corev1.Secret {
	r.t.Helper()
	s, err := r.admin.CoreV1().Secrets("kube-system").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *certRig) all() map[string]*corev1.Secret {
	out := map[string]*corev1.Secret{}
	for _, name := range certificate.Names() {
		out[name] = r.secret(name)
	}
	return out
}

func (r *certRig) remove(name string) {
	r.t.Helper()
	if err := r.admin.CoreV1().Secrets("kube-system").Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *certRig) update(s *corev1.Secret) *corev1.Secret {
	r.t.Helper()
	out, err := r.admin.CoreV1().Secrets("kube-system").Update(context.Background(), s, metav1.UpdateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *certRig) says(name, reason string) bool {
	r.t.Helper()
	list, err := r.admin.CoreV1().Events("kube-system").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.InvolvedObject.Name == name && e.Reason == reason })
}

// known reports whether who reads one of these Secrets knows the server that shows the other.
func (r *certRig) known(reader, server *corev1.Secret, name string) error {
	r.t.Helper()
	pair, err := tls.X509KeyPair(server.Data[certificate.CertFile], server.Data[certificate.KeyFile])
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(reader.Data[certificate.CAFile])
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: r.clock})
	return err
}

func versions(secrets map[string]*corev1.Secret) map[string]string {
	out := map[string]string{}
	for name, s := range secrets {
		out[name] = s.ResourceVersion
	}
	return out
}

// One server for all: it takes seconds to start. Each part begins with four Secrets that are right.
func TestCertificates(t *testing.T) {
	r := newCertRig(t)
	t.Run("first install", func(t *testing.T) { r.t = t; testFirstCertificates(r) })
	t.Run("lost, changed, emptied", func(t *testing.T) { r.t = t; testHarmedCertificates(r) })
	t.Run("authority lost", func(t *testing.T) { r.t = t; testLostAuthority(r) })
	t.Run("foreign", func(t *testing.T) { r.t = t; testForeignCertificates(r) })
	t.Run("two leaders", func(t *testing.T) { r.t = t; testTwoKeepers(r) })
	t.Run("refused", func(t *testing.T) { r.t = t; testRefusedCertificates(r) })
	t.Run("rotation", func(t *testing.T) { r.t = t; testCertificateRotation(r) })
	t.Run("run", func(t *testing.T) { r.t = t; testCertificatesOfRun(r) })
	t.Run("outage", func(t *testing.T) { r.t = t; testCertificateOutage(r) })
}

func testFirstCertificates(r *certRig) {
	if again := r.settle(); again != certificateEvery {
		r.t.Errorf("to be looked at again in %s", again)
	}
	first := r.all()
	for name, s := range first {
		if s.Type != corev1.SecretTypeTLS || s.Labels[certificate.Label] == "" || s.Labels["app.kubernetes.io/part-of"] != "strait" || len(s.OwnerReferences) > 0 {
			r.t.Errorf("%s: type %s, labels %v", name, s.Type, s.Labels)
		}
		if keys := slices.Sorted(maps.Keys(s.Data)); !slices.Equal(keys, []string{"ca.crt", "tls.crt", "tls.key"}) {
			r.t.Errorf("%s holds %v", name, keys)
		}
		if got := testutil.ToFloat64(r.kept.metrics.certificatesEnd.WithLabelValues(name)); time.Unix(int64(got), 0).Before(r.clock.Add(89 * 24 * time.Hour)) {
			r.t.Errorf("%s ends at %v", name, got)
		}
	}
	for _, x := range []struct{ reader, server, name string }{
		{certificate.Relay, certificate.Server, "observer.strait.dev"}, {certificate.Client, certificate.Relay, "hubble-relay.kube-system.svc"},
		{certificate.Client, certificate.Relay, "relay.strait.dev"},
	} {
		if err := r.known(first[x.reader], first[x.server], x.name); err != nil {
			r.t.Error(err)
		}
	}
	r.settle()
	if !maps.Equal(versions(first), versions(r.all())) {
		r.t.Error("what was right was written again")
	}
	r.eventually("event", func() bool {
		return r.says(certificate.Authority, "AuthorityMade") && r.says(certificate.Client, "CertificateMade")
	})
}

// Deleted, changed and emptied Secrets are made whole; what others have put beside stays.
func testHarmedCertificates(r *certRig) {
	r.remove(certificate.Client)
	relay, server := r.secret(certificate.Relay), r.secret(certificate.Server)
	relay.Data, relay.Annotations = map[string][]byte{"of-others": []byte("x"), "tls.crt": nil, "tls.key": nil}, map[string]string{"of": "others"}
	r.update(relay)
	server.Data["tls.key"] = relay.Data["of-others"]
	r.update(server)
	authority := r.secret(certificate.Authority)
	r.settle()
	now := r.all()
	if now[certificate.Authority].ResourceVersion != authority.ResourceVersion {
		r.t.Error("the authority was written")
	}
	for _, name := range []string{certificate.Server, certificate.Relay} {
		if err := r.known(now[certificate.Client], now[name], ""); err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
	}
	if got := now[certificate.Relay]; string(got.Data["of-others"]) != "x" || got.Annotations["of"] != "others" {
		r.t.Errorf("what others had put there is gone: %v", got.Annotations)
	}
	r.eventually("event", func() bool { return r.says(certificate.Server, "CertificateRepaired") })
}

// The authority is lost: leaves go on, a new one becomes known first.
func testLostAuthority(r *certRig) {
	before := r.all()
	r.remove(certificate.Authority)
	r.settle()
	between := r.all()
	if string(before[certificate.Server].Data["tls.crt"]) != string(between[certificate.Server].Data["tls.crt"]) {
		r.t.Error("a leaf was made anew by an authority that nobody knows")
	}
	r.clock = r.clock.Add(2*time.Hour + time.Second)
	r.settle()
	after := r.all()
	if string(before[certificate.Server].Data["tls.crt"]) == string(after[certificate.Server].Data["tls.crt"]) {
		r.t.Error("no new leaf though the authority is known")
	}
	for _, x := range [][2]map[string]*corev1.Secret{{before, between}, {between, before}, {between, after}, {after, between}, {after, before}} {
		if err := r.known(x[0][certificate.Relay], x[1][certificate.Server], "observer.strait.dev"); err != nil {
			r.t.Error(err)
		}
	}
	r.eventually("event", func() bool { return r.says(certificate.Authority, "AuthorityLost") })
}

// What is not ours is left alone, and said so until it is.
func testForeignCertificates(r *certRig) {
	foreign := r.secret(certificate.Relay)
	delete(foreign.Labels, certificate.Label)
	foreign.Data["tls.crt"] = []byte("of somebody else")
	foreign = r.update(foreign)
	r.settle()
	if got := r.secret(certificate.Relay); got.ResourceVersion != foreign.ResourceVersion {
		r.t.Error("a foreign Secret was written")
	}
	problem := r.kept.metrics.certificateProblems.WithLabelValues(certificate.Relay, "SecretForeign")
	if testutil.ToFloat64(problem) != 1 {
		r.t.Error("no metric of the problem")
	}
	r.eventually("event", func() bool { return r.says(certificate.Relay, "SecretForeign") })
	foreign.Labels[certificate.Label] = "relay"
	r.update(foreign)
	r.settle()
	if err := r.known(r.secret(certificate.Client), r.secret(certificate.Relay), "relay.strait.dev"); err != nil {
		r.t.Error(err)
	}
	if n := testutil.CollectAndCount(r.kept.metrics.certificateProblems); n != 0 {
		r.t.Errorf("%d problems left", n)
	}
	authority := r.secret(certificate.Authority)
	delete(authority.Labels, certificate.Label)
	r.update(authority)
	r.remove(certificate.Client)
	r.settle()
	if _, err := r.admin.CoreV1().Secrets("kube-system").Get(r.t.Context(), certificate.Client, metav1.GetOptions{}); !kube.IsNotFound(err) {
		r.t.Errorf("somebody signed though the authority is foreign: %v", err)
	}
	authority.Labels, authority.ResourceVersion = certificate.Labels(certificate.Authority), ""
	r.update(authority)
	r.settle()
	r.all()
}

// Of two that lead at once one is refused, and goes on with what the other has written.
func testTwoKeepers(r *certRig) {
	for _, name := range certificate.Names() {
		r.remove(name)
	}
	var group sync.WaitGroup
	for range 2 {
		other := r.keeper()
		group.Go(func() {
			for done := 0; done < 3; {
				if again, err := other.round(r.t.Context()); err == nil && again != pause {
					done++
				} else if err != nil && !errors.Is(err, kube.ErrRefused) {
					r.t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	now := r.all()
	if err := r.known(now[certificate.Client], now[certificate.Relay], "localhost"); err != nil {
		r.t.Error(err)
	}
	stale := r.secret(certificate.Server)
	r.update(r.secret(certificate.Server).DeepCopy())
	changed := stale.DeepCopy()
	changed.Annotations = map[string]string{"x": "y"}
	r.update(changed)
	err := r.kept.write(r.t.Context(), certificate.Write{Name: certificate.Server, Reason: certificate.Renewed, Data: map[string][]byte{"tls.crt": nil}}, stale)
	if !errors.Is(err, kube.ErrRefused) {
		r.t.Errorf("write over what was not read: %v", err)
	}
	if got := r.secret(certificate.Server); len(got.Data["tls.crt"]) == 0 {
		r.t.Error("the refused write was done")
	}
}

// A Secret that cannot be changed: an error that names it, and an event; the others are kept when their turn comes.
func testRefusedCertificates(r *certRig) {
	fixed := true
	server := r.secret(certificate.Server)
	server.Immutable = &fixed
	r.update(server)
	r.clock = r.clock.Add(61 * 24 * time.Hour)
	_, err := r.kept.round(r.t.Context())
	if err == nil || !strings.Contains(err.Error(), "kube-system/"+certificate.Server) || !strings.Contains(err.Error(), "immutable") {
		r.t.Errorf("got %v", err)
	}
	r.eventually("event", func() bool { return r.says(certificate.Server, reasonNotWritten) })
	r.remove(certificate.Server)
	r.settle()
}

// Years: leaves and authorities change, readers of two states know each other.
func testCertificateRotation(r *certRig) {
	renewed := r.kept.metrics.certificatesWritten.WithLabelValues(certificate.Relay, "CertificateRenewed")
	before := r.all()
	start := testutil.ToFloat64(renewed)
	r.clock = r.clock.Add(60*24*time.Hour - time.Minute)
	if again := r.settle(); again > certificateEvery {
		r.t.Errorf("to be looked at again in %s", again)
	}
	if testutil.ToFloat64(renewed) != start {
		r.t.Error("renewed before two thirds of its life")
	}
	r.clock = r.clock.Add(2 * time.Minute)
	r.settle()
	if testutil.ToFloat64(renewed) != start+1 {
		r.t.Error("not renewed after two thirds of its life")
	}
	authority := before[certificate.Authority].Data["tls.crt"]
	steps := 0
	for last := r.all(); string(last[certificate.Authority].Data["tls.crt"]) == string(authority) || len(last[certificate.Authority].Data["old.key"]) > 0; steps++ {
		if steps > 100 {
			r.t.Fatal("no other authority within its life")
		}
		step := 59 * 24 * time.Hour
		if string(last[certificate.Authority].Data["tls.crt"]) != string(authority) {
			step = time.Hour
		}
		r.clock = r.clock.Add(step)
		r.settle()
		now := r.all()
		for _, x := range [][2]map[string]*corev1.Secret{{last, now}, {now, last}, {now, now}} {
			hasEnded := step > time.Hour && x[1][certificate.Server] == last[certificate.Server]
			if err := r.known(x[0][certificate.Relay], x[1][certificate.Server], "observer.strait.dev"); err != nil && !hasEnded {
				r.t.Fatalf("step %d: %v", steps, err)
			}
		}
		last = now
	}
	r.eventually("event", func() bool { return r.says(certificate.Authority, "AuthoritySigns") })
}

// A replica that leads keeps them if it is configured to.
func testCertificatesOfRun(r *certRig) {
	for _, name := range certificate.Names() {
		r.remove(name)
	}
	client, err := kube.NewClientFor(r.server.Config(kubetest.AdminToken), "test")
	if err != nil {
		r.t.Fatal(err)
	}
	leading := rig{r.t, r.admin, client}
	stop := leading.run("operator: {certificates: {enabled: false}}\n", "off")
	time.Sleep(time.Second)
	_ = stop()
	if _, err := r.admin.CoreV1().Secrets("kube-system").Get(r.t.Context(), certificate.Authority, metav1.GetOptions{}); !kube.IsNotFound(err) {
		r.t.Errorf("made though it is not configured: %v", err)
	}
	stop = leading.run("operator: {certificates: {enabled: true, validity: 24h}}\n", "on")
	r.eventually("Secrets", func() bool {
		_, err := r.admin.CoreV1().Secrets("kube-system").Get(context.Background(), certificate.Client, metav1.GetOptions{})
		return err == nil
	})
	_ = stop()
	r.clock = time.Now()
	pair, err := tls.X509KeyPair(r.secret(certificate.Client).Data["tls.crt"], r.secret(certificate.Client).Data["tls.key"])
	if err != nil || time.Until(pair.Leaf.NotAfter) > 24*time.Hour {
		r.t.Errorf("%v, %v", pair.Leaf, err)
	}
}

func testCertificateOutage(r *certRig) {
	r.server.Stop()
	if _, err := r.kept.round(r.t.Context()); err == nil || !strings.Contains(err.Error(), "get secret kube-system/"+certificate.Authority) {
		r.t.Errorf("got %v", err)
	}
}
