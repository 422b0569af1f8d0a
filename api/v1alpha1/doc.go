// Package v1alpha1 is the API group strait.dev: the kinds Strait adds to Kubernetes.
//
// +groupName=strait.dev
// +kubebuilder:object:generate=true
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.20.0 object paths=. crd:headerFile=header.txt,maxDescLen=1000 paths=. output:crd:dir=../../deploy/helm/strait/templates/crds
