/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's routing table, asked for the way out. */
#pragma once

/* 1 with the next hop and device of a forwarded packet; needs ip_forward. A missing neighbour is found later. */
static __noinline int fib_lookup(struct __sk_buff *skb, const struct packet *p, struct addr *hop, __u32 *ifindex)
{
	struct bpf_fib_lookup f = {
		.l4_protocol = p->proto, .sport = p->sport, .dport = p->dport, .ifindex = skb->ifindex,
		/* tot_len 0: the MTU is checked here, where GSO is understood */
	};
	long rc;

	if (p->flags & PACKET_V6) {
		f.family = ADDR_FAMILY_6;
		__builtin_memcpy(f.ipv6_src, p->src.w, sizeof(f.ipv6_src));
		__builtin_memcpy(f.ipv6_dst, p->dst.w, sizeof(f.ipv6_dst));
	} else {
		f.family = ADDR_FAMILY_4;
		f.ipv4_src = p->src.w[3];
		f.ipv4_dst = p->dst.w[3];
	}
	rc = bpf_fib_lookup(skb, &f, sizeof(f), 0);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	*ifindex = f.ifindex;
	if (f.family == ADDR_FAMILY_6) /* an IPv4 route may have an IPv6 next hop */
		__builtin_memcpy(hop->w, f.ipv6_dst, sizeof(hop->w));
	else
		addr_from4(hop, f.ipv4_dst);
	return 1;
}
