/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The tunnel: keys of the collect-metadata device strait_vxlan. */
#pragma once

#define ENCAP_VNI 1
#define ENCAP_TTL 64

/* The device drops what comes from its own address (as a loop), and all nodes have the same one: so the source differs. */
struct encap_macs {
	__u8 macs[12];
} __attribute__((aligned(4)));

static const struct encap_macs encap_macs = {
	{ 0x02, 0x53, 0x54, 0x52, 0x54, 0x00, 0x02, 0x53, 0x54, 0x52, 0x54, 0x01 },
};

/* 0, or why it cannot be. The key's IPv4 address is in host order. */
static __always_inline enum reason encap_set(struct __sk_buff *skb, const struct remote *remote)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = ENCAP_VNI,
		.tunnel_ttl = ENCAP_TTL,
	};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (addr_is_zero(&remote->node))
		return REASON_NO_TUNNEL_ENDPOINT;
	if (addr_is4(&remote->node)) {
		key.remote_ipv4 = bpf_ntohl(remote->node.w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, remote->node.w, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return REASON_TUNNEL_KEY;
	return packet_set_macs(skb, encap_macs.macs) ? 0 : REASON_REWRITE;
}

/* The outer source address: who sent this through the tunnel. */
static __always_inline bool encap_sender(struct __sk_buff *skb, struct addr *from)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_from4(from, bpf_htonl(key.remote_ipv4));
		return key.tunnel_id == ENCAP_VNI;
	}
	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(from->w, key.remote_ipv6, sizeof(from->w));
		return key.tunnel_id == ENCAP_VNI;
	}
	return false;
}

/* Into the tunnel, past the node's stack. */
static __always_inline int deliver_tunnel(struct __sk_buff *skb, const struct packet *p, const struct remote *remote,
					  enum reason reason)
{
	enum reason why;

	if (!cfg_vxlan_ifindex)
		return drop(skb, p, REASON_NO_TUNNEL_ENDPOINT);
	why = encap_set(skb, remote);
	if (why)
		return drop(skb, p, why);
	if (!packet_hop(skb, p))
		return drop(skb, p, REASON_REWRITE);
	skb->tc_index = DELIVER_OURS;
	return finish(skb, reason, bpf_redirect(cfg_vxlan_ifindex, 0));
}
