/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup: socket load balancing. The address is translated when the socket names it; packets never see the service.
 *
 * IPv4 and IPv6 hooks differ only in how they read and write the address. An IPv6 socket with a v4-mapped address comes by the
 * connect6 hook, but its unconnected sends come by sendmsg4: the key form is the same for both, so replies are found either way.
 *
 * A step gives 1 with the address replaced, 0 if there is nothing to do, or a negative errno for the caller.
 */
#include "lib/sock.h"

/* The socket is no service's client any more. */
static __always_inline void sock_forget(struct bpf_sock *sk)
{
	struct sk_use *use = bpf_sk_storage_get(&strait_sk_use, sk, 0, 0);

	if (use)
		load_leave(use);
	bpf_sk_storage_delete(&strait_sk, sk);
}

/* The socket is connected to the chosen backend, and no longer to the one before. */
static __always_inline void sock_count(struct bpf_sock *sk, const struct lb_choice *choice)
{
	struct sk_use *use;

	if (sock_is_kernels(sk))
		return;
	use = bpf_sk_storage_get(&strait_sk_use, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!use)
		return;
	load_leave(use);
	load_enter(use, choice->backend, choice->generation);
}

static __noinline int sock_connect(struct bpf_sock_addr *ctx, struct sockaddr_key *at)
{
	struct sk_peer *peer, names = { .service = *at };
	struct lb_client client = { .hash = bpf_get_prandom_u32() };
	struct lb_choice choice;
	struct service *svc = NULL;

	if (!ctx->sk)
		return 0;
	if (cfg_services == SERVICE_MODE_ON && (at->proto == IPPROTO_TCP || at->proto == IPPROTO_UDP))
		svc = sock_service(ctx, at);
	if (!svc) {
		sock_forget(ctx->sk);
		return 0;
	}
	sock_client(ctx, svc, &at->addr, &client.addr);
	if (!lb_admits(svc, &client.addr))
		return -SOCK_EPERM;
	if (!lb_select(svc, at, &client, &choice))
		return -SOCK_ECONNREFUSED;
	names.backend = choice.to;
	peer = bpf_sk_storage_get(&strait_sk, ctx->sk, &names, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer)
		*peer = names;
	sock_count(ctx->sk, &choice);
	*at = names.backend;
	return 1;
}

/* The backend that the socket's datagrams went to before, as long as the service has it. */
static __always_inline int sock_stays(struct sk_use *use, const struct service *svc, struct lb_choice *choice)
{
	__u32 slot = use->sent_slot;

	if (use->sent_set != svc->set || !use->sent_backend)
		return 0;
	if (!lb_take(use->sent_backend, choice) || choice->generation != use->sent_generation)
		return 0;
	if (!lb_has(svc->set, svc->count, use->sent_backend, &slot))
		return 0;
	if (use->sent_slot != slot)
		use->sent_slot = slot;
	return 1;
}

/* A socket that is draining goes on as before or not at all; affinity is the client's, and counts more than the socket's. */
static __always_inline int sock_choose(struct sk_use *use, struct service *svc, const struct sockaddr_key *at,
				       const struct lb_client *client, struct lb_choice *choice)
{
	bool drain = cfg_services == SERVICE_MODE_DRAIN;

	choice->to.proto = at->proto;
	if ((drain || addr_is_zero(&client->addr) || !(svc->flags & SERVICE_AFFINITY)) && use && sock_stays(use, svc, choice))
		return 1;
	if (drain)
		return 0;
	if (!lb_select(svc, at, client, choice))
		return -SOCK_ECONNREFUSED;
	if (use) {
		use->sent_set = svc->set;
		use->sent_backend = choice->backend;
		use->sent_generation = choice->generation;
	}
	return 1;
}

static __noinline int sock_sendmsg(struct bpf_sock_addr *ctx, struct sockaddr_key *at)
{
	struct dgram_key key = { .cookie = bpf_get_socket_cookie(ctx) };
	struct lb_client client = { .hash = (key.cookie * 0x9e3779b97f4a7c15ULL) >> 32 };
	struct lb_choice choice;
	struct sockaddr_key *known;
	struct service *svc = NULL;
	struct sk_use *use;
	int rc;

	if (cfg_services != SERVICE_MODE_OFF && ctx->sk)
		svc = sock_service(ctx, at);
	if (!svc)
		return 0;
	sock_client(ctx, svc, &at->addr, &client.addr);
	if (!lb_admits(svc, &client.addr))
		return -SOCK_EPERM;
	use = bpf_sk_storage_get(&strait_sk_use, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	rc = sock_choose(use, svc, at, &client, &choice);
	if (rc <= 0)
		return rc;
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

/* A socket that sat on a node port in the node's own namespace would hide the service from the node. A port that the kernel is to
 * choose (0) is not looked at: net.ipv4.ip_local_reserved_ports keeps it from choosing one of these.
 */
static __noinline int sock_bind(struct bpf_sock_addr *ctx)
{
	__u16 port = bpf_ntohs(ctx->user_port);

	if (cfg_services == SERVICE_MODE_OFF || !cfg_node_port_min || port < cfg_node_port_min || port > cfg_node_port_max)
		return 0;
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 0;
	if (cfg_guard_mark && ctx->sk && ctx->sk->mark == cfg_guard_mark)
		return 0;
	return bpf_get_netns_cookie(ctx) == cfg_netns_cookie ? -SOCK_EADDRINUSE : 0;
}

/* The call fails with an error, and is counted like the packet it would have made. */
static __always_inline int sock_refuse(int error)
{
	count(error == -SOCK_EPERM ? REASON_SOURCE_RANGE : REASON_REFUSED, 0);
	bpf_set_retval(error);
	return SOCK_REFUSE;
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
			return sock_refuse(rc); \
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

#define SOCK_BIND(name, section) \
	SEC(section) \
	int name(struct bpf_sock_addr *ctx) \
	{ \
		int rc = sock_bind(ctx); \
\
		if (!rc) \
			return SOCK_ALLOW; \
		bpf_set_retval(rc); \
		return SOCK_REFUSE; \
	}

SOCK_FORWARD(strait_connect4, "cgroup/connect4", 4, sock_connect)
SOCK_FORWARD(strait_connect6, "cgroup/connect6", 6, sock_connect)
SOCK_FORWARD(strait_sendmsg4, "cgroup/sendmsg4", 4, sock_sendmsg)
SOCK_FORWARD(strait_sendmsg6, "cgroup/sendmsg6", 6, sock_sendmsg)
SOCK_REVERSE(strait_recvmsg4, "cgroup/recvmsg4", 4)
SOCK_REVERSE(strait_recvmsg6, "cgroup/recvmsg6", 6)
SOCK_REVERSE(strait_peer4, "cgroup/getpeername4", 4)
SOCK_REVERSE(strait_peer6, "cgroup/getpeername6", 6)
SOCK_BIND(strait_bind4, "cgroup/bind4")
SOCK_BIND(strait_bind6, "cgroup/bind6")

/* The last descriptor of a socket was closed: its connection is no load any more. */
SEC("cgroup/sock_release")
int strait_release(struct bpf_sock *ctx)
{
	struct sk_use *use = bpf_sk_storage_get(&strait_sk_use, ctx, 0, 0);

	if (use)
		load_leave(use);
	return SOCK_ALLOW;
}
