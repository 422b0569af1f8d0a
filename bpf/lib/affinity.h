/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Session affinity: a client address stays with its backend of a set, whether it comes by socket or by packet. */
#pragma once

static __always_inline __u32 affinity_now(void)
{
	return bpf_ktime_get_coarse_ns() / 1000000000ULL;
}

/* The backend the client has been with, if that was less than timeout seconds ago and the backend is still the same. Userspace
 * takes the row away when a backend leaves this set but not all others.
 */
static __noinline int affinity_recall(const struct affinity_key *k, __u32 timeout, struct lb_choice *c)
{
	struct affinity *a = bpf_map_lookup_elem(&strait_affinity, k);
	__u32 now = affinity_now();

	if (!a || now - a->last > timeout)
		return 0;
	if (!lb_take(a->backend, c) || c->generation != a->generation)
		return 0;
	if (a->last != now)
		a->last = now; /* at most once a second: other CPUs read this line */
	return 1;
}

/* Remembers the choice. Of two connections that a client begins at once, the second follows the first. */
static __noinline void affinity_settle(const struct affinity_key *k, __u32 timeout, struct lb_choice *c)
{
	struct lb_choice first = { .to.proto = c->to.proto };
	struct affinity fresh = {
		.backend = c->backend,
		.generation = c->generation,
		.last = affinity_now(),
	};

	if (!bpf_map_update_elem(&strait_affinity, k, &fresh, BPF_NOEXIST))
		return;
	if (affinity_recall(k, timeout, &first))
		*c = first;
	else
		bpf_map_update_elem(&strait_affinity, k, &fresh, BPF_ANY);
}
