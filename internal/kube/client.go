package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	ciliumv2 "github.com/strait-net/strait/api/cilium/v2"
	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/config"
)

const (
	serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	serviceAccountCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// Client speaks to an API server about the few kinds Strait knows; each kind that is registered costs memory at start.
type Client struct {
	host      string
	core      rest.Interface
	pods      rest.Interface // to list and watch: objects have only what ToPod reads
	discovery rest.Interface
	lease     rest.Interface
	strait    rest.Interface // our own kinds
	network   rest.Interface // networking.k8s.io
	cluster   rest.Interface // policy.networking.k8s.io
	cilium    rest.Interface // cilium.io
	status    rest.Interface // of Services: many at once, when a pool is made for those that have waited
}

// Requests per second and burst of one client: what many nodes together may cost the server.
const (
	queries, burst             = 50, 100
	statusQueries, statusBurst = 1000, 1000 // there is one operator
)

// Host returns the server's URL.
func (c *Client) Host() string { return c.host }

// NewClient returns a client for api: its kubeconfig if named, else the pod's service account. api.Server replaces the
// address from either, because the service of the API server may need Strait to be reachable.
func NewClient(api config.API, userAgent string) (*Client, error) {
	cfg, err := restConfig(api)
	if err != nil {
		return nil, err
	}
	return NewClientFor(cfg, userAgent)
}

// NewClientFor returns a client for a server described by client-go.
func NewClientFor(cfg *rest.Config, userAgent string) (*Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, coordinationv1.AddToScheme, v1alpha1.AddToScheme,
		networkingv1.AddToScheme, policyv1alpha2.Install, ciliumv2.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kinds: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	builtin := runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	open := func(group schema.GroupVersion, path, content string, decode runtime.NegotiatedSerializer, qps float32, burst int) (rest.Interface, error) {
		c := rest.CopyConfig(cfg)
		c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &group, path, decode
		c.ContentType, _, _ = strings.Cut(content, ",")
		c.AcceptContentTypes = content
		c.UserAgent = userAgent
		c.QPS, c.Burst = qps, burst
		client, err := rest.RESTClientFor(c)
		if err != nil {
			return nil, fmt.Errorf("client of %s for %s: %w", cfg.Host, group, err)
		}
		return client, nil
	}
	c := &Client{host: cfg.Host}
	var errs []error
	whole := codecs.WithoutConversion()
	for _, api := range []struct {
		client     *rest.Interface
		group      schema.GroupVersion
		path       string
		content    string // JSON is all that custom resources have
		decode     runtime.NegotiatedSerializer
		qps, burst int
	}{
		{&c.core, corev1.SchemeGroupVersion, "/api", builtin, whole, queries, burst},
		{&c.pods, corev1.SchemeGroupVersion, "/api", builtin, trimmedPods{whole}, queries, burst},
		{&c.discovery, discoveryv1.SchemeGroupVersion, "/apis", builtin, whole, queries, burst},
		{&c.lease, coordinationv1.SchemeGroupVersion, "/apis", builtin, whole, queries, burst},
		{&c.network, networkingv1.SchemeGroupVersion, "/apis", builtin, whole, queries, burst},
		{&c.strait, v1alpha1.GroupVersion(), "/apis", runtime.ContentTypeJSON, whole, queries, burst},
		{&c.cluster, schema.GroupVersion(policyv1alpha2.GroupVersion), "/apis", runtime.ContentTypeJSON, whole, queries, burst},
		{&c.cilium, ciliumv2.GroupVersion(), "/apis", runtime.ContentTypeJSON, whole, queries, burst},
		{&c.status, corev1.SchemeGroupVersion, "/api", builtin, whole, statusQueries, statusBurst},
	} {
		client, err := open(api.group, api.path, api.content, api.decode, float32(api.qps), api.burst)
		*api.client = client
		errs = append(errs, err)
	}
	return c, errors.Join(errs...)
}

// RouteLogs sends what client-go logs to log. It is for main packages: client-go has one logger in a process.
func RouteLogs(log *slog.Logger) { klog.SetSlogLogger(log.With("library", "client-go")) }

func restConfig(api config.API) (*rest.Config, error) {
	if api.Kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags(api.Server, api.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("api.kubeconfig: %q: %w", api.Kubeconfig, err)
		}
		return cfg, nil
	}
	if api.Server == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("api: neither server nor kubeconfig is set and this is not a pod: %w", err)
		}
		return cfg, nil
	}
	cfg := &rest.Config{Host: api.Server}
	if _, err := os.Stat(serviceAccountToken); err == nil {
		cfg.BearerTokenFile = serviceAccountToken
	}
	if _, err := os.Stat(serviceAccountCA); err == nil {
		cfg.CAFile = serviceAccountCA
	}
	return cfg, nil
}
