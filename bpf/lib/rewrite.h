/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Putting another address and port into a packet, checksums kept right by difference (RFC 1624). */
#pragma once

enum rewrite_end {
	REWRITE_SRC,
	REWRITE_DST,
};

struct rewrite {
	struct addr addr;
	__be16 port;
	__u8 end; /* enum rewrite_end */
	__u8 pad;
};

/* Offset of the checksum in an L4 header, -1: none that covers what is rewritten. */
static __always_inline int rewrite_sum_off(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return offsetof(struct udphdr, check);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	}
	return -1;
}

/* Offset of the port of an end in an L4 header, -1: it has none. */
static __always_inline int rewrite_port_off(__u8 proto, __u8 end)
{
	if (packet_has_ports(proto) || proto == IPPROTO_SCTP)
		return end == REWRITE_SRC ? 0 : 2;
	return packet_is_icmp(proto) ? 4 : -1;
}

/* What replacing old by new adds to a one's complement sum. */
static __always_inline __u64 rewrite_difference(const struct addr *old, const struct addr *new)
{
	__u64 sum = 0;

	for (int i = 0; i < 4; i++)
		sum += (__u64)(__u32)~old->w[i] + new->w[i];
	return sum;
}

static __always_inline __u32 rewrite_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* IPv4's header checksum after such a change. */
static __always_inline __u16 rewrite_ip_sum(__u16 check, __u32 change)
{
	__u32 sum = (__u16)~check + (change & 0xffff) + (change >> 16);

	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

/* The address in the IP header. */
static __always_inline int rewrite_l3(struct __sk_buff *skb, bool v6, const struct rewrite *to, __u32 change)
{
	struct iphdr *ip;
	__u32 at;

	if (v6) {
		at = L3_OFF + (to->end == REWRITE_SRC ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr));
		/* RECOMPUTE: what the pseudo header correction takes from a CHECKSUM_COMPLETE sum is put there. */
		return bpf_skb_store_bytes(skb, at, &to->addr, 16, BPF_F_RECOMPUTE_CSUM);
	}
	ip = packet_at(skb, L3_OFF, sizeof(*ip));
	if (!ip)
		return -1;
	ip->check = rewrite_ip_sum(ip->check, change);
	if (to->end == REWRITE_SRC)
		ip->saddr = to->addr.w[3];
	else
		ip->daddr = to->addr.w[3];
	return 0;
}

/* Another port in an SCTP packet. Not where the rest of the packet is missing, or made by a device from several. A checksum of 0 is still
 * to be computed. */
static __always_inline int rewrite_sctp(struct __sk_buff *skb, const struct packet *p, __be16 old_port, const struct rewrite *to)
{
	__u32 sum, change = (__u16)(old_port ^ to->port);

	if (p->flags & PACKET_FRAGMENT || skb->gso_size || bpf_skb_load_bytes(skb, p->l4_off + SCTP_SUM, &sum, sizeof(sum)))
		return -1;
	if (sum) {
		sum ^= sctp_change(to->end == REWRITE_SRC ? change : change << 16, p->end - p->l4_off);
		if (bpf_skb_store_bytes(skb, p->l4_off + SCTP_SUM, &sum, sizeof(sum), BPF_F_RECOMPUTE_CSUM))
			return -1;
	}
	return bpf_skb_store_bytes(skb, p->l4_off + (to->end == REWRITE_SRC ? 0 : 2), &to->port, 2, BPF_F_RECOMPUTE_CSUM) ? -1
															  : 0;
}

/* Replaces one end of the packet; 0 or an error that leaves it unusable. p keeps the old values. */
__noinline int rewrite_packet(struct __sk_buff *skb, const struct packet *p, const struct rewrite *to)
{
	__be16 old_port;
	int sum, port;
	__u64 flags;
	__u32 diff;

	if (!p || !to)
		return -1;
	diff = rewrite_fold(rewrite_difference(to->end == REWRITE_SRC ? &p->src : &p->dst, &to->addr));
	old_port = to->end == REWRITE_SRC ? p->sport : p->dport;
	sum = rewrite_sum_off(p->proto);
	port = rewrite_port_off(p->proto, to->end);
	flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (!(p->flags & PACKET_LATER) && sum >= 0) {
		if (p->proto != IPPROTO_ICMP && bpf_l4_csum_replace(skb, p->l4_off + sum, 0, diff, flags | BPF_F_PSEUDO_HDR))
			return -1;
		if (port >= 0 && to->port != old_port &&
		    (bpf_l4_csum_replace(skb, p->l4_off + sum, old_port, to->port, flags | 2) ||
		     bpf_skb_store_bytes(skb, p->l4_off + port, &to->port, 2, 0)))
			return -1;
	}
	if (p->proto == IPPROTO_SCTP && !(p->flags & PACKET_LATER) && to->port != old_port && rewrite_sctp(skb, p, old_port, to))
		return -1;
	return rewrite_l3(skb, p->flags & PACKET_V6, to, diff) ? -1 : 0;
}

/* Addresses in the IP header. IPv6 has no checksum there that would even out what the pseudo header's correction takes from a
 * CHECKSUM_COMPLETE sum: RECOMPUTE puts it back. */
static __always_inline int rewrite_addresses(struct __sk_buff *skb, const struct packet *p, const struct packet *seen,
					     __u32 change)
{
	struct iphdr *ip;

	if (p->flags & PACKET_V6)
		return bpf_skb_store_bytes(skb, L3_OFF + offsetof(struct ipv6hdr, saddr), &seen->src, 32, BPF_F_RECOMPUTE_CSUM);
	ip = packet_at(skb, L3_OFF, sizeof(*ip));
	if (!ip)
		return -1;
	ip->check = rewrite_ip_sum(ip->check, change);
	ip->saddr = seen->src.w[3];
	ip->daddr = seen->dst.w[3];
	return 0;
}

/* Replaces both ends of a TCP or UDP packet at once. */
static __noinline int rewrite_both(struct __sk_buff *skb, const struct packet *p, const struct packet *seen)
{
	__u32 off = p->l4_off, ports, addresses;
	__u64 flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 check = off + rewrite_sum_off(p->proto);
	__be16 *at;

	addresses = rewrite_fold(rewrite_difference(&p->src, &seen->src) + rewrite_difference(&p->dst, &seen->dst));
	ports = (__u16)~p->sport + seen->sport + (__u16)~p->dport + seen->dport;
	if (bpf_l4_csum_replace(skb, check, 0, addresses, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, check, 0, ports, flags) || rewrite_addresses(skb, p, seen, addresses))
		return -1;
	asm volatile("" : "+r"(off)); /* one value, so that its bound holds where it is used */
	if (off > L4_OFF_MAX)
		return -1;
	at = packet_at(skb, off, 4);
	if (!at)
		return -1;
	at[0] = seen->sport;
	at[1] = seen->dport;
	return 0;
}

/* Makes the packet what it is to look like; 0 or an error that leaves it unusable. */
__noinline int rewrite_like(struct __sk_buff *skb, const struct packet *p, const struct packet *seen)
{
	struct rewrite to = { .end = REWRITE_SRC };

	if (!p || !seen)
		return -1;
	if (packet_has_ports(p->proto) && !(p->flags & PACKET_LATER))
		return rewrite_both(skb, p, seen);
	if (p->sport != seen->sport || !addr_equal(&p->src, &seen->src)) {
		to.addr = seen->src;
		to.port = seen->sport;
		if (rewrite_packet(skb, p, &to))
			return -1;
	}
	if (p->dport != seen->dport || !addr_equal(&p->dst, &seen->dst)) {
		to.addr = seen->dst;
		to.port = seen->dport;
		to.end = REWRITE_DST;
		if (rewrite_packet(skb, p, &to))
			return -1;
	}
	return 0;
}

/* Changes up to 16 bytes, an even number, inside an ICMP message and corrects its checksum. */
static __noinline int rewrite_inside(struct __sk_buff *skb, const struct packet *p, __u32 off, const void *new, __u32 len)
{
	__be32 a[4] = {}, b[4] = {};

	if (len == 2) {
		if (bpf_skb_load_bytes(skb, off, a, 2))
			return -1;
		__builtin_memcpy(b, new, 2);
	} else if (len == 4) {
		if (bpf_skb_load_bytes(skb, off, a, 4))
			return -1;
		__builtin_memcpy(b, new, 4);
	} else {
		if (bpf_skb_load_bytes(skb, off, a, 16))
			return -1;
		__builtin_memcpy(b, new, 16);
	}
	return bpf_l4_csum_replace(skb, p->l4_off + 2, 0, bpf_csum_diff(a, 16, b, 16, 0), 0) ||
	       bpf_skb_store_bytes(skb, off, b,
				   len == 2   ? 2
				   : len == 4 ? 4
					      : 16,
				   0);
}

/* A checksum inside an ICMP message: corrected by diff. Missing (cut off) or absent (UDP 0) is all right. */
static __always_inline int rewrite_inside_sum(struct __sk_buff *skb, const struct packet *p, __u32 off, __u32 diff,
					      bool zero_is_none)
{
	__u16 old, new;
	__u32 sum;

	if (off > L4_OFF_MAX + 20 || off + 2 > p->end || bpf_skb_load_bytes(skb, off, &old, 2))
		return 0;
	if (zero_is_none && !old)
		return 0;
	sum = (__u16)~old + (diff & 0xffff) + (diff >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	new = ~sum;
	return rewrite_inside(skb, p, off, &new, 2);
}

/* Replaces the given end of the packet an ICMP error speaks about. */
__noinline int rewrite_inner(struct __sk_buff *skb, const struct packet *p, const struct packet *in, const struct rewrite *to)
{
	const struct addr *old;
	__u32 l3, addr_diff, diff;
	__be16 old_port;
	int sum, port;
	bool src;

	if (!p || !in || !to)
		return -1;
	l3 = p->l4_off + 8;
	if (l3 > L4_OFF_MAX || in->l4_off > L4_OFF_MAX)
		return -1;
	src = to->end == REWRITE_SRC;
	old = src ? &in->src : &in->dst;
	old_port = src ? in->sport : in->dport;
	sum = rewrite_sum_off(in->proto);
	port = rewrite_port_off(in->proto, to->end);
	addr_diff = bpf_csum_diff((__be32 *)old->w, 16, (__be32 *)to->addr.w, 16, 0);
	diff = in->proto == IPPROTO_ICMP ? 0 : addr_diff;
	if (in->flags & PACKET_V6) {
		if (rewrite_inside(skb, p, l3 + (src ? 8 : 24), to->addr.w, 16))
			return -1;
	} else if (rewrite_inside(skb, p, l3 + (src ? 12 : 16), &to->addr.w[3], 4) ||
		   rewrite_inside_sum(skb, p, l3 + 10, addr_diff, false)) {
		return -1;
	}
	if (port < 0)
		return 0;
	/* One's complement: the difference of two 16-bit words of the same place. */
	diff = (diff & 0xffff) + (diff >> 16) + (__u16)~old_port + to->port;
	if (sum >= 0 && rewrite_inside_sum(skb, p, in->l4_off + sum, diff, in->proto == IPPROTO_UDP))
		return -1;
	return rewrite_inside(skb, p, in->l4_off + port, &to->port, 2) ? -1 : 0;
}
