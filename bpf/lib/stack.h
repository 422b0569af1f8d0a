/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections that the node's stack translates, because another proxy serves services or has served them: all their packets go through
 * it. CT_STACK goes before whatever else an entry says.
 */
#pragma once

/* False where Strait has always served: nothing of this is in the programs then. */
#define STACK_SHARES (cfg_services != SERVICE_MODE_ON || cfg_imported)

/* Whether the packet is one of a connection of the stack's. A connection that begins anew is ours, if we serve. */
static __noinline int stack_holds(const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (p->flags & PACKET_ERROR)
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct || !(ct->flags & CT_STACK) || (cfg_services == SERVICE_MODE_ON && packet_begins_tcp(p)))
		return 0;
	ct_update(ct, p, dir);
	return 1;
}

/* Enters a connection of the stack's, or makes an older entry its own. NULL if there is no room. */
static __noinline struct ct_entry *stack_enter(const struct ct_key *key, __u32 dir)
{
	struct ct_entry *ct = ct_blank(key);

	if (!ct)
		return NULL;
	ct_restart(ct, dir);
	ct->tick = ct_tick();
	ct->flags = CT_STACK | (dir ? CT_HI_BEGAN : 0);
	return ct;
}

/* Whether the packet of a pod is to a service that another proxy serves: then its connection is the stack's. */
static __noinline int stack_serves(const struct packet *p)
{
	struct sockaddr_key front = { .addr = p->dst, .port = p->dport, .proto = p->proto };
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (cfg_services == SERVICE_MODE_ON || !lb_has_port(p))
		return 0;
	if (!bpf_map_lookup_elem(&strait_service, &front) && !(ipcache_flags(&p->dst) & REMOTE_HOST && lb_wildcard(&front, true)))
		return 0;
	ct = ct_find(p, &key, &dir);
	if (ct && ct->flags & CT_SERVICE && !(packet_begins_tcp(p) && ct_closed(ct->flags)))
		return 0; /* ours, and goes on */
	ct = stack_enter(&key, dir);
	if (ct)
		ct_update(ct, p, dir);
	return 1;
}

/* Marks the connection of a packet that the stack forwards from or to a pod, without counting it. Answers to the node itself come to the stack anyway. */
static __noinline void stack_forwards(const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (p->flags & PACKET_ERROR || ipcache_flags(&p->src) & REMOTE_HOST)
		return;
	ct = ct_find(p, &key, &dir);
	if (!ct)
		stack_enter(&key, dir);
	else if (dir == !!(ct->flags & CT_HI_BEGAN) && !(ct->flags & (CT_STACK | CT_FRONT | CT_SERVICE)))
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_STACK);
}

/* The same for what the stack sends away from this node, counted. 1: it is a pod's, and the connection the stack's. */
static __noinline int stack_sends(const struct packet *p)
{
	if (p->flags & (PACKET_ERROR | PACKET_NDP | PACKET_LATER) || !endpoint_lookup(&p->src))
		return 0;
	if (cfg_services != SERVICE_MODE_ON)
		stack_forwards(p);
	return stack_holds(p);
}
