/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The outside: what leaves the cluster and what comes back. */
#pragma once

/* Gives the packet the node's address; 0 or why it cannot have it. */
static __always_inline int world_masquerade(struct __sk_buff *skb, const struct packet *p, const struct device *dev)
{
	struct rewrite to = {
		.addr = p->flags & PACKET_V6 ? dev->addr6 : dev->addr4,
		.end = REWRITE_SRC,
	};
	int why;

	if (addr_is_zero(&to.addr))
		return REASON_NO_MASQUERADE_ADDRESS;
	why = nat_connection(skb, p, &to);
	if (why)
		return why;
	return rewrite_packet(skb, p, &to) ? REASON_REWRITE : 0;
}

/* From a pod to an address outside the cluster. */
static __noinline int world_leave(struct __sk_buff *skb, const struct packet *p, __u32 remote_flags)
{
	struct device *dev = NULL;
	struct addr hop = {};
	__u32 ifindex = 0;
	int why;

	if (addr_is_gateway(&p->dst, p->flags & PACKET_V6))
		return drop(skb, p, REASON_GATEWAY);
	if (isolated(remote_flags))
		return drop(skb, p, REASON_ISOLATED);
	if (fib_lookup(skb, p, &hop, &ifindex))
		dev = bpf_map_lookup_elem(&strait_device, &ifindex);
	if ((cfg_network == NETWORK_FLAT || !dev) && !(p->flags & PACKET_COUNTED)) {
		why = policy_follow(skb, p);
		if (why)
			return drop(skb, p, why);
	}
	if (!dev) /* an address of the node that nobody told us, or a device that is not ours */
		return to_stack(skb);
	if (packet_exceeds(skb, p, dev->mtu)) {
		/* The stack may tell the pod; but it would fragment without masquerading. */
		if (p->flags & PACKET_DF || cfg_network == NETWORK_FLAT)
			return to_stack(skb);
		return drop(skb, p, REASON_TOO_BIG);
	}
	if (cfg_network == NETWORK_FLAT)
		return deliver_neighbour(skb, p, &hop, ifindex, REASON_TO_WORLD);
	why = world_masquerade(skb, p, dev);
	if (why)
		return drop(skb, p, why);
	return deliver_neighbour(skb, p, &hop, ifindex, REASON_TO_WORLD_MASQUERADED);
}

/* A pod's packet that the stack has sent out of the cluster, to a service's backend there. 0, or why it cannot go. */
static __noinline int world_stack(struct __sk_buff *skb, struct packet *p)
{
	__u32 owner = ipcache_owner(&p->dst), ifindex = skb->ifindex;
	struct device *dev = bpf_map_lookup_elem(&strait_device, &ifindex);

	if (cfg_network == NETWORK_FLAT || owner & (REMOTE_HOST | REMOTE_NODE | REMOTE_POD))
		return 0;
	if (isolated(owner))
		return REASON_ISOLATED;
	return dev ? world_masquerade(skb, p, dev) : 0;
}

/* The pod's own view of a reply: its connection is found, or remembered again from the mapping. 0, or why it may not pass; *found is
 * NULL: the pod's connection has another port by now. */
static __noinline int world_track(struct __sk_buff *skb, const struct packet *p, const struct packet *seen,
				  struct ct_entry **found)
{
	struct ct_policy said = {};
	struct ct_key key;
	struct ct_entry *ct;
	__u32 dir;
	int why;

	*found = NULL;
	ct = ct_find(seen, &key, &dir);
	if (ct && (!(ct->flags & CT_NAT) || ct->nat_port != p->dport))
		return 0;
	why = ct ? policy_known(skb, seen, ct, dir) : policy_admits(skb, seen, true, &said, NULL, 0);
	if (why)
		return why;
	if (!ct) {
		ct = ct_begin(&key, !dir, &said);
		if (!ct)
			return 0;
		ct->nat_addr = p->dst;
		ct->nat_port = p->dport;
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_NAT);
		event_new(skb, seen, ct, &said);
	}
	ct_update(ct, seen, dir);
	*found = ct;
	return 0;
}

/* A reply to a masqueraded connection; LB_NO_SERVICE: whatever else comes to an address of the node is the node's own. */
static __noinline int world_return(struct __sk_buff *skb, struct packet *p, const struct nat_entry *e)
{
	struct packet seen = *p;
	struct ct_entry *ct;
	struct endpoint *ep;
	int why;

	seen.dst = e->client;
	seen.dport = e->client_port;
	if (packet_is_icmp(p->proto))
		seen.sport = seen.dport;
	ep = endpoint_lookup(&seen.dst);
	if (!ep)
		return LB_NO_SERVICE;
	why = world_track(skb, p, &seen, &ct);
	if (why)
		return drop(skb, p, why);
	if (!ct)
		return LB_NO_SERVICE;
	if (!frag_resolve(p) || p->ttl <= 1)
		return drop(skb, p, REASON_TTL_EXCEEDED);
	if (STACK_SHARES && ct->flags & CT_STACK) { /* which has chosen the other end in place of a service */
		seen.sport = p->sport;
		return rewrite_like(skb, p, &seen) ? drop(skb, p, REASON_REWRITE) : to_stack(skb);
	}
	if (ct->flags & CT_FRONT) {
		seen.sport = ct->front_port;
		seen.src = ct->front_addr;
		front_heard(&seen, ct);
	} else {
		seen.sport = p->sport;
	}
	if (rewrite_like(skb, p, &seen))
		return drop(skb, p, REASON_REWRITE);
	return deliver_pod(skb, p, ep, REASON_TO_LOCAL_POD);
}
