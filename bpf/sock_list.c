/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* iter: the sockets that the socket programs have connected to a backend, as a struct sock_row each. An object of its own: userspace runs
 * it when a backend is gone, and no packet and no connect waits for it.
 *
 * It walks strait_sk, which costs what the sockets in it cost, in all network namespaces at once. iter/tcp, iter/udp and sock_diag walk
 * the kernel's tables for each namespace: 3 ms for an empty one.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>

#include "lib/types.h"

#define RELOCATED __attribute__((preserve_access_index)) /* only what is read; offsets are those of the running kernel */
#define SOCK_AF_INET6 10
#define SOCK_CLOSED 7 /* TCP_CLOSE; of UDP: not connected */

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} RELOCATED;

struct net {
	__u64 net_cookie;
} RELOCATED;

typedef struct {
	struct net *net;
} RELOCATED possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} RELOCATED;

struct sock {
	struct sock_common __sk_common;
} RELOCATED;

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
} RELOCATED;

/* A socket as sock_diag names it: IPv4 addresses are in the first word. */
struct sock_row {
	__u64 netns; /* cookie */
	__u64 cookie;
	__be32 local[4];
	__be32 remote[4];
	__be16 local_port;
	__be16 remote_port;
	__u32 ifindex; /* bound to */
	__u32 family;
	struct sockaddr_key backend; /* that the programs chose */
};

const struct sock_row *unused_sock_row __attribute__((unused)); /* keeps the type in the object */

SEC("iter/bpf_sk_storage_map")
int strait_list(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct sk_peer *peer = ctx->value;
	struct sock *sk = ctx->sk;
	struct sock_common *at;
	struct sock_row row = {};

	if (!peer || !sk)
		return 0;
	at = &sk->__sk_common;
	if (at->skc_state == SOCK_CLOSED) /* its owner has not closed it yet */
		return 0;
	row.netns = at->skc_net.net->net_cookie;
	row.cookie = bpf_get_socket_cookie(sk);
	row.family = at->skc_family;
	row.ifindex = at->skc_bound_dev_if;
	row.local_port = __builtin_bswap16(at->skc_num);
	row.remote_port = at->skc_dport;
	row.backend = peer->backend;
	if (row.family == SOCK_AF_INET6) {
		__builtin_memcpy(row.local, &at->skc_v6_rcv_saddr, sizeof(row.local));
		__builtin_memcpy(row.remote, &at->skc_v6_daddr, sizeof(row.remote));
	} else {
		row.local[0] = at->skc_rcv_saddr;
		row.remote[0] = at->skc_daddr;
	}
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row)); /* what does not fit is asked for again */
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
