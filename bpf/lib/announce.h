/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP (RFC 826) and neighbour discovery (RFC 4861) for the service addresses this node announces. The node's stack does not have
 * these addresses, so nobody else here answers for them. */
#pragma once

#define PACKET_OTHERHOST 3 /* skb->pkt_type: a frame to another machine */

#define ARP_REQUEST 1
#define ARP_REPLY 2

struct arp_frame {
	__u8 dst[6];
	__u8 src[6];
	__be16 protocol;
	__be16 hardware;
	__be16 family;
	__u8 hardware_len;
	__u8 family_len;
	__be16 op;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED 0x40
#define ND_OVERRIDE 0x20
#define ND_TARGET_MAC 2 /* option */
#define ND_HOPS 255	/* any other hop limit means that the message has been forwarded */

/* A solicitation without its options, and an advertisement with the one option it has. */
struct nd_message {
	__u8 type;
	__u8 code;
	__be16 check;
	__u8 flags;
	__u8 reserved[3];
	struct addr target;
	__u8 option;
	__u8 option_len; /* in units of 8 bytes */
	__u8 mac[6];
} __attribute__((packed));

#define ND_SOLICITATION_LEN 24

struct nd_frame {
	__u8 dst[6];
	__u8 src[6];
	__be16 protocol;
	struct ipv6hdr ip;
	struct nd_message nd;
} __attribute__((packed));

static __always_inline struct announce *announce_lookup(struct __sk_buff *skb, const struct addr *a)
{
	struct announce_key key = { .addr = *a, .ifindex = skb->ifindex };

	return bpf_map_lookup_elem(&strait_announce, &key);
}

/* Back to where the question came from. */
static __always_inline int announce_send(struct __sk_buff *skb)
{
	return finish(skb, REASON_ANSWERED, bpf_redirect(skb->ifindex, 0));
}

/* A sender that asks for its own address tells its neighbours about itself (RFC 5227 3): the node that takes the address over, for one. */
__noinline int announce_arp(struct __sk_buff *skb)
{
	struct arp_frame *f = packet_at(skb, 0, sizeof(*f));
	struct announce *ours;
	struct addr target;
	__be32 sender, ip;

	if (!f || f->hardware != bpf_htons(1) || f->family != bpf_htons(ETH_P_IP) || f->hardware_len != 6 || f->family_len != 4 ||
	    f->op != bpf_htons(ARP_REQUEST) || f->sender_mac[0] & 1)
		return to_stack(skb);
	__builtin_memcpy(&sender, f->sender, 4);
	__builtin_memcpy(&ip, f->target, 4);
	if (sender == ip)
		return to_stack(skb);
	addr_from4(&target, ip);
	ours = announce_lookup(skb, &target);
	if (!ours)
		return to_stack(skb);
	f->op = bpf_htons(ARP_REPLY);
	__builtin_memcpy(f->dst, f->sender_mac, 6);
	__builtin_memcpy(f->src, ours->mac, 6);
	__builtin_memcpy(f->target_mac, f->sender_mac, 6);
	__builtin_memcpy(f->target, f->sender, 4);
	__builtin_memcpy(f->sender_mac, ours->mac, 6);
	__builtin_memcpy(f->sender, &ip, 4);
	return announce_send(skb);
}

/* Over the pseudo header (RFC 8200 8.1) and the message. */
static __always_inline __be16 announce_checksum(const struct nd_frame *f)
{
	struct {
		struct in6_addr src;
		struct in6_addr dst;
		__be32 len;
		__be32 next;
		struct nd_message nd;
	} sum = {
		.src = f->ip.saddr,
		.dst = f->ip.daddr,
		.len = bpf_htonl(sizeof(f->nd)),
		.next = bpf_htonl(IPPROTO_ICMPV6),
		.nd = f->nd,
	};
	__u64 folded = bpf_csum_diff(NULL, 0, (__be32 *)&sum, sizeof(sum), 0);

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Without a sender the question is whether the address is free (RFC 4862 5.4.3): everybody hears that it is not. */
static __always_inline void announce_address(struct nd_frame *f, const struct addr *target)
{
	static const __u8 all_nodes[6] = { 0x33, 0x33, 0, 0, 0, 1 };
	struct addr asker;

	__builtin_memcpy(&asker, &f->ip.saddr, sizeof(asker));
	f->nd.flags = ND_OVERRIDE;
	if (addr_is_zero(&asker)) {
		asker = (struct addr){ { bpf_htonl(0xff020000), 0, 0, bpf_htonl(1) } };
		__builtin_memcpy(f->dst, all_nodes, 6);
	} else {
		f->nd.flags |= ND_SOLICITED;
		__builtin_memcpy(f->dst, f->src, 6);
	}
	__builtin_memcpy(&f->ip.daddr, &asker, sizeof(asker));
	__builtin_memcpy(&f->ip.saddr, target, sizeof(*target));
}

/* Options of the question are not looked at: the asker's MAC is the frame's. */
__noinline int announce_ndp(struct __sk_buff *skb)
{
	const __u32 question = offsetof(struct nd_frame, nd) + ND_SOLICITATION_LEN;
	struct nd_frame f = {};
	struct announce *ours;
	struct addr target;

	if (bpf_skb_load_bytes(skb, 0, &f, question))
		return to_stack(skb);
	if (f.ip.version != 6 || f.ip.nexthdr != IPPROTO_ICMPV6 || f.ip.hop_limit != ND_HOPS || f.nd.type != ND_SOLICITATION ||
	    f.nd.code || f.src[0] & 1)
		return to_stack(skb);
	__builtin_memcpy(&target, &f.nd.target, sizeof(target));
	ours = announce_lookup(skb, &target);
	if (!ours)
		return to_stack(skb);
	announce_address(&f, &target);
	__builtin_memcpy(f.src, ours->mac, 6);
	f.ip.payload_len = bpf_htons(sizeof(f.nd));
	f.nd.type = ND_ADVERTISEMENT;
	f.nd.check = 0;
	__builtin_memset(f.nd.reserved, 0, sizeof(f.nd.reserved));
	f.nd.option = ND_TARGET_MAC;
	f.nd.option_len = 1;
	__builtin_memcpy(f.nd.mac, ours->mac, 6);
	f.nd.check = announce_checksum(&f);
	if (bpf_skb_change_tail(skb, sizeof(f), 0) || bpf_skb_store_bytes(skb, 0, &f, sizeof(f), 0))
		return drop(skb, NULL, REASON_REWRITE);
	return announce_send(skb);
}

/* For what is not for a pod: questions about the node's service addresses are answered, the rest is the stack's. Questions come as
 * broadcast and multicast, and to this machine alone when a neighbour makes sure that it is still there. */
static __always_inline int announce(struct __sk_buff *skb)
{
	if (skb->pkt_type == PACKET_OTHERHOST || skb->vlan_present)
		return to_stack(skb);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return announce_arp(skb);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return announce_ndp(skb);
	return to_stack(skb);
}
