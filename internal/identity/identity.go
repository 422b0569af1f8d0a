// Package identity names the numbers by which the datapath knows who an address belongs to.
package identity

import "strconv"

// ID is node-local: the same peer may have different IDs on different nodes.
type ID uint32

// The reserved identities. Values are in the kernel's maps and never change; computed identities begin at FirstComputed.
const (
	Unknown    ID = 0 // an address inside the cluster's CIDRs whose pod is not known
	Host       ID = 1 // this node
	World      ID = 2 // outside the cluster
	RemoteNode ID = 3 // another node
	APIServer  ID = 4 // an API server that is not a node
	Pod        ID = 5 // any pod, while no policy in use distinguishes it

	FirstComputed ID = 256
)

// String returns the name shown to people; computed identities print as their number.
func (id ID) String() string {
	switch id {
	case Unknown:
		return "unknown"
	case Host:
		return "host"
	case World:
		return "world"
	case RemoteNode:
		return "remote-node"
	case APIServer:
		return "kube-apiserver"
	case Pod:
		return "pod"
	}
	return strconv.FormatUint(uint64(id), 10)
}
