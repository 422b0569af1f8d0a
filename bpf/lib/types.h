/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every struct and enum shared between the programs and userspace. The Go side is generated from this file's BTF.
 * An enum is 4 bytes; a field has the enum's type so that BTF, and with it Go, knows the names. */
#pragma once

/* An address: 16 bytes in network order, IPv4 as v4-mapped (::ffff:a.b.c.d). */
struct addr {
	__be32 w[4];
};

/* An address and a port in network order, as sockets and services know them. */
struct sockaddr_key {
	struct addr addr;
	__be16 port;
	__u8 proto; /* IPPROTO_* */
	__u8 pad;
};

/* strait_endpoint: address of a local pod -> how to hand a packet over to it. */
struct endpoint {
	__u32 ifindex; /* node's end of the veth pair */
	__u32 policy_id;
	__u32 identity;
	__u32 flags;
	__u8 pod_mac[6];
	__u8 host_mac[6];
};

/* strait_ipcache: prefix -> who that is and the way there. */
enum remote_flags {
	REMOTE_HOST = 1 << 0,	   /* an address of this node */
	REMOTE_NODE = 1 << 1,	   /* an address of another node */
	REMOTE_POD = 1 << 2,	   /* inside the cluster's pod CIDRs */
	REMOTE_APISERVER = 1 << 3, /* API server that is not a node */
	REMOTE_TUNNEL = 1 << 4,	   /* reached by encapsulation to node, else node is the next hop on ifindex */
};

struct ipcache_key {
	__u32 prefix_len; /* over all 128 bits: IPv4 prefixes are 96 longer */
	struct addr addr;
};

struct remote {
	__u32 identity;
	enum remote_flags flags;
	struct addr node;
	__u32 ifindex; /* egress device; 0 with REMOTE_TUNNEL */
	__u32 node_id; /* the same in all rows of one node, 0 in those of none: node may be of another family than a tunnel's */
};

/* strait_device: the node's devices that carry cluster or outside traffic. */
struct device {
	struct addr addr4; /* masquerade address, zero if none */
	struct addr addr6;
	__u32 mtu;
	__u32 pad;
};

/* strait_ct: one entry per connection. The smaller (addr, port) is the low end, whoever began. */
struct ct_key {
	struct addr lo;
	struct addr hi;
	__be16 lo_port; /* ICMP echo: identifier in both */
	__be16 hi_port;
	__u8 proto;
	__u8 pad[3];
};

enum ct_flags {
	CT_HI_BEGAN = 1 << 0, /* the high end sent the first packet */
	CT_REPLIED = 1 << 1,
	CT_FIN_LO = 1 << 2,
	CT_FIN_HI = 1 << 3,
	CT_RST = 1 << 4,
	CT_NAT = 1 << 5, /* nat_addr/nat_port stand for the beginner towards the other end */
};

struct ct_entry {
	__u64 began;	  /* ns, CLOCK_MONOTONIC_COARSE: cheap, and no time passes for a connection of a suspended machine */
	__u64 packets[2]; /* 0: sent by the low end, 1: by the high end */
	__u64 bytes[2];	  /* L3 length; a GSO packet counts once in both */
	__u32 last_seen;  /* s, the clock of began */
	enum ct_flags flags;
	__u32 policy_rev[2]; /* revision under which egress of the beginner / ingress of the other was allowed */
	__u32 backend;	     /* id, 0: none */
	__u32 backend_gen;
	struct addr nat_addr;
	__be16 nat_port;
	__u16 pad;
	__u32 tick; /* when the clock was last read for last_seen, in the datapath's own unit */
};

/* strait_nat: what a reply from outside looks like -> the pod behind it. ICMP echo: identifier in node_port, remote_port 0. */
struct nat_key {
	struct addr remote;
	struct addr node;
	__be16 remote_port;
	__be16 node_port;
	__u8 proto;
	__u8 pad[3];
};

struct nat_entry {
	struct addr pod;
	__be16 pod_port;
	__u16 pad[3];
};

/* strait_frag: first fragment's ports for the fragments that follow. */
struct frag_key {
	struct addr src;
	struct addr dst;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct frag_entry {
	__be16 sport;
	__be16 dport;
};

/* strait_service: frontend -> service. Key: struct sockaddr_key. */
enum service_flags {
	SERVICE_CLUSTER_IP = 1 << 0,
};

struct service {
	__u32 id;    /* key of the slots, never 0 */
	__u32 count; /* active backends: slots 0..count-1 */
	enum service_flags flags;
	__u32 pad;
};

/* strait_slot: (service id, slot) -> backend id (__u32). */
struct slot_key {
	__u32 service;
	__u32 slot;
};

/* strait_backend: id -> where it is. */
struct backend {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 flags;
	__u32 generation; /* changes when the id is given to another address */
};

/* strait_sk: socket -> the service address it was told to connect to. */
struct sk_peer {
	struct sockaddr_key service;
	struct sockaddr_key backend;
};

/* strait_dgram: (socket, backend) -> service, for unconnected UDP. */
struct dgram_key {
	__u64 cookie;
	struct sockaddr_key backend;
	__u32 pad;
};

/* strait_counter: per CPU, index enum reason. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Ids are never reused: they are in dashboards and recorded flows. */
enum reason {
#define REASON(id, name, text) REASON_##name = id,
#include "reasons.def"
#undef REASON
	REASON_MAX = 256, /* entries of strait_counter */
};
