/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a packet of a client to the backend of its connection.
 *
 *   (none) --service found--> CT_SERVICE, counted --backend usable--> same backend
 *   backend leaving: TCP and SCTP stay, UDP chooses again; backend gone: TCP is reset, the others choose again
 *   closed --SYN--> chooses again
 */
#pragma once

/* No verdicts of a program. */
#define LB_NO_SERVICE (-2)
#define LB_OUTSIDE (-3)
#define LB_ANSWER (-4)
#define LB_TOO_BIG (-6)
#define LB_FOREIGN (-5) /* answered by somebody who is no backend: it was there before the service */

/* Where a packet goes. */
struct lb_way {
	struct ct_entry *client; /* the client's entry; NULL: the connection is new, lb_settle makes it one */
	struct lb_choice choice;
	__u32 news; /* enum ct_news of the client's entry; of a new connection: the flags it gets */
};

static __always_inline bool lb_has_port(const struct packet *p)
{
	return !(p->flags & PACKET_ERROR) && (packet_has_ports(p->proto) || p->proto == IPPROTO_SCTP);
}

static __noinline void lb_leave(__u32 backend)
{
	struct load *l = bpf_map_lookup_elem(&strait_load, &backend);

	if (l)
		__sync_fetch_and_sub(&l->tracked, 1);
}

static __always_inline void lb_join(__u32 backend)
{
	struct load *l = bpf_map_lookup_elem(&strait_load, &backend);

	if (!l)
		return;
	__sync_fetch_and_add(&l->tracked, 1);
	__sync_fetch_and_add(&l->connections, 1);
}

/* The backend's end of a connection that it answers directly is not seen here. */
static __always_inline bool lb_ended(__u32 flags)
{
	return flags & CT_DSR ? flags & (CT_FIN_LO | CT_FIN_HI | CT_RST) : ct_closed(flags);
}

/* Counts a packet of the client's entry; who closes the connection takes it off its backend. */
static __noinline __u32 lb_count(struct ct_entry *ct, const struct packet *p, __u32 dir)
{
	__u32 was = ct->flags, news = ct_update(ct, p, dir);

	if (was & CT_DSR ? !lb_ended(was) && lb_ended(ct->flags) : news & CT_ENDED) {
		if (was & CT_DSR)
			event_end(p, ct, dir);
		lb_leave(ct->backend);
	}
	return news;
}

/* The client's connection gets a backend; an older one of the same addresses ends. Of two CPUs at once, only one writes. NULL if there
 * is no room. */
static __noinline struct ct_entry *lb_enter(const struct packet *p, const struct ct_key *k, __u32 dir, const struct lb_choice *c,
					    __u32 flags)
{
	struct ct_entry *ct = ct_blank(k);
	__u32 old;

	if (!ct)
		return NULL;
	old = ct->backend;
	if (!__sync_bool_compare_and_swap(&ct->backend, old, c->backend))
		return ct;
	if (ct->flags & CT_SERVICE && !lb_ended(ct->flags)) {
		event_end(p, ct, dir);
		lb_leave(old);
	}
	ct_restart(ct, dir);
	ct->backend = c->backend;
	ct->backend_gen = c->generation;
	ct->tick = ct_tick();
	ct->flags = CT_SERVICE | flags | (dir ? CT_HI_BEGAN : 0);
	lb_join(c->backend);
	return ct;
}

/* Why a client may not use a service, 0 if it may. */
static __always_inline int lb_refusal(const struct service *svc, const struct lb_client *client)
{
	if (client->outer && svc->flags & SERVICE_CLUSTER_IP)
		return REASON_SERVICE_INTERNAL;
	if (!lb_admits(svc, &client->addr))
		return REASON_SOURCE_RANGE;
	if (client->outer && svc->flags & SERVICE_OUTER_LOCAL && !svc->outer_count)
		return REASON_NO_LOCAL_BACKEND;
	return 0;
}

/* The backend of a known connection, nothing counted: 0, REASON_BACKEND_GONE, or LB_NO_SERVICE if it needs another. */
static __always_inline int lb_usable(const struct packet *p, struct ct_entry *ct, struct lb_way *way)
{
	bool begins = packet_begins_tcp(p);
	__u32 id = ct->backend;
	struct backend *b;

	if (begins && (lb_ended(ct->flags) || ct_idle(ct) > ct_idle_limit(ct->flags, p->proto)))
		return LB_NO_SERVICE;
	b = bpf_map_lookup_elem(&strait_backend, &id);
	if (!b || b->generation != ct->backend_gen)
		return p->proto == IPPROTO_TCP && !begins ? REASON_BACKEND_GONE : LB_NO_SERVICE;
	if (p->proto == IPPROTO_UDP && b->flags & BACKEND_LEAVING)
		return LB_NO_SERVICE;
	if (!begins && (ct->flags & (CT_DSR | CT_REPLIED)) == CT_DSR) /* only who has been answered goes on */
		__sync_fetch_and_or((__u32 *)&ct->flags, CT_REPLIED);
	way->client = ct;
	way->choice.to.addr = b->addr;
	way->choice.to.port = b->port;
	return 0;
}

static __always_inline int lb_known(const struct packet *p, struct ct_entry *ct, __u32 dir, struct lb_way *way)
{
	int rc = lb_usable(p, ct, way);

	if (!rc)
		way->news = lb_count(ct, p, dir);
	return rc;
}

/* The backend of the packet's own entry. LB_NO_SERVICE: it has none, or needs another. Else as lb_connection. */
static __noinline int lb_established(struct __sk_buff *skb, const struct packet *p, struct lb_way *way)
{
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;
	int why;

	ct = ct_find(p, &key, &dir);
	if (!ct)
		return LB_NO_SERVICE;
	if (ct_turned(ct, dir)) {
		why = policy_known(skb, p, ct, dir);
		if (why)
			return why;
		ct_update(ct, p, dir);
		way->client = ct;
		return LB_ANSWER;
	}
	if (ct->flags & CT_SERVICE && dir == !!(ct->flags & CT_HI_BEGAN))
		return lb_known(p, ct, dir, way);
	if (ct->flags & CT_REPLIED && !packet_begins_tcp(p))
		return LB_FOREIGN;
	return LB_NO_SERVICE;
}

/* Whether a client is outside: of the cluster, or of this node, where the node's own backends are what it has asked for. */
static __always_inline bool lb_outer(const struct service *svc, const struct addr *client)
{
	__u32 owner;

	if (endpoint_lookup(client))
		return false;
	owner = ipcache_owner(client);
	if (svc->flags & SERVICE_OUTER_LOCAL)
		return !(owner & REMOTE_HOST);
	return !(owner & (REMOTE_HOST | REMOTE_NODE | REMOTE_POD));
}

/* Whether another node of the cluster has the backend, so that it can answer in our place. */
static __always_inline bool lb_elsewhere(const struct addr *backend)
{
	return !endpoint_lookup(backend) && ipcache_owner(backend) & (REMOTE_NODE | REMOTE_POD);
}

/* Chooses a backend for a connection that has none. As lb_connection. */
static __noinline int lb_begin(const struct packet *p, struct lb_way *way)
{
	struct sockaddr_key front = { .addr = p->dst, .port = p->dport, .proto = p->proto };
	struct lb_client client = { .addr = p->src, .hash = nat_hash(p) };
	struct service *svc = lb_find(&front, false);
	int why;

	if (!svc)
		return LB_NO_SERVICE;
	client.outer = lb_outer(svc, &p->src);
	why = lb_refusal(svc, &client);
	if (why)
		return why;
	if (!lb_select(svc, &front, &client, &way->choice))
		return REASON_REFUSED;
	way->news = client.outer && svc->flags & SERVICE_DSR && lb_elsewhere(&way->choice.to.addr) ? CT_DSR : 0;
	if (p->proto == IPPROTO_TCP && !packet_begins_tcp(p))
		way->news |= CT_REPLIED; /* its entry was lost, or is on another node */
	return 0;
}

/* Enters a connection that lb_begin has chosen a backend for. 0, or why it cannot. */
static __noinline int lb_settle(const struct packet *p, struct lb_way *way)
{
	struct ct_key key;
	__u32 dir;

	if (way->client)
		return 0;
	dir = ct_key_from(&key, p);
	way->client = lb_enter(p, &key, dir, &way->choice, way->news);
	if (!way->client)
		return REASON_CT_INSERT;
	lb_count(way->client, p, dir);
	way->news = CT_LATER;
	return 0;
}

/* The port of a packet that is in pieces cannot be changed where a checksum over all of it covers the port. */
static __always_inline bool lb_stuck(const struct packet *p, const struct lb_way *way)
{
	return p->proto == IPPROTO_SCTP && p->flags & PACKET_FRAGMENT && p->dport != way->choice.to.port;
}

/* The backend of a packet's connection. 0: *way is filled; LB_NO_SERVICE: the packet is not to a service of ours; LB_ANSWER: it comes
 * from the backend, whose entry is way->client, and is counted; else why it cannot be carried. */
static __always_inline int lb_connection(struct __sk_buff *skb, const struct packet *p, struct lb_way *way)
{
	int rc;

	if (!lb_has_port(p))
		return LB_NO_SERVICE;
	rc = lb_established(skb, p, way);
	if (!rc && lb_stuck(p, way))
		return REASON_SCTP_PORT;
	if (rc != LB_NO_SERVICE)
		return rc == LB_FOREIGN ? LB_NO_SERVICE : rc;
	if (cfg_services != SERVICE_MODE_ON)
		return LB_NO_SERVICE;
	return lb_begin(p, way);
}
