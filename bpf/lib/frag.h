/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: the first one leaves its ports for those that follow. */
#pragma once

/* 1: the packet's ports are known. Call it only for packets that will be carried, so that strangers cannot fill the table. */
__noinline int frag_ports(struct packet *p)
{
	struct frag_entry *known, ports;
	struct frag_key key = {};

	if (!p)
		return 0;
	key.src = p->src;
	key.dst = p->dst;
	key.id = p->frag_id;
	key.proto = p->proto;
	ports.sport = p->sport;
	ports.dport = p->dport;
	if (!(p->flags & PACKET_LATER)) {
		bpf_map_update_elem(&strait_frag, &key, &ports, BPF_ANY);
		return 1;
	}
	known = bpf_map_lookup_elem(&strait_frag, &key);
	if (!known)
		return 0;
	p->sport = known->sport;
	p->dport = known->dport;
	return 1;
}

static __always_inline bool frag_resolve(struct packet *p)
{
	return !(p->flags & PACKET_FRAGMENT) || frag_ports(p);
}
