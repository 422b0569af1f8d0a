/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections: one entry each, kept exactly when one end is a pod of this node, or the node while it has a policy.
 *
 *   (none) --first packet--> begun --packet from the other end--> CT_REPLIED
 *   TCP: FIN from both ends or RST --> closed; a SYN on a closed or idle entry begins it anew.
 *
 * Userspace sweeps out idle entries; a full table pushes out the longest unused. Here an entry counts as gone from the limits below.
 */
#pragma once

#define CT_SECOND 1000000000ULL /* ns */
#define CT_IDLE_CLOSED 1	/* s: how long the port of a closed connection is left alone when there are others */
#define CT_IDLE_BEGUN 120
#define CT_IDLE_TCP 86400
#define CT_IDLE_OTHER 180

static __always_inline __u64 ct_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* Time in a unit of 64 jiffies, a fraction of a second on every kernel: costs one load, where the clock costs a tenth of a packet. */
static __always_inline __u32 ct_tick(void)
{
	return bpf_jiffies64() >> 6;
}

/* Fills the key and gives the direction of the packet: 0 if its source is the low end, else 1. */
static __always_inline __u32 ct_key_make(struct ct_key *k, const struct addr *src, const struct addr *dst, __be16 sport,
					 __be16 dport, __u8 proto)
{
	bool high = addr_less(dst, src); /* equal addresses never leave a pod, so ports need not be compared */

	k->lo = high ? *dst : *src;
	k->hi = high ? *src : *dst;
	k->lo_port = high ? dport : sport;
	k->hi_port = high ? sport : dport;
	k->proto = proto;
	k->pad[0] = k->pad[1] = k->pad[2] = 0;
	return high;
}

static __always_inline __u32 ct_key_from(struct ct_key *k, const struct packet *p)
{
	return ct_key_make(k, &p->src, &p->dst, p->sport, p->dport, p->proto);
}

static __always_inline bool ct_closed(__u32 flags)
{
	return flags & CT_RST || (flags & (CT_FIN_LO | CT_FIN_HI)) == (CT_FIN_LO | CT_FIN_HI);
}

static __always_inline __u32 ct_idle_limit(__u32 flags, __u8 proto)
{
	if (!(flags & CT_REPLIED))
		return CT_IDLE_BEGUN;
	if (proto == IPPROTO_TCP)
		return ct_closed(flags) ? CT_IDLE_CLOSED : CT_IDLE_TCP;
	return CT_IDLE_OTHER;
}

/* Seconds since the last packet. */
static __always_inline __u32 ct_idle(const struct ct_entry *ct)
{
	return ct_now() / CT_SECOND - ct->last_seen;
}

static __always_inline void ct_seen(struct ct_entry *ct, __u32 tick)
{
	__u32 now = ct_now() / CT_SECOND;

	ct->tick = tick;
	if (ct->last_seen != now)
		ct->last_seen = now;
}

static __always_inline void ct_fresh(struct ct_entry *ct, __u32 beginner)
{
	ct->began = ct_now();
	ct->last_seen = ct->began / CT_SECOND;
	ct->tick = ct_tick();
	ct->flags = beginner ? CT_HI_BEGAN : 0;
}

/* The rules first: an entry of the present revision is taken at its word. */
static __always_inline void ct_judged(struct ct_entry *ct, const struct ct_policy *said)
{
	ct->rule_out = said->rule_out;
	ct->rule_in = said->rule_in;
	*(volatile __u32 *)&ct->policy_rev = said->revision;
}

/* Enters a connection begun by the given end; NULL if that is impossible. */
static __noinline struct ct_entry *ct_begin(const struct ct_key *k, __u32 beginner, const struct ct_policy *said)
{
	struct ct_entry fresh = {};

	ct_fresh(&fresh, beginner);
	ct_judged(&fresh, said);
	/* Two CPUs may see first packets: whoever is second uses the first one's entry. */
	bpf_map_update_elem(&strait_ct, k, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&strait_ct, k);
}

/* The entry, or a new one that says nothing yet; NULL if there is no room. For callers with little stack left. */
static __noinline struct ct_entry *ct_blank(const struct ct_key *k)
{
	static const struct ct_entry blank;
	struct ct_entry *ct = bpf_map_lookup_elem(&strait_ct, k);

	if (ct)
		return ct;
	bpf_map_update_elem(&strait_ct, k, &blank, BPF_NOEXIST);
	return bpf_map_lookup_elem(&strait_ct, k);
}

/* A SYN on a finished connection: the entry becomes a new one's. Its NAT stays if the same end begins. */
static __noinline void ct_restart(struct ct_entry *ct, __u32 dir)
{
	__u32 keep = dir == !!(ct->flags & CT_HI_BEGAN) ? ct->flags & CT_NAT : 0;

	if (ct->flags & CT_VIRTUAL)
		keep |= CT_STACK | CT_VIRTUAL;
	ct->began = ct_now();
	ct->last_seen = ct->began / CT_SECOND;
	ct->packets[0] = ct->packets[1] = 0;
	ct->bytes[0] = ct->bytes[1] = 0;
	ct->policy_rev = 0;
	ct->rule_out = ct->rule_in = 0;
	ct->backend = ct->backend_gen = 0;
	ct->flags = keep | (dir ? CT_HI_BEGAN : 0);
}

/* What a packet did to its connection. */
enum ct_news {
	CT_ENDED = 1 << 0, /* it is closed now and was not: said of one packet only */
	CT_LATER = 1 << 1, /* the first packet in some fraction of a second */
};

/* Whether a SYN begins the connection anew. */
static __always_inline bool ct_over(const struct ct_entry *ct, __u8 proto)
{
	return ct_closed(ct->flags) || ct_idle(ct) > ct_idle_limit(ct->flags, proto);
}

/* Counts a packet that begins nothing anew. Flags and last_seen are written only when they change: the line is shared by both directions'
 * CPUs. */
static __always_inline __u32 ct_count(struct ct_entry *ct, const struct packet *p, __u32 dir)
{
	__u32 flags = ct->flags, tick = ct_tick(), set = 0, news = 0;

	__sync_fetch_and_add(&ct->packets[dir & 1], 1);
	__sync_fetch_and_add(&ct->bytes[dir & 1], p->end - L3_OFF);
	if (dir != !!(flags & CT_HI_BEGAN))
		set |= CT_REPLIED;
	if (p->tcp_flags & TCP_FIN)
		set |= dir ? CT_FIN_HI : CT_FIN_LO;
	if (p->tcp_flags & TCP_RST)
		set |= CT_RST;
	if (set & ~flags) {
		flags = __sync_fetch_and_or((__u32 *)&ct->flags, set);
		if (!ct_closed(flags) && ct_closed(flags | set)) {
			news |= CT_ENDED;
			if (!(flags & CT_DSR)) /* which has ended before: lb_ended */
				event_end(p, ct, dir);
		}
	}
	if (ct->tick != tick) {
		ct_seen(ct, tick);
		news |= CT_LATER;
	}
	return news;
}

/* Counts a packet. */
static __always_inline __u32 ct_update(struct ct_entry *ct, const struct packet *p, __u32 dir)
{
	if (packet_begins_tcp(p) && ct_over(ct, p->proto))
		ct_restart(ct, dir);
	return ct_count(ct, p, dir);
}

static __always_inline struct ct_entry *ct_find(const struct packet *p, struct ct_key *key, __u32 *dir)
{
	*dir = ct_key_from(key, p);
	return bpf_map_lookup_elem(&strait_ct, key);
}

/* Enters a connection with its first packet counted; 0: another CPU was faster, or there is no room. */
static __noinline int ct_enter(const struct ct_key *k, const struct packet *p, __u32 dir, const struct ct_policy *said)
{
	struct ct_entry fresh = {};

	ct_fresh(&fresh, dir);
	ct_judged(&fresh, said);
	if (p->tcp_flags & TCP_FIN)
		fresh.flags |= dir ? CT_FIN_HI : CT_FIN_LO;
	if (p->tcp_flags & TCP_RST)
		fresh.flags |= CT_RST;
	fresh.packets[dir & 1] = 1;
	fresh.bytes[dir & 1] = p->end - L3_OFF;
	return !bpf_map_update_elem(&strait_ct, k, &fresh, BPF_NOEXIST);
}

/* Whether a packet of the end that did not begin is not to go as it is. */
static __always_inline bool ct_turned(const struct ct_entry *ct, __u32 dir)
{
	return (ct->flags & (CT_FRONT | CT_STACK)) == CT_FRONT && dir != !!(ct->flags & CT_HI_BEGAN);
}
