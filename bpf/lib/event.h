/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What happens to connections, told to userspace: docs/design/0007-flows.md.
 *
 * The functions that tell are verified once, by themselves (packet.h), and build the record in strait_scratch: the ways to here leave little
 * stack. Callers ask cfg_events first, so that nothing of this is left where nobody wants to know.
 */
#pragma once

/* What policy has said about a connection. */
struct ct_policy {
	__u32 revision;
	__u32 rule_out;
	__u32 rule_in;
	__u32 audit; /* rule of audited policies that decides otherwise */
	__u16 flags; /* enum event_flags */
	__u16 why;   /* 0, or the reason of the denial */
};

#define EVENT_HELD_BACK 1000000000LL					  /* ns: as long the same is not told again */
#define EVENT_LOST 32							  /* reasons from here on: reasons.def */
#define EVENT_ROOM ((sizeof(struct event) + BPF_RINGBUF_HDR_SZ + 7) & ~7) /* of a record in the ring */

/* A blank record of what a packet has caused, between the ends it names. answer: it is of the end that did not begin. */
static __always_inline struct scratch *event_begin(const struct packet *p, enum event_kind kind, bool answer)
{
	__u32 only = 0;
	struct scratch *s = bpf_map_lookup_elem(&strait_scratch, &only);
	struct event *e;

	if (!s)
		return NULL;
	e = &s->event;
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->kind = kind;
	e->src = answer ? p->dst : p->src;
	e->dst = answer ? p->src : p->dst;
	e->sport = answer ? p->dport : p->sport;
	e->dport = answer ? p->sport : p->dport;
	if (answer)
		e->flags = EVENT_ANSWER;
	e->hook = p->hook;
	e->ifindex = p->ifindex;
	e->proto = p->proto;
	e->tcp_flags = p->tcp_flags;
	e->icmp = p->icmp;
	return s;
}

/* How much of the ring there may be in use with a record of this kind: denials are told last of all not to be. */
static __always_inline __u64 event_limit(enum event_kind kind, __u64 size)
{
	if (kind == EVENT_NEW || kind == EVENT_END)
		return size / 2;
	return kind == EVENT_DENIED ? size : size / 4 * 3;
}

/* The reader is woken by each record that fills another eighth of the ring. Sizes are powers of two. */
static __noinline void event_send(struct event *e)
{
	__u64 size = bpf_ringbuf_query(&strait_events, BPF_RB_RING_SIZE);
	__u64 used = bpf_ringbuf_query(&strait_events, BPF_RB_AVAIL_DATA);
	__u64 then = used + EVENT_ROOM;
	struct lost *lost;

	if (then <= event_limit(e->kind, size) &&
	    !bpf_ringbuf_output(&strait_events, e, sizeof(*e),
				(used ^ then) >= size / 8 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		return;
	lost = bpf_map_lookup_elem(&strait_lost, &e->kind);
	if (!lost)
		return;
	lost->records++;
	lost->packets += e->packets[0] + e->packets[1];
	lost->bytes += e->bytes[0] + e->bytes[1];
}

/* Counts the packet where the same was told a short time ago. */
static __always_inline void event_hold(struct muted *m, const struct event *e)
{
	m->sport = e->sport;
	m->hook = e->hook;
	m->rule_out = e->rule_out;
	m->rule_in = e->rule_in;
	__sync_fetch_and_add(&m->packets, e->packets[0]);
	__sync_fetch_and_add(&m->bytes, e->bytes[0]);
}

/* Whether the same was told within the last second, so that the packet is only counted. Else the record is made to stand for those that were
 * held back since. Of several CPUs one tells. */
static __noinline bool event_muted(struct scratch *s)
{
	struct muted_key *k = &s->muted_key;
	struct event *e = &s->event;
	struct muted *m;
	__u64 told;

	k->src = e->src;
	k->dst = e->dst;
	k->dport = e->dport;
	k->proto = e->proto;
	k->pad = 0;
	k->reason = e->reason;
	m = bpf_map_lookup_elem(&strait_muted, k);
	if (!m) {
		s->muted.told = e->time;
		if (!bpf_map_update_elem(&strait_muted, k, &s->muted, BPF_NOEXIST))
			return false;
		m = bpf_map_lookup_elem(&strait_muted,
					k); /* there by another CPU, or there is no room and nothing is held back */
		if (!m)
			return false;
	}
	told = m->told;
	if ((__s64)(e->time - told) >= EVENT_HELD_BACK && __sync_bool_compare_and_swap(&m->told, told, e->time)) {
		e->packets[0] += __sync_lock_test_and_set(&m->packets, 0);
		e->bytes[0] += __sync_lock_test_and_set(&m->bytes, 0);
		return false;
	}
	event_hold(m, e);
	return true;
}

/* What stands for one packet: of all behind the Ethernet header, however the packet is made. */
static __always_inline void event_packet(struct scratch *s, enum reason why, __u32 len)
{
	s->event.reason = why;
	s->event.packets[0] = 1;
	s->event.bytes[0] = len > L3_OFF ? len - L3_OFF : 0;
	if (!event_muted(s))
		event_send(&s->event);
}

static __always_inline void event_front(struct event *e, const struct addr *front, __be16 port)
{
	e->front = *front;
	e->front_port = port;
}

/* What the entry knows about its ends. One of a client and a frontend knows its backend by number. */
static __always_inline void event_entry(struct event *e, const struct ct_entry *ct)
{
	__u32 id = ct->backend;
	struct backend *b;

	if (ct->flags & CT_NAT) {
		e->nat = ct->nat_addr;
		e->nat_port = ct->nat_port;
	}
	if (ct->flags & (CT_FRONT | CT_SOCKET)) {
		event_front(e, &ct->front_addr, ct->front_port);
		if (addr_is_gateway(&e->src, !addr_is4(&e->src))) /* hairpin: the backend is the client */
			e->src = e->dst;
	}
	if (!(ct->flags & CT_SERVICE))
		return;
	event_front(e, &e->dst, e->dport);
	__builtin_memset(&e->dst, 0, sizeof(e->dst));
	e->dport = 0;
	b = bpf_map_lookup_elem(&strait_backend, &id);
	if (b && b->generation == ct->backend_gen) {
		e->dst = b->addr;
		e->dport = b->port;
	}
}

static __always_inline bool event_names(const struct sockaddr_key *k, const struct event *e)
{
	return k->port == e->dport && k->proto == e->proto && addr_equal(&k->addr, &e->dst);
}

/* The service by which a pod's socket knows the other end. False: there is none that packets do not show. */
static __always_inline bool event_socket(struct scratch *s, struct __sk_buff *skb)
{
	struct event *e = &s->event;
	struct sockaddr_key *front = NULL;
	struct bpf_sock *sk = skb->sk;
	struct sk_peer *peer;

	if (e->hook != HOOK_FROM_POD || e->front_port || e->flags & EVENT_ANSWER || !sk)
		return false;
	peer = bpf_sk_storage_get(&strait_sk, sk, 0, 0);
	if (peer && event_names(&peer->backend, e)) {
		front = &peer->service;
	} else if (e->proto == IPPROTO_UDP) {
		s->dgram.cookie = bpf_get_socket_cookie(skb);
		s->dgram.backend.addr = e->dst;
		s->dgram.backend.port = e->dport;
		s->dgram.backend.proto = e->proto;
		front = bpf_map_lookup_elem(&strait_dgram, &s->dgram);
	}
	if (front)
		event_front(e, &front->addr, front->port);
	return front;
}

static __always_inline void event_said(struct event *e, const struct ct_policy *said)
{
	e->rule_out = said->rule_out;
	e->rule_in = said->rule_in;
	e->audit = said->audit;
	e->flags |= said->flags;
}

/* A connection is entered, or judged again: of ct what is known about its ends, NULL: nothing; of said the rules, NULL: nobody was asked. What
 * only the socket knows is remembered for the connection's other records. */
__noinline int event_tell(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct, const struct ct_policy *said,
			  enum event_kind kind)
{
	struct scratch *s;

	if (!p)
		return 0;
	s = event_begin(p, kind, said && said->flags & EVENT_ANSWER);
	if (!s)
		return 0;
	if (said)
		event_said(&s->event, said);
	if (ct)
		event_entry(&s->event, ct);
	if (event_socket(s, skb) && ct) {
		ct->front_addr = s->event.front;
		ct->front_port = s->event.front_port;
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_SOCKET);
	}
	event_send(&s->event);
	return 0;
}

/* Policy does not allow the packet, or what it speaks about. front: what the beginner calls the other end; port 0: nothing else. */
__noinline int event_tell_denied(struct __sk_buff *skb, const struct packet *p, const struct ct_policy *said,
				 const struct addr *front, __be16 port)
{
	struct scratch *s;

	if (!p || !said)
		return 0;
	s = event_begin(p, EVENT_DENIED, said->flags & EVENT_ANSWER);
	if (!s)
		return 0;
	event_said(&s->event, said);
	if (front && port)
		event_front(&s->event, front, port);
	event_socket(s, skb);
	event_packet(s, said->why, skb->len);
	return 0;
}

/* The packet, counted already, has ended its connection; or it has not ended, and another one takes its place. */
__noinline int event_tell_end(const struct packet *p, const struct ct_entry *ct, __u32 dir)
{
	struct scratch *s;
	struct event *e;
	bool high;

	if (!p || !ct)
		return 0;
	high = ct->flags & CT_HI_BEGAN;
	s = event_begin(p, EVENT_END, dir != high);
	if (!s)
		return 0;
	e = &s->event;
	e->rule_out = ct->rule_out;
	e->rule_in = ct->rule_in;
	event_entry(e, ct);
	e->packets[0] = ct->packets[high];
	e->packets[1] = ct->packets[!high];
	e->bytes[0] = ct->bytes[high];
	e->bytes[1] = ct->bytes[!high];
	event_send(e);
	return 0;
}

/* Lost for any reason but policy, which tells itself. p is what the packet said when it came; NULL: nobody has read it. */
static __always_inline void event_dropped(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	static const struct packet unread;
	struct scratch *s;

	if (why < EVENT_LOST || why == REASON_POLICY_EGRESS || why == REASON_POLICY_INGRESS || why == REASON_POLICY_MISSING)
		return;
	s = event_begin(p ? p : &unread, EVENT_DROPPED, false);
	if (s)
		event_packet(s, why, skb->len);
}

/* An entry of a client and a frontend is a connection of its own only where no other of this node is: the backend is elsewhere. What the
 * node's stack translates is told where both ends are known. */
static __always_inline bool event_real(const struct ct_entry *ct)
{
	if (ct->flags & CT_VIRTUAL)
		return false;
	return !(ct->flags & CT_SERVICE) || ct->flags & (CT_NAT | CT_DSR);
}

/* A TCP packet that resets begins nothing, though it may make an entry. */
static __always_inline void event_new(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct,
				      const struct ct_policy *said)
{
	if (cfg_events && !(p->tcp_flags & TCP_RST))
		event_tell(skb, p, ct, said, EVENT_NEW);
}

static __always_inline void event_judged(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct,
					 const struct ct_policy *said)
{
	if (cfg_events)
		event_tell(skb, p, ct, said, EVENT_JUDGED);
}

static __always_inline void event_denied(struct __sk_buff *skb, const struct packet *p, const struct ct_policy *said,
					 const struct addr *front, __be16 port)
{
	if (cfg_events)
		event_tell_denied(skb, p, said, front, port);
}

static __always_inline void event_end(const struct packet *p, const struct ct_entry *ct, __u32 dir)
{
	if (cfg_events && event_real(ct))
		event_tell_end(p, ct, dir);
}
