/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: from a frontend to one of its backends. Sockets and packets ask here, so that they get the same answers. */
#pragma once
#include "load.h"
#include "lb_pick.h"
#include "affinity.h"

/* 0.0.0.0 or ::, the address of rows that answer on many. */
static __always_inline bool lb_is_any(const struct addr *a)
{
	return addr_is_zero(a) || (addr_is4(a) && !a->w[3]);
}

/* The row of a node port or host port, if the destination is one of the addresses it stands for. */
static __noinline struct service *lb_wildcard(const struct sockaddr_key *front, bool here)
{
	struct sockaddr_key any = *front;
	struct service *svc;
	__u32 owner, at = REMOTE_HOST;

	if (addr_is4(&front->addr))
		addr_from4(&any.addr, 0);
	else
		__builtin_memset(&any.addr, 0, sizeof(any.addr));
	svc = bpf_map_lookup_elem(&strait_service, &any);
	if (!svc || here)
		return svc;
	/* Another node's own backends are that node's to choose. */
	if (svc->flags & SERVICE_NODE_PORT && !(svc->flags & SERVICE_OUTER_LOCAL))
		at |= REMOTE_NODE;
	owner = ipcache_flags(&front->addr);
	return owner & at ? svc : NULL;
}

/* The service at an address. here: the address is this node's, though the ipcache does not know it (loopback). */
static __always_inline struct service *lb_find(const struct sockaddr_key *front, bool here)
{
	struct service *svc = NULL;

	if (!lb_is_any(&front->addr))
		svc = bpf_map_lookup_elem(&strait_service, front);
	return svc ? svc : lb_wildcard(front, here);
}

/* Whether the service's source ranges let the client in. A client that nobody knows is in no range. */
static __always_inline bool lb_admits(const struct service *svc, const struct addr *client)
{
	struct source_key key = { .prefix_len = 160, .service = svc->id };

	if (!(svc->flags & SERVICE_SOURCES))
		return true;
	key.addr = *client;
	return bpf_map_lookup_elem(&strait_source, &key) != NULL;
}

/* By an address alone: the same for all its connections. */
static __always_inline __u32 lb_hash(const struct addr *a)
{
	__u64 h = ((__u64)a->w[0] << 32 | a->w[1]) * 0x9e3779b97f4a7c15ULL;

	h ^= (__u64)a->w[2] << 32 | a->w[3];
	h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
	h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
	return h >> 32;
}

/* By the service's algorithm. What finds nothing where it looks first, takes a slot by chance. */
static __noinline int lb_pick(struct service *svc, const struct addr *front, const struct lb_client *client,
			      struct lb_choice *choice)
{
	__u32 set = client->outer ? svc->outer_set : svc->set;
	__u32 count = client->outer ? svc->outer_count : svc->count;
	__u32 at = client->hash;

	if (!count)
		return 0;
	switch (svc->algorithm) {
	case ALGORITHM_MAGLEV:
		if (lb_pick_maglev(set, at, choice))
			return 1;
		break;
	case ALGORITHM_RR:
		at = __sync_fetch_and_add(&svc->turn, 1);
		break;
	case ALGORITHM_DH:
		at = lb_hash(front);
		break;
	case ALGORITHM_SH:
		if (!addr_is_zero(&client->addr))
			at = lb_hash(&client->addr);
		break;
	case ALGORITHM_LC:
	case ALGORITHM_SED:
	case ALGORITHM_NQ:
		if (lb_pick_least(set, count, svc->algorithm, choice))
			return 1;
		break;
	case ALGORITHM_P2C:
		if (lb_pick_p2c(set, count, choice))
			return 1;
		break;
	case ALGORITHM_RANDOM:
		break;
	}
	return lb_pick_slot(set, count, at, choice);
}

/* Chooses a backend for a new connection. 1: chosen, 0: the service has none for this client. */
static __noinline int lb_select(struct service *svc, const struct sockaddr_key *front, const struct lb_client *client,
				struct lb_choice *choice)
{
	struct affinity_key key = { .client = client->addr, .set = client->outer ? svc->outer_set : svc->set };
	bool stays = svc->flags & SERVICE_AFFINITY && !addr_is_zero(&client->addr);

	choice->to.proto = front->proto;
	if (stays && affinity_recall(&key, svc->affinity, choice))
		return 1;
	if (!lb_pick(svc, &front->addr, client, choice))
		return 0;
	if (stays)
		affinity_settle(&key, svc->affinity, choice);
	return 1;
}
