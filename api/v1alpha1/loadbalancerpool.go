package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// LoadBalancerClass is the spec.loadBalancerClass that only Strait serves. Services without a class are served as well.
const LoadBalancerClass = "strait.dev/lb"

// SharingKeyAnnotation lets services have one address in common: those with the same value, as long as their ports differ.
const SharingKeyAnnotation = "strait.dev/sharing-key"

// AddressAllocated is the condition of a Service of type LoadBalancer that says whether it has its addresses, and of whom they are:
// a Service that has it was given its addresses by Strait.
const AddressAllocated = "strait.dev/AddressAllocated"

// Reasons of AddressAllocated.
const (
	ReasonAllocated = "Allocated"
	ReasonExhausted = "Exhausted" // the pools the service may use have no free address
	ReasonConflict  = "Conflict"  // the address asked for belongs to another service
	ReasonNoPool    = "NoPool"    // no pool is for this service, or none has the address it asks for
)

// PoolReady is the condition of a pool that says whether addresses are taken from it.
const PoolReady = "Ready"

// Reasons of PoolReady.
const (
	ReasonInUse    = "InUse"
	ReasonDisabled = "Disabled"
	ReasonOverlap  = "Overlap" // with pods, nodes, services or an older pool
	ReasonInvalid  = "Invalid" // what the schema cannot refuse
)

// LoadBalancerPool is a set of addresses for Services of type LoadBalancer whose class is strait.dev/lb or that have none. Services are
// given the lowest free address of the first pool that is for them: pools with a serviceSelector come before those without, then by
// name. A service keeps what it has as long as a pool that is for it has the address.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=lbpool,categories=strait
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="IPv4 used",type=integer,JSONPath=`.status.ipv4.allocated`
// +kubebuilder:printcolumn:name="IPv4 free",type=integer,JSONPath=`.status.ipv4.free`
// +kubebuilder:printcolumn:name="IPv6 used",type=integer,JSONPath=`.status.ipv6.allocated`
// +kubebuilder:printcolumn:name="IPv6 free",type=integer,JSONPath=`.status.ipv6.free`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type LoadBalancerPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LoadBalancerPoolSpec `json:"spec"`
	// +optional
	Status LoadBalancerPoolStatus `json:"status,omitempty"`
}

// LoadBalancerPoolSpec is what a person says about a pool.
type LoadBalancerPoolSpec struct {
	// Blocks are the addresses, IPv4 and IPv6 as you like. None may be an address of a pod, a node, a ClusterIP or of another pool: a
	// pool with such an address is not used, and its condition Ready says what it overlaps.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Blocks []AddressBlock `json:"blocks"`

	// ServiceSelector chooses services by their labels. Absent: all.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// AllowFirstLast says whether the first and the last address of a block given as cidr may be used. They may unless this is false:
	// to routers and hosts beyond the local network they are addresses like any other. Set it to false where a cidr is a
	// whole subnet of a link with IPv4, because .0 and .255 are that link's network and broadcast addresses. It has no effect on
	// blocks given by start and stop, nor on those of one or two addresses.
	//
	// +optional
	// +kubebuilder:default=true
	AllowFirstLast *bool `json:"allowFirstLast,omitempty"`

	// Disabled pools give out nothing more. Services keep the addresses they have.
	//
	// +optional
	Disabled bool `json:"disabled,omitempty"`
}

// AddressBlock is a CIDR, or a range with both ends included.
//
// +kubebuilder:validation:XValidation:rule="has(self.cidr) ? !has(self.start) && !has(self.stop) : has(self.start)",message="want either cidr, or start and, if there are more addresses than one, stop"
// +kubebuilder:validation:XValidation:rule="!has(self.cidr) || isCIDR(self.cidr)",message="cidr: want a CIDR such as 192.0.2.0/24 or 2001:db8::/112"
// +kubebuilder:validation:XValidation:rule="!has(self.start) || isIP(self.start)",message="start: want an address such as 192.0.2.10 or 2001:db8::10"
// +kubebuilder:validation:XValidation:rule="!has(self.stop) || isIP(self.stop)",message="stop: want an address such as 192.0.2.20 or 2001:db8::20"
// +kubebuilder:validation:XValidation:rule="!has(self.stop) || !isIP(self.stop) || !has(self.start) || !isIP(self.start) || ip(self.start).family() == ip(self.stop).family()",message="start and stop: want addresses of one family"
type AddressBlock struct {
	// CIDR is a prefix, such as 192.0.2.0/24.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=43
	CIDR string `json:"cidr,omitempty"`
	// Start is the first address of a range.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=39
	Start string `json:"start,omitempty"`
	// Stop is the last address of a range. Absent: start is the only one.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=39
	Stop string `json:"stop,omitempty"`
}

// LoadBalancerPoolStatus is what became of a pool.
type LoadBalancerPoolStatus struct {
	// Conditions: Ready says whether addresses are taken from the pool.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	IPv4 AddressCount `json:"ipv4,omitzero"`
	// +optional
	IPv6 AddressCount `json:"ipv6,omitzero"`
}

// AddressCount counts the addresses of one family. More than 9223372036854775807 are shown as that many.
type AddressCount struct {
	Total     int64 `json:"total"`
	Allocated int64 `json:"allocated"`
	Free      int64 `json:"free"`
}

// LoadBalancerPoolList is a list of pools.
//
// +kubebuilder:object:root=true
type LoadBalancerPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []LoadBalancerPool `json:"items"`
}
