// Package kube reflects Kubernetes objects into the intent tables and writes the few things an agent says about its node.
package kube
