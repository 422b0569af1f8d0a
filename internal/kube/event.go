package kube

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// Severity is the type of an event.
type Severity string

// The severities Kubernetes knows.
const (
	Normal  Severity = "Normal"
	Warning Severity = "Warning"
)

// Events records events in the background; client-go's correlator aggregates repetitions and bounds their rate.
type Events struct {
	log      *slog.Logger
	recorder record.EventRecorder
}

// NewEvents returns a recorder that sends until ctx ends. component and host name the writer in each event.
func NewEvents(ctx context.Context, client *Client, component, host string, log *slog.Logger) *Events {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&eventSink{ctx: ctx, client: client})
	source := corev1.EventSource{Component: component, Host: host}
	return &Events{log: log, recorder: broadcaster.NewRecorder(runtime.NewScheme(), source)}
}

// Node records an event about a node. uid may be empty; it is the name then, as kubelets write it.
func (e *Events) Node(name, uid string, severity Severity, reason, message string) {
	if uid == "" {
		uid = name
	}
	e.log.Info("event", "node", name, "severity", string(severity), "reason", reason, "message", message)
	e.recorder.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: name, UID: types.UID(uid)}, string(severity), reason, message)
}

// Service records an event about a Service.
func (e *Events) Service(name state.ServiceName, uid string, severity Severity, reason, message string) {
	e.log.Info("event", "service", name.String(), "severity", string(severity), "reason", reason, "message", message)
	e.recorder.Event(&corev1.ObjectReference{
		Kind: "Service", APIVersion: "v1", Namespace: name.Namespace, Name: name.Name, UID: types.UID(uid),
	}, string(severity), reason, message)
}

// Pool records an event about a LoadBalancerPool.
func (e *Events) Pool(name, uid string, severity Severity, reason, message string) {
	e.log.Info("event", "loadbalancerpool", name, "severity", string(severity), "reason", reason, "message", message)
	e.recorder.Event(&corev1.ObjectReference{
		Kind: "LoadBalancerPool", APIVersion: v1alpha1.GroupVersion().String(), Name: name, UID: types.UID(uid),
	}, string(severity), reason, message)
}

// Policy records an event about an object with policies.
func (e *Events) Policy(o state.PolicyObject, severity Severity, reason, message string) {
	e.log.Info("event", "policy", o.String(), "severity", string(severity), "reason", reason, "message", message)
	e.recorder.Event(&corev1.ObjectReference{
		Kind: string(o.Kind), APIVersion: policyVersion(o.Kind), Namespace: o.Namespace, Name: o.Name, UID: types.UID(o.UID),
	}, string(severity), reason, message)
}

// Secret records an event about a Secret.
func (e *Events) Secret(namespace, name, uid string, severity Severity, reason, message string) {
	e.log.Info("event", "secret", namespace+"/"+name, "severity", string(severity), "reason", reason, "message", message)
	e.recorder.Event(&corev1.ObjectReference{
		Kind: "Secret", APIVersion: "v1", Namespace: namespace, Name: name, UID: types.UID(uid),
	}, string(severity), reason, message)
}

// eventSink writes events through our own small client.
type eventSink struct {
	ctx    context.Context
	client *Client
}

func (s *eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	var out corev1.Event
	err := s.client.core.Post().Namespace(namespaceOf(event)).Resource("events").Body(event).Do(s.ctx).Into(&out)
	return &out, err
}

func (s *eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	var out corev1.Event
	err := s.client.core.Put().Namespace(namespaceOf(event)).Resource("events").Name(event.Name).Body(event).Do(s.ctx).Into(&out)
	return &out, err
}

func (s *eventSink) Patch(old *corev1.Event, patch []byte) (*corev1.Event, error) {
	var out corev1.Event
	err := s.client.core.Patch(types.StrategicMergePatchType).Namespace(namespaceOf(old)).Resource("events").Name(old.Name).Body(patch).Do(s.ctx).Into(&out)
	return &out, err
}

func namespaceOf(event *corev1.Event) string {
	if event.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return event.Namespace
}
