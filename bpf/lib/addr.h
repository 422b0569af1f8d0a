/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses: 16 bytes, v4-mapped, network order. */
#pragma once

#define ADDR_MAPPED bpf_htonl(0xffff) /* third word of a v4-mapped address */

static __always_inline void addr_from4(struct addr *a, __be32 ip)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = ADDR_MAPPED;
	a->w[3] = ip;
}

static __always_inline bool addr_is4(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == ADDR_MAPPED;
}

static __always_inline bool addr_is_zero(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

/* Multicast and IPv4's limited broadcast (RFC 1112, RFC 4291 2.7). */
static __always_inline bool addr_is_multicast(const struct addr *a, bool v6)
{
	if (v6)
		return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	return (a->w[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || a->w[3] == ~0U;
}

/* Multicast that never leaves a link (RFC 5771 4, RFC 4291 2.7): what a stack does about itself, such as MLD reports. */
static __always_inline bool addr_is_link_multicast(const struct addr *a, bool v6)
{
	if (v6)
		return (a->w[0] & bpf_htonl(0xff0f0000)) == bpf_htonl(0xff020000);
	return (a->w[3] & bpf_htonl(0xffffff00)) == bpf_htonl(0xe0000000);
}

/* 169.254.1.1, every pod's next hop, and all of fe80::/10, where the other one is: neither is anybody beyond the link. */
static __always_inline bool addr_is_gateway(const struct addr *a, bool v6)
{
	if (v6)
		return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
	return a->w[3] == bpf_htonl(0xa9fe0101);
}

static __always_inline void addr_gateway(struct addr *a, bool v6)
{
	if (v6)
		*a = (struct addr){ { bpf_htonl(0xfe800000), 0, 0, bpf_htonl(1) } };
	else
		addr_from4(a, bpf_htonl(0xa9fe0101));
}

static __always_inline __u64 addr_half(const struct addr *a, int half)
{
	return (__u64)bpf_ntohl(a->w[2 * half]) << 32 | bpf_ntohl(a->w[2 * half + 1]);
}

/* The order of bytes.Compare. */
static __always_inline bool addr_less(const struct addr *a, const struct addr *b)
{
	__u64 x = addr_half(a, 0), y = addr_half(b, 0);

	return x != y ? x < y : addr_half(a, 1) < addr_half(b, 1);
}
