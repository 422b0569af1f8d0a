/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections that the node's stack translates, because another proxy serves services or has served them: all their packets go through
 * it. CT_STACK goes before whatever else an entry says.
 */
#pragma once

/* False where Strait has always served: nothing of this is in the programs then. */
#define STACK_SHARES (cfg_services != SERVICE_MODE_ON || cfg_imported)

/* Whether the packet is one of a connection of the stack's: 1, or minus the reason why it may not pass. A connection that begins anew is
 * ours, if we serve. */
static __noinline int stack_holds(struct __sk_buff *skb, const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;
	int why;

	if (p->flags & PACKET_ERROR)
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct || !(ct->flags & CT_STACK) || (cfg_services == SERVICE_MODE_ON && packet_begins_tcp(p)))
		return 0;
	why = policy_known(skb, p, ct, dir);
	if (why)
		return -why;
	ct_update(ct, p, dir);
	return 1;
}

/* Enters a connection to a service, or makes an older entry its own. NULL if there is no room. */
static __noinline struct ct_entry *stack_enter(const struct ct_key *key, __u32 dir)
{
	struct ct_entry *ct = ct_blank(key);

	if (!ct)
		return NULL;
	ct_restart(ct, dir);
	ct->tick = ct_tick();
	ct->flags = CT_STACK | CT_VIRTUAL | (dir ? CT_HI_BEGAN : 0);
	return ct;
}

/* Whether another proxy serves a service at an address. */
static __noinline bool stack_served(const struct addr *addr, __be16 port, __u8 proto)
{
	struct sockaddr_key front = { .addr = *addr, .port = port, .proto = proto };

	if (bpf_map_lookup_elem(&strait_service, &front))
		return true;
	return ipcache_flags(addr) & REMOTE_HOST && lb_wildcard(&front, true);
}

/* Whether the packet of a pod is to a service that another proxy serves: then its connection is the stack's. */
static __noinline int stack_serves(const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (cfg_services == SERVICE_MODE_ON || !lb_has_port(p) || !stack_served(&p->dst, p->dport, p->proto))
		return 0;
	ct = ct_find(p, &key, &dir);
	if (ct && ct->flags & CT_SERVICE && !(packet_begins_tcp(p) && ct_closed(ct->flags)))
		return 0; /* ours, and goes on */
	ct = stack_enter(&key, dir);
	if (ct)
		ct_update(ct, p, dir);
	return 1;
}

/* Marks the known connection of a packet that the stack forwards from or to a pod; 1: it is the stack's. Answers to the node itself come
 * to the stack anyway. */
static __noinline int stack_forwards(const struct packet *p)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (p->flags & PACKET_ERROR || ipcache_flags(&p->src) & REMOTE_HOST)
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct)
		return 0;
	if (dir == !!(ct->flags & CT_HI_BEGAN) && !(ct->flags & (CT_STACK | CT_FRONT | CT_SERVICE)))
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_STACK);
	return ct->flags & CT_STACK ? 1 : 0;
}

/* The same for what the stack sends away from this node. 1: it is a pod's, and the connection the stack's; or minus the reason why it may not
 * pass. */
static __noinline int stack_sends(struct __sk_buff *skb, struct packet *p)
{
	int why;

	if (p->flags & (PACKET_ERROR | PACKET_NDP | PACKET_LATER) || !endpoint_lookup(&p->src))
		return 0;
	if (cfg_services == SERVICE_MODE_ON)
		return stack_holds(skb, p);
	why = policy_follow(skb, p);
	if (why)
		return -why;
	p->flags |= PACKET_COUNTED;
	return stack_forwards(p);
}
