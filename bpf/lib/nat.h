/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's address and port in place of a pod's (masquerade) or of a service's client. Ports are counted per destination, so each has
 * the whole range. */
#pragma once

#define NAT_TRIES 32
#define NAT_STRIDE 7919 /* prime: tries spread over the range instead of filling it in clusters */

static __always_inline bool nat_changes_port(__u8 proto)
{
	return packet_has_ports(proto) || packet_is_icmp(proto);
}

static __always_inline bool nat_in_range(__be16 port)
{
	__u16 p = bpf_ntohs(port);

	return p >= cfg_masq_port_min && p <= cfg_masq_port_max;
}

static __always_inline __u32 nat_hash(const struct packet *p)
{
	__u64 h = (__u64)p->src.w[3] << 32 | p->dst.w[3];

	h ^= ((__u64)p->src.w[2] << 32 | p->dst.w[2]) ^ ((__u64)p->sport << 16 | p->dport);
	h *= 0x9e3779b97f4a7c15ULL;
	return h >> 32;
}

static __always_inline void nat_key_from(struct nat_key *k, const struct packet *p, const struct addr *node)
{
	k->remote = p->dst;
	k->node = *node;
	k->remote_port = packet_is_icmp(p->proto) ? 0 : p->dport;
	k->node_port = p->sport;
	k->proto = p->proto;
	k->pad[0] = k->pad[1] = k->pad[2] = 0;
}

/* A socket of the node that would get the replies. */
static __noinline bool nat_socket_uses(struct __sk_buff *skb, const struct nat_key *k)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size = sizeof(t.ipv4);

	if (addr_is4(&k->node)) {
		t.ipv4.saddr = k->remote.w[3];
		t.ipv4.daddr = k->node.w[3];
		t.ipv4.sport = k->remote_port;
		t.ipv4.dport = k->node_port;
	} else {
		size = sizeof(t.ipv6);
		__builtin_memcpy(t.ipv6.saddr, k->remote.w, 16);
		__builtin_memcpy(t.ipv6.daddr, k->node.w, 16);
		t.ipv6.sport = k->remote_port;
		t.ipv6.dport = k->node_port;
	}
	if (k->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else if (k->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The connection that uses a mapping; NULL: it is a leftover. */
static __noinline struct ct_entry *nat_user(const struct nat_key *k, const struct nat_entry *e)
{
	__be16 port = packet_is_icmp(k->proto) ? e->client_port : k->remote_port;
	struct ct_key key;
	struct ct_entry *ct;

	if (e->front_port)
		ct_key_make(&key, &e->client, &e->front_addr, e->client_port, e->front_port, k->proto);
	else
		ct_key_make(&key, &e->client, &k->remote, e->client_port, port, k->proto);
	ct = bpf_map_lookup_elem(&strait_ct, &key);
	if (!ct || !(ct->flags & CT_NAT) || ct->nat_port != k->node_port || !addr_equal(&ct->nat_addr, &k->node))
		return NULL;
	return ct;
}

/* Whether the connection has ended, so that its port may be given away. Of those just closed only if nothing better is found. */
static __always_inline bool nat_over(const struct ct_entry *ct, __u8 proto, bool closed_too)
{
	if (closed_too && proto == IPPROTO_TCP && ct_closed(ct->flags))
		return true;
	return ct_idle(ct) > ct_idle_limit(ct->flags, proto);
}

static __always_inline bool nat_same(const struct nat_entry *e, const struct packet *p, const struct sockaddr_key *front)
{
	if (!addr_equal(&e->client, &p->src) || e->client_port != p->sport)
		return false;
	if (!front)
		return !e->front_port;
	return e->front_port == front->port && addr_equal(&e->front_addr, &front->addr);
}

static __noinline int nat_enter(const struct nat_key *k, const struct packet *p, const struct sockaddr_key *front)
{
	struct nat_entry ours = {
		.client = p->src,
		.client_port = p->sport,
	};

	if (front) {
		ours.front_addr = front->addr;
		ours.front_port = front->port;
	}
	return bpf_map_update_elem(&strait_nat, k, &ours, BPF_NOEXIST) ? -1 : 0;
}

/* Enters the mapping from the packet's sender to the given address and port unless somebody lives there. front: what the sender calls
 * the destination; NULL: the same. 0: it is ours. */
__noinline int nat_claim(struct __sk_buff *skb, const struct packet *p, const struct rewrite *to,
			 const struct sockaddr_key *front, int closed_too)
{
	struct ct_entry *user = NULL;
	struct nat_entry *e;
	struct nat_key key, *k = &key;

	if (!p || !to)
		return -1;
	nat_key_from(k, p, &to->addr);
	k->node_port = to->port;
	e = bpf_map_lookup_elem(&strait_nat, k);
	if (e) {
		if (nat_same(e, p, front))
			return 0;
		user = nat_user(k, e);
		if (user && !nat_over(user, k->proto, closed_too))
			return -1;
	}
	if (nat_socket_uses(skb, k))
		return -1;
	/* Of several CPUs only one deletes the old mapping, and only one enters the new one. */
	if (e && bpf_map_delete_elem(&strait_nat, k))
		return -1;
	if (user)
		__sync_fetch_and_and((__u32 *)&user->flags, ~CT_NAT); /* should it wake up, it gets another port */
	return nat_enter(k, p, front);
}

/* Finds a port for a new connection from p->src; to gets it. 0, or -1 when all tries met others. */
static __always_inline int nat_allocate(struct __sk_buff *skb, const struct packet *p, struct rewrite *to,
					const struct sockaddr_key *front)
{
	__u32 range = (__u32)cfg_masq_port_max - cfg_masq_port_min + 1;
	__u32 first = nat_hash(p);

	to->port = p->sport;
	if (!nat_changes_port(p->proto))
		return nat_claim(skb, p, to, front, true);
	if (!range)
		return -1;
	for (__u32 i = 0; i < 2 * NAT_TRIES; i++) {
		__u32 at = (first + i % NAT_TRIES * NAT_STRIDE) % range;

		to->port = bpf_htons(cfg_masq_port_min + at);
		if (!nat_claim(skb, p, to, front, i >= NAT_TRIES))
			return 0;
	}
	return -1;
}

/* Whose answer a packet to an address of the node is; NULL: nobody's. */
static __noinline struct nat_entry *nat_reverse(const struct packet *p)
{
	struct nat_key key = {
		.remote = p->src,
		.node = p->dst,
		.remote_port = packet_is_icmp(p->proto) ? 0 : p->sport,
		.node_port = p->dport,
		.proto = p->proto,
	};

	/* Who begins a connection from outside means the node. */
	if (packet_begins_tcp(p))
		return NULL;
	if (packet_is_icmp(p->proto) && !(p->flags & (PACKET_ECHO_REPLY | PACKET_LATER)))
		return NULL;
	if (!cfg_imported && nat_changes_port(p->proto) && !nat_in_range(p->dport))
		return NULL;
	return bpf_map_lookup_elem(&strait_nat, &key);
}

/* Tracks a pod's packet to the outside; *to becomes what it is to look like. 0, or why it cannot go. to->addr is the node's. */
__noinline int nat_connection(struct __sk_buff *skb, const struct packet *p, struct rewrite *to)
{
	struct ct_policy said = {};
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir, news;
	bool known;
	int why;

	if (!p || !to)
		return REASON_CT_INSERT;
	ct = ct_find(p, &key, &dir);
	known = ct;
	why = known ? policy_known(skb, p, ct, dir) : policy_admits(skb, p, false, &said, NULL, 0);
	if (why)
		return why;
	if (!known)
		ct = ct_begin(&key, dir, &said);
	if (!ct)
		return REASON_CT_INSERT;
	/* Counted where its service was found: then the mapping is looked at each time. */
	news = p->flags & PACKET_COUNTED ? CT_LATER : ct_count(ct, p, dir);
	/* Who has begun a connection from outside knows the pod by its own address. */
	if (dir != !!(ct->flags & CT_HI_BEGAN) && !(ct->flags & CT_NAT)) {
		to->addr = p->src;
		to->port = p->sport;
		return 0;
	}
	if (ct->flags & CT_NAT && addr_equal(&ct->nat_addr, &to->addr)) {
		to->port = ct->nat_port;
		/* Now and then the mapping is looked at, lest it grow old in the LRU while only we send. */
		if (!(news & CT_LATER) || !nat_claim(skb, p, to, NULL, true))
			return 0;
	}
	if (nat_allocate(skb, p, to, NULL))
		return REASON_NO_MASQUERADE_PORT;
	ct->nat_addr = to->addr;
	ct->nat_port = to->port;
	__sync_fetch_and_or((__u32 *)&ct->flags, CT_NAT);
	if (!known)
		event_new(skb, p, ct, &said);
	return 0;
}

/* The node's address and port for a client's packet p to a backend elsewhere: seen is what the backend is to see but for its source,
 * to->addr this node's address for a new connection, ct the client's entry. 0, or why it cannot go. */
__noinline int nat_service(struct __sk_buff *skb, const struct packet *p, struct packet *seen, struct rewrite *to,
			   struct ct_entry *ct)
{
	struct sockaddr_key front = {};
	bool known;

	if (!p || !seen || !to || !ct)
		return REASON_REWRITE;
	front.addr = p->dst;
	front.port = p->dport;
	known = ct->flags & CT_NAT;
	if (known) {
		to->addr = ct->nat_addr;
		to->port = ct->nat_port;
	}
	if (addr_is_zero(&to->addr))
		return REASON_NO_MASQUERADE_ADDRESS;
	if (!known || nat_claim(skb, seen, to, &front, true)) {
		if (nat_allocate(skb, seen, to, &front))
			return REASON_NO_SERVICE_PORT;
		ct->nat_addr = to->addr;
		ct->nat_port = to->port;
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_NAT);
	}
	seen->src = to->addr;
	seen->sport = to->port;
	return 0;
}
