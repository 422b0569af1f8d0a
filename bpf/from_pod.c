/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx ingress of st*: everything a pod sends. */

static __always_inline int from_pod_remote(struct __sk_buff *skb, const struct packet *p)
{
	struct remote *remote = ipcache_lookup(&p->dst);
	__u32 flags = remote ? remote->flags : 0;

	if (flags & REMOTE_HOST)
		return ct_track(p) ? to_stack(skb) : drop(skb, REASON_CT_INSERT);
	if (p->ttl <= 1)
		return to_stack(skb);
	if (!remote || !(flags & (REMOTE_POD | REMOTE_NODE)))
		return world_leave(skb, p, flags);
	if (!(flags & REMOTE_TUNNEL) && !remote->ifindex) /* no such pod on this node: the stack says so */
		return to_stack(skb);
	if (!ct_track(p))
		return drop(skb, REASON_CT_INSERT);
	if (packet_exceeds(skb, p, cfg_pod_mtu))
		return to_stack(skb);
	if (flags & REMOTE_TUNNEL)
		return deliver_tunnel(skb, p, remote);
	return deliver_neighbour(skb, p, &remote->node, remote->ifindex, REASON_TO_NEIGHBOUR);
}

static __always_inline int from_pod_local(struct __sk_buff *skb, const struct packet *p, const struct endpoint *to)
{
	if (p->ttl <= 1)
		return to_stack(skb);
	if (!ct_track(p))
		return drop(skb, REASON_CT_INSERT);
	return deliver_pod(skb, p, to);
}

SEC("tcx/ingress")
int strait_from_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	struct endpoint *ep;
	enum reason why = packet_parse(skb, &p);

	if (why)
		return drop(skb, why);
	if (addr_is_multicast(&p.dst, p.flags & PACKET_V6))
		return drop_multicast(skb, &p);
	if (p.flags & PACKET_NDP)
		return drop(skb, REASON_UNSUPPORTED_L2);
	ep = endpoint_lookup(&p.src);
	if (!ep || ep->ifindex != skb->ifindex)
		return drop(skb, REASON_SPOOFED_SOURCE);
	if (p.flags & PACKET_ERROR && !error_from_receiver(skb, &p))
		return drop(skb, REASON_UNRELATED_ICMP);
	if (!frag_resolve(&p))
		return drop(skb, REASON_FRAGMENT_UNKNOWN);
	ep = endpoint_lookup(&p.dst);
	return ep ? from_pod_local(skb, &p, ep) : from_pod_remote(skb, &p);
}
