/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets: the address that a call names, in either family, and what is known about who calls. */
#pragma once
#include <bpf/bpf_core_read.h>

#define SOCK_ALLOW 1
#define SOCK_REFUSE 0
#define SOCK_EPERM 1
#define SOCK_EADDRINUSE 98
#define SOCK_ECONNREFUSED 111

static __always_inline void sock_read4(const struct bpf_sock_addr *ctx, struct sockaddr_key *k)
{
	addr_from4(&k->addr, ctx->user_ip4);
	k->port = ctx->user_port;
	k->proto = ctx->protocol;
	k->pad = 0;
}

static __always_inline void sock_read6(const struct bpf_sock_addr *ctx, struct sockaddr_key *k)
{
	k->addr.w[0] = ctx->user_ip6[0];
	k->addr.w[1] = ctx->user_ip6[1];
	k->addr.w[2] = ctx->user_ip6[2];
	k->addr.w[3] = ctx->user_ip6[3];
	k->port = ctx->user_port;
	k->proto = ctx->protocol;
	k->pad = 0;
}

static __always_inline void sock_write4(struct bpf_sock_addr *ctx, const struct sockaddr_key *k)
{
	ctx->user_ip4 = k->addr.w[3];
	ctx->user_port = k->port;
}

static __always_inline void sock_write6(struct bpf_sock_addr *ctx, const struct sockaddr_key *k)
{
	ctx->user_ip6[0] = k->addr.w[0];
	ctx->user_ip6[1] = k->addr.w[1];
	ctx->user_ip6[2] = k->addr.w[2];
	ctx->user_ip6[3] = k->addr.w[3];
	ctx->user_port = k->port;
}

static __always_inline bool sock_same(const struct sockaddr_key *a, const struct sockaddr_key *b)
{
	return addr_equal(&a->addr, &b->addr) && a->port == b->port && a->proto == b->proto;
}

/* The kernel takes 0.0.0.0 and :: for loopback as well. */
static __always_inline bool sock_to_loopback(const struct addr *a)
{
	if (addr_is4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !a->w[3];
	return !(a->w[0] | a->w[1] | a->w[2]) && (a->w[3] & ~bpf_htonl(1)) == 0;
}

/* The service a call names. Loopback is an address of whoever calls: only in the node's own namespace does the node answer there. */
static __always_inline struct service *sock_service(struct bpf_sock_addr *ctx, const struct sockaddr_key *at)
{
	bool here = sock_to_loopback(&at->addr);
	struct service *svc;

	if (here && bpf_get_netns_cookie(ctx) != cfg_netns_cookie)
		return NULL;
	svc = lb_find(at, here);
	if (svc && here && !(svc->flags & (SERVICE_NODE_PORT | SERVICE_HOST_PORT)))
		return NULL;
	return svc;
}

/* The address the caller has in the family of the service, by its network namespace; zero if that is not known, or no matter here. */
static __always_inline void sock_client(struct bpf_sock_addr *ctx, const struct service *svc, const struct addr *front,
					struct addr *client)
{
	__u64 cookie;
	struct netns *ns;

	__builtin_memset(client, 0, sizeof(*client));
	if (!(svc->flags & (SERVICE_AFFINITY | SERVICE_SOURCES)) && svc->algorithm != ALGORITHM_SH)
		return;
	cookie = bpf_get_netns_cookie(ctx);
	ns = bpf_map_lookup_elem(&strait_netns, &cookie);
	if (ns)
		*client = addr_is4(front) ? ns->addr4 : ns->addr6;
}

/* The kernel's own view of a TCP socket, as far as it matters. */
struct sock___strait {
	__u8 sk_kern_sock : 1;
} __attribute__((preserve_access_index));

/* A socket of the kernel itself (a mount's, a subflow of MPTCP) ends without being released: it must not be counted. */
static __always_inline bool sock_is_kernels(struct bpf_sock *sk)
{
	struct sock___strait *tcp = (void *)bpf_skc_to_tcp_sock(sk);

	return tcp && BPF_CORE_READ_BITFIELD(tcp, sk_kern_sock);
}
