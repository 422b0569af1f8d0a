/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx ingress of the node's devices: what comes from the network. */

/* Neither a pod of this node nor the node itself is ever out there: looked at when a connection begins, and for errors, which have none. */
static __noinline int from_net_track(struct __sk_buff *skb, struct packet *p)
{
	bool error = p->flags & PACKET_ERROR;
	struct ct_entry *ct = NULL;
	struct ct_key key;
	__u32 dir = 0;
	int why;

	if (!error)
		ct = ct_find(p, &key, &dir);
	if (!ct) {
		if (endpoint_lookup(&p->src) || ipcache_owner(&p->src) & REMOTE_HOST)
			return REASON_SPOOFED_SOURCE;
		if (cfg_network == NETWORK_ISOLATED && isolated(ipcache_owner(&p->src)))
			return REASON_ISOLATED;
		if (error)
			return 0;
		return policy_enter(skb, p, &key, dir);
	}
	why = policy_known(skb, p, ct, dir);
	if (why)
		return why;
	ct_count(ct, p, dir);
	return ct_turned(ct, dir) ? front_turn(skb, p, ct) : 0;
}

static __always_inline int from_net_pod(struct __sk_buff *skb, struct packet *p, const struct endpoint *ep)
{
	int why;

	if (p->ttl <= 1)
		return to_stack(skb);
	why = p->flags & PACKET_ERROR ? error_to_sender(skb, p) : 0;
	if (why)
		return drop(skb, p, why);
	if (!frag_resolve(p))
		return drop(skb, p, REASON_FRAGMENT_UNKNOWN);
	if (p->flags & PACKET_OPTIONS && cfg_services != SERVICE_MODE_OFF) {
		int rc = dsr_receive(skb, p);

		if (rc)
			return rc < 0 ? drop(skb, p, -rc) : deliver_pod(skb, p, ep, REASON_TO_LOCAL_POD);
	}
	why = STACK_SHARES ? stack_holds(skb, p) : 0;
	if (why)
		return why < 0 ? drop(skb, p, -why) : to_stack(skb);
	why = from_net_track(skb, p);
	if (why)
		return drop(skb, p, why);
	return deliver_pod(skb, p, ep, REASON_TO_LOCAL_POD);
}

SEC("tcx/ingress")
int strait_from_net(struct __sk_buff *skb)
{
	struct packet p = { .hook = HOOK_FROM_NET, .ifindex = skb->ifindex };
	struct endpoint *ep;

	/* What is malformed, not IP, or meant for another machine is the stack's to judge: nothing of it goes to a pod here. */
	if (skb->pkt_type != PACKET_HOST || packet_parse(skb, &p) || p.flags & PACKET_NDP)
		return announce(skb);
	ep = endpoint_lookup(&p.dst);
	if (ep)
		return from_net_pod(skb, &p, ep);
	return p.flags & PACKET_ERROR ? forward_error(skb, &p) : forward_node(skb, &p);
}
