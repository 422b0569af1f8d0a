/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a packet says: addresses, ports, and whether it is whole. Nothing later reads headers for a decision.
 *
 * A function that is __noinline but not static is verified once, by itself, with any argument its types allow: rare and long
 * ways are such functions, so that they cost no verification time where they are called. Their pointers may be NULL for it.
 */
#pragma once

#define PACKET_HOST 0 /* skb->pkt_type */
#define L3_OFF ETH_HLEN
#define L4_OFF_MAX 400 /* keeps variable offsets provably small */
#define IPV6_EXT_MAX 6

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum packet_flags {
	PACKET_V6 = 1 << 0,
	PACKET_FRAGMENT = 1 << 1,
	PACKET_LATER = 1 << 2, /* a fragment without L4 header */
	PACKET_ERROR = 1 << 3, /* ICMP error: speaks about an inner packet */
	PACKET_ECHO_REPLY = 1 << 4,
	PACKET_NDP = 1 << 5,
	PACKET_DF = 1 << 6,	 /* may not be fragmented on the way */
	PACKET_OPTIONS = 1 << 7, /* IPv4 options or an IPv6 destination options header */
	PACKET_HOPOPTS = 1 << 8,
	PACKET_DSR = 1 << 9,	  /* of a packet to be: it carries its frontend */
	PACKET_SELF = 1 << 10,	  /* of a packet to be: to the pod it comes from, whatever its source says */
	PACKET_COUNTED = 1 << 11, /* rules of policies and its connection have counted it */
};

struct packet {
	struct addr src;
	struct addr dst;
	__be16 sport; /* ICMP echo: identifier in both; without ports: 0 */
	__be16 dport;
	__be32 frag_id;
	__u32 flags;  /* enum packet_flags */
	__u32 l4_off; /* from the start of the frame */
	__u16 l4_len; /* length of the L4 header */
	__u16 icmp;   /* type << 8 | code; 0 if it is not ICMP */
	__u32 end;    /* offset of the first byte behind the L3 packet */
	__u8 proto;
	__u8 ttl;
	__u8 tcp_flags;	       /* 0 if it is not TCP */
	__u8 hook;	       /* enum hook: who reads it */
	__u32 ifindex;	       /* where it was seen */
} __attribute__((aligned(8))); /* copied by eight bytes at a time */

/* A pointer field of the context. In C it is a __u32, and the compiler would add to it in 32 bits, which is no pointer any more. */
#define PACKET_POINTER(skb, field) \
	({ \
		void *pointer; \
		asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(pointer) : "r"(skb), "i"(offsetof(struct __sk_buff, field))); \
		pointer; \
	})

/* A readable and writable window into the frame, NULL if the packet is shorter. Older windows are void afterwards. */
static __always_inline void *packet_at(struct __sk_buff *skb, __u32 off, __u32 len)
{
	void *at = PACKET_POINTER(skb, data) + off;

	if (at + len <= PACKET_POINTER(skb, data_end))
		return at;
	if (bpf_skb_pull_data(skb, off + len))
		return NULL;
	at = PACKET_POINTER(skb, data) + off;
	return at + len <= PACKET_POINTER(skb, data_end) ? at : NULL;
}

static __always_inline bool packet_has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

static __always_inline bool packet_is_icmp(__u8 proto)
{
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}

/* A protocol whose L4 header is read here; of others only the addresses count. */
static __always_inline bool packet_has_l4(__u8 proto)
{
	return packet_has_ports(proto) || packet_is_icmp(proto) || proto == IPPROTO_SCTP;
}

/* A SYN that begins a connection. */
static __always_inline bool packet_begins_tcp(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* An ICMP message that answers to nothing sent before: no echo reply. Of a later fragment nobody knows. */
static __always_inline bool packet_begins_icmp(const struct packet *p)
{
	return p->icmp && !(p->flags & PACKET_ECHO_REPLY);
}

static __always_inline bool packet_l3_v4(struct __sk_buff *skb, __u32 off, struct packet *p)
{
	struct iphdr *ip = packet_at(skb, off, sizeof(*ip));
	__u32 ihl, len, frag;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return false;
	ihl = ip->ihl * 4;
	len = bpf_ntohs(ip->tot_len);
	frag = bpf_ntohs(ip->frag_off);
	addr_from4(&p->src, ip->saddr);
	addr_from4(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->frag_id = ip->id;
	if (frag & IP_DF)
		p->flags |= PACKET_DF;
	if (frag & (IP_MF | IP_OFFSET))
		p->flags |= PACKET_FRAGMENT;
	if (frag & IP_OFFSET)
		p->flags |= PACKET_LATER;
	if (ihl > sizeof(*ip))
		p->flags |= PACKET_OPTIONS;
	p->l4_off = off + ihl;
	p->end = off + len;
	return len >= ihl || (!len && skb->gso_size); /* BIG TCP: the length does not fit its field */
}

/* Walks the extension headers (RFC 8200 4). A longer chain than IPV6_EXT_MAX is refused, not guessed at. */
__noinline int packet_v6_extensions(struct __sk_buff *skb, struct packet *p)
{
	__u8 h[8];

	if (!p)
		return -1;

	for (int i = 0; i < IPV6_EXT_MAX; i++) {
		__u32 len;

		if (p->proto != IPPROTO_HOPOPTS && p->proto != IPPROTO_ROUTING && p->proto != IPPROTO_DSTOPTS &&
		    p->proto != IPPROTO_AH && p->proto != IPPROTO_FRAGMENT)
			return 0;
		if (p->l4_off > L4_OFF_MAX || bpf_skb_load_bytes(skb, p->l4_off, h, sizeof(h)))
			return -1;
		len = (h[1] + 1) * 8;
		if (p->proto == IPPROTO_AH)
			len = (h[1] + 2) * 4;
		if (p->proto == IPPROTO_DSTOPTS)
			p->flags |= PACKET_OPTIONS;
		if (p->proto == IPPROTO_HOPOPTS)
			p->flags |= PACKET_HOPOPTS;
		if (p->proto == IPPROTO_FRAGMENT) {
			len = 8;
			__builtin_memcpy(&p->frag_id, h + 4, 4);
			if (h[2] || h[3] & 0xf9)
				p->flags |= PACKET_FRAGMENT;
			if (h[2] || h[3] & 0xf8)
				p->flags |= PACKET_LATER;
		}
		p->proto = h[0];
		p->l4_off += len;
		if (p->flags & PACKET_LATER)
			return 0;
	}
	return -1;
}

static __always_inline bool packet_is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS || proto == IPPROTO_AH ||
	       proto == IPPROTO_FRAGMENT;
}

static __always_inline bool packet_l3_v6(struct __sk_buff *skb, __u32 off, struct packet *p)
{
	struct ipv6hdr *ip = packet_at(skb, off, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->flags |= PACKET_V6 | PACKET_DF;
	p->l4_off = off + sizeof(*ip);
	p->end = p->l4_off + bpf_ntohs(ip->payload_len);
	/* On the wire ::ffff:0:0/96 never appears; here it means IPv4 (RFC 4038 4.2). */
	if (addr_is4(&p->src) || addr_is4(&p->dst))
		return false;
	return !packet_is_extension(p->proto) || !packet_v6_extensions(skb, p);
}

static __always_inline bool packet_icmp(const __u8 *h, struct packet *p)
{
	bool v6 = p->flags & PACKET_V6;
	__u8 type = h[0];

	p->icmp = (__u16)h[0] << 8 | h[1];
	if (p->proto != (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return true; /* the other family's ICMP means nothing here */
	if (v6 ? type == 128 || type == 129 : type == 8 || type == 0) {
		__builtin_memcpy(&p->sport, h + 4, 2);
		p->dport = p->sport;
		if (type == 129 || type == 0)
			p->flags |= PACKET_ECHO_REPLY;
	} else if (v6 ? type < 128 : type == 3 || type == 4 || type == 5 || type == 11 || type == 12) {
		p->flags |= PACKET_ERROR;
	} else if (v6 && type >= 133 && type <= 137) {
		p->flags |= PACKET_NDP;
	}
	return true;
}

/* Ports and flags. whole: the L4 header must be there entirely; an inner packet of an ICMP error has only 8 bytes of it. */
static __always_inline bool packet_l4(struct __sk_buff *skb, struct packet *p, bool whole)
{
	__u32 off = p->l4_off;
	__u8 *h;

	asm volatile("" : "+r"(off)); /* one value, so that its bound holds where it is used */
	p->l4_len = 8;
	if (off > L4_OFF_MAX)
		return false;
	if (p->flags & PACKET_LATER || !packet_has_l4(p->proto))
		return true;
	h = packet_at(skb, off, 8);
	if (!h)
		return false;
	if (packet_is_icmp(p->proto))
		return packet_icmp(h, p);
	__builtin_memcpy(&p->sport, h, 2);
	__builtin_memcpy(&p->dport, h + 2, 2);
	if (p->proto != IPPROTO_TCP || !whole)
		return true;
	h = packet_at(skb, off, 20);
	if (!h)
		return false;
	p->tcp_flags = h[13];
	p->l4_len = (h[12] >> 4) * 4;
	return p->l4_len >= 20;
}

/* 0, or why the packet cannot be carried. Padding behind the L3 packet is allowed, missing bytes are not. */
static __always_inline enum reason packet_parse(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth = packet_at(skb, 0, sizeof(*eth));
	__u32 l4;
	bool ok;

	if (!eth)
		return REASON_MALFORMED;
	if (skb->vlan_present)
		return REASON_UNSUPPORTED_L2;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		ok = packet_l3_v4(skb, L3_OFF, p);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		ok = packet_l3_v6(skb, L3_OFF, p);
	else
		return REASON_UNSUPPORTED_L2;
	if (!ok || !packet_l4(skb, p, true))
		return REASON_MALFORMED;
	if (skb->gso_size && p->end <= p->l4_off)
		p->end = skb->len;
	l4 = p->flags & PACKET_LATER || !packet_has_l4(p->proto) ? 0 : p->l4_len;
	return p->end > skb->len || p->l4_off + l4 > p->end ? REASON_MALFORMED : 0;
}

/* The packet an ICMP error speaks about; false if too little of it is there to name its connection. */
__noinline int packet_inner(struct __sk_buff *skb, const struct packet *p, struct packet *in)
{
	__u32 off;
	bool ok;

	if (!p || !in)
		return 0;
	in->hook = p->hook;
	in->ifindex = p->ifindex;
	off = p->l4_off + 8;
	if (off > L4_OFF_MAX)
		return 0;
	ok = p->flags & PACKET_V6 ? packet_l3_v6(skb, off, in) : packet_l3_v4(skb, off, in);
	if (!ok || in->flags & PACKET_LATER || !packet_l4(skb, in, false))
		return 0;
	return in->flags & (PACKET_ERROR | PACKET_NDP) ? 0 : 1;
}

/* Largest L3 packet that will be on the wire: of a GSO packet, one segment. */
static __always_inline bool packet_exceeds(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 len = skb->gso_size ? p->l4_off + p->l4_len + skb->gso_size : p->end;

	return mtu && len - L3_OFF > mtu;
}

/* One routed hop; the caller has seen ttl > 1. */
static __always_inline bool packet_hop(struct __sk_buff *skb, const struct packet *p)
{
	if (p->flags & PACKET_V6) {
		struct ipv6hdr *ip6 = packet_at(skb, L3_OFF, sizeof(*ip6));

		if (!ip6)
			return false;
		ip6->hop_limit--;
	} else {
		struct iphdr *ip = packet_at(skb, L3_OFF, sizeof(*ip));
		__u32 sum;

		if (!ip)
			return false;
		sum = (__u32)ip->check + bpf_htons(0x0100); /* RFC 1141 */
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	return true;
}

/* Destination, then source: 12 bytes, 4-byte aligned. */
static __always_inline bool packet_set_macs(struct __sk_buff *skb, const void *macs)
{
	__u32 *to = packet_at(skb, 0, ETH_HLEN);
	const __u32 *from = macs;

	if (!to)
		return false;
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	return true;
}
