/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last step of a packet's way through a program. Callers have seen ttl > 1. */
#pragma once

#define ADDR_FAMILY_4 2 /* AF_INET */
#define ADDR_FAMILY_6 10

/* skb->tc_index of what a program sends out of a device: the program there lets it pass. Nothing else on a node writes it. */
#define DELIVER_OURS 0x5374

static __always_inline struct endpoint *endpoint_lookup(const struct addr *a)
{
	return bpf_map_lookup_elem(&strait_endpoint, a);
}

static __always_inline struct remote *ipcache_lookup(const struct addr *a)
{
	struct ipcache_key key = {
		.prefix_len = 128,
		.addr = *a,
	};

	return bpf_map_lookup_elem(&strait_ipcache, &key);
}

static __always_inline __u32 ipcache_flags(const struct addr *a)
{
	struct remote *r = ipcache_lookup(a);

	return r ? r->flags : 0;
}

/* The same with a stack of their own, for the longer ways. */
static __noinline struct remote *ipcache_find(const struct addr *a)
{
	return ipcache_lookup(a);
}

static __noinline __u32 ipcache_owner(const struct addr *a)
{
	return ipcache_flags(a);
}

/* In an isolated network: who may reach pods and be reached by them. */
static __always_inline bool isolated(__u32 remote_flags)
{
	return cfg_network == NETWORK_ISOLATED && !(remote_flags & (REMOTE_HOST | REMOTE_NODE | REMOTE_POD | REMOTE_APISERVER));
}

/* A pod's link has nobody else on it. */
static __noinline int drop_multicast(struct __sk_buff *skb, const struct packet *p)
{
	return drop(skb, p, addr_is_link_multicast(&p->dst, p->flags & PACKET_V6) ? REASON_HOUSEKEEPING : REASON_MULTICAST);
}

/* Into the pod, past the node's stack. pod_mac and host_mac lie in the order of an Ethernet header. */
static __always_inline int deliver_pod(struct __sk_buff *skb, const struct packet *p, const struct endpoint *ep, enum reason why)
{
	__u32 ifindex = ep->ifindex;

	if (!packet_set_macs(skb, ep->pod_mac) || !packet_hop(skb, p))
		return drop(skb, p, REASON_REWRITE);
	return finish(skb, why, bpf_redirect_peer(ifindex, 0));
}

/* To a next hop on a device; the neighbour layer fills in the MACs. */
static __always_inline int deliver_neighbour(struct __sk_buff *skb, const struct packet *p, const struct addr *hop, __u32 ifindex,
					     enum reason why)
{
	struct bpf_redir_neigh nh = {};

	if (addr_is4(hop)) {
		nh.nh_family = ADDR_FAMILY_4;
		nh.ipv4_nh = hop->w[3];
	} else {
		nh.nh_family = ADDR_FAMILY_6;
		__builtin_memcpy(nh.ipv6_nh, hop->w, sizeof(nh.ipv6_nh));
	}
	if (!packet_hop(skb, p))
		return drop(skb, p, REASON_REWRITE);
	skb->tc_index = DELIVER_OURS;
	return finish(skb, why, bpf_redirect_neigh(ifindex, &nh, sizeof(nh), 0));
}
