/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx egress of the node's devices: what the node's own stack sends to the network. What programs of ours send is marked, and passes. */

static __always_inline int to_net_own(struct __sk_buff *skb, struct packet *p)
{
	int rc = p->flags & PACKET_ERROR ? error_own(skb, p) : front_own(skb, p);

	if (rc > 0)
		return finish(skb, REASON_TO_CLIENT, TC_ACT_UNSPEC);
	if (!rc && host_guarded())
		rc = -host_out(skb, p);
	return rc ? drop(skb, p, -rc) : TC_ACT_UNSPEC;
}

SEC("tcx/egress")
int strait_to_net(struct __sk_buff *skb)
{
	struct packet p = { .hook = HOOK_TO_NET, .ifindex = skb->ifindex };
	int rc;

	if (skb->tc_index == DELIVER_OURS) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	if (packet_parse(skb, &p))
		return TC_ACT_UNSPEC;
	rc = STACK_SHARES ? stack_sends(skb, &p) : 0;
	if (rc > 0)
		rc = world_stack(skb, &p);
	else if (!rc)
		return to_net_own(skb, &p);
	return rc ? drop(skb, &p, rc < 0 ? -rc : rc) : TC_ACT_UNSPEC;
}
