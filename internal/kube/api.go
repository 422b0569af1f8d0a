package kube

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// A Source fills intent tables until its context ends. Tables are registered with when it is made, so that none
// counts as initialised before every source has delivered.
type Source interface {
	Run(ctx context.Context) error
}

const (
	// apiSubject is what an outage of the API server is reported under.
	apiSubject = "api server"

	absentEvery = 30 * time.Second
)

var errAbsent = errors.New("the server does not have this resource")

// APIServer reflects the API server. While the server is away the rows stay as they are.
type APIServer struct {
	tables     Tables
	log        *slog.Logger
	host       string
	reflectors []func(ctx context.Context)
	// absentEvery is how often a resource is looked for that the server does not have.
	absentEvery time.Duration
}

// NewAPIServer returns a source of the API server behind client.
func NewAPIServer(client *Client, tables Tables, log *slog.Logger) *APIServer {
	a := &APIServer{tables: tables, log: log, host: client.Host(), absentEvery: absentEvery}
	if tables.Nodes != nil {
		addReflector(a, nodes(tables), resource{client: client.core, name: "nodes"}, &corev1.Node{})
	}
	if tables.Services != nil {
		addReflector(a, services(tables), resource{client: client.core, name: "services"}, &corev1.Service{})
	}
	if tables.EndpointSlices != nil {
		addReflector(a, endpointSlicesOf(tables, false),
			resource{client: client.discovery, name: "endpointslices", labels: "!" + corev1.IsHeadlessService}, &discoveryv1.EndpointSlice{})
		addHeadless(a, client)
	}
	if tables.Pools != nil {
		addReflector(a, pools(tables), resource{client: client.strait, name: poolResource}, &v1alpha1.LoadBalancerPool{})
	}
	if tables.Claims != nil {
		addReflector(a, claims(tables), resource{client: client.core, name: "services"}, &corev1.Service{})
	}
	if tables.Pods != nil {
		addReflector(a, pods(tables), resource{client: client.pods, name: "pods", fields: livingPods}, &corev1.Pod{})
	}
	if tables.Namespaces != nil {
		addReflector(a, namespaces(tables), resource{client: client.core, name: "namespaces"}, &corev1.Namespace{})
	}
	if tables.Policies != nil {
		addPolicyReflectors(a, client)
	}
	if tables.PolicyObjects != nil {
		addPolicyObjectReflectors(a, client)
	}
	return a
}

// Run reflects until ctx ends.
func (a *APIServer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range a.reflectors {
		group.Go(func() error {
			r(ctx)
			return ctx.Err()
		})
	}
	return group.Wait()
}

// resource is where the server has the objects of a kind.
type resource struct {
	client         rest.Interface
	name           string // plural
	labels, fields string // selectors
	optional       bool   // a cluster may not have it: there are no such objects then
}

func addReflector[O metav1.Object, R any](a *APIServer, k kind[O, R], r resource, expected O) {
	s := &store[O, R]{kind: k, problems: a.tables.Problems, done: k.register(), now: time.Now}
	a.reflectors = append(a.reflectors, func(ctx context.Context) { a.follow(ctx, r, expected, s) })
}

// follow reflects one resource until ctx ends. One that the server does not have is empty, and looked for again.
func (a *APIServer) follow(ctx context.Context, r resource, expected any, s cache.ReflectorStore) {
	for ctx.Err() == nil {
		there, absent := context.WithCancelCause(ctx)
		a.reflect(there, r.name, a.listWatch(r, absent), expected, s)
		absent(nil)
		if !errors.Is(context.Cause(there), errAbsent) {
			return
		}
		if err := s.Replace(nil, ""); err != nil {
			a.log.Error("rows of an absent resource not removed", "resource", r.name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(a.absentEvery):
		}
	}
}

// reflect runs one Reflector. Back-off is capped low: after an outage a node should not be behind for half a minute.
func (a *APIServer) reflect(ctx context.Context, name string, watcher cache.ListerWatcher, expected any, s cache.ReflectorStore) {
	logger := logr.FromSlogHandler(a.log.Handler()).V(1)
	r := cache.NewReflectorWithOptions(watcher, expected, s, cache.ReflectorOptions{
		Name:            name,
		TypeDescription: name,
		Logger:          &logger,
		Backoff:         &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second},
	})
	r.RunWithContext(ctx)
}

// listWatch lists and watches one resource, reports an outage as a problem and takes it back at the next success.
func (a *APIServer) listWatch(r resource, absent context.CancelCauseFunc) cache.ListerWatcher {
	get := func(options metav1.ListOptions) *rest.Request {
		options.LabelSelector, options.FieldSelector = r.labels, r.fields
		return r.client.Get().Resource(r.name).VersionedParams(&options, metav1.ParameterCodec)
	}
	note := func(ctx context.Context, err error) {
		if r.optional && apierrors.IsNotFound(err) {
			absent(errAbsent)
			err = nil
		}
		a.note(ctx, r.name, err)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := get(options).Do(ctx).Get()
			note(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			w, err := get(options).Watch(ctx)
			note(ctx, err)
			return w, err
		},
	}
}

func (a *APIServer) note(ctx context.Context, resource string, err error) {
	subject := apiSubject + ", " + resource
	switch {
	case err == nil:
		state.Clear(a.tables.Problems, owner, subject)
		return
	case ctx.Err() != nil, errors.Is(err, io.EOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return // part of normal life: the list begins anew
	}
	a.log.Warn("api server not watched", "resource", resource, "host", a.host, "err", err)
	state.Raise(a.tables.Problems, state.Problem{
		Source: owner, Subject: subject, Text: "cannot be read from " + a.host + ", what was known stays in force: " + err.Error(),
	}, time.Now())
}
