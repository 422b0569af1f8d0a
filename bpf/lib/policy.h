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

/* What audited policies would have decided is told of the direction that denies, else of the one that they would have denied. */
static __always_inline void policy_said(struct ct_policy *said, enum policy_direction direction, const struct policy_verdict *v)
{
	if (direction == POLICY_EGRESS)
		said->rule_out = v->rule;
	else
		said->rule_in = v->rule;
	if (v->flags & POLICY_AUDIT) {
		said->audit = v->audit_rule;
		said->flags |= EVENT_AUDIT;
	} else if (!(v->flags & POLICY_ALLOW)) {
		said->audit = 0;
		said->flags &= ~EVENT_AUDIT;
	}
}

/* Judges one direction at the end it belongs to. 0, or why not. */
static __noinline int policy_end(const struct packet *p, bool answer, enum policy_direction direction, struct ct_policy *said)
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
	policy_said(said, direction, v);
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
	said->audit = 0;
	said->flags = answer ? EVENT_ANSWER : 0;
	said->why = 0;
	if (policy_self(p, answer))
		return 0;
	why = policy_end(p, answer, POLICY_EGRESS, said);
	if (!why)
		why = policy_end(p, answer, POLICY_INGRESS, said);
	said->why = why;
	return why;
}

/* Judges a connection that has no entry. 0, or why it may not be; *said is for the entry. */
__noinline int policy_first(const struct packet *p, int answer, struct ct_policy *said)
{
	if (!p || !said)
		return REASON_POLICY_MISSING;
	return policy_judge(p, answer, said);
}

/* The same for a packet that will not be carried if it may not be. */
static __always_inline int policy_admits(struct __sk_buff *skb, const struct packet *p, bool answer, struct ct_policy *said,
					 const struct addr *front, __be16 port)
{
	int why = policy_first(p, answer, said);

	if (why)
		event_denied(skb, p, said, front, port);
	return why;
}

/* The same for a connection that will have no entry of its real ends. */
static __noinline int policy_foreign(struct __sk_buff *skb, const struct packet *p, bool answer, const struct addr *front,
				     __be16 port)
{
	struct ct_policy said = {};

	return policy_admits(skb, p, answer, &said, front, port);
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

/* The packet of a known connection may not pass. The connection may again when that is judged, and told, anew. */
static __always_inline void policy_denied(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct,
					  const struct ct_policy *said, bool begins)
{
	if (!begins && ct->policy_rev)
		ct->policy_rev = 0;
	event_denied(skb, p, said, &ct->front_addr, ct->flags & (CT_FRONT | CT_SOCKET) ? ct->front_port : 0);
}

/* A known connection may go on; by other rules than before that is told. */
static __always_inline void policy_changed(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct,
					   const struct ct_policy *said)
{
	bool changed = !ct->policy_rev || ct->rule_out != said->rule_out || ct->rule_in != said->rule_in;

	ct_judged(ct, said);
	if (changed)
		event_judged(skb, p, ct, said);
}

/* Another connection takes the entry of one that is over. */
static __always_inline void policy_anew(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct, __u32 dir,
					const struct ct_policy *said)
{
	if (!ct_closed(ct->flags))
		event_end(p, ct, dir);
	ct_restart(ct, dir);
	ct_judged(ct, said);
	event_new(skb, p, ct, said);
}

/* Judges the packet of a known connection, if it has to be. What begins something of its own is judged as that: a SYN after the end of the
 * connection, whose entry is made its own; a SYN or an echo request of the end that did not begin, which shares ports with the connection but is
 * no answer; ICMP messages that are neither echo nor error, which have no ports to tell them apart by. 0, or why it may not pass. */
__noinline int policy_again(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct, __u32 dir)
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
	if (why)
		policy_denied(skb, p, ct, &said, begins);
	else if (over)
		policy_anew(skb, p, ct, dir, &said);
	else if (!begins)
		policy_changed(skb, p, ct, &said);
	return why;
}

/* The same where nearly always there is nothing to judge. */
static __always_inline int policy_known(struct __sk_buff *skb, const struct packet *p, struct ct_entry *ct, __u32 dir)
{
	struct node_state *node = policy_node();
	int why;

	if (!node || ct->policy_rev != node->revision || packet_begins_tcp(p) || packet_begins_icmp(p)) {
		why = policy_again(skb, p, ct, dir);
		asm volatile("" : "+r"(why)); /* the compiler knows that it is a reason, the verifier has to see it */
		return why & 0xff;
	}
	if (ct->rule_out | ct->rule_in)
		policy_passed(p, ct);
	return 0;
}

/* Enters a connection with its first packet, if policy allows it. 0, or why not. */
static __noinline int policy_enter(struct __sk_buff *skb, const struct packet *p, const struct ct_key *key, __u32 dir)
{
	struct ct_policy said = {};
	int why = policy_admits(skb, p, false, &said, NULL, 0);
	struct ct_entry *ct;

	if (why)
		return why;
	if (ct_enter(key, p, dir, &said)) {
		ct = cfg_events && p->hook == HOOK_FROM_POD ? bpf_map_lookup_elem(&strait_ct, key) : NULL;
		event_new(skb, p, ct, &said);
		return 0;
	}
	ct = bpf_map_lookup_elem(&strait_ct, key);
	if (!ct)
		return REASON_CT_INSERT;
	ct_count(ct, p, dir);
	return 0;
}

/* Finds or begins the connection, if policy allows it, and counts the packet. 0, or why it may not pass. *turned becomes its entry if
 * that says that the packet is not to go as it is. ICMP errors belong to the connection they speak about and have none. */
static __always_inline int policy_track(struct __sk_buff *skb, const struct packet *p, struct ct_entry **turned)
{
	struct ct_key key;
	struct ct_entry *ct;
	__u32 dir;
	int why;

	if (p->flags & PACKET_ERROR)
		return 0;
	ct = ct_find(p, &key, &dir);
	if (!ct)
		return policy_enter(skb, p, &key, dir);
	why = policy_known(skb, p, ct, dir);
	if (why)
		return why;
	ct_count(ct, p, dir);
	if (ct_turned(ct, dir))
		*turned = ct;
	return 0;
}

/* The same with a stack of its own, where nothing is turned. */
static __noinline int policy_follow(struct __sk_buff *skb, const struct packet *p)
{
	struct ct_entry *turned = NULL;

	return policy_track(skb, p, &turned);
}

/* An ICMP error may pass if the connection it speaks about may: in, between its real ends. 0, or why not. Of connections that are not known
 * only pods without policies hear. */
__noinline int policy_error(struct __sk_buff *skb, struct packet *in)
{
	union { /* used one after the other: little stack is left */
		struct ct_key connection;
		struct ipcache_key end;
	} k;
	struct ct_entry *ct;
	__u32 dir;

	if (!in)
		return REASON_UNRELATED_ICMP;
	ct = ct_find(in, &k.connection, &dir);
	if (ct && !(ct->flags & CT_SERVICE)) {
		in->flags |= PACKET_COUNTED;
		return policy_known(skb, in, ct, dir);
	}
	k.end.addr = in->src;
	if (policy_of(&k.end))
		return REASON_UNRELATED_ICMP;
	k.end.addr = in->dst;
	return policy_of(&k.end) ? REASON_UNRELATED_ICMP : 0;
}
