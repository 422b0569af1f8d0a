/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup: socket load balancing. The address is translated when the socket names it; packets never see the service.
 *
 * IPv4 and IPv6 hooks differ only in how they read and write the address. An IPv6 socket with a v4-mapped address comes by the
 * connect6 hook, but its unconnected sends come by sendmsg4: the key form is the same for both, so replies are found either way.
 */

#define SOCK_ALLOW 1
#define SOCK_REFUSE 0
#define SOCK_STREAM_TYPE 1 /* SOCK_STREAM */
#define SOCK_DGRAM_TYPE 2
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

static __always_inline int sock_refuse(void)
{
	bpf_set_retval(-SOCK_ECONNREFUSED);
	return SOCK_REFUSE;
}

/* connect: 1 with at replaced, 0 nothing to do, -1 refused. The socket remembers what it asked for, or forgets it. */
static __noinline int sock_connect(struct bpf_sock_addr *ctx, struct sockaddr_key *at)
{
	struct sk_peer *peer, names = { .service = *at };
	struct lb_client client = { .hash = bpf_get_prandom_u32() };
	struct lb_choice choice;
	struct service *svc = NULL;

	if (at->proto == IPPROTO_TCP || at->proto == IPPROTO_UDP)
		svc = lb_find(at, false);
	if (!ctx->sk)
		return 0;
	if (!svc) {
		bpf_sk_storage_delete(&strait_sk, ctx->sk);
		return 0;
	}
	if (!lb_select(svc, at, &client, &choice))
		return -1;
	names.backend = choice.to;
	peer = bpf_sk_storage_get(&strait_sk, ctx->sk, &names, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer)
		*peer = names;
	*at = names.backend;
	return 1;
}

/* sendmsg of an unconnected socket: one socket stays with one backend as long as the service's backends stay. */
static __noinline int sock_sendmsg(struct bpf_sock_addr *ctx, struct sockaddr_key *at)
{
	struct dgram_key key = { .cookie = bpf_get_socket_cookie(ctx) };
	struct lb_client client = { .hash = (key.cookie * 0x9e3779b97f4a7c15ULL) >> 32 };
	struct lb_choice choice;
	struct sockaddr_key *known;
	struct service *svc = lb_find(at, false);

	if (!svc)
		return 0;
	if (!lb_select(svc, at, &client, &choice))
		return -1;
	key.backend = choice.to;
	known = bpf_map_lookup_elem(&strait_dgram, &key);
	if (!known || !sock_same(known, at))
		bpf_map_update_elem(&strait_dgram, &key, at, BPF_ANY);
	*at = key.backend;
	return 1;
}

/* recvmsg and getpeername: the service the socket knows instead of the backend that answers. */
static __noinline int sock_reverse(struct bpf_sock_addr *ctx, struct sockaddr_key *at)
{
	struct dgram_key key = {};
	struct sockaddr_key *front;
	struct sk_peer *peer = ctx->sk ? bpf_sk_storage_get(&strait_sk, ctx->sk, 0, 0) : NULL;

	if (peer && sock_same(&peer->backend, at)) {
		*at = peer->service;
		return 1;
	}
	if (at->proto != IPPROTO_UDP)
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	key.backend = *at;
	front = bpf_map_lookup_elem(&strait_dgram, &key);
	if (!front)
		return 0;
	*at = *front;
	return 1;
}

#define SOCK_FORWARD(name, section, family, step) \
	SEC(section) \
	int name(struct bpf_sock_addr *ctx) \
	{ \
		struct sockaddr_key at; \
		int rc; \
\
		sock_read##family(ctx, &at); \
		rc = step(ctx, &at); \
		if (rc < 0) \
			return sock_refuse(); \
		if (rc > 0) \
			sock_write##family(ctx, &at); \
		return SOCK_ALLOW; \
	}

#define SOCK_REVERSE(name, section, family) \
	SEC(section) \
	int name(struct bpf_sock_addr *ctx) \
	{ \
		struct sockaddr_key at; \
\
		sock_read##family(ctx, &at); \
		if (sock_reverse(ctx, &at) > 0) \
			sock_write##family(ctx, &at); \
		return SOCK_ALLOW; \
	}

SOCK_FORWARD(strait_connect4, "cgroup/connect4", 4, sock_connect)
SOCK_FORWARD(strait_connect6, "cgroup/connect6", 6, sock_connect)
SOCK_FORWARD(strait_sendmsg4, "cgroup/sendmsg4", 4, sock_sendmsg)
SOCK_FORWARD(strait_sendmsg6, "cgroup/sendmsg6", 6, sock_sendmsg)
SOCK_REVERSE(strait_recvmsg4, "cgroup/recvmsg4", 4)
SOCK_REVERSE(strait_recvmsg6, "cgroup/recvmsg6", 6)
SOCK_REVERSE(strait_peer4, "cgroup/getpeername4", 4)
SOCK_REVERSE(strait_peer6, "cgroup/getpeername6", 6)

/* A port of the node port range is nobody's in the node's own network namespace: a socket there would hide the service. */
SEC("cgroup/post_bind4")
int strait_bind4(struct bpf_sock *ctx)
{
	return SOCK_ALLOW;
}

SEC("cgroup/post_bind6")
int strait_bind6(struct bpf_sock *ctx)
{
	return SOCK_ALLOW;
}

/* A socket ends: its connection is no load of the backend any more. */
SEC("cgroup/sock_release")
int strait_release(struct bpf_sock *ctx)
{
	return SOCK_ALLOW;
}
