/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: carried only to whom the packet they speak about came from, and translated as that packet was. */
#pragma once

/* What an error and the packet it speaks about are to look like. */
struct error_turn {
	struct addr src;
	struct addr dst;
	struct addr in_src;
	struct addr in_dst;
	__be16 in_sport;
	__be16 in_dport;
};

static __always_inline void error_unturned(struct error_turn *t, const struct packet *p, const struct packet *in)
{
	t->src = p->src;
	t->dst = p->dst;
	t->in_src = in->src;
	t->in_dst = in->dst;
	t->in_sport = in->sport;
	t->in_dport = in->dport;
}

/* Rewrites the error; *p is what it is then. 0 or an error that leaves it unusable. */
__noinline int error_rewrite(struct __sk_buff *skb, struct packet *p, const struct packet *in, const struct error_turn *t)
{
	struct rewrite to = { .end = REWRITE_SRC };

	if (!p || !in || !t)
		return -1;
	to.addr = t->in_src;
	to.port = t->in_sport;
	if ((in->sport != to.port || !addr_equal(&in->src, &to.addr)) && rewrite_inner(skb, p, in, &to))
		return -1;
	to.end = REWRITE_DST;
	to.addr = t->in_dst;
	to.port = t->in_dport;
	if ((in->dport != to.port || !addr_equal(&in->dst, &to.addr)) && rewrite_inner(skb, p, in, &to))
		return -1;
	to.addr = t->dst;
	to.port = p->dport; /* an error has no port to change */
	if (!addr_equal(&p->dst, &to.addr) && rewrite_packet(skb, p, &to))
		return -1;
	to.end = REWRITE_SRC;
	to.addr = t->src;
	to.port = p->sport;
	if (!addr_equal(&p->src, &to.addr) && rewrite_packet(skb, p, &to))
		return -1;
	p->src = t->src;
	p->dst = t->dst;
	return 0;
}

/* What policy says about an error that was turned so; in becomes the packet between the real ends. */
static __always_inline int error_policy(struct __sk_buff *skb, struct packet *in, const struct error_turn *t, int why)
{
	if (why == REASON_TO_BACKEND || why == REASON_TO_LOCAL_POD) {
		in->src = t->in_src;
		in->sport = t->in_sport;
	}
	if (why == REASON_TO_BACKEND) {
		in->dst = t->in_dst;
		in->dport = t->in_dport;
	}
	if (packet_is_icmp(in->proto))
		in->dport = in->sport;
	return policy_error(skb, in);
}

/* About an answer, as its client has seen it: goes to the backend. */
static __always_inline int error_answer(const struct packet *in, const struct ct_entry *ct, struct error_turn *t)
{
	__u32 id = ct->backend;
	struct backend *b = bpf_map_lookup_elem(&strait_backend, &id);

	if (!b || b->generation != ct->backend_gen)
		return 0;
	t->dst = b->addr;
	t->in_src = b->addr;
	t->in_sport = b->port;
	if (ct->flags & CT_NAT) {
		t->src = ct->nat_addr;
		t->in_dst = ct->nat_addr;
		t->in_dport = ct->nat_port;
	} else if (addr_equal(&b->addr, &in->dst)) {
		addr_gateway(&t->in_dst, in->flags & PACKET_V6);
		t->src = t->in_dst;
	}
	return REASON_TO_BACKEND;
}

/* The connection to a service that the inner packet is of. REASON_TO_CLIENT or REASON_TO_BACKEND: who it is for, *t says how it looks
 * there; 0: none. */
__noinline int error_service(const struct packet *p, const struct packet *in, struct error_turn *t)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (!p || !in || !t)
		return 0;
	dir = ct_key_from(&key, in);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	if (!ct)
		return 0;
	if (dir != !!(ct->flags & CT_HI_BEGAN))
		return ct->flags & CT_SERVICE ? error_answer(in, ct, t) : 0;
	if (!(ct->flags & CT_FRONT))
		return 0;
	/* About a client's packet, as its backend has seen it. */
	if (addr_equal(&p->src, &in->dst))
		t->src = ct->front_addr;
	t->in_dst = ct->front_addr;
	t->in_dport = ct->front_port;
	if (addr_is_gateway(&in->src, in->flags & PACKET_V6)) {
		t->in_src = in->dst;
		t->dst = in->dst;
	}
	return REASON_TO_CLIENT;
}

/* From a pod, about a packet it was sent; else any pod could break the connections of others. REASON_TO_CLIENT, REASON_TO_BACKEND: *p is
 * translated by now; 0: it goes on as it is; minus the reason why it does not. */
__noinline int error_from_receiver(struct __sk_buff *skb, struct packet *p)
{
	struct error_turn t;
	struct packet in = {};
	int why, denied;

	if (!p || !packet_inner(skb, p, &in) || !addr_equal(&in.dst, &p->src))
		return -REASON_UNRELATED_ICMP;
	error_unturned(&t, p, &in);
	why = error_service(p, &in, &t);
	if (why && error_rewrite(skb, p, &in, &t))
		return -REASON_UNRELATED_ICMP;
	denied = error_policy(skb, &in, &t, why);
	return denied ? -denied : why;
}

/* To a pod, about a packet it sent, translated as the pod knows it. 0, or why it does not go on. What this node says itself may be about a
 * packet that has begun no connection, because it came no further than here. */
__noinline int error_to_sender(struct __sk_buff *skb, struct packet *p)
{
	struct error_turn t;
	struct packet in = {};
	int why;

	if (!p || !packet_inner(skb, p, &in) || !addr_equal(&in.src, &p->dst))
		return REASON_UNRELATED_ICMP;
	why = policy_error(skb, &in);
	if (why && (why != REASON_UNRELATED_ICMP || !(ipcache_owner(&p->src) & REMOTE_HOST)))
		return why;
	error_unturned(&t, p, &in);
	if (error_service(p, &in, &t) != REASON_TO_CLIENT)
		return 0;
	return error_rewrite(skb, p, &in, &t) ? REASON_UNRELATED_ICMP : 0;
}

/* By the node's own stack, about a packet it got as a backend. 1: translated, 0: not one of those, -REASON_REWRITE: unusable. */
__noinline int error_own(struct __sk_buff *skb, struct packet *p)
{
	struct error_turn t;
	struct packet in = {};

	if (!p || !packet_inner(skb, p, &in) || !addr_equal(&in.dst, &p->src))
		return 0;
	error_unturned(&t, p, &in);
	if (error_service(p, &in, &t) != REASON_TO_CLIENT)
		return 0;
	return error_rewrite(skb, p, &in, &t) ? -REASON_REWRITE : 1;
}

/* About an answer of a backend here to a client that another node has sent: that node may have passed the error on. */
__noinline int error_about_answer(struct __sk_buff *skb, const struct packet *p)
{
	struct packet in = {};
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (!p || !packet_inner(skb, p, &in))
		return 0;
	dir = ct_key_from(&key, &in);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	return ct && ct->flags & CT_FRONT && dir != !!(ct->flags & CT_HI_BEGAN);
}

/* What the inner destination, a masqueraded pod, is called outside. 1: found. */
__noinline int error_outside_name(const struct packet *in, struct error_turn *t)
{
	struct ct_key key;
	struct ct_entry *ct;

	if (!in || !t)
		return 0;
	ct_key_from(&key, in);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	if (!ct || !(ct->flags & CT_NAT))
		return 0;
	t->src = ct->nat_addr;
	t->in_dst = ct->nat_addr;
	t->in_dport = ct->nat_port;
	return 1;
}

/* Whom an inner source, an address of the node, stands for: a masqueraded pod, or a client. REASON_TO_LOCAL_POD, REASON_TO_CLIENT, or 0:
 * nobody. */
__noinline int error_inside_name(const struct packet *p, const struct packet *in, struct error_turn *t)
{
	struct nat_key key;
	struct nat_entry *e;

	if (!p || !in || !t)
		return 0;
	nat_key_from(&key, in, &in->src);
	e = bpf_map_lookup_elem(&strait_nat, &key);
	if (!e)
		return 0;
	t->dst = e->client;
	t->in_src = e->client;
	t->in_sport = e->client_port;
	if (!e->front_port)
		return endpoint_lookup(&e->client) ? REASON_TO_LOCAL_POD : 0;
	if (addr_equal(&p->src, &in->dst))
		t->src = e->front_addr;
	t->in_dst = e->front_addr;
	t->in_dport = e->front_port;
	return REASON_TO_CLIENT;
}

/* A pod's error goes outside: its address, inside and outside, becomes the one the other end knows. 0 or why it cannot. */
__noinline int error_masquerade(struct __sk_buff *skb, struct packet *p)
{
	struct error_turn t;
	struct packet in = {};

	if (!p || !packet_inner(skb, p, &in))
		return REASON_UNRELATED_ICMP;
	error_unturned(&t, p, &in);
	if (!error_outside_name(&in, &t))
		return REASON_UNRELATED_ICMP;
	return error_rewrite(skb, p, &in, &t) ? REASON_REWRITE : 0;
}

/* The pod behind a mapping may know the other end as a service. */
__noinline int error_pod_name(const struct packet *p, const struct packet *in, struct error_turn *t)
{
	struct ct_key key;
	struct ct_entry *ct;

	if (!p || !in || !t)
		return 0;
	ct_key_make(&key, &t->in_src, &in->dst, t->in_sport, packet_is_icmp(in->proto) ? t->in_sport : in->dport, in->proto);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	if (!ct || !(ct->flags & CT_FRONT))
		return 0;
	if (addr_equal(&p->src, &in->dst))
		t->src = ct->front_addr;
	t->in_dst = ct->front_addr;
	t->in_dport = ct->front_port;
	return 1;
}

/* About the tunnel's own packets, whose connections nobody knows. */
static __always_inline bool error_tunnel(const struct packet *in)
{
	return cfg_vxlan_port && in->proto == IPPROTO_UDP && in->dport == bpf_htons(cfg_vxlan_port);
}

/* An error to an address of the node or of a service, about a packet that was translated here. Who it is for, *p being translated by
 * now; 0: the node itself; minus the reason why it does not go on. */
__noinline int error_to_node(struct __sk_buff *skb, struct packet *p)
{
	struct error_turn t;
	struct packet in = {};
	int why, denied;

	if (!p)
		return 0;
	if (!packet_inner(skb, p, &in) || !addr_equal(&in.src, &p->dst))
		return policy_host(p) ? -REASON_UNRELATED_ICMP : 0;
	error_unturned(&t, p, &in);
	why = error_inside_name(p, &in, &t);
	if (why == REASON_TO_LOCAL_POD)
		error_pod_name(p, &in, &t);
	else if (!why)
		why = error_service(p, &in, &t);
	if (!why)
		return error_tunnel(&in) ? 0 : -policy_error(skb, &in);
	if (p->ttl <= 1)
		return -REASON_TTL_EXCEEDED;
	if (error_rewrite(skb, p, &in, &t))
		return -REASON_REWRITE;
	denied = error_policy(skb, &in, &t, why);
	return denied ? -denied : why;
}
