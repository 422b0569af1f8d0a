package v2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Conditions of a policy.
const (
	Valid    = "Valid"    // every field of it can be enforced
	Enforced = "Enforced" // the nodes that it concerns have it in their kernels
)

// CiliumNetworkPolicy says who may talk to the pods of its namespace that it selects, and whom they may talk to.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,path=ciliumnetworkpolicies,shortName={cnp,ciliumnp},categories={cilium,ciliumpolicy}
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:validation:XValidation:rule="has(self.spec) || has(self.specs)",message="want spec or specs"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].status`
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=`.status.conditions[?(@.type=="Enforced")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Valid")].message`
type CiliumNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is a rule.
	//
	// +optional
	Spec *RawRule `json:"spec,omitempty"`
	// Specs are more of them. They hold independently of each other.
	//
	// +optional
	Specs []RawRule `json:"specs,omitempty"`
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// CiliumNetworkPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type CiliumNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CiliumNetworkPolicy `json:"items"`
}

// CiliumClusterwideNetworkPolicy is a CiliumNetworkPolicy for the pods of all namespaces, or for nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=ciliumclusterwidenetworkpolicies,shortName={ccnp},categories={cilium,ciliumpolicy}
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:validation:XValidation:rule="has(self.spec) || has(self.specs)",message="want spec or specs"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].status`
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=`.status.conditions[?(@.type=="Enforced")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Valid")].message`
type CiliumClusterwideNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is a rule.
	//
	// +optional
	Spec *RawRule `json:"spec,omitempty"`
	// Specs are more of them. They hold independently of each other.
	//
	// +optional
	Specs []RawRule `json:"specs,omitempty"`
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// CiliumClusterwideNetworkPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type CiliumClusterwideNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CiliumClusterwideNetworkPolicy `json:"items"`
}

// PolicyStatus is what became of a policy.
type PolicyStatus struct {
	// Conditions: Valid says whether all of the policy can be enforced and, if not, which field is in the way; Enforced, on how many nodes
	// it is.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []Condition `json:"conditions,omitempty"`
	// DerivativePolicies is what Cilium itself may have written here.
	//
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	DerivativePolicies *RawRule `json:"derivativePolicies,omitempty"`
}

// Condition is one in the shape that Cilium writes: of metav1.Condition's fields only type and status are required.
type Condition struct {
	Type   string                 `json:"type"`
	Status metav1.ConditionStatus `json:"status"`
	// +optional
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitempty"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// ObservedGeneration is metadata.generation of what was judged.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
