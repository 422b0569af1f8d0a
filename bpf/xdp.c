/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP of the node's devices: known connections from outside to backends on other nodes, and the answers, where both leave by the device
 * they came from. tc decides the same about whatever is passed on, first packets among it; nothing is counted or changed before it is
 * certain that a packet goes from here. */

/* The address and port that this node uses towards the backend, if the connection has them. */
static __always_inline bool xdp_masquerade(const struct packet *p, struct packet *seen, const struct ct_entry *ct)
{
	struct sockaddr_key front = { .addr = p->dst, .port = p->dport };
	struct nat_entry *e;
	struct nat_key key;

	if (!(ct->flags & CT_NAT))
		return false;
	seen->src = ct->nat_addr;
	seen->sport = ct->nat_port;
	if (ct->tick == ct_tick())
		return true;
	/* Now and then the mapping is looked at, as nat_service does; tc makes a lost one anew. */
	nat_key_from(&key, seen, &seen->src);
	e = bpf_map_lookup_elem(&strait_nat, &key);
	return e && nat_same(e, p, &front);
}

/* The backend of a connection that services here have begun. */
static __always_inline bool xdp_known(const struct packet *p, struct lb_way *way, __u32 *dir)
{
	struct ct_entry *ct;
	struct ct_key key;

	ct = ct_find(p, &key, dir);
	if (!ct || (ct->flags & (CT_SERVICE | CT_STACK)) != CT_SERVICE || *dir != !!(ct->flags & CT_HI_BEGAN))
		return false;
	return !lb_usable(p, ct, way);
}

/* From a client. */
static __noinline int xdp_ask(struct xdp_md *ctx, const struct packet *p)
{
	struct bpf_fib_lookup f;
	struct lb_way way = {};
	struct packet seen = *p;
	struct remote *row;
	__u32 owner, dir;

	if (cfg_services == SERVICE_MODE_OFF || !xdp_known(p, &way, &dir))
		return XDP_PASS;
	seen.dst = way.choice.to.addr;
	seen.dport = way.choice.to.port;
	if (endpoint_lookup(&seen.dst))
		return XDP_PASS;
	row = ipcache_find(&seen.dst);
	owner = row ? row->flags : 0;
	if (way.client->flags & CT_DSR && owner & (REMOTE_POD | REMOTE_NODE) && dsr_may(p)) {
		if (dsr_wanted(p))
			return XDP_PASS;
	} else if (!xdp_masquerade(p, &seen, way.client)) {
		return XDP_PASS;
	}
	if (!xdp_way(ctx, &seen, row, &f) || !xdp_ours(ctx, &f) || !xdp_rewrite(ctx, p, &seen))
		return XDP_PASS;
	lb_count(way.client, p, dir);
	return xdp_send(ctx, &f, REASON_TO_BACKEND);
}

/* From a backend that sees this node as its client. */
static __noinline int xdp_answer(struct xdp_md *ctx, const struct packet *p, const struct nat_entry *e)
{
	struct bpf_fib_lookup f;
	struct packet seen = *p;
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	seen.src = e->front_addr;
	seen.sport = e->front_port;
	seen.dst = e->client;
	seen.dport = e->client_port;
	if (endpoint_lookup(&seen.dst))
		return XDP_PASS;
	ct = ct_find(&seen, &key, &dir);
	if (ct && (!(ct->flags & CT_NAT) || ct->nat_port != p->dport))
		return XDP_PASS;
	if (!xdp_way(ctx, &seen, ipcache_find(&seen.dst), &f) || !xdp_ours(ctx, &f) || !xdp_rewrite(ctx, p, &seen))
		return XDP_PASS;
	if (ct)
		lb_count(ct, &seen, dir);
	return xdp_send(ctx, &f, REASON_TO_CLIENT);
}

SEC("xdp")
int strait_xdp(struct xdp_md *ctx)
{
	struct packet p = { .hook = HOOK_XDP, .ifindex = ctx->ingress_ifindex };
	struct nat_entry *e;

	if (!xdp_parse(ctx, &p) || endpoint_lookup(&p.dst))
		return XDP_PASS;
	e = nat_reverse(&p);
	if (!e)
		return xdp_ask(ctx, &p);
	return e->front_port ? xdp_answer(ctx, &p, e) : XDP_PASS;
}
