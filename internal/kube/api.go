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
	"github.com/strait-net/strait/internal/table"
)

// A Source fills intent tables until its context ends. Tables are registered with when it is made, so that none
// counts as initialised before every source has delivered.
type Source interface {
	Run(ctx context.Context) error
}

// apiSubject is what an outage of the API server is reported under.
const apiSubject = "api server"

// APIServer reflects the API server. While the server is away the rows stay as they are.
type APIServer struct {
	tables     Tables
	log        *slog.Logger
	host       string
	reflectors []reflector
}

type reflector struct {
	kind string
	run  func(ctx context.Context)
}

// NewAPIServer returns a source of the API server behind client.
func NewAPIServer(client *Client, tables Tables, log *slog.Logger) *APIServer {
	a := &APIServer{tables: tables, log: log, host: client.Host()}
	if tables.Nodes != nil {
		addReflector(a, "node", client.core, "nodes", "", tables.Nodes, &corev1.Node{}, state.Node.Equal,
			func(o *corev1.Node) (state.Node, bool, error) { n, err := ToNode(o); return n, true, err })
	}
	if tables.Services != nil {
		addReflector(a, "service", client.core, "services", "", tables.Services, &corev1.Service{}, state.Service.Equal,
			func(o *corev1.Service) (state.Service, bool, error) { s, err := ToService(o); return s, true, err })
	}
	if tables.EndpointSlices != nil {
		// The server leaves out what ToEndpointSlice would: slices of headless services may be the most of all.
		addReflector(a, "endpointslice", client.discovery, "endpointslices", "!"+corev1.IsHeadlessService,
			tables.EndpointSlices, &discoveryv1.EndpointSlice{}, state.EndpointSlice.Equal, ToEndpointSlice)
	}
	if tables.Pools != nil {
		addReflector(a, "loadbalancerpool", client.strait, poolResource, "", tables.Pools, &v1alpha1.LoadBalancerPool{}, state.Pool.Equal,
			func(o *v1alpha1.LoadBalancerPool) (state.Pool, bool, error) { p, err := ToPool(o); return p, true, err })
	}
	if tables.Claims != nil {
		addReflector(a, "service", client.core, "services", "", tables.Claims, &corev1.Service{}, state.Claim.Equal, ToClaim)
	}
	return a
}

// Run reflects until ctx ends.
func (a *APIServer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range a.reflectors {
		group.Go(func() error {
			r.run(ctx)
			return ctx.Err()
		})
	}
	return group.Wait()
}

func addReflector[O metav1.Object, R any](a *APIServer, kind string, client rest.Interface, resource, selector string,
	rows *table.Table[R], expected O, equal func(a, b R) bool, convert func(O) (R, bool, error),
) {
	s := &store[O, R]{
		kind: kind, table: rows, convert: convert, equal: equal, problems: a.tables.Problems,
		done: rows.Register(owner), now: time.Now,
	}
	watcher := a.listWatch(client, kind, resource, selector)
	a.reflectors = append(a.reflectors, reflector{kind, func(ctx context.Context) {
		a.reflect(ctx, kind, watcher, expected, s)
	}})
}

// reflect runs one Reflector. Back-off is capped low: after an outage a node should not be behind for half a minute.
func (a *APIServer) reflect(ctx context.Context, kind string, watcher cache.ListerWatcher, expected any, s cache.ReflectorStore) {
	logger := logr.FromSlogHandler(a.log.Handler()).V(1)
	r := cache.NewReflectorWithOptions(watcher, expected, s, cache.ReflectorOptions{
		Name:            kind,
		TypeDescription: kind,
		Logger:          &logger,
		Backoff:         &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second},
	})
	r.RunWithContext(ctx)
}

// listWatch lists and watches one resource, reports an outage as a problem and takes it back at the next success.
func (a *APIServer) listWatch(client rest.Interface, kind, resource, selector string) cache.ListerWatcher {
	get := func(options metav1.ListOptions) *rest.Request {
		options.LabelSelector = selector
		return client.Get().Resource(resource).VersionedParams(&options, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := get(options).Do(ctx).Get()
			a.note(ctx, kind, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			w, err := get(options).Watch(ctx)
			a.note(ctx, kind, err)
			return w, err
		},
	}
}

func (a *APIServer) note(ctx context.Context, kind string, err error) {
	subject := apiSubject + ", " + kind + "s"
	switch {
	case err == nil:
		state.Clear(a.tables.Problems, owner, subject)
		return
	case ctx.Err() != nil, errors.Is(err, io.EOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return // part of normal life: the list begins anew
	}
	a.log.Warn("api server not watched", "kind", kind, "host", a.host, "err", err)
	state.Raise(a.tables.Problems, state.Problem{
		Source: owner, Subject: subject, Text: "cannot be read from " + a.host + ", what was known stays in force: " + err.Error(),
	}, time.Now())
}
