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
	__u32 pad[3];
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 pad2;
	__u64 policy; /* first half of the keys of strait_policy; 0: no policy selects the pod, everything passes */
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
	__u32 pad;
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
	CT_NAT = 1 << 5,     /* nat_addr/nat_port stand for the beginner towards the other end */
	CT_SERVICE = 1 << 6, /* the entry is of a client and a frontend: backend, backend_gen say where its packets go */
	CT_FRONT =
	    1 << 7,	 /* front_addr/front_port stand for the other end towards the beginner: the backend's side of a service */
	CT_DSR = 1 << 8, /* with CT_SERVICE: the backend's node answers the client itself */
	CT_STACK = 1 << 9,    /* the node's stack translates this connection: packets of the other end go through it */
	CT_VIRTUAL = 1 << 10, /* with CT_STACK: an end stands for another one in the stack, policy judges where both are known */
	CT_SOCKET =
	    1 << 11, /* front_addr/front_port are what the beginner's socket calls the other end: packets do not show it */
};

struct ct_entry {
	__u64 began;	  /* ns, CLOCK_MONOTONIC_COARSE: cheap, and no time passes for a connection of a suspended machine */
	__u64 packets[2]; /* 0: sent by the low end, 1: by the high end */
	__u64 bytes[2];	  /* L3 length; a GSO packet counts once in both */
	__u32 last_seen;  /* s, the clock of began */
	enum ct_flags flags;
	__u32 policy_rev; /* node_state.revision under which both ends' policies allowed it; 0: not judged yet */
	__u32 rule_out;	  /* rule of the beginner's egress that allowed it; 0: none applies here */
	__u32 backend;	  /* id, 0: none */
	__u32 backend_gen;
	struct addr nat_addr;
	__be16 nat_port;
	__u16 pad;
	__u32 tick; /* when the clock was last read for last_seen, in the datapath's own unit */
	struct addr front_addr;
	__be16 front_port;
	__u16 pad2;
	__u32 rule_in; /* rule of the other end's ingress that allowed it; 0: none applies here */
};

/* strait_nat: what a reply to an address of the node looks like -> who it is for: a masqueraded pod, or the client of a service whose
 * backend is on another node. ICMP echo: identifier in node_port, remote_port 0. */
struct nat_key {
	struct addr remote;
	struct addr node;
	__be16 remote_port;
	__be16 node_port;
	__u8 proto;
	__u8 pad[3];
};

struct nat_entry {
	struct addr client;
	__be16 client_port;
	__be16 front_port; /* 0: a masqueraded pod; else the client knows the other end by front_addr and this port */
	__u16 pad[2];
	struct addr front_addr;
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

/* strait_service: frontend -> service. Key: struct sockaddr_key; address 0.0.0.0 or :: stands for every address of the node (node ports,
 * host ports) and, with SERVICE_NODE_PORT, for those of other nodes as well. */
enum service_flags {
	SERVICE_CLUSTER_IP = 1 << 0, /* for clients inside the cluster only */
	SERVICE_NODE_PORT = 1 << 1,
	SERVICE_LOAD_BALANCER = 1 << 2,
	SERVICE_EXTERNAL_IP = 1 << 3,
	SERVICE_HOST_PORT = 1 << 4,
	SERVICE_AFFINITY = 1 << 5,    /* a client stays with its backend for affinity seconds */
	SERVICE_SOURCES = 1 << 6,     /* only clients that strait_source knows */
	SERVICE_OUTER_LOCAL = 1 << 7, /* outer_set has this node's backends only: nothing in it means silence, not refusal */
	SERVICE_DSR = 1 << 8,
};

enum algorithm {
	ALGORITHM_RANDOM = 0,
	ALGORITHM_MAGLEV = 1,
	ALGORITHM_RR = 2,
	ALGORITHM_LC = 3,
	ALGORITHM_DH = 4,
	ALGORITHM_SH = 5,
	ALGORITHM_SED = 6,
	ALGORITHM_NQ = 7,
	ALGORITHM_P2C = 8,
};

struct service {
	__u32 id;    /* of the frontend, never 0 */
	__u32 count; /* slots 0..count-1 of set are in use */
	enum service_flags flags;
	__u32 turn;	 /* round robin; written by the programs */
	__u32 set;	 /* the backends of clients inside the cluster, never 0 */
	__u32 outer_set; /* those of clients outside; the same unless externalTrafficPolicy is Local */
	__u32 outer_count;
	enum algorithm algorithm;
	__u32 affinity; /* s */
};

/* strait_slot: (backend set, slot) -> backend. A backend of weight n has one slot; algorithms that choose by slot alone know weights
 * by sets in which userspace has repeated it. */
struct slot_key {
	__u32 set;
	__u32 slot;
};

struct slot {
	__u32 backend; /* id */
	__u32 weight;  /* 0 counts as 1 */
};

/* strait_backend: id -> where it is. */
enum backend_flags {
	BACKEND_LEAVING = 1 << 0, /* in no slot any more: TCP connections stay until the pod is gone, UDP is given another */
};

struct backend {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u32 generation; /* changes when the id is given to another address */
	enum backend_flags flags;
};

/* strait_load: backend id -> connections under way. Made and removed with the backend by userspace, counted by the programs. */
struct load {
	__u32 sockets;	   /* connected by the socket programs */
	__u32 tracked;	   /* entries with CT_SERVICE that have not ended; userspace sets it right when it sweeps */
	__u64 connections; /* ever */
};

/* strait_affinity: (client, backend set) -> the backend it stays with. */
struct affinity_key {
	struct addr client;
	__u32 set;
};

struct affinity {
	__u32 backend;
	__u32 generation;
	__u32 last; /* s, CLOCK_MONOTONIC_COARSE */
};

/* strait_netns: network namespace cookie -> the addresses its clients have. The node's own is there as well. */
struct netns {
	struct addr addr4;
	struct addr addr6;
};

/* strait_source: (service id, prefix) -> allowed. */
struct source_key {
	__u32 prefix_len; /* over 160 bits: the id, then the address */
	__u32 service;
	struct addr addr;
};

/* strait_announce: service addresses this node answers ARP and neighbour discovery for, by device. */
struct announce_key {
	struct addr addr;
	__u32 ifindex;
};

struct announce {
	__u8 mac[6];
	__u8 pad[2];
};

/* strait_sk: socket -> the service address it was told to connect to. */
struct sk_peer {
	struct sockaddr_key service;
	struct sockaddr_key backend;
};

/* strait_sk_use: socket -> the backends it uses. Not part of strait_sk, whose rows nobody could carry over into a larger one. */
struct sk_use {
	__u32 backend; /* counted in its load as connected; 0: none */
	__u32 generation;
	__u32 sent_backend; /* where unconnected UDP goes as long as sent_set has it; 0: nothing was sent */
	__u32 sent_generation;
	__u32 sent_set;
	__u32 sent_slot; /* where sent_backend was last seen */
};

/* strait_dgram: (socket, backend) -> service, for unconnected UDP. */
struct dgram_key {
	__u64 cookie;
	struct sockaddr_key backend;
	__u32 pad;
};

/* Policy. Identities, policies and tables are named by 64-bit hashes of their content: what is equal has the same name on every node and after
 * every restart, and a name is never given to other content. */

/* strait_identity: prefix -> who that is, for policy. Key: struct ipcache_key. No row: IDENTITY_WORLD. */
enum known_identity {
	IDENTITY_WORLD = 2,
	IDENTITY_OTHER = 255, /* in keys of strait_policy: every identity without a row of its own */
};

enum policy_direction {
	POLICY_EGRESS = 0,
	POLICY_INGRESS = 1,
};

enum policy_flags {
	POLICY_ALLOW = 1 << 0,
	POLICY_AUDIT = 1 << 1,	    /* policies that are only audited would have decided otherwise, by audit_rule */
	POLICY_AUDIT_DENY = 1 << 2, /* with POLICY_AUDIT: they would have denied */
};

struct policy_verdict {
	__u32 rule; /* index into strait_rule, never 0 */
	__u32 audit_rule;
	enum policy_flags flags;
	__u32 l7; /* 0: none */
};

/* strait_policy: (policy of a local pod, direction, identity of the peer) -> what may pass. Each policy has IDENTITY_OTHER in both directions. */
struct policy_key {
	__u64 policy;
	__u64 identity;
	enum policy_direction direction;
	__u32 pad;
};

struct policy_entry {
	__u64 table; /* 0: the verdict is for every protocol and port; else strait_port knows */
	struct policy_verdict verdict;
};

/* strait_port: (table, protocol, port) -> verdict. The prefix covers the table (96 bits of the key's data), or table and protocol (112), or
 * those and leading bits of the port (113-128); a table has a row of 96 bits always. ICMP: the port is type << 8 | code. */
struct port_key {
	__u32 prefix_len;
	__u32 pad; /* 0 */
	__u64 table;
	__u8 proto;
	__u8 pad2; /* 0 */
	__be16 port;
	__u32 pad3; /* 0, never in a prefix */
};

/* strait_node: one entry. */
struct node_state {
	__u32 revision; /* never 0; grows after every change of what policy decides, when all of it is in the maps */
	__u32 pad;
	__u64 policy; /* of the node itself (host firewall); 0: none */
};

/* strait_rule: per CPU, index rule -> packets that it let pass or stopped, those of established connections included. Value: struct counter. */

/* Ids are never reused: they are in dashboards and recorded flows. */
enum reason {
#define REASON(id, name, text) REASON_##name = id,
#include "reasons.def"
#undef REASON
	REASON_MAX = 256, /* entries of strait_counter */
};

/* strait_events: what happened to connections; docs/design/0007-flows.md. */
enum event_kind {
	EVENT_NEW = 1,	   /* a connection between real ends is entered */
	EVENT_JUDGED = 2,  /* a known one was judged again: another rule decides now, or none */
	EVENT_END = 3,	   /* closed */
	EVENT_DENIED = 4,  /* policy does not allow it */
	EVENT_DROPPED = 5, /* any other drop */
	EVENT_KINDS = 8,   /* entries of strait_lost */
};

enum hook {
	HOOK_FROM_POD = 1,
	HOOK_TO_POD = 2,
	HOOK_FROM_NET = 3,
	HOOK_TO_NET = 4,
	HOOK_FROM_VX = 5,
	HOOK_TO_VX = 6,
	HOOK_XDP = 7,
};

enum event_flags {
	EVENT_ANSWER = 1 << 0, /* the packet was of the end that did not begin */
	EVENT_AUDIT = 1 << 1,  /* audited policies would have decided otherwise: denied what is allowed, allowed what is denied */
};

/* What is not known is zero. */
struct event {
	__u64 time;	   /* ns, CLOCK_MONOTONIC */
	struct addr src;   /* who began; of EVENT_DROPPED what the packet says */
	struct addr dst;   /* the real other end: a backend, not its service */
	struct addr front; /* the service address src knows dst by; zero: none */
	struct addr nat;   /* stands for src towards dst; zero: none */
	__be16 sport;	   /* ICMP echo: identifier in both */
	__be16 dport;
	__be16 front_port;
	__be16 nat_port;
	enum event_kind kind;
	enum reason reason; /* of EVENT_DENIED and EVENT_DROPPED */
	enum hook hook;
	enum event_flags flags;
	__u32 ifindex;	/* where the packet was seen */
	__u32 rule_out; /* what decided; 0: nothing judged this direction here */
	__u32 rule_in;
	__u32 audit; /* with EVENT_AUDIT: the rule */
	__u64 packets
	    [2]; /* EVENT_END: of who began, of the other. EVENT_DENIED, EVENT_DROPPED: [0] is what the record stands for */
	__u64 bytes[2]; /* L3 length; of EVENT_DENIED and EVENT_DROPPED all behind the Ethernet header */
	__u8 proto;
	__u8 tcp_flags; /* of the packet that was seen */
	__u16 icmp;	/* type << 8 | code, host order */
	__u32 pad;
};

/* strait_muted: what was told a short time ago -> what came since. Entries are made by the programs and removed by userspace, which tells
 * what they hold: one that made room for others would take its packets with it. */
struct muted_key {
	struct addr src;
	struct addr dst;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	enum reason reason;
};

struct muted {
	__u64 told; /* ns, CLOCK_MONOTONIC: when it was told */
	__u64 packets;
	__u64 bytes;
	__be16 sport; /* of the last packet */
	__u16 pad;
	enum hook hook;
	__u32 rule_out;
	__u32 rule_in;
};

/* strait_lost: per CPU, index enum event_kind: records that did not fit into the ring, and what they stood for. */
struct lost {
	__u64 records;
	__u64 packets;
	__u64 bytes;
};

/* strait_scratch. */
struct scratch {
	struct event event;
	struct muted_key muted_key;
	struct muted muted;
	struct dgram_key dgram;
};

/* strait_counter: per CPU, index enum reason. */
struct counter {
	__u64 packets;
	__u64 bytes;
};
