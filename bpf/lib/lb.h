/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: from a frontend to one of its backends. */
#pragma once

#define LB_TRIES 4 /* a slot may be empty for a moment while a backend leaves; the neighbour is as good */

static __always_inline struct service *lb_service(const struct sockaddr_key *front)
{
	return bpf_map_lookup_elem(&strait_service, front);
}

/* The backend at the slot that pick falls on; false: there is none. */
static __always_inline bool lb_backend(const struct service *svc, __u8 proto, __u32 pick, struct sockaddr_key *to)
{
	struct slot_key slot = { .service = svc->id };
	__u32 count = svc->count;

	if (!count)
		return false;
	for (int i = 0; i < LB_TRIES; i++) {
		struct backend *b = NULL;
		__u32 *id;

		slot.slot = (pick + i) % count;
		id = bpf_map_lookup_elem(&strait_slot, &slot);
		if (id)
			b = bpf_map_lookup_elem(&strait_backend, id);
		if (!b || b->proto != proto)
			continue;
		to->addr = b->addr;
		to->port = b->port;
		to->proto = proto;
		to->pad = 0;
		return true;
	}
	return false;
}
