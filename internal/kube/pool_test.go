package kube

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

func TestToPool(t *testing.T) {
	block := func(text string) v1alpha1.AddressBlock {
		first, last, isRange := strings.Cut(text, "-")
		if strings.Contains(text, "/") {
			return v1alpha1.AddressBlock{CIDR: text}
		}
		if isRange {
			return v1alpha1.AddressBlock{Start: first, Stop: last}
		}
		return v1alpha1.AddressBlock{Start: text}
	}
	no := false
	for _, c := range []struct {
		block     string
		firstLast *bool
		want      string // range or error
	}{
		{"192.0.2.0/24", nil, "192.0.2.0-192.0.2.255"},
		{"192.0.2.9/24", nil, "192.0.2.0-192.0.2.255"},
		{"192.0.2.0/24", &no, "192.0.2.1-192.0.2.254"},
		{"192.0.2.0/30", &no, "192.0.2.1-192.0.2.2"},
		{"192.0.2.0/31", &no, "192.0.2.0-192.0.2.1"},
		{"192.0.2.7/32", &no, "192.0.2.7"},
		{"192.0.0.0/13", nil, "192.0.0.0-192.7.255.255"},
		{"0.0.0.0/0", nil, "0.0.0.0-255.255.255.255"},
		{"2001:db8::/121", &no, "2001:db8::1-2001:db8::7e"},
		{"2001:db8::/33", nil, "2001:db8::-2001:db8:7fff:ffff:ffff:ffff:ffff:ffff"},
		{"192.0.2.9-192.0.2.10", &no, "192.0.2.9-192.0.2.10"},
		{"192.0.2.9", nil, "192.0.2.9"},
		{"192.0.2.9-192.0.2.8", nil, "spec.blocks[0].stop: 192.0.2.8: want an address of the family of start, 192.0.2.9, and not before it"},
		{"192.0.2.9-2001:db8::1", nil, "spec.blocks[0].stop: 2001:db8::1: want"},
		{"192.0.2.9-x", nil, `spec.blocks[0].stop: "x": want an IPv4 or IPv6 address`},
		{"::ffff:192.0.2.0/120", nil, `spec.blocks[0].cidr: "::ffff:192.0.2.0/120": want a CIDR`},
		{"192.0.2.0/33", nil, `spec.blocks[0].cidr: "192.0.2.0/33": want a CIDR`},
	} {
		o := &v1alpha1.LoadBalancerPool{Spec: v1alpha1.LoadBalancerPoolSpec{Blocks: []v1alpha1.AddressBlock{block(c.block)}, AllowFirstLast: c.firstLast}}
		p, err := ToPool(o)
		got := p.Invalid
		if len(p.Ranges) == 1 {
			got = p.Ranges[0].String()
		}
		if !strings.HasPrefix(got, c.want) || (err != nil) != (p.Invalid != "") {
			t.Errorf("%s: %q, %v; want %q", c.block, got, err, c.want)
		}
	}
	o := &v1alpha1.LoadBalancerPool{Spec: v1alpha1.LoadBalancerPoolSpec{Blocks: []v1alpha1.AddressBlock{block("192.0.2.9")}}}
	for want, selector := range map[string]*metav1.LabelSelector{
		"": nil, "team=red": {MatchLabels: map[string]string{"team": "red"}},
		"!spare,team in (blue,red)": {MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "team", Operator: metav1.LabelSelectorOpIn, Values: []string{"red", "blue"}}, {Key: "spare", Operator: metav1.LabelSelectorOpDoesNotExist},
		}},
	} {
		if o.Spec.ServiceSelector = selector; selector != nil {
			if p, err := ToPool(o); err != nil || p.Selector != want {
				t.Errorf("selector %q, %v; want %q", p.Selector, err, want)
			}
		}
	}
	o.Spec.ServiceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "Like"}}}
	if p, _ := ToPool(o); !strings.Contains(p.Invalid, "spec.serviceSelector") || p.Ranges != nil {
		t.Errorf("%+v", p)
	}
}

func TestToClaim(t *testing.T) {
	condition := metav1.Condition{Type: v1alpha1.AddressAllocated, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAllocated, Message: "192.0.2.9"}
	service := func(kind corev1.ServiceType, conditions ...metav1.Condition) *corev1.Service {
		o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "a", ResourceVersion: "7", Annotations: map[string]string{v1alpha1.SharingKeyAnnotation: "k"}}}
		o.Spec.Type, o.Status.Conditions = kind, conditions
		return o
	}
	if _, ok, _ := ToClaim(service(corev1.ServiceTypeClusterIP)); ok {
		t.Error("a ClusterIP service is a claim")
	}
	// One that has become another type: its condition has to go.
	if row, ok, err := ToClaim(service(corev1.ServiceTypeClusterIP, condition)); !ok || err != nil || row.Allocation != (state.Allocation{Done: true, Reason: "Allocated", Message: "192.0.2.9"}) {
		t.Errorf("%+v, %t, %v", row, ok, err)
	}
	o := service(corev1.ServiceTypeLoadBalancer)
	proxy := corev1.LoadBalancerIPModeProxy
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}, {IP: "192.0.2.9"}, {IP: "192.0.2.10", IPMode: &proxy}}
	row, ok, err := ToClaim(o)
	if !ok || err != nil || fmt.Sprint(row.Held) != "[192.0.2.9 192.0.2.10]" || row.Foreign || row.SharingKey != "k" || row.Version != "7" || row.Allocation.Reason != "" {
		t.Errorf("%+v, %t, %v", row, ok, err)
	}
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb.example"}}
	if row, _, _ = ToClaim(o); !row.Foreign || row.Held != nil {
		t.Errorf("%+v", row)
	}
}
