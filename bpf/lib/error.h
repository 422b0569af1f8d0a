/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: carried only to whom the packet they speak about came from. */
#pragma once

/* From a pod: the error is about a packet it was sent. Else any pod could break the connections of others. */
__noinline int error_from_receiver(struct __sk_buff *skb, const struct packet *p)
{
	struct packet in = {};

	return p && packet_inner(skb, p, &in) && addr_equal(&in.dst, &p->src);
}

/* To a pod: the error is about a packet it sent. */
__noinline int error_to_sender(struct __sk_buff *skb, const struct packet *p)
{
	struct packet in = {};

	return p && packet_inner(skb, p, &in) && addr_equal(&in.src, &p->dst);
}

/* What the inner destination, a masqueraded pod, is called outside. 1: found. */
__noinline int error_outside_name(const struct packet *in, struct rewrite *to)
{
	struct ct_key key;
	struct ct_entry *ct;

	if (!in || !to)
		return 0;
	ct_key_from(&key, in);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	if (!ct || !(ct->flags & CT_NAT))
		return 0;
	to->addr = ct->nat_addr;
	to->port = ct->nat_port;
	return 1;
}

/* The pod that an inner source, an address of the node, stands for. 1: found. */
__noinline int error_inside_name(const struct packet *in, struct rewrite *to)
{
	struct nat_key key;
	struct nat_entry *e;

	if (!in || !to)
		return 0;
	nat_key_from(&key, in, &in->src);
	e = bpf_map_lookup_elem(&strait_nat, &key);
	if (!e)
		return 0;
	to->addr = e->client;
	to->port = e->client_port;
	return 1;
}

/* A pod's error goes outside: its address, inside and outside, becomes the one the other end knows. 0 or why it cannot. */
__noinline int error_masquerade(struct __sk_buff *skb, const struct packet *p)
{
	struct rewrite to = { .end = REWRITE_DST };
	struct packet in = {};

	if (!p || !packet_inner(skb, p, &in) || !error_outside_name(&in, &to))
		return REASON_UNRELATED_ICMP;
	if (rewrite_inner(skb, p, &in, &to))
		return REASON_REWRITE;
	to.end = REWRITE_SRC;
	to.port = p->sport; /* an error has no port to change */
	return rewrite_packet(skb, p, &to) ? REASON_REWRITE : 0;
}

/* An error to the node about a masqueraded packet becomes one to the pod, whose address is put into *pod. 0, a reason, or -1: it is
 * about none. */
__noinline int error_unmasquerade(struct __sk_buff *skb, const struct packet *p, struct addr *pod)
{
	struct rewrite to = { .end = REWRITE_SRC };
	struct packet in = {};

	if (!p || !pod || !packet_inner(skb, p, &in) || !addr_equal(&in.src, &p->dst) || !error_inside_name(&in, &to))
		return -1;
	*pod = to.addr;
	if (!endpoint_lookup(&to.addr))
		return -1;
	if (p->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	if (rewrite_inner(skb, p, &in, &to))
		return REASON_REWRITE;
	to.end = REWRITE_DST;
	to.port = p->dport;
	return rewrite_packet(skb, p, &to) ? REASON_REWRITE : 0;
}
