package model

import (
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/policy/eval"
)

// Explain asks policy.Explain about one end of a connection, which is a pod or a node.
func Explain(c *eval.Cluster, conn eval.Connection, way policy.Way) policy.Explanation {
	own, other := conn.From, conn.To
	if way == policy.Ingress {
		own, other = other, own
	}
	node := c.NodeOf(own)
	peer := peerAt(c, node, other)
	return policy.Explain(setAt(c, own), way, &peer, conn.Protocol, conn.Port)
}

// setAt returns what selects the pod, or the node, at an address.
func setAt(c *eval.Cluster, a netip.Addr) policy.Set {
	for i := range c.Pods {
		if p := &c.Pods[i]; !p.HostNetwork && slices.Contains(p.Addresses, a) {
			return setOfPod(c, p)
		}
	}
	for i := range c.Nodes {
		if slices.Contains(c.Nodes[i].Addresses, a) {
			return setOfNode(c, &c.Nodes[i])
		}
	}
	return policy.Set{}
}

// peerAt returns who has an address, as a node sees it.
func peerAt(c *eval.Cluster, node string, a netip.Addr) policy.Peer {
	peer := policy.Peer{Kind: policy.WorldPeer}
	for _, cidr := range c.CIDRs {
		if cidr.Contains(a) {
			peer.Kind = policy.UnknownPeer
		}
	}
	if slices.Contains(c.APIServers, a) {
		peer.Kind, peer.APIServer = policy.APIServerPeer, true
	}
	for i := range c.Nodes {
		if n := &c.Nodes[i]; slices.Contains(n.Addresses, a) {
			peer.Kind, peer.NodeLabels = policy.NodePeer, n.Labels
			if n.Name == node {
				peer.Kind = policy.HostPeer
			}
		}
	}
	for i := range c.Pods {
		if p := &c.Pods[i]; !p.HostNetwork && slices.Contains(p.Addresses, a) {
			server := peer.APIServer
			peer = podPeer(c, p)
			peer.APIServer = server
		}
	}
	peer.Prefix = single(a)
	for _, s := range c.Services {
		if slices.Contains(s.Endpoints, a) {
			peer.Services = append(peer.Services, s.Name)
		}
	}
	return peer
}
