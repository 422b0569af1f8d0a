/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx egress of st*: what the node's own stack sends to a pod. */

SEC("tcx/egress")
int strait_to_pod(struct __sk_buff *skb)
{
	struct ct_entry *turned = NULL;
	struct packet p = { .hook = HOOK_TO_POD, .ifindex = skb->ifindex };
	struct endpoint *ep;
	int why = packet_parse(skb, &p);

	if (why)
		return drop(skb, &p, why);
	if (addr_is_multicast(&p.dst, p.flags & PACKET_V6))
		return drop_multicast(skb, &p);
	if (p.flags & PACKET_NDP)
		return drop(skb, &p, REASON_UNSUPPORTED_L2);
	ep = endpoint_lookup(&p.dst);
	if (!ep || ep->ifindex != p.ifindex)
		return drop(skb, &p, REASON_NO_ENDPOINT);
	/* The stack forwards as well: from devices that no program of ours guards. */
	if (cfg_network == NETWORK_ISOLATED && isolated(ipcache_flags(&p.src)))
		return drop(skb, &p, REASON_ISOLATED);
	why = p.flags & PACKET_ERROR ? error_to_sender(skb, &p) : 0;
	if (why)
		return drop(skb, &p, why);
	if (!frag_resolve(&p))
		return drop(skb, &p, REASON_FRAGMENT_UNKNOWN);
	why = policy_track(skb, &p, &turned);
	if (why)
		return drop(skb, &p, why);
	if (cfg_services != SERVICE_MODE_ON)
		stack_forwards(&p);
	if (turned) {
		why = front_turn(skb, &p, turned);
		if (why)
			return drop(skb, &p, why);
	}
	return finish(skb, REASON_TO_LOCAL_POD, TC_ACT_UNSPEC);
}
