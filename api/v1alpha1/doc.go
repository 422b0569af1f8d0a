// Package v1alpha1 is the API group strait.dev: the kinds Strait adds to Kubernetes.
//
// The CRDs are generated into the chart's templates rather than its crds: Helm never upgrades what is in crds. An annotation keeps them,
// and with them everybody's objects, when the chart is uninstalled.
//
// +groupName=strait.dev
// +kubebuilder:object:generate=true
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.20.0 object paths=. crd:maxDescLen=1000 paths=. output:crd:dir=../../deploy/helm/strait/templates/crds
