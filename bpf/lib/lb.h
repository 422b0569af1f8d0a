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

static __always_inline struct service *lb_service(const struct sockaddr_key *front)
{
	return bpf_map_lookup_elem(&strait_service, front);
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
