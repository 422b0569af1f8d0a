package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// ToPool returns the row of a LoadBalancerPool. One that cannot be used is a row as well: its condition has to say why.
func ToPool(o *v1alpha1.LoadBalancerPool) (state.Pool, error) {
	p := state.Pool{
		Name: o.Name, UID: string(o.UID), Created: o.CreationTimestamp.Time, Generation: o.Generation, Version: o.ResourceVersion,
		Disabled: o.Spec.Disabled, Shown: poolStatus(o.Status),
	}
	if c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.PoolReady); c != nil {
		p.Since = c.LastTransitionTime.Time
	}
	var errs []error
	if o.Spec.ServiceSelector != nil {
		selector, err := metav1.LabelSelectorAsSelector(o.Spec.ServiceSelector)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.serviceSelector: %w", err))
		} else {
			p.Selector = selector.String()
		}
	}
	for i, b := range o.Spec.Blocks {
		r, err := toRange(b, deref(o.Spec.AllowFirstLast, true))
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.blocks[%d].%w", i, err))
			continue
		}
		p.Ranges = append(p.Ranges, r)
	}
	err := errors.Join(errs...)
	if err == nil {
		return p, nil
	}
	p.Ranges, p.Invalid = nil, err.Error()
	return p, &Partial{err}
}

// toRange reads one block. Without its first and last address a prefix still has all of one or two.
func toRange(b v1alpha1.AddressBlock, firstLast bool) (state.AddressRange, error) {
	if b.CIDR != "" {
		prefix, err := netip.ParsePrefix(b.CIDR)
		if err != nil || prefix.Addr().Is4In6() {
			return state.AddressRange{}, fmt.Errorf("cidr: %q: want a CIDR such as 192.0.2.0/24", b.CIDR)
		}
		r := state.RangeOf(prefix)
		if !firstLast && prefix.Bits() < prefix.Addr().BitLen()-1 {
			r.First, r.Last = r.First.Next(), r.Last.Prev()
		}
		return r, nil
	}
	start, err := parseAddr(b.Start)
	if err != nil {
		return state.AddressRange{}, fmt.Errorf("start: %w", err)
	}
	if b.Stop == "" {
		return state.AddressRange{First: start, Last: start}, nil
	}
	stop, err := parseAddr(b.Stop)
	if err != nil {
		return state.AddressRange{}, fmt.Errorf("stop: %w", err)
	}
	if start.BitLen() != stop.BitLen() || stop.Less(start) {
		return state.AddressRange{}, fmt.Errorf("stop: %s: want an address of the family of start, %s, and not before it", stop, start)
	}
	return state.AddressRange{First: start, Last: stop}, nil
}

func poolStatus(s v1alpha1.LoadBalancerPoolStatus) state.PoolStatus {
	out := state.PoolStatus{Counts: [2]state.AddressCount{state.AddressCount(s.IPv4), state.AddressCount(s.IPv6)}}
	if c := meta.FindStatusCondition(s.Conditions, v1alpha1.PoolReady); c != nil {
		out.Ready, out.Reason, out.Message, out.Generation = c.Status == metav1.ConditionTrue, c.Reason, c.Message, c.ObservedGeneration
	}
	return out
}

// ToClaim returns the row of a Service that is of type LoadBalancer, or was: its condition has to go then. ok is false for others.
func ToClaim(o *corev1.Service) (row state.Claim, ok bool, err error) {
	shown := allocation(o)
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer && shown == (state.Allocation{}) {
		return state.Claim{}, false, nil
	}
	row.Service, err = ToService(o)
	row.Allocation = shown
	row.SharingKey, row.Version = o.Annotations[v1alpha1.SharingKeyAnnotation], o.ResourceVersion
	for _, ingress := range o.Status.LoadBalancer.Ingress {
		addr, err := parseAddr(ingress.IP)
		if err != nil {
			row.Foreign = true
		} else if !slices.Contains(row.Held, addr) {
			row.Held = append(row.Held, addr)
		}
	}
	return row, true, err
}

// allocation reads the condition of a Service about its LoadBalancer addresses.
func allocation(o *corev1.Service) state.Allocation {
	c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.AddressAllocated)
	if c == nil {
		return state.Allocation{}
	}
	return state.Allocation{Done: c.Status == metav1.ConditionTrue, Reason: c.Reason, Message: c.Message}
}
