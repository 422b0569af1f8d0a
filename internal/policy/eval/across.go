package eval

import "github.com/strait-net/strait/internal/policy"

// Across is what one end says while who its peers are is known anew, and which policies select it is not: between two writes of one change
// that concerns both, as that of a namespace's labels does.
func Across(subjects, peers *Cluster, conn Connection, way policy.Way) *policy.Verdict {
	own, other := conn.From, conn.To
	if way == policy.Ingress {
		own, other = other, own
	}
	s := subjects.subjectAt(own)
	if !s.judged() {
		return nil
	}
	v := peers.verdict(s, way, conn, peers.peerAt(other, s.nodeName()))
	return &v
}
