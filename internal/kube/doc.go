// Package kube reflects Kubernetes objects into the intent tables and writes the few things an agent says about its node.
package kube

// The CRD of ClusterNetworkPolicy is shipped as its authors publish it, in the experimental channel: that of peers that are nodes. It is kept,
// like ours, when the release goes: without it every object of the kind would be lost.
//go:generate sh -c "sed -e '1i ---' -e '/^  annotations:/a\\    helm.sh/resource-policy: keep' $(go list -m -f '{{.Dir}}' sigs.k8s.io/network-policy-api)/config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml >../../deploy/helm/strait/files/crds/policy.networking.k8s.io_clusternetworkpolicies.yaml"
