package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strait-net/strait/api/v1alpha1"
	"github.com/strait-net/strait/internal/state"
)

// livingPods are those of which ToPod makes a row: the server leaves out the others.
const livingPods = "status.phase!=Succeeded,status.phase!=Failed"

func nodes(t Tables) kind[*corev1.Node, state.Node] {
	return kind[*corev1.Node, state.Node]{
		name: "node", table: t.Nodes, equal: state.Node.Equal,
		convert: func(o *corev1.Node) (state.Node, bool, error) { n, err := ToNode(o); return n, true, err },
	}
}

func services(t Tables) kind[*corev1.Service, state.Service] {
	return kind[*corev1.Service, state.Service]{
		name: "service", table: t.Services, equal: state.Service.Equal,
		convert: func(o *corev1.Service) (state.Service, bool, error) { s, err := ToService(o); return s, true, err },
	}
}

func endpointSlices(t Tables) kind[*discoveryv1.EndpointSlice, state.EndpointSlice] {
	return kind[*discoveryv1.EndpointSlice, state.EndpointSlice]{
		name: "endpointslice", table: t.EndpointSlices, equal: state.EndpointSlice.Equal, convert: ToEndpointSlice,
	}
}

// endpointSlicesOf are the slices of headless services, or those of all others.
func endpointSlicesOf(t Tables, headless bool) kind[*discoveryv1.EndpointSlice, state.EndpointSlice] {
	k := endpointSlices(t)
	k.shared = &share[state.EndpointSlice]{
		source: owner, key: objectName,
		ours:   func(s state.EndpointSlice) bool { return s.Headless == headless },
		follow: func(_ *state.EndpointSlice, row state.EndpointSlice) state.EndpointSlice { return row },
	}
	return k
}

func pools(t Tables) kind[*v1alpha1.LoadBalancerPool, state.Pool] {
	return kind[*v1alpha1.LoadBalancerPool, state.Pool]{
		name: "loadbalancerpool", table: t.Pools, equal: state.Pool.Equal,
		convert: func(o *v1alpha1.LoadBalancerPool) (state.Pool, bool, error) { p, err := ToPool(o); return p, true, err },
	}
}

func claims(t Tables) kind[*corev1.Service, state.Claim] {
	return kind[*corev1.Service, state.Claim]{name: "service", table: t.Claims, equal: state.Claim.Equal, convert: ToClaim}
}

func pods(t Tables) kind[*corev1.Pod, state.Pod] {
	return kind[*corev1.Pod, state.Pod]{name: "pod", table: t.Pods, equal: state.Pod.Equal, convert: ToPod, borrow: borrowPod}
}

func namespaces(t Tables) kind[*corev1.Namespace, state.Namespace] {
	return kind[*corev1.Namespace, state.Namespace]{
		name: "namespace", table: t.Namespaces, equal: state.Namespace.Equal,
		convert: func(o *corev1.Namespace) (state.Namespace, bool, error) {
			n, err := ToNamespace(o)
			return n, true, err
		},
	}
}
