/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: which backend of a set a new connection gets. One function per way of choosing; each fills the choice and gives 1, or
 * gives 0 if it found none. All are told in docs/load-balancing.md.
 */
#pragma once

#define LB_TRIES 4	/* a slot may be empty for a moment while a backend leaves; the neighbour is as good */
#define LB_COMPARE 1024 /* slots that are looked at in a search; of a larger set, a random part */

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

/* Takes the backend if it is there for new connections. to.proto is set already. */
static __always_inline int lb_take(__u32 backend, struct lb_choice *c)
{
	struct backend *b = bpf_map_lookup_elem(&strait_backend, &backend);

	if (!b || b->proto != c->to.proto || b->flags & BACKEND_LEAVING)
		return 0;
	c->to.addr = b->addr;
	c->to.port = b->port;
	c->to.pad = 0;
	c->backend = backend;
	c->generation = b->generation;
	return 1;
}

/* The backend of slot at % count, or of one of the next. */
static __noinline int lb_pick_slot(__u32 set, __u32 count, __u32 at, struct lb_choice *c)
{
	struct slot_key key = { .set = set };

	for (int i = 0; i < LB_TRIES; i++) {
		struct slot *slot;

		key.slot = (at + i) % count;
		slot = bpf_map_lookup_elem(&strait_slot, &key);
		if (slot && lb_take(slot->backend, c))
			return 1;
	}
	return 0;
}

/* The set's table was made so that few connections move when a backend comes or goes, and that every node has the same. */
static __noinline int lb_pick_maglev(__u32 set, __u32 hash, struct lb_choice *c)
{
	void *table = bpf_map_lookup_elem(&strait_maglev, &set);
	__u32 *backend;

	if (!table || !cfg_maglev_size)
		return 0;
	hash %= cfg_maglev_size;
	backend = bpf_map_lookup_elem(table, &hash);
	return backend && lb_take(*backend, c);
}

/* A search for the backend with the lowest load / weight, compared by cross-multiplication: both are 32 bits. Among equals chance
 * decides, in proportion to weights.
 */
struct lb_least {
	__u32 set;
	__u32 count;
	__u32 start;
	enum algorithm algorithm;
	__u64 load; /* of the best so far */
	__u32 weight;
	__u32 equals; /* sum of the weights of those as good as that; 0: none found */
	struct lb_choice *choice;
};

static long lb_least_step(__u32 i, struct lb_least *l)
{
	struct slot_key key = { .set = l->set, .slot = (l->start + i) % l->count };
	struct slot *slot = bpf_map_lookup_elem(&strait_slot, &key);
	__u64 load, mine, best;
	__u32 weight;

	if (!slot)
		return 0;
	weight = slot->weight ? slot->weight : 1;
	load = load_of(slot->backend);
	if (l->algorithm == ALGORITHM_SED || (l->algorithm == ALGORITHM_NQ && load))
		load++; /* with the connection that is to be placed */
	mine = load * l->weight;
	best = l->load * weight;
	if (l->equals && mine > best)
		return 0;
	if (l->equals && mine == best && bpf_get_prandom_u32() % (l->equals + weight) >= weight) {
		l->equals += weight;
		return 0;
	}
	if (!lb_take(slot->backend, l->choice))
		return 0;
	l->equals = mine == best ? l->equals + weight : weight;
	l->load = load;
	l->weight = weight;
	return 0;
}

/* What a step reads of an earlier one begins as 0, but the verifier must not know: before Linux 6.7 (commit ab5cfac139ab) it walks
 * through a step once, as it is in the first round, and takes out what only later rounds do.
 */
static __noinline int lb_pick_least(__u32 set, __u32 count, enum algorithm algorithm, struct lb_choice *c)
{
	__u32 chance = bpf_get_prandom_u32(), same = chance, zero;
	struct lb_least l = {
		.set = set,
		.count = count,
		.start = chance % count,
		.algorithm = algorithm,
		.choice = c,
	};

	asm volatile("" : "+r"(same));
	zero = chance ^ same;
	l.load = zero;
	l.weight = zero;
	l.equals = zero;

	bpf_loop(count < LB_COMPARE ? count : LB_COMPARE, lb_least_step, &l, 0);
	return l.equals != 0;
}

/* Two different slots by chance, and of these the one with the lower load / weight. */
static __noinline int lb_pick_p2c(__u32 set, __u32 count, struct lb_choice *c)
{
	struct slot_key key = { .set = set, .slot = bpf_get_prandom_u32() % count };
	__u32 weight_a, weight_b, chance;
	struct slot *a, *b;
	__u64 load_a, load_b;

	if (count < 2)
		return 0;
	a = bpf_map_lookup_elem(&strait_slot, &key);
	key.slot = (key.slot + 1 + bpf_get_prandom_u32() % (count - 1)) % count;
	b = bpf_map_lookup_elem(&strait_slot, &key);
	if (!a || !b)
		return 0;
	weight_a = a->weight ? a->weight : 1;
	weight_b = b->weight ? b->weight : 1;
	load_a = load_of(a->backend) * weight_b;
	load_b = load_of(b->backend) * weight_a;
	chance = bpf_get_prandom_u32() % (weight_a + weight_b);
	if (load_a < load_b || (load_a == load_b && chance < weight_a))
		return lb_take(a->backend, c) || lb_take(b->backend, c);
	return lb_take(b->backend, c) || lb_take(a->backend, c);
}

/* A search for a backend in a set. */
struct lb_member {
	__u32 set;
	__u32 backend;
	__u32 slot;
	__u32 found;
};

static long lb_member_step(__u32 i, struct lb_member *m)
{
	struct slot_key key = { .set = m->set, .slot = i };
	struct slot *slot = bpf_map_lookup_elem(&strait_slot, &key);

	if (!slot || slot->backend != m->backend)
		return 0;
	m->slot = i;
	m->found = 1;
	return 1;
}

/* Whether a set has a backend; hint is a slot where it may be, and is set right. */
static __noinline int lb_has(__u32 set, __u32 count, __u32 backend, __u32 *hint)
{
	struct lb_member m = { .set = set, .backend = backend };
	struct slot_key key = { .set = set, .slot = *hint };
	struct slot *slot;

	if (key.slot < count) {
		slot = bpf_map_lookup_elem(&strait_slot, &key);
		if (slot && slot->backend == backend)
			return 1;
	}
	bpf_loop(count < LB_COMPARE ? count : LB_COMPARE, lb_member_step, &m, 0);
	*hint = m.slot;
	return m.found;
}
