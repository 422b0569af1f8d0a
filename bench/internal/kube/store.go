package kube

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// batch is the number of puts in one transaction; etcd takes 128.
const batch = 120

// writer puts objects straight into etcd, as the API server would store them: to have it create tens of thousands one by one takes minutes. The
// server tells its watchers as of any other change.
type writer struct {
	*Server
	now  string
	puts []Object
}

func (s *Server) writer() *writer {
	return &writer{Server: s, now: time.Now().UTC().Format(time.RFC3339)}
}

// put stores an object, which is given a UID unless it has one.
func (w *writer) put(ctx context.Context, key string, o Object) error {
	meta, ok := o["metadata"].(Object)
	if !ok {
		return fmt.Errorf("store %s: no metadata", key)
	}
	if meta["uid"] == nil {
		meta["uid"] = uid()
	}
	meta["creationTimestamp"] = w.now
	text, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	encode := base64.StdEncoding.EncodeToString
	w.puts = append(w.puts, Object{"requestPut": Object{"key": encode([]byte(registry + key)), "value": encode(text)}})
	if len(w.puts) < batch {
		return nil
	}
	return w.flush(ctx)
}

func (w *writer) flush(ctx context.Context) error {
	if len(w.puts) == 0 {
		return nil
	}
	err := w.request(ctx, http.MethodPost, etcd+"/v3/kv/txn", Object{"success": w.puts})
	w.puts = w.puts[:0]
	return err
}

// registry is where the API server keeps everything.
const registry = "/registry/"

// Store stores services with their IPv4 EndpointSlices and IPAddresses. It returns when the caches that the server's watchers are answered from have
// everything.
func (s *Server) Store(ctx context.Context, services []Service, endpoints [][]Endpoint) error {
	w := s.writer()
	for i, service := range services {
		o, slice := service.Object(), service.Slice(4, endpoints[i]...)
		for _, stored := range []Object{o, slice} {
			stored["metadata"].(Object)["namespace"] = "default"
		}
		address := service.Addresses[4].String()
		for _, x := range []struct {
			key string
			o   Object
		}{{"ipaddresses/" + address, ipAddress(address, service.Name)}, {"services/specs/default/" + service.Name, o},
			{"endpointslices/default/" + service.SliceName(4), slice}} {
			if err := w.put(ctx, x.key, x.o); err != nil {
				return err
			}
		}
	}
	if err := w.flush(ctx); err != nil || len(services) == 0 {
		return err
	}
	last := services[len(services)-1]
	return errors.Join(s.cached(ctx, ServicePath+"/"+last.Name), s.cached(ctx, SlicePath+"/"+last.SliceName(4)))
}

// StoreNodes stores nodes as Store does services.
func (s *Server) StoreNodes(ctx context.Context, nodes []Node) error {
	w := s.writer()
	for _, n := range nodes {
		if err := w.put(ctx, "minions/"+n.Name, n.Object()); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil || len(nodes) == 0 {
		return err
	}
	return s.cached(ctx, NodePath+"/"+nodes[len(nodes)-1].Name)
}

// StorePods stores pods as Store does services.
func (s *Server) StorePods(ctx context.Context, pods []Pod) error {
	w := s.writer()
	for _, p := range pods {
		if err := w.put(ctx, "pods/"+p.Namespace+"/"+p.Name, p.Object()); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil || len(pods) == 0 {
		return err
	}
	return s.cached(ctx, pods[len(pods)-1].Path())
}

// StoreNamespaces stores namespaces as Store does services.
func (s *Server) StoreNamespaces(ctx context.Context, namespaces []Namespace) error {
	w := s.writer()
	for _, n := range namespaces {
		if err := w.put(ctx, "namespaces/"+n.Name, n.Object()); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil || len(namespaces) == 0 {
		return err
	}
	return s.cached(ctx, namespaces[len(namespaces)-1].Path())
}

// StorePolicies stores policies as Store does services.
func (s *Server) StorePolicies(ctx context.Context, policies []Policy) error {
	w := s.writer()
	for _, p := range policies {
		if err := w.put(ctx, "networkpolicies/"+p.Namespace+"/"+p.Name, p.Object()); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil || len(policies) == 0 {
		return err
	}
	return s.cached(ctx, policies[len(policies)-1].Path())
}

// DropPolicies removes all NetworkPolicies and returns when the server's caches have forgotten them; last is one of them.
func (s *Server) DropPolicies(ctx context.Context, last Policy) error {
	prefix := registry + "networkpolicies/"
	encode := base64.StdEncoding.EncodeToString
	err := s.request(ctx, http.MethodPost, etcd+"/v3/kv/deleterange",
		Object{"key": encode([]byte(prefix)), "range_end": encode([]byte(prefix[:len(prefix)-1] + "0"))}) // "0" follows "/"
	if err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if err := s.do(ctx, http.MethodGet, last.Path()+"?resourceVersion=0", nil); err != nil {
			return ctx.Err() // not found any more
		}
		if time.Now().After(end) {
			return fmt.Errorf("wait until the API server has forgotten %s: %w", last.Path(), context.DeadlineExceeded)
		}
	}
}

// cached waits until the server has an object in its cache, which is what resourceVersion=0 asks.
func (s *Server) cached(ctx context.Context, path string) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := s.do(ctx, http.MethodGet, path+"?resourceVersion=0", nil)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("wait until the API server knows what was stored: %w", err)
		}
	}
}

// ipAddress is the claim of a service on its cluster address; the API server makes missing ones, which would go on beside a measurement.
func ipAddress(address, service string) Object {
	return Object{
		"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": Object{"name": address, "labels": Object{
			"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
		"spec": Object{"parentRef": Object{"group": "", "resource": "services", "namespace": "default", "name": service}},
	}
}

// uid is a random UUID.
func uid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
