/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Refusals: the packet becomes the answer to its sender. Never to an ICMP error, a fragment that is not the first, or a packet with
 * IP options or extension headers. */
#pragma once

#define REJECT_HOPS 64

/* An ICMP error quotes the IP header and the 8 bytes in which ports are. */
struct reject_icmp {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 mtu;
};

#define REJECT_QUOTE4 (sizeof(struct iphdr) + 8)
#define REJECT_QUOTE6 (sizeof(struct ipv6hdr) + 8)
#define REJECT_QUOTE6_FRAGMENT (REJECT_QUOTE6 + 8) /* with the header that makes it a fragment: else nobody knows whose it is */

struct reject_error4 {
	struct iphdr ip;
	struct reject_icmp icmp;
} __attribute__((packed, aligned(4)));

struct reject_error6 {
	struct ipv6hdr ip;
	struct reject_icmp icmp;
} __attribute__((packed, aligned(4)));

static __always_inline __u16 reject_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The sum of the pseudo header, the same in both directions. */
static __noinline __u32 reject_pseudo(const struct packet *p, __u32 len, __u8 proto)
{
	__be32 rest[2] = { bpf_htonl(len), bpf_htonl(proto) };
	struct addr zero = {}, src = p->src, dst = p->dst;
	__s64 sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), 0);

	if (!(p->flags & PACKET_V6)) {
		src.w[2] = 0;
		dst.w[2] = 0;
	}
	sum = bpf_csum_diff(zero.w, 16, src.w, 16, sum);
	return bpf_csum_diff(zero.w, 16, dst.w, 16, sum);
}

static __always_inline void reject_ip4(struct iphdr *ip, const struct packet *p, __u32 len, __u8 proto)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(len);
	ip->ttl = REJECT_HOPS;
	ip->protocol = proto;
	ip->saddr = p->dst.w[3];
	ip->daddr = p->src.w[3];
	ip->check = ~reject_fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void reject_ip6(struct ipv6hdr *ip, const struct packet *p, __u32 len, __u8 proto)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = proto;
	ip->hop_limit = REJECT_HOPS;
	__builtin_memcpy(&ip->saddr, &p->dst, 16);
	__builtin_memcpy(&ip->daddr, &p->src, 16);
}

/* RFC 9293 3.10.7.1. sum: of the pseudo header, as a checksum that is still to be computed (CHECKSUM_PARTIAL) has it. */
static __noinline void reject_tcp(struct tcphdr *tcp, const struct tcphdr *asked, const struct packet *p, __u16 sum)
{
	__u32 len = p->end - p->l4_off - p->l4_len + !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);

	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = asked->dest;
	tcp->dest = asked->source;
	tcp->doff = 5;
	tcp->rst = 1;
	if (asked->ack) {
		tcp->seq = asked->ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(asked->seq) + len);
	}
	tcp->check = sum;
}

/* The checksum is put there by difference: the kernel leaves the pseudo header's alone where a device computes the rest. */
static __noinline int reject_sum(struct __sk_buff *skb, const struct packet *p, const struct tcphdr *tcp)
{
	struct tcphdr h = *tcp;
	__u32 sum = 2 * h.check;

	h.check = 0;
	sum += reject_fold(bpf_csum_diff(NULL, 0, (__be32 *)&h, sizeof(h), 0));
	return bpf_l4_csum_replace(skb, p->l4_off + offsetof(struct tcphdr, check), 0, sum, 0);
}

static __noinline int reject_l3(struct __sk_buff *skb, const struct packet *p)
{
	struct ipv6hdr ip6;
	struct iphdr *ip4 = (void *)&ip6;

	if (p->flags & PACKET_V6) {
		reject_ip6(&ip6, p, sizeof(struct tcphdr), IPPROTO_TCP);
		return bpf_skb_store_bytes(skb, L3_OFF, &ip6, sizeof(ip6), 0);
	}
	reject_ip4(ip4, p, sizeof(*ip4) + sizeof(struct tcphdr), IPPROTO_TCP);
	return bpf_skb_store_bytes(skb, L3_OFF, ip4, sizeof(*ip4), 0);
}

static __noinline int reject_reset(struct __sk_buff *skb, const struct packet *p)
{
	__u16 sum = reject_fold(reject_pseudo(p, sizeof(struct tcphdr), IPPROTO_TCP));
	struct tcphdr asked, tcp;

	if (p->tcp_flags & TCP_RST || bpf_skb_load_bytes(skb, p->l4_off, &asked, sizeof(asked)))
		return -1;
	reject_tcp(&tcp, &asked, p, sum);
	if (bpf_skb_change_tail(skb, p->l4_off + sizeof(tcp), 0) || bpf_skb_store_bytes(skb, p->l4_off, &tcp, sizeof(tcp), 0) ||
	    reject_l3(skb, p))
		return -1;
	return reject_sum(skb, p, &tcp) ? -1 : 0;
}

/* Moves the beginning of the packet to where an error quotes it, and cuts off the rest. *sum is increased by its checksum. */
static __noinline int reject_quote(struct __sk_buff *skb, __u32 to, __u32 len, __u32 *sum)
{
	__be32 quote[REJECT_QUOTE6_FRAGMENT / 4] = {};

	if (len < REJECT_QUOTE4 || len > sizeof(quote) || bpf_skb_load_bytes(skb, L3_OFF, quote, len))
		return -1;
	*sum += reject_fold(bpf_csum_diff(NULL, 0, quote, sizeof(quote), 0));
	return bpf_skb_change_tail(skb, to + len, 0) || bpf_skb_store_bytes(skb, to, quote, len, 0);
}

/* Port unreachable or, with an MTU, too big (RFC 792, 1191). */
static __noinline int reject_error4(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	struct reject_error4 e = { .icmp = { .type = 3, .code = mtu ? 4 : 3, .mtu = bpf_htonl(mtu & 0xffff) } };
	__u32 sum = 0;

	if (reject_quote(skb, L3_OFF + sizeof(e), REJECT_QUOTE4, &sum))
		return -1;
	e.icmp.check = ~reject_fold((__u64)sum + reject_fold(bpf_csum_diff(NULL, 0, (__be32 *)&e.icmp, sizeof(e.icmp), 0)));
	reject_ip4(&e.ip, p, sizeof(e) + REJECT_QUOTE4, IPPROTO_ICMP);
	return bpf_skb_store_bytes(skb, L3_OFF, &e, sizeof(e), 0) ? -1 : 0;
}

/* The same (RFC 4443). */
static __noinline int reject_error6(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	struct reject_error6 e = { .icmp = { .type = mtu ? 2 : 1, .code = mtu ? 0 : 4, .mtu = bpf_htonl(mtu) } };
	__u32 quote = p->flags & PACKET_FRAGMENT ? REJECT_QUOTE6_FRAGMENT : REJECT_QUOTE6;
	__u32 len = sizeof(e.icmp) + quote;
	__u32 sum = reject_fold(reject_pseudo(p, len, IPPROTO_ICMPV6));

	if (reject_quote(skb, L3_OFF + sizeof(e), quote, &sum))
		return -1;
	e.icmp.check = ~reject_fold((__u64)sum + reject_fold(bpf_csum_diff(NULL, 0, (__be32 *)&e.icmp, sizeof(e.icmp), 0)));
	reject_ip6(&e.ip, p, len, IPPROTO_ICMPV6);
	return bpf_skb_store_bytes(skb, L3_OFF, &e, sizeof(e), 0) ? -1 : 0;
}

/* Back by the device it came from. */
static __noinline int reject_send(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	struct endpoint *ep = endpoint_lookup(&p->src);
	struct encap_macs macs = {};
	struct remote *remote;

	if (ep && ep->ifindex == skb->ifindex)
		return packet_set_macs(skb, ep->pod_mac) ? finish(skb, why, bpf_redirect_peer(skb->ifindex, 0))
							 : drop(skb, p, REASON_REWRITE);
	if (skb->ifindex == cfg_vxlan_ifindex) {
		remote = ipcache_find(&p->src);
		if (!remote || !(remote->flags & REMOTE_TUNNEL) || encap_set(skb, remote))
			return drop(skb, p, REASON_NO_TUNNEL_ENDPOINT);
	} else {
		if (bpf_skb_load_bytes(skb, 0, macs.macs + 6, 6) || bpf_skb_load_bytes(skb, 6, macs.macs, 6) ||
		    !packet_set_macs(skb, macs.macs))
			return drop(skb, p, REASON_REWRITE);
	}
	skb->tc_index = DELIVER_OURS;
	return finish(skb, why, bpf_redirect(skb->ifindex, 0));
}

static __always_inline bool reject_may(const struct packet *p)
{
	__u32 plain = L3_OFF + (p->flags & PACKET_V6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));

	if (p->flags & PACKET_V6 && p->flags & PACKET_FRAGMENT && p->proto != IPPROTO_TCP)
		plain += 8;
	if (p->flags & (PACKET_ERROR | PACKET_LATER) || p->l4_off != plain || addr_is_zero(&p->src))
		return false;
	return !addr_is_multicast(&p->src, p->flags & PACKET_V6);
}

/* A packet that cannot be carried on: refused so that its sender knows, or dropped, as the reason wants it. */
static __noinline int reject(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	int rc;

	if ((why != REASON_REFUSED && why != REASON_BACKEND_GONE) || !reject_may(p))
		return drop(skb, p, why);
	if (p->proto == IPPROTO_TCP)
		rc = reject_reset(skb, p);
	else
		rc = p->flags & PACKET_V6 ? reject_error6(skb, p, 0) : reject_error4(skb, p, 0);
	return rc ? drop(skb, p, why) : reject_send(skb, p, why);
}

/* A packet that is larger than the way on, whose MTU is in cb[0]. IPv4 senders that allow fragments are told as well: nobody here makes
 * them. */
static __noinline int reject_size(struct __sk_buff *skb, const struct packet *p)
{
	__u32 mtu = skb->cb[0];
	int rc;

	if (!reject_may(p))
		return drop(skb, p, REASON_TOO_BIG);
	rc = p->flags & PACKET_V6 ? reject_error6(skb, p, mtu) : reject_error4(skb, p, mtu);
	return rc ? drop(skb, p, REASON_TOO_BIG) : reject_send(skb, p, REASON_SENDER_TOLD);
}
