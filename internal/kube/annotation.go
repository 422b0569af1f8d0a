package kube

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/state"
)

// The annotations of a Service that Strait reads. AddressesAnnotation of a pod has the addresses that its agent gave it.
const (
	AlgorithmAnnotation  = "strait.dev/algorithm"
	ForwardingAnnotation = "strait.dev/forwarding"
	WeightsAnnotation    = "strait.dev/weights"   // 10.0.0.1=3,node:big=4,zone:a=2
	AddressesAnnotation  = "strait.dev/addresses" // 192.0.2.7,2001:db8::7
)

// maxWeight bounds a weight: the tables of algorithms that know no weights repeat a backend as often.
const maxWeight = 100

// addressAnnotations are those that ask for LoadBalancer addresses, the first that is present counts. Clusters come with those of others.
func addressAnnotations() []string {
	return []string{AddressesAnnotation, "lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"}
}

func algorithms() []state.Algorithm {
	return []state.Algorithm{state.Random, state.Maglev, state.RR, state.LC, state.DH, state.SH, state.SED, state.NQ, state.P2C}
}

// annotations reads the choices of a service; a wrong one counts as absent.
func (r *serviceReader) annotations() {
	r.row.Algorithm = oneOf(r, AlgorithmAnnotation, algorithms())
	r.row.Forwarding = oneOf(r, ForwardingAnnotation, []state.Forwarding{state.SNAT, state.DSR})
	if text := r.o.Annotations[WeightsAnnotation]; text != "" {
		weights, err := parseWeights(text)
		if err != nil {
			r.leaveOut("%s: %q: %w; all endpoints weigh the same", annotation(WeightsAnnotation), text, err)
			return
		}
		r.row.Weights = weights
	}
}

func oneOf[T ~string](r *serviceReader, key string, values []T) T {
	text := r.o.Annotations[key]
	if text == "" {
		return ""
	}
	if i := slices.Index(values, T(text)); i >= 0 {
		return values[i]
	}
	r.leaveOut("%s: %q: unknown; accepted: %s; the configuration's is used", annotation(key), text, list(values))
	return ""
}

func annotation(key string) string { return "metadata.annotations[" + key + "]" }

// requested reads the addresses asked for: spec.loadBalancerIP, then those of the first annotation.
func (r *serviceReader) requested() {
	if text := r.o.Spec.LoadBalancerIP; text != "" {
		addr, err := parseAddr(text)
		if err != nil {
			r.leaveOut("spec.loadBalancerIP: %w; any address is taken", err)
		} else {
			r.row.RequestedIPs = append(r.row.RequestedIPs, addr)
		}
	}
	for _, key := range addressAnnotations() {
		text := r.o.Annotations[key]
		if text == "" {
			continue
		}
		for _, part := range strings.Split(text, ",") {
			addr, err := parseAddr(strings.TrimSpace(part))
			if err != nil {
				r.leaveOut("%s: %w, several separated by commas; it is not asked for", annotation(key), err)
				continue
			}
			if !slices.Contains(r.row.RequestedIPs, addr) {
				r.row.RequestedIPs = append(r.row.RequestedIPs, addr)
			}
		}
		return
	}
}

// parseWeights reads "10.0.0.1=3,node:big=4,zone:a=2".
func parseWeights(text string) ([]state.Weight, error) {
	var out []state.Weight
	for _, part := range strings.Split(text, ",") {
		of, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("%q: want ADDRESS=WEIGHT, node:NAME=WEIGHT or zone:NAME=WEIGHT, separated by commas", part)
		}
		of, value = strings.TrimSpace(of), strings.TrimSpace(value)
		weight, err := strconv.ParseUint(value, 10, 16)
		if err != nil || weight > maxWeight {
			return nil, fmt.Errorf("weight %q of %s: want 0 (no new connections) to %d", value, of, maxWeight)
		}
		kind, name, named := strings.Cut(of, ":")
		if named = named && (kind == "node" || kind == "zone"); named && name == "" {
			return nil, fmt.Errorf("%q: want %s:NAME=WEIGHT", part, kind)
		}
		if !named {
			addr, err := parseAddr(of)
			if err != nil {
				return nil, fmt.Errorf("%w, node:NAME or zone:NAME", err)
			}
			of = addr.String()
		}
		if slices.ContainsFunc(out, func(w state.Weight) bool { return w.Of == of }) {
			return nil, fmt.Errorf("%s has two weights: want one", of)
		}
		out = append(out, state.Weight{Of: of, Value: uint16(weight)})
	}
	return out, nil
}
