/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx ingress of st*: everything a pod sends. */

/* The answer of a pod that is a backend, to a client that knows it by another address. */
static __noinline int from_pod_answer(struct __sk_buff *skb, const struct packet *p, const struct ct_entry *ct)
{
	struct packet seen;

	front_answer(p, ct, &seen);
	return forward(skb, p, &seen, REMOTE_POD, REASON_TO_CLIENT);
}

/* Of a connection that another proxy has begun under the node's address: there is no entry of the real ends. */
static __noinline int from_pod_foreign(struct __sk_buff *skb, struct packet *p, struct packet *seen,
				       const struct ct_entry *client)
{
	int why = policy_foreign(skb, seen, false, &p->dst, p->dport);

	if (why)
		return drop(skb, p, why);
	seen->src = client->nat_addr;
	seen->sport = client->nat_port;
	return forward(skb, p, seen, REMOTE_POD | REMOTE_NODE, REASON_TO_BACKEND);
}

/* A packet to a backend. LB_OUTSIDE: that is no part of the cluster, and *p is a packet to it by now. */
static __noinline int from_pod_backend(struct __sk_buff *skb, struct packet *p, struct lb_way *way)
{
	struct packet seen = *p;
	int why;

	seen.dst = way->choice.to.addr;
	seen.dport = way->choice.to.port;
	if (addr_equal(&seen.dst, &p->src)) { /* hairpin: a pod takes an answer from its own address for its own packet */
		addr_gateway(&seen.src, p->flags & PACKET_V6);
		seen.flags |= PACKET_SELF;
	}
	if (cfg_imported && way->client && way->client->flags & CT_NAT)
		return from_pod_foreign(skb, p, &seen, way->client);
	why = front_track(skb, p, &seen);
	if (!why)
		why = lb_settle(p, way);
	if (why)
		return drop(skb, p, why);
	seen.flags |= PACKET_COUNTED;
	if (endpoint_lookup(&seen.dst) || ipcache_owner(&seen.dst) & (REMOTE_HOST | REMOTE_NODE | REMOTE_POD))
		return forward(skb, p, &seen, REMOTE_POD | REMOTE_NODE, REASON_TO_BACKEND);
	if (p->ttl <= 1)
		return drop(skb, p, REASON_TTL_EXCEEDED);
	if (rewrite_like(skb, p, &seen))
		return drop(skb, p, REASON_REWRITE);
	*p = seen;
	return LB_OUTSIDE;
}

/* A packet to a service, or the answer of a backend; LB_NO_SERVICE if it is neither. */
static __noinline int from_pod_service(struct __sk_buff *skb, struct packet *p)
{
	struct lb_way way = {};
	int rc = lb_connection(skb, p, &way);

	if (rc > 0) /* first: from the range of a reason the verifier of Linux 6.1 does not see that it is none of the others */
		return reject(skb, p, rc);
	if (rc == LB_ANSWER)
		return from_pod_answer(skb, p, way.client);
	return rc ? rc : from_pod_backend(skb, p, &way);
}

/* The answer to a client whose connection another proxy has begun under the node's address; LB_NO_SERVICE: it is not one. */
static __noinline int from_pod_import(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry *e = nat_reverse(p);

	return e && e->front_port ? forward_answer(skb, p, e) : LB_NO_SERVICE;
}

static __always_inline int from_pod_host(struct __sk_buff *skb, const struct packet *p)
{
	struct ct_entry *turned = NULL;
	int why = policy_track(skb, p, &turned);

	return why ? drop(skb, p, why) : to_stack(skb);
}

/* To a pod elsewhere, or to another node. */
static __always_inline int from_pod_remote(struct __sk_buff *skb, const struct packet *p, const struct remote *remote)
{
	struct ct_entry *turned = NULL;
	int why;

	if (p->ttl <= 1)
		return to_stack(skb);
	if (!(remote->flags & REMOTE_TUNNEL) && !remote->ifindex) /* no such pod on this node: the stack says so */
		return to_stack(skb);
	why = policy_track(skb, p, &turned);
	if (why)
		return drop(skb, p, why);
	if (turned)
		return from_pod_answer(skb, p, turned);
	if (packet_exceeds(skb, p, cfg_pod_mtu))
		return to_stack(skb);
	if (remote->flags & REMOTE_TUNNEL)
		return deliver_tunnel(skb, p, remote, REASON_TO_TUNNEL);
	return deliver_neighbour(skb, p, &remote->node, remote->ifindex, REASON_TO_NEIGHBOUR);
}

/* An error about a packet from outside to a masqueraded pod. */
static __always_inline int from_pod_complaint(struct __sk_buff *skb, struct packet *p)
{
	int why = error_masquerade(skb, p);

	return why ? drop(skb, p, why) : forward(skb, p, p, 0, REASON_TO_WORLD_MASQUERADED);
}

/* To what is no pod of this node: a pod elsewhere, a service, a node, or the outside. */
static __always_inline int from_pod_away(struct __sk_buff *skb, struct packet *p)
{
	struct remote *remote = ipcache_lookup(&p->dst);
	__u32 flags = remote ? remote->flags : 0;
	int rc;

	if (cfg_imported && flags & REMOTE_HOST) {
		rc = from_pod_import(skb, p);
		if (rc != LB_NO_SERVICE)
			return rc;
	}
	if (cfg_services != SERVICE_MODE_ON && !(flags & REMOTE_POD) && stack_serves(p))
		return to_stack(skb);
	if (cfg_services != SERVICE_MODE_OFF && !(flags & REMOTE_POD) && !(p->flags & PACKET_ERROR)) {
		rc = from_pod_service(skb, p);
		if (rc != LB_NO_SERVICE)
			return rc == LB_OUTSIDE ? world_leave(skb, p, ipcache_flags(&p->dst)) : rc;
	}
	if (flags & REMOTE_HOST)
		return from_pod_host(skb, p);
	if (remote && flags & (REMOTE_POD | REMOTE_NODE))
		return from_pod_remote(skb, p, remote);
	if (p->ttl <= 1)
		return to_stack(skb);
	if (p->flags & PACKET_ERROR && cfg_network != NETWORK_FLAT)
		return from_pod_complaint(skb, p);
	return world_leave(skb, p, flags);
}

static __always_inline int from_pod_local(struct __sk_buff *skb, const struct packet *p, const struct endpoint *to)
{
	struct ct_entry *turned = NULL;
	int why;

	if (p->ttl <= 1)
		return to_stack(skb);
	why = policy_track(skb, p, &turned);
	if (why)
		return drop(skb, p, why);
	if (turned)
		return from_pod_answer(skb, p, turned);
	return deliver_pod(skb, p, to, REASON_TO_LOCAL_POD);
}

/* An error about a packet of a connection to a service, translated by now. About those of a masqueraded one nobody outside is told. */
static __noinline int from_pod_error(struct __sk_buff *skb, struct packet *p, enum reason why)
{
	__u32 owner = ipcache_owner(&p->dst);

	if (why == REASON_TO_BACKEND && !(owner & (REMOTE_HOST | REMOTE_NODE | REMOTE_POD)))
		return drop(skb, p, REASON_UNRELATED_ICMP);
	return forward(skb, p, p, why == REASON_TO_BACKEND ? REMOTE_POD | REMOTE_NODE : REMOTE_POD, why);
}

SEC("tcx/ingress")
int strait_from_pod(struct __sk_buff *skb)
{
	struct packet p = { .hook = HOOK_FROM_POD, .ifindex = skb->ifindex };
	struct endpoint *ep;
	enum reason why = packet_parse(skb, &p);
	int rc;

	if (why)
		return drop(skb, &p, why);
	if (addr_is_multicast(&p.dst, p.flags & PACKET_V6))
		return drop_multicast(skb, &p);
	if (p.flags & PACKET_NDP)
		return drop(skb, &p, REASON_UNSUPPORTED_L2);
	ep = endpoint_lookup(&p.src);
	if (!ep || ep->ifindex != p.ifindex)
		return drop(skb, &p, REASON_SPOOFED_SOURCE);
	if (p.flags & PACKET_ERROR) {
		rc = error_from_receiver(skb, &p);
		if (rc)
			return rc < 0 ? drop(skb, &p, -rc) : from_pod_error(skb, &p, rc);
	}
	if (p.flags & PACKET_OPTIONS && dsr_carries(skb, &p))
		return drop(skb, &p, REASON_DSR_OPTION);
	if (!frag_resolve(&p))
		return drop(skb, &p, REASON_FRAGMENT_UNKNOWN);
	rc = STACK_SHARES ? stack_holds(skb, &p) : 0;
	if (rc)
		return rc < 0 ? drop(skb, &p, -rc) : to_stack(skb);
	ep = endpoint_lookup(&p.dst);
	rc = ep ? from_pod_local(skb, &p, ep) : from_pod_away(skb, &p);
	return rc == LB_TOO_BIG ? reject_size(skb, &p) : rc;
}
