/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Load: the connections a backend has now, from this node. A socket counts from connect to release. */
#pragma once

/* 0 as well for a backend whose connections nobody counts (yet). */
static __always_inline __u64 load_of(__u32 backend)
{
	struct load *l = bpf_map_lookup_elem(&strait_load, &backend);

	return l ? (__u64)l->sockets + l->tracked : 0;
}

/* The socket's connection is no load any more. Whoever has the backend's id by now was never loaded with it. */
static __noinline void load_leave(struct sk_use *use)
{
	__u32 backend = use->backend;
	struct backend *b;
	struct load *l;

	if (!backend)
		return;
	use->backend = 0;
	b = bpf_map_lookup_elem(&strait_backend, &backend);
	if (!b || b->generation != use->generation)
		return;
	l = bpf_map_lookup_elem(&strait_load, &backend);
	if (l && l->sockets)
		__sync_fetch_and_add(&l->sockets, -1);
}

static __noinline void load_enter(struct sk_use *use, __u32 backend, __u32 generation)
{
	struct load *l = bpf_map_lookup_elem(&strait_load, &backend);

	if (!l)
		return;
	__sync_fetch_and_add(&l->sockets, 1);
	__sync_fetch_and_add(&l->connections, 1);
	use->backend = backend;
	use->generation = generation;
}
