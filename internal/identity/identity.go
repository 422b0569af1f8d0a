// Package identity names who an address belongs to, as far as policy in use on a node can tell.
package identity

import "strconv"

// ID is a hash of what it stands for: the same peers have the same ID on every node that distinguishes them, and after every restart.
type ID uint64

// The reserved identities: peers of a kind that no selector in use distinguishes. Values are in the kernel's maps and never change; hashes
// begin at FirstComputed.
const (
	Unknown    ID = 0 // an address inside the cluster's CIDRs whose pod is not known
	Host       ID = 1 // this node
	World      ID = 2 // outside the cluster
	RemoteNode ID = 3 // another node
	APIServer  ID = 4 // an API server that is not a node
	Pod        ID = 5 // a pod
	Unanswered ID = 6 // anybody: who it is does not fit into the tables

	// Other stands in policies for every identity that they do not name.
	Other ID = 255

	FirstComputed ID = 256
)

// String returns the name shown to people; computed identities print as 16 hexadecimal digits.
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
	case Unanswered:
		return "unanswered"
	case Other:
		return "other"
	}
	s := strconv.FormatUint(uint64(id), 16)
	return "0000000000000000"[len(s):] + s
}
