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

// Store puts services with their IPv4 EndpointSlices and IPAddresses straight into etcd, as the API server would store them: to have it
// create 30,000 objects one by one takes minutes. The server tells its watchers as of any other change; Store returns when the caches that
// they are answered from have everything.
func (s *Server) Store(ctx context.Context, services []Service, endpoints [][]Endpoint) error {
	now := time.Now().UTC().Format(time.RFC3339)
	var puts []Object
	put := func(key string, o Object) error {
		meta, ok := o["metadata"].(Object)
		if !ok {
			return fmt.Errorf("store %s: no metadata", key)
		}
		meta["uid"], meta["creationTimestamp"] = uid(), now
		text, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("store %s: %w", key, err)
		}
		encode := base64.StdEncoding.EncodeToString
		puts = append(puts, Object{"requestPut": Object{"key": encode([]byte("/registry/" + key)), "value": encode(text)}})
		if len(puts) < batch {
			return nil
		}
		return s.flush(ctx, &puts)
	}
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
			if err := put(x.key, x.o); err != nil {
				return err
			}
		}
	}
	if err := s.flush(ctx, &puts); err != nil || len(services) == 0 {
		return err
	}
	last := services[len(services)-1]
	return errors.Join(s.cached(ctx, ServicePath+"/"+last.Name), s.cached(ctx, SlicePath+"/"+last.SliceName(4)))
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

func (s *Server) flush(ctx context.Context, puts *[]Object) error {
	if len(*puts) == 0 {
		return nil
	}
	err := s.request(ctx, http.MethodPost, etcd+"/v3/kv/txn", Object{"success": *puts})
	*puts = (*puts)[:0]
	return err
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
