/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node itself behind a policy of its own (host firewall). Without one nothing here looks at its packets, and its connections have no
 * entries. With one, what begins or ends at an address that strait_ipcache calls the node's is judged like a pod's.
 *
 * Not judged: what never passes a device of ours (loopback); what is not meant for one address (multicast, broadcast); neighbour discovery and
 * link-local addresses; the tunnel's packets from nodes of the cluster; the node's own ICMP errors; what another proxy translates in the stack.
 */
#pragma once

static __always_inline bool host_guarded(void)
{
	struct node_state *node = policy_node();

	return node && node->policy;
}

/* A connection may be older than the policy: whose packet is seen first is chance then. A TCP packet that begins nothing is taken for an
 * answer if only that is allowed. Its sender gains little: a SYN is never taken for one (policy_again). */
static __noinline bool host_answers(struct packet *p)
{
	struct ct_policy said = {};
	bool answer;

	if (p->proto != IPPROTO_TCP || packet_begins_tcp(p))
		return false;
	p->flags |= PACKET_COUNTED;
	answer = policy_first(p, false, &said) && !policy_first(p, true, &said);
	p->flags &= ~PACKET_COUNTED;
	return answer;
}

/* Enters a connection of the node's with a packet of it. 0, or why it may not be. */
static __noinline int host_enter(struct __sk_buff *skb, struct packet *p, const struct ct_key *key, __u32 dir)
{
	bool answer = host_answers(p);
	struct ct_policy said = {};
	struct ct_entry *ct;
	int why = policy_admits(skb, p, answer, &said, NULL, 0);

	if (why)
		return why;
	ct = ct_begin(key, dir != answer, &said);
	if (!ct)
		return REASON_CT_INSERT;
	event_new(skb, p, NULL, &said);
	ct_update(ct, p, dir);
	return 0;
}

/* 0, or why the packet may not pass. outer: it comes from elsewhere, where neither the node nor its pods are. */
static __noinline int host_track(struct __sk_buff *skb, struct packet *p, bool outer)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;
	int why;

	ct = ct_find(p, &key, &dir);
	if (!ct && outer && (endpoint_lookup(&p->src) || ipcache_owner(&p->src) & REMOTE_HOST))
		return REASON_SPOOFED_SOURCE;
	if (!ct)
		return host_enter(skb, p, &key, dir);
	why = policy_known(skb, p, ct, dir);
	if (!why)
		ct_count(ct, p, dir);
	return why;
}

/* The tunnel's own packets: what they carry is judged. */
static __always_inline bool host_tunnel(const struct packet *p)
{
	return cfg_vxlan_port && p->proto == IPPROTO_UDP && p->dport == bpf_htons(cfg_vxlan_port) &&
	       ipcache_owner(&p->src) & REMOTE_NODE;
}

/* What comes to the stack of a guarded node from elsewhere. 0, or why it may not. */
static __noinline int host_in(struct __sk_buff *skb, struct packet *p)
{
	if (p->flags & (PACKET_NDP | PACKET_ERROR) || !(ipcache_owner(&p->dst) & REMOTE_HOST) || host_tunnel(p))
		return 0;
	if (cfg_services != SERVICE_MODE_ON && stack_served(&p->dst, p->dport, p->proto))
		return 0;
	return frag_resolve(p) ? host_track(skb, p, true)
			       : 0; /* the rest of a packet whose beginning was never here is nothing */
}

/* Lets the answers of what the stack forwards under the node's address come back to it. */
static __noinline int host_lends(const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	ct = ct_find(p, &key, &dir);
	if (!ct || !(ct->flags & CT_VIRTUAL))
		ct = stack_enter(&key, dir);
	if (ct)
		ct_update(ct, p, dir);
	return 0;
}

/* What the stack of a guarded node sends away. 0, or why it may not. What it forwards under the node's address has been judged as whose it is. */
static __noinline int host_out(struct __sk_buff *skb, struct packet *p)
{
	if (p->flags & (PACKET_NDP | PACKET_ERROR) || addr_is_multicast(&p->dst, p->flags & PACKET_V6) ||
	    !(ipcache_owner(&p->src) & REMOTE_HOST))
		return 0;
	if (cfg_services != SERVICE_MODE_ON && stack_served(&p->src, p->sport, p->proto))
		return 0;
	if (!frag_resolve(p))
		return 0;
	return skb->ingress_ifindex ? host_lends(p) : host_track(skb, p, false);
}
