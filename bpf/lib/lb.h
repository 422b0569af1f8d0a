/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: from a frontend to one of its backends. */
#pragma once

#define LB_TRIES 4 /* a slot may be empty for a moment while a backend leaves; the neighbour is as good */

/* Who asks for a backend, and how the choice can be told from that of others. */
struct lb_client {
	struct addr addr; /* zero: not known */
	__u32 hash;	  /* of the connection; the same on every node for the same packet */
	bool outer;	  /* from outside the cluster */
};

/* The backend that was chosen. */
struct lb_choice {
	struct sockaddr_key to;
	__u32 backend;
	__u32 generation;
};

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
	if (svc->flags & SERVICE_NODE_PORT)
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

/* Chooses a backend for a new connection. 1: chosen, 0: the service has none for this client. */
static __always_inline int lb_select(struct service *svc, const struct sockaddr_key *front, const struct lb_client *client,
				     struct lb_choice *choice)
{
	__u32 count = client->outer ? svc->outer_count : svc->count;
	struct slot_key key = { .set = client->outer ? svc->outer_set : svc->set };

	if (!count)
		return 0;
	for (int i = 0; i < LB_TRIES; i++) {
		struct backend *b = NULL;
		struct slot *slot;

		key.slot = (client->hash + i) % count;
		slot = bpf_map_lookup_elem(&strait_slot, &key);
		if (slot)
			b = bpf_map_lookup_elem(&strait_backend, &slot->backend);
		if (!b || b->proto != front->proto)
			continue;
		choice->to.addr = b->addr;
		choice->to.port = b->port;
		choice->to.proto = front->proto;
		choice->to.pad = 0;
		choice->backend = slot->backend;
		choice->generation = b->generation;
		return 1;
	}
	return 0;
}
