/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policy: whether a connection may be. Asked with its first packet and after every change of what policies say, with a packet of either end;
 * in between a packet costs the comparison of two revisions.
 *
 *   no entry --allowed--> entry of this revision --policies change--> judged again with each packet until allowed
 *
 * What is judged are the real ends: a backend, not its service; a pod, not the address that stands for it outside. The egress of who began
 * is judged if that is a pod of this node, and the ingress of the other end if that is one; likewise the node itself if it has a policy.
 */
#pragma once

static __always_inline struct node_state *policy_node(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&strait_node, &only);
}

static __always_inline void policy_count(__u32 rule, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&strait_rule, &rule);

	if (!c)
		return;
	c->packets++;
	c->bytes += bytes;
}

/* The port of the end that did not begin, or what stands in its place. */
static __always_inline __be16 policy_port(const struct packet *p, bool answer)
{
	if (!packet_is_icmp(p->proto))
		return answer ? p->sport : p->dport;
	if (answer || p->flags & PACKET_LATER) /* of an echo */
		return p->flags & PACKET_V6 ? bpf_htons(128 << 8) : bpf_htons(8 << 8);
	return bpf_htons(p->icmp);
}

/* The keys of the three tables, used one after the other: the ways to here leave little stack. */
union policy_keys {
	struct ipcache_key peer;
	struct policy_key policy;
	struct port_key port;
};

/* What a policy says to the peer at an address; NULL: nothing, which a whole policy never does. */
static __always_inline struct policy_verdict *policy_verdict(union policy_keys *k, __u64 policy, enum policy_direction direction,
							     const struct packet *p, bool answer)
{
	__u64 *identity = bpf_map_lookup_elem(&strait_identity, &k->peer);
	struct policy_entry *e;

	k->policy.identity = identity ? *identity : IDENTITY_WORLD;
	k->policy.policy = policy;
	k->policy.direction = direction;
	k->policy.pad = 0;
	e = bpf_map_lookup_elem(&strait_policy, &k->policy);
	if (!e) {
		k->policy.identity = IDENTITY_OTHER;
		e = bpf_map_lookup_elem(&strait_policy, &k->policy);
	}
	if (!e || !e->table)
		return e ? &e->verdict : NULL;
	k->port.prefix_len = 128;
	k->port.pad = 0;
	k->port.table = e->table;
	k->port.proto = p->proto;
	k->port.pad2 = 0;
	k->port.port = policy_port(p, answer);
	k->port.pad3 = 0;
	return bpf_map_lookup_elem(&strait_port, &k->port);
}

static __always_inline void policy_account(const struct packet *p, const struct policy_verdict *v)
{
	__u32 bytes = p->end - L3_OFF;

	if (p->flags & PACKET_COUNTED)
		return;
	policy_count(v->rule, bytes);
	if (v->flags & POLICY_AUDIT)
		policy_count(v->audit_rule, bytes);
}

/* The policy of who has an address: a pod of this node, or the node; 0: none. */
static __always_inline __u64 policy_of(struct ipcache_key *k)
{
	struct node_state *node = policy_node();
	struct endpoint *ep = endpoint_lookup(&k->addr);
	struct remote *r;

	if (ep || !node || !node->policy)
		return ep ? ep->policy : 0;
	k->prefix_len = 128;
	r = bpf_map_lookup_elem(&strait_ipcache, k);
	return r && r->flags & REMOTE_HOST ? node->policy : 0;
}

/* The packet is to the node, which has a policy. */
static __noinline bool policy_host(const struct packet *p)
{
	struct ipcache_key k = { .addr = p->dst };

	return policy_of(&k) != 0;
}

/* Judges one direction at the end it belongs to; *rule becomes what decided. 0, or why not. */
static __noinline int policy_end(const struct packet *p, bool answer, enum policy_direction direction, __u32 *rule)
{
	bool own = answer == (direction == POLICY_INGRESS); /* it is the packet's sender whose policy is asked */
	struct policy_verdict *v;
	union policy_keys k;
	__u64 policy;

	k.peer.addr = own ? p->src : p->dst;
	policy = policy_of(&k.peer);
	if (!policy)
		return 0;
	k.peer.addr = own ? p->dst : p->src;
	k.peer.prefix_len = 128;
	v = policy_verdict(&k, policy, direction, p, answer);
	if (!v)
		return REASON_POLICY_MISSING;
	*rule = v->rule;
	policy_account(p, v);
	if (v->flags & POLICY_ALLOW)
		return 0;
	return direction == POLICY_EGRESS ? REASON_POLICY_EGRESS : REASON_POLICY_INGRESS;
}

/* A pod always reaches itself. An answer to the gateway is one to a pod's own service: nobody else gets it. */
static __always_inline bool policy_self(const struct packet *p, bool answer)
{
	if (p->flags & PACKET_SELF || addr_equal(&p->src, &p->dst))
		return true;
	return answer && addr_is_gateway(&p->dst, p->flags & PACKET_V6);
}

/* Judges a connection by one of its packets, answer: of the end that did not begin. The revision is read first: should policies change
 * meanwhile, the connection is judged again. Userspace makes a system call between any change and that of the revision, so processors that
 * reorder reads see it as well. */
static __always_inline int policy_judge(const struct packet *p, bool answer, struct ct_policy *said)
{
	struct node_state *node = policy_node();
	int why;

	said->revision = node ? *(volatile __u32 *)&node->revision : 0;
	said->rule_out = 0;
	said->rule_in = 0;
	if (policy_self(p, answer))
		return 0;
	why = policy_end(p, answer, POLICY_EGRESS, &said->rule_out);
	return why ? why : policy_end(p, answer, POLICY_INGRESS, &said->rule_in);
}

/* Judges a connection that has no entry. 0, or why it may not be; *said is for the entry. */
__noinline int policy_first(const struct packet *p, int answer, struct ct_policy *said)
{
	if (!p || !said)
		return REASON_POLICY_MISSING;
	return policy_judge(p, answer, said);
}

static __noinline void policy_passed(const struct packet *p, const struct ct_entry *ct)
{
	__u32 bytes = p->end - L3_OFF;

	if (p->flags & PACKET_COUNTED)
		return;
	if (ct->rule_out)
		policy_count(ct->rule_out, bytes);
	if (ct->rule_in)
		policy_count(ct->rule_in, bytes);
}

/* Judges the packet of a known connection, if it has to be. What begins something of its own is judged as that: a SYN after the end of the
 * connection, whose entry is made its own; a SYN or an echo request of the end that did not begin, which shares ports with the connection but is
 * no answer; ICMP messages that are neither echo nor error, which have no ports to tell them apart by. 0, or why it may not pass. */
__noinline int policy_again(const struct packet *p, struct ct_entry *ct, __u32 dir)
{
	struct ct_policy said = {};
	struct node_state *node = policy_node();
	bool answer, begins, over;
	int why;

	if (!p || !ct || !node)
		return REASON_POLICY_MISSING;
	if (ct->flags & (CT_VIRTUAL | CT_SERVICE))
		return 0;
	answer = dir != !!(ct->flags & CT_HI_BEGAN);
	over = packet_begins_tcp(p) && ct_over(ct, p->proto);
	begins = over || (answer && packet_begins_tcp(p)) || (packet_begins_icmp(p) && (answer || !p->sport));
	if (!begins && ct->policy_rev == node->revision) {
		policy_passed(p, ct);
		return 0;
	}
	why = policy_judge(p, answer && !begins, &said);
	if (why || (begins && !over))
		return why;
	if (over)
		ct_restart(ct, dir);
	ct_judged(ct, &said);
	return 0;
}

/* The same where nearly always there is nothing to judge. */
static __always_inline int policy_known(const struct packet *p, struct ct_entry *ct, __u32 dir)
{
	struct node_state *node = policy_node();
	int why;

	if (!node || ct->policy_rev != node->revision || packet_begins_tcp(p) || packet_begins_icmp(p)) {
		why = policy_again(p, ct, dir);
		asm volatile("" : "+r"(why)); /* the compiler knows that it is a reason, the verifier has to see it */
		return why & 0xff;
	}
	if (ct->rule_out | ct->rule_in)
		policy_passed(p, ct);
	return 0;
}

/* Enters a connection with its first packet, if policy allows it. 0, or why not. */
static __noinline int policy_enter(const struct packet *p, const struct ct_key *key, __u32 dir)
{
	struct ct_policy said = {};
	int why = policy_first(p, false, &said);

	if (why)
		return why;
	return ct_enter(key, p, dir, &said) ? 0 : REASON_CT_INSERT;
}

/* Finds or begins the connection, if policy allows it, and counts the packet. 0, or why it may not pass. *turned becomes its entry if
 * that says that the packet is not to go as it is. ICMP errors belong to the connection they speak about and have none. */
static __always_inline int policy_track(const struct packet *p, struct ct_entry **turned)
{
	struct ct_key key;
	struct ct_entry *ct;
	__u32 dir;
	int why;

	if (p->flags & PACKET_ERROR)
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct)
		return policy_enter(p, &key, dir);
	why = policy_known(p, ct, dir);
	if (why)
		return why;
	ct_count(ct, p, dir);
	if (ct_turned(ct, dir))
		*turned = ct;
	return 0;
}

/* The same with a stack of its own, where nothing is turned. */
static __noinline int policy_follow(const struct packet *p)
{
	struct ct_entry *turned = NULL;

	return policy_track(p, &turned);
}

/* An ICMP error may pass if the connection it speaks about may: in, between its real ends. 0, or why not. Of connections that are not known
 * only pods without policies hear. */
__noinline int policy_error(struct packet *in)
{
	struct ipcache_key end;
	struct ct_entry *ct;
	struct ct_key key;
	__u32 dir;

	if (!in)
		return REASON_UNRELATED_ICMP;
	ct = ct_find(in, &key, &dir);
	if (ct && !(ct->flags & CT_SERVICE)) {
		in->flags |= PACKET_COUNTED;
		return policy_known(in, ct, dir);
	}
	end.addr = in->src;
	if (policy_of(&end))
		return REASON_UNRELATED_ICMP;
	end.addr = in->dst;
	return policy_of(&end) ? REASON_UNRELATED_ICMP : 0;
}
