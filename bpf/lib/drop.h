/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The end of every packet: counted under its reason. */
#pragma once

static __always_inline void count(enum reason why, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&strait_counter, &why);

	if (!c)
		return;
	c->packets++;
	c->bytes += bytes;
}

static __always_inline int finish(struct __sk_buff *skb, enum reason why, int verdict)
{
	count(why, skb->len);
	return verdict;
}

/* Rare ends stay out of the way that established packets take through the cache. */
__noinline int drop_lost(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	count(why, skb->len);
	if (cfg_events)
		event_dropped(skb, p, why);
	return 0;
}

/* p: what the packet says; NULL: it was not read. */
static __always_inline int drop(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	drop_lost(skb, p, why);
	return TC_ACT_SHOT;
}

/* The node's own network stack goes on with the packet; later programs on the hook still run. */
static __always_inline int to_stack(struct __sk_buff *skb)
{
	return finish(skb, REASON_TO_STACK, TC_ACT_UNSPEC);
}
