// Package v2 is the API group cilium.io as far as Strait accepts it: CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, so that the
// manifests of people who come from Cilium apply as they are.
//
// A rule is kept as it was written until RawRule.Decode reads it strictly: a field that is misspelt or of another type then concerns
// its own object only, and the error names its path. The CRDs are generated into the chart's files, not its templates, because they are
// left out where Cilium's own exist.
//
// +groupName=cilium.io
// +kubebuilder:object:generate=true
package v2

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.20.0 object paths=. crd:maxDescLen=1000 paths=. output:crd:dir=../../../deploy/helm/strait/files/crds
