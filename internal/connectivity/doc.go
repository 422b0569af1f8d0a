// Package connectivity tests the network of a cluster with pods of its own: it deploys servers and clients, asks over every kind of way there is
// between them, holds the answers against what has to be true, and removes everything again.
//
// Of what is allowed, the answer has to come from the right pod, on all addresses that the name asked for should have. Of what is denied, silence
// is not enough: the policy's own counter has to say that it was the one.
package connectivity
