/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* strait_vxlan: what comes out of the tunnel, and what the node's own stack sends into it. */

/* The node that sent it is the one its source address belongs to. */
static __noinline enum reason from_vx_sender(struct __sk_buff *skb, const struct packet *p)
{
	struct remote *owner, *node;
	struct addr sender;

	if (!encap_sender(skb, &sender))
		return REASON_TUNNEL_KEY;
	owner = ipcache_lookup(&p->src);
	if (!owner || !(owner->flags & (REMOTE_POD | REMOTE_NODE)) || !owner->node_id)
		return REASON_TUNNEL_SPOOFED;
	node = ipcache_lookup(&sender);
	return node && node->node_id == owner->node_id ? 0 : REASON_TUNNEL_SPOOFED;
}

/* The sender is a node of the cluster. */
static __noinline int from_vx_node(struct __sk_buff *skb)
{
	struct addr sender;

	return encap_sender(skb, &sender) && ipcache_owner(&sender) & REMOTE_NODE;
}

/* A packet for which this node answers in place of the sender, which is some node of the cluster: the source is a client outside. As
 * dsr_receive. */
static __noinline int from_vx_dsr(struct __sk_buff *skb, struct packet *p)
{
	if (!dsr_carries(skb, p))
		return 0;
	if (!from_vx_node(skb))
		return -REASON_TUNNEL_SPOOFED;
	return dsr_receive(skb, p);
}

static __always_inline int from_vx_error(struct __sk_buff *skb, struct packet *p)
{
	if (error_about_answer(skb, p) ? !from_vx_node(skb) : from_vx_sender(skb, p))
		return REASON_TUNNEL_SPOOFED;
	return error_to_sender(skb, p);
}

/* Established connections were checked by their first packet. */
static __noinline int from_vx_track(struct __sk_buff *skb, struct packet *p)
{
	struct ct_key key;
	struct ct_entry *ct;
	__u32 dir;
	int why;

	ct = ct_find(p, &key, &dir);
	if (!ct) {
		why = from_vx_sender(skb, p);
		return why ? why : policy_enter(skb, p, &key, dir);
	}
	why = policy_known(skb, p, ct, dir);
	if (why)
		return why;
	ct_count(ct, p, dir);
	return ct_turned(ct, dir) ? front_turn(skb, p, ct) : 0;
}

/* Not to a pod that is here: the node itself, or a pod of ours that is gone, for which the stack answers. */
static __always_inline int from_vx_stack(struct __sk_buff *skb, struct packet *p)
{
	struct remote *to = ipcache_lookup(&p->dst);
	enum reason why;

	if (!to || to->flags & REMOTE_TUNNEL || !(to->flags & (REMOTE_HOST | REMOTE_POD)) || to->ifindex)
		return drop(skb, p, REASON_NO_ENDPOINT);
	why = from_vx_sender(skb, p);
	if (why)
		return drop(skb, p, why);
	if (!(to->flags & REMOTE_HOST))
		return to_stack(skb);
	return p->flags & PACKET_ERROR ? forward_error(skb, p) : forward_node(skb, p);
}

SEC("tcx/ingress")
int strait_from_vx(struct __sk_buff *skb)
{
	struct packet p = { .hook = HOOK_FROM_VX, .ifindex = skb->ifindex };
	struct endpoint *ep;
	enum reason why = packet_parse(skb, &p);
	int rc;

	if (why)
		return drop(skb, &p, why);
	ep = endpoint_lookup(&p.dst);
	if (!ep)
		return from_vx_stack(skb, &p);
	if (p.ttl <= 1)
		return to_stack(skb);
	if (p.flags & PACKET_NDP)
		return drop(skb, &p, REASON_UNSUPPORTED_L2);
	if (!frag_resolve(&p))
		return drop(skb, &p, REASON_FRAGMENT_UNKNOWN);
	if (p.flags & PACKET_OPTIONS && cfg_services != SERVICE_MODE_OFF) {
		rc = from_vx_dsr(skb, &p);
		if (rc)
			return rc < 0 ? drop(skb, &p, -rc) : deliver_pod(skb, &p, ep, REASON_TO_LOCAL_POD);
	}
	rc = STACK_SHARES ? stack_holds(skb, &p) : 0;
	if (rc)
		return rc < 0 ? drop(skb, &p, -rc) : to_stack(skb);
	why = p.flags & PACKET_ERROR ? from_vx_error(skb, &p) : from_vx_track(skb, &p);
	if (why)
		return drop(skb, &p, why);
	return deliver_pod(skb, &p, ep, REASON_TO_LOCAL_POD);
}

SEC("tcx/egress")
int strait_to_vx(struct __sk_buff *skb)
{
	struct packet p = { .hook = HOOK_TO_VX, .ifindex = skb->ifindex };
	struct remote *remote;
	int why;

	if (skb->tc_index == DELIVER_OURS) /* the key is set; the mark stays for the device that the tunnel's packets leave by */
		return TC_ACT_UNSPEC;
	why = packet_parse(skb, &p);
	if (why)
		return drop(skb, &p, why);
	if (addr_is_multicast(&p.dst, p.flags & PACKET_V6))
		return drop_multicast(skb, &p);
	remote = ipcache_lookup(&p.dst);
	if (!remote || !(remote->flags & REMOTE_TUNNEL))
		return drop(skb, &p, REASON_NO_TUNNEL_ENDPOINT);
	why = p.flags & PACKET_ERROR ? error_own(skb, &p) : front_own(skb, &p);
	if (!why && host_guarded())
		why = -host_out(skb, &p);
	if (why < 0)
		return drop(skb, &p, -why);
	if (STACK_SHARES) {
		why = stack_sends(skb, &p);
		if (why < 0)
			return drop(skb, &p, -why);
	}
	why = encap_set(skb, remote);
	if (why)
		return drop(skb, &p, why);
	skb->tc_index = DELIVER_OURS;
	return finish(skb, REASON_TO_TUNNEL, TC_ACT_UNSPEC);
}
