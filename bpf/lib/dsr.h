/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return: a packet to a backend on another node keeps its client's address and carries the frontend, so that the backend's
 * node can answer in its place.
 *
 * IPv4: an option of 8 bytes, the first one (type 158, experimental by RFC 4727, copied to fragments): type, 8, port, address.
 * IPv6: a destination options header of 24 bytes, the first extension header, with option 0x1e (experimental by RFC 4727, skipped by who
 * does not know it): type, 18, port, address; then 2 bytes of padding.
 * Port and address are in network order. TCP carries it on every SYN, other protocols on every packet.
 */
#pragma once

#define DSR_TYPE4 158
#define DSR_TYPE6 0x1e

struct dsr_option4 {
	__u8 type;
	__u8 len;
	__be16 port;
	__be32 addr;
} __attribute__((packed, aligned(4)));

struct dsr_option6 {
	__u8 next;
	__u8 units; /* of 8 bytes, behind the first 8 */
	__u8 type;
	__u8 len;
	__be16 port;
	struct addr addr;
	__u8 pad[2];
} __attribute__((packed, aligned(2)));

static __always_inline __u32 dsr_len(const struct packet *p)
{
	return p->flags & PACKET_V6 ? sizeof(struct dsr_option6) : sizeof(struct dsr_option4);
}

/* Whether there is a place for the option: it has to be the first one. */
static __always_inline bool dsr_may(const struct packet *p)
{
	return !(p->flags & PACKET_HOPOPTS) && (p->flags & PACKET_V6 || p->l4_off == L3_OFF + sizeof(struct iphdr));
}

static __always_inline bool dsr_wanted(const struct packet *p)
{
	return p->proto != IPPROTO_TCP || p->tcp_flags & TCP_SYN;
}

static __noinline int dsr_header4(struct __sk_buff *skb, struct dsr_option4 *o, int change)
{
	struct iphdr ip;
	__u64 sum;

	if (bpf_skb_load_bytes(skb, L3_OFF, &ip, sizeof(ip)))
		return -1;
	ip.ihl += change > 0 ? sizeof(*o) / 4 : -(sizeof(*o) / 4);
	ip.tot_len = bpf_htons(bpf_ntohs(ip.tot_len) + change);
	ip.check = 0;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0);
	if (o)
		sum += bpf_csum_diff(NULL, 0, (__be32 *)o, sizeof(*o), 0);
	ip.check = ~reject_fold(sum);
	return bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0);
}

/* Puts the destination of p into a packet that has another one by now. */
static __noinline int dsr_insert4(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_option4 o = { .type = DSR_TYPE4, .len = sizeof(o), .port = p->dport, .addr = p->dst.w[3] };

	if (bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) || dsr_header4(skb, &o, sizeof(o)))
		return -1;
	return bpf_skb_store_bytes(skb, L3_OFF + sizeof(struct iphdr), &o, sizeof(o), 0);
}

static __noinline int dsr_header6(struct __sk_buff *skb, __u8 *next, int change)
{
	const __u32 at = L3_OFF + offsetof(struct ipv6hdr, payload_len);
	struct {
		__be16 len;
		__u8 next;
		__u8 hops;
	} ip;
	__u8 was;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return -1;
	was = ip.next;
	ip.len = bpf_htons(bpf_ntohs(ip.len) + change);
	ip.next = *next;
	*next = was;
	return bpf_skb_store_bytes(skb, at, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
}

static __noinline int dsr_insert6(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_option6 o = {
		.next = IPPROTO_DSTOPTS,
		.units = 2,
		.type = DSR_TYPE6,
		.len = sizeof(o.port) + sizeof(o.addr),
		.port = p->dport,
		.addr = p->dst,
		.pad = { 1, 0 }, /* PadN of nothing */
	};

	if (bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    dsr_header6(skb, &o.next, sizeof(o)))
		return -1;
	return bpf_skb_store_bytes(skb, L3_OFF + sizeof(struct ipv6hdr), &o, sizeof(o), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int dsr_insert(struct __sk_buff *skb, const struct packet *p)
{
	return p->flags & PACKET_V6 ? dsr_insert6(skb, p) : dsr_insert4(skb, p);
}

/* 1: the packet carries a frontend. p has options. */
static __noinline int dsr_read(struct __sk_buff *skb, const struct packet *p, struct sockaddr_key *front)
{
	struct dsr_option6 o6;
	struct dsr_option4 *o4 = (void *)&o6;
	__u8 next = 0;

	front->proto = p->proto;
	front->pad = 0;
	if (p->flags & PACKET_V6) {
		if (bpf_skb_load_bytes(skb, L3_OFF + offsetof(struct ipv6hdr, nexthdr), &next, 1) || next != IPPROTO_DSTOPTS ||
		    bpf_skb_load_bytes(skb, L3_OFF + sizeof(struct ipv6hdr), &o6, sizeof(o6)))
			return 0;
		front->addr = o6.addr;
		front->port = o6.port;
		return o6.units == 2 && o6.type == DSR_TYPE6 && o6.len == sizeof(o6.port) + sizeof(o6.addr);
	}
	if (bpf_skb_load_bytes(skb, L3_OFF + sizeof(struct iphdr), o4, sizeof(*o4)))
		return 0;
	addr_from4(&front->addr, o4->addr);
	front->port = o4->port;
	return o4->type == DSR_TYPE4 && o4->len == sizeof(*o4);
}

static __noinline int dsr_carries(struct __sk_buff *skb, const struct packet *p)
{
	struct sockaddr_key front;

	return dsr_read(skb, p, &front);
}

/* Takes the option out again. */
static __noinline int dsr_strip(struct __sk_buff *skb, struct packet *p)
{
	__u32 len = dsr_len(p);
	__u8 next = 0;
	int rc;

	if (p->flags & PACKET_V6) {
		rc = bpf_skb_load_bytes(skb, L3_OFF + sizeof(struct ipv6hdr), &next, 1) ||
		     bpf_skb_adjust_room(skb, -(__s32)sizeof(struct dsr_option6), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) ||
		     dsr_header6(skb, &next, -(int)sizeof(struct dsr_option6));
	} else {
		rc = bpf_skb_adjust_room(skb, -(__s32)sizeof(struct dsr_option4), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) ||
		     dsr_header4(skb, NULL, -(int)sizeof(struct dsr_option4));
	}
	p->l4_off -= len;
	p->end -= len;
	return rc ? -1 : 0;
}

/* At the backend's node. 1: the packet is an ordinary one now, tracked so that its answer gets the frontend as source; 0: it carries
 * no frontend; else minus the reason why it is not carried. */
static __noinline int dsr_receive(struct __sk_buff *skb, struct packet *p)
{
	struct sockaddr_key front;
	struct packet asked;
	int why;

	if (!dsr_read(skb, p, &front))
		return 0;
	if (endpoint_lookup(&p->src) || ipcache_owner(&p->src) & REMOTE_HOST)
		return -REASON_SPOOFED_SOURCE;
	if (!lb_find(&front, false))
		return -REASON_DSR_OPTION;
	if (dsr_strip(skb, p))
		return -REASON_REWRITE;
	asked = *p;
	asked.dst = front.addr;
	asked.dport = front.port;
	why = front_track(skb, &asked, p);
	return why ? -why : 1;
}
