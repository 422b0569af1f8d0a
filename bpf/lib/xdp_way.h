/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way out of XDP: back by the device the packet came from, to a neighbour that is known. */
#pragma once

static __always_inline void xdp_fib_addr(__be32 *to, const struct addr *a)
{
	if (addr_is4(a))
		to[0] = a->w[3];
	else
		__builtin_memcpy(to, a->w, sizeof(a->w));
}

/* 1: the kernel knows route and neighbour of dst, by the device the packet came from and within its MTU. hop: it must be on the link. */
static __noinline int xdp_fib(struct xdp_md *ctx, struct bpf_fib_lookup *f, const struct packet *seen, const struct addr *dst,
			      bool hop)
{
	__u32 in = ctx->ingress_ifindex;
	__u8 family = addr_is4(dst) ? ADDR_FAMILY_4 : ADDR_FAMILY_6;
	__be32 last;

	__builtin_memset(f, 0, sizeof(*f));
	f->family = family;
	f->l4_protocol = seen->proto;
	f->sport = seen->sport;
	f->dport = seen->dport;
	f->tot_len = seen->end - L3_OFF;
	f->ifindex = in;
	if (!hop || addr_is4(dst) == addr_is4(&seen->src))
		xdp_fib_addr(f->ipv6_src, &seen->src);
	xdp_fib_addr(f->ipv6_dst, dst);
	last = f->ipv6_dst[family == ADDR_FAMILY_4 ? 0 : 3];
	if (bpf_fib_lookup(ctx, f, sizeof(*f), 0) != BPF_FIB_LKUP_RET_SUCCESS || f->ifindex != in)
		return 0;
	return !hop || (f->family == family && f->ipv6_dst[family == ADDR_FAMILY_4 ? 0 : 3] == last);
}

/* Whether a packet that is to look like seen can go from here; the neighbour is put into f. The same way as forward() takes, or none. */
static __always_inline bool xdp_way(struct xdp_md *ctx, const struct packet *seen, const struct remote *row,
				    struct bpf_fib_lookup *f)
{
	__u32 mtu = cfg_pod_mtu, in = ctx->ingress_ifindex;
	struct device *dev;

	if (row && row->flags & REMOTE_HOST)
		return false;
	if (row && row->flags & REMOTE_POD) {
		if (row->flags & REMOTE_TUNNEL || row->ifindex != in || !xdp_fib(ctx, f, seen, &row->node, true))
			return false;
	} else {
		if (!xdp_fib(ctx, f, seen, &seen->dst, false))
			return false;
		dev = bpf_map_lookup_elem(&strait_device, &in);
		mtu = dev ? dev->mtu : 0;
	}
	return !mtu || seen->end - L3_OFF <= mtu;
}

/* The frame was meant for this device, whose address is the one it would send with. Else it was only overheard. */
static __always_inline bool xdp_ours(struct xdp_md *ctx, const struct bpf_fib_lookup *f)
{
	struct ethhdr *eth = xdp_at(ctx, 0, sizeof(*eth));

	return eth && !__builtin_memcmp(eth->h_dest, f->smac, ETH_ALEN);
}

static __always_inline int xdp_send(struct xdp_md *ctx, const struct bpf_fib_lookup *f, enum reason why)
{
	struct ethhdr *eth = xdp_at(ctx, 0, sizeof(*eth));

	if (!eth)
		return XDP_ABORTED;
	__builtin_memcpy(eth->h_dest, f->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, f->smac, ETH_ALEN);
	count(why, ctx->data_end - ctx->data);
	return XDP_TX;
}
