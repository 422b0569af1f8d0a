/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The backend's side of a service: an entry of (client, backend) with CT_FRONT, by which answers get the frontend as their source. */
#pragma once

/* The connection is under way, and is not the one of this frontend. */
static __always_inline bool front_other(const struct ct_entry *ct, const struct addr *front, __be16 port, __u8 proto)
{
	if (ct->flags & CT_FRONT && ct->front_port == port && addr_equal(&ct->front_addr, front))
		return false;
	if (!(ct->flags & CT_REPLIED) || ct_closed(ct->flags))
		return false;
	return ct_idle(ct) <= ct_idle_limit(ct->flags, proto);
}

/* The entry is this connection's already. */
static __always_inline bool front_same(const struct ct_entry *ct, const struct packet *seen, __u32 dir, const struct addr *front,
				       __be16 port)
{
	if (!(ct->flags & CT_FRONT) || dir != !!(ct->flags & CT_HI_BEGAN) || ct->front_port != port ||
	    !addr_equal(&ct->front_addr, front))
		return false;
	return !packet_begins_tcp(seen) || (!ct_closed(ct->flags) && ct_idle(ct) <= ct_idle_limit(ct->flags, seen->proto));
}

/* Another connection's entry, or none, becomes this one's. NULL if there is no room. */
static __noinline struct ct_entry *front_enter(const struct ct_key *k, __u32 dir, const struct addr *front, __be16 port,
					       const struct ct_policy *said)
{
	struct ct_entry *ct = ct_blank(k);

	if (!ct)
		return NULL;
	ct_restart(ct, dir);
	ct->front_addr = *front;
	ct->front_port = port;
	ct->tick = ct_tick();
	ct->flags = CT_FRONT | (dir ? CT_HI_BEGAN : 0);
	ct_judged(ct, said);
	return ct;
}

#define FRONT_UNKNOWN (-1)

/* A packet of a known connection is counted. 0, FRONT_UNKNOWN, or why it may not pass: policy, or the client uses its port towards the same
 * backend by another way. */
static __noinline int front_known(struct __sk_buff *skb, const struct packet *p, const struct packet *seen)
{
	struct ct_key key;
	__u32 dir;
	struct ct_entry *ct = ct_find(seen, &key, &dir);
	int why;

	if (!ct)
		return FRONT_UNKNOWN;
	if (!front_same(ct, seen, dir, &p->dst, p->dport))
		return front_other(ct, &p->dst, p->dport, seen->proto) ? REASON_NO_SERVICE_PORT : FRONT_UNKNOWN;
	why = policy_known(skb, seen, ct, dir);
	if (!why)
		ct_count(ct, seen, dir);
	return why;
}

/* Enters a connection that is not known, or whose entry another one has that is over. 0, or why it may not be. */
static __noinline int front_begin(struct __sk_buff *skb, const struct packet *p, const struct packet *seen)
{
	struct ct_policy said = {};
	struct ct_key key;
	__u32 dir;
	struct ct_entry *ct = ct_find(seen, &key, &dir);
	int why = policy_admits(skb, seen, false, &said, &p->dst, p->dport);

	if (why)
		return why;
	if (ct && !ct_closed(ct->flags))
		event_end(seen, ct, dir);
	ct = front_enter(&key, dir, &p->dst, p->dport, &said);
	if (!ct)
		return REASON_CT_INSERT;
	ct_count(ct, seen, dir);
	event_new(skb, seen, ct, &said);
	return 0;
}

/* Sees to the entry of a packet p of a client that its backend is to see as seen. 0, or why there can be none. Two frames side by side: little
 * stack is left. */
static __always_inline int front_track(struct __sk_buff *skb, const struct packet *p, const struct packet *seen)
{
	int why = front_known(skb, p, seen);

	return why == FRONT_UNKNOWN ? front_begin(skb, p, seen) : why;
}

/* The client's entry is where the client's packets pass. It learns of its first answer and of its end, not of every packet. */
static __noinline void front_tell(const struct packet *seen)
{
	struct ct_key key;
	__u32 dir;
	struct ct_entry *ct = ct_find(seen, &key, &dir);

	if (ct && ct->flags & CT_SERVICE)
		lb_count(ct, seen, dir);
}

/* seen: an answer, counted already, as its client is to see it. */
static __always_inline void front_heard(const struct packet *seen, const struct ct_entry *ct)
{
	if (seen->tcp_flags & (TCP_FIN | TCP_RST) || ct->packets[!(ct->flags & CT_HI_BEGAN)] <= 1)
		front_tell(seen);
}

/* An answer as its client is to see it. */
static __noinline void front_answer(const struct packet *p, const struct ct_entry *ct, struct packet *seen)
{
	*seen = *p;
	seen->src = ct->front_addr;
	seen->sport = ct->front_port;
	if (addr_is_gateway(&p->dst, p->flags & PACKET_V6)) /* hairpin: the backend is the client */
		seen->dst = p->src;
	front_heard(seen, ct);
}

/* Gives an answer its frontend's address where it passes. 0, or why it cannot be. */
static __noinline enum reason front_turn(struct __sk_buff *skb, struct packet *p, const struct ct_entry *ct)
{
	struct packet seen;

	front_answer(p, ct, &seen);
	if (rewrite_like(skb, p, &seen))
		return REASON_REWRITE;
	*p = seen;
	return 0;
}

/* What the node's own stack sends: answers of the node as a backend get their frontend's address. 1: it was one; minus the reason why it may
 * not pass. */
static __noinline int front_own(struct __sk_buff *skb, struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;
	int why;

	if (p->flags & PACKET_NDP || (p->flags & PACKET_LATER && !frag_ports(p)))
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct || !ct_turned(ct, dir))
		return 0;
	frag_resolve(p);
	why = policy_known(skb, p, ct, dir);
	if (why)
		return -why;
	ct_update(ct, p, dir);
	return front_turn(skb, p, ct) ? -REASON_REWRITE : 1;
}
