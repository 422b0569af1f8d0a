/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The plain packets that XDP carries, as struct packet, and putting other ends into them: TCP or UDP directly behind Ethernet and an IP
 * header without options, not a fragment.
 */
#pragma once

/* Bounds are checked against the frame's end each time: pointers do not survive a call. */
static __always_inline void *xdp_at(struct xdp_md *ctx, __u32 off, __u32 len)
{
	void *at = (void *)(long)ctx->data + off;

	return at + len <= (void *)(long)ctx->data_end ? at : NULL;
}

/* The L4 header: its place follows from the family here, which the verifier follows better than p->l4_off. */
static __always_inline void *xdp_l4(struct xdp_md *ctx, const struct packet *p, __u32 len)
{
	if (p->flags & PACKET_V6)
		return xdp_at(ctx, L3_OFF + sizeof(struct ipv6hdr), len);
	return xdp_at(ctx, L3_OFF + sizeof(struct iphdr), len);
}

static __always_inline bool xdp_parse_v4(const struct iphdr *ip, struct packet *p)
{
	if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return false;
	addr_from4(&p->src, ip->saddr);
	addr_from4(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->flags = ip->frag_off & bpf_htons(IP_DF) ? PACKET_DF : 0;
	p->l4_off = L3_OFF + sizeof(*ip);
	p->end = L3_OFF + bpf_ntohs(ip->tot_len);
	return true;
}

static __always_inline bool xdp_parse_v6(const struct ipv6hdr *ip, struct packet *p)
{
	if (ip->version != 6)
		return false;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->flags = PACKET_V6 | PACKET_DF;
	p->l4_off = L3_OFF + sizeof(*ip);
	p->end = p->l4_off + bpf_ntohs(ip->payload_len);
	return !addr_is4(&p->src) && !addr_is4(&p->dst);
}

/* The sum of the pseudo header. The ::ffff of a v4-mapped address is 0 in ones' complement, so both families are summed alike. */
static __always_inline __u16 xdp_pseudo(const struct packet *p)
{
	__u64 sum = bpf_htons(p->end - p->l4_off) + bpf_htons(p->proto);

	for (int i = 0; i < 4; i++)
		sum += (__u64)p->src.w[i] + p->dst.w[i];
	return reject_fold(sum);
}

/* Of a local sender over veth, whose checksum is left to the device (CHECKSUM_PARTIAL), the field has the sum of the pseudo header. XDP
 * is not told, and what it sends itself nobody would complete. One in 65535 complete ones looks the same. */
static __always_inline bool xdp_unfinished(const struct packet *p, __u16 check)
{
	return check == xdp_pseudo(p);
}

static __always_inline bool xdp_parse_l4(struct xdp_md *ctx, struct packet *p)
{
	struct tcphdr *tcp;
	struct udphdr *udp;

	if (p->proto == IPPROTO_UDP) {
		udp = xdp_l4(ctx, p, sizeof(*udp));
		if (!udp)
			return false;
		p->sport = udp->source;
		p->dport = udp->dest;
		p->l4_len = sizeof(*udp);
		return !xdp_unfinished(p, udp->check);
	}
	tcp = xdp_l4(ctx, p, sizeof(*tcp));
	if (!tcp)
		return false;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->tcp_flags = ((__u8 *)tcp)[13];
	p->l4_len = tcp->doff * 4;
	return p->l4_len >= sizeof(*tcp) && !xdp_unfinished(p, tcp->check);
}

/* Whether the packet is one for XDP. What has used up its hops is not: its sender is to be told. */
static __always_inline bool xdp_parse(struct xdp_md *ctx, struct packet *p)
{
	struct ethhdr *eth = xdp_at(ctx, 0, sizeof(*eth));
	void *ip;
	bool ok = false;

	if (!eth || eth->h_dest[0] & 1)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ip = xdp_at(ctx, L3_OFF, sizeof(struct iphdr));
		ok = ip && xdp_parse_v4(ip, p);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		ip = xdp_at(ctx, L3_OFF, sizeof(struct ipv6hdr));
		ok = ip && xdp_parse_v6(ip, p);
	}
	if (!ok || !packet_has_ports(p->proto) || p->ttl <= 1 || !xdp_parse_l4(ctx, p))
		return false;
	return p->end >= p->l4_off + p->l4_len && p->end <= ctx->data_end - ctx->data;
}

/* A checksum of what has changed by diff (RFC 1624). */
static __always_inline __u16 xdp_sum(__u16 check, __u32 diff)
{
	return ~reject_fold((__u64)(__u16)~check + diff);
}

static __always_inline bool xdp_rewrite_l4(struct xdp_md *ctx, const struct packet *p, const struct packet *seen, __u32 diff)
{
	struct tcphdr *tcp;
	struct udphdr *udp;

	diff = bpf_csum_diff((__be32 *)&p->sport, 4, (__be32 *)&seen->sport, 4, diff);
	if (p->proto == IPPROTO_UDP) {
		udp = xdp_l4(ctx, p, sizeof(*udp));
		if (!udp)
			return false;
		udp->source = seen->sport;
		udp->dest = seen->dport;
		if (udp->check) /* 0: the sender made none */
			udp->check = xdp_sum(udp->check, diff) ?: 0xffff;
		return true;
	}
	tcp = xdp_l4(ctx, p, sizeof(*tcp));
	if (!tcp)
		return false;
	tcp->source = seen->sport;
	tcp->dest = seen->dport;
	tcp->check = xdp_sum(tcp->check, diff);
	return true;
}

/* Makes the packet look like seen, one routed hop further on. All of it was there when it was parsed, so it fails as a whole or not. */
static __always_inline bool xdp_rewrite(struct xdp_md *ctx, const struct packet *p, const struct packet *seen)
{
	__u32 diff = bpf_csum_diff((__be32 *)&p->src, 32, (__be32 *)&seen->src, 32, 0); /* dst follows src */
	struct ipv6hdr *ip6;
	struct iphdr *ip4;

	if (!xdp_rewrite_l4(ctx, p, seen, diff))
		return false;
	if (p->flags & PACKET_V6) {
		ip6 = xdp_at(ctx, L3_OFF, sizeof(*ip6));
		if (!ip6)
			return false;
		__builtin_memcpy(&ip6->saddr, &seen->src, sizeof(ip6->saddr));
		__builtin_memcpy(&ip6->daddr, &seen->dst, sizeof(ip6->daddr));
		ip6->hop_limit--;
		return true;
	}
	ip4 = xdp_at(ctx, L3_OFF, sizeof(*ip4));
	if (!ip4)
		return false;
	ip4->saddr = seen->src.w[3];
	ip4->daddr = seen->dst.w[3];
	ip4->ttl--;
	ip4->check = ~reject_fold((__u64)(__u16)~ip4->check + diff + (__u16)~bpf_htons(0x0100));
	return true;
}
