/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services on the way through a node: a client's packet to its backend, wherever that is, and the answer back. */
#pragma once

static __noinline int forward_tunnel(struct __sk_buff *skb, const struct packet *seen, const struct remote *remote,
				     enum reason why)
{
	return deliver_tunnel(skb, seen, remote, why);
}

static __noinline int forward_neighbour(struct __sk_buff *skb, const struct packet *seen, const struct addr *hop, __u32 ifindex,
					enum reason why)
{
	return deliver_neighbour(skb, seen, hop, ifindex, why);
}

/* Whether the sender is to be told that the packet is larger than the way: what is allowed is left in cb[0]. A tunnel's own packets may be
 * fragmented, so that senders who allow it need not know. */
static __noinline bool forward_exceeds(struct __sk_buff *skb, const struct packet *p, const struct packet *seen, __u32 mtu,
				       bool tunnel)
{
	__u32 extra = seen->flags & PACKET_DSR ? dsr_len(p) : 0;

	if (!mtu || !packet_exceeds(skb, p, mtu - extra) || (tunnel && !(p->flags & PACKET_DF)))
		return false;
	skb->cb[0] = mtu - extra;
	return true;
}

/* Sends a packet on that is to look like seen. LB_TOO_BIG: its sender is to be told. rows: destinations of these kinds are reached as the ipcache says, others as the node's
 * routing table does. */
static __noinline int forward(struct __sk_buff *skb, const struct packet *p, const struct packet *seen, __u32 rows,
			      enum reason why)
{
	struct endpoint *ep = endpoint_lookup(&seen->dst);
	struct remote *remote = NULL;
	__u32 ifindex = 0, mtu = cfg_pod_mtu;
	struct addr hop = {};
	struct device *dev;

	if (!ep)
		remote = ipcache_find(&seen->dst);
	if (remote && remote->flags & REMOTE_HOST)
		return rewrite_like(skb, p, seen) ? drop(skb, p, REASON_REWRITE) : finish(skb, why, TC_ACT_UNSPEC);
	if (p->ttl <= 1)
		return drop(skb, p, REASON_TTL_EXCEEDED);
	if (remote && remote->flags & rows) {
		if (!(remote->flags & REMOTE_TUNNEL) && !remote->ifindex)
			return drop(skb, p, REASON_NO_ENDPOINT);
		hop = remote->node;
		ifindex = remote->ifindex;
	} else if (!ep) {
		remote = NULL;
		if (!fib_lookup(skb, seen, &hop, &ifindex))
			return to_stack(skb);
		dev = bpf_map_lookup_elem(&strait_device, &ifindex);
		mtu = dev ? dev->mtu : 0;
	}
	if (!ep && forward_exceeds(skb, p, seen, mtu, remote && remote->flags & REMOTE_TUNNEL))
		return LB_TOO_BIG;
	if (rewrite_like(skb, p, seen) || (seen->flags & PACKET_DSR && dsr_insert(skb, p)))
		return drop(skb, p, REASON_REWRITE);
	if (ep)
		return deliver_pod(skb, seen, ep, why);
	if (remote && remote->flags & REMOTE_TUNNEL)
		return forward_tunnel(skb, seen, remote, why);
	return forward_neighbour(skb, seen, &hop, ifindex, why);
}

/* A packet to a backend elsewhere gets this node's address: that of the device it came by, else the one it was sent to. */
static __noinline int forward_masquerade(struct __sk_buff *skb, const struct packet *p, struct packet *seen,
					 const struct lb_way *way)
{
	__u32 ifindex = skb->ifindex;
	struct rewrite to = {};
	struct device *dev;

	if (way->client->flags & CT_NAT && !(way->news & CT_LATER)) {
		seen->src = way->client->nat_addr;
		seen->sport = way->client->nat_port;
		return 0;
	}
	dev = bpf_map_lookup_elem(&strait_device, &ifindex);
	if (dev)
		to.addr = p->flags & PACKET_V6 ? dev->addr6 : dev->addr4;
	else if (ipcache_owner(&p->dst) & REMOTE_HOST)
		to.addr = p->dst;
	return nat_service(skb, p, seen, &to, way->client);
}

static __always_inline bool forward_here(const struct addr *backend)
{
	return endpoint_lookup(backend) || ipcache_owner(backend) & REMOTE_HOST;
}

/* A packet of a client to its backend: to one here as it is, elsewhere with this node's address unless the service is answered directly. */
static __noinline int forward_backend(struct __sk_buff *skb, const struct packet *p, struct lb_way *way)
{
	__u32 flags = way->client ? way->client->flags : way->news;
	struct packet seen = *p;
	bool here, known = way->client;
	int why = 0;

	seen.dst = way->choice.to.addr;
	seen.dport = way->choice.to.port;
	here = !(flags & (CT_NAT | CT_DSR)) && forward_here(&seen.dst);
	if (here)
		why = front_track(skb, p, &seen);
	if (!why)
		why = lb_settle(p, way);
	if (why)
		return drop(skb, p, why);
	if (flags & CT_DSR && dsr_may(p))
		seen.flags |= dsr_wanted(p) ? PACKET_DSR : 0;
	else if (!here)
		why = forward_masquerade(skb, p, &seen, way);
	if (why)
		return drop(skb, p, why);
	if (!known && !here)
		event_new(skb, p, way->client, NULL);
	return forward(skb, p, &seen, REMOTE_POD, REASON_TO_BACKEND);
}

/* A packet to a service; LB_NO_SERVICE if it is none. */
static __always_inline int forward_service(struct __sk_buff *skb, struct packet *p)
{
	struct lb_way way = {};
	int rc = lb_connection(skb, p, &way);

	if (rc > 0)
		return reject(skb, p, rc);
	/* Neither a pod of this node nor the node itself is ever out there. */
	if (!rc && (endpoint_lookup(&p->src) || (!way.client && ipcache_owner(&p->src) & REMOTE_HOST)))
		return drop(skb, p, REASON_SPOOFED_SOURCE);
	if (!rc)
		frag_resolve(p);
	return rc ? LB_NO_SERVICE : forward_backend(skb, p, &way);
}

/* Counts an answer on its client's entry, which may be lost. 0: the stack has the connection, or it has another port by now. */
static __noinline int forward_account(const struct packet *seen, __be16 port)
{
	struct ct_key key;
	__u32 dir;
	struct ct_entry *ct = ct_find(seen, &key, &dir);

	if (!ct)
		return 1;
	if (ct->flags & CT_STACK || !(ct->flags & CT_NAT) || ct->nat_port != port)
		return 0;
	lb_count(ct, seen, dir);
	return 1;
}

/* Whether a pod here may have a connection that another proxy has begun: there is no entry of the real ends. 0, or why not. */
static __noinline int forward_foreign(struct __sk_buff *skb, const struct packet *p, const struct nat_entry *e)
{
	struct packet real = *p;

	real.dst = e->client;
	real.dport = e->client_port;
	return policy_foreign(skb, &real, true, &e->front_addr, e->front_port);
}

/* The answer of a backend elsewhere, or of one here whose connection is of the time of another proxy. */
static __noinline int forward_answer(struct __sk_buff *skb, struct packet *p, const struct nat_entry *e)
{
	struct packet seen = *p;
	int why;

	seen.src = e->front_addr;
	seen.sport = e->front_port;
	seen.dst = e->client;
	seen.dport = e->client_port;
	if (cfg_imported) {
		why = forward_foreign(skb, p, e);
		if (why)
			return drop(skb, p, why);
	}
	if (!forward_account(&seen, p->dport))
		return LB_NO_SERVICE;
	frag_resolve(p);
	return forward(skb, p, &seen, REMOTE_POD, REASON_TO_CLIENT);
}

/* A packet that carries one of the tunnel's: most of what comes to a node's address. A connection is not looked for. */
static __always_inline bool forward_carrier(const struct packet *p)
{
	struct sockaddr_key front = { .addr = p->dst, .port = p->dport, .proto = p->proto };

	if (!cfg_vxlan_port || p->proto != IPPROTO_UDP || p->dport != bpf_htons(cfg_vxlan_port))
		return false;
	return !bpf_map_lookup_elem(&strait_service, &front); /* an address of a service may have the same port */
}

/* What comes from another machine and is for no pod here: an answer to a pod or to a client of a service, a packet to a service.
 * LB_NO_SERVICE: it is the stack's. */
static __noinline int forward_way(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry *e;
	int rc;

	if (p->flags & PACKET_LATER && !frag_ports(p))
		return to_stack(skb);
	if (p->flags & PACKET_OPTIONS && cfg_services != SERVICE_MODE_OFF && ipcache_owner(&p->dst) & REMOTE_HOST) {
		rc = dsr_receive(skb, p);
		if (rc < 0)
			return drop(skb, p, -rc);
		if (rc)
			return finish(skb, REASON_TO_BACKEND, TC_ACT_UNSPEC);
	}
	e = nat_reverse(p);
	if (e && e->front_port)
		return forward_answer(skb, p, e);
	if (e)
		return world_return(skb, p, e);
	rc = STACK_SHARES ? stack_holds(skb, p) : 0;
	if (rc < 0)
		return drop(skb, p, -rc);
	if (rc)
		return to_stack(skb);
	if (cfg_services == SERVICE_MODE_OFF || forward_carrier(p))
		return LB_NO_SERVICE;
	return forward_service(skb, p);
}

static __always_inline int forward_node(struct __sk_buff *skb, struct packet *p)
{
	int rc = forward_way(skb, p);

	if (rc == LB_NO_SERVICE) {
		rc = host_guarded() ? host_in(skb, p) : 0;
		return rc ? drop(skb, p, rc) : to_stack(skb);
	}
	return rc == LB_TOO_BIG ? reject_size(skb, p) : rc;
}

/* An ICMP error to an address of the node, or to that of a service. */
static __always_inline int forward_error(struct __sk_buff *skb, struct packet *p)
{
	int why = error_to_node(skb, p);

	if (why < 0)
		return drop(skb, p, -why);
	return why ? forward(skb, p, p, REMOTE_POD, why) : to_stack(skb);
}
